"""Frozen settings: the base class of every configuration object, and a readable sentence for what is wrong in one."""

from collections.abc import Iterator

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails


class Settings(BaseModel):
    """A value object: cannot be changed after it was built, and refuses keys it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def explain(error: ValidationError, *, known_keys: tuple[str, ...] = ()) -> str:
    """Say in one sentence what was expected, what arrived and what to do.

    Args:
        error: what pydantic raised.
        known_keys: the keys to offer where an unknown key is the mistake.
    """
    return "; ".join(_sentences(error, known_keys))


def _sentences(error: ValidationError, known_keys: tuple[str, ...]) -> Iterator[str]:
    details = error.errors(include_url=False)
    for detail in details:
        if not _is_due_to_an_item(detail, details):
            key = ".".join(str(part) for part in detail["loc"])
            yield _sentence(key, detail, known_keys)


def _is_due_to_an_item(detail: ErrorDetails, others: list[ErrorDetails]) -> bool:
    """Whether a list is too short only because what is wrong in it was left out."""
    length = len(detail["loc"])
    inside = (other for other in others if len(other["loc"]) > length and other["loc"][:length] == detail["loc"])
    return detail["type"] == "too_short" and any(inside)


def _sentence(key: str, detail: ErrorDetails, known_keys: tuple[str, ...]) -> str:
    match detail["type"]:
        case "extra_forbidden":
            offer = f"; known are {', '.join(known_keys)}" if known_keys else ""
            return f"{key!r} is not a known key: remove it or correct its spelling{offer}"
        case "missing":
            return f"expected a value for {key!r}, but none was given"
        case "literal_error":
            key = key.rstrip(".0123456789")  # in a list, the value says which one it is
            return f"expected {key!r} to be {detail['ctx']['expected']}, but got {detail['input']!r}"
        case "json_invalid":
            return f"expected JSON, but it cannot be read: {detail['ctx']['error']}; correct it there"
        case "string_pattern_mismatch":
            return f"expected {key!r} to match {detail['ctx']['pattern']}, but got {detail['input']!r}"
        case "path_type":
            return f"expected {key!r} to be a path, but got {detail['input']!r}"
        case "union_tag_not_found":
            return f"expected a value for '{key}.{detail['ctx']['discriminator'].strip(chr(39))}', but none was given"
        case "union_tag_invalid":
            name, expected = detail["ctx"]["discriminator"].strip("'"), detail["ctx"]["expected_tags"]
            return f"expected '{key}.{name}' to be one of {expected}, but got {detail['ctx']['tag']!r}"
        case "value_error":
            reason = str(detail["ctx"]["error"])
            return f"{key!r}: {reason}" if key else reason
        case _:
            rule = detail["msg"].partition(" should ")[2].replace(" after validation", "")
            return f"expected {repr(key) if key else 'it'} to {rule or detail['msg']}, but got {detail['input']!r}"
