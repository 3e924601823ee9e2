"""What can go wrong with one request, as the client reads it: RFC 9457 problem details."""

from typing import Literal

ProblemKind = Literal[
    "bad-option",
    "bad-body",
    "too-large",
    "unsupported-type",
    "undecodable",
    "quarantined",
    "not-ready",
    "deadline-passed",
    "out-of-memory",
    "internal",
]

STATUS: dict[ProblemKind, int] = {
    "bad-option": 400,
    "bad-body": 400,
    "too-large": 413,
    "unsupported-type": 415,
    "undecodable": 422,
    "quarantined": 422,
    "internal": 500,
    "not-ready": 503,
    "deadline-passed": 504,
    "out-of-memory": 507,
}

TITLE: dict[ProblemKind, str] = {
    "bad-option": "An option is wrong",
    "bad-body": "The body is wrong",
    "too-large": "The image is too large",
    "unsupported-type": "Not an image type we take",
    "undecodable": "The image cannot be decoded",
    "quarantined": "This image ended a worker before",
    "internal": "The service made a mistake",
    "not-ready": "The service is not ready",
    "deadline-passed": "The deadline has passed",
    "out-of-memory": "Not enough memory for this image",
}


class Problem(Exception):
    """A request that cannot be answered; `detail` says what was expected, what came and what to do."""

    def __init__(self, kind: ProblemKind, detail: str) -> None:
        super().__init__(detail)
        self.kind: ProblemKind = kind
        self.detail = detail

    @property
    def status(self) -> int:
        return STATUS[self.kind]


def type_of(kind: str) -> str:
    """The `type` of problem details: an address of no place, that programs compare."""
    return f"urn:segserve:problem:{kind}"


STOPPING = Problem("not-ready", "this service is being stopped: send the request again, to another replica")
DEADLINE_PASSED = Problem(
    "deadline-passed",
    "expected the network to begin its last pass before the deadline (deadline_ms, or the model's max_seconds), but it "
    "could not: allow more time, or send a smaller image",
)
OUT_OF_MEMORY = Problem("out-of-memory", "expected this image to fit in memory, but it did not: send a smaller one")
