"""What a person decided on the review page, put to work in its round."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError

from segserve.settings import Settings, explain
from training.flywheel.round import Entry, Round
from training.flywheel.triage import Verdict

Decision = Literal["accept", "work", "reject"]

MOST_NAMED = 5
VERDICTS: dict[Decision, Verdict] = {"accept": "accept", "work": "review", "reject": "relabel"}


class Decisions(Settings):
    """The file that the review page saves."""

    round: int
    artifact: str
    reviewer: str = ""
    decisions: dict[str, Decision]
    """By the images' names."""
    looked_at: dict[str, str] = Field(default_factory=dict)
    """Likewise: `Round.looked_at`; empty in a file that no page wrote."""


def apply_review(found: Round, path: Path) -> Counter[Decision]:
    """Give the images of a round the verdicts of a person; doing it twice changes nothing more.

    Masks that a person made meanwhile stand: decisions are about those of the model.

    Returns:
        How many of each decision there are.

    Raises:
        ValueError: the file is none of the page's, or belongs to another round, or another command is at work in it.
    """
    order, read = found.order, _read(path)
    if (read.round, read.artifact) != (order.number, order.artifact):
        raise ValueError(
            f"expected decisions on round {order.number} of artifact {order.artifact[:12]}, but {path} is on round "
            f"{read.round} of {read.artifact[:12]}: apply it there"
        )
    with found.held():
        entries = found.entries()
        strange = sorted((read.decisions.keys() | read.looked_at.keys()) - entries.keys())
        if strange:
            raise ValueError(f"expected decisions on images of {found.path}, but {path} names {', '.join(strange)}")
        _check_looked_at(found, entries, read, path)
        reviewer = read.reviewer or "a person"
        found.rewrite(_decided(entry, read.decisions.get(entry.name), reviewer) for entry in entries.values())
    return Counter(read.decisions.values())


def _check_looked_at(found: Round, entries: Mapping[str, Entry], read: Decisions, path: Path) -> None:
    judged = [name for name in read.looked_at if entries[name].source == "model" and not entries[name].fault]
    others = sorted(name for name in judged if found.looked_at(entries[name]) != read.looked_at[name])
    if others:
        raise ValueError(
            f"expected decisions on the masks of {found.path}, but {path} is on others of the same names, such as "
            f"{', '.join(others[:MOST_NAMED])}: apply it to the round whose page saved it"
        )


def _read(path: Path) -> Decisions:
    try:
        return Decisions.model_validate_json(path.read_bytes())
    except OSError as error:
        raise ValueError(f"expected decisions saved by the review page, but {path}: {error.strerror}") from None
    except ValidationError as error:
        raise ValueError(f"{path}: {explain(error)}") from None


def _decided(entry: Entry, decision: Decision | None, reviewer: str) -> Entry:
    if decision is None or entry.fault or entry.source == "person":
        return entry
    return entry.model_copy(update={"verdict": VERDICTS[decision], "decided_by": reviewer})
