import signal
import threading

import pytest

from training.stop import SIGNALS, stop_request


@pytest.mark.parametrize("number", SIGNALS)
def test_the_first_signal_is_taken_and_the_second_is_not(number: signal.Signals) -> None:
    before = [signal.getsignal(each) for each in SIGNALS]
    taken = []
    signal.signal(number, lambda *_: taken.append("as before"))
    try:
        with stop_request() as request:
            assert not request.came
            signal.raise_signal(number)
            assert request.came and not taken
            signal.raise_signal(number)
            assert taken == ["as before"]
        signal.raise_signal(number)
        assert taken == ["as before"] * 2
    finally:
        for each, handler in zip(SIGNALS, before, strict=True):
            signal.signal(each, handler)


def test_handlers_come_back_without_a_signal() -> None:
    before = [signal.getsignal(each) for each in SIGNALS]
    with stop_request():
        assert [signal.getsignal(each) for each in SIGNALS] != before
    assert [signal.getsignal(each) for each in SIGNALS] == before


def test_another_thread_takes_no_signals() -> None:
    seen = []

    def look() -> None:
        with stop_request() as request:
            seen.append((request.came, signal.getsignal(signal.SIGTERM)))

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert seen == [(False, signal.getsignal(signal.SIGTERM))]
