from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import nn

from segserve.networks import pretrained_statistics
from training.config import Recipe
from training.data import channel_statistics, data_digest
from training.layouts import open_dataset
from training.learner import Learner, averaged_network, build_learner
from training.synthetic import write_segmentation_set


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data") / "set"
    write_segmentation_set(root, seed=0, num_train=5, num_val=1, side=32)
    return root


def _build(root: Path, **changes: Any) -> Learner:
    recipe = Recipe.model_validate(
        {
            "name": "small",
            "task": "segmentation",
            "data": {"root": root},
            "preprocess": {"working_side": 32},
            "augment": {"crop": [32, 32]},
            "optim": {"epochs": 1, "batch_size": 2, "learning_rate": 1e-3, "weight_decay": 0.1},
            "network": {"encoder": "resnet18"},
            **changes,
        }
    )
    return build_learner(recipe, open_dataset(root, "segmentation"), checkpoint=None, device=torch.device("cpu"))


def test_the_spec_tells_what_the_network_is_trained_with(root: Path) -> None:
    learner = _build(root, seed=3)
    spec, provenance = learner.spec, learner.spec.provenance
    assert (spec.name, spec.task, spec.network.encoder_weights) == ("small", "segmentation", "none")
    assert [entry.name for entry in spec.classes] == ["background", "cell", "washer", "fibre", "star"]
    assert (spec.preprocess.mean, spec.preprocess.std) == channel_statistics(image for image, _ in learner.batches.data)
    assert (provenance.seed, provenance.recipe["seed"], provenance.scores) == (3, 3, {})
    assert provenance.data_digest == data_digest(open_dataset(root, "segmentation"), ["train"])
    assert provenance.commit == "unknown" or len(provenance.commit.removesuffix("-dirty")) == 40


def test_the_seed_decides_the_first_weights(root: Path) -> None:
    first, again, other = (_build(root, seed=seed).network.head.weight for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_pretrained_encoders_bring_their_mean(root: Path, tmp_path: Path) -> None:
    torch.save(torchvision.models.resnet18(weights=None).state_dict(), tmp_path / "encoder.pth")
    spec = _build(root, network={"encoder": "resnet18", "encoder_weights": str(tmp_path / "encoder.pth")}).spec
    assert spec.network.encoder_weights.startswith("file:sha256:")
    assert spec.preprocess.mean == pretrained_statistics("resnet18")[0]


def test_norms_and_biases_are_not_decayed(root: Path) -> None:
    learner = _build(root)
    decayed, others = learner.optimizer.param_groups
    assert (decayed["weight_decay"], others["weight_decay"]) == (0.1, 0.0)
    assert all(weight.dim() > 1 for weight in decayed["params"]) and all(
        weight.dim() == 1 for weight in others["params"]
    )
    assert len(decayed["params"]) + len(others["params"]) == len(list(learner.network.parameters()))


def test_the_moving_average_follows_its_formula_buffers_included() -> None:
    network: Any = nn.Sequential(nn.Linear(1, 1, bias=False), nn.BatchNorm1d(1))
    averaged = averaged_network(network, decay=0.3)
    expected = 0.0
    for step, value in enumerate([4.0, -2.0, 7.0, 1.0, 3.0, 5.0]):
        with torch.no_grad():
            network[0].weight.fill_(value)
            network[1].running_mean.fill_(value)
        averaged.update_parameters(network)
        decay = 0.0 if step == 0 else min(0.3, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * value
        assert averaged.module[0].weight.item() == pytest.approx(expected)
        assert averaged.module[1].running_mean.item() == pytest.approx(expected)


@pytest.mark.parametrize("encoder", ["resnet18", "mobilenet_v2", "mobilenet_v3_small", "mobilenet_v3_large"])
def test_sixty_steps_replace_the_statistics_that_batch_norm_begins_with(root: Path, encoder: str) -> None:
    network = _build(root, network={"encoder": encoder}).network
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        torch.nn.init.constant_(norm.running_mean, 1e3)
    with torch.no_grad():
        for _ in range(60):
            network(torch.randn(2, 3, 32, 32))
    # 1000 x 0.9^60 = 1.8; with torchvision's 0.01 it would be 547.
    assert all(norm.running_mean.abs().max() < 10 for norm in norms)


def test_a_batch_is_never_larger_than_the_set(root: Path) -> None:
    optim = {"epochs": 1, "learning_rate": 1e-3}
    sizes = {(size, _build(root, optim={**optim, "batch_size": size}).steps_per_epoch) for size in (2, 5, 16)}
    assert sizes == {(2, 2), (5, 1), (16, 1)}


def test_one_image_is_too_few(tmp_path: Path) -> None:
    write_segmentation_set(tmp_path / "set", seed=0, num_train=1, num_val=1, side=32)
    with pytest.raises(ValueError, match=r"at least 2 images in split train of .*, but got 1: add some"):
        _build(tmp_path / "set")
