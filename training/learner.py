"""Learner: the network in training, with the data, the optimiser and the moving average that belong to it.

AdamW: Loshchilov and Hutter 2019, https://arxiv.org/abs/1711.05101.

Dimensions: C channels, H, W.
"""

import copy
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from segserve.engines.torch_engine import Precision, TorchEngine, fastest_precision
from segserve.networks import Network, build_network, load_encoder_weights, pretrained_statistics
from segserve.predictor import Predictor, build_predictor
from segserve.spec import ModelSpec, NetworkSpec, PreprocessSpec, Provenance
from training.augment import Augment, seeded
from training.batches import ALONE, Batches, DecodedSamples, Order, held
from training.config import OptimSettings, Recipe
from training.data import Channels, channel_statistics, data_digest
from training.distillation import Teacher
from training.layouts import Dataset, Sample
from training.losses.objective import Objective
from training.metrics import HEADLINE
from training.ranks import Ranks
from training.run import Checkpoint, EpochLog
from training.strong import StrongAugment

Tensors = tuple[Tensor, ...] | list[Tensor]

TRAINED_ON = ("train",)
"""The splits the digest in the artifact speaks of."""

NORM_MOMENTUM = 0.1
"""Torch's own: what a step adds to the running statistics of batch norm."""


@dataclass(kw_only=True)
class Learner:
    """What changes while training, and what the changes are computed from."""

    recipe: Recipe
    spec: ModelSpec
    """But for the scores, which are not known yet."""
    batches: Batches
    device: torch.device
    ranks: Ranks
    network: Network
    replica: nn.Module
    """The network, or what joins its gradients with those of other processes."""
    objective: Objective
    averaged: AveragedModel
    optimizer: torch.optim.Optimizer
    teacher: Teacher | None = None
    history: list[EpochLog] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    """Of the open epoch, which is the one after those in `history`."""
    seconds: float = 0.0
    """What the open epoch took so far."""
    best: dict[str, Tensor] | None = None
    """The average after `best_epoch`, where the recipe asks for it."""

    @property
    def precision(self) -> Precision:
        """In which convolutions compute."""
        return _precision(self.recipe, self.device)

    @property
    def steps_per_epoch(self) -> int:
        return self.batches.steps_per_epoch

    @property
    def num_steps(self) -> int:
        """Of the whole run."""
        return self.recipe.optim.epochs * self.steps_per_epoch

    @property
    def step(self) -> int:
        """Steps done."""
        return len(self.history) * self.steps_per_epoch + len(self.losses)

    @property
    def best_epoch(self) -> int:
        """The first one with the highest val score, counted from 1."""
        headline = HEADLINE[self.recipe.task]
        return max((entry for entry in self.history if entry.scores), key=lambda entry: entry.scores[headline]).epoch

    def close_epoch(self, entry: EpochLog) -> None:
        """Go on to the next epoch."""
        self.history.append(entry)
        self.losses, self.seconds = [], 0.0
        if entry.scores and self.recipe.eval.keep == "best-on-val" and self.best_epoch == entry.epoch:
            self.best = {name: tensor.clone() for name, tensor in self.averaged.module.state_dict().items()}

    def result(self) -> Predictor:
        """What the run is for, behind the path the service takes."""
        network = copy.deepcopy(self.averaged.module)
        network.load_state_dict(self.checkpoint().result)
        return build_predictor(self.spec, TorchEngine(network, device=self.device))

    def predictor(self) -> Predictor:
        """The averaged network behind the path the service takes."""
        return build_predictor(self.spec, TorchEngine(self.averaged.module, device=self.device))

    def checkpoint(self) -> Checkpoint:
        """Everything that has changed so far."""
        return Checkpoint(
            spec=self.spec,
            history=tuple(self.history),
            losses=tuple(self.losses),
            seconds=self.seconds,
            network=self.network.state_dict(),
            averaged=self.averaged.module.state_dict(),
            num_averaged=int(self.averaged.n_averaged),
            optimizer=self.optimizer.state_dict(),
            best=self.best,
        )

    def restore(self, checkpoint: Checkpoint) -> None:
        """Go back to where the checkpoint was taken."""
        self.network.load_state_dict(checkpoint.network)
        self.averaged.module.load_state_dict(checkpoint.averaged)
        self.averaged.n_averaged.fill_(checkpoint.num_averaged)
        self.optimizer.load_state_dict(dict(checkpoint.optimizer))
        self.history, self.losses = list(checkpoint.history), list(checkpoint.losses)
        self.seconds = checkpoint.seconds
        self.best = None if checkpoint.best is None else dict(checkpoint.best)


def build_learner(
    recipe: Recipe, dataset: Dataset, *, checkpoint: Checkpoint | None, device: torch.device, ranks: Ranks = ALONE
) -> Learner:
    """A learner at its first step, or where the checkpoint was taken.

    Raises:
        ValueError: there are too few training images, or not those the checkpoint was made with, or the encoder's
            weights cannot be had, or a batch cannot be divided as it must be.
    """
    sizes = PreprocessSpec(**recipe.preprocess.model_dump(), mean=(0, 0, 0), std=(1, 1, 1))
    samples = DecodedSamples(dataset.split("train"), ignore_index=dataset.ignore_index, preprocess=sizes)
    data = held(samples, num_ranks=ranks.count)
    if len(data) < 2:
        raise ValueError(f"expected at least 2 images in split train of {dataset.root}, but got 1: add some")
    mean, std = channel_statistics(image_CHW for image_CHW, _ in data)
    network = _network(recipe, num_classes=len(dataset.classes))
    if checkpoint is None:
        spec = _spec(recipe, dataset, origin=_load_encoder(network, recipe), statistics=(mean, std))
    else:
        spec = checkpoint.spec
    _check_digest(spec, dataset)
    network.to(device).to(memory_format=torch.channels_last)
    averaged = averaged_network(network, decay=recipe.optim.ema_decay)
    learner = Learner(
        recipe=recipe,
        spec=spec,
        batches=_batches(
            recipe,
            data,
            _augment(recipe, samples.samples, mean_color=_to_8_bit(mean), num_classes=len(dataset.classes)),
            num_pseudo=sum(sample.is_pseudo for sample in samples.samples),
            device=device,
            ranks=ranks,
        ),
        device=device,
        ranks=ranks,
        network=network,
        replica=ranks.replica(network, device),
        objective=Objective(
            recipe.loss,
            task=recipe.task,
            num_classes=len(dataset.classes),
            truths=(truth for _, truth in data),
        ),
        averaged=averaged,
        optimizer=_optimizer(network, recipe.optim),
        teacher=_teacher(recipe, spec, device=device),
    )
    if checkpoint is not None:
        learner.restore(checkpoint)
    return learner


def _network(recipe: Recipe, *, num_classes: int) -> Network:
    """The recipe's, with the random weights that its seed gives."""
    with seeded(recipe.seed):
        network = build_network(
            _network_spec(recipe),
            task=recipe.task,
            num_classes=num_classes,
            auxiliary_heads=recipe.network.auxiliary_heads_for(recipe.task),
        )
    _follow_the_data(network)
    return network


def _load_encoder(network: Network, recipe: Recipe) -> str:
    """Fill the encoder as the recipe wants it; which weights these were, for the spec."""
    source = recipe.network.encoder_weights
    named = source if source in ("none", "imagenet") else Path(source)
    return load_encoder_weights(network, recipe.network.encoder, source=named)  # type: ignore[arg-type]


def _follow_the_data(network: Network) -> None:
    """Give every batch norm the usual momentum.

    torchvision's MobileNetV3 has 0.01 and MNASNet 0.0003, for trainings of hundreds of thousands of steps: after some
    hundred, evaluation would still normalise with the statistics of the first, random weights.
    """
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.momentum = NORM_MOMENTUM


def _augment(
    recipe: Recipe, samples: Sequence[Sample], *, mean_color: tuple[int, int, int], num_classes: int
) -> Augment:
    strong = None
    if recipe.pseudo is not None:
        is_pseudo = [sample.is_pseudo for sample in samples]
        strong = StrongAugment(recipe.pseudo, is_pseudo=is_pseudo, mean_color=mean_color)
    return Augment(recipe.augment, mean_color=mean_color, num_classes=num_classes, strong=strong)


def _batches(
    recipe: Recipe,
    data: Sequence[tuple[Tensor, Tensor]],
    augment: Augment,
    *,
    num_pseudo: int,
    device: torch.device,
    ranks: Ranks,
) -> Batches:
    optim = recipe.optim
    batches = Batches(
        data,
        augment,
        seed=recipe.seed,
        batch_size=optim.batch_size,
        ranks=ranks,
        device=device,
        order=Order(
            num_samples=len(data),
            num_pseudo=num_pseudo,
            oversample=recipe.pseudo is None or recipe.pseudo.oversample,
            num_steps=optim.steps_per_epoch,
        ),
    )
    if batches.batch_size < 2 * ranks.count * optim.accumulate:
        raise ValueError(
            f"expected a batch of at least {2 * ranks.count * optim.accumulate} samples, 2 for each of {ranks.count} "
            f"process(es) x optim.accumulate = {optim.accumulate}, but it has {batches.batch_size}: "
            "raise optim.batch_size or lower optim.accumulate"
        )
    return batches


def _precision(recipe: Recipe, device: torch.device) -> Precision:
    return fastest_precision(device) if recipe.optim.precision == "auto" else "float32"


def _teacher(recipe: Recipe, spec: ModelSpec, *, device: torch.device) -> Teacher | None:
    if recipe.distillation is None:
        return None
    return Teacher.load(recipe.distillation, spec, device=device, precision=_precision(recipe, device))


def _network_spec(recipe: Recipe) -> NetworkSpec:
    return NetworkSpec(architecture=recipe.network.architecture_for(recipe.task), encoder=recipe.network.encoder)


def _spec(recipe: Recipe, dataset: Dataset, *, origin: str, statistics: tuple[Channels, Channels]) -> ModelSpec:
    """The new model's spec; pretrained weights bring their own mean and standard deviation."""
    mean, std = statistics if origin == "none" else pretrained_statistics(recipe.network.encoder)
    return ModelSpec(
        name=recipe.name,
        task=recipe.task,
        network=_network_spec(recipe).model_copy(update={"encoder_weights": origin}),
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
            selected_on="val" if recipe.eval.keep == "best-on-val" else None,
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
