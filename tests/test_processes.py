"""Real processes on one real folder: killed, frozen, upgraded, robbed of the folder."""

import os
import signal
import sys
import time

import pytest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from node_program import Node, overlaps, primaries, settled, until  # noqa: E402

pytestmark = [
    pytest.mark.processes,
    pytest.mark.skipif(os.name != "posix", reason="needs POSIX signals"),
]
# D = 0.9 s and L = 0.6 s
FAST = dict(hb_interval=0.2, hb_timeout=0.6, check_interval=0.3, hb_missed_count=2)


class Lab:
    def __init__(self, path):
        self.folder = path / "shared"
        self.nodes = []

    def node(self, name, **settings):
        node = Node(name, self.folder, **dict(FAST, **settings))
        self.nodes.append(node)
        return node

    def trio(self, **settings):
        nodes = [self.node(name, **settings) for name in "abc"]
        settled(nodes)
        return nodes

    def close(self):
        for node in self.nodes:
            node.close()
        assert overlaps(self.nodes) == []


@pytest.fixture
def lab(tmp_path):
    lab = Lab(tmp_path)
    yield lab
    lab.close()


@pytest.mark.parametrize("proof, low, high", [(True, 0.0, 0.6), (False, 0.4, 3.0)])
def test_after_a_kill_of_the_primary_the_next_one_starts(lab, proof, low, high):
    nodes = lab.trio(same_host_proof=proof)
    first = primaries(nodes)[0]
    first.kill()
    until(lambda: primaries(nodes))
    started = primaries(nodes)[0].all("start")[-1]
    assert low <= started["at"] - first.killed_at < high
    assert started["term"] > first.all("start")[-1]["term"]


def test_one_that_slept_past_its_lease_wakes_up_as_no_primary(lab):
    nodes = lab.trio()
    first = primaries(nodes)[0]
    others = [node for node in nodes if node is not first]
    first.signal(signal.SIGSTOP)
    until(lambda: primaries(others))
    woken_at = time.monotonic()
    first.signal(signal.SIGCONT)
    assert first.ask()["is_primary"] is False
    until(lambda: first.all("stopped"))
    assert first.all("stop")[0]["at"] - woken_at < 1
    assert len(primaries(others)) == 1
    until(lambda: len(first.ask()["active"]) == 3)
    # It slept in the middle of its term: its callbacks overlap, its term does not
    first.events[:] = [e for e in first.events if e["event"] != "start"]


def test_a_node_restarts_in_place_with_its_name_and_port(lab):
    first = lab.node("a", hb_port=47311)
    until(lambda: first.is_primary())
    first.kill()
    again = lab.node("a", hb_port=47311)
    until(lambda: again.is_primary(), 5)


def test_of_three_that_start_at_once_one_is_primary(lab):
    nodes = lab.trio()
    assert sum(len(node.all("start")) for node in nodes) == 1


@pytest.mark.parametrize("old, new", [("1.0", "1.1"), ("1.9", "1.10")])
def test_an_upgrade_sends_the_older_ones_home(lab, old, new):
    nodes = lab.trio(own_version=old)
    newer = lab.node("n", own_version=new)
    until(lambda: newer.is_primary())
    until(lambda: all(node.all("exited") for node in nodes))
    assert sum(len(node.all("stop")) for node in nodes) >= 1
    assert all(len(node.all("exit")) == 1 for node in nodes)


def test_corrupt_and_foreign_files_in_the_folder_harm_nothing(lab):
    nodes = lab.trio()
    first = primaries(nodes)[0]
    for folder in ("nodes", "lease", "rosters", "seniority", "."):
        path = lab.folder / "cluster-lab" / folder
        (path / "README.txt").write_text("not yours")
        (path / "node-x.0123456789abcdef.json").write_text("{ not json")
        (path / "0_broken").write_bytes(b"\0\xff")
        (path / "folder").mkdir()
    newcomer = lab.node("d")
    settled(nodes + [newcomer])
    assert first.is_primary() and (lab.folder / "cluster-lab/nodes/README.txt").exists()


def test_a_folder_that_is_taken_away_freezes_and_comes_back(lab):
    nodes = lab.trio()
    first = primaries(nodes)[0]
    term = first.ask()["term"]
    away = lab.folder.with_name("away")
    lab.folder.rename(away)
    until(lambda: all(node.ask()["storage"] != "ok" for node in nodes))
    deadline = time.monotonic() + 2.5  # more than D, L, and all that follows
    until(lambda: time.monotonic() > deadline)
    assert first.ask()["term"] == term and primaries(nodes) == [first]
    away.rename(lab.folder)
    until(lambda: all(node.ask()["storage"] == "ok" for node in nodes))
    assert settled(nodes) is first and first.ask()["term"] == term
    assert not any(node.all("exit") for node in nodes)


def test_a_living_namesake_is_refused(lab):
    first = lab.node("a")
    until(lambda: first.is_primary())
    second = lab.node("a")
    until(lambda: second.all("refused"))
    assert second.all("refused")[0]["error"] == "DuplicateNodeError"
    assert first.ask()["is_primary"]


def test_callbacks_that_raise_or_sleep_do_not_break_the_pairing(lab):
    bad = lab.node("bad", failing=["start", "stop"])
    until(lambda: bad.all("stopped"))
    slow = lab.node("slow", slow={"start": 0.3, "stop": 0.5})
    until(lambda: slow.is_primary())
    other = lab.node("other")
    until(lambda: len(other.ask()["nodes"]) == 3)
    slow.tell("stop")
    until(lambda: slow.all("left"))
    until(lambda: other.is_primary() or bad.is_primary())
    assert len(slow.all("start")) == len(slow.all("stopped")) == 1


def test_after_all_were_killed_a_restart_has_a_primary_at_once(lab):
    nodes = lab.trio()
    for node in nodes:
        node.signal(signal.SIGKILL)
    for node in nodes:
        node.process.wait()
    again = [lab.node(name) for name in "abc"]
    until(lambda: primaries(again), 5)
    settled(again)
    assert again[0].ask()["nodes"] == ["a", "b", "c"]


class Told:
    """Stands in for a node: only what the overlap checker looks at."""

    def __init__(self, name, killed_at, *events):
        self.name, self.killed_at = name, killed_at
        self.events = [{"event": kind, "at": at} for kind, at in events]


def test_the_overlap_checker_bites():
    first = Told("a", None, ("start", 1), ("stop", 2), ("stopped", 3))
    assert overlaps([first, Told("b", None, ("start", 2.5))])
    assert overlaps([Told("a", None, ("start", 1)), Told("b", 9, ("start", 2))])
    assert not overlaps(
        [first, Told("b", 5, ("start", 3.5)), Told("c", 6, ("start", 5))]
    )
