"""Train a network by a recipe: warm-up and cosine, a moving average of the weights, exact resumption.

Cosine: Loshchilov and Hutter 2017, https://arxiv.org/abs/1608.03983. The result is the moving average after the last
step; the val split is looked at, but never chooses an epoch.

Dimensions: B batch, K classes, C channels, H, W.
"""

import math
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Never

import torch
from torch import Tensor, nn
from tqdm import tqdm

from segserve.engines.torch_engine import autocast, best_device, fastest_precision
from segserve.preprocess import normalise
from training.augment import seed_of
from training.config import OptimSettings, Recipe
from training.evaluate import outcomes, summarise
from training.layouts import Dataset
from training.learner import Learner, build_learner
from training.lint.inspection import checked_dataset
from training.metrics import HEADLINE
from training.report import write_report
from training.run import EpochLog, Run

CHECKPOINT_SECONDS = 20.0
"""Least time between two checkpoints: they hold all weights four times. There is always one after the last epoch."""


class NonFiniteLoss(RuntimeError):
    """The loss or its gradient became infinite or not a number; the weights were left as they were before the step."""


def train(recipe: Recipe, *, run_dir: Path, device: torch.device | None = None) -> Path:
    """Train, or go on with an unfinished run; on the CPU an interruption does not change a bit of the result.

    Args:
        recipe: what to do.
        run_dir: the run's folder. A finished run is left as it is.
        device: the GPU where there is one, if not given.

    Returns:
        `run_dir`.

    Raises:
        ValueError: the data set has faults, or the run began with another recipe or other data.
        NonFiniteLoss: the training diverged.
    """
    run = Run(run_dir)
    run.check_recipe(recipe)
    if run.is_finished:
        _say(f"{run_dir}: finished before, nothing to do")
        return run_dir
    dataset = checked_dataset(recipe.data.root, recipe.task, layout=recipe.data.layout)
    checkpoint = run.load()
    learner = build_learner(recipe, dataset, checkpoint=checkpoint, device=device or best_device())
    if checkpoint is None:
        run.begin(recipe)
    else:
        _say(f"{run_dir}: goes on after epoch {len(learner.history)} of {recipe.optim.epochs}")
    _train_epochs(learner, run, dataset)
    print(write_report(run, learner.predictor(), dataset, learner.history).table())
    return run_dir


def _train_epochs(learner: Learner, run: Run, dataset: Dataset) -> None:
    recipe, epochs = learner.recipe, learner.recipe.optim.epochs
    saved = time.monotonic()
    done = len(learner.history)
    steps = learner.steps_per_epoch
    with tqdm(total=epochs * steps, initial=done * steps, unit="step", disable=None, dynamic_ncols=True) as bar:
        for epoch in range(done, epochs):
            entry = _train_epoch(learner, epoch, bar)
            is_last = epoch + 1 == epochs
            if is_last or (epoch + 1) % recipe.eval.every_epochs == 0:
                entry = entry.model_copy(update={"scores": _val_scores(learner, dataset)})
            learner.history.append(entry)
            if is_last or time.monotonic() - saved >= CHECKPOINT_SECONDS:
                run.save(learner.checkpoint())
                saved = time.monotonic()
            run.write_log(learner.history)
            if bar.disable:
                _say(_line(entry, epochs))


def _train_epoch(learner: Learner, epoch: int, bar: "tqdm[Never]") -> EpochLog:
    settings, start, losses = learner.recipe.optim, time.monotonic(), []
    bar.set_description(f"epoch {epoch + 1}/{settings.epochs}", refresh=False)
    for index, (images_BCHW, truths_B) in enumerate(_batches(learner, epoch)):
        step = epoch * learner.steps_per_epoch + index
        rate = learning_rate(step, settings=settings, steps_per_epoch=learner.steps_per_epoch)
        progress = step / (settings.epochs * learner.steps_per_epoch)
        where = f"epoch {epoch + 1}, step {index + 1}"
        losses.append(_step(learner, images_BCHW, truths_B, rate, progress=progress, where=where))
        bar.set_postfix(_postfix(losses[-1], learner), refresh=False)
        bar.update()
    return EpochLog(
        epoch=epoch + 1,
        loss=sum(losses) / len(losses),
        learning_rate=rate,
        seconds=round(time.monotonic() - start, 2),
    )


def _batches(learner: Learner, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Augmented images (B, 3, H, W) and truths (B, H, W) or (B,), uint8; a function of seed and epoch alone."""
    seed, size = learner.recipe.seed, learner.batch_size
    order = torch.randperm(len(learner.data), generator=torch.Generator().manual_seed(seed_of(seed, epoch))).tolist()
    for first in range(0, learner.steps_per_epoch * size, size):
        indices = order[first : first + size]
        images, truths = zip(*(learner.data[i] for i in indices), strict=True)
        yield learner.augment(images, truths, keys=[(seed, epoch, i) for i in indices])


def _step(
    learner: Learner, images_BCHW: Tensor, truths_B: Tensor, rate: float, *, progress: float, where: str
) -> float:
    """One step of the optimiser; returns the loss before it."""
    device, optimizer = learner.device, learner.optimizer
    x_BCHW = normalise(images_BCHW.to(device), learner.spec.preprocess).to(memory_format=torch.channels_last)
    learner.network.train()
    with autocast(device, fastest_precision(device)):
        logits_BK = learner.network(x_BCHW)
    loss = learner.objective(logits_BK, truths_B.to(device).long(), progress=progress)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    norm = nn.utils.clip_grad_norm_(learner.network.parameters(), learner.recipe.optim.grad_clip)
    if not math.isfinite(loss.item()) or not math.isfinite(norm.item()):
        raise NonFiniteLoss(
            f"expected a finite loss, but at {where} it is {loss.item()} with a gradient of norm {norm.item()}: "
            f"lower optim.learning_rate (here {rate:.2g}) or lengthen optim.warmup_epochs"
        )
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.step()
    learner.averaged.update_parameters(learner.network)
    return loss.item()


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


def _postfix(loss: float, learner: Learner) -> dict[str, str]:
    headline = HEADLINE[learner.recipe.task]
    known = [entry.scores[headline] for entry in learner.history if entry.scores]
    return {"loss": f"{loss:.3f}", **({f"val {headline}": f"{known[-1]:.4f}"} if known else {})}


def _line(entry: EpochLog, epochs: int) -> str:
    scores = "".join(f", val {name} {score:.4f}" for name, score in entry.scores.items())
    return f"epoch {entry.epoch}/{epochs}: loss {entry.loss:.4f}{scores} ({entry.seconds:.1f} s)"


def _say(sentence: str) -> None:
    tqdm.write(sentence, file=sys.stderr)
