"""Train a network by a recipe: warm-up and cosine, a moving average of the weights, exact resumption.

Cosine: Loshchilov and Hutter 2017, https://arxiv.org/abs/1608.03983. The result is the moving average after the last
step; the val split chooses an epoch only where the recipe asks for it, and the scores then say so.

Dimensions: B batch, K classes, C channels, H, W.
"""

import math
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path
from typing import Never

import torch
from torch import Tensor, nn
from tqdm import tqdm

from segserve.engines.torch_engine import autocast, best_device
from segserve.preprocess import normalise
from training.augment import seeded
from training.config import OptimSettings, Recipe
from training.evaluate import outcomes, summarise
from training.flywheel.joined import with_round
from training.layouts import Dataset
from training.learner import Learner, build_learner
from training.lint.inspection import checked_dataset
from training.metrics import HEADLINE
from training.ranks import device_of_rank, joined_ranks, unshared
from training.report import write_report
from training.run import THIRDS, EpochLog, Run
from training.stop import Stopped, StopRequest, stop_request

CHECKPOINT_SECONDS, CHECKPOINT_SHARE = 20.0, 0.05
"""Least time between two checkpoints, and the most of the whole time that they may take. One is always written at the
end, and when a signal asks the run to stop."""

DROPOUT_STREAM = 2
"""Added to a step's key for what the network itself draws."""


class NonFiniteLoss(RuntimeError):
    """The loss or its gradient became infinite or not a number; the weights were left as they were before the step."""


def train(recipe: Recipe, *, run_dir: Path, device: torch.device | None = None) -> Path:
    """Train, or go on with an unfinished run; on the CPU an interruption does not change a bit of the result.

    Under torchrun its processes share each batch, and the first of them alone writes, tells and evaluates.

    Args:
        recipe: what to do.
        run_dir: the run's folder. A finished run is left as it is.
        device: the GPU where there is one, if not given.

    Returns:
        `run_dir`.

    Raises:
        ValueError: the data set has faults, the run began with another recipe or other data, or another training is at
            work in its folder.
        NonFiniteLoss: the training diverged.
        Stopped: SIGTERM or SIGINT came; the last step done is saved.
    """
    run = Run(run_dir)
    run.check_recipe(recipe)
    if run.is_finished:
        _say(f"{run_dir}: finished before, nothing to do")
        return run_dir
    chosen = device_of_rank(device or best_device())
    with joined_ranks(chosen) as ranks:
        dataset = checked_dataset(recipe.data.root, recipe.task, layout=recipe.data.layout)
        dataset = dataset if recipe.pseudo is None else with_round(dataset, recipe.pseudo.round)
        checkpoint = run.load()
        learner = build_learner(recipe, dataset, checkpoint=checkpoint, device=chosen, ranks=ranks)
        if ranks.is_first and checkpoint is None:
            run.begin(recipe)
        elif ranks.is_first:
            _say(f"{run_dir}: goes on after step {learner.step} of {learner.num_steps}")
        if ranks.is_first:
            for note in dataset.notes:
                _say(note)
            _say(learner.batches.place)
        held = run.held() if ranks.is_first else nullcontext()
        with held, stop_request() as request, closing(learner.batches):
            _train_epochs(learner, run, dataset, request)
        if ranks.is_first:
            print(write_report(run, learner.result(), dataset, learner.history).table())
            if learner.best is not None:
                print(f"epoch {learner.best_epoch} was chosen by these val scores, which are therefore too good")
    return run_dir


class _Saver:
    """Writes checkpoints when they are due; only the first process does."""

    def __init__(self, learner: Learner, run: Run) -> None:
        self.learner, self.run = learner, run
        self.saved, self.took = time.monotonic(), 0.0

    @property
    def is_due(self) -> bool:
        return time.monotonic() - self.saved >= max(CHECKPOINT_SECONDS, self.took / CHECKPOINT_SHARE)

    def save(self) -> None:
        if self.learner.ranks.is_first:
            begin = time.monotonic()
            self.run.save(self.learner.checkpoint())
            self.saved = time.monotonic()
            self.took = self.saved - begin


def _train_epochs(learner: Learner, run: Run, dataset: Dataset, request: StopRequest) -> None:
    epochs, saver = learner.recipe.optim.epochs, _Saver(learner, run)
    silent = None if learner.ranks.is_first else True
    with tqdm(total=learner.num_steps, initial=learner.step, unit="step", disable=silent, dynamic_ncols=True) as bar:
        while len(learner.history) < epochs:
            _train_epoch(learner, saver, request, bar)
            _close_epoch(learner, dataset)
            _keep_third(learner, run)
            if learner.ranks.is_first:
                # Before any checkpoint of the epoch: whoever goes on from the last one writes no more lines.
                run.write_log(learner.history)
                if bar.disable:
                    _say(_line(learner.history[-1], epochs))
            _obey(request, learner, saver)
            if saver.is_due or len(learner.history) == epochs:
                saver.save()


def _train_epoch(learner: Learner, saver: _Saver, request: StopRequest, bar: "tqdm[Never]") -> None:
    """The steps of the open epoch that are not done yet."""
    epoch, begin = len(learner.history), time.monotonic() - learner.seconds
    bar.set_description(f"epoch {epoch + 1}/{learner.recipe.optim.epochs}", refresh=False)
    for images_BCHW, truths_B in learner.batches.batches(epoch, first_step=len(learner.losses)):
        learner.losses.append(_step(learner, images_BCHW, truths_B))
        learner.seconds = time.monotonic() - begin
        bar.set_postfix(_postfix(learner), refresh=False)
        bar.update()
        _obey(request, learner, saver)
        if saver.is_due:
            saver.save()


def _obey(request: StopRequest, learner: Learner, saver: _Saver) -> None:
    """Stop, with everything saved, where one of the processes was asked to."""
    if learner.ranks.any(request.came, learner.device):
        saver.save()
        raise Stopped(
            f"{saver.run.path}: stopped after step {learner.step} of {learner.num_steps}, which is saved: "
            "the same command goes on from there"
        )


def _close_epoch(learner: Learner, dataset: Dataset) -> None:
    """Score val where that is due, and note down how the epoch was."""
    recipe, epoch = learner.recipe, len(learner.history) + 1
    is_scored = epoch == recipe.optim.epochs or epoch % recipe.eval.every_epochs == 0
    learner.close_epoch(
        EpochLog(
            epoch=epoch,
            loss=sum(learner.losses) / len(learner.losses),
            learning_rate=_rate(learner, learner.step - 1),
            seconds=round(learner.seconds, 2),
            scores=_val_scores(learner, dataset) if is_scored and learner.ranks.is_first else {},
        )
    )


def _keep_third(learner: Learner, run: Run) -> None:
    """Before any checkpoint of the epoch, so that whoever goes on from one finds them."""
    done, epochs = len(learner.history), learner.recipe.optim.epochs
    if not (learner.recipe.eval.keep_thirds and learner.ranks.is_first):
        return
    for number, name in enumerate(THIRDS, start=1):
        if done == math.ceil(number * epochs / 3):
            run.save_third(name, learner.averaged.module.state_dict())


def _step(learner: Learner, images_BCHW: Tensor, truths_B: Tensor) -> float:
    """One step of the optimiser; returns the loss before it, of the whole batch."""
    optimizer, rate = learner.optimizer, _rate(learner, learner.step)
    optimizer.zero_grad(set_to_none=True)
    loss = _backward(learner, images_BCHW, truths_B)
    norm = nn.utils.clip_grad_norm_(learner.network.parameters(), learner.recipe.optim.grad_clip)
    value, size = torch.stack([loss, norm]).tolist()
    if not math.isfinite(value) or not math.isfinite(size):
        raise NonFiniteLoss(
            f"expected a finite loss, but at epoch {len(learner.history) + 1}, step {len(learner.losses) + 1} it is "
            f"{value} with a gradient of norm {size}: lower optim.learning_rate (here {rate:.2g}) or lengthen "
            "optim.warmup_epochs"
        )
    for group in optimizer.param_groups:
        group["lr"] = rate
    with _denormals_flushed():
        optimizer.step()
    learner.averaged.update_parameters(learner.network)
    return float(value)


@contextmanager
def _denormals_flushed() -> Iterator[None]:
    """Numbers below 1e-38 count as 0: some CPUs are twenty times as slow with them, and a weight without a gradient,
    as behind a dead unit, leaves the optimiser nothing else to average."""
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


def _backward(learner: Learner, images_BCHW: Tensor, truths_B: Tensor) -> Tensor:
    """Add up the gradient of the loss over the parts of a batch, and over the processes; returns that loss.

    Each part's loss counts by its share of the valid pixels (or images), weighted by class, so that cross-entropy is
    the mean over the whole batch. Losses of regions, such as Dice, and batch norm see one part at a time.
    """
    count, ranks = learner.recipe.optim.accumulate, learner.ranks
    targets_B = truths_B if truths_B.is_floating_point() else truths_B.long()
    parts = list(zip(images_BCHW.tensor_split(count), targets_B.tensor_split(count), strict=True))
    shares = _shares(learner, [truths for _, truths in parts])
    total = torch.zeros((), device=learner.device)
    for index, (images, truths) in enumerate(parts):
        with nullcontext() if index + 1 == count else unshared(learner.replica):
            loss = shares[index] * _loss(learner, images, truths, part=index)
            (ranks.count * loss).backward()  # type: ignore[no-untyped-call]  # the processes' gradients are averaged
        total += loss.detach()
    return ranks.sum(total)


def _shares(learner: Learner, truths: Sequence[Tensor]) -> Tensor:
    """How much each of this process's parts counts; together with those of the other processes 1."""
    if len(truths) * learner.ranks.count == 1:
        return torch.ones(1, device=learner.device)
    masses = torch.stack([learner.objective.mass(part) for part in truths])
    return masses / learner.ranks.sum(masses.sum()).clamp(min=torch.finfo(masses.dtype).tiny)


def _loss(learner: Learner, images_BCHW: Tensor, truths_B: Tensor, *, part: int) -> Tensor:
    """Forward pass and loss of one part of a batch: images 0 to 255, truths int64 class indices or float shares."""
    x_BCHW = normalise(images_BCHW, learner.spec.preprocess).to(memory_format=torch.channels_last)
    learner.network.train()
    with autocast(learner.device, learner.precision), seeded(*_key(learner, part)):
        logits = learner.replica(x_BCHW)
    loss = learner.objective(logits, truths_B, progress=learner.step / learner.num_steps)
    if learner.teacher is None:
        return loss
    return loss + learner.teacher.loss(logits, images_BCHW, truths_B)


def _key(learner: Learner, part: int) -> tuple[int, ...]:
    """Of the random numbers inside the network (dropout): every step, process and part has its own."""
    return learner.recipe.seed, learner.step, learner.ranks.rank, part, DROPOUT_STREAM


def _rate(learner: Learner, step: int) -> float:
    return learning_rate(step, settings=learner.recipe.optim, steps_per_epoch=learner.steps_per_epoch)


def learning_rate(step: int, *, settings: OptimSettings, steps_per_epoch: int) -> float:
    """A straight line up to the highest rate over the warm-up, then half a cosine down to 0.

    Args:
        step: counts from 0 over the whole training.
        settings: the recipe's.
        steps_per_epoch: at least 1.
    """
    warmup, total = settings.warmup_epochs * steps_per_epoch, settings.epochs * steps_per_epoch
    if step < warmup:
        return settings.learning_rate * (step + 1) / (warmup + 1)
    return settings.learning_rate * (1 + math.cos(math.pi * (step - warmup) / (total - warmup))) / 2


def _val_scores(learner: Learner, dataset: Dataset) -> dict[str, float]:
    found = outcomes(learner.predictor(), dataset.split("val"), ignore_index=dataset.ignore_index)
    return summarise((outcome.confusion_KK for outcome in found), dataset, split="val").scores


def _postfix(learner: Learner) -> dict[str, str]:
    headline = HEADLINE[learner.recipe.task]
    known = [entry.scores[headline] for entry in learner.history if entry.scores]
    return {"loss": f"{learner.losses[-1]:.3f}", **({f"val {headline}": f"{known[-1]:.4f}"} if known else {})}


def _line(entry: EpochLog, epochs: int) -> str:
    scores = "".join(f", val {name} {score:.4f}" for name, score in entry.scores.items())
    return f"epoch {entry.epoch}/{epochs}: loss {entry.loss:.4f}{scores} ({entry.seconds:.1f} s)"


def _say(sentence: str) -> None:
    tqdm.write(sentence, file=sys.stderr)
