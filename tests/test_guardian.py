"""`run`: COMMAND on the primary alone, whatever is killed or stopped.

Every COMMAND here, and what it starts, writes into one ledger while it lives, and the
first process of it holds a port that only one process can have.
"""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time

import pytest

import cluster
from node_program import process_stat

pytestmark = [
    pytest.mark.processes,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs Linux"),
]

FOLDER = os.path.dirname(os.path.abspath(cluster.__file__))
PROGRAM = [sys.executable, "-m", "cluster", "run", "--cluster", "jobs"]
TIMINGS = ["--host-name", "127.0.0.1", "--failover-time", "3"]

# The stubborn kind ignores SIGTERM, and has a child in its group and one that left it
WORK = """
import os, signal, socket, subprocess, sys, time

ledger, port, kind, role = sys.argv[1:]
term, node = os.environ["CLUSTER_TERM"], os.environ["CLUSTER_NODE"]
file = os.open(ledger, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)


def note(what):
    line = "%s %s %s %d %r %s\\n"
    now = time.clock_gettime(time.CLOCK_BOOTTIME)
    os.write(file, (line % (term, node, role, os.getpid(), now, what)).encode())


def leave(number, _):
    note("signal-%d" % number)
    sys.exit(0)


if kind == "stubborn":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
else:
    signal.signal(signal.SIGTERM, leave)
    signal.signal(signal.SIGINT, leave)
if role == "first":
    held = socket.socket()
    try:
        held.bind(("127.0.0.1", int(port)))
    except OSError:
        note("clash")
    if kind == "stubborn":
        for role_of_child in ("child", "stray"):
            subprocess.Popen(
                [sys.executable] + sys.argv[:4] + [role_of_child],
                start_new_session=role_of_child == "stray",
            )
while True:
    note("alive")
    time.sleep(0.01)
"""


class Entry:
    def __init__(self, line):
        term, self.node, self.role, pid, at, self.what = line.split()
        self.term, self.pid, self.at = int(term), int(pid), float(at)


class Stage:
    """A cluster on one folder, the nodes of which run COMMANDs with one ledger."""

    def __init__(self, folder, stack):
        self._folder, self._stack = folder, stack
        self.ledger = os.path.join(folder, "ledger")
        self.storage = os.path.join(folder, "shared")
        self._work = os.path.join(folder, "work.py")
        with open(self._work, "w") as file:
            file.write(WORK)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]

    def work(self, kind="stubborn"):
        return [sys.executable, self._work, self.ledger, str(self.port), kind, "first"]

    def node(self, name, *options, command=None):
        """Starts a supervisor, which is killed in the end whatever happens."""
        log = open(os.path.join(self._folder, name + ".log"), "ab")
        with log:
            process = subprocess.Popen(
                PROGRAM
                + ["--storage", self.storage, "--node-name", name]
                + TIMINGS
                + list(options)
                + ["--"]
                + (command or self.work()),
                cwd=FOLDER,
                stdout=log,
                stderr=log,
            )
        self._stack.callback(process.wait)
        self._stack.callback(process.send_signal, signal.SIGCONT)
        self._stack.callback(process.kill)
        return process

    def log(self, name):
        with open(os.path.join(self._folder, name + ".log")) as file:
            return file.read()

    def entries(self):
        if not os.path.exists(self.ledger):
            return []
        with open(self.ledger) as file:
            return [Entry(line) for line in file.read().split("\n")[:-1]]

    def running(self, name, roles=("first",)):
        """True once the newest term's COMMAND is that node's, with all its roles."""
        entries = self.entries()
        newest = max((entry.term for entry in entries), default=0)
        mine = [e for e in entries if e.term == newest and e.node == name]
        return set(roles) <= {entry.role for entry in mine}

    def pids(self, name):
        return {e.pid for e in self.entries() if e.node == name}

    def guardian(self, name):
        """The pid of that node's guardian, which its record tells."""
        storage = cluster.SharedFsStorageBackend(self.storage, create=False)
        storage.open("jobs")
        (record,) = [r for r in storage.read(True).nodes if r.name == name]
        return record.companions[0][0]

    def check(self):
        """Never two at once: no term's last entry is after the first of a later."""
        entries = self.entries()
        assert not [e for e in entries if e.what == "clash"]
        terms = sorted({e.term for e in entries})
        for term, later in zip(terms, terms[1:]):
            last = max(e.at for e in entries if e.term == term)
            first = min(e.at for e in entries if e.term == later)
            assert last < first, "terms %d and %d overlap" % (term, later)
        return terms


@pytest.fixture
def stage(tmp_path):
    with contextlib.ExitStack() as stack:
        yield Stage(str(tmp_path), stack)


def until(condition, seconds=30):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "not within %g s" % seconds
        time.sleep(0.02)


def alive(pids):
    """Those that have not ended; a zombie has."""
    return {pid for pid in pids if process_stat(pid)[0] not in "ZX"}


ALL = ("first", "child", "stray")


def pair(stage):
    """Two nodes: `a` runs a stubborn COMMAND with all its family, `b` waits."""
    a = stage.node("a")
    until(lambda: stage.running("a", ALL))
    b = stage.node("b")
    until(lambda: "'b' is a member now" in stage.log("a"))
    return a, b


def test_a_killed_supervisor_takes_its_command_along_and_another_takes_over(stage):
    a, _ = pair(stage)
    pids = stage.pids("a")
    a.kill()
    until(lambda: stage.running("b", ALL))
    assert not alive(pids)
    assert "the process of 'a' is gone" in stage.log("b")
    stage.check()


def test_a_stopped_supervisor_s_command_ends_at_the_deadline(stage):
    a, _ = pair(stage)
    pids = stage.pids("a")
    a.send_signal(signal.SIGSTOP)
    until(lambda: stage.running("b", ALL))
    assert not alive(pids)
    a.send_signal(signal.SIGCONT)
    until(lambda: "'b' is the primary" in stage.log("a"))
    assert a.poll() is None
    stage.check()


def test_a_killed_guardian_takes_its_command_along_and_the_node_steps_down(stage):
    a, _ = pair(stage)
    pids = stage.pids("a")
    os.kill(stage.guardian("a"), signal.SIGKILL)
    until(lambda: stage.running("b", ALL))
    assert not alive(pids)
    assert "guardian of COMMAND was killed" in stage.log("a")
    assert a.poll() is None
    stage.check()


def test_supervisor_and_guardian_killed_at_once(stage):
    a = stage.node("a", command=stage.work("gentle"))
    until(lambda: stage.running("a"))
    stage.node("b")
    until(lambda: "'b' is a member now" in stage.log("a"))
    guardian = stage.guardian("a")
    a.kill()
    os.kill(guardian, signal.SIGKILL)
    until(lambda: stage.running("b"))
    stage.check()


def test_a_stopped_guardian_does_not_keep_command_alive(stage):
    """The supervisor sees to it itself, when its turn ends."""
    a, _ = pair(stage)
    pids = stage.pids("a")
    os.kill(stage.guardian("a"), signal.SIGSTOP)
    a.terminate()
    assert a.wait(20) == 0
    assert not alive(pids)
    until(lambda: stage.running("b"))
    stage.check()


def test_an_orderly_stop_kills_what_ignores_sigterm_within_the_stop_budget(stage):
    a, _ = pair(stage)
    pids = stage.pids("a")
    a.terminate()
    assert a.wait(20) == 0
    assert not alive(pids)
    until(lambda: stage.running("b"))
    stage.check()


@pytest.mark.parametrize("cause", ["stopped supervisor", "storage gone"])
def test_when_the_lease_runs_out_command_is_told_so_first(stage, cause):
    """And it is the guardian who says it, if its supervisor cannot."""
    a = stage.node("a", command=stage.work("gentle"))
    until(lambda: stage.running("a"))
    if cause == "storage gone":
        os.rename(stage.storage, stage.storage + ".away")
    else:
        a.send_signal(signal.SIGSTOP)
    until(lambda: not alive(stage.pids("a")))
    assert stage.entries()[-1].what == "signal-15"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_forwarded_and_command_may_end_by_itself(stage, number):
    a = stage.node("a", "--grace", "20", command=stage.work("gentle"))
    until(lambda: stage.running("a"))
    a.send_signal(number)
    assert a.wait(20) == 0
    assert "signal-%d" % number in [entry.what for entry in stage.entries()]


def test_a_command_that_fails_is_started_again_elsewhere(stage):
    """Not sooner than a second, and so not as one that cannot start."""
    program = "import sys, time; time.sleep(1.5); sys.exit(3)"
    stage.node("a", command=[sys.executable, "-c", program])
    until(lambda: "this node is the primary now" in stage.log("a"))
    stage.node("b")
    until(lambda: stage.running("b"))
    assert "COMMAND ended with exit code 3" in stage.log("a")


def test_a_command_that_cannot_be_run_gives_the_turn_to_another(stage):
    stage.node("a", command=["/no/such/program"])
    until(lambda: "cannot run /no/such/program: No such file" in stage.log("a"))
    stage.node("b")
    until(lambda: stage.running("b"))
    assert "COMMAND ended with exit code 127" in stage.log("a")
    assert "Traceback" not in stage.log("a")


@pytest.mark.parametrize(
    "program, code",
    [("pass", 0), ("raise SystemExit(7)", 7), ("import os; os.abort()", 134)],
)
def test_once_leaves_with_the_exit_code_of_command(stage, program, code):
    a = stage.node("a", "--once", command=[sys.executable, "-c", program])
    assert a.wait(20) == code


def test_guardian_and_command_are_in_the_record_before_command_begins(stage):
    program = (
        "import cluster, os, sys\n"
        "storage = cluster.SharedFsStorageBackend(sys.argv[1], create=False)\n"
        "storage.open(os.environ['CLUSTER_NAME'])\n"
        "(record,) = storage.read(True).nodes\n"
        "assert record.name == os.environ['CLUSTER_NODE'] == 'a'\n"
        "pids = [pid for pid, start_time in record.companions if start_time]\n"
        "assert pids == [os.getppid(), os.getpid()], record\n"
    )
    command = [sys.executable, "-c", program, stage.storage]
    a = stage.node("a", "--once", command=command)
    assert a.wait(20) == 0, stage.log("a")
