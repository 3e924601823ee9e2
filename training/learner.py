"""Learner: the network in training, with the data, the optimiser and the moving average that belong to it.

AdamW: Loshchilov and Hutter 2019, https://arxiv.org/abs/1711.05101.

Dimensions: C channels, H, W.
"""

import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from segserve.engines.torch_engine import TorchEngine
from segserve.networks import Network, build_network, load_encoder_weights
from segserve.predictor import Predictor, build_predictor
from segserve.spec import ModelSpec, NetworkSpec, PreprocessSpec, Provenance
from training.augment import Augment, seeded
from training.config import OptimSettings, Recipe
from training.data import Channels, channel_statistics, data_digest, load_sample
from training.layouts import Dataset
from training.losses.cross_entropy import class_counts
from training.losses.objective import Objective
from training.run import Checkpoint, EpochLog

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

Tensors = tuple[Tensor, ...] | list[Tensor]

TRAINED_ON = ("train",)
"""The splits the digest in the artifact speaks of."""


@dataclass(kw_only=True)
class Learner:
    """What changes while training, and what the changes are computed from."""

    recipe: Recipe
    spec: ModelSpec
    """But for the scores, which are not known yet."""
    data: Sequence[tuple[Tensor, Tensor]]
    """Images (3, H, W) and truths (H, W) or (), uint8, at the working size."""
    augment: Augment
    device: torch.device
    network: Network
    objective: Objective
    averaged: AveragedModel
    optimizer: torch.optim.Optimizer
    history: list[EpochLog] = field(default_factory=list)

    @property
    def batch_size(self) -> int:
        return min(self.recipe.optim.batch_size, len(self.data))

    @property
    def steps_per_epoch(self) -> int:
        """Images that do not fill the last batch are left to other epochs, which have another order."""
        return len(self.data) // self.batch_size

    def predictor(self) -> Predictor:
        """The averaged network behind the path the service takes."""
        return build_predictor(self.spec, TorchEngine(self.averaged.module, device=self.device))

    def checkpoint(self) -> Checkpoint:
        """Everything that has changed so far."""
        return Checkpoint(
            spec=self.spec,
            history=tuple(self.history),
            network=self.network.state_dict(),
            averaged=self.averaged.module.state_dict(),
            num_averaged=int(self.averaged.n_averaged),
            optimizer=self.optimizer.state_dict(),
        )

    def restore(self, checkpoint: Checkpoint) -> None:
        """Go back to where the checkpoint was taken."""
        self.network.load_state_dict(checkpoint.network)
        self.averaged.module.load_state_dict(checkpoint.averaged)
        self.averaged.n_averaged.fill_(checkpoint.num_averaged)
        self.optimizer.load_state_dict(dict(checkpoint.optimizer))
        self.history = list(checkpoint.history)


def build_learner(recipe: Recipe, dataset: Dataset, *, checkpoint: Checkpoint | None, device: torch.device) -> Learner:
    """A learner at its first step, or where the checkpoint was taken.

    Raises:
        ValueError: there are too few training images, or not those the checkpoint was made with, or the encoder's
            weights cannot be had.
    """
    sizes = PreprocessSpec(**recipe.preprocess.model_dump(), mean=(0, 0, 0), std=(1, 1, 1))
    data = [
        load_sample(sample, ignore_index=dataset.ignore_index, preprocess=sizes) for sample in dataset.split("train")
    ]
    if len(data) < 2:
        raise ValueError(f"expected at least 2 images in split train of {dataset.root}, but got 1: add some")
    mean, std = channel_statistics([image_CHW for image_CHW, _ in data])
    with seeded(recipe.seed):
        network = build_network(
            NetworkSpec(encoder=recipe.network.encoder), task=recipe.task, num_classes=len(dataset.classes)
        )
    spec = _spec(recipe, dataset, network, statistics=(mean, std)) if checkpoint is None else checkpoint.spec
    _check_digest(spec, dataset)
    network.to(device).to(memory_format=torch.channels_last)
    learner = Learner(
        recipe=recipe,
        spec=spec,
        data=data,
        augment=Augment(recipe.augment, mean_color=_to_8_bit(mean), num_classes=len(dataset.classes)),
        device=device,
        network=network,
        objective=_objective(recipe, dataset, data),
        averaged=averaged_network(network, decay=recipe.optim.ema_decay),
        optimizer=_optimizer(network, recipe.optim),
    )
    if checkpoint is not None:
        learner.restore(checkpoint)
    return learner


def _objective(recipe: Recipe, dataset: Dataset, data: Sequence[tuple[Tensor, Tensor]]) -> Objective:
    counts_NK = class_counts((truth for _, truth in data), num_classes=len(dataset.classes))
    return Objective(recipe.loss, task=recipe.task, class_counts_NK=counts_NK)


def _spec(recipe: Recipe, dataset: Dataset, network: Network, *, statistics: tuple[Channels, Channels]) -> ModelSpec:
    """The new model's spec; its encoder is filled with pretrained weights on the way, which bring their own mean."""
    source = recipe.network.encoder_weights
    named = source if source in ("none", "imagenet") else Path(source)
    origin = load_encoder_weights(network.encoder, recipe.network.encoder, source=named)  # type: ignore[arg-type]
    mean, std = statistics if origin == "none" else (IMAGENET_MEAN, IMAGENET_STD)
    return ModelSpec(
        name=recipe.name,
        task=recipe.task,
        network=NetworkSpec(encoder=recipe.network.encoder, encoder_weights=origin),
        classes=dataset.classes,
        ignore_index=dataset.ignore_index,
        preprocess=PreprocessSpec(**recipe.preprocess.model_dump(), mean=mean, std=std),
        serving=recipe.serving,
        provenance=Provenance(
            data_digest=data_digest(dataset, TRAINED_ON),
            recipe=recipe.model_dump(mode="json"),
            commit=_commit(),
            seed=recipe.seed,
            scores={},
        ),
    )


def _check_digest(spec: ModelSpec, dataset: Dataset) -> None:
    if data_digest(dataset, TRAINED_ON) != spec.provenance.data_digest:
        raise ValueError(
            f"expected the training images that {spec.name} began with, but those of {dataset.root} have changed: "
            "bring them back, or give the run another name"
        )


def _commit() -> str:
    """The project's commit, with `-dirty` where files differ from it; `unknown` outside a checkout."""
    command = ["git", "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"]
    try:
        found = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return found.stdout.strip()


def _to_8_bit(mean: Channels) -> tuple[int, int, int]:
    red, green, blue = (round(255 * value) for value in mean)
    return red, green, blue


def averaged_network(network: Network, *, decay: float) -> AveragedModel:
    """A moving average of weights and batch norm's statistics.

    After t steps the decay is min(decay, (1 + t) / (10 + t)), so that short trainings forget their beginning, too.
    """

    def update(averaged: Tensors, current: Tensors, num_averaged: Tensor | int) -> None:
        steps = int(num_averaged)
        get_ema_multi_avg_fn(min(decay, (1 + steps) / (10 + steps)))(averaged, current, num_averaged)  # type: ignore[no-untyped-call]

    return AveragedModel(network, multi_avg_fn=update, use_buffers=True)


def _optimizer(network: Network, settings: OptimSettings) -> torch.optim.Optimizer:
    """AdamW; norms and biases (one-dimensional) are not decayed."""
    decayed = [weight for weight in network.parameters() if weight.dim() > 1]
    others = [weight for weight in network.parameters() if weight.dim() <= 1]
    groups = [{"params": decayed, "weight_decay": settings.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=settings.learning_rate, fused=True)
