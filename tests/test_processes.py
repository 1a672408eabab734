"""Real processes on one real folder: killed, frozen, upgraded, robbed of the folder."""

import ast
import os
import pathlib
import shutil
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


@pytest.mark.parametrize("in_its_place", [None, "an empty folder"])
def test_a_folder_that_is_taken_away_freezes_and_comes_back(lab, in_its_place):
    nodes = lab.trio()
    first = primaries(nodes)[0]
    term = first.ask()["term"]
    away = lab.folder.with_name("away")
    lab.folder.rename(away)
    if in_its_place:
        lab.folder.mkdir()
    until(lambda: all(node.ask()["storage"] != "ok" for node in nodes))
    deadline = time.monotonic() + 2.5  # more than D, L, and all that follows
    until(lambda: time.monotonic() > deadline)
    assert first.ask()["term"] == term and primaries(nodes) == [first]
    if in_its_place:
        lab.folder.rmdir()  # it is empty still: nobody made a cluster there
    away.rename(lab.folder)
    until(lambda: all(node.ask()["storage"] == "ok" for node in nodes))
    assert settled(nodes) is first and first.ask()["term"] == term
    assert not any(node.all("exit") for node in nodes)


def replace_contents(folder, copy=None):
    for path in list(folder.iterdir()):
        shutil.rmtree(str(path))
    if copy is not None:
        for path in list(copy.iterdir()):
            path.rename(folder / path.name)


@pytest.mark.parametrize("fault", ["wiped", "rolled back"])
def test_a_wiped_or_rolled_back_folder_gets_a_primary_of_a_higher_term(lab, fault):
    nodes = lab.trio()
    first = primaries(nodes)[0]
    term, copy = first.ask()["term"], lab.folder.with_name("copy")
    if fault == "rolled back":
        shutil.copytree(str(lab.folder), str(copy))
        first.tell("step_down")
        until(lambda: first.all("stopped") and primaries(nodes))
        first = primaries(nodes)[0]
        assert first.all("start")[-1]["term"] > term
        term = first.all("start")[-1]["term"]
        settled(nodes)
    stops = len(first.all("stopped"))
    replace_contents(lab.folder, copy if fault == "rolled back" else None)
    until(lambda: len(first.all("stopped")) > stops)
    until(lambda: primaries(nodes))
    assert primaries(nodes)[0].all("start")[-1]["term"] > term
    settled(nodes)
    assert not any(node.all("exit") for node in nodes)


def test_after_an_orderly_stop_the_next_one_starts_at_once(lab):
    nodes = [lab.node(name) for name in "abcd"]
    settled(nodes)
    gaps = []
    while len(nodes) > 1:  # others load this machine: the best one counts
        first = primaries(nodes)[0]
        nodes.remove(first)
        first.tell("stop")
        until(lambda: primaries(nodes))
        until(lambda: first.all("left"))
        started = primaries(nodes)[0].all("start")[-1]["at"]
        gaps.append(started - first.all("stopped")[-1]["at"])
    assert 0 <= min(gaps) < 0.05


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


# What happens when: for each event, the tests that show it with real threads and
# sockets or real processes, and in the simulator. `test_lab.py` adds real networks
# and file systems to some.
C, P = "test_control.py::test_", "test_processes.py::test_"
S, D = "test_simulator.py::test_", "test_database_clusters.py::test_"
ROWS = {
    "the first node starts": [
        C + "a_lone_node_is_primary_within_50_ms_after_start",
        S + "a_first_node_is_primary_at_once",
    ],
    "several start at once": [
        C + "of_three_that_start_at_once_one_is_started",
        P + "of_three_that_start_at_once_one_is_primary",
        S + "of_several_that_start_at_once_one_becomes_primary",
    ],
    "a node joins or leaves": [
        C + "every_view_shows_a_newcomer_and_a_leaver_within_50_ms",
        S + "every_view_shows_a_newcomer_at_once_and_a_leaver_too",
    ],
    "the primary stops in an orderly way": [
        P + "after_an_orderly_stop_the_next_one_starts_at_once",
        S + "an_orderly_stop_hands_over_at_once",
    ],
    "the primary's host dies": [
        P + "after_a_kill_of_the_primary_the_next_one_starts",  # without proof
        S + "after_the_death_of_a_host_the_next_starts_by_the_detection_time",
    ],
    "the primary's process dies": [
        P + "after_a_kill_of_the_primary_the_next_one_starts",
        S + "the_kernel_tells_of_a_death_on_the_same_host_at_once",
    ],
    "all UDP is lost": [
        C + "without_all_udp_the_primary_stays_and_all_come_back_as_they_were",
        S + "without_all_udp_the_same_node_stays_primary_and_all_come_back_as_they_were",
    ],
    "the primary alone is cut off by UDP": [
        C + "a_primary_that_is_cut_off_by_udp_is_deposed_and_comes_back_as_a_member",
        S + "a_primary_that_is_cut_off_alone_is_deposed_and_comes_back_as_a_member",
    ],
    "the same with two nodes": [
        C + "of_two_that_do_not_hear_each_other_the_primary_stays",
        S + "of_two_nobody_can_tell_who_is_cut_off_and_the_primary_stays",
    ],
    "the storage is gone for all": [
        P + "a_folder_that_is_taken_away_freezes_and_comes_back",
        D + "a_server_that_is_gone_freezes_and_its_return_thaws",
        C + "without_storage_for_all_the_cluster_is_frozen",
        S + "without_storage_for_all_the_cluster_is_frozen_and_thaws_by_itself",
    ],
    "a member dies while frozen": [
        C + "a_member_that_falls_silent_ends_the_freeze",
        S + "a_member_that_dies_ends_the_freeze",
    ],
    "the storage is gone for the primary only": [
        D + "a_primary_that_alone_is_cut_off_from_the_server_hands_over",
        C + "without_storage_for_the_primary_alone_it_hands_over",
        S + "a_primary_that_alone_has_no_storage_hands_over",
    ],
    "the storage is full or read-only for all": [
        C + "without_storage_for_all_the_cluster_is_frozen",
        S + "without_storage_for_all_the_cluster_is_frozen_and_thaws_by_itself",
    ],
    "storage and UDP are gone for the primary": [
        C + "without_storage_and_udp_the_primary_stops_before_the_next_starts",
        S + "without_storage_and_udp_it_stops_before_others_start",
    ],
    "the storage hangs": [
        C + "without_storage_for_the_primary_alone_it_hands_over",
        C + "without_storage_for_all_the_cluster_is_frozen",
        C + "nothing_blocks_and_stop_callback_runs_without_storage",
        S + "a_node_whose_storage_hangs_still_stops",
    ],
    "the storage is replaced by an empty one": [
        P + "a_folder_that_is_taken_away_freezes_and_comes_back",
        S + "a_store_that_was_replaced_is_joined_once_no_primary_of_the_old_is_left",
    ],
    "the storage is wiped or rolled back": [
        P + "a_wiped_or_rolled_back_folder_gets_a_primary_of_a_higher_term",
        S + "a_store_that_is_wiped_or_rolled_back_gets_a_primary_of_a_higher_term",
    ],
    "a process is paused past its lease": [
        P + "one_that_slept_past_its_lease_wakes_up_as_no_primary",
        S + "a_node_that_was_paused_past_its_lease_comes_back_as_a_member",
    ],
    "a node with a higher version is alive": [
        P + "an_upgrade_sends_the_older_ones_home",
        S + "older_versions_leave_when_a_newer_one_is_alive",
    ],
    "every node dies, then the cluster restarts": [
        P + "after_all_were_killed_a_restart_has_a_primary_at_once",
        S + "after_all_have_died_one_becomes_primary_again",
    ],
    "the start callback raises": [
        C + "a_failed_start_is_paired_with_a_stop_and_the_next_is_elected",
        S + "a_start_callback_that_raises_is_followed_by_stop_and_another_node",
        S + "alone_a_node_whose_start_callback_raised_tries_again_soon",
    ],
}


def names_in(file):
    tree = ast.parse((pathlib.Path(__file__).parent / file).read_text("utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("row", ROWS)
def test_every_event_has_a_real_and_a_simulated_test(row):
    named = [test.split("::") for test in ROWS[row]]
    assert {file == "test_simulator.py" for file, _ in named} == {True, False}
    assert [name for file, name in named if name not in names_in(file)] == []
