"""The control on real threads, real sockets on loopback and a real folder."""

import ast
import glob
import inspect
import json
import logging
import os
import re
import shlex
import shutil
import socket
import statistics
import subprocess
import sys
import textwrap
import threading
import time
from datetime import timedelta

import pytest

import cluster
from cluster import ClusterControl, SharedFsStorageBackend, join_cluster, leave_cluster

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
FAST = dict(hb_interval=0.1, hb_timeout=0.6, check_interval=0.2, hb_missed_count=2)


def until(condition, seconds=10.0):
    """Waits until the condition holds; fails after a deadline."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain for: %s" % (
            inspect.getsource(condition).strip()
        )
        time.sleep(0.005)
    return True


class Storage(SharedFsStorageBackend):
    """A folder that answers, takes no writes, raises, or hangs until it is let go."""

    def __init__(self, path):
        super().__init__(path)
        self.mode = "ok"
        self.let_go = threading.Event()

    def _obey(self, name):
        writes = name not in ("open", "read")
        if self.mode == "raise" or (self.mode == "full" and writes):
            raise cluster.StorageError("the test says no")
        if self.mode == "hang":
            self.let_go.wait(60)
            raise cluster.StorageError("it hung")


def _obeying(name):
    def method(self, *args, **keywords):
        self._obey(name)
        return getattr(SharedFsStorageBackend, name)(self, *args, **keywords)

    return method


for _name in (
    "open", "read", "next_join_number", "write_node", "remove_node", "swap_lease",
    "repair",
):  # fmt: skip
    setattr(Storage, _name, _obeying(_name))


class Lab:
    """Makes nodes in one folder, remembers their callbacks, stops them at the end."""

    def __init__(self, path):
        self.path = str(path)
        self.controls = []
        self.storages = []
        self.calls = []

    def storage(self):
        self.storages.append(Storage(self.path))
        return self.storages[-1]

    def note(self, name, kind):
        return lambda: self.calls.append((name, kind))

    def node(self, name, **settings):
        keywords = dict(FAST, host_name="127.0.0.1", storage_backend=self.storage())
        for kind in ("start", "stop"):
            keywords[kind + "_primary_callback"] = self.note(name, kind)
        keywords["exit_callback"] = self.note(name, "exit")
        keywords.update(settings)
        control = ClusterControl("lab", node_name=name, **keywords)
        self.controls.append(control)
        return control

    def started(self, *names, **settings):
        controls = [self.node(name, **settings) for name in names]
        for control in controls:
            control.start()
        until(lambda: any(control.is_primary for control in controls))
        for control in controls:
            until(lambda: len(control.cluster.nodes) == len(controls))
        if "start_primary_callback" not in settings:
            # a node that is stopped before this callback ran calls none to stop either
            until(lambda: any(self.count("start", name) for name in names))
        return controls

    def count(self, kind, name=None):
        return sum(k == kind and name in (None, n) for n, k in list(self.calls))

    def records(self):
        folder = os.path.join(self.path, "cluster-lab", "nodes")
        names = os.listdir(folder) if os.path.isdir(folder) else []
        return [name for name in names if name.startswith("node-")]  # no probes

    def close(self):
        for storage in self.storages:
            storage.mode = "ok"
            storage.let_go.set()
        for control in self.controls:
            control.stop()
        for control in self.controls:
            control.join(10)


@pytest.fixture
def lab(tmp_path):
    lab = Lab(tmp_path)
    yield lab
    lab.close()


def free_port(kind=socket.AF_INET, host="127.0.0.1"):
    with socket.socket(kind, socket.SOCK_DGRAM) as probe:
        probe.bind((host, 0))
        return probe.getsockname()[1]


def can_bind(port):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def our_threads():
    return [t for t in threading.enumerate() if t.name.startswith("cluster-")]


def run_python(code, *options, path=ROOT, **keywords):
    environment = dict(os.environ, PYTHONPATH=str(path))
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    command = [sys.executable] + list(options) + ["-c", code]
    return subprocess.run(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        timeout=60, universal_newlines=True, **keywords
    )  # fmt: skip


# ---- settings


@pytest.mark.parametrize(
    "settings, words",
    [
        (dict(hb_interval=5, hb_timeout=5), ["hb_timeout (5 s)", "hb_interval (5 s)"]),
        (dict(hb_interval=0), ["hb_interval", "0"]),
        (dict(hb_timeout=float("nan")), ["hb_timeout", "nan"]),
        (dict(check_interval=float("inf")), ["check_interval", "inf"]),
        (dict(check_interval="2"), ["check_interval", "'2'"]),
        (dict(hb_missed_count=0), ["hb_missed_count", "0"]),
        (dict(hb_missed_count=2.0), ["hb_missed_count", "2.0"]),
        (dict(hb_missed_count=True), ["hb_missed_count", "True"]),
        (dict(lease_duration=100), ["lease_duration (100 s)", "13 s"]),
        (dict(lease_duration=0.1), ["lease_duration (0.1 s)", "0.3 s"]),
        (dict(freeze_limit=-1), ["freeze_limit", "-1"]),
        (dict(stop_timeout=-1), ["stop_timeout", "-1"]),
        (dict(hb_port=65536), ["hb_port", "65536"]),
        (dict(node_name="x" * 201), ["node_name", "200"]),
        (dict(cluster_name=""), ["cluster_name", "''"]),
        (dict(start_primary_callback=3), ["callback", "3"]),
        (dict(own_version=1.0), ["own_version", "1.0"]),
        (dict(storage_backend=None), ["storage_backend", "None"]),
        (dict(advertise_host="fe80::1%eth0"), ["advertise_host", "fe80::1%eth0"]),
        (dict(advertise_host="0.0.0.0"), ["advertise_host", "0.0.0.0"]),
        (dict(advertise_host=("::1", 5)), ["advertise_host", "('::1', 5)"]),
    ],
)
def test_an_impossible_setting_is_refused_with_its_value(tmp_path, settings, words):
    keywords = dict(
        cluster_name="lab", storage_backend=SharedFsStorageBackend(tmp_path)
    )
    keywords.update(settings)
    with pytest.raises(ValueError) as caught:
        ClusterControl(**keywords)
    assert [word for word in words if word not in str(caught.value)] == []


def test_the_positional_form_of_existing_code_works(tmp_path):
    storage = SharedFsStorageBackend(tmp_path)
    control = ClusterControl(
        "labcluster", "127.0.0.1", "node01", 44330, 10, 15, 10,
        own_version="1.0", storage_backend=storage,
    )  # fmt: skip
    assert control.timings[:4] == (10.0, 15.0, 5, 10.0)
    assert control.storage_backend is storage


def test_all_but_name_and_storage_has_a_default(tmp_path):
    controls = [
        ClusterControl("jobs", storage_backend=SharedFsStorageBackend(tmp_path))
        for _ in range(8)
    ]
    assert len({control.node_name for control in controls}) == 8


def test_an_unwise_timeout_warns_once_by_logging(lab, caplog):
    with caplog.at_level(logging.WARNING, "cluster"):
        lab.node("a", hb_interval=0.5, hb_timeout=0.6)
    assert len(caplog.records) == 1 and "0.6" in caplog.text


def test_the_sample_program_of_existing_code_runs_unchanged(tmp_path):
    calls = []
    cluster_ctrl = cluster.ClusterControl(
        cluster_name="sample_cluster", host_name="0.0.0.0", node_name="node01",
        hb_port=free_port(), hb_interval=5, hb_timeout=10, hb_missed_count=2,
        own_version="1.0", check_interval=2,
        start_primary_callback=lambda: calls.append("start"),
        stop_primary_callback=lambda: calls.append("stop"),
        exit_callback=lambda: calls.append("exit"),
        storage_backend=cluster.SharedFsStorageBackend(str(tmp_path)),
    )  # fmt: skip
    cluster.join_cluster(cluster_ctrl)
    cluster_ctrl.start()
    until(lambda: calls == ["start"])
    cluster_ctrl.stop()
    cluster_ctrl.join(10)
    cluster.leave_cluster(cluster_ctrl)
    assert calls == ["start", "stop"]


# ---- becoming the primary


def test_a_lone_node_is_primary_within_50_ms_after_start(lab):
    took = []
    for number in range(5):  # others load this machine: the best one counts
        control = lab.node("a")
        join_cluster(control)
        began = time.perf_counter()
        control.start()
        assert control.wait_for_primary(5)
        took.append(time.perf_counter() - began)
        control.stop()
        control.join(10)
    assert min(took) < 0.05


def test_of_three_that_start_at_once_one_is_started(lab):
    controls = lab.started("a", "b", "c")
    until(lambda: all(len(c.cluster.nodes) == 3 for c in controls))
    until(lambda: all(c.cluster.primary_node for c in controls))
    assert lab.count("start") == 1
    assert len({c.cluster.primary_node.name for c in controls}) == 1


def test_every_view_shows_a_newcomer_and_a_leaver_within_50_ms(lab):
    controls, took = lab.started("a", "b"), []

    def measured(change, name, there):
        began = time.perf_counter()
        change(control)
        until(lambda: all((name in c.cluster.nodes) == there for c in controls))
        took.append((there, time.perf_counter() - began))

    for number in range(5):  # others load this machine: the best ones count
        control = lab.node("n%d" % number)
        measured(join_cluster, control.node_name, True)
        control.start()
        until(lambda: control.cluster.primary_node is not None)
        measured(leave_cluster, control.node_name, False)
    assert min(seconds for there, seconds in took if there) < 0.05
    assert min(seconds for there, seconds in took if not there) < 0.05


def test_step_down_hands_over_after_the_stop_callback(lab):
    controls = lab.started("a", "b")
    first = next(c for c in controls if c.is_primary)
    other = next(c for c in controls if c is not first)
    term = first.term
    assert not other.step_down()
    assert first.step_down()
    assert lab.count("stop", first.node_name) == 1
    assert not first.is_primary and first.term == 0
    assert other.wait_for_primary(5) and other.term > term


def test_wait_for_primary_gives_up_after_its_timeout(lab):
    controls = lab.started("a", "b")
    other = next(c for c in controls if not c.is_primary)
    assert not other.wait_for_primary(0.05)
    assert not lab.node("c").wait_for_primary(0.05)


def test_a_with_block_joins_starts_stops_and_leaves(lab):
    with lab.node("a") as control:
        until(lambda: lab.count("start"))
        assert len(lab.records()) == 1
    assert lab.calls == [("a", "start"), ("a", "stop")]
    assert lab.records() == [] and not control.is_alive()


# ---- every order of calls does the obvious thing


def test_calls_may_be_repeated_and_come_in_any_order(lab):
    control = lab.node("a")
    control.stop()  # nothing runs: nothing happens
    leave_cluster(control)
    control.join(1)
    control.start()  # before join_cluster: joins in the background
    control.start()
    join_cluster(control)
    join_cluster(control)
    until(lambda: lab.count("start"))
    leave_cluster(control)  # before stop: stops
    assert lab.calls == [("a", "start"), ("a", "stop")]
    control.stop()
    control.stop()
    leave_cluster(control)
    for refused in (control.start, lambda: join_cluster(control)):
        with pytest.raises(RuntimeError, match="make a new one"):
            refused()


def test_a_callback_may_call_stop_and_step_down_but_not_wait(lab):
    said = []

    def callback():
        for call in (control.join, lambda: leave_cluster(control)):
            try:
                call()
            except RuntimeError as error:
                said.append(str(error))
        said.append(control.step_down())
        control.stop()

    control = lab.node("a", start_primary_callback=callback)
    control.start()
    until(lambda: not control.is_alive() and said[2:])
    assert "join()" in said[0] and "leave_cluster()" in said[1] and said[2] is True
    assert lab.count("stop") == 1


def test_step_down_in_a_stop_callback_returns_at_once_and_changes_nothing(lab):
    def callback():
        said.append((control.step_down(), control.is_primary, control.term))

    said = []
    control = lab.node("a", stop_primary_callback=callback)
    control.start()
    until(lambda: lab.count("start") == 1)
    assert control.step_down()
    assert said == [(False, False, 0)]
    until(lambda: lab.count("start") == 2)  # alone, it is a candidate again
    control.stop()
    control.join(10)
    assert len(said) == 2 and not control.is_alive()


def exited_by_an_upgrade(lab, exit_callback):
    """The control of a node that a newer version has sent home."""
    (old,) = lab.started("old", own_version="1.9", exit_callback=exit_callback)
    new = lab.node("new", own_version="1.10")
    new.start()
    until(lambda: not old.is_alive())
    assert new.wait_for_primary(10)
    assert lab.count("stop", "old") == lab.count("start", "old") == 1
    return old


def test_an_exit_callback_may_call_stop_but_not_wait(lab):
    def callback():
        control = next(c for c in lab.controls if c.node_name == "old")
        for wait in (control.join, lambda: leave_cluster(control)):
            with pytest.raises(RuntimeError, match="wait for itself"):
                wait()
        control.stop()
        control.stop()
        assert not control.step_down() and not control.is_primary
        lab.note("old", "exit")()

    old = exited_by_an_upgrade(lab, callback)
    until(lambda: lab.count("exit", "old") == 1)
    old.join(10)
    leave_cluster(old)


def test_an_exit_callback_that_raises_ends_the_node_all_the_same(lab, caplog):
    def callback():
        lab.note("old", "exit")()
        raise SystemExit("no")

    old = exited_by_an_upgrade(lab, callback)
    assert lab.count("exit", "old") == 1
    until(lambda: "exit callback raised" in caplog.text)
    leave_cluster(old)
    until(lambda: len(lab.records()) == 1)


def test_after_stop_and_join_threads_and_port_are_free_for_the_same_name(lab):
    port = free_port()
    for _ in range(3):
        control = lab.node("a", hb_port=port)
        join_cluster(control)
        control.start()
        assert control.wait_for_primary(5)
        control.stop()
        control.join(10)
        assert our_threads() == [] and can_bind(port)


def test_200_cycles_leave_no_thread_file_or_record_behind(lab):
    def cycle():
        control = lab.node("a")
        control.start()
        assert control.wait_for_primary(5)
        control.stop()
        control.join(10)
        leave_cluster(control)

    cycle()
    fds = "/proc/self/fd"
    before = len(os.listdir(fds)) if os.path.isdir(fds) else 0
    for _ in range(200):
        cycle()
    assert our_threads() == [] and lab.records() == []
    if before:
        assert len(os.listdir(fds)) <= before
    left = [n for _, _, names in os.walk(lab.path) for n in names if "tmp-" in n]
    assert left == []


# ---- a storage that raises, or never answers


@pytest.mark.parametrize("mode", ["raise", "hang"])
def test_join_cluster_raises_at_its_timeout_and_leaves_nothing_behind(lab, mode):
    control = lab.node("a")
    storage = control.storage_backend
    storage.mode = mode
    began = time.monotonic()
    with pytest.raises(cluster.StorageError) as caught:
        join_cluster(control, timeout=0.3)
    assert time.monotonic() - began < 3
    assert lab.path in str(caught.value) and "check that storage" in str(caught.value)
    storage.mode = "ok"
    storage.let_go.set()
    until(lambda: our_threads() == [])
    assert lab.records() == []
    join_cluster(control)  # the retry
    assert len(lab.records()) == 1


@pytest.mark.parametrize("mode", ["raise", "hang"])
def test_start_joins_in_the_background_once_the_storage_answers(lab, mode):
    control = lab.node("a")
    control.storage_backend.mode = mode
    control.start()
    with pytest.raises(cluster.StorageError):
        join_cluster(control, timeout=0.2)
    assert control.status()["alive"] and not control.is_primary
    control.storage_backend.mode = "ok"
    control.storage_backend.let_go.set()
    assert control.wait_for_primary(15)


@pytest.mark.parametrize("mode", ["raise", "hang"])
def test_nothing_blocks_and_stop_callback_runs_without_storage(lab, mode):
    (control,) = lab.started("a")
    control.storage_backend.mode = mode
    began = time.monotonic()
    control.cluster, control.status(), control.is_primary, control.term
    control.cluster_version, control.is_alive()
    control.stop()
    assert time.monotonic() - began < 1
    leave_cluster(control, timeout=5)
    assert time.monotonic() - began < 8
    until(lambda: not control.is_alive())
    assert lab.calls == [("a", "start"), ("a", "stop")]


def test_leave_cluster_returns_in_time_from_a_storage_that_hangs_meanwhile(lab, caplog):
    (control,) = lab.started("a")
    storage, original = control.storage_backend, control.storage_backend.swap_lease

    def swap_lease(expected, new):
        if new.released:
            storage.mode = "hang"  # from the release on nothing returns
        return original(expected, new)

    storage.swap_lease = swap_lease
    began = time.monotonic()
    leave_cluster(control, timeout=0.5)
    assert storage.mode == "hang" and time.monotonic() - began < 2.5
    assert "has not stopped within 0.5 s" in caplog.text
    assert lab.calls == [("a", "start"), ("a", "stop")] and not control.is_primary
    until(lambda: not control.is_alive())


def test_a_faulty_backend_is_a_failing_storage_and_told_once_a_minute(lab, caplog):
    def faulty(fresh=False):
        failed.append(fresh)
        raise TypeError("a bug")

    failed = []
    (control,) = lab.started("a")
    control.storage_backend.read = faulty
    until(lambda: len(failed) > 2 and "a bug" in control.status()["storage"])
    until(lambda: "backend failed" in caplog.text)
    said = [r for r in caplog.records if "backend failed" in r.getMessage()]
    assert len(said) == 1


# ---- outages: who loses what, and for whom


def cut(monkeypatch, *controls):
    """No packet of theirs goes out, and none comes in."""

    def deafen(receive):
        def nothing():
            while receive() is not None:
                pass

        return nothing

    for control in controls:
        sock = control._runtime._socket
        monkeypatch.setattr(sock, "send", lambda data, address: None)
        monkeypatch.setattr(sock, "receive", deafen(sock.receive))


@pytest.fixture
def trio(lab):
    """Three admitted nodes, the primary first."""
    return admitted(lab, "a", "b", "c")


def admitted(lab, *names):
    controls = lab.started(*names)
    until(lambda: lab.count("start") == 1)
    until(lambda: all_active(controls))
    return sorted(controls, key=lambda control: not control.is_primary)


def all_active(controls):
    views = [control.cluster.nodes.values() for control in controls]
    return all(
        len(view) == len(controls) and all(node.is_active for node in view)
        for view in views
    )


def holds_its_term(control, seconds=2.5):
    """Asked all the time, for longer than D, L and a handover together."""
    term, deadline = control.term, time.monotonic() + seconds
    while time.monotonic() < deadline:
        assert control.is_primary and control.term == term
        time.sleep(0.005)
    return True


def ids(control):
    return {node.name: (node.id, node.join_timestamp) for node in
            control.cluster.nodes.values()}  # fmt: skip


def test_without_all_udp_the_primary_stays_and_all_come_back_as_they_were(
    lab, trio, monkeypatch
):
    first, before = trio[0], ids(trio[0])
    with monkeypatch.context() as patch:
        cut(patch, *trio)
        assert holds_its_term(first)
        silences = [member["silence"] for member in first.status()["members"]]
        assert all(silence is None or silence > 1 for silence in silences)
    until(lambda: all_active(trio))
    assert ids(first) == before and first.is_primary
    assert [kind for _, kind in lab.calls] == ["start"]


def test_a_primary_that_is_cut_off_by_udp_is_deposed_and_comes_back_as_a_member(
    lab, trio, monkeypatch
):
    first, others, before = trio[0], trio[1:], ids(trio[0])
    with monkeypatch.context() as patch:
        cut(patch, first)
        until(lambda: any(control.is_primary for control in others))
        until(lambda: lab.count("start") == 2 and lab.count("stop") == 1)
        assert [kind for _, kind in lab.calls] == ["start", "stop", "start"]
    until(lambda: all_active(trio))
    assert ids(first) == before and not first.is_primary and lab.count("exit") == 0


def test_of_two_that_do_not_hear_each_other_the_primary_stays(lab, monkeypatch):
    first, second = admitted(lab, "a", "b")
    with monkeypatch.context() as patch:
        cut(patch, first)
        assert holds_its_term(first) and not second.is_primary


@pytest.mark.parametrize("mode", ["raise", "hang"])
def test_without_storage_for_the_primary_alone_it_hands_over(lab, trio, mode):
    first, others = trio[0], trio[1:]
    first.storage_backend.mode = mode
    until(lambda: any(control.is_primary for control in others))
    until(lambda: lab.count("start") == 2)
    assert [kind for _, kind in lab.calls] == ["start", "stop", "start"]
    first.storage_backend.mode = "ok"
    first.storage_backend.let_go.set()
    until(lambda: all_active(trio))
    assert not first.is_primary


@pytest.mark.parametrize("mode", ["raise", "full", "hang"])
def test_without_storage_for_all_the_cluster_is_frozen(lab, trio, mode):
    first, before = trio[0], ids(trio[0])
    for control in trio:
        control.storage_backend.mode = mode
    assert holds_its_term(first)
    assert all(ids(control) == before for control in trio)
    for control in trio:
        control.storage_backend.mode = "ok"
        control.storage_backend.let_go.set()
    until(lambda: all(c.status()["storage"] == "ok" for c in trio), 20)
    assert first.is_primary and [kind for _, kind in lab.calls] == ["start"]


def test_a_member_that_falls_silent_ends_the_freeze(lab, trio, monkeypatch):
    for control in trio:
        control.storage_backend.mode = "raise"
    until(lambda: all(c.status()["storage"] != "ok" for c in trio))
    with monkeypatch.context() as patch:
        cut(patch, trio[2])
        until(lambda: lab.count("stop") == 1)
    assert not any(control.is_primary for control in trio)
    for control in trio:
        control.storage_backend.mode = "ok"
    until(lambda: lab.count("start") == 2)


def test_without_storage_and_udp_the_primary_stops_before_the_next_starts(
    lab, trio, monkeypatch
):
    first, others = trio[0], trio[1:]
    with monkeypatch.context() as patch:
        first.storage_backend.mode = "raise"
        cut(patch, first)
        until(lambda: any(control.is_primary for control in others))
        until(lambda: lab.count("start") == 2)
    assert [kind for _, kind in lab.calls] == ["start", "stop", "start"]
    first.storage_backend.mode = "ok"
    until(lambda: all_active(trio))


# ---- names, versions, secrets, strangers


def test_a_second_living_node_of_that_name_is_refused(lab):
    lab.started("a")
    second = lab.node("a")
    with pytest.raises(cluster.DuplicateNodeError, match="'a'"):
        join_cluster(second)
    assert not second.is_alive() and len(lab.records()) == 1


def test_a_refused_node_is_a_candidate_again_after_a_retry(lab):
    (first,) = lab.started("a")
    second = lab.node("a")
    second.start()
    with pytest.raises(cluster.DuplicateNodeError):
        join_cluster(second)
    first.stop()
    first.join(10)
    join_cluster(second)
    second.start()
    assert second.wait_for_primary(5)


def test_a_silent_member_is_among_the_dead_nodes(lab, monkeypatch):
    a, b = lab.started("a", "b")
    until(lambda: all(c.cluster.nodes["b"].is_active for c in (a, b)))
    monkeypatch.setattr(b._runtime, "_turn", lambda: time.sleep(0.01))
    until(lambda: "b" in [n.name for n in a.cluster.dead_nodes] or (
        "b" not in a.cluster.nodes
    ))  # fmt: skip
    monkeypatch.undo()
    until(lambda: "b" in a.cluster.nodes and a.cluster.dead_nodes == [])


def test_an_older_version_stops_and_exits_when_a_newer_one_comes(lab):
    (old,) = lab.started("old", own_version="1.9")
    new = lab.node("new", own_version="1.10")
    new.start()
    assert new.wait_for_primary(10)
    until(lambda: not old.is_alive())
    assert lab.count("start", "old") == lab.count("stop", "old")
    assert lab.count("exit", "old") == 1
    leave_cluster(old)
    assert new.cluster_version == "1.10"


def test_nodes_with_different_secrets_do_not_hear_each_other(lab, caplog):
    one = lab.node("one", secret="a", same_host_proof=False)
    two = lab.node("two", secret=b"b", same_host_proof=False)
    with caplog.at_level(logging.WARNING, "cluster"):
        one.start()
        assert one.wait_for_primary(5)
        two.start()
        until(lambda: "dropped packets" in caplog.text)
        until(lambda: "two" in one.cluster.nodes or "one" in two.cluster.nodes)
    for control in (one, two):
        assert all(n.last_hb is None for n in control.cluster.nodes.values())


def test_garbage_at_the_port_harms_nothing(lab):
    (control,) = lab.started("a")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        address = control.status()["address"].rsplit(":", 1)
        for junk in (
            b"",
            b"\0" * 600,
            b"{",
            b"[]",
            b"{}" * 9,
            b"9" * 400,
            os.urandom(99),
        ):
            for _ in range(20):
                sender.sendto(junk, (address[0], int(address[1])))
    other = lab.node("b")
    other.start()
    until(lambda: len(control.cluster.nodes) == 2 and control.is_primary)


def with_keys_of_tomorrow(packet):
    head, body = packet[: cluster._HEADER], packet[cluster._HEADER :]
    fields = dict(json.loads(body.decode()), later=[1, {"x": None}], zz="?")
    return head + json.dumps(fields).encode()


class OfTheNextFormat:
    """A node of a version to come: its record and its packets have unknown keys."""

    def __init__(self, lab):
        self.clock = 0
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind(("127.0.0.1", 0))
        self.socket.settimeout(0.05)
        self.record = cluster.NodeRecord(
            "later", "f" * 16, *self.socket.getsockname(), join_number=10**6
        )
        fields = dict(self.record.to_dict(), format=2, shoe_size=[46], name="later")
        fields["process"]["cgroup"] = {"a": None}
        nodes = os.path.join(lab.path, "cluster-lab", "nodes")
        name = "node-later.%s.json" % self.record.incarnation
        with open(os.path.join(nodes, name), "w") as file:
            json.dump(fields, file)

    def beat(self, control):
        core = control._runtime.core
        tag = cluster._cluster_tag("lab", core.cluster_id)
        self.clock += 1
        heartbeat = cluster.Heartbeat(
            self.record.incarnation, core.record.incarnation, self.clock, self.heard()
        )
        packet = with_keys_of_tomorrow(cluster.encode_heartbeat(heartbeat, tag))
        self.socket.sendto(packet, core.record.address)

    def heard(self):
        """The number of the newest packet that came in."""
        try:
            return json.loads(self.socket.recv(1000)[cluster._HEADER :].decode())["s"]
        except socket.timeout:
            return 0


def test_a_node_of_the_next_format_is_a_member_and_never_garbage(lab, caplog):
    (control,) = lab.started("a")
    later = OfTheNextFormat(lab)

    def active():
        later.beat(control)
        node = control.cluster.nodes.get("later")
        return node is not None and node.is_active and node.last_hb is not None

    with later.socket:
        until(active)
    assert control.is_primary
    assert "dropped" not in caplog.text and "skipped" not in caplog.text


def test_a_heartbeat_of_the_next_format_is_understood(lab, monkeypatch):
    encode = cluster.encode_heartbeat

    def of_the_next_format(*arguments):
        return with_keys_of_tomorrow(encode(*arguments))

    monkeypatch.setattr(cluster, "encode_heartbeat", of_the_next_format)
    a, b = lab.started("a", "b")
    until(lambda: all(n.is_active for n in a.cluster.nodes.values()))
    until(lambda: b.cluster.nodes["a"].last_hb is not None)


def test_a_broken_packet_handler_does_not_end_the_node(lab, monkeypatch, caplog):
    a, b = lab.started("a", "b")

    def broken(self, event):
        trapped.append(self)
        raise KeyError("a trap")

    trapped = []
    monkeypatch.setitem(cluster.Core._HANDLERS, cluster.Heard, broken)
    until(lambda: len(trapped) > 10)
    assert a.is_alive() and b.is_alive()
    for control in (a, b):
        control.stop()
        control.join(10)  # all is written by then
    said = [r for r in caplog.records if "could not be handled" in r.getMessage()]
    assert len(said) == len(set(trapped))  # once a minute, for each node


# ---- callbacks that fail


def test_a_failed_start_is_paired_with_a_stop_and_the_next_is_elected(lab):
    def fail():
        lab.note("bad", "start")()
        raise SystemExit("no")

    bad = lab.node("bad", start_primary_callback=fail)
    bad.start()
    until(lambda: lab.count("stop", "bad") >= 1)
    good = lab.node("good")
    good.start()
    assert good.wait_for_primary(15)
    until(lambda: lab.count("start", "bad") == lab.count("stop", "bad"))
    assert bad.is_alive()


def test_a_raising_stop_callback_hands_over_all_the_same(lab):
    def fail():
        raise ValueError("no")

    bad = lab.node("bad", stop_primary_callback=fail)
    bad.start()
    assert bad.wait_for_primary(5)
    good = lab.node("good")
    good.start()
    until(lambda: len(bad.cluster.nodes) == 2)
    bad.stop()
    assert good.wait_for_primary(5)
    bad.join(10)
    assert not bad.is_alive()


def test_a_slow_stop_callback_delays_the_successor(lab):
    let_go = threading.Event()

    def slow():
        let_go.wait(20)
        lab.note("slow", "stop")()

    first = lab.node("slow", stop_primary_callback=slow)
    first.start()
    assert first.wait_for_primary(5)
    other = lab.node("other")
    other.start()
    until(lambda: len(first.cluster.nodes) == len(other.cluster.nodes) == 2)
    first.stop()
    assert not other.wait_for_primary(2)
    let_go.set()
    until(lambda: lab.count("start", "other"))
    kinds = [call for call in lab.calls if call != ("slow", "start")]
    assert kinds[:2] == [("slow", "stop"), ("other", "start")]


def test_s4_a_dead_decision_loop_falls_silent_and_stops(lab, monkeypatch, caplog):
    (control,) = lab.started("a")

    def broken(now, *events):
        raise RuntimeError("a trap")

    with caplog.at_level(logging.CRITICAL, "cluster"):
        monkeypatch.setattr(control._runtime.core, "step", broken)
        until(lambda: not control.is_alive())
        until(lambda: "falls silent" in caplog.text)
    assert not control.is_primary
    until(lambda: lab.calls == [("a", "start"), ("a", "stop")])
    until(lambda: our_threads() == [])


# ---- views


def test_the_views_show_who_is_there(lab):
    controls = lab.started("a", "b", own_version="1.2")
    primary = next(c for c in controls if c.is_primary)
    other = next(c for c in controls if c is not primary)
    until(lambda: all(n.is_active for n in other.cluster.nodes.values()))
    until(lambda: other.cluster.primary_node is not None)
    seen = other.cluster
    assert sorted(seen.nodes) == ["a", "b"] and seen.dead_nodes == []
    assert seen.primary_node.name == primary.node_name
    assert seen.own_node.name == other.node_name and seen.own_node.last_hb is None
    assert seen.oldest_node.name in ("a", "b")
    assert seen.version == other.cluster_version == "1.2"
    node = seen.nodes[primary.node_name]
    assert node.join_timestamp.utcoffset() == timedelta(0)
    assert node.ip == "127.0.0.1" and node.port > 0 and not node.is_self and node.id
    until(lambda: other.cluster.nodes[primary.node_name].last_hb is not None)


def test_status_is_json_and_says_in_plain_words_what_is(lab):
    control = lab.node("a")
    assert json.loads(json.dumps(control.status()))["why"] == "not started"
    controls = lab.started("b", "c")
    for c in controls:
        until(lambda: c.status()["primary"])
        status = json.loads(json.dumps(c.status()))
        expected = "it is the primary" if c.is_primary else "is the primary"
        assert expected in status["why"] and status["why_none"] is None
        assert status["storage"] == "ok" and len(status["members"]) == 2
        assert "%s:" % "127.0.0.1" in status["address"] and status["since"] >= 0


def test_a_wildcard_host_advertises_a_real_address(lab):
    (control,) = lab.started("a", host_name="0.0.0.0")
    assert control.cluster.own_node.ip != "0.0.0.0"


def test_ipv6_works(lab):
    try:
        free_port(socket.AF_INET6, "::1")
    except OSError:
        pytest.skip("no IPv6 here")
    a, b = lab.started("a", "b", host_name="::1")
    until(lambda: all(n.is_active for n in a.cluster.nodes.values()))
    assert a.cluster.own_node.ip == "::1"


def link_local():
    """A link-local address of this machine, with its scope."""
    try:
        with open("/proc/net/if_inet6") as file:
            for line in file:
                digits, _, _, scope, flags, name = line.split()
                if scope == "20" and not int(flags, 16) & 0x40:  # tentative
                    groups = [digits[i : i + 4] for i in range(0, 32, 4)]
                    return "%s%%%s" % (":".join(groups), name)
    except OSError:
        pass
    return pytest.skip("no link-local address here")


def test_link_local_addresses_work_through_the_link_that_was_bound(lab):
    host = link_local()
    a, b = lab.started("a", "b", host_name=host)
    until(lambda: all(n.is_active for n in a.cluster.nodes.values()))
    assert a.cluster.own_node.ip.startswith("fe80:")
    # the same address on another link is another node's: binding it proves nothing
    assert a._runtime.core.record.process.network_namespace == ""


@pytest.fixture
def lookups(monkeypatch):
    """Which thread has asked for which host."""
    asked, original = [], socket.getaddrinfo

    def getaddrinfo(host, *arguments, **keywords):
        host = os.fsdecode(host)
        asked.append((threading.current_thread().name, host))
        address = {"a.example": "127.0.0.1"}.get(host, host)
        return original(address, *arguments, **keywords)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return asked


def test_a_name_to_advertise_is_looked_up_once_and_by_the_caller(lab, lookups):
    controls = lab.started("a", "b", advertise_host="a.example")
    until(lambda: all(n.is_active for n in controls[0].cluster.nodes.values()))
    assert {n.ip for n in controls[0].cluster.nodes.values()} == {"127.0.0.1"}
    caller = threading.current_thread().name
    assert lookups.count((caller, "a.example")) == 2
    assert {thread for thread, _ in lookups} == {caller}


def test_a_name_to_advertise_that_is_none_is_an_error_and_starts_nothing(lab):
    control = lab.node("a", advertise_host="nothing.invalid")
    with pytest.raises(cluster.ClusterError, match="advertise_host 'nothing.invalid'"):
        control.start()
    assert our_threads() == [] and not control.is_alive()


@pytest.mark.parametrize(
    "host", ["evil.example", "<broadcast>", "fe80::1%eth0", "1", "localhost", "::"]
)
def test_a_host_of_a_record_that_is_no_numeric_address_is_never_looked_up(host):
    sent = []
    sock = cluster._Socket("127.0.0.1", 0)
    real, sock._socket = sock._socket, FakeSocket(sent)
    try:
        sock.send(b"x", (host, 5))
        assert sent == [] and sock.route_to(host) is None
        sock.send(b"x", ("127.0.0.1", 5))
        assert sent == [("127.0.0.1", 5)]
    finally:
        real.close()


class FakeSocket:
    def __init__(self, sent):
        self.sendto = lambda data, address: sent.append(address)


def test_several_clusters_live_in_one_process_and_folder(lab):
    one = lab.node("n")
    two = ClusterControl(
        "other", "127.0.0.1", "n", storage_backend=SharedFsStorageBackend(lab.path)
    )
    lab.controls.append(two)
    for control in (one, two):
        control.start()
    assert one.wait_for_primary(5) and two.wait_for_primary(5)


# ---- the process


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # 3.12: fork with threads
def test_a_forked_child_is_never_primary_and_harms_nothing(lab):
    (control,) = lab.started("a")
    term = control.term
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            control.stop()
            control.join(1)
            leave_cluster(control)
            read = (control.is_primary, control.term, control.is_alive())
            blank = control.cluster.nodes == {} and not control.wait_for_primary(0.1)
            try:
                control.start()
            except RuntimeError:
                code = 0 if read == (False, 0, False) and blank else 2
        finally:
            os._exit(code)
    assert os.waitpid(pid, 0)[1] == 0
    assert control.is_primary and control.term == term
    other = lab.node("b")
    other.start()
    until(lambda: len(control.cluster.nodes) == 2 and control.term == term)
    assert lab.calls == [("a", "start")]


FORGETFUL = """
import cluster, threading
begun = threading.Event()
control = cluster.ClusterControl(
    "lab", "127.0.0.1", "a", start_primary_callback=begun.set,
    stop_primary_callback=lambda: print("stop", flush=True),
    storage_backend=cluster.SharedFsStorageBackend(%r))
control.start()
assert begun.wait(10)
"""


def test_a_program_that_forgets_stop_exits_and_releases(lab):
    began = time.monotonic()
    done = run_python(FORGETFUL % lab.path, "-X", "dev", "-W", "error")
    assert (done.returncode, done.stdout, done.stderr) == (0, "stop\n", "")
    assert time.monotonic() - began < 10 and lab.records() == []


HANGING = """
import logging, os, sys, threading, time
import cluster

class Hanging(cluster.SharedFsStorageBackend):
    hangs = ()

hung, begun = threading.Event(), threading.Event()

def hanging(name):
    def method(self, *arguments):
        if name in self.hangs:
            hung.set()
            threading.Event().wait()
        return getattr(cluster.SharedFsStorageBackend, name)(self, *arguments)
    return method

for name in ("read", "write_node", "remove_node", "swap_lease"):
    setattr(Hanging, name, hanging(name))

def stop():
    time.sleep(1.5)  # longer than a read may keep a renewal waiting
    print("stop", flush=True)

logging.basicConfig(level=logging.CRITICAL)
control = cluster.ClusterControl(
    "lab", "127.0.0.1", "a", check_interval=0.2, start_primary_callback=begun.set,
    stop_primary_callback=stop, storage_backend=Hanging(sys.argv[1]))
control.start()
assert begun.wait(10)
Hanging.hangs = sys.argv[2:]
assert hung.wait(10)
print(time.time(), flush=True)
"""
def pythons():
    """One interpreter of each version from 3.7 on that pyenv has, and our own."""
    root = os.environ.get("PYENV_ROOT", os.path.expanduser("~/.pyenv"))
    found = {sys.version_info[:2]: sys.executable}
    for path in glob.glob(os.path.join(root, "versions", "3.*", "bin", "python")):
        version = tuple(map(int, path.split(os.sep)[-3].split(".")[:2]))
        if version >= (3, 7):
            found.setdefault(version, path)
    return found


@pytest.mark.parametrize("hangs", [["read"], ["read", "write_node", "swap_lease"]], ids=len)
@pytest.mark.skipif(os.name != "posix", reason="needs a POSIX shell")
def test_a_program_whose_storage_hangs_ends_two_seconds_after_its_last_line(lab, hangs):
    running = {
        version: start_python(HANGING, ["-B"], [lab.path + str(version)] + hangs, path)
        for version, path in pythons().items()
    }
    try:
        for version, process in running.items():
            out, errors = process.communicate(timeout=30)
            began, word, ended = out.split()
            assert (version, process.returncode, errors) == (version, 0, "")
            # after the stop callback of 1.5 s there was nothing but the wait
            assert word == "stop" and float(ended) - float(began) < 2 + 3
    finally:
        for process in running.values():
            process.kill()
            process.wait()
            process.stdout.close()
            process.stderr.close()


def start_python(code, options, arguments, python):
    """Its last word is the time at which it had ended."""
    words = [python] + options + ["-c", code] + arguments
    command = " ".join(map(shlex.quote, words)) + " && date +%s.%N"
    return subprocess.Popen(
        ["sh", "-c", command], env=dict(os.environ, PYTHONPATH=ROOT),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, universal_newlines=True,
    )  # fmt: skip


def test_a_storage_thread_that_cannot_be_started_is_a_failing_storage(
    lab, monkeypatch, caplog
):
    """As on 3.12 while the interpreter ends, or where a limit on threads is reached."""
    (control,) = lab.started("a", hb_interval=1, hb_timeout=5)
    storage, original = control.storage_backend, threading.Thread.start

    def refused(thread):
        if thread.name in ("cluster-maintenance", "cluster-leave"):
            raise RuntimeError("can't create new thread at interpreter shutdown")
        original(thread)

    def read(fresh=False):  # until then renewals wait for a thread of their own
        storage.let_go.wait(60)
        return SharedFsStorageBackend.read(storage, fresh)

    storage.read = read
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refused)
        until(lambda: "create new thread" in control.status()["storage"])
    storage.let_go.set()
    until(lambda: control.status()["storage"] == "ok")
    assert control.is_primary and "falls silent" not in caplog.text
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refused)
        cluster._remove_record(control, control._runtime.core.record, 1)
    assert "its record stays behind" in caplog.text


def test_a_clean_run_warns_of_nothing(lab):
    code = (
        FORGETFUL + "control.stop(); control.join(10)\ncluster.leave_cluster(control)"
    )
    done = run_python(code % lab.path, "-X", "dev", "-W", "error")
    assert (done.returncode, done.stderr) == (0, "")


HEAVY = """asyncio concurrent ctypes datetime email hashlib hmac http inspect
    multiprocessing pathlib pickle random shutil sqlite3 ssl subprocess tempfile
    typing_extensions unittest urllib uuid xml zipfile""".split()


def test_the_import_brings_in_no_heavy_module():
    code = "import sys; import cluster; print(*sys.modules)"
    loaded = set(run_python(code, "-S").stdout.split())
    assert "cluster" in loaded and loaded & set(HEAVY) == set()


def test_the_import_takes_a_moment(tmp_path):
    shutil.copy(cluster.__file__, str(tmp_path))  # where its bytecode can be kept

    def took(code):
        began = time.perf_counter()
        assert run_python(code, path=tmp_path).returncode == 0
        return time.perf_counter() - began

    took("import cluster")
    pairs = [(took("import cluster"), took("pass")) for _ in range(15)]
    cost = statistics.median(full - bare for full, bare in pairs)
    print("importing cluster: %.0f ms more than bare Python" % (cost * 1000))
    assert cost < 0.5  # 60 ms are meant; the machine may have better things to do


def readme_programs():
    with open(os.path.join(ROOT, "README.md"), encoding="utf-8") as file:
        return re.findall(r"^```python\n(.*?)^```", file.read(), re.S | re.M)


@pytest.mark.parametrize("number", range(len(readme_programs())))
def test_a_program_of_the_readme_runs_and_warns_of_nothing(tmp_path, number):
    program = readme_programs()[number]
    done = run_python(program, "-X", "dev", "-W", "error", cwd=str(tmp_path))
    assert (done.returncode, done.stderr) == (0, "")


# ---- the documentation


def undocumented(thing):
    """Names of public methods, properties and attributes without a docstring.

    An attribute has one as the string that follows it, or, where it is a setting
    of the constructor, in the list of arguments.
    """
    documented, attributes = set(), set()
    tree = ast.parse(textwrap.dedent(inspect.getsource(thing)))
    for block in ast.walk(tree):
        body = getattr(block, "body", None)
        for node, after in zip(body, body[1:] + [None]) if isinstance(body, list) else ():
            for name in attribute_names(node, block):
                attributes.add(name)
                text = type(getattr(after, "value", None)).__name__
                if isinstance(after, ast.Expr) and text in ("Constant", "Str"):
                    documented.add(name)
    arguments = re.findall(r"^ +(\w+): ", thing.__doc__ or "", re.M)
    for name, value in vars(thing).items():
        function = getattr(value, "fget", getattr(value, "__func__", value))
        if name[0] != "_" and inspect.isfunction(function):
            attributes.add(name)
            if inspect.getdoc(getattr(thing, name)):
                documented.add(name)
    inherited = {n for n in attributes for b in thing.__mro__[1:] if hasattr(b, n)}
    return sorted(attributes - documented - inherited - set(arguments))


def attribute_names(node, block):
    """What this statement makes a public attribute of the class or its objects."""
    targets = getattr(node, "targets", [getattr(node, "target", None)])
    for target in targets if isinstance(node, (ast.Assign, ast.AnnAssign)) else ():
        of_class = isinstance(block, ast.ClassDef) and isinstance(target, ast.Name)
        of_object = isinstance(target, ast.Attribute)
        name = target.id if of_class else target.attr if of_object else "_"
        if name[0] != "_":
            yield name


@pytest.mark.parametrize("name", cluster.__all__)
def test_every_public_name_is_documented(name):
    thing = getattr(cluster, name)
    assert thing.__doc__ and not thing.__doc__.startswith(name + "(")
    if inspect.isclass(thing):
        assert undocumented(thing) == []


def test_the_search_for_undocumented_names_bites():
    assert undocumented(Bare) == ["field", "method", "value"]


class Bare:
    """Has an Args section.

    Args:
        given: this one.
    """

    field: int = 0
    told: int = 0
    """What it is."""

    def __init__(self, given):
        self.given = given
        self.value = 1
        self.said = 2
        """What it is."""

    def method(self):
        pass


@pytest.mark.parametrize("timeout", [None, "5", -1, float("inf")])
def test_a_time_limit_that_is_none_is_named_and_the_node_runs_on(lab, timeout):
    control = lab.started("a")[0]
    with pytest.raises(ValueError, match="timeout must be 0 or more seconds"):
        join_cluster(lab.node("b"), timeout)
    for call in (control.pause, control.resume):
        with pytest.raises(ValueError, match="timeout must be 0 or more seconds"):
            call(timeout)
    with pytest.raises(ValueError, match="timeout must be 0 or more seconds"):
        leave_cluster(control, timeout)
    assert control.is_primary and control.is_alive()
