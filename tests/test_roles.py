"""Roles on real threads: metadata, priority, and who is to be the primary next."""

import json

import pytest

from cluster import ClusterControl, SharedFsStorageBackend
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
