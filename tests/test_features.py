"""What applications use on top of the election, on real threads and processes."""

import asyncio
import copy
import json
import logging
import multiprocessing
import os
import pickle
import subprocess
import sys
import threading
import time

import pytest

import cluster
from cluster import ClusterControl, NotPrimaryError, join_cluster, leave_cluster
from test_control import Lab, free_port, our_threads, until

forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")


@pytest.fixture
def lab(tmp_path):
    lab = Lab(tmp_path)
    yield lab
    lab.close()


class Diary:
    """Callbacks that write down what they were called with, and may be held up."""

    def __init__(self):
        self.entries = []
        self.go = threading.Event()
        self.go.set()

    def write(self, *entry):
        self.entries.append(entry)
        assert self.go.wait(20)

    def settings(self):
        return dict(
            start_primary_callback=lambda: self.write("start"),
            stop_primary_callback=lambda: self.write("stop"),
            node_joined_callback=lambda node: self.write("joined", node.name),
            node_left_callback=lambda node: self.write("left", node.name),
        )


# ---- what only the primary does


def test_a_decorated_function_runs_on_the_primary_alone(lab):
    control = lab.node("a")

    @control.primary_only
    def poll(box, limit=1):
        """Reads mail."""
        return box, limit

    assert poll("in", limit=2) is None
    control.start()
    assert control.wait_for_primary(10)
    assert poll("in", limit=2) == ("in", 2)
    assert (poll.__name__, poll.__doc__) == ("poll", "Reads mail.")
    control.stop()
    control.join(10)
    assert poll("in") is None


def test_a_decorated_function_raises_elsewhere_if_asked_to(lab):
    control = lab.node("a")

    @control.primary_only(raises=True)
    def poll():
        return "done"

    with pytest.raises(NotPrimaryError, match="'a' is not the primary.*'lab'"):
        poll()
    with pytest.raises(NotPrimaryError):
        control.assert_primary()
    control.start()
    assert control.wait_for_primary(10)
    assert poll() == "done" and control.assert_primary() == control.term > 0


def test_a_decorated_coroutine_function_stays_one(lab):
    control = lab.node("a")

    @control.primary_only
    async def poll():
        return "done"

    @control.primary_only(raises=True)
    async def insist():
        return "done"

    assert asyncio.iscoroutinefunction(poll)
    assert asyncio.run(poll()) is None
    with pytest.raises(NotPrimaryError):
        asyncio.run(insist())
    control.start()
    assert control.wait_for_primary(10)
    assert asyncio.run(poll()) == asyncio.run(insist()) == "done"


# ---- what changes around a node


def test_callbacks_tell_of_each_node_that_comes_and_goes(lab):
    diary = Diary()
    one = lab.node("a", **diary.settings())
    one.start()
    until(lambda: ("start",) in diary.entries)
    two = lab.node("b")
    two.start()
    until(lambda: ("joined", "b") in diary.entries)
    two.stop()
    until(lambda: ("left", "b") in diary.entries)
    again = lab.node("b")
    again.start()
    until(lambda: diary.entries.count(("joined", "b")) == 2)
    assert diary.entries == [("start",), ("joined", "b"), ("left", "b"), ("joined", "b")]


def test_a_newcomer_is_told_of_those_who_are_there(lab):
    lab.started("a", "b")
    diary = Diary()
    lab.node("c", **diary.settings()).start()
    until(lambda: {("joined", "a"), ("joined", "b")} <= set(diary.entries))
    assert len(diary.entries) == 2  # not of itself


def test_a_node_that_falls_silent_has_left(lab):
    diary = Diary()
    one = lab.node("a", same_host_proof=False, **diary.settings())
    two = lab.node("b", same_host_proof=False)
    one.start()
    until(lambda: one.is_primary)
    two.start()
    until(lambda: ("joined", "b") in diary.entries)
    two._runtime.abandon()  # as by kill -9: without a word
    until(lambda: ("left", "b") in diary.entries)


def test_the_changed_callback_tells_of_the_primary_and_of_the_storage(lab):
    seen = []

    def look():
        primary = control.cluster.primary_node
        seen.append((primary and primary.name, control.status()["storage"] == "ok"))

    control = lab.node("a", changed_callback=look)
    control.start()
    until(lambda: ("a", True) in seen)
    lab.storages[0].mode = "raise"
    until(lambda: any(not works for _, works in seen))
    lab.storages[0].mode = "ok"
    until(lambda: seen[-1] == ("a", True))
    before = len(seen)
    lab.node("b").start()
    until(lambda: len(seen) > before)  # another set of nodes is active


def test_start_and_stop_overtake_what_is_told_of_others(lab):
    diary = Diary()
    diary.go.clear()
    lab.started("b", "c")
    one = lab.node("a", **diary.settings())
    one.start()
    until(lambda: len(diary.entries) == 1)  # the first of two, held up
    until(lambda: sum(n.last_hb is not None for n in one.cluster.nodes.values()) == 2)
    for control in lab.controls[:2]:
        control.stop()
    until(lambda: one.is_primary)
    diary.go.set()
    until(lambda: len(diary.entries) >= 5)
    assert [entry[0] for entry in diary.entries] == [
        "joined", "start", "joined", "left", "left"
    ]  # fmt: skip


def test_many_changes_in_the_time_of_one_slow_callback_are_one_more_call(lab):
    go, calls = threading.Event(), []

    def slow():
        calls.append(control.cluster.primary_node)
        go.wait(20)

    control = lab.node("a", changed_callback=slow)
    control.start()
    until(lambda: calls and control.is_primary)
    for _ in range(3):
        lab.storages[0].mode = "raise"
        until(lambda: control.status()["storage"] != "ok")
        lab.storages[0].mode = "ok"
        until(lambda: control.status()["storage"] == "ok")
    go.set()
    until(lambda: len(calls) == 2)
    control.stop()
    control.join(10)
    assert len(calls) <= 4  # two of the end


def test_what_these_callbacks_raise_is_logged_and_ends_nothing(lab, caplog):
    def fail(*node):
        raise SystemExit("no")

    keys = ("node_joined_callback", "node_left_callback", "changed_callback")
    one = lab.node("a", **dict.fromkeys(keys, fail))
    one.start()
    until(lambda: one.is_primary)
    two = lab.node("b")
    two.start()
    until(lambda: "the node_joined callback raised" in caplog.text)
    two.stop()
    until(lambda: "the node_left callback raised" in caplog.text)
    until(lambda: "the changed callback raised" in caplog.text)
    one.stop()
    one.join(10)
    assert ("a", "stop") in lab.calls


def test_a_callback_must_be_callable(lab):
    with pytest.raises(ValueError, match="callable"):
        lab.node("a", node_joined_callback="print")


# ---- who does what


def test_keys_are_shared_out_evenly_and_alike_on_every_node(lab):
    nodes = lab.started("a", "b", "c")
    until(lambda: all(n.is_active for n in nodes[0].cluster.nodes.values()))
    until(lambda: all(n.is_active for n in nodes[2].cluster.nodes.values()))
    keys = ["user-%d" % i for i in range(300)]
    owners = [nodes[0].owner_of(key).name for key in keys]
    assert owners == [nodes[2].owner_of(key.encode()).name for key in keys]
    assert all(70 < owners.count(name) < 130 for name in "abc")
    nodes[1].stop()
    until(lambda: "b" not in nodes[0].cluster.nodes)
    until(lambda: nodes[0].owner_of("x") is not None)
    after = [nodes[0].owner_of(key).name for key in keys]
    assert all(new == old for old, new in zip(owners, after) if old != "b")
    assert "b" not in after


def test_a_key_has_no_owner_for_who_is_no_member(lab):
    control = lab.node("a")
    assert control.owner_of("x") is None
    control.start()
    until(lambda: control.owner_of("x") is not None)
    assert control.owner_of(b"x").is_self
    with pytest.raises(TypeError):
        control.owner_of(5)
    control.stop()
    control.join(10)
    assert control.owner_of("x") is None


# ---- settings


@pytest.mark.parametrize("seconds", [1, 2.5, 30])
def test_one_knob_sets_when_a_dead_host_is_replaced(lab, seconds):
    control = ClusterControl(
        "lab", storage_backend=lab.storage(), failover_time=seconds
    )
    timings = control.timings
    assert timings.detection_time == pytest.approx(0.9 * seconds)
    assert timings.hb_timeout >= 5 * timings.hb_interval
    assert cluster.MIN_LEASE <= timings.lease_duration <= timings.detection_time


def test_the_one_knob_keeps_its_word_without_proof_of_death(lab):
    settings = dict(failover_time=2, same_host_proof=False)
    controls = [
        ClusterControl("lab", "127.0.0.1", name, storage_backend=lab.storage(), **settings)
        for name in ("a", "b", "c")
    ]
    lab.controls += controls
    for control in controls:
        control.start()
    until(lambda: any(c.is_primary for c in controls))
    until(lambda: all(n.is_active for c in controls for n in c.cluster.nodes.values()))
    until(lambda: all(len(c.cluster.nodes) == 3 for c in controls))
    primary = next(c for c in controls if c.is_primary)
    began = time.monotonic()
    primary._runtime.abandon()
    until(lambda: any(c.is_primary for c in controls if c is not primary))
    assert time.monotonic() - began < 2 + 1  # with a second for a busy machine


def test_the_one_knob_is_refused_with_the_others_or_too_short(lab):
    for settings, text in (
        (dict(failover_time=5, hb_interval=0.5), "not both"),
        (dict(failover_time=5, hb_missed_count=2), "not both"),
        (dict(failover_time=0.5), "must be 1 s or more"),
        (dict(failover_time=float("nan")), "failover_time must be above 0"),
        (dict(failover_time="5"), "failover_time must be above 0"),
    ):
        with pytest.raises(ValueError, match=text):
            ClusterControl("lab", storage_backend=lab.storage(), **settings)


def test_versions_are_shown_but_heeded_only_on_demand(lab):
    old = lab.node("a", own_version="1.0", version_policy="ignore")
    heeding = lab.node("b", own_version="1.0")
    old.start()
    assert old.wait_for_primary(10)
    heeding.start()
    until(lambda: len(old.cluster.nodes) == 2)
    new = lab.node("c", own_version="2.0")
    new.start()
    until(lambda: lab.count("exit", "b") == 1)
    until(lambda: set(old.cluster.nodes) == {"a", "c"})
    assert old.is_primary and old.cluster_version == "2.0"
    assert lab.count("exit", "a") == 0
    with pytest.raises(ValueError, match="version_policy must be"):
        lab.node("d", version_policy="oldest")


def test_a_disabled_control_does_nothing_and_needs_nothing(caplog):
    caplog.set_level(logging.INFO)
    calls = []
    control = ClusterControl("lab", enabled=False, start_primary_callback=calls.append)

    @control.primary_only
    def work():
        return "done"

    with control:
        join_cluster(control)
        assert not control.is_alive() and not our_threads()
        assert (control.is_primary, control.term, work()) == (False, 0, None)
        assert not control.wait_for_primary(0) and not control.step_down()
        assert control.owner_of("x") is None and control.cluster.nodes == {}
        status = control.status()
        assert status["why"] == "it is disabled" and json.dumps(status)
        control.start()
    leave_cluster(control)
    assert "is disabled" in caplog.text and not calls
    with pytest.raises(ValueError, match="storage_backend must be"):
        ClusterControl("lab")
    with pytest.raises(ValueError, match="hb_timeout"):  # settings are checked as ever
        ClusterControl("lab", enabled=False, hb_timeout=-1)


# ---- coroutines


def test_a_coroutine_waits_for_its_turn_without_holding_up_the_loop(lab):
    (first,) = lab.started("a")

    async def main():
        async with lab.node("b") as second:
            assert not await second.wait_for_primary_async(0.05)
            waiting = asyncio.ensure_future(second.wait_for_primary_async())
            given_up = asyncio.ensure_future(second.wait_for_primary_async())
            await asyncio.sleep(0)
            given_up.cancel()
            first.stop()
            assert await asyncio.wait_for(waiting, 10)
            assert second.is_primary and await second.wait_for_primary_async(0)
            assert given_up.cancelled() and not second._runtime.watchers
            later = asyncio.ensure_future(second.wait_for_primary_async())
            second.stop()
            await later  # the end of the node ends the wait
        assert not second.is_alive()

    assert not asyncio.run(lab.node("never started").wait_for_primary_async(5))
    asyncio.run(main())


def test_a_cancelled_entry_leaves_no_node_behind(lab):
    control = lab.node("a")
    lab.storages[0].mode = "hang"

    async def enter():
        async with control:
            raise AssertionError("it cannot have joined")

    async def main():
        task = asyncio.ensure_future(enter())
        while control._runtime is None:
            await asyncio.sleep(0.005)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        lab.storages[0].let_go.set()
        lab.storages[0].mode = "ok"

    asyncio.run(main())
    until(lambda: not control.is_alive())
    until(lambda: lab.records() == [])


# ---- processes

WORKERS = """
import json, os
import cluster

control = cluster.ClusterControl(
    "lab", "127.0.0.1", %(settings)s, hb_interval=0.1, hb_timeout=2,
    storage_backend=cluster.SharedFsStorageBackend(%(path)r))
told = [control.node_name]
held, hold = os.pipe()
for _ in range(3):
    read, write = os.pipe()
    if os.fork() == 0:
        os.close(hold)
        try:
            cluster.join_cluster(control)
            control.start()
            record = control._runtime.core.record
            answer = [record.name, record.incarnation, record.port]
        except Exception as error:
            answer = [type(error).__name__, str(error)]
        os.write(write, json.dumps(answer).encode())
        os.read(held, 1)  # until the parent has heard all of them
        control.stop()
        control.join(10)
        os._exit(0)
    told.append(json.loads(os.read(read, 65536)))
os.close(hold)
print(json.dumps(told))
"""


def fork_workers(lab, settings):
    code = WORKERS % dict(path=lab.path, settings=settings)
    environment = dict(os.environ, PYTHONPATH=os.path.dirname(cluster.__file__))
    output = subprocess.check_output(
        [sys.executable, "-c", code], env=environment, timeout=60
    )
    return json.loads(output.decode())


@forks
def test_each_forked_child_is_a_node_of_its_own(lab):
    parent, *children = fork_workers(lab, "None")
    for attribute in zip(*children):
        assert len(set(attribute)) == 3
    assert parent not in [name for name, _, _ in children]


@forks
def test_of_forked_children_with_one_name_the_second_is_refused(lab):
    _, first, *others = fork_workers(lab, "'one'")
    assert first[0] == "one"
    for error, text in others:
        assert error == "DuplicateNodeError" and "'one' is in use" in text


@forks
def test_of_forked_children_with_one_port_the_second_is_refused(lab):
    port = free_port()
    _, first, *others = fork_workers(lab, "None, %d" % port)
    assert first[2] == port
    for error, text in others:
        assert error == "ClusterError" and "cannot bind UDP 127.0.0.1:%d" % port in text


@forks
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # 3.12: fork with threads
@pytest.mark.parametrize("without", ["nothing", "the hook", "the hook and the wipe"])
def test_what_was_started_before_a_fork_is_the_parents(lab, without, monkeypatch):
    """Without the hook as in a worker of uWSGI, whose fork Python hears nothing of.

    Without the wipe as on a system that does not clear a page for a copy.
    """
    if "the wipe" in without:
        monkeypatch.setattr(cluster, "_MADV_WIPEONFORK", -1)
    (control,) = lab.started("a")
    if "the hook" in without:
        monkeypatch.setattr(ClusterControl, "_after_fork_in_child", lambda self: None)
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        monkeypatch.undo()
        errors = []
        primary = [control.is_primary, control.cluster.primary_node is not None]
        for call in (control.start, lambda: join_cluster(control)):
            try:
                call()
            except RuntimeError as error:
                errors.append(str(error))
        os.write(write, json.dumps([primary + [control.term], errors]).encode())
        os._exit(0)
    os.waitpid(pid, 0)
    values, errors = json.loads(os.read(read, 65536).decode())
    os.close(read), os.close(write)
    assert values == [False, False, 0] and control.is_primary
    assert len(errors) == 2 and all("started before the fork" in e for e in errors)


def test_a_control_is_not_to_be_sent_to_another_process(lab):
    control = lab.node("a")
    for send in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match="make one in each process"):
            send(control)
    process = multiprocessing.get_context("spawn").Process(target=print, args=(control,))
    with pytest.raises(TypeError, match="ClusterControl cannot be pickled"):
        process.start()
