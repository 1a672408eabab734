"""Hostile packets, names and files: what a stranger can do, and what nobody can.

A *blind* sender knows the address alone. An *observer* sees the packets too, and so
knows the cluster's tag and every incarnation; without a secret it can forge.
"""

import collections
import json
import logging
import os
import random
import socket
import stat
import subprocess
import sys
import threading
import time

import pytest

import cluster
from cluster import ClusterControl, Heartbeat, SharedFsStorageBackend
from node_program import Node, until

FAST = dict(hb_interval=0.1, hb_timeout=0.6, check_interval=0.2, hb_missed_count=2)
SECRET = "a shared secret"


class Lab:
    """Nodes in this process, in one folder, and what their callbacks said."""

    def __init__(self, path):
        self.path = str(path)
        self.controls = []
        self.calls = []

    def node(self, name, cluster_name="lab", **settings):
        keywords = dict(FAST, host_name="127.0.0.1", same_host_proof=False)
        for kind in ("start", "stop"):
            note = lambda kind=kind: self.calls.append((name, kind))  # noqa: E731
            keywords[kind + "_primary_callback"] = note
        keywords["storage_backend"] = SharedFsStorageBackend(self.path)
        keywords.update(settings)
        control = ClusterControl(cluster_name, node_name=name, **keywords)
        self.controls.append(control)
        control.start()
        return control

    def started(self, *names, **settings):
        """Nodes that are all active, the first of them the primary."""
        first = self.node(names[0], **settings)
        assert first.wait_for_primary(10)
        rest = [self.node(name, **settings) for name in names[1:]]
        until(lambda: all(all_active(c, names) for c in [first] + rest))
        return [first] + rest

    def close(self):
        for control in self.controls:
            control.stop()
        for control in self.controls:
            control.join(10)


@pytest.fixture
def lab(tmp_path):
    made = Lab(tmp_path)
    yield made
    made.close()


def all_active(control, names):
    nodes = control.cluster.nodes
    return sorted(nodes) == sorted(names) and all(
        node.is_active and (node.is_self or node.last_hb) for node in nodes.values()
    )


def address(control):
    return control._runtime.core.record.address


def incarnation(control):
    return control._runtime.core.record.incarnation


def tag_of(control):
    return cluster._cluster_tag("lab", control._runtime.core.cluster_id)


def received(control, kind):
    return control.status()["packets"].get(kind, 0)


def record_packets(control):
    """From now on every packet that comes in at this node, as it is."""
    sock, packets = control._runtime._socket, []
    receive = sock.receive

    def recording_receive():
        found = receive()
        if found is not None:
            packets.append(found[0])
        return found

    sock.receive = recording_receive
    return packets


class Sender:
    """Sends what `packets()` gives, again and again, until it is closed."""

    def __init__(self, target, packets, pause=0.002):
        self.target, self.packets, self.pause = target, packets, pause
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.closed = threading.Event()
        self.thread = threading.Thread(target=self.run, daemon=True)

    def run(self):
        while not self.closed.is_set():
            for packet in list(self.packets()):
                self.socket.sendto(packet, self.target)
                if self.closed.wait(self.pause):
                    return

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *exc_info):
        self.closed.set()
        self.thread.join()
        self.socket.close()


class Observer:
    """Forges packets of `sender` for a node whose packets it sees."""

    def __init__(self, control, sender, secret=b"", **fields):
        self.control, self.sender, self.secret = control, sender, secret
        self.fields = fields
        self.sent = 10**15  # higher than any that the true sender has used

    def packets(self):
        core = self.control._runtime.core
        self.sent += 1
        lease = core.lease or (0, 0, "", False, False)
        known = dict(zip(("term", "counter", "holder", "started", "released"), lease))
        forged = Heartbeat(
            self.sender, incarnation(self.control), self.sent, core._sent
        )._replace(**dict(known, **self.fields))
        yield cluster.encode_heartbeat(forged, tag_of(self.control), self.secret)


# ---- replayed


@pytest.mark.processes
def test_replaying_the_packets_of_a_dead_node_does_not_keep_it_alive(lab):
    dead = Node("dead", lab.path, secret=SECRET, same_host_proof=False, **FAST)
    try:
        until(lambda: dead.is_primary())
        survivor = lab.node("survivor", secret=SECRET)
        until(lambda: all_active(survivor, ["dead", "survivor"]))
        packets = record_packets(survivor)
        until(lambda: len(packets) > 20)
        dead.kill()
        killed_at, seen = time.monotonic(), packets[:]
        with Sender(address(survivor), lambda: seen):
            until(lambda: survivor.is_primary)
            took = time.monotonic() - killed_at
            until(lambda: "dead" not in survivor.cluster.nodes)
            until(lambda: received(survivor, cluster.REPEATED) > 50)
    finally:
        dead.close()
    assert took < survivor.timings.detection_time + 3


@pytest.mark.processes
def test_packets_that_were_held_back_do_not_keep_a_dead_node_alive(lab):
    settings = dict(FAST, hb_interval=0.05, secret=SECRET)
    dead = Node("dead", lab.path, same_host_proof=False, **settings)
    try:
        until(lambda: dead.is_primary())
        survivor = lab.node("survivor", **settings)
        until(lambda: all_active(survivor, ["dead", "survivor"]))
        sock, held = survivor._runtime._socket, []
        receive = sock.receive

        def hold_back():
            for data, _ in iter(receive, None):
                held.append(data)

        sock.receive = hold_back
        until(lambda: len(held) > 60)
        dead.kill()
        del sock.receive
        packets = iter(held[:])
        with Sender(address(survivor), lambda: [next(packets)], 0.1):
            until(lambda: survivor.is_primary)
        assert next(packets, None) is not None  # while there were more of them
    finally:
        dead.close()


@pytest.mark.parametrize("restarted", ["sender", "receiver"])
def test_what_was_sent_before_a_restart_is_refused_after_it(lab, restarted):
    a, b = lab.started("a", "b", secret=SECRET)
    c = lab.node("c", secret=SECRET)
    until(lambda: all_active(a, "abc"))
    packets = record_packets(c)
    until(lambda: len(packets) > 40)
    seen = packets[:]
    former = b if restarted == "sender" else c
    port, name = address(former)[1], former.node_name
    former.stop()
    former.join(10)
    again = lab.node(name, secret=SECRET, hb_port=port)
    target = c if restarted == "sender" else again
    until(lambda: all_active(a, "abc") and all_active(target, "abc"))
    kind = cluster.REPEATED if restarted == "sender" else cluster.NOT_FOR_US
    before = received(target, kind)
    with Sender(address(target), lambda: seen):
        until(lambda: received(target, kind) > before + 100)
        views = [control.cluster for control in (a, target)]
    for view in views:
        assert sorted(view.nodes) == ["a", "b", "c"] and view.dead_nodes == []
        assert all(node.is_active for node in view.nodes.values())
    assert incarnation(former) not in [n.id for n in views[1].nodes.values()]
    assert a.is_primary and [k for n, k in lab.calls if n == "a"] == ["start"]


# ---- forged: README, "Security"


@pytest.mark.parametrize("secret", [None, SECRET])
def test_only_without_a_secret_can_an_observer_keep_a_dead_node_alive(lab, secret):
    a, b = lab.started("a", "b", secret=secret)
    forger = Observer(b, incarnation(a))
    with Sender(address(b), forger.packets, 0.02):
        a._runtime._abandoned = True  # its threads end, and it tells nobody
        a._runtime._wake()
        if secret:
            until(lambda: b.is_primary)
        else:
            end = time.monotonic() + 2 * b.timings.detection_time
            until(lambda: time.monotonic() > end)
            assert "a" not in [node.name for node in b.cluster.dead_nodes]
    assert received(b, "without a secret") > 0 if secret else True


@pytest.mark.parametrize("secret", [None, SECRET])
def test_only_without_a_secret_can_an_observer_depose_the_primary(lab, secret):
    a, b = lab.started("a", "b", secret=secret)
    term = a.term
    forger = Observer(b, incarnation(a), stopped=term)  # "a has stopped"
    with Sender(address(b), forger.packets, 0.02):
        if secret:
            until(lambda: received(b, "without a secret") > 50)
        else:
            until(lambda: b.is_primary)  # while a, perhaps, is it still
            until(lambda: not a.is_primary)
    assert a.term == (term if secret else 0)
    assert lab.calls[:1] == [("a", "start")]


@pytest.mark.parametrize("forged", [b"another secret", b""])
@pytest.mark.parametrize("fields", [
    dict(leaving=True), dict(term=2**62, counter=1, holder="f" * 16, started=True),
    dict(released=True, counter=2**62), dict(lost=1, running=2**62), dict(answer=True),
], ids=lambda fields: "-".join(fields))  # fmt: skip
def test_with_a_secret_what_is_forged_changes_nothing(lab, fields, forged):
    a, b = lab.started("a", "b", secret=SECRET)
    kind = "with a wrong secret" if forged else "without a secret"
    state = [(c.cluster.nodes.keys(), c._runtime.core._term()) for c in (a, b)]
    for target, sender in ((a, b), (b, a), (b, None)):
        sender = incarnation(sender) if sender else "e" * 16
        forger = Observer(target, sender, forged, **fields)
        before = received(target, kind)
        with Sender(address(target), forger.packets):
            until(lambda: received(target, kind) > before + 50)
    assert [(c.cluster.nodes.keys(), c._runtime.core._term()) for c in (a, b)] == state
    assert lab.calls == [("a", "start")] and a.is_primary


@pytest.mark.parametrize("secret", [None, SECRET])
def test_a_blind_sender_changes_nothing(lab, secret):
    """It knows the name of the cluster and of its nodes, but sees no packet."""
    a, b = lab.started("a", "b", secret=secret)
    guess = Heartbeat("a" * 16, "b" * 16, 1, 1, 2**62, 1, "a" * 16, stopped=2**62)
    guessed = cluster.encode_heartbeat(guess, cluster._cluster_tag("lab", "c" * 16))
    known = guessed[:4] + tag_of(b) + guessed[12:]
    with Sender(address(b), lambda: [guessed, known, b"", os.urandom(600)]):
        until(lambda: received(b, "of another cluster") > 50)
        until(lambda: received(b, cluster.NOT_FOR_US) > 50)
    assert a.is_primary and lab.calls == [("a", "start")]


def test_each_kind_is_counted_and_reported_once_a_minute(lab, caplog):
    a, b = lab.started("a", "b", secret=SECRET)
    whole = cluster.encode_heartbeat(
        Heartbeat(incarnation(a), incarnation(b), 1, 1), tag_of(b), b"wrong"
    )
    kinds = {
        "no heartbeat": b"GET / HTTP/1.1\r\n",
        "of another format": whole[:3] + b"\7" + whole[4:],
        "of another cluster": whole[:4] + b"\7" + whole[5:],
        "with a wrong secret": whole,
        "without a secret": whole[:20] + bytes(16) + whole[36:],
        "too long": whole * 9,
    }
    with caplog.at_level(logging.WARNING, "cluster"):
        with Sender(address(b), lambda: list(kinds.values())):
            for kind in kinds:
                until(lambda: received(b, kind) > 30)
    b.stop()
    b.join(10)  # all is written by then
    said = [r.getMessage() for r in caplog.records if "packets" in r.getMessage()]
    assert len(said) == len(kinds)
    for kind in kinds:
        (line,) = [line for line in said if "packets (%s):" % kind in line]
        assert "127.0.0.1:" in line
    json.dumps(b.status())


# ---- a secret for a running cluster


def test_a_running_cluster_gets_a_secret_node_by_node(lab):
    names = ["a", "b", "c"]
    nodes = lab.started(*names)
    for settings in (dict(secret=SECRET, secret_required=False), dict(secret=SECRET)):
        for number, name in enumerate(names):
            nodes[number].stop()
            nodes[number].join(10)
            nodes[number] = lab.node(name, **settings)
            until(lambda: all(all_active(node, names) for node in nodes))
            until(lambda: sum(node.is_primary for node in nodes) == 1)
    for node in nodes:
        assert received(node, "without a secret") == 0
    # nobody lost the role but by being stopped itself: all were heard all the time
    begun = collections.Counter(kind for _, kind in lab.calls)
    assert begun["start"] == begun["stop"] + 1
    assert begun["start"] <= 1 + 2 * len(names)


def test_those_who_are_not_ready_for_the_secret_are_reported(lab, caplog):
    with caplog.at_level(logging.WARNING, "cluster"):
        lab.started("a", "b", secret=SECRET, secret_required=False)
        assert "without a secret" not in caplog.text
        lab.node("late")
        until(lambda: "took packets (without a secret" in caplog.text)
        lab.node("strict", secret=SECRET)
        until(lambda: "dropped packets (without a secret)" in caplog.text)


@pytest.mark.parametrize("secret", ["", b"", 7, ["x"]])
def test_an_empty_secret_is_refused_and_not_taken_for_none(tmp_path, secret):
    storage = SharedFsStorageBackend(tmp_path)
    with pytest.raises(ValueError, match="secret"):
        ClusterControl("lab", storage_backend=storage, secret=secret)


# ---- bounded: reads, memory


class CountingStorage(SharedFsStorageBackend):
    reads = 0

    def read(self, fresh=False):
        self.reads += 1
        return super().read(fresh)


def test_an_unknown_sender_prompts_one_read_per_check_interval(lab):
    storage = CountingStorage(lab.path)
    a = lab.node("a", storage_backend=storage, check_interval=0.5)
    assert a.wait_for_primary(10)
    unknown = (Observer(a, cluster._random_id()) for _ in iter(int, 1))
    packets = (next(forger.packets()) for forger in unknown)
    before = received(a, cluster.REPEATED)
    began, reads = time.monotonic(), storage.reads
    with Sender(address(a), lambda: [next(packets)], 0.001):
        until(lambda: time.monotonic() > began + 2)
    intervals = (time.monotonic() - began) / 0.5 + 1
    # one that is due anyway, and one that is prompted
    assert reads < storage.reads <= reads + 2 * intervals
    assert received(a, cluster.REPEATED) == before
    assert list(a.cluster.nodes) == ["a"] and a.is_primary


def test_an_observer_without_a_secret_cannot_fill_the_memory(lab):
    a, b = lab.started("a", "b")
    core = b._runtime.core
    counters = iter(range(10**9, 10**10))

    def packets():
        for _ in range(50):
            holder, counter = cluster._random_id(), next(counters)
            forger.fields = dict(holder=holder, counter=counter, term=core._term() + 1)
            forger.fields.update(term=core.lease.term if core.lease else 1)
            for packet in forger.packets():
                yield packet

    forger = Observer(b, incarnation(a))
    most = 0
    with Sender(address(b), packets, 0):
        end = time.monotonic() + 2
        while time.monotonic() < end:
            most = max(most, len(core.peers))
            time.sleep(0.001)
    assert cluster.MAX_UNRECORDED // 2 < most < cluster.MAX_UNRECORDED + 200
    assert b.is_alive() and len(core._strangers) <= cluster.MAX_STRANGERS


# ---- a flood

FLOOD = """
import json, os, socket, sys, time
packets, address, seconds, rate = json.load(sys.stdin)
packets = [bytes.fromhex(packet) for packet in packets]
os.nice(5)  # the nodes need some of the processor, too
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
began, sent = time.monotonic(), 0
while time.monotonic() < began + seconds:
    for _ in range(50):
        sock.sendto(packets[sent % len(packets)], tuple(address))
        sent += 1
    time.sleep(max(0, began + sent / rate - time.monotonic()))
print(sent / (time.monotonic() - began))
"""


def kernel_drops(port):
    """How many packets the kernel has thrown away for want of room, on Linux."""
    if not os.path.exists("/proc/net/udp"):
        return 0
    with open("/proc/net/udp") as file:
        rows = [line.split() for line in file][1:]
    return sum(int(r[12]) for r in rows if int(r[1].split(":")[1], 16) == port)


def hostile_packets(true, rng):
    """Garbage, then what is forged on the pattern of true ones, and these again."""
    packets = [bytes(rng.getrandbits(8) for _ in range(n)) for n in range(0, 700, 20)]
    for packet in true:
        packets += [packet, packet[:36] + b"[" * 400, packet[:4] + bytes(150)]
        packets += [packet[:20] + bytes(8) + packet[28:], packet[:-1], packet * 4]
    rng.shuffle(packets)
    return packets


@pytest.mark.processes
@pytest.mark.parametrize("secret", [None, SECRET], ids=["no secret", "secret"])
def test_a_flood_removes_nobody_and_changes_no_primary(lab, secret, caplog):
    timings = dict(hb_interval=0.5, hb_timeout=2, check_interval=1, hb_missed_count=2)
    settings = dict(timings, secret=secret, same_host_proof=False)
    nodes = [Node(name, lab.path, **settings) for name in "ab"]
    try:
        until(lambda: any(node.is_primary() for node in nodes))
        with caplog.at_level(logging.INFO, "cluster"):
            flooded(lab, nodes, settings, caplog)
    finally:
        for node in nodes:
            node.close()


def flooded(lab, nodes, settings, caplog):
    watcher, sent = lab.node("c", **settings), []
    until(lambda: all_active(watcher, "abc"))
    victim = watcher.cluster.primary_node
    target = (victim.ip, victim.port)
    send = watcher._runtime._socket.send

    def recording_send(data, address):
        sent.extend([data] if address == target else [])
        send(data, address)

    watcher._runtime._socket.send = recording_send
    until(lambda: len(sent) > 3)
    del watcher._runtime._socket.send
    packets = hostile_packets(sent, random.Random(1))
    seconds = watcher.timings.detection_time + 1
    order = [[packet.hex() for packet in packets], target, seconds, 50000]
    caplog.clear()
    done = subprocess.run(
        [sys.executable, "-c", FLOOD], input=json.dumps(order), check=True,
        stdout=subprocess.PIPE, universal_newlines=True,
    )  # fmt: skip
    drops = kernel_drops(victim.port)  # before the node may close its socket
    node = next(node for node in nodes if node.name == victim.name)
    assert all_active(watcher, "abc") and watcher.cluster.primary_node.id == victim.id
    said = [record.getMessage() for record in caplog.records]
    assert [line for line in said if "lost" in line or "no member" in line] == []
    packets = node.ask()["packets"]
    assert sum(packets.values()) > 1000
    assert sum(len(node.all("start")) for node in nodes) == 1
    assert [node.all("stop") for node in nodes] == [[], []]
    print("%.0f packets/s for %.0f s, %d dropped by the kernel, by the node: %s" % (
        float(done.stdout), seconds, drops, packets
    ))  # fmt: skip


# ---- names and files

ODD = [
    "../../escape", "/etc/x", "a\\..\\b", ".", "..", "a\nb", "a\0b", "\U0001f389" * 50,
    "x" * 200, "node", "NODE", "Node", "con", "a%2fb", "-rf *", "~root", "$(touch x)",
]  # fmt: skip


def test_odd_names_touch_nothing_outside_the_folder(tmp_path):
    before = os.umask(0)
    root = tmp_path / "in" / "share"
    lab = Lab(root)
    try:
        slow = dict(hb_interval=0.5, hb_timeout=5, check_interval=1)  # for 17 at once
        lab.started(*ODD, **slow)
        other = lab.node(ODD[0], cluster_name="../lab", **slow)
        assert other.wait_for_primary(10)
        assert sorted(lab.controls[0].cluster.nodes) == sorted(ODD)
        found = {path: mode_of(path) for path in tmp_path.rglob("*")}
    finally:
        lab.close()
        os.umask(before)
    inside = [p for p in found if p == root or root in p.parents]
    assert set(found) - set(inside) == {root.parent}
    assert [p for p in tmp_path.rglob("*") if "node-" in p.name] == []  # all have left
    if os.name == "posix":
        assert [p for p in found if found[p] & stat.S_IWOTH] == []


def mode_of(path):
    try:
        return path.lstat().st_mode
    except FileNotFoundError:  # renamed meanwhile
        return 0


def plants(folder, outside):
    """Puts one of each kind of trouble there, under names that are looked for."""
    names = ["node-x.%s.json", "%s", "5.%s.7.json", "9_9_%s_1_0_-1_5.0_300.0_60.0"]
    kinds = {
        "b": lambda path: os.mkfifo(path),
        "c": lambda path: os.mkdir(path),
        "d": lambda path: os.symlink(str(outside), path),
        "e": lambda path: os.symlink(path, path),
        "f": lambda path: os.symlink("/dev/zero", path),
        "9": sparse_gigabytes,
    }
    for letter, kind in kinds.items():
        for name in names:
            # no file of the lease's folder: a regular one there is a lease
            if not (name.startswith("9_") and letter == "9"):
                kind(os.path.join(folder, name % (letter * 16)))


def sparse_gigabytes(path):
    with open(path, "wb") as file:
        file.truncate(1 << 33)


@pytest.mark.skipif(os.name != "posix", reason="needs pipes and links")
def test_what_is_planted_in_the_folders_of_a_running_cluster_harms_nothing(lab):
    a, b = lab.started("a", "b", secret=SECRET)
    outside = lab.path + "-outside"
    with open(outside, "w") as file:
        file.write("untouched")
    base = os.path.join(lab.path, "cluster-lab")
    memory = peak_memory()
    for folder in [lab.path, base] + [
        os.path.join(base, name) for name in ("nodes", "rosters", "lease")
    ]:
        plants(folder, outside)
    identity = os.path.join(base, "identity")
    (own,) = os.listdir(identity)
    os.unlink(os.path.join(identity, own))
    os.mkfifo(os.path.join(identity, own))
    storage = CountingStorage(lab.path)
    c = lab.node("c", secret=SECRET, storage_backend=storage)
    until(lambda: all(all_active(control, "abc") for control in (a, b, c)), 20)
    until(lambda: storage.reads > 10)
    assert a.is_primary and lab.calls == [("a", "start")]
    assert all(control.status()["storage"] == "ok" for control in (a, b, c))
    a.stop()
    until(lambda: b.is_primary or c.is_primary)
    with open(outside) as file:
        assert file.read() == "untouched"
    assert peak_memory() < memory + 100 * 1024 * 1024


def peak_memory():
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
