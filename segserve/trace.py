"""Which trace a request belongs to: W3C's `traceparent`, https://www.w3.org/TR/trace-context/."""

import re
import secrets
from collections.abc import Mapping
from typing import NamedTuple

_TRACEPARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}(-.*)?")
_NONE = re.compile(r"0+")
_STAMP = re.compile(r"t=(\d{1,12}\.\d{3})")


class Trace(NamedTuple):
    """Identifiers in hexadecimal, of 32 and 16 digits."""

    trace_id: str
    span_id: str
    """Of this service's part, always new."""
    parent_id: str | None
    """The caller's span; None: the trace begins here."""


def trace_of(headers: Mapping[str, str]) -> Trace:
    """The trace of a request by its headers, whose names are in lower case; what is not valid begins a new one."""
    span_id = secrets.token_hex(8)
    found = _TRACEPARENT.fullmatch(headers.get("traceparent", "").strip())
    if found is None:
        return Trace(secrets.token_hex(16), span_id, None)
    version, trace_id, parent_id, more = found.groups()
    is_valid = version != "ff" and not (version == "00" and more)
    if not is_valid or _NONE.fullmatch(trace_id) or _NONE.fullmatch(parent_id):
        return Trace(secrets.token_hex(16), span_id, None)
    return Trace(trace_id, span_id, parent_id)


def stamp_of(headers: Mapping[str, str]) -> float | None:
    """When the gateway handed a request on, by its `X-Request-Start`: seconds since the epoch; None: it did not say."""
    found = _STAMP.fullmatch(headers.get("x-request-start", ""))
    return None if found is None else float(found[1])
