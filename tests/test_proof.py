"""Proof of death, on real processes: what is proof, and what never is."""

import collections
import ctypes
import json
import os
import platform
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
import types

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import cluster
from cluster import NodeRecord, ProcessIdentity, _Coroner, own_identity

pytestmark = pytest.mark.skipif(
    not os.path.exists("/proc/sys/kernel/random/boot_id"),
    reason="needs Linux's /proc: elsewhere nothing is ever proven",
)
needs_pidfd = pytest.mark.skipif(
    not hasattr(os, "pidfd_open"), reason="needs os.pidfd_open (Linux, Python 3.9)"
)

ME = "0" * 16
PEER = "1" * 16

# A peer tells its identity, then obeys one-word orders from stdin.
PEER_SCRIPT = """
import json, os, socket, sys, threading
sys.path.insert(0, %r)
import cluster
def tell(value):
    print(json.dumps(value), flush=True)
def obey():
    held = None
    for line in sys.stdin:
        order, *words = line.split()
        if order == "bind":
            family = socket.AF_INET6 if ":" in words[0] else socket.AF_INET
            held = socket.socket(family, socket.SOCK_DGRAM)
            held.bind((words[0], int(words[1])))
            tell(held.getsockname()[1])
        elif order == "unbind":
            held.close()
            tell("done")
        elif order == "name":
            with open("/proc/self/comm", "w") as file:
                file.write(" ".join(words))
            tell("done")
        elif order == "identity":
            tell(cluster.own_identity()._asdict())
        elif order == "sees":
            tell(cluster._sees_own_pids())
        elif order == "judge":  # as another user, of a record in JSON
            if os.geteuid() == 0:
                os.setuid(65534)
            record = cluster.NodeRecord.from_dict(json.loads(" ".join(words)))
            own = record._replace(incarnation="f" * 16, port=9, process=identity)
            tell(cluster._Coroner(own).is_dead(record))
    os._exit(0)
identity = cluster.own_identity()
tell(identity._asdict())
if sys.argv[1:]:  # the number of a system call that ends the main thread alone
    import ctypes
    threading.Thread(target=obey).start()
    ctypes.CDLL(None).syscall(int(sys.argv[1]), 0)
obey()
""" % os.path.dirname(os.path.abspath(cluster.__file__))


class Peer:
    """A child process that stands for another node on this host."""

    def __init__(self, *args, prefix=()):
        command = list(prefix) + [sys.executable, "-c", PEER_SCRIPT] + list(args)
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            universal_newlines=True,
        )
        line = self.process.stdout.readline()
        if not line:
            self.kill()
            raise OSError(self.process.stderr.read())
        self.record = record(ProcessIdentity(**json.loads(line)))

    def ask(self, *words):
        self.tell(*words)
        return json.loads(self.process.stdout.readline())

    def tell(self, *words):
        print(*words, file=self.process.stdin, flush=True)

    def holds(self, host, port=0):
        """The record of this peer once it has bound an address."""
        return self.record._replace(host=host, port=self.ask("bind", host, port))

    def kill(self):
        self.process.kill()
        self.process.wait()


@pytest.fixture
def make_peer():
    peers = []

    def make(*args, **kwargs):
        peers.append(Peer(*args, **kwargs))
        return peers[-1]

    yield make
    for peer in peers:
        peer.kill()
        for stream in (peer.process.stdin, peer.process.stdout, peer.process.stderr):
            stream.close()


@pytest.fixture
def peer(make_peer):
    return make_peer()


@pytest.fixture
def coroner():
    coroner = make_coroner()
    yield coroner
    coroner.close()


def record(process, incarnation=PEER, name="peer", host="127.0.0.1", port=1):
    return NodeRecord(name, incarnation, host, port, process=process)


def make_coroner(identity=None, name="me", host="127.0.0.1", port=2, **options):
    identity = own_identity() if identity is None else identity
    return _Coroner(record(identity, ME, name, host, port), **options)


def changed(record, **fields):
    return record._replace(process=record.process._replace(**fields))


def wait_until(condition, timeout=10.0):
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.002)


def state_of(pid):
    return cluster._process_stat(str(pid)).state


def in_namespaces(*options):
    """A command prefix that runs a program in new namespaces, or a skip."""
    user = [] if os.geteuid() == 0 else ["-U", "-r"]
    prefix = ["unshare"] + user + list(options)
    if not shutil.which("unshare"):
        pytest.skip("needs the program unshare")
    probe = subprocess.run(prefix + ["true"], stderr=subprocess.PIPE)
    if probe.returncode:
        pytest.skip("namespaces are not allowed: %r" % probe.stderr)
    return prefix


# The own identity


def test_the_identity_names_this_very_process():
    identity = own_identity()
    assert identity.pid == os.getpid()
    assert identity.start_time > 0
    assert identity.boot_id and identity.pid_namespace.startswith("pid:[")
    assert identity == own_identity()


def test_the_identity_survives_the_record():
    stored = json.loads(json.dumps(record(own_identity()).to_dict()))
    assert NodeRecord.from_dict(stored).process == own_identity()


def test_a_child_differs_in_pid_and_start_only(peer):
    mine, theirs = own_identity(), peer.record.process
    assert theirs.pid == peer.process.pid
    assert theirs._replace(pid=mine.pid, start_time=mine.start_time) == mine


def test_the_start_time_survives_blanks_and_parentheses_in_the_name(peer, coroner):
    peer.ask("name", "a) S 1 (b) Z")
    assert peer.ask("identity")["start_time"] == peer.record.process.start_time
    assert not coroner.is_dead(peer.record)


def test_a_platform_without_proc_has_an_identity_that_proves_nothing(monkeypatch):
    monkeypatch.setattr(cluster, "_read_bytes", lambda path: b"")
    monkeypatch.setattr(cluster, "_read_link", lambda path: "")
    identity = own_identity()
    assert identity == ProcessIdentity(pid=os.getpid())
    gone = record(identity._replace(pid=2**22 + 1))
    coroner = make_coroner(identity, one_kernel=True)
    assert not coroner.is_dead(gone, bind=True)
    assert coroner.watch(gone) is None


@pytest.mark.parametrize("text", [b"", b"uninitialized\n", b"\xff\n", b"a b\n"])
def test_a_machine_id_that_is_none_is_left_out(monkeypatch, text):
    monkeypatch.setattr(cluster, "_read_bytes", lambda path: text)
    assert own_identity().machine_id == ""


# The pid


def test_a_running_process_is_not_proven_dead(peer, coroner):
    assert not coroner.is_dead(peer.record)


def test_a_process_that_was_killed_is_dead(peer, coroner):
    peer.kill()
    assert coroner.is_dead(peer.record)


def test_a_zombie_is_dead(peer, coroner):
    peer.process.send_signal(signal.SIGKILL)
    wait_until(lambda: state_of(peer.process.pid) == "Z")
    os.kill(peer.process.pid, 0)  # the pid is still there
    assert coroner.is_dead(peer.record)


def test_a_stopped_process_is_alive(peer, coroner):
    peer.process.send_signal(signal.SIGSTOP)
    wait_until(lambda: state_of(peer.process.pid) == "T")
    assert not coroner.is_dead(peer.record)


def test_a_process_whose_main_thread_ended_is_alive(make_peer, coroner):
    number = {"x86_64": 60, "aarch64": 93}.get(platform.machine())
    if number is None or ctypes.sizeof(ctypes.c_void_p) != 8:
        pytest.skip("the number of the exit system call is not known here")
    peer = make_peer(str(number))
    wait_until(lambda: state_of(peer.process.pid) == "Z")
    assert peer.ask("sees") is True  # the other thread goes on
    assert not coroner.is_dead(peer.record)
    peer.process.send_signal(signal.SIGKILL)
    wait_until(lambda: coroner.is_dead(peer.record))


def test_another_start_time_means_that_the_pid_was_recycled(peer, coroner):
    before = changed(peer.record, start_time=peer.record.process.start_time - 1)
    assert coroner.is_dead(before)


def test_a_start_time_of_0_is_not_compared(peer, coroner):
    assert not coroner.is_dead(changed(peer.record, start_time=0))


def test_a_pid_of_0_proves_nothing(peer, coroner):
    assert not coroner.is_dead(changed(peer.record, pid=0))
    assert not coroner.is_dead(changed(peer.record, pid=-1))


def test_no_proc_entry_proves_nothing_while_the_pid_exists(peer, coroner, monkeypatch):
    monkeypatch.setattr(cluster, "_read_bytes", lambda path: b"")
    assert not coroner.is_dead(peer.record)


def test_a_process_that_may_not_be_signalled_exists(peer, make_peer):
    judge, boss = make_peer(), peer.record
    if os.geteuid() != 0:
        boss = changed(boss, pid=1, start_time=0)
    assert judge.ask("judge", json.dumps(boss.to_dict())) is False
    recycled = changed(boss, start_time=1)
    assert judge.ask("judge", json.dumps(recycled.to_dict())) is True


def test_an_earlier_process_with_the_own_pid_is_dead(coroner):
    me = record(own_identity())
    assert coroner.is_dead(changed(me, start_time=me.process.start_time - 1))


def test_another_node_of_the_own_process_is_alive(coroner):
    assert not coroner.is_dead(record(own_identity()))


@pytest.mark.parametrize("field", ["boot_id", "pid_namespace", "time_namespace"])
@pytest.mark.parametrize("value", ["", "other"])
def test_a_missing_pid_elsewhere_proves_nothing(peer, coroner, field, value):
    peer.kill()
    assert not coroner.is_dead(changed(peer.record, **{field: value}))


def test_unknown_pid_namespaces_are_not_the_same_one(peer):
    peer.kill()
    coroner = make_coroner(own_identity()._replace(pid_namespace=""))
    assert not coroner.is_dead(changed(peer.record, pid_namespace=""))


def test_two_kernels_without_time_namespaces_can_compare(peer):
    peer.kill()
    coroner = make_coroner(own_identity()._replace(time_namespace=""))
    assert coroner.is_dead(changed(peer.record, time_namespace=""))


def test_no_proof_is_taken_when_it_is_switched_off(peer):
    peer.kill()
    coroner = make_coroner(enabled=False, one_kernel=True)
    assert not coroner.is_dead(peer.record, bind=True)
    assert not coroner.is_dead(changed(peer.record, boot_id="other"))


def test_the_own_record_is_never_proven_dead(coroner):
    own = record(own_identity(), ME, "me", port=2)
    assert not coroner.is_dead(own, bind=True)
    assert not coroner.is_dead(changed(own, pid=2**22 + 1), bind=True)


IDENTITIES = st.builds(
    ProcessIdentity,
    boot_id=st.sampled_from(["", "other", "container x", own_identity().boot_id]),
    machine_id=st.sampled_from(["", own_identity().machine_id]),
    pid=st.integers(-(2**70), 2**70) | st.integers(0, 99999),
    start_time=st.integers(-(2**70), 2**70),
    pid_namespace=st.sampled_from(["", own_identity().pid_namespace]),
    network_namespace=st.sampled_from(["", own_identity().network_namespace]),
    time_namespace=st.sampled_from(["", own_identity().time_namespace]),
    first_namespace=st.booleans(),
)


@settings(deadline=None)
@given(
    IDENTITIES,
    st.text(max_size=20) | st.sampled_from(["127.0.0.1", "::1", "::ffff:127.0.0.1"]),
    st.integers(-(2**70), 2**70) | st.integers(0, 65536),
)
def test_no_record_raises(identity, host, port):
    coroner = make_coroner()
    suspect = record(identity, host=host, port=port)
    dead = coroner.is_dead(suspect, bind=True)
    assert not (dead and identity.boot_id != own_identity().boot_id)
    coroner.watch(suspect)
    coroner.close()


# The address


def test_an_address_that_is_held_proves_nothing(peer, coroner):
    assert not coroner.is_dead(peer.holds("127.0.0.1"), bind=True)


def test_an_address_that_was_let_go_is_proof_if_asked_to_bind(peer, coroner):
    suspect = peer.holds("127.0.0.1")
    peer.ask("unbind")
    assert not coroner.is_dead(suspect)
    assert coroner.is_dead(suspect, bind=True)


def test_an_address_held_through_every_interface_proves_nothing(peer, coroner):
    suspect = peer.holds("0.0.0.0")._replace(host="127.0.0.1")
    assert not coroner.is_dead(suspect, bind=True)
    peer.ask("unbind")
    assert coroner.is_dead(suspect, bind=True)


def test_an_address_of_ipv6_is_tried_too(peer, coroner):
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as probe:
            probe.bind(("::1", 0))
    except OSError:
        pytest.skip("no IPv6 here")
    suspect = peer.holds("::1")
    assert not coroner.is_dead(suspect, bind=True)
    peer.ask("unbind")
    assert coroner.is_dead(suspect, bind=True)


def test_the_dead_of_another_pid_namespace_are_proven_by_their_address(peer, coroner):
    suspect = changed(peer.holds("127.0.0.1"), pid_namespace="other", pid=1)
    assert not coroner.is_dead(suspect, bind=True)
    peer.kill()
    assert coroner.is_dead(suspect, bind=True)


def test_a_node_that_has_ended_in_the_own_process_is_proven_by_its_address(coroner):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as held:
        held.bind(("127.0.0.1", 0))
        suspect = record(own_identity(), port=held.getsockname()[1])
        assert not coroner.is_dead(suspect, bind=True)
    assert coroner.is_dead(suspect, bind=True)


def test_the_probe_lets_go_of_the_address_at_once(peer, coroner):
    suspect = peer.holds("127.0.0.1")
    peer.ask("unbind")
    assert coroner.is_dead(suspect, bind=True)
    assert peer.holds("127.0.0.1", suspect.port) == suspect


@pytest.mark.parametrize("namespace", ["", "net:[1]"])
def test_a_free_address_in_another_network_proves_nothing(peer, coroner, namespace):
    suspect = changed(peer.holds("127.0.0.1"), network_namespace=namespace)
    peer.ask("unbind")
    assert not coroner.is_dead(suspect, bind=True)


def test_unknown_networks_are_not_the_same_one(peer):
    suspect = changed(peer.holds("127.0.0.1"), network_namespace="")
    peer.ask("unbind")
    coroner = make_coroner(own_identity()._replace(network_namespace=""))
    assert not coroner.is_dead(suspect, bind=True)


@pytest.mark.parametrize(
    "host",
    ["0.0.0.0", "::", "::ffff:0.0.0.0", "0", "", "localhost", "127.1", "<broadcast>",
     "192.0.2.1", "fe80::1%lo", "a\0b", "\ud800", "x" * 300],
)  # fmt: skip
def test_wildcards_names_and_foreign_addresses_prove_nothing(
    peer, coroner, monkeypatch, host
):
    def no_lookup(*args, **kwargs):
        raise AssertionError("a name was looked up")

    monkeypatch.setattr(socket, "getaddrinfo", no_lookup)
    monkeypatch.setattr(socket, "gethostbyname", no_lookup)
    suspect = peer.holds("127.0.0.1")._replace(host=host)
    peer.ask("unbind")
    assert not coroner.is_dead(suspect, bind=True)


def test_port_0_proves_nothing(peer, coroner):
    assert not coroner.is_dead(peer.record._replace(port=0), bind=True)


def test_whoever_held_the_own_address_is_dead():
    me = own_identity()
    suspect = changed(record(me, port=2), pid_namespace="other")
    assert make_coroner().is_dead(suspect)
    assert not make_coroner().is_dead(suspect._replace(port=3))
    assert not make_coroner().is_dead(changed(suspect, network_namespace="other"))
    named = suspect._replace(host="localhost")
    assert not make_coroner(host="localhost").is_dead(named)


# Another boot


def other_boot(**fields):
    suspect = record(own_identity(), name="me", host="192.0.2.7", port=7000)
    return changed(suspect, boot_id="other", first_namespace=True)._replace(**fields)


def returned(**fields):
    """A coroner of the same name and address as the record of the other boot."""
    me = own_identity()._replace(first_namespace=True, machine_id="m")
    return make_coroner(me._replace(**fields), host="192.0.2.7", port=7000)


def test_another_boot_proves_nothing_by_itself(coroner):
    assert not coroner.is_dead(other_boot(), bind=True)
    assert not coroner.is_dead(changed(other_boot(), pid=2**22 + 1), bind=True)


def test_another_boot_is_proof_in_a_storage_of_one_kernel():
    assert make_coroner(one_kernel=True).is_dead(other_boot())


def test_an_unknown_boot_proves_nothing_in_a_storage_of_one_kernel():
    coroner = make_coroner(one_kernel=True)
    assert not coroner.is_dead(changed(other_boot(), boot_id=""))
    unknown = make_coroner(own_identity()._replace(boot_id=""), one_kernel=True)
    assert not unknown.is_dead(other_boot())


def test_the_boot_id_of_a_container_proves_no_other_boot():
    boot = "container 1f4aab0e-96d8-4d8c-8a3c-4b3a0f4f6b0c"
    covered = changed(other_boot(), boot_id=boot)
    assert not make_coroner(one_kernel=True).is_dead(covered)
    inside = make_coroner(own_identity()._replace(boot_id=boot), one_kernel=True)
    assert not inside.is_dead(other_boot())


def test_a_boot_id_that_a_container_has_covered_is_marked_as_its_own(make_peer):
    cover = (
        "mount -t tmpfs none /mnt && echo 1f4aab0e-96d8-4d8c-8a3c-4b3a0f4f6b0c"
        ' > /mnt/id && mount --bind /mnt/id /proc/sys/kernel/random/boot_id'
        ' && exec "$@"'
    )
    prefix = in_namespaces("-m") + ["sh", "-c", cover, "sh"]
    if subprocess.run(prefix + ["true"], stderr=subprocess.PIPE).returncode:
        pytest.skip("mounting over the boot id is not allowed")
    inside = make_peer(prefix=prefix)
    boot = inside.record.process.boot_id
    assert boot == "container 1f4aab0e-96d8-4d8c-8a3c-4b3a0f4f6b0c"
    assert not make_coroner(one_kernel=True).is_dead(inside.record)


def test_a_node_back_after_a_reboot_proves_its_former_self_dead():
    assert returned().is_dead(changed(other_boot(), machine_id="m"))


@pytest.mark.parametrize(
    "suspect",
    [
        changed(other_boot(), machine_id="n"),
        changed(other_boot(), machine_id=""),
        changed(other_boot(), machine_id="m", first_namespace=False),
        changed(other_boot(), machine_id="m", boot_id="container x"),
        changed(other_boot(name="another"), machine_id="m"),
        changed(other_boot(host="192.0.2.8"), machine_id="m"),
        changed(other_boot(port=7001), machine_id="m"),
    ],
)
def test_less_than_the_same_machine_name_and_address_proves_nothing(suspect):
    assert not returned().is_dead(suspect, bind=True)


def test_two_machines_without_an_id_are_not_the_same():
    suspect = changed(other_boot(), machine_id="")
    assert not returned(machine_id="").is_dead(suspect)


def test_a_node_in_a_container_does_not_prove_its_former_self_dead():
    suspect = changed(other_boot(), machine_id="m")
    assert not returned(first_namespace=False).is_dead(suspect)


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1", "0.0.0.0", "::", "h"]
)
def test_an_address_that_every_machine_has_proves_nothing(host):
    me = own_identity()._replace(first_namespace=True, machine_id="m")
    suspect = changed(other_boot(host=host), machine_id="m")
    assert not make_coroner(me, host=host, port=7000).is_dead(suspect)


# Real namespaces


def test_the_processes_of_another_pid_namespace_cannot_be_judged(make_peer, coroner):
    inside = make_peer(prefix=in_namespaces("-p", "--fork", "--mount-proc"))
    theirs = inside.record.process
    assert theirs.pid == 1 and not theirs.first_namespace
    assert theirs.boot_id == own_identity().boot_id
    assert not coroner.is_dead(inside.record)
    assert coroner.watch(inside.record) is None
    inside.kill()
    assert not coroner.is_dead(changed(inside.record, pid=2**22 + 1))


def test_a_proc_of_another_pid_namespace_is_not_believed(make_peer):
    inside = make_peer(prefix=in_namespaces("-p", "--fork"))
    assert inside.ask("sees") is False
    assert inside.record.process.pid == 1


def test_where_proc_is_foreign_only_a_missing_pid_is_proof(peer, monkeypatch):
    monkeypatch.setattr(cluster, "_sees_own_pids", lambda: False)
    coroner = make_coroner()
    assert not coroner.is_dead(changed(peer.record, start_time=1))
    assert coroner.watch(peer.record) is None
    peer.kill()
    assert coroner.is_dead(peer.record)


def test_a_real_time_namespace_of_its_own_is_told_apart(make_peer, coroner):
    prefix = in_namespaces("-T", "--boottime", "1000", "--monotonic", "1000")
    inside = make_peer(prefix=prefix)
    inside.kill()
    assert not coroner.is_dead(inside.record)


def test_a_real_network_namespace_of_its_own_is_told_apart(make_peer, coroner):
    inside = make_peer(prefix=in_namespaces("-n"))
    assert not coroner.is_dead(inside.record._replace(port=65000), bind=True)


# pidfds


@needs_pidfd
def test_the_kernel_tells_of_a_death_within_milliseconds(make_peer, coroner):
    delays = []
    for number in range(3):
        peer = make_peer()
        fd = coroner.watch(peer.record._replace(incarnation="%016x" % (number + 1)))
        assert fd is not None and select.select([fd], [], [], 0)[0] == []
        began = time.monotonic()
        peer.process.send_signal(signal.SIGKILL)
        assert select.select([fd], [], [], 10)[0] == [fd]
        delays.append(time.monotonic() - began)
        assert coroner.is_dead(peer.record)
    assert min(delays) < 0.1


@needs_pidfd
def test_a_stopped_process_does_not_wake_its_watcher(peer, coroner):
    fd = coroner.watch(peer.record)
    peer.process.send_signal(signal.SIGSTOP)
    wait_until(lambda: state_of(peer.process.pid) == "T")
    assert select.select([fd], [], [], 0.05)[0] == []


@needs_pidfd
def test_a_record_is_watched_once_until_it_is_forgotten(peer, coroner):
    fd = coroner.watch(peer.record)
    assert coroner.watch(peer.record) == fd
    assert coroner.incarnation_of(fd) == PEER
    coroner.forget(PEER)
    assert coroner.incarnation_of(fd) is None
    with pytest.raises(OSError):
        os.fstat(fd)
    coroner.forget(PEER)


@needs_pidfd
def test_two_nodes_in_one_process_are_watched_each_for_itself(peer, coroner):
    one = coroner.watch(peer.record)
    other = coroner.watch(peer.record._replace(incarnation="2" * 16))
    assert one != other
    coroner.close()
    coroner.close()
    assert coroner.incarnation_of(one) is coroner.incarnation_of(other) is None


@needs_pidfd
def test_a_zombie_wakes_its_watcher_at_once(peer, coroner):
    peer.process.send_signal(signal.SIGKILL)
    wait_until(lambda: state_of(peer.process.pid) == "Z")
    fd = coroner.watch(peer.record)
    assert select.select([fd], [], [], 1)[0] == [fd]


@needs_pidfd
def test_a_recycled_pid_is_not_watched_and_nothing_leaks(peer, coroner):
    before = os.listdir("/proc/self/fd")
    start = peer.record.process.start_time
    for other in (start - 1, start + 1, 0):
        assert coroner.watch(changed(peer.record, start_time=other)) is None
    assert os.listdir("/proc/self/fd") == before


def test_what_cannot_be_watched_is_not(peer, coroner):
    assert coroner.watch(record(own_identity())) is None  # this very process
    for field in ("boot_id", "pid_namespace", "time_namespace"):
        assert coroner.watch(changed(peer.record, **{field: "other"})) is None
    assert make_coroner(enabled=False).watch(peer.record) is None
    peer.kill()
    assert coroner.watch(peer.record) is None
    assert coroner.incarnation_of(0) is None


# companions: processes that do a node's work


def accompanied(peer, *companions):
    identities = [companion.record.process for companion in companions]
    pairs = tuple((process.pid, process.start_time) for process in identities)
    return peer.record._replace(companions=pairs)


def test_a_node_is_not_dead_before_all_its_companions_are(make_peer, coroner):
    peer, one, other = make_peer(), make_peer(), make_peer()
    record = accompanied(peer, one, other)
    for process in (peer, one):
        process.kill()
        assert not coroner.is_dead(record, bind=True)
    other.kill()
    assert coroner.is_dead(record)


def test_companions_alone_are_not_the_node(make_peer, coroner):
    peer, companion = make_peer(), make_peer()
    record = accompanied(peer, companion)
    companion.kill()
    assert not coroner.is_dead(record, bind=True)


@needs_pidfd
def test_of_a_node_with_companions_the_first_that_lives_is_watched(make_peer, coroner):
    peer, companion = make_peer(), make_peer()
    record = accompanied(peer, companion)
    for process in (peer, companion):
        fd = coroner.watch(record)
        assert select.select([fd], [], [], 0)[0] == []
        process.process.send_signal(signal.SIGKILL)  # and a zombie from now on
        assert select.select([fd], [], [], 10)[0] == [fd]
        coroner.forget(PEER)
    assert coroner.watch(record) is None
    assert coroner.is_dead(record)


@pytest.mark.parametrize("error", [OSError(38, "no such call"), AttributeError()])
def test_without_pidfds_nothing_is_watched(peer, coroner, monkeypatch, error):
    def pidfd_open(pid):
        raise error

    monkeypatch.setattr(os, "pidfd_open", pidfd_open, raising=False)
    assert coroner.watch(peer.record) is None


class Dead(_Coroner):
    def is_dead(self, record, bind=False):
        return not record.companions


def test_a_proof_made_of_the_last_record_does_not_outlive_the_next_one():
    """Which names a process that lives, and was read just when that was polled."""
    own = NodeRecord("own", ME, "10.0.0.1", 7000, join_number=2)
    peer = NodeRecord("peer", PEER, "10.0.0.2", 7000, join_number=1)
    now = cluster._clock()
    core = cluster.Core(cluster.Timings(), own, now, 1)

    def returns(value):
        (call,) = core._calls
        core.step(now, cluster.Returned(call, value))

    core.step(now)
    for value in ("c" * 16, cluster.Snapshot("c" * 16, None, (peer,)), own):
        returns(value)
    runtime = object.__new__(cluster._Runtime)
    runtime.core, runtime._coroner = core, Dead(own)
    runtime._watched, runtime._polled_at = {}, -cluster.FOREVER
    runtime._control = types.SimpleNamespace(timings=core.timings)
    runtime._selector = types.SimpleNamespace(select=lambda timeout: [])
    runtime._follow_address = lambda events: None
    runtime._step = lambda events: core.step(now, *events)
    (call,) = core._calls
    newer = peer._replace(companions=((7, 7),))
    read = cluster.Snapshot("c" * 16, None, (newer, own))
    runtime._inbox = collections.deque([cluster.Returned(call, read)])
    runtime._turn()
    assert core.peers[PEER].record == newer and core.peers[PEER].dead_at is None
