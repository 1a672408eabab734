"""Roles on real threads: metadata, priority, and who is to be the primary next."""

import json
import logging
import threading

import pytest

import cluster
from cluster import ClusterControl, SharedFsStorageBackend, StorageError
from test_control import Lab, until


@pytest.fixture
def lab(tmp_path):
    lab = Lab(tmp_path)
    yield lab
    lab.close()


# ---- metadata


@pytest.mark.parametrize(
    "metadata, words",
    [
        ({"a": "x" * 1017}, ["1025 bytes", "1024"]),
        ({"\u20ac": "\u20ac" * 170}, ["1033 bytes", "1024"]),
        ({"a": {1, 2}}, ["JSON", "{1, 2}"]),
        ({1: 2}, ["JSON", "{1: 2}"]),
        ({"a": float("nan")}, ["JSON", "nan"]),
        (["a"], ["dict", "['a']"]),
        ("a", ["dict", "'a'"]),
    ],
    ids=lambda value: ascii(value)[:20],
)
def test_metadata_that_cannot_be_told_is_refused(tmp_path, metadata, words):
    storage = SharedFsStorageBackend(tmp_path)
    control = ClusterControl("lab", storage_backend=storage, metadata={"a": 1})
    for act in (
        lambda: ClusterControl("lab", storage_backend=storage, metadata=metadata),
        lambda: setattr(control, "metadata", metadata),
    ):
        with pytest.raises(ValueError) as caught:
            act()
        assert [word for word in words if word not in str(caught.value)] == []
    assert control.metadata == {"a": 1}


def test_metadata_is_seen_on_every_node_and_may_change_at_run_time(lab):
    a = lab.node("a", metadata={"site": "north"})
    b = lab.node("b", metadata={"site": "south", "disks": [1, 2.5, None]})
    for control in (a, b):
        control.start()
    for control in (a, b):
        until(lambda: len(control.cluster.nodes) == 2)
        assert control.cluster.nodes["a"].metadata == {"site": "north"}
        assert control.cluster.nodes["b"].metadata["disks"] == [1, 2.5, None]
    b.metadata = {"site": "east"}
    for control in (a, b):
        until(lambda: control.cluster.nodes["b"].metadata == {"site": "east"})
    assert b.metadata == {"site": "east"}
    b.metadata["site"] = "a copy"
    assert b.metadata == b.cluster.own_node.metadata == {"site": "east"}
    (member,) = [m for m in a.status()["members"] if m["name"] == "b"]
    assert json.loads(json.dumps(member))["metadata"] == {"site": "east"}


def test_metadata_given_before_the_start_is_what_is_told(lab):
    a = lab.node("a")
    a.metadata = {"given": "before"}
    a.start()
    until(lambda: a.is_primary)
    assert a.cluster.own_node.metadata == {"given": "before"}


# ---- priority


@pytest.mark.parametrize("priority", [1.0, "1", True, 2**31, (1, 2)])
def test_a_priority_that_is_none_is_refused(tmp_path, priority):
    storage = SharedFsStorageBackend(tmp_path)
    with pytest.raises(ValueError, match="priority"):
        ClusterControl("lab", storage_backend=storage, priority=priority)


def test_the_one_with_the_highest_priority_takes_over(lab):
    (a,) = lab.started("a")
    b, c, d = lab.node("b"), lab.node("c", priority=7), lab.node("d", priority=None)
    for control in (b, c, d):
        control.start()
    until(lambda: sum(n.is_active for n in a.cluster.nodes.values()) == 4)
    assert a.is_primary and a.cluster.nodes["c"].priority == 7
    a.stop()
    assert c.wait_for_primary(10)
    until(lambda: lab.count("start") == 2)


def test_where_nobody_may_be_primary_status_says_why(lab):
    a, b = lab.node("a", priority=None), lab.node("b", priority=None)
    for control in (a, b):
        control.start()
    for control in (a, b):
        until(lambda: len(control.cluster.nodes) == 2)
        until(lambda: "priority is None" in control.status()["why"])
        until(lambda: "all have the priority None" in control.status()["why_none"])
        assert not control.wait_for_primary(0.2)
    c = lab.node("c")
    c.start()
    assert c.wait_for_primary(10)
    until(lambda: a.status()["primary"] == "c")
    assert "never becomes primary" in a.status()["why"]


# ---- stepping down for somebody


def test_the_role_is_handed_to_whom_it_was_meant_for(lab):
    (a,) = lab.started("a")
    b, c, d = lab.node("b", priority=9), lab.node("c"), lab.node("d", priority=None)
    for control in (b, c, d):
        control.start()
    until(lambda: sum(n.is_active for n in a.cluster.nodes.values()) == 4)
    for name, why in (("a", "this node"), ("d", "None"), ("x", "no member")):
        with pytest.raises(ValueError) as caught:
            a.step_down(to=name)
        assert repr(name) in str(caught.value) and why in str(caught.value)
    assert a.is_primary and not b.step_down(to="c")
    until(lambda: a._runtime.core.no_successor("c") is None)
    assert a.step_down(to="c")
    assert c.wait_for_primary(10)
    until(lambda: lab.count("start") == 2)
    assert c.step_down()  # for anybody
    assert b.wait_for_primary(10)


# ---- pausing the cluster


def warnings(caplog, text):
    return [
        record.getMessage()
        for record in caplog.records
        if record.levelno == logging.WARNING and text in record.getMessage()
    ]


@pytest.mark.parametrize("who", ["primary", "member"])
def test_a_paused_cluster_elects_nobody_until_it_is_resumed(lab, caplog, who):
    controls = lab.started("a", "b", "c")
    primary = next(c for c in controls if c.is_primary)
    others = [c for c in controls if c is not primary]
    asked = primary if who == "primary" else others[0]
    asked.pause()
    assert asked.status()["paused"]
    asked.pause()  # again: nothing
    for control in controls:
        until(lambda: control.status()["paused"])
    assert primary.is_primary and primary.status()["why"] == "it is the primary"
    primary.stop()
    primary.join(10)
    for control in others:
        until(lambda: control.status()["primary"] is None)
        until(lambda: "until resume()" in control.status()["why"])
        until(lambda: "until resume()" in control.status()["why_none"])
        assert not control.wait_for_primary(0.5)
    until(lambda: len(warnings(caplog, "the cluster is paused")) == 3)
    others[1].resume()
    until(lambda: any(control.is_primary for control in others))
    for control in others:
        until(lambda: not control.status()["paused"])
    until(lambda: len(warnings(caplog, "the cluster is resumed")) == 2)


def test_pause_says_why_it_cannot(lab):
    a = lab.node("a", priority=None)
    with pytest.raises(RuntimeError, match="pause.*member"):
        a.pause()
    cluster.join_cluster(a)
    with pytest.raises(StorageError, match="resume.*there is no lease"):
        a.resume()
    assert a.status()["storage"] == "ok"
    a.storage_backend.mode = "raise"
    with pytest.raises(StorageError, match="pause.*the test says no.*unknown"):
        a.pause()
    a.storage_backend.mode = "hang"
    with pytest.raises(StorageError, match="pause.*no answer within 0.3 s.*unknown"):
        a.pause(timeout=0.3)


def test_pause_and_resume_from_many_threads_and_in_callbacks(lab):
    primary = lab.node("a", start_primary_callback=lambda: primary.pause())
    primary.start()
    until(lambda: primary.status()["paused"])
    other = lab.node("b")
    other.start()
    until(lambda: len(other.cluster.nodes) == 2)
    threads = [
        threading.Thread(target=act)
        for act in [primary.resume, other.resume, other.pause, primary.pause] * 3
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()
    other.resume()
    assert primary.is_primary and lab.count("start") == 0
    assert not primary.storage_backend.read(fresh=True).lease.paused


# ---- without a node, as a command line does it


def test_the_lease_is_edited_without_a_node(lab):
    backend = lab.storage()
    backend.open("lab")
    for act in (
        lambda: cluster._set_paused(backend, True),
        lambda: cluster._ask_step_down(backend),
    ):
        with pytest.raises(RuntimeError, match="no lease"):
            act()
    (a,) = lab.started("a")
    b, c = lab.node("b"), lab.node("c", priority=None)
    for control in (b, c):
        control.start()
    until(lambda: sum(n.is_active for n in a.cluster.nodes.values()) == 3)
    for name, why in (("a", "is the primary"), ("c", "None"), ("x", "no member")):
        with pytest.raises(ValueError) as caught:
            cluster._ask_step_down(backend, name)
        assert repr(name) in str(caught.value) and why in str(caught.value)
    cluster._set_paused(backend, True)
    until(lambda: a.status()["paused"] and b.status()["paused"])
    with pytest.raises(ValueError, match="paused"):
        cluster._ask_step_down(backend, "b")
    cluster._set_paused(backend, False)
    until(lambda: not a.status()["paused"])
    assert a.is_primary and lab.count("start") == 1
    until(lambda: a._runtime.core.no_successor("b") is None)
    cluster._ask_step_down(backend, "b")
    assert b.wait_for_primary(10)
    b.stop()
    b.join(10)
    a.stop()
    a.join(10)
    with pytest.raises(RuntimeError, match="released"):
        cluster._ask_step_down(backend)
