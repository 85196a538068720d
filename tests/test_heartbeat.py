"""Signs of life: in time, and no longer than what they are of."""

import logging
import time

import pytest

from transformer_jax.heartbeat import heartbeat


def test_what_takes_long_is_logged_while_it_runs_and_not_after(caplog):
    caplog.set_level(logging.INFO)
    with pytest.raises(KeyError), heartbeat("counting", 0.05):
        time.sleep(0.3)
        raise KeyError
    lines = [record.getMessage() for record in caplog.records]
    assert 1 <= len(lines) <= 5 and set(lines) == {"counting: 0 s"}
    time.sleep(0.1)
    assert len(caplog.records) == len(lines)


def test_what_is_quick_says_nothing(caplog):
    caplog.set_level(logging.INFO)
    with heartbeat("counting"):
        pass
    assert not caplog.records
