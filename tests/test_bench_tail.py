"""What an ideal server does where requests come at random."""

import pytest

from bench.tail import tail


def test_batches_that_cost_their_images_have_a_long_tail_and_batches_that_cost_the_same_a_short_one() -> None:
    linear = tail(alone=0.03, together=0.24, batch_size=8, load=0.7)
    constant = tail(alone=0.24, together=0.24, batch_size=8, load=0.7)
    assert linear > 3 > constant > 1


def test_a_server_that_is_hardly_asked_answers_everybody_at_once() -> None:
    assert tail(alone=0.03, together=0.24, batch_size=8, load=0.001) == pytest.approx(1, rel=0.01)


def test_seconds_are_only_a_scale() -> None:
    fast = tail(alone=0.003, together=0.024, batch_size=8, load=0.7)
    assert tail(alone=0.03, together=0.24, batch_size=8, load=0.7) == pytest.approx(fast, rel=0.25)


def test_batches_of_one_are_a_queue_and_no_more() -> None:
    """Of constant service times at a load of 0.7: M/D/1."""
    assert 2 < tail(alone=0.03, together=0.03, batch_size=1, load=0.7) < 6
