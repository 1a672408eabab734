"""A short soak: random faults over five real nodes; the long ones are in README.md.

    python tests/soak.py --seed 1 --minutes 30 --nodes 5 --picture soak.png
"""

import os
import sys

import pytest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
lab = pytest.importorskip("lab", reason="the laboratory needs Linux")
import soak  # noqa: E402

WHY_NOT = lab.missing()
SECONDS = float(os.environ.get("SOAK_SECONDS", "30"))
SEED = int(os.environ.get("SOAK_SEED", "1"))
TIMINGS = lab.Timings(lab.Profile(0.5, 1.5, 2, 0.5))


@pytest.mark.processes
@pytest.mark.skipif(WHY_NOT is not None, reason=str(WHY_NOT))
def test_random_faults_break_no_promise(tmp_path):
    result, findings, figures, events = soak.soak(
        SEED, SECONDS / 60, 5, lab.Profile(0.5, 1.5, 2, 0.5), str(tmp_path / "history")
    )
    print(result, figures)
    assert result != "false", findings
    assert figures["faults"] >= 3 and figures["overlaps"] == 0
    if pytest.importorskip("matplotlib", reason="the picture needs matplotlib"):
        soak.draw(events, str(tmp_path / "soak.png"), "seed %d" % SEED)
        assert (tmp_path / "soak.png").read_bytes()[:4] == b"\x89PNG"


# ---- who was nobody's primary, and why


def primary(run, begin, end):
    return [
        {"at": begin, "e": "start", "run": run, "term": int(begin)},
        {"at": end, "e": "stop", "run": run},
        {"at": end, "e": "stopped", "run": run},
    ]


def injected(begin, end, name="killed"):
    return [
        {"at": at, "e": "fault", "what": "injected", "run": None,
         "value": {"number": begin, "name": name, "on": on}}
        for at, on in ((begin, True), (end, False))
    ]  # fmt: skip


@pytest.mark.parametrize(
    "events, unexplained",
    [
        (primary("a", 1, 5) + primary("b", 5, 30), 0),
        (primary("a", 1, 5) + primary("b", 8, 30), 3),
        (primary("a", 1, 5) + primary("b", 8, 30) + injected(4, 6), 0),
        (primary("a", 1, 5) + primary("b", 40, 50) + injected(4, 6),
         34 - TIMINGS.D - TIMINGS.L - 2 * TIMINGS.C - 1),
        (primary("a", 1, 5) + primary("b", 15, 30)
         + injected(4, 20, "wall_clock_jumped"), 10),
    ],
)  # fmt: skip
def test_every_second_without_a_primary_is_accounted_for(events, unexplained):
    events = sorted(events, key=lambda event: event["at"])
    seconds, findings = soak.accounts(events, TIMINGS)
    assert seconds["unexplained"] == pytest.approx(unexplained, abs=0.2)
    assert bool(findings) == bool(unexplained)


def test_a_finding_is_unknown_only_where_the_machine_stalled():
    stall = {"at": 1, "e": "fault", "what": "late", "value": 2.0}
    assert soak.verdict([], [stall]) == "true"
    assert soak.verdict(["liveness: no primary"], [stall]) == "unknown"
    assert soak.verdict(["liveness: no primary"], []) == "false"
    assert soak.verdict(["S1: two at once"], [stall]) == "false"
