import re

import pytest

from segserve.trace import trace_of

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


@pytest.mark.parametrize(
    "header", [f"00-{TRACE}-{PARENT}-01", f" 00-{TRACE}-{PARENT}-00 ", f"cc-{TRACE}-{PARENT}-01-what-comes-later"]
)
def test_a_valid_one_goes_on(header: str) -> None:
    trace = trace_of({"traceparent": header})
    assert (trace.trace_id, trace.parent_id) == (TRACE, PARENT)
    assert re.fullmatch("[0-9a-f]{16}", trace.span_id) and trace.span_id != PARENT


@pytest.mark.parametrize(
    "header",
    [
        "",
        "nonsense",
        f"ff-{TRACE}-{PARENT}-01",
        f"00-{TRACE}-{PARENT}-01-more",
        f"00-{TRACE.upper()}-{PARENT}-01",
        f"00-{'0' * 32}-{PARENT}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE[1:]}-{PARENT}-01",
    ],
)
def test_anything_else_begins_a_new_one(header: str) -> None:
    trace = trace_of({"traceparent": header})
    assert re.fullmatch("[0-9a-f]{32}", trace.trace_id) and trace.trace_id.strip("0") and trace.trace_id != TRACE
    assert trace.parent_id is None


def test_new_ones_differ() -> None:
    assert len({trace_of({}).trace_id for _ in range(50)}) == 50
