"""Distillation: a network learns the softened answers of a trained one beside the truth.

Hinton et al. 2015, https://arxiv.org/abs/1503.02531; for masks it is applied to each pixel, as in Liu et al. 2019,
https://arxiv.org/abs/1903.04197.

Dimensions: B batch, K classes, C channels, H, W.
"""

from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from segserve.artifact import load_artifact
from segserve.engines.torch_engine import Precision, autocast
from segserve.preprocess import normalise
from segserve.spec import ModelSpec
from training.config import DistillationSettings
from training.data import IGNORE


def distillation_loss(student_BK: Tensor, teacher_BK: Tensor, valid_B: Tensor, *, temperature: float) -> Tensor:
    """T^2 times the mean, over the valid elements, of KL(softmax(teacher / T) || softmax(student / T)).

    The factor keeps the gradient's size where T changes (Hinton et al., section 2).

    Args:
        student_BK: logits, (B, K, H, W) or (B, K), any values; half precision is raised to float32.
        teacher_BK: of the same shape; no gradient flows into them.
        valid_B: bool (B, H, W) or (B,); what is False counts nowhere.
        temperature: T, above 0.

    Returns:
        A scalar, at least 0 but for rounding; 0 where nothing is valid.
    """
    wide = torch.promote_types(student_BK.dtype, torch.float32)
    student_log_BK = (student_BK.to(wide) / temperature).log_softmax(dim=1)
    teacher_log_BK = (teacher_BK.detach().to(wide) / temperature).log_softmax(dim=1)
    divergence_B = functional.kl_div(student_log_BK, teacher_log_BK, reduction="none", log_target=True).sum(dim=1)
    return temperature**2 * divergence_B.where(valid_B, 0).sum() / valid_B.sum().clamp(min=1)


class Teacher:
    """A trained network that looks at the student's own training batches; it is never changed.

    Args:
        network: in evaluation mode, on the device the batches are on.
        spec: of the teacher.
        settings: weight and temperature.
        precision: in which its convolutions compute.
    """

    def __init__(
        self, network: nn.Module, spec: ModelSpec, settings: DistillationSettings, *, precision: Precision
    ) -> None:
        self.network = network.eval().requires_grad_(False)
        self.spec = spec
        self.settings = settings
        self.precision = precision

    @classmethod
    def load(
        cls, settings: DistillationSettings, student: ModelSpec, *, device: torch.device, precision: Precision
    ) -> Self:
        """The teacher the recipe names.

        Raises:
            ValueError: it is no artifact, or has another task, other classes or another working size than the student.
        """
        artifact = load_artifact(settings.teacher)
        _check_fits(artifact.spec, student, where=str(settings.teacher))
        network = artifact.network.to(device).to(memory_format=torch.channels_last)
        return cls(network, artifact.spec, settings, precision=precision)

    @torch.no_grad()
    def logits(self, images_BCHW: Tensor) -> Tensor:
        """The teacher's logits, (B, K, H, W) or (B, K), for a batch (B, 3, H, W) with values 0 to 255.

        The batch is normalised as the teacher wants it; the artifact's calibration is left out, being a temperature of
        its own.
        """
        x_BCHW = normalise(images_BCHW, self.spec.preprocess).to(memory_format=torch.channels_last)
        with autocast(images_BCHW.device, self.precision):
            return self.network(x_BCHW)  # type: ignore[no-any-return]

    def loss(self, student: Tensor | tuple[Tensor, ...], images_BCHW: Tensor, truths_B: Tensor) -> Tensor:
        """The weighted distillation loss of one batch.

        Args:
            student: logits of the same batch; of several heads only the main one, the first, is taught.
            images_BCHW: the batch before it was normalised, values 0 to 255.
            truths_B: masks or labels, of which `IGNORE` counts nowhere; or float (B, K), shares that sum to 1.
        """
        main_BK = student[0] if isinstance(student, tuple) else student
        valid_B = truths_B[:, 0] >= 0 if truths_B.is_floating_point() else truths_B != IGNORE
        loss = distillation_loss(main_BK, self.logits(images_BCHW), valid_B, temperature=self.settings.temperature)
        return self.settings.weight * loss


def _check_fits(teacher: ModelSpec, student: ModelSpec, *, where: str) -> None:
    if teacher.task != student.task or teacher.class_names != student.class_names:
        raise ValueError(
            f"expected a teacher for {student.task} into {', '.join(student.class_names)}, but {where} is for "
            f"{teacher.task} into {', '.join(teacher.class_names)}: train one on the same data set"
        )
    theirs, ours = teacher.preprocess, student.preprocess
    if (theirs.resize, theirs.working_side) != (ours.resize, ours.working_side):
        raise ValueError(
            f"expected a teacher that sees images as the student does, with resize = {ours.resize!r} and "
            f"working_side = {ours.working_side}, but {where} has {theirs.resize!r} and {theirs.working_side}: "
            "train one with the same [preprocess]"
        )
