"""Which models were evaluated on a test split, and how often: looking more than once turns it into a second val split.

The lines stand in `test_evaluations.jsonl` beside the artifacts, which never change themselves.
"""

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from pydantic import Field, ValidationError

from segserve.artifact import Artifact
from segserve.settings import Settings, explain
from training.data import data_digest
from training.evaluation import Evaluation
from training.layouts import Dataset
from training.lines import append_lines, read_lines

LOG = "test_evaluations.jsonl"
SPLIT = "test"


class TestEvaluation(Settings):
    """One line of the log."""

    __test__ = False

    time: str
    """UTC, to the second."""
    artifact: str
    digest: str
    """Of the artifact."""
    data: str
    """SHA-256 of the split's files, see `training.data.data_digest`."""
    tta: str
    aggregate: str
    scores: dict[str, float] = Field(default_factory=dict)


def note_evaluation(artifact: Artifact, evaluation: Evaluation, dataset: Dataset) -> str:
    """Append an evaluation on the data set's test split to the log.

    Returns:
        A sentence that says how often the split was looked at before.
    """
    path = artifact.path.resolve().parent / LOG
    digest = data_digest(dataset, (SPLIT,))
    before = [entry for entry in read_log(path) if entry.data == digest]
    entry = TestEvaluation(
        time=datetime.now(UTC).isoformat(timespec="seconds"),
        artifact=artifact.path.name,
        digest=artifact.digest,
        data=digest,
        tta=evaluation.tta,
        aggregate=evaluation.aggregate,
        scores=evaluation.scores,
    )
    told = f"{path}: {_history(before, artifact.digest)}"
    try:
        append_lines(path, [entry.model_dump_json()])
    except OSError as error:
        return f"{told}, which could not be noted: {error.strerror}"
    return told


def read_log(path: Path) -> list[TestEvaluation]:
    """All lines, the oldest first; a last one that was cut off does not count. A ValueError names the file."""
    try:
        return [TestEvaluation.model_validate_json(line) for line in read_lines(path)]
    except ValidationError as error:
        raise ValueError(f"{path}: {explain(error)}") from None


def _history(before: Sequence[TestEvaluation], digest: str) -> str:
    if not before:
        return "the first evaluation on this test split"
    same = [entry for entry in before if entry.digest == digest]
    others = len({entry.digest for entry in before} - {digest})
    last = f", last at {same[-1].time}" if same else ""
    return (
        f"this test split was evaluated before: {len(same)} time(s) with this artifact{last}, and with {others} other "
        "artifact(s) beside it; the more it is looked at, the less its scores are worth"
    )
