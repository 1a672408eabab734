"""What applications, their logging and their backends may do to a running node."""

import errno
import logging
import os
import socket
import sys
import threading
import time

import pytest

import cluster
from cluster import (
    ClusterControl,
    ClusterError,
    SharedFsStorageBackend,
    StorageError,
    join_cluster,
    leave_cluster,
)
from test_control import lab, our_threads, run_python, until

__all__ = ["lab"]  # the fixture


# ---- an interrupted reader


def test_a_signal_handler_may_stop_whatever_it_interrupts(lab, monkeypatch):
    (control,) = lab.started("a")
    build, handled = cluster._build_cluster, []

    def interrupted(runtime):
        if not handled and threading.current_thread() is threading.main_thread():
            handled.append(control.is_primary)
            control.stop()  # as a handler that comes right here would do
            control.join(10)
        return build(runtime)

    monkeypatch.setattr(cluster, "_build_cluster", interrupted)
    assert control.status()["primary"] is None
    assert handled == [True] and not control.is_alive() and not our_threads()
    assert lab.calls == [("a", "start"), ("a", "stop")]


@pytest.mark.skipif(os.name != "posix", reason="signals are for POSIX")
def test_a_program_that_looks_all_the_time_ends_by_its_signal_handler(tmp_path):
    code = """if True:
        import os, signal, threading, time
        import cluster
        control = cluster.ClusterControl(
            "lab", "127.0.0.1", "a",
            storage_backend=cluster.SharedFsStorageBackend(%r),
            stop_primary_callback=lambda: print("stopped", flush=True),
        )
        def handler(*ignored):
            control.stop()
            control.join()
            os._exit(7)
        signal.signal(signal.SIGTERM, handler)
        control.start()
        control.wait_for_primary(10)
        kill = lambda: os.kill(os.getpid(), signal.SIGTERM)
        threading.Timer(0.3, kill).start()
        while True:
            control.status()
    """
    done = run_python(code % str(tmp_path))
    assert (done.returncode, done.stdout) == (7, "stopped\n"), done.stderr


# ---- the application's logging


class Handler(logging.Handler):
    """Does something else than to log, while it is asked to."""

    act = None

    def emit(self, record):
        if self.act is not None:
            self.act()


@pytest.fixture
def handler():
    handler = Handler()
    level = cluster.log.level
    cluster.log.addHandler(handler)
    cluster.log.setLevel(logging.INFO)
    yield handler
    handler.act = None
    cluster.log.removeHandler(handler)
    cluster.log.setLevel(level)


def test_logging_that_blocks_delays_no_stop_callback(lab, handler):
    (control,) = lab.started("a")
    release = threading.Event()
    handler.act = lambda: release.wait(30)
    try:
        began = time.monotonic()
        lab.storages[0].mode = "raise"
        until(lambda: lab.count("stop"), 3 * control.timings.lease_duration)
        control.stop()
        control.join(20)
        assert not control.is_alive() and time.monotonic() - began < 15
    finally:
        release.set()


def test_logging_that_raises_ends_no_thread(lab, handler):
    def failing():
        raise ValueError("the log server is gone")

    def starting():
        lab.note("a", "start")()
        handler.act = failing
        raise ValueError("told to fail")

    control = lab.node("a", start_primary_callback=starting)
    control.start()
    until(lambda: lab.count("stop"))
    until(lambda: lab.count("start") == 2)  # it tries again: all threads live
    control.stop()
    control.join(10)
    assert not our_threads() and lab.count("stop") == 2


# ---- a dead decision loop


def kill_loop(control, monkeypatch):
    def dead(*arguments):
        raise ZeroDivisionError("a dead decision loop")

    monkeypatch.setattr(control._runtime.core, "step", dead)
    control._runtime._wake()


def test_a_loop_that_dies_while_the_stop_callback_runs_calls_it_no_more(
    lab, monkeypatch
):
    release = threading.Event()

    def stopping():
        lab.note("a", "stop")()
        release.wait(10)

    (control,) = lab.started("a", stop_primary_callback=stopping)
    control.stop()
    until(lambda: lab.count("stop"))
    kill_loop(control, monkeypatch)
    until(lambda: control._runtime.callbacks._closing)  # by the dead loop
    release.set()
    control.join(10)
    assert lab.calls == [("a", "start"), ("a", "stop")] and not our_threads()


def test_a_loop_that_dies_before_the_start_callback_calls_no_stop(lab, monkeypatch):
    release, news = threading.Event(), threading.Event()

    def joined(node):
        news.set()
        release.wait(10)

    (first,) = lab.started("a")
    second = lab.node("b", node_joined_callback=joined)
    second.start()
    assert news.wait(10)
    until(lambda: second.cluster.own_node and second.cluster.own_node.is_active)
    first.step_down()
    until(lambda: second.is_primary)
    kill_loop(second, monkeypatch)
    until(lambda: not second.is_primary)
    release.set()
    second.join(10)
    assert not lab.count("start", "b") and not lab.count("stop", "b")
    assert "its lease has run out" in second.status()["why"]


# ---- joining


@pytest.mark.parametrize("after_a_read", [False, True])
def test_a_join_that_landed_and_failed_leaves_no_record(lab, monkeypatch, after_a_read):
    storage = lab.storage()
    if after_a_read:  # what its time-out finds right after a read that has worked
        monkeypatch.setattr(cluster.Core, "storage_state", lambda core: "ok")

    def write_node(record, write=storage.write_node):
        write(record)
        raise StorageError("the reply was lost")

    storage.write_node = write_node
    control = lab.node("a", storage_backend=storage)
    with pytest.raises(StorageError, match="the reply was lost"):
        join_cluster(control, timeout=2)
    assert not control.is_alive()
    until(lambda: not our_threads())
    assert not lab.records()


def test_a_join_that_waits_longer_goes_on_when_another_gives_up(lab):
    control = lab.node("a")
    lab.storages[0].mode = "raise"
    joined = threading.Thread(target=join_cluster, args=(control, 30))
    joined.start()
    until(lambda: control._runtime and control._runtime.joining)
    with pytest.raises(StorageError, match="it goes on trying"):
        join_cluster(control, timeout=0.2)
    lab.storages[0].mode = "ok"
    joined.join(10)
    assert not joined.is_alive() and control.cluster.own_node is not None


def test_stop_ends_a_join_and_says_so(lab):
    control = lab.node("a")
    lab.storages[0].mode = "raise"
    threading.Timer(0.2, control.stop).start()
    with pytest.raises(ClusterError, match="was stopped while it joined"):
        join_cluster(control, timeout=10)


def test_stop_during_the_launch_is_heard(lab, monkeypatch):
    """Binding a port that is busy takes up to a second: a handler may come then."""
    control = lab.node("a")

    class Socket(cluster._Socket):
        def __init__(self, *arguments):
            control.stop()
            super().__init__(*arguments)

    monkeypatch.setattr(cluster, "_Socket", Socket)
    control.start()
    control.join(10)
    assert not control.is_alive() and not lab.records()
    with pytest.raises(RuntimeError, match="stopped"):
        control.start()


def test_a_node_that_was_sent_home_does_not_join_once_more(lab):
    old = lab.node("old", own_version="1.0")
    join_cluster(old)
    old.start()
    lab.started("new", own_version="1.1")
    until(lambda: not old.is_alive())
    assert lab.count("exit", "old") == 1
    with pytest.raises(RuntimeError, match="make a new one"):
        join_cluster(old)
    old.start()  # as in programs that join first: no error
    assert not old.is_alive() and old.status()["primary"] is None


def test_an_interrupt_while_it_joins_leaves_no_node_behind(lab, monkeypatch):
    def interrupted(control, timeout=10):
        control.start()
        raise KeyboardInterrupt

    control = lab.node("a")
    monkeypatch.setattr(cluster, "join_cluster", interrupted)
    with pytest.raises(KeyboardInterrupt):
        with control:
            raise AssertionError("never reached")
    control.join(10)
    assert not control.is_alive() and not lab.records()


def test_a_second_leave_does_nothing(lab):
    (control,) = lab.started("a")
    storage = lab.storages[0]
    storage.mode = "raise"
    control.stop()
    control.join(15)
    assert lab.records()
    storage.mode = "ok"
    leave_cluster(control)
    removed = []
    storage.remove_node = lambda *arguments: removed.append(arguments)
    leave_cluster(control)
    assert not lab.records() and not removed


# ---- backends


@pytest.mark.parametrize(
    "method, result",
    [("open", None), ("read", None), ("read", {}), ("next_join_number", None),
     ("next_join_number", "1"), ("swap_lease", None)],
)  # fmt: skip
def test_a_backend_that_returns_nonsense_is_a_failing_storage(lab, method, result):
    control = lab.node("a")
    calls = []
    setattr(lab.storages[0], method, lambda *a, **k: calls.append(a) or result)
    control.start()
    until(lambda: method in control.status()["storage"])
    assert "faulty storage backend" in control.status()["storage"]
    asked = len(calls)
    until(lambda: len(calls) > asked)  # it goes on trying, with a pause
    assert len(calls) < 20 and not control.is_primary
    delattr(lab.storages[0], method)
    until(lambda: control.is_primary)


def test_one_backend_serves_one_control(lab):
    (first,) = lab.started("a")
    second = lab.node("b", storage_backend=lab.storages[0])
    for call in (second.start, lambda: join_cluster(second)):
        with pytest.raises(RuntimeError, match="make one for each control"):
            call()
    assert first.is_primary and not second.is_alive()
    first.stop()
    first.join(10)
    second.start()
    until(lambda: second.is_primary)


def test_a_pause_that_nobody_waits_for_any_more_leaves_nothing_behind(lab):
    (control,) = lab.started("a")
    lab.storages[0].mode = "hang"
    for _ in range(3):
        with pytest.raises(StorageError, match="no answer within"):
            control.pause(timeout=0)
    assert not control._runtime.answers
    resumed = []

    def resume():
        try:
            control.resume(60)
        except StorageError as error:
            resumed.append(str(error))

    thread = threading.Thread(target=resume)
    thread.start()
    until(lambda: control._runtime.answers)
    control.stop()
    thread.join(20)
    assert len(resumed) == 1 and "this node has stopped" in resumed[0]


# ---- what the system lacks


def test_without_descriptors_a_node_keeps_its_address(lab, monkeypatch):
    monkeypatch.setattr(cluster, "_interface_addresses", lambda: iter(["10.1.2.3"]))
    monkeypatch.setattr(cluster._Socket, "route_to", lambda self, host: "10.1.2.3")
    (control,) = lab.started("a", host_name="0.0.0.0")
    assert control.cluster.own_node.ip == "10.1.2.3"
    looked = []

    def no_descriptor(self, host):
        looked.append(host)

    monkeypatch.setattr(cluster, "_interface_addresses", lambda: iter(()))
    monkeypatch.setattr(cluster._Socket, "route_to", no_descriptor)
    until(lambda: len(looked) > 6)
    assert control.cluster.own_node.ip == "10.1.2.3"


def test_interfaces_that_cannot_be_asked_are_none(monkeypatch):
    def no_descriptor(*arguments):
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(socket, "socket", no_descriptor)
    assert list(cluster._interface_addresses()) == []


@pytest.mark.skipif(sys.platform != "linux", reason="pidfds are Linux's")
def test_a_process_that_cannot_be_watched_costs_no_node(lab, monkeypatch):
    (first,) = lab.started("a")
    second = lab.node("b")
    second.start()
    runtime, refused = second._runtime, []
    # All are in one process, which nobody watches: as if they were not
    monkeypatch.setattr(runtime._coroner, "watch", lambda record: os.dup(0))

    def register(fileobj, *arguments):
        refused.append(fileobj)
        os.close(fileobj)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(runtime._selector, "register", register)
    third = lab.node("c")
    third.start()
    until(lambda: len(second.cluster.nodes) == 3 and refused)
    for control in (first, second, third):
        control.stop()
        control.join(10)
    assert not our_threads()


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere it waits for a client")
def test_a_health_port_that_takes_no_connection_is_closed_all_the_same(
    lab, monkeypatch
):
    (control,) = lab.started("a", health_port=0)

    def unreachable(*arguments, **keywords):
        raise OSError(errno.EHOSTUNREACH, "No route to host")

    monkeypatch.setattr(socket, "create_connection", unreachable)
    control.stop()
    control.join(10)
    assert not our_threads()


@pytest.mark.parametrize(
    "settings, words",
    [
        (dict(hb_interval=10**400), "hb_interval"),
        (dict(hb_missed_count=10**400), "hb_missed_count"),
        (dict(host_name=5), "host_name must be an address or a name, not 5"),
        (dict(health_host=""), "health_host must be an address or a name, not ''"),
        (dict(own_version="1" * 201), "own_version must be a text of 1 to 200 bytes"),
        (dict(own_version="\ud800"), "own_version"),
    ],
)
def test_settings_that_are_none_are_refused_by_name(tmp_path, settings, words):
    with pytest.raises(ValueError, match=words):
        storage = SharedFsStorageBackend(tmp_path)
        ClusterControl("lab", storage_backend=storage, **settings)


@pytest.mark.parametrize("call", [join_cluster, leave_cluster])
def test_a_time_limit_beyond_all_clocks_is_refused_before_anything_is_done(lab, call):
    control = lab.node("a")
    if call is leave_cluster:
        join_cluster(control)
    with pytest.raises(ValueError, match="timeout must be 0 or more seconds"):
        call(control, timeout=float(sys.maxsize))
    assert control.is_alive() == (call is leave_cluster)
