import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from segserve.artifact import Artifact
from segserve.spec import ClassSpec, ModelSpec
from tests.conftest import random_image
from training.config import DistillationSettings, Recipe
from training.data import IGNORE
from training.distillation import Teacher, distillation_loss
from training.engine import train
from training.export import export_run


def slow_loss(student_BKHW: Tensor, teacher_BKHW: Tensor, valid_BHW: Tensor, *, temperature: float) -> float:
    """Pixel by pixel, class by class, in float64."""
    total, count = 0.0, 0
    s, t = (logits.double().numpy() for logits in (student_BKHW, teacher_BKHW))
    for b, h, w in np.argwhere(valid_BHW.numpy()):
        p, q = (np.exp(logits[b, :, h, w] / temperature) for logits in (t, s))
        p, q = p / p.sum(), q / q.sum()
        total += sum(p[k] * (np.log(p[k]) - np.log(q[k])) for k in range(len(p)))
        count += 1
    return temperature**2 * total / count


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0, 8.0])
def test_equals_the_slow_version(temperature: float) -> None:
    student_BKHW, teacher_BKHW = torch.randn(2, 2, 4, 3, 5) * 3
    valid_BHW = torch.rand(2, 3, 5) > 0.3
    found = distillation_loss(student_BKHW, teacher_BKHW, valid_BHW, temperature=temperature)
    expected = slow_loss(student_BKHW, teacher_BKHW, valid_BHW, temperature=temperature)
    assert found.item() == pytest.approx(expected, rel=1e-5)


def test_by_hand() -> None:
    """The teacher says 3/4 and 1/4 at temperature 2, the student half and half: log 2 minus the teacher's entropy."""
    teacher_BK = torch.tensor([[2 * np.log(3.0), 0.0]])
    found = distillation_loss(torch.zeros(1, 2), teacher_BK, torch.tensor([True]), temperature=2.0)
    entropy = -(0.75 * np.log(0.75) + 0.25 * np.log(0.25))
    assert found.item() == pytest.approx(4 * (np.log(2) - entropy), rel=1e-6)


def test_the_gradient_is_that_of_the_formula() -> None:
    student_BKHW = torch.randn(2, 3, 2, 2, dtype=torch.float64, requires_grad=True)
    teacher_BKHW = torch.randn(2, 3, 2, 2, dtype=torch.float64)
    valid_BHW = torch.tensor([[[True, False], [True, True]]]).expand(2, 2, 2)

    def loss(student: Tensor) -> Tensor:
        return distillation_loss(student, teacher_BKHW, valid_BHW, temperature=3.0)

    assert torch.autograd.gradcheck(loss, (student_BKHW,))
    loss(student_BKHW).backward()
    assert student_BKHW.grad is not None
    expected_BKHW = 3.0 / 6 * ((student_BKHW / 3).softmax(1) - (teacher_BKHW / 3).softmax(1)) * valid_BHW[:, None]
    torch.testing.assert_close(student_BKHW.grad, expected_BKHW.detach())


def test_a_student_like_its_teacher_loses_nothing_and_does_not_move() -> None:
    teacher_BK = torch.randn(4, 5)
    student_BK = (teacher_BK + 7.0).requires_grad_()
    loss = distillation_loss(student_BK, teacher_BK, torch.ones(4, dtype=torch.bool), temperature=2.0)
    assert loss.item() == pytest.approx(0, abs=1e-6)
    (gradient,) = torch.autograd.grad(loss, student_BK)
    assert gradient.abs().max() < 1e-6


def test_nothing_valid_is_no_loss_and_no_gradient() -> None:
    student_BKHW = torch.randn(1, 2, 2, 2, requires_grad=True)
    loss = distillation_loss(student_BKHW, torch.zeros(1, 2, 2, 2), torch.zeros(1, 2, 2) > 0, temperature=2.0)
    (gradient,) = torch.autograd.grad(loss, student_BKHW)
    assert loss.item() == 0
    assert not gradient.any()


def test_sure_networks_that_disagree_stay_finite() -> None:
    student_BK, teacher_BK = torch.tensor([[500.0, -500.0]]), torch.tensor([[-500.0, 500.0]])
    loss = distillation_loss(student_BK, teacher_BK, torch.tensor([True]), temperature=1.0)
    assert loss.item() == pytest.approx(1000)


def test_half_precision_is_computed_in_float32() -> None:
    student_BK, teacher_BK = torch.randn(2, 3, 4).bfloat16()
    valid_B = torch.ones(3, dtype=torch.bool)
    half = distillation_loss(student_BK, teacher_BK, valid_B, temperature=2.0)
    assert half.dtype == torch.float32
    assert torch.equal(half, distillation_loss(student_BK.float(), teacher_BK.float(), valid_B, temperature=2.0))


def loaded(artifact: Artifact, **changes: Any) -> Teacher:
    settings = DistillationSettings(teacher=artifact.path, **changes)
    return Teacher.load(settings, artifact.spec, device=torch.device("cpu"), precision="float32")


def test_the_teacher_sees_the_batch_as_it_was_trained_to(artifact: Artifact) -> None:
    teacher = loaded(artifact)
    images_BCHW = torch.randint(0, 256, (2, 3, 64, 32), dtype=torch.uint8)
    mean_C11, std_C11 = (
        torch.tensor(c).view(3, 1, 1) for c in (artifact.spec.preprocess.mean, artifact.spec.preprocess.std)
    )
    with torch.no_grad():
        expected_BKHW = artifact.network.eval()((images_BCHW / 255 - mean_C11) / std_C11)
    logits_BKHW = teacher.logits(images_BCHW)
    assert not logits_BKHW.requires_grad and not logits_BKHW.is_inference()
    torch.testing.assert_close(logits_BKHW, expected_BKHW, atol=1e-4, rtol=1e-4)


def test_the_main_head_is_taught_where_the_truth_is_known(artifact: Artifact) -> None:
    teacher = loaded(artifact, weight=0.5, temperature=3.0)
    images_BCHW = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    masks_BHW = torch.randint(0, 4, (2, 32, 32))
    masks_BHW[:, :10] = IGNORE
    main_BKHW, other_BKHW = torch.randn(2, 2, 4, 32, 32)
    expected = 0.5 * slow_loss(main_BKHW, teacher.logits(images_BCHW).float(), masks_BHW != IGNORE, temperature=3.0)
    found = teacher.loss((main_BKHW, other_BKHW), images_BCHW, masks_BHW)
    assert found.item() == pytest.approx(expected, rel=1e-4)
    assert teacher.loss(main_BKHW, images_BCHW, masks_BHW).item() == found.item()


def test_mixed_labels_are_all_valid(labels_artifact: Artifact) -> None:
    teacher = loaded(labels_artifact)
    images_BCHW, student_BK = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8), torch.randn(3, 4)
    shares_BK = torch.rand(3, 4).softmax(dim=1)
    labels_B = torch.tensor([0, 1, 2])
    assert teacher.loss(student_BK, images_BCHW, shares_BK) == teacher.loss(student_BK, images_BCHW, labels_B)


def _resized(spec: ModelSpec) -> ModelSpec:
    return spec.model_copy(update={"preprocess": spec.preprocess.model_copy(update={"working_side": 96})})


def _with_another_class(spec: ModelSpec) -> ModelSpec:
    return spec.model_copy(update={"classes": (*spec.classes[:3], ClassSpec(id=3, name="bus", color=(0, 0, 0)))})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            _with_another_class,
            "teacher for segmentation into sky, road, tree, bus, but .* into sky, road, tree, car: train",
        ),
        (_resized, "resize = 'always' and working_side = 96, but .* has 'always' and 64: train one with the same"),
        (lambda spec: spec.model_copy(update={"task": "classification"}), "a teacher for classification into"),
    ],
)
def test_a_teacher_that_does_not_fit_is_refused(
    artifact: Artifact, change: Callable[[ModelSpec], ModelSpec], words: str
) -> None:
    settings = DistillationSettings(teacher=artifact.path)
    with pytest.raises(ValueError, match=words):
        Teacher.load(settings, change(artifact.spec), device=torch.device("cpu"), precision="float32")


def test_a_recipe_with_a_teacher_trains_on_what_it_says(artifact: Artifact, tmp_path: Path) -> None:
    """The first step's loss is that of the truth alone plus what the teacher adds; the teacher stays as it is."""
    for split, count in (("train", 4), ("val", 1)):
        for index in range(count):
            for kind, array in (
                ("images", random_image(48, 64, seed=index + 10 * (split == "val"))),
                ("masks", random_image(48, 64, seed=index + 50)[..., 0] % 4),
            ):
                (tmp_path / kind / split).mkdir(parents=True, exist_ok=True)
                Image.fromarray(array).save(tmp_path / kind / split / f"{split}{index}.png")
    classes = [entry.model_dump(mode="json") for entry in artifact.spec.classes]
    (tmp_path / "classes.json").write_text(json.dumps({"classes": classes, "ignore_index": None}))
    before = (artifact.path / "weights.safetensors").read_bytes()
    losses = []
    for name, section in (("plain", {}), ("taught", {"distillation": {"teacher": artifact.path, "weight": 3.0}})):
        recipe = Recipe.model_validate(
            {
                "name": name,
                "task": "segmentation",
                "data": {"root": tmp_path},
                "preprocess": {"working_side": 64},
                "augment": {"crop": [64, 64]},
                "optim": {"epochs": 1, "batch_size": 4, "learning_rate": 1e-4},
                "network": {"encoder": "mobilenet_v3_small", "auxiliary_heads": 1},
                **section,
            }
        )
        run_dir = train(recipe, run_dir=tmp_path / "runs" / name)
        losses.append(json.loads((run_dir / "log.jsonl").read_text())["loss"])
    assert losses[1] > losses[0]
    assert (artifact.path / "weights.safetensors").read_bytes() == before
    student = export_run(run_dir, tmp_path / "student", calibrate=False)
    assert [name for name in student.network.state_dict() if name.startswith("auxiliary")] == []
    assert student.spec.provenance.recipe["distillation"]["weight"] == 3.0
