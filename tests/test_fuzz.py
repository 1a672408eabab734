"""Any bytes at all, for every reader and for the core: see `fuzz.py`."""

import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import fuzz

NAMES = [target.__name__ for target in fuzz.TARGETS]
patient = settings(
    deadline=None, max_examples=150,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)  # fmt: skip


@pytest.mark.parametrize("target", fuzz.TARGETS, ids=NAMES)
@patient
@given(st.binary(max_size=2000))
def test_any_bytes(target, data):
    target(data)


@pytest.mark.parametrize("target", fuzz.TARGETS[:4], ids=NAMES[:4])
@patient
@given(st.data())
def test_what_is_nearly_right(target, data):
    right = [seed for number, seed in fuzz.seeds() if fuzz.TARGETS[number] is target]
    damaged = bytearray(data.draw(st.sampled_from(right)))
    for _ in range(data.draw(st.integers(0, 4))):
        at = data.draw(st.integers(0, len(damaged) - 1))
        damaged[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
        damaged = damaged or bytearray(b"{")
    target(bytes(damaged))


@pytest.mark.parametrize("seed", range(30))
def test_long_histories_of_hostile_heartbeats(seed):
    rng = random.Random(seed)
    fuzz.history(bytes(rng.getrandbits(8) for _ in range(8000)))
