"""The loop: train, label the rest, take what is good, train from the start with it, and again.

Everything lies in one folder, and every part of it goes on where it was: runs, rounds, and so the loop.

    model-0/run, model-0/artifact    trained on the labelled images alone
    round-1                          what that model says of the others
    model-1/run, ...                 trained on both
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from segserve.artifact import SPEC, Artifact, load_artifact, read_spec
from segserve.spec import Plan
from segserve.whole import write_whole
from training.config import PseudoSettings, Recipe
from training.data import data_digest
from training.engine import train
from training.evaluate import evaluate_dataset
from training.evaluation import Evaluation, ImageScore
from training.export import export_run
from training.flywheel.joined import with_round
from training.flywheel.loop_page import loop_page
from training.flywheel.progress import (
    Step,
    StopRule,
    accepted_shares,
    distance,
    labelled_shares,
    mean_churn,
    reason_to_stop,
    result_of,
    write_steps,
)
from training.flywheel.pseudolabel import PIXELS, Labeller, check_apart, image_files, pseudolabel
from training.flywheel.review import write_review
from training.flywheel.round import Round
from training.flywheel.triage import PixelRule, Selection, check_held_out
from training.layouts import Dataset, open_dataset
from training.learner import TRAINED_ON
from training.run import SCORES

STEPS, PAGE = "loop.jsonl", "loop.html"
SELECTION, RULE = Selection(score="stability"), StopRule()
"""By ST++'s score: a loop's trainings keep the weights that it needs."""


@dataclass(frozen=True, kw_only=True)
class Loop:
    """What a loop is made of."""

    recipe: Recipe
    """Its [pseudo] section gives the strong augmentation, if there is one; which round, the loop says."""
    images: Path
    """The unlabelled ones."""
    held_out: Dataset
    plan: Plan
    split: str = "val"
    """Of the held-out images, which no model is trained on."""
    selection: Selection = SELECTION
    pixels: PixelRule = PIXELS
    rule: StopRule = RULE


def run_loop(loop: Loop, out: Path, *, rounds: int) -> list[Step]:
    """Train once without, and up to `rounds` times with pseudo-labels; each model labels the images once more.

    Killed at any moment, the same call goes on; with more rounds it goes on, too. What a person decided or corrected in
    the last round is taken along into the next training.

    Returns:
        All steps; `loop.html` and `loop.jsonl` in the folder tell of them.

    Raises:
        ValueError, NonFiniteLoss, Stopped: as of `training.engine.train` and `pseudolabel`.
    """
    if loop.recipe.task != "segmentation":
        raise ValueError(f"expected a recipe for segmentation, but {loop.recipe.name} is for {loop.recipe.task}")
    if rounds < 0:
        raise ValueError(f"expected 0 rounds or more, but got {rounds}: give more")
    dataset = open_dataset(loop.recipe.data.root, loop.recipe.task, layout=loop.recipe.data.layout)
    # The training comes before the round that needs them.
    image_files(loop.images)
    check_apart(loop.images, out)
    check_held_out(loop.held_out, loop.split, dataset.classes)
    _check_rounds(out, dataset)
    steps: list[Step] = []
    reason: str | None = None
    while len(steps) <= rounds and reason is None:
        steps.append(_step(loop, out, steps, dataset))
        reason = reason_to_stop(steps, loop.rule)
        write_steps(out / STEPS, steps)
        page = loop_page(
            steps, classes=dataset.classes, result=result_of(steps), reason=reason or "", name=loop.recipe.name
        )
        write_whole(out / PAGE, page)
        _say(f"{_line(steps[-1])}{f'; stops: {reason}' if reason else ''}")
    return steps


def _step(loop: Loop, out: Path, steps: list[Step], dataset: Dataset) -> Step:
    """Train the next model, and let it label the images."""
    number = len(steps)
    folder, previous = out / f"model-{number}", Round(out / f"round-{number}") if number else None
    train(_recipe(loop, number, previous), run_dir=folder / "run")
    artifact = _artifact(folder)
    labeller = Labeller(
        artifact=artifact,
        plan=loop.plan,
        selection=_selection(loop, out, number),
        pixels=loop.pixels,
        run=folder / "run",
    )
    found = pseudolabel(
        labeller,
        loop.images,
        out / f"round-{number + 1}",
        held_out=loop.held_out,
        split=loop.split,
        previous=None if previous is None else previous.path,
    )
    write_review(found)
    faults = [entry.fault for entry in found.entries().values() if entry.fault]
    if faults:
        _say(f"{found.path}: {len(faults)} image(s) get no mask, among them {faults[0]}")
    alone = evaluate_dataset(artifact, loop.held_out, split=loop.split, engine="torch")
    return _tell(found, folder, number=number, previous=previous, dataset=dataset, held_out=alone.images)


def _check_rounds(out: Path, dataset: Dataset) -> None:
    """A ValueError where a round is no more what its model was trained on: what was decided came too late for it."""
    for artifact in sorted(out.glob(f"model-*/artifact/{SPEC}")):
        model, trained_on = artifact.parents[1], read_spec(artifact.parent).provenance.data_digest
        labels = out / model.name.replace("model", "round")
        if labels.is_dir() and data_digest(with_round(dataset, labels), TRAINED_ON) != trained_on:
            raise ValueError(
                f"expected {labels} as {model} was trained on it, but its accepted masks have changed since: judge the "
                f"last round, or delete {model} and all models and rounds after it, to train it again"
            )


def _recipe(loop: Loop, number: int, previous: Round | None) -> Recipe:
    changes: dict[str, object] = {"name": f"{loop.recipe.name}-{number}", "pseudo": None}
    if previous is not None:
        changes["pseudo"] = pseudo_of(loop.recipe, previous.path)
    changes["eval"] = loop.recipe.eval.model_copy(update={"keep_thirds": True})
    return loop.recipe.model_copy(update=changes)


def pseudo_of(recipe: Recipe, labels: Path) -> PseudoSettings:
    """A round to train on, with the recipe's own strong changes, if it names any."""
    given = {} if recipe.pseudo is None else recipe.pseudo.model_dump()
    return PseudoSettings.model_validate({**given, "round": labels})


def _artifact(folder: Path) -> Artifact:
    """Exported once: a second time its temperature might be another, and its digest with it."""
    path = folder / "artifact"
    return load_artifact(path) if (path / SPEC).is_file() else export_run(folder / "run", path)


def _selection(loop: Loop, out: Path, number: int) -> Selection:
    """What is good stays what it was in the first round, so that rounds can be compared."""
    if number == 0 or loop.selection.good_iou is not None:
        return loop.selection
    first = Round(out / "round-1").order.thresholds
    return loop.selection.model_copy(update={"good_iou": first.good_iou})


def _tell(
    found: Round, folder: Path, *, number: int, previous: Round | None, dataset: Dataset, held_out: Sequence[ImageScore]
) -> Step:
    entries, thresholds = found.entries().values(), found.order.thresholds
    evaluation = Evaluation.model_validate_json((folder / "run" / SCORES).read_bytes())
    shares_K = accepted_shares(found)
    taken = [] if previous is None else [each for each in previous.entries().values() if each.verdict == "accept"]
    return Step(
        number=number,
        run=str(folder / "run"),
        artifact=str(folder / "artifact"),
        labels=str(found.path),
        scores=evaluation.scores,
        num_pseudo=len(taken),
        num_accepted=sum(entry.verdict == "accept" for entry in entries),
        num_images=len(entries),
        held_out_ious=tuple(image.score for image in held_out if image.score is not None),
        good_share=thresholds.good_share,
        precision=thresholds.precision if thresholds.num_accepted else None,
        churn=mean_churn(found),
        drift=distance(shares_K, labelled_shares(dataset)),
        shares=tuple(round(float(share), 6) for share in shares_K),
        sentence=thresholds.sentence,
    )


def _line(step: Step) -> str:
    churn = "" if step.churn is None else f", churn {step.churn:.4f}"
    return (
        f"model {step.number}: val miou {step.scores['miou']:.4f} with {step.num_pseudo} pseudo-labelled images; "
        f"accepts {step.num_accepted} of {step.num_images}, {step.good_share:.0%} of the held-out masks are good"
        f"{churn}, drift {step.drift:.3f}"
    )


def without_selection(loop: Loop) -> Loop:
    """The same, but every mask is taken as it is, and nothing stops it: plain self-training."""
    return replace(
        loop,
        selection=Selection(precision=0.0),
        pixels=PixelRule(border=0, least_confidence=0, most_disagreement=1),
        rule=StopRule(least_churn=0, most_drop=1, most_drift=1),
    )


def _say(sentence: str) -> None:
    print(sentence, file=sys.stderr)
