"""Real faults on real kernels, sockets and file systems: see `lab` and the scenarios.

    pytest tests/test_lab.py -k hangs       # runs these only, up to four side by side
    python tests/lab.py --matrix            # all sizes and timings: an hour
"""

import concurrent.futures
import os
import signal
import subprocess
import sys
import time

import pytest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
lab = pytest.importorskip("lab", reason="the laboratory needs Linux")
import lab_checker  # noqa: E402
import lab_nfs  # noqa: E402
import lab_scenarios  # noqa: E402
from node_program import process_stat  # noqa: E402

WHY_NOT = lab.missing()
needs_lab = pytest.mark.skipif(WHY_NOT is not None, reason=str(WHY_NOT))
AT_ONCE = 4
AT_THE_LONGEST = 120  # seconds for one scenario


def cases():
    """Each with three nodes, and with as few as it can have where that differs."""
    for name, played in lab_scenarios.SCENARIOS.items():
        sizes = [size for size in played.sizes if size <= 3]
        for size in sorted({sizes[0], sizes[-1]}):
            yield name, size


@pytest.fixture(scope="session")
def outcomes(request):
    """The selected scenarios, begun side by side; a test waits for its own."""
    pool = concurrent.futures.ThreadPoolExecutor(AT_ONCE)
    selected = [
        item.callspec.params["case"]
        for item in request.session.items
        if "outcomes" in getattr(item, "fixturenames", ())
    ]
    selected = [case for case in selected if not lab_scenarios.why_not(case[0])]
    yield {case: pool.submit(lab_scenarios.play, *case) for case in selected}
    lab.close_all()  # if it was interrupted: what runs fails at once
    pool.shutdown()


def result(outcomes, case):
    if lab_scenarios.why_not(case[0]):
        pytest.skip(lab_scenarios.why_not(case[0]))
    return outcomes[case].result(AT_THE_LONGEST * len(outcomes) / AT_ONCE + 60)


@needs_lab
@pytest.mark.processes
@pytest.mark.parametrize("case", list(cases()), ids="{0[0]}-{0[1]}".format)
def test_in_the_laboratory(outcomes, case):
    """Expected outcome, time bound, no overlap, no dead thread, no lost record."""
    outcome = result(outcomes, case)
    if not outcome.verdict and not outcome.unsafe:
        # A bound in seconds is judged once more, alone: the machine may be busy
        print(outcome.text)
        outcome = lab_scenarios.play(*case)
    assert outcome.verdict, outcome.text
    print(outcome.figures)


# ---- the laboratory says no: one promise is broken, and a scenario shows it

BROKEN = [
    ("test_simulator:GoesOnPastItsLease", "storage_and_udp_are_gone_for_the_primary"),
    ("test_simulator:StartsWithoutWaiting", "the_primary_is_cut_off_by_udp"),
    ("test_simulator:VouchesBlindly",
     "a_primary_without_storage_is_not_heard_and_then_hears_nobody"),
    ("lab_broken:TakesAnEmptyFolderForTheCluster",
     "the_share_is_unmounted_and_udp_is_gone_for_the_primary"),
]  # fmt: skip


@needs_lab
@pytest.mark.processes
@pytest.mark.parametrize("case", [(name, 3, lab.QUICK, True, broken)
                                  for broken, name in BROKEN],
                         ids=[broken for broken, _ in BROKEN])  # fmt: skip
def test_the_laboratory_catches_a_module_that(outcomes, case):
    outcome = result(outcomes, case)
    for _ in range(3):
        if outcome.unsafe:
            return
        outcome = lab_scenarios.play(*case)  # by chance both acted in one instant
    assert outcome.unsafe, outcome.text


# ---- the contract, over NFS


@needs_lab
@pytest.mark.processes
@pytest.mark.skipif(lab_nfs.missing() is not None, reason=str(lab_nfs.missing()))
def test_the_contract_over_nfs():
    with lab.Lab(nfs=True) as laboratory:
        host = laboratory.host()
        here = os.path.dirname(os.path.abspath(__file__))
        environment = dict(
            os.environ, PYTHONPATH=os.path.dirname(here), CONTRACT_RACES="20",
            CONTRACT_FOLDER=host.mount,
        )  # fmt: skip
        done = subprocess.run(
            host.inside()
            + [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider",
               "-k", "not rewrit and not a_reader",  # two minutes more
               os.path.join(here, "contract_on_a_folder.py")],
            env=environment,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=280, cwd=here,
        )  # fmt: skip
    text = done.stdout.decode()
    assert done.returncode == 0, text
    print(text.splitlines()[-1])


# ---- nothing stays behind

INTERRUPTED = """
import sys, time
sys.path.insert(0, %r)
import lab
with lab.Lab() as laboratory:
    one, two = laboratory.start(2)
    one.pause()
    two.host.storage(hang=True)
    time.sleep(1)
    print(laboratory.work, one.pid, two.pid, flush=True)
    time.sleep(60)
""" % os.path.dirname(os.path.abspath(__file__))


@needs_lab
@pytest.mark.processes
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_laboratory_leaves_nothing_behind(how):
    process = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, universal_newlines=True,
    )  # fmt: skip
    work, *pids = process.stdout.readline().split()
    process.send_signal(how)
    process.wait(30)
    process.stdout.close()
    if how == signal.SIGKILL:
        lab.sweep()  # the next laboratory does
    deadline = time.monotonic() + 20
    while not all(process_stat(pid)[0] == "Z" for pid in pids):
        assert time.monotonic() < deadline, "a node lives on"
        time.sleep(0.05)
    left = [n for n in os.listdir("/run/netns") if "-%d-" % process.pid in "-" + n]
    assert not left and not os.path.exists(work)


# ---- the checker says no

NODE_A = [
    {"at": 1, "e": "start", "run": "a", "term": 5},
    {"at": 1, "e": "started", "run": "a"},
]
A_STOPS = [{"at": 9, "e": "stop", "run": "a"}, {"at": 9, "e": "stopped", "run": "a"}]
B_STARTS = [{"at": 6, "e": "start", "run": "b", "term": 6}]
B_IS_DONE = [{"at": 7, "e": "stop", "run": "b"}, {"at": 7, "e": "stopped", "run": "b"}]


def fault(at, what, value, run="a"):
    return {"at": at, "e": "fault", "what": what, "value": value, "run": run}


def reads(run, since, until):
    return [
        {"at": since, "e": "primary", "run": run, "term": 5, "last_true": None},
        {"at": until, "e": "primary", "run": run, "term": 0, "last_true": until},
    ]


@pytest.mark.parametrize(
    "events, promise",
    [
        (NODE_A + A_STOPS, None),
        (NODE_A + A_STOPS + B_STARTS, "S1"),
        (NODE_A + [fault(5, "killed", True)] + B_STARTS, None),
        (NODE_A + [fault(6.5, "killed", True)] + B_STARTS, "S1"),
        (NODE_A + [fault(3, "paused", True), fault(8.9, "paused", False)] + B_STARTS
         + A_STOPS, None),
        (NODE_A + [fault(2, "paused", True), fault(3, "paused", False)] + B_STARTS
         + A_STOPS, "S1"),
        (NODE_A + [fault(5, "killed", True)]
         + [dict(B_STARTS[0], term=5)], "S2"),
        (reads("a", 1, 5) + reads("b", 4, 6), "S3"),
        (reads("a", 1, 5) + reads("b", 6, 7), None),
        (reads("a", 1, 9) + [fault(2, "paused", True), fault(8, "paused", False)],
         "S3"),
        (NODE_A + NODE_A, "S4"),
        (B_IS_DONE + NODE_A, "S4"),
        (NODE_A + [{"at": 3, "e": "left", "run": "a"}], "S4"),
        ([{"at": 3, "e": "threads", "run": "a", "dead": ["heartbeat"]}], "S4"),
        ([{"at": 3, "e": "died", "run": "a", "text": "ValueError()"}], "S4"),
    ],
)  # fmt: skip
def test_the_checker_finds_what_is_wrong(events, promise):
    events = sorted(events, key=lambda event: event["at"])
    found = {text[:2] for text in lab_checker.check(events, lab.Timings(lab.QUICK))}
    assert found == ({promise} if promise else set())
