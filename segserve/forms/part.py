"""One form of an answer, ready to be sent."""

import json
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Part:
    """A body, its media type, and what to call it beside others."""

    name: str
    filename: str
    content_type: str
    body: bytes


def json_part(name: str, document: object) -> Part:
    """The document as compact JSON."""
    body = json.dumps(document, separators=(",", ":"), allow_nan=False).encode()
    return Part(name=name, filename=f"{name}.json", content_type="application/json", body=body)
