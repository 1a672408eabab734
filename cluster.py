"""Makes the running instances of an application aware of each other.

One file, nothing but the standard library. N instances of a program that share a
folder or a database know who is a member and who is alive, and at most one of them is
the *primary*: it runs the scheduler, polls the mailbox, owns the address. When that
one dies, is upgraded or is cut off, another takes over by itself.

    import cluster

    control = cluster.ClusterControl(
        "jobs",
        storage_backend=cluster.SharedFsStorageBackend("/shared/folder"),
        start_primary_callback=scheduler.start,
        stop_primary_callback=scheduler.stop,
    )
    with control:
        serve()

Guaranteed:
    G1. From the beginning of one node's start callback until its stop callback has
    returned, or its process is dead, no other node's start callback begins. This
    holds under lost, late, repeated and reordered packets, one-way links, partitions
    of any shape, storage that errors, hangs or answers late, crashes, restarts and
    wall-clock jumps.

    G2. Each primary's `term` is higher than that of any before.

    G3. `is_primary` is False from the instant at which the lease has run out on the
    caller's own clock, whether or not a thread has noticed.

    G4. Every start callback that began is followed by exactly one stop callback,
    unless its process dies. Nothing that a callback, a packet, a record or the
    storage does ends a thread silently.

Not guaranteed:
    N1. G1 requires that the storage's compare-and-swap is atomic, that monotonic
    clocks differ in rate by less than 2 %, that callbacks end within the stop budget
    (slower ones delay the successor while their node can say that they run: for
    `stop_timeout` at most, and for twice that after an orderly stop), and that the
    process was not kept from running past its lease. Where the last two fail, G2 and
    G3 remain: give `term` to what must refuse a former primary.

    N2. There may be no primary for a while; how long is in the README.

    N3. `cluster` and what it says of other nodes is as old as their last heartbeat.

    N4. A storage that is wiped, rolled back or replaced under a living primary has no
    atomic compare-and-swap. A node that was never shown that primary's lease, and
    could not hear from it, may start before the former primary's next look at the
    storage; its term is higher as long as the wall clocks are right.

    N5. Where storage calls regularly take longer than a third of the renewal
    deadline, a cluster may never elect a primary; one that it has is kept while they
    take less than half of it. A node bound to one address does not follow when its
    host gets another.

Thread:
    Four daemon threads for each control: *heartbeat* owns all decisions, timers and the
    UDP socket, *maintenance* does one storage call at a time, *callbacks* runs the
    application's callbacks in order, *log* writes what these log. (What a storage
    backend logs, the maintenance thread writes: a handler that blocks there is a
    storage that hangs.) None installs a signal handler. One of the application may
    look at a node, `stop` it, `join` and `leave_cluster`, whatever it interrupts.

All durations are in seconds on a monotonic clock that goes on in suspend; the wall
clock is never compared.

The file, from top to bottom: errors - vocabulary (what is stored, timings, events
and actions) - versions - wire format - storage contract - shared folder - databases
- decision core (pure) - proof of death - I/O edges - views - ClusterControl - join,
leave - command line.
"""

import atexit
import binascii
import collections
import errno
import functools
import json
import logging
import math
import os
import queue
import re
import selectors
import socket
import stat
import sys
import threading
import time
import weakref
from typing import (
    Any,
    Callable,
    Deque,
    Dict,
    FrozenSet,
    Iterable,
    Iterator,
    List,
    NamedTuple,
    Optional,
    Set,
    Tuple,
    Union,
)

__version__ = "0.1.0"

__all__ = [
    "ClusterControl",
    "join_cluster",
    "leave_cluster",
    "Cluster",
    "ClusterNode",
    "SharedFsStorageBackend",
    "SqlStorageBackend",
    "RedisStorageBackend",
    "RowStorageBackend",
    "storage_from_url",
    "StorageBackend",
    "Snapshot",
    "Lease",
    "NodeRecord",
    "ProcessIdentity",
    "ClusterError",
    "StorageError",
    "DuplicateNodeError",
    "NotPrimaryError",
]

FORMAT = 1  # of records and packets; a reader ignores the keys it does not know
MAX_NAME = 200  # bytes of a name, in UTF-8
MAX_RECORD = 64 * 1024  # bytes of a stored record; what is longer is not read
MAX_METADATA = 1024  # bytes of a node's metadata, as JSON
MAX_PACKET = 512  # bytes of a heartbeat; below every network's smallest MTU
MIN_LEASE = 0.3  # seconds; below, a loaded machine's scheduling alone loses it
MIN_FAILOVER = 1.0  # seconds; below, a late write or a busy machine looks like a death
CLOCK_MARGIN = 0.02  # by which share the rates of two monotonic clocks may differ
FOREVER = math.inf

# Kinds of packets, as counted in `status()`
NOT_FOR_US = "for another node, or for an earlier start of this one"
REPEATED = "repeated, or out of order"
TAKEN = "without a secret, since secret_required is False"

log = logging.getLogger("cluster")


# --------------------------------------------------------------------------------
# Errors
# --------------------------------------------------------------------------------


class ClusterError(Exception):
    """Base of every error that this module raises on its own account."""


class StorageError(ClusterError):
    """The storage could not be reached or did not do what was asked.

    State: unknown. A write may have been applied, or may still be applied later;
    reading again tells. It is always safe to retry.
    """


class DuplicateNodeError(ClusterError):
    """A living process already uses this node name in this cluster.

    State: nothing was changed. Give this node another name, or stop the other; a
    retry is safe, and succeeds once that one is gone.
    """


class NotPrimaryError(ClusterError):
    """The call is for the primary alone, and this node is not it.

    State: nothing was done.
    """


# --------------------------------------------------------------------------------
# Vocabulary: what is stored
# --------------------------------------------------------------------------------


def _check(ok: bool, what: str, value: object) -> None:
    if not ok:
        try:
            text = "%.80r" % (value,)
        except (ValueError, RecursionError):  # a huge number, or nested too deeply
            text = "not to be shown"
        raise ValueError("%s: %s" % (what, text))


def _is_int(value: object, low: int = 0, high: int = 2**63 - 1) -> bool:
    # bool is an int in Python, and never what a record means by a number
    return type(value) is int and low <= value <= high


def _is_seconds(value: object) -> bool:
    return type(value) in (int, float) and 0 <= value < 1e9  # type: ignore[operator]


def _is_id(value: object) -> bool:
    return isinstance(value, str) and re.match(r"[0-9a-f]{16}\Z", value) is not None


def _is_name(value: object) -> bool:
    try:
        return isinstance(value, str) and 0 < len(value.encode()) <= MAX_NAME
    except UnicodeEncodeError:  # a lone surrogate has no UTF-8 form
        return False


def _is_metadata(value: object) -> bool:
    try:
        ok = isinstance(value, str) and len(value.encode()) <= MAX_METADATA
        return ok and isinstance(json.loads(str(value)), dict)
    except (ValueError, RecursionError):
        return False


def _is_priority(value: object) -> bool:
    return value is None or _is_int(value, -(2**31), 2**31 - 1)


class Lease(NamedTuple):
    """The value of the storage's compare-and-swap register: who is primary.

    `(term, counter)` is never written twice, so equal means identical, and a
    higher one is newer. Durations are the holder's, in seconds: others judge the
    lease by them and never by their own.
    """

    term: int
    """Rises with every claim: the fencing token."""
    counter: int
    """The number of this attempt among all those of its holder, never reused."""
    holder: str
    """Incarnation of the primary, or of the node that is about to be it."""
    started: bool
    """False until the holder was allowed to call its start callback. A lease that
    was never started hides the one before it."""
    released: bool
    """True once the holder's callbacks are over: free at once for anybody."""
    roster: Optional[FrozenSet[str]]
    """Incarnations that the holder has admitted, itself not among them; None if
    it cannot be read: *unknown*, which is not *empty*."""
    duration: float
    """L: for so long after its last change nobody takes the lease by time."""
    freeze_limit: float
    """The longest time for which the holder may go on without storage."""
    stop_timeout: float
    """The longest time for which running callbacks delay a successor."""
    successor: str = ""
    """If released: the incarnation that the last holder wants to be the next; the
    others leave it the lease for a while."""
    step_down: bool = False
    """Somebody asks the holder to step down; for `successor`, if there is one."""
    paused: bool = False
    """Nobody may claim the lease, however free it is."""

    @property
    def stamp(self) -> Tuple[int, int]:
        """`(term, counter)`: identifies this value among all that ever were."""
        return self.term, self.counter

    def to_dict(self) -> Dict[str, Any]:
        """As JSON-able values; the inverse of `from_dict`."""
        roster = None if self.roster is None else sorted(self.roster)
        return dict(self._asdict(), roster=roster, format=FORMAT)

    @classmethod
    def from_dict(cls, data: Any) -> "Lease":
        """Reads what `to_dict` wrote, also that of a later version.

        Raises:
            ValueError: if a field is missing or impossible; it names the field.
        """
        _check(isinstance(data, dict), "a lease is a JSON object", data)
        roster = data.get("roster")
        if roster is not None:
            ok = isinstance(roster, list) and all(map(_is_id, roster))
            _check(ok, "lease roster", roster)
            roster = frozenset(roster)
        for key in ("term", "counter"):
            _check(_is_int(data.get(key)), "lease " + key, data.get(key))
        fields = {key: data.get(key) for key in cls._fields}
        for key, default in cls._field_defaults.items():
            fields[key] = data.get(key, default)
        for key in ("started", "released", "step_down", "paused"):
            _check(type(fields[key]) is bool, "lease " + key, fields[key])
        named = fields["successor"]
        _check(named == "" or _is_id(named), "lease successor", named)
        for key in ("duration", "freeze_limit", "stop_timeout"):
            _check(_is_seconds(data.get(key)), "lease " + key, data.get(key))
        _check(_is_id(data.get("holder")), "lease holder", data.get("holder"))
        return cls(**dict(fields, roster=roster))


class ProcessIdentity(NamedTuple):
    """Which process on which running machine a node is: what proof of death needs.

    Empty text or 0 where the platform does not tell, which proves nothing.
    """

    boot_id: str = ""
    """Of the running kernel; new at each boot."""
    machine_id: str = ""
    """Of the installed system: /etc/machine-id."""
    pid: int = 0
    """In its own pid namespace."""
    start_time: int = 0
    """In ticks since the boot: tells apart two processes that had one pid."""
    pid_namespace: str = ""
    """Which processes its pid can be compared with."""
    network_namespace: str = ""
    """In which its address is bound; empty where binding it would prove nothing."""
    time_namespace: str = ""
    """In which `start_time` is told."""
    first_namespace: bool = False
    """True in the machine's initial pid namespace, that is, in no container."""


class NodeRecord(NamedTuple):
    """What a node writes about itself: its place in the cluster's membership."""

    name: str
    """The node's name, unique among those that are alive."""
    incarnation: str
    """16 hexadecimal digits, new at each start of the node."""
    host: str
    """Address at which peers reach the node's heartbeat socket."""
    port: int
    """Port of that socket."""
    version: Optional[str] = None
    """What the node gave as own_version."""
    join_number: int = 0
    """Given by the storage, higher for each new incarnation: the seniority."""
    joined_at: float = 0.0
    """Wall clock at joining, in seconds since the epoch; for people only."""
    stopped_term: int = 0
    """The highest term as whose primary this node has stopped (or never started)."""
    running_term: int = 0
    """Not 0: a term that is over, but whose callbacks still run here."""
    notice: int = 0
    """Counts up while `running_term` is set: the notice is news, not a leftover."""
    process: ProcessIdentity = ProcessIdentity()
    """Which process the node is."""
    metadata: str = "{}"
    """What the node says of itself: a JSON object, as text."""
    priority: Optional[int] = 0
    """Candidates with a higher one are preferred; None: never the primary."""
    companions: Tuple[Tuple[int, int], ...] = ()
    """Pid and start time of processes of `process`'s machine and namespaces that do
    this node's work: the node is not dead before all of them are."""

    @property
    def address(self) -> Tuple[str, int]:
        """Where heartbeats to this node are sent."""
        return self.host, self.port

    @property
    def seniority(self) -> Tuple[int, str]:
        """Sorts members by age: the lowest is the most senior."""
        return self.join_number, self.incarnation

    @property
    def rank(self) -> Tuple[int, int, str]:
        """Sorts candidates: the lowest is preferred as the next primary."""
        return (-(self.priority or 0),) + self.seniority

    def to_dict(self) -> Dict[str, Any]:
        """As JSON-able values; the inverse of `from_dict`."""
        process = self.process._asdict()
        companions = [list(pair) for pair in self.companions]
        return dict(
            self._asdict(), process=process, companions=companions, format=FORMAT
        )

    @classmethod
    def from_dict(cls, data: Any) -> "NodeRecord":
        """Reads what `to_dict` wrote, also that of a later version.

        Raises:
            ValueError: if a field is missing or impossible; it names the field.
        """
        _check(isinstance(data, dict), "a node record is a JSON object", data)
        known = {key: data[key] for key in cls._fields if key in data}
        known["process"] = _process_from(data.get("process", {}))
        known["companions"] = _companions_from(data.get("companions", []))
        try:
            record = cls(**known)
        except TypeError as error:  # it names what is missing
            raise ValueError("node record: %s" % error) from None
        record._validate()
        return record

    def _validate(self) -> None:
        _check(_is_name(self.name), "node name", self.name)
        _check(_is_id(self.incarnation), "node incarnation", self.incarnation)
        host_ok = isinstance(self.host, str) and re.match(r"[!-~]{1,255}\Z", self.host)
        _check(bool(host_ok), "node host", self.host)
        _check(_is_int(self.port, 1, 65535), "node port", self.port)
        version_ok = self.version is None or isinstance(self.version, str)
        _check(version_ok, "node version", self.version)
        for key in ("join_number", "stopped_term", "running_term", "notice"):
            _check(_is_int(getattr(self, key)), "node " + key, getattr(self, key))
        joined = self.joined_at
        ok = type(joined) in (int, float) and abs(joined) < 1e11
        _check(ok, "node joined_at", joined)
        _check(_is_metadata(self.metadata), "node metadata", self.metadata)
        _check(_is_priority(self.priority), "node priority", self.priority)


def _process_from(data: Any) -> ProcessIdentity:
    _check(isinstance(data, dict), "node process", data)
    default = ProcessIdentity()
    values = {key: data.get(key, getattr(default, key)) for key in default._fields}
    for key, value in values.items():
        _check(type(value) is type(getattr(default, key)), "process " + key, value)
    _check(_is_int(values["pid"], 0, 2**31 - 1), "process pid", values["pid"])
    start = values["start_time"]
    _check(_is_int(start), "process start_time", start)
    return ProcessIdentity(**values)


def _companions_from(data: Any) -> Tuple[Tuple[int, int], ...]:
    _check(isinstance(data, (list, tuple)), "node companions", data)
    for item in data:
        ok = isinstance(item, (list, tuple)) and len(item) == 2
        ok = ok and _is_int(item[0], 0, 2**31 - 1) and _is_int(item[1])
        _check(ok, "node companions", item)
    return tuple((pid, start_time) for pid, start_time in data)


class Snapshot(NamedTuple):
    """All that a storage holds for one cluster, as one read found it."""

    cluster_id: Optional[str]
    """Which store this is; None if its identity is lost (it was wiped)."""
    lease: Optional[Lease]
    """None if none was ever stored, or if the store was wiped."""
    nodes: Tuple[NodeRecord, ...]
    """Every readable record; of one name perhaps several incarnations."""


# --------------------------------------------------------------------------------
# Vocabulary: timings
# --------------------------------------------------------------------------------


class Timings(NamedTuple):
    """The durations of one node, in seconds on its own monotonic clock."""

    hb_interval: float = 1.0  # H
    hb_timeout: float = 5.0  # T
    hb_missed_count: int = 5  # M
    check_interval: float = 2.0  # C
    lease_duration: float = 5.0  # L
    freeze_limit: float = 300.0
    stop_timeout: float = 60.0

    @property
    def detection_time(self) -> float:
        """D = T + (M - 1) * C: from a node's last heartbeat until it is lost."""
        return self.hb_timeout + (self.hb_missed_count - 1) * self.check_interval

    @property
    def renewal_deadline(self) -> float:
        """R = 2/3 L: the holder stops so long after its last renewal began."""
        return self.lease_duration * 2 / 3

    @property
    def renewal_period(self) -> float:
        """min(C, L/5): three attempts fail before R is reached."""
        return min(self.check_interval, self.lease_duration / 5)

    @property
    def stop_budget(self) -> float:
        """L - R, less the margin for clock rates: for the stop callback."""
        margin = CLOCK_MARGIN * self.lease_duration
        return self.lease_duration - self.renewal_deadline - margin

    @property
    def notice_interval(self) -> float:
        """min(H, L/3): between notices that callbacks still run; each counts for L."""
        return min(self.hb_interval, self.lease_duration / 3)

    @property
    def ask_interval(self) -> float:
        """Between the *answer now* heartbeats to a peer not heard for 1.5 H.

        min(H/5, (D - 1.5 H)/40). Where half of all datagrams is lost, an ask and its
        answer both arrive one time in four, so that a living peer is taken for lost
        with a probability of at most 0.75^40 (1 in 100 000) each time it is asked at
        all. A dead peer costs each node these 40 asks (more, where H/5 is shorter),
        once; who is asked answers once, and an answer never asks.
        """
        patience = self.detection_time - 1.5 * self.hb_interval
        return min(self.hb_interval / 5, patience / 40)

    @property
    def echo_age(self) -> float:
        """An echo of something sent longer ago does not show a working link."""
        return max(self.hb_timeout, 2 * self.hb_interval)


# --------------------------------------------------------------------------------
# Vocabulary: what the decision core is told (events) and asks for (actions)
# --------------------------------------------------------------------------------


class Heartbeat(NamedTuple):
    """One datagram. Terms are 0 where the flag is not set."""

    sender: str
    """Incarnation of the sender."""
    receiver: str
    """Incarnation that it is meant for: others drop it, also as a replay."""
    sent: int
    """When it was sent, in microseconds on the sender's clock, strictly rising:
    its sequence number."""
    echo: int
    """The newest `sent` that the sender has heard from the receiver; 0: none."""
    term: int = 0
    """With counter, holder, started, released: the lease as the sender knows it."""
    counter: int = 0
    holder: str = ""
    started: bool = False
    released: bool = False
    answer: bool = False
    """Asks for a heartbeat in return, at once."""
    leaving: bool = False
    """The sender is no member any more."""
    candidate: bool = False
    """The sender would take the lease if it were free."""
    failing: bool = False
    """The sender's storage does not answer, or with errors."""
    offer: int = 0
    """The sender can write, and offers to take over from the holder of this term."""
    lost: int = 0
    """The sender does not vouch for the holder of this term."""
    running: int = 0
    """The callbacks of this term, which is over, still run at the sender."""
    stopped: int = 0
    """The sender has stopped (or never started) as primary of all terms up to it."""
    changed: bool = False
    """The sender's record has just changed: worth a read."""
    successor: str = ""
    """Incarnation that the sender wants to be the next primary after `stopped`."""


class Heard(NamedTuple):
    """Event: a valid heartbeat came in."""

    heartbeat: Heartbeat
    source: Tuple[str, int]


class Open(NamedTuple):
    """Storage request: connect. Its result is the cluster id."""


class Read(NamedTuple):
    """Storage request: read a `Snapshot`; `fresh` past every client-side cache."""

    fresh: bool = False


class Join(NamedTuple):
    """Storage request: take a join number and write the record with it.

    Its result is the record as written."""

    record: NodeRecord


class Write(NamedTuple):
    """Storage request: write one's own record."""

    record: NodeRecord


class Remove(NamedTuple):
    """Storage request: remove the record of one incarnation."""

    name: str
    incarnation: str


class Swap(NamedTuple):
    """Storage request: compare-and-swap of the lease. Its result is True or False."""

    expected: Optional[Lease]
    new: Lease


class Repair(NamedTuple):
    """Storage request: make anew what is missing of a wiped store, with this id."""

    cluster_id: str


class Pause(NamedTuple):
    """Storage request: pause or resume the cluster, as `_set_paused` does.

    Its result is a lease, or a text that says why there is nothing to change."""

    paused: bool


Request = Union[Open, Read, Join, Write, Remove, Swap, Repair, Pause]


class Call(NamedTuple):
    """Action: carry out a storage request, and report it as `Returned`."""

    id: int
    request: Request


class Returned(NamedTuple):
    """Event: the storage call `id` ended, with a result or an error text."""

    id: int
    result: Any = None
    error: Optional[str] = None


class RunCallback(NamedTuple):
    """Action: run a user's callback: `start`, `stop` or `exit`.

    A start callback must be skipped if the lease has run out (or the term is not
    held any more) at the instant at which it would begin.
    """

    kind: str
    term: int


class CallbackEnded(NamedTuple):
    """Event: a callback returned, raised (`error`) or was not begun (`skipped`)."""

    kind: str
    term: int
    error: Optional[str] = None
    skipped: bool = False


class Send(NamedTuple):
    """Action: send a heartbeat to an address, once, without waiting."""

    address: Tuple[str, int]
    heartbeat: Heartbeat


class Examine(NamedTuple):
    """Action: see whether this process is provably dead, and tell by `ProvenDead`.

    `bind`: also try to bind its address, which proves it where pids cannot.
    """

    record: NodeRecord
    bind: bool = False


class ProvenDead(NamedTuple):
    """Event: the process of this incarnation is proven to be gone."""

    incarnation: str


class Say(NamedTuple):
    """Action: tell people, at a level of `logging`."""

    level: int
    text: str


class StartAsked(NamedTuple):
    """Event: from now on this node is a candidate."""


class StopAsked(NamedTuple):
    """Event: stop being primary, leave, and finish."""


class StepDownAsked(NamedTuple):
    """Event: stop being primary, stay a member."""

    successor: str = ""
    """The incarnation that is to be the next primary; empty: anybody."""


class PauseAsked(NamedTuple):
    """Event: pause the cluster, or resume it; `PauseDone` tells how that ended."""

    paused: bool
    ticket: int


class PauseDone(NamedTuple):
    """Action: tell whoever asked, by its ticket. `error`: empty if it was done."""

    ticket: int
    error: str


class Described(NamedTuple):
    """Event: the node's record changes, which the others are to be told.

    `Core.written` is the record as the storage has confirmed it. None: as before.
    """

    metadata: Optional[str] = None
    companions: Optional[Tuple[Tuple[int, int], ...]] = None
    host: Optional[str] = None


class Expired(NamedTuple):
    """Event: somebody has already been told that the lease of this term ran out."""

    term: int


class Joined(NamedTuple):
    """Action: tell whoever waits that this node is a member now."""


class JoinFailed(NamedTuple):
    """Action: a living process has this node's name; the core has finished."""

    text: str


class Finished(NamedTuple):
    """Action: nothing is left to do; every thread may end."""


Event = Union[
    Heard, Returned, CallbackEnded, ProvenDead,
    StartAsked, StopAsked, StepDownAsked, PauseAsked, Described, Expired,
]  # fmt: skip
Action = Union[
    Send, Call, RunCallback, Examine, Say, PauseDone, Joined, JoinFailed, Finished,
]  # fmt: skip
# --------------------------------------------------------------------------------
# Versions
# --------------------------------------------------------------------------------

# What may follow the same release, from lowest to highest.
_PRE, _END, _BUILD, _POST, _NUMBER = range(5)
_ZERO = (_NUMBER, 0, "")
_VERSION_TOKEN = re.compile(r"[0-9]+|(?:[a-z]|[^\x00-\x7f])+|\+")
_FINAL_WORDS = ("final", "ga", "release")
_POST_WORDS = ("post", "rev", "r", "p", "patch", "hotfix")
# All other words sort as they are spelt: alpha < beta < milestone < rc.
_PRE_WORDS = {"dev": "", "a": "alpha", "b": "beta", "c": "rc"}
_PRE_WORDS.update({"pre": "rc", "preview": "rc"})


def version_key(version: str) -> Tuple[Any, ...]:
    """Sorts versions as people expect; any two strings can be compared.

    dev < alpha < beta < rc < final < +build < post < the next number; words that
    it does not know are pre-releases, missing numbers are 0, and case, separators
    and a leading v mean nothing. What is equal in all this has equal keys.
    """
    text = re.sub(r"\A\s*v[ .]*(?=[0-9])", "", version.lower())
    text = re.sub(r"(?<=[0-9])-(?=[0-9])", "post", text)  # 1.0-2 is below 1.0.1
    key: List[Tuple[Any, ...]] = []
    for token in _VERSION_TOKEN.findall(text) + [""]:
        if token in _FINAL_WORDS:
            continue
        part = _version_part(token)
        while part[0] != _NUMBER and key and key[-1] == _ZERO:
            key.pop()
        key.append(part)
    return tuple(key)


def _version_part(token: str) -> Tuple[Any, ...]:
    if token[:1] in tuple("0123456789"):
        digits = token.lstrip("0")
        # as a number, without int(): that refuses thousands of digits, or is slow
        return _NUMBER, len(digits), digits
    if token in ("", "+"):
        return (_BUILD if token else _END,)
    return (_POST,) if token in _POST_WORDS else (_PRE, _PRE_WORDS.get(token, token))


# --------------------------------------------------------------------------------
# Wire format: one heartbeat, one datagram
# --------------------------------------------------------------------------------

# A datagram: magic, cluster, receiver, MAC, JSON. What comes first is checked first,
# since most of what a flood brings is refused by it, at a tenth of the cost.
_MAGIC = b"clu\1"  # its last byte is the version of this layout
_TAG = slice(4, 12)
_RECEIVER = slice(12, 20)
_MAC = slice(20, 36)
_HEADER = 36
_NO_MAC = bytes(16)
# Short keys, since every node sends one of these to every other each interval.
_WIRE_KEYS = {
    "i": "sender",
    "s": "sent",
    "e": "echo",
    "lt": "term",
    "lc": "counter",
    "lh": "holder",
    "ls": "started",
    "lr": "released",
    "a": "answer",
    "q": "leaving",
    "c": "candidate",
    "f": "failing",
    "o": "offer",
    "x": "lost",
    "r": "running",
    "d": "stopped",
    "n": "changed",
    "w": "successor",
}
_WIRE_DEFAULTS = {
    key: Heartbeat._field_defaults.get(field) for key, field in _WIRE_KEYS.items()
}
# What differs from beat to beat, or from receiver to receiver, comes last
_VARYING = b',"lc":%d,"s":%d,"e":%d}'
_VARIES = re.compile(rb',"lc":([0-9]{1,18}),"s":([0-9]{1,18}),"e":([0-9]{1,18})}\Z')
_REST_DEFAULTS = {
    key: default
    for key, default in _WIRE_DEFAULTS.items()
    if key not in ("lc", "s", "e")
}


def _cluster_tag(cluster_name: str, cluster_id: str) -> bytes:
    """Tells one cluster's packets from those of another on the same network."""
    texts = cluster_id.encode(), cluster_name.encode()
    return b"".join(binascii.crc32(text).to_bytes(4, "big") for text in texts)


def encode_heartbeat(heartbeat: Heartbeat, tag: bytes, secret: bytes = b"") -> bytes:
    """A heartbeat as a datagram: a header, then JSON without defaults."""
    sender, receiver, sent, echo, term, counter, *rest = heartbeat
    # Most of it is the same for all receivers, and at the next beat
    body = _encode_rest((sender, term, *rest)) + _VARYING % (counter, sent, echo)
    head = _MAGIC + tag + bytes.fromhex(receiver)
    return head + (_mac(head + body, secret) if secret else _NO_MAC) + body


@functools.lru_cache(maxsize=64)
def _encode_rest(values: Tuple[Any, ...]) -> bytes:
    fields = {
        key: int(value) if value is True else value
        for (key, default), value in zip(_REST_DEFAULTS.items(), values)
        if value != default
    }
    return json.dumps(fields, separators=(",", ":")).encode()[:-1]


def decode_heartbeat(
    data: bytes,
    tag: bytes,
    secret: bytes = b"",
    secret_required: bool = True,
    receiver: Optional[str] = None,
) -> Heartbeat:
    """The heartbeat in a datagram. Keys of a later version are ignored.

    Args:
        receiver: for whom it must be; None: for anybody.

    Raises:
        ValueError: why it is none of ours. What stands before the colon is one of
            a few constant texts.
    """
    if len(data) > MAX_PACKET:
        raise ValueError("too long")
    if data[:4] != _MAGIC or len(data) < _HEADER:
        ours = data[:3] == _MAGIC[:3]
        raise ValueError("of another format" if ours else "no heartbeat")
    if data[_TAG] != tag:
        raise ValueError("of another cluster")
    to = data[_RECEIVER].hex()
    if receiver not in (None, to):
        raise ValueError(NOT_FOR_US)
    if secret:
        _authenticate(data, secret, secret_required)
    varying = _VARIES.search(data, _HEADER)
    if varying is None:  # of a later version
        sender, sent, echo, term, counter, *rest = _decode_body(data[_HEADER:])
    else:
        counter, sent, echo = map(int, varying.groups())
        body = data[_HEADER : varying.start()] + b',"s":0,"e":0}'
        sender, _, _, term, _, *rest = _decode_rest(body)
    return Heartbeat(sender, to, sent, echo, term, counter, *rest)


def _decode_body(body: bytes) -> List[Any]:
    try:
        fields = json.loads(body.decode())
    except (ValueError, RecursionError):
        raise ValueError("malformed") from None
    _check(isinstance(fields, dict), "malformed", fields)
    return [_wire_value(fields, key) for key in _WIRE_KEYS]


# For some hundred peers: what each of them says is the same from beat to beat
_decode_rest = functools.lru_cache(maxsize=1024)(_decode_body)


def _wire_value(fields: Dict[str, Any], key: str) -> Any:
    default = _WIRE_DEFAULTS[key]
    value = fields.get(key, default)
    if type(default) is bool:
        _check(value in (0, 1), "malformed: " + key, value)
        return bool(value)
    if key in ("i", "lh", "w"):
        _check(_is_id(value) or value == default, "malformed: " + key, value)
        _check(value is not None, "malformed: no " + key, value)
    else:
        _check(_is_int(value), "malformed: " + key, value)
    return value


def _mac(message: bytes, secret: bytes) -> bytes:
    import hmac  # loads OpenSSL: only where it is needed

    return hmac.digest(secret, message, "sha256")[: len(_NO_MAC)]


def _authenticate(data: bytes, secret: bytes, required: bool) -> None:
    import hmac

    if data[_MAC] == _NO_MAC:
        if required:
            raise ValueError("without a secret")
    elif not hmac.compare_digest(
        data[_MAC], _mac(data[: _MAC.start] + data[_HEADER:], secret)
    ):
        raise ValueError("with a wrong secret")


# --------------------------------------------------------------------------------
# Storage contract
# --------------------------------------------------------------------------------


class StorageBackend:
    """What a storage must be able to do: hold node records and one register.

    Subclass it and override every method but `repair` to keep a cluster in a
    storage of your own; run the contract suite in `tests/contract.py` on it.

    A method fails with `StorageError` and nothing else when the storage cannot be
    reached. It should have time-outs of its own, well under the renewal deadline,
    but no promise of the cluster depends on its return.

    Thread:
        One call at a time, from a background thread of one control, with one
        exception: a call that does not return is given up after a while, and the
        next one then comes from another thread while the first still hangs.
    """

    one_kernel = False
    """True if the storage can only be reached by processes of one running kernel,
    so that a record with another boot id is that of a dead process."""

    def open(self, cluster_name: str) -> str:
        """Connects, creates what is missing, and returns the id of this store.

        The id is random, 16 hexadecimal digits, and written once, by whoever
        creates the store: processes that race to create it all return the same.
        Called again after a failure, or to join a store that was replaced.

        Raises:
            StorageError: not reachable, or not a storage for this cluster.
        """
        raise NotImplementedError

    def read(self, fresh: bool = False) -> Snapshot:
        """Reads the lease and every node record. Cheap when nothing has changed.

        A record that cannot be understood is logged once, skipped, and left where
        it is. A store that is *another* one than was opened (an unmounted share)
        raises; one that was emptied in place is a snapshot without cluster id.

        Args:
            fresh: look past every cache between here and the storage.

        Raises:
            StorageError: not reachable; nothing is known.
        """
        raise NotImplementedError

    def next_join_number(self) -> int:
        """Returns a number above 0 and above all that were ever returned.

        Atomic across processes; numbers may be left out.

        Raises:
            StorageError: outcome unknown, a number may be lost, which is harmless.
        """
        raise NotImplementedError

    def write_node(self, record: NodeRecord) -> None:
        """Stores a record under its name and incarnation, durably and atomically.

        A reader finds the old record or the new one, never a part. It replaces the
        record of the same incarnation. Whether it replaces an older incarnation of
        that name or stands beside it is up to the storage; it must never replace
        the record of one with a higher join_number.

        Raises:
            StorageError: outcome unknown.
        """
        raise NotImplementedError

    def remove_node(self, name: str, incarnation: str) -> None:
        """Removes the record of just this incarnation; no error if there is none.

        Raises:
            StorageError: outcome unknown.
        """
        raise NotImplementedError

    def swap_lease(self, expected: Optional[Lease], new: Lease) -> bool:
        """Replaces the lease by `new` if it is exactly `expected` (None: no lease).

        Linearizable: of all the racing swaps with one `expected`, at most one is
        ever applied, and once it is, every later read begins with it. No value is
        ever swapped in twice, so comparing `Lease.stamp` is enough.

        Returns:
            True: `new` was stored. False: it was not, somebody was faster, or else
            this very call had been applied already (a driver's second try): the
            caller reads to find out.

        Raises:
            StorageError: outcome unknown. It may be applied even later, as long as
                the lease is still `expected` then.
        """
        raise NotImplementedError

    def repair(self, cluster_id: str) -> None:
        """Makes anew what a wiped store lacks, under the id that it had.

        Called when `read` found no cluster id; by any member, perhaps by several.

        Raises:
            StorageError: outcome unknown.
        """

    def close(self) -> None:
        """Lets go of connections and files. Idempotent; a later `open` is legal.

        Called once the node has stopped, and again after `leave_cluster`, if that had
        to remove the record.
        """


# --------------------------------------------------------------------------------
# Storage backend: a shared folder
# --------------------------------------------------------------------------------

_ONE_KERNEL_FILE_SYSTEMS = ("ext2", "ext3", "ext4", "xfs", "btrfs", "f2fs", "tmpfs")
_LISTINGS = 4  # a rename may hide from one listing, or show twice; not from so many
_ABSENT = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)  # no folder is there
_REFUSED = (  # a rename that fails so is not carried out; EPERM: sshfs, onto a folder
    errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR, errno.EACCES, errno.EPERM,
)  # fmt: skip
_RACES = 1000  # lost in a row, they are no bad luck any more
_UNREAD = (0, 0, 0)  # in place of the signature of a file that could not be read
_NO_ROSTER, _UNKNOWN_ROSTER = -1, -2  # in place of the counter that names a roster
_IDENTITY_GRACE = 5.0  # seconds in which a living member would restore a lost id
_STALE_AFTER = 86400.0  # seconds after which a temporary file has no owner any more


def _random_id() -> str:
    return os.urandom(8).hex()


def _quote(name: str) -> str:
    """A file name for any text: lower case only, since some file systems fold it."""
    quoted = "".join(
        chr(byte) if chr(byte) in "abcdefghijklmnopqrstuvwxyz0123456789_-" else
        "%%%02x" % byte
        for byte in name.encode()
    )  # fmt: skip
    if len(quoted) <= 150:
        return quoted
    import hashlib

    return "~" + hashlib.sha256(name.encode()).hexdigest()[:40]


def _why(error: OSError, path: str) -> StorageError:
    text = error.strerror or str(error)
    return StorageError("%s: %s (is the share mounted and writable?)" % (path, text))


def _read_small_file(path: str) -> Tuple[bytes, Tuple[int, int, int]]:
    """The content and signature of a regular file; never blocks on a FIFO.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not a regular file, or too long.
    """
    flags = os.O_RDONLY
    for name in ("O_NONBLOCK", "O_NOFOLLOW", "O_CLOEXEC", "O_BINARY"):
        flags |= getattr(os, name, 0)
    descriptor = os.open(path, flags)
    try:
        status = os.fstat(descriptor)
        _check(stat.S_ISREG(status.st_mode), "not a regular file", path)
        _check(status.st_size <= MAX_RECORD, "too long for a record", path)
        return _read_all(descriptor), _signature(status)
    finally:
        os.close(descriptor)


def _read_all(descriptor: int) -> bytes:
    data = b""
    while len(data) <= MAX_RECORD:  # one read may return a part
        part = os.read(descriptor, MAX_RECORD + 1 - len(data))
        if not part:
            break
        data += part
    return data


def _write_all(descriptor: int, data: bytes) -> None:
    while data:  # the last block before a disk is full is written in part
        data = data[os.write(descriptor, data) :]


def _signature(status: os.stat_result) -> Tuple[int, int, int]:
    return status.st_ino, status.st_mtime_ns, status.st_size


def _flush_folder(path: str) -> None:
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:  # Windows opens no folders
        return
    try:
        os.fsync(descriptor)
    except OSError:
        pass
    finally:
        os.close(descriptor)


def _temporary(folder: str, prefix: str = "tmp-") -> str:
    """A new name there; `_clean` knows it, should its writer be killed."""
    return os.path.join(folder, prefix + _random_id())


def _new_file(path: str) -> int:
    """Makes an empty file, whose descriptor it returns."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
    for name in ("O_CLOEXEC", "O_BINARY"):
        flags |= getattr(os, name, 0)
    return os.open(path, flags, 0o664)


def _write_file(path: str, data: bytes, flush: bool = True) -> None:
    """Writes a file that is there as a whole or not at all."""
    temporary = _temporary(os.path.dirname(path))
    descriptor = _new_file(temporary)
    try:
        try:
            _write_all(descriptor, data)
            if flush:
                os.fsync(descriptor)
        finally:
            os.close(descriptor)
        _move_aside(path, stat.S_ISREG)
        os.replace(temporary, path)
    except BaseException:
        _unlink(temporary)
        raise


def _unlink(path: str) -> None:
    try:
        os.unlink(path)
    except OSError:
        pass


def _aside(folder: str, name: str) -> str:
    return os.path.join(folder, "aside-%s-%s" % (_random_id(), name[-50:]))


def _move_aside(path: str, is_right: Callable[[int], bool]) -> None:
    """What stands in our place but is none of ours is kept, under another name."""
    try:
        mode = os.lstat(path).st_mode
    except OSError:
        return
    if is_right(mode):
        return
    folder, name = os.path.split(path)
    aside = _aside(folder, name)
    log.warning("%s is not what belongs there; moved to %s", path, aside)
    # Somebody else may have put the right thing there since that look. Onto
    # something of the wrong kind, a rename of that fails, and takes nothing away
    if not stat.S_ISDIR(mode):
        os.close(_new_file(aside))
    elif os.name != "nt":
        os.mkdir(aside, 0o775)
    try:
        os.replace(path, aside)
    except NotADirectoryError:  # sure not to be carried out: `aside` is our own still
        _unlink(aside)
        raise


def _make_folder(path: str) -> None:
    _move_aside(path, stat.S_ISDIR)
    _mkdir(path)


def _make_folders(path: str) -> None:
    """As `os.makedirs`, but no parent is writable for the world, whatever the umask."""
    parent = os.path.dirname(path)
    if not os.path.isdir(path) and parent != path:
        _make_folders(parent)
        _mkdir(path)


def _mkdir(path: str) -> None:
    try:
        os.mkdir(path, 0o775)
    except FileExistsError:
        pass


def _remove_folder(path: str) -> None:
    import shutil

    shutil.rmtree(path, ignore_errors=True)


def _put_folder(temporary: str, path: str) -> None:
    """Renames a folder into its place, where nothing is, or an empty one."""
    try:
        os.rename(temporary, path)
    except OSError as error:
        # Any other error may hide a rename that was carried out, or will be: to
        # empty the folder would then take away what stands in its place. `_clean`
        # removes it in a day
        if error.errno in _REFUSED:
            _remove_folder(temporary)
        raise
    _flush_folder(os.path.dirname(path))


def _refresh(folder: str) -> None:
    path = _temporary(folder)
    try:
        os.close(_new_file(path))
    except OSError:  # missing, full or read-only: then the listing has to do
        return
    _unlink(path)


class _Register:
    """A compare-and-swap register: a folder with one file, whose name is the value.

    A swap is one rename of the expected name to the new one. The server decides
    it atomically, a missing source is a lost race, and nothing is ever locked.
    """

    def __init__(self, folder: str, newest: Callable[[str], Any]) -> None:
        self.folder = folder
        self._newest = newest  # sorts values; raises ValueError for foreign names

    def value(self) -> Optional[str]:
        """The name that stands there; None if there is none, for good."""
        names: List[str] = []
        for _ in range(_LISTINGS):
            names = self._names()
            if len(names) == 1:
                return names[0]
            if os.path.isdir(self.folder):
                self.refresh()  # else a client's cache shows the same once more
        if len(names) > 1:
            # A listing may show both names of a rename, but not each time
            text = "%s: holds several values, %s; remove all but the newest"
            raise StorageError(text % (self.folder, ", ".join(names)))
        return None

    def _names(self) -> List[str]:
        try:
            with os.scandir(self.folder) as entries:
                found = [entry.name for entry in entries if self._is_value(entry)]
        except OSError as error:
            if error.errno in _ABSENT:
                return []
            raise
        return sorted(found, key=self._newest)

    def _is_value(self, entry: "os.DirEntry[str]") -> bool:
        foreign = self._is_foreign(entry.name)
        return not foreign and entry.is_file(follow_symlinks=False)

    def _is_foreign(self, name: str) -> bool:
        try:
            self._newest(name)
        except ValueError:
            return True
        return False

    def refresh(self) -> None:
        """Changes the folder, so that no client believes its cached listing."""
        _refresh(self.folder)

    def swap(self, expected: Optional[str], new: str) -> bool:
        if expected is None:
            return self._create(new)
        target = os.path.join(self.folder, new)
        try:
            os.rename(os.path.join(self.folder, expected), target)
            return True
        except OSError as error:
            # ENOENT may be the answer to a retry whose first attempt was applied
            self.refresh()
            if new in self._names():
                return True
            if isinstance(error, FileNotFoundError):
                return False
            raise

    def _create(self, value: str) -> bool:
        """Puts the first value there. Onto a folder with one, the rename fails."""
        if self.value() is not None:
            return False
        _move_aside(self.folder, stat.S_ISDIR)
        temporary = self._prepared(value)
        try:
            self._sweep()
            _put_folder(temporary, self.folder)
            return True
        except OSError:
            if value in self._names():
                return True
            if self.value() is not None:
                return False
            if os.path.isdir(self.folder) and os.listdir(self.folder):
                text = "%s: remove what is in it, it does not belong there"
                raise StorageError(text % self.folder) from None
            raise

    def _prepared(self, value: str) -> str:
        """A new folder beside this one, with the value in it."""
        temporary = _temporary(os.path.dirname(self.folder))
        os.mkdir(temporary, 0o775)
        try:
            _write_file(os.path.join(temporary, value), b"")
        except OSError:
            _remove_folder(temporary)
            raise
        return temporary

    def _sweep(self) -> None:
        """Takes out what would block the rename: probes of the killed, foreign files.

        Not by moving the folder: another process may have emptied it already, and
        put the first value there. A foreign name never becomes a value.
        """
        try:
            for name in os.listdir(self.folder):
                if _is_temporary(name):
                    _unlink(os.path.join(self.folder, name))
                elif self._is_foreign(name):
                    self._take_out(name)
            os.rmdir(self.folder)  # Windows renames onto no folder, even an empty one
        except OSError:  # it is not there, or is not empty: the rename decides
            pass

    def _take_out(self, name: str) -> None:
        aside = _aside(os.path.dirname(self.folder), name)
        log.warning("%r does not belong in %s; moved to %r", name, self.folder, aside)
        os.rename(os.path.join(self.folder, name), aside)


def _is_temporary(name: str, prefix: str = "tmp-") -> bool:
    return name.startswith(prefix) and _is_id(name[len(prefix) :])


def _lease_order(name: str) -> Tuple[int, int]:
    lease = _lease_from_name(name)[0]
    return lease.stamp


def _lease_name(lease: Lease, roster_counter: int) -> str:
    fields = (
        lease.term, lease.counter, lease.holder,
        int(lease.started), int(lease.released), roster_counter,
        repr(float(lease.duration)), repr(float(lease.freeze_limit)),
        repr(float(lease.stop_timeout)),
        int(lease.paused), int(lease.step_down), lease.successor,
    )  # fmt: skip
    return "_".join(map(str, fields))


@functools.lru_cache(maxsize=16)  # each listing asks for the same few again
def _lease_from_name(name: str) -> Tuple[Lease, int]:
    """The lease (its roster unknown) and the counter that names its roster."""
    parts = name.split("_")[:12]  # what a later version appends is ignored
    if len(parts) < 12:  # an earlier version's
        parts = parts[:9] + ["0", "0", ""]
    _check(len(parts) == 12, "not the name of a lease", name)
    numbers = [int(part) for part in parts[:2] + parts[3:6]]
    durations = [float(part) for part in parts[6:9]]
    lease = Lease.from_dict(
        {
            "term": numbers[0], "counter": numbers[1], "holder": parts[2],
            "started": bool(numbers[2]), "released": bool(numbers[3]),
            "duration": durations[0], "freeze_limit": durations[1],
            "stop_timeout": durations[2], "paused": bool(int(parts[9])),
            "step_down": bool(int(parts[10])), "successor": parts[11],
        }
    )  # fmt: skip
    # Another spelling of the same value is a copy that somebody made, not a lease
    ours = _lease_name(lease, numbers[4]) == "_".join(parts)
    _check(ours, "not the name of a lease", name)
    return lease, numbers[4]


def _number(name: str) -> int:
    digits, _, tag = name.partition(".")
    _check(re.match(r"[0-9]{1,15}\Z", digits) is not None, "no number", name)
    _check(str(int(digits)) == digits and _is_id(tag), "no number", name)
    return int(digits)


def _number_name(number: int) -> str:
    """Tagged, since whoever loses a race must not take the winner's for its own."""
    return "%d.%s" % (number, _random_id())


def _identity(name: str) -> str:
    _check(_is_id(name), "no id", name)
    return name


class SharedFsStorageBackend(StorageBackend):
    """Keeps a cluster in a folder that every node can reach.

    Made for local disks, NFSv3 and NFSv4, SMB and sshfs: needs nothing but an
    atomic `rename` on the server. Not for object stores mounted as folders (s3fs,
    gcsfuse, rclone): they rename by copying.

    Nothing is ever locked, so nothing is ever left locked. Foreign files are left
    alone; one that stands where a file of the cluster belongs is moved aside, never
    followed or deleted.

    Args:
        path: the shared folder. Several clusters may use the same one.
        create: whether to create the cluster (and the folder) if it is not there.
            Give False for every mounted share once the cluster exists: when the
            share is not mounted, the path is an empty local folder, and a node
            that makes a cluster of its own there makes a second primary.
    """

    def __init__(self, path: Union[str, "os.PathLike[str]"], *, create: bool = True):
        self.path = os.path.abspath(os.fspath(path))
        self.create = create
        self._cluster_id = ""
        self._root: Tuple[int, int] = (0, 0)
        self._id_missing_since: Optional[float] = None
        self._top_number = 0
        self._records: Dict[str, Tuple[Tuple[int, int, int], Any]] = {}
        self._rosters: Dict[str, FrozenSet[str]] = {}
        self._rosterless = (0, 0)  # the lease whose lack of a roster was reported
        self._writes = 0
        self._set_folder("")

    def __repr__(self) -> str:
        return "SharedFsStorageBackend(%r)" % self.path

    def _set_folder(self, name: str) -> None:
        self._folder = os.path.join(self.path, name)
        self._nodes = os.path.join(self._folder, "nodes")
        self._roster_folder = os.path.join(self._folder, "rosters")
        self._identity = _Register(os.path.join(self._folder, "identity"), _identity)
        self._lease = _Register(os.path.join(self._folder, "lease"), _lease_order)
        seniority = os.path.join(self._folder, "seniority")
        self._seniority = _Register(seniority, _number)
        registers = (self._identity, self._lease, self._seniority)
        self._folders = [self._nodes, self._roster_folder]
        self._folders += [register.folder for register in registers]

    # ---- which store is this?

    def open(self, cluster_name: str) -> str:
        folder = self._folder
        self._set_folder("cluster-" + _quote(cluster_name))
        try:
            if self._cluster_id and self._folder == folder:
                self._check_identity()  # the store under another root is none of ours
            if not os.path.isdir(self._folder):
                self._bootstrap()
            self._move_links_aside()
            self._cluster_id = self._opened_id()
            self._root = self._root_identity()
            self._clean()
        except OSError as error:
            raise _why(error, self.path) from error
        self.one_kernel = _file_system(self._folder) in _ONE_KERNEL_FILE_SYSTEMS
        return self._cluster_id

    def _bootstrap(self) -> None:
        """Prepared complete and renamed into place: of several, one wins."""
        if not self.create:
            raise StorageError(
                "%s holds no such cluster; is the share mounted? "
                "(create=True makes a new one)" % self.path
            )
        if self._root != (0, 0) and self._root_identity() != self._root:
            self._raise_gone()
        _make_folders(self.path)
        temporary = _temporary(self.path, "tmp-cluster-")
        os.mkdir(temporary, 0o775)
        try:
            self._furnish(temporary, _random_id())
        except OSError:
            _remove_folder(temporary)
            raise
        try:
            _put_folder(temporary, self._folder)
        except OSError:
            if not os.path.isdir(self._folder):
                raise

    def _furnish(self, folder: str, cluster_id: str) -> None:
        for name in ("nodes", "rosters"):
            _make_folder(os.path.join(folder, name))
        identity = os.path.join(folder, "identity")
        for name in os.listdir(identity) if os.path.isdir(identity) else []:
            # Perhaps a link or a pipe under the name of an id. Should the right file
            # be there since: it is made anew like one that was removed
            _move_aside(os.path.join(identity, name), stat.S_ISREG)
        # Several may do this at once: of a register, one of them makes the first value
        _Register(identity, _identity).swap(None, cluster_id)
        seniority = _Register(os.path.join(folder, "seniority"), _number)
        seniority.swap(None, _number_name(self._top_number))

    def _root_identity(self) -> Tuple[int, int]:
        status = os.stat(self.path)
        return status.st_dev, status.st_ino

    def _opened_id(self) -> str:
        found = self._identity.value()
        if found is None:
            now = time.monotonic()
            if self._id_missing_since is None:
                self._id_missing_since = now
            if now < self._id_missing_since + _IDENTITY_GRACE:
                text = "%s: its id is missing; a running member restores it in seconds"
                raise StorageError(text % self._folder)
            self._furnish(self._folder, _random_id())
            found = self._identity.value()
        self._id_missing_since = None
        if found is None:
            raise StorageError("%s: its id cannot be written" % self._folder)
        return found

    def _check_identity(self) -> Optional[str]:
        """The id of the store that is there; None: ours, emptied in place.

        Raises:
            StorageError: another store, or none, is mounted there.
        """
        if not self._cluster_id:
            raise StorageError("%s: not opened" % self.path)
        path = os.path.join(self._identity.folder, self._cluster_id)
        try:
            root = self._root_identity()
            self._move_links_aside()
            if os.path.isfile(path):
                # Mounted again, it has a new device; but not if that was just now:
                # the root looked at may be the empty folder below
                if root != self._root and root == self._root_identity():
                    self._root = root
                return self._cluster_id
            same_root = root == self._root
            found = self._identity.value()
        except OSError as error:
            raise _why(error, self.path) from error
        if not same_root and found != self._cluster_id:
            self._raise_gone()
        return found

    def _move_links_aside(self) -> None:
        """Followed, a link in place of a folder would lead every call elsewhere."""
        for folder in self._folders:
            if os.path.islink(folder):
                _move_aside(folder, stat.S_ISDIR)

    def _raise_gone(self) -> None:
        text = "%s is gone: not the folder that it was; is the share mounted?"
        raise StorageError(text % self.path)

    def _must_be_ours(self) -> None:
        if self._check_identity() != self._cluster_id:
            raise StorageError("%s holds another cluster, or none" % self.path)

    def repair(self, cluster_id: str) -> None:
        # The share may be gone since the read that found no id: an empty folder
        # given our id would pass for the cluster from now on
        if self._check_identity() not in (None, cluster_id):
            raise StorageError("%s holds another cluster" % self.path)
        try:
            _make_folder(self._folder)
            self._furnish(self._folder, cluster_id)
        except OSError as error:
            raise _why(error, self._folder) from error

    def _clean(self) -> None:
        """Removes temporary files whose writers were killed long ago."""
        probe = _temporary(self._folder)
        try:
            os.close(_new_file(probe))
            now = os.stat(probe).st_mtime  # by the server's clock, like the others'
            _unlink(probe)
        except OSError:
            return
        for folder in [self.path, self._folder] + self._folders:
            _clean_folder(folder, "tmp-cluster-" if folder == self.path else "tmp-",
                          now - _STALE_AFTER)  # fmt: skip

    # ---- reading

    def read(self, fresh: bool = False) -> Snapshot:
        before = self._check_identity()
        try:
            if fresh:
                self._lease.refresh()
                _refresh(self._nodes)
            lease, nodes = self._read_lease(), self._read_nodes()
            # Asked again: a share unmounted meanwhile is no cluster without members
            cluster_id = self._check_identity()
            if cluster_id != before:
                raise StorageError("%s was replaced during a read" % self.path)
            return Snapshot(cluster_id, lease, nodes)
        except OSError as error:
            raise _why(error, self._folder) from error

    def _read_lease(self) -> Optional[Lease]:
        lease, roster = None, None
        name = self._lease.value()
        for _ in range(_LISTINGS):
            if name is None:
                return None
            lease, counter = _lease_from_name(name)
            roster = self._read_roster(lease, counter)
            before, name = name, name if roster is not None else self._lease.value()
            if name == before:
                break  # else it was renewed, and its roster may have been removed
        assert lease is not None
        if roster is None and lease.stamp != self._rosterless:
            log.warning("the roster of term %d cannot be read: unknown", lease.term)
            self._rosterless = lease.stamp
        return lease._replace(roster=roster)

    def _roster_name(self, lease: Lease, counter: int) -> str:
        return "%d.%s.%d.json" % (lease.term, lease.holder, counter)

    def _read_roster(self, lease: Lease, counter: int) -> Optional[FrozenSet[str]]:
        if counter < 0:
            return frozenset() if counter == _NO_ROSTER else None
        name = self._roster_name(lease, counter)
        roster = self._rosters.get(name)
        if roster is not None:
            return roster
        try:
            data, _ = _read_small_file(os.path.join(self._roster_folder, name))
            ids = json.loads(data.decode())["roster"]
            _check(isinstance(ids, list) and all(map(_is_id, ids)), "roster", ids)
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return None
        self._rosters = {name: frozenset(ids)}
        return frozenset(ids)

    def _read_nodes(self) -> Tuple[NodeRecord, ...]:
        try:
            found = os.listdir(self._nodes)
        except OSError as error:
            if error.errno not in _ABSENT:
                raise
            found = []
        names = {n for n in found if n.startswith("node-") and n.endswith(".json")}
        cache = {}
        # A listing may miss a file onto which another one is being renamed: those
        # that were there the last time are looked for by name
        for name in sorted(names.union(self._records)):
            cached = self._read_record(name)
            if cached is not None:
                cache[name] = cached
        self._records = cache
        return tuple(record for _, record in cache.values() if record is not None)

    def _read_record(
        self, name: str
    ) -> Optional[Tuple[Tuple[int, int, int], Optional[NodeRecord]]]:
        """What is known of this file; None if it is not there."""
        path = os.path.join(self._nodes, name)
        known = self._records.get(name)
        try:
            signature = _signature(os.lstat(path))
            if known is not None and known[0] == signature:
                return known
            data, signature = _read_small_file(path)
            return signature, self._parse_record(data, name)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR):
                return None
            # Perhaps only now: it stays what it was, and is tried at each read
            if known is None or known[0] != _UNREAD:
                log.warning("%s cannot be read: %s", path, error)
            return _UNREAD, known[1] if known is not None else None
        except (ValueError, RecursionError) as error:
            log.warning("%s is no node record, and skipped: %.200s", path, error)
            return signature, None

    def _parse_record(self, data: bytes, file_name: str) -> NodeRecord:
        record = NodeRecord.from_dict(json.loads(data.decode()))
        _check(self._record_name(record) == file_name, "record of another node", data)
        self._top_number = max(self._top_number, record.join_number)
        return record

    def _record_name(self, record: NodeRecord) -> str:
        return self._node_name(record.name, record.incarnation)

    def _node_name(self, name: str, incarnation: str) -> str:
        return "node-%s.%s.json" % (_quote(name), incarnation)

    # ---- writing

    def next_join_number(self) -> int:
        self._must_be_ours()
        folder = self._seniority.folder
        try:
            for _ in range(_RACES):
                name = self._seniority.value()
                if name is None:
                    self._read_nodes()  # lost: above those of the records, at least
                number = _number(name) if name is not None else 0
                number = max(number, self._top_number) + 1
                if self._seniority.swap(name, _number_name(number)):
                    self._top_number = number
                    return number
        except OSError as error:
            raise _why(error, folder) from error
        raise StorageError("%s: its value cannot be changed" % folder)

    def write_node(self, record: NodeRecord) -> None:
        self._must_be_ours()
        path = os.path.join(self._nodes, self._record_name(record))
        data = json.dumps(record.to_dict()).encode()
        # Readers notice a change by inode, time and length. The first two may be
        # those of the last record but one; the length is no other recent one's.
        self._writes += 1
        data = data.ljust(len(data) // 64 * 64 + 64 + self._writes % 64)
        if len(data) > MAX_RECORD:
            raise StorageError("%s: too long for a record" % path)
        try:
            _make_folder(self._nodes)
            _write_file(path, data)
        except OSError as error:
            raise _why(error, path) from error

    def remove_node(self, name: str, incarnation: str) -> None:
        self._must_be_ours()
        path = os.path.join(self._nodes, self._node_name(name, incarnation))
        try:
            os.unlink(path)
        except FileNotFoundError:
            pass
        except OSError as error:
            raise _why(error, path) from error

    def swap_lease(self, expected: Optional[Lease], new: Lease) -> bool:
        self._must_be_ours()
        try:
            name = self._expected_name(expected)
            if expected is not None and name is None:
                return False
            counter = self._roster_counter(name, new)
            won = self._lease.swap(name, _lease_name(new, counter))
            if won and (expected is None or expected.term != new.term):
                # A power cut that loses a claim would give its term out again
                _flush_folder(self._lease.folder)
            if won and counter == new.counter:
                self._remove_old_rosters(new)
            return won
        except OSError as error:
            raise _why(error, self._lease.folder) from error

    def _expected_name(self, expected: Optional[Lease]) -> Optional[str]:
        """The name under which the expected lease stands, if it still does."""
        if expected is None:
            return None
        name = self._lease.value()
        if name is None or _lease_from_name(name)[0].stamp != expected.stamp:
            self._lease.refresh()
            name = self._lease.value()
        if name is None or _lease_from_name(name)[0].stamp != expected.stamp:
            return None
        return name

    def _roster_counter(self, expected_name: Optional[str], new: Lease) -> int:
        """Names the roster of `new`, writing it unless it stands there already."""
        if not new.roster:
            return _UNKNOWN_ROSTER if new.roster is None else _NO_ROSTER
        if expected_name is not None:
            old, counter = _lease_from_name(expected_name)
            same_term = (old.term, old.holder) == (new.term, new.holder)
            path = os.path.join(self._roster_folder, self._roster_name(old, counter))
            same = same_term and self._read_roster(old, counter) == new.roster
            # Known here, but lost there, it is unknown to all others
            if same and os.path.isfile(path):
                return counter
        name = self._roster_name(new, new.counter)
        _make_folder(self._roster_folder)
        data = json.dumps({"format": FORMAT, "roster": sorted(new.roster)}).encode()
        # Not flushed: after a power cut it may be unreadable, that is, unknown
        _write_file(os.path.join(self._roster_folder, name), data, flush=False)
        self._rosters = {name: new.roster}
        return new.counter

    def _remove_old_rosters(self, new: Lease) -> None:
        """A reader may be about to open the previous one: two are kept."""
        rosters = []
        try:
            names = os.listdir(self._roster_folder)
        except OSError:  # the swap is done; the next one cleans as well
            names = []
        for name in names:
            parts = name.split(".")
            if len(parts) == 4 and parts[0].isdigit() and parts[2].isdigit():
                rosters.append((int(parts[0]), int(parts[2]), name))
        older = sorted(r for r in rosters if r[:2] < new.stamp)
        for _, _, name in older[:-1]:
            _unlink(os.path.join(self._roster_folder, name))

    def close(self) -> None:
        """Nothing is kept open between calls."""


def _clean_folder(folder: str, prefix: str, before: float) -> None:
    """Removes temporary files and folders that were last changed before then."""
    try:
        names = os.listdir(folder)
    except OSError:
        return
    for name in names:
        path = os.path.join(folder, name)
        try:
            if _is_temporary(name, prefix) and os.lstat(path).st_mtime < before:
                _unlink(path)
                _remove_folder(path)
        except OSError:
            pass


def _file_system(path: str) -> str:
    """The type of the file system at a path, as Linux names it; else empty."""
    best, kind = "", ""
    path = os.path.realpath(path)  # a link may lead out of this file system
    try:
        with open("/proc/self/mountinfo", "rb") as file:
            for line in file:
                fields = os.fsdecode(line).split(" ")
                mount = re.sub(
                    r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), fields[4]
                )
                inside = (path + "/").startswith(mount.rstrip("/") + "/")
                if inside and len(mount) >= len(best):
                    best, kind = mount, fields[fields.index("-") + 1]
    except (OSError, ValueError, IndexError):
        return ""
    return kind


# --------------------------------------------------------------------------------
# Storage backends: databases
# --------------------------------------------------------------------------------

_ROOT = "@"  # in place of a cluster's name, which is quoted: of the store as a whole
_ANY = "*"  # in place of an expected version: whichever, or none
_NETWORK_FILE_SYSTEMS = (
    "nfs", "nfs4", "cifs", "smbfs", "smb2", "smb3", "9p", "virtiofs", "vboxsf", "afs",
    "ceph", "lustre", "gpfs", "beegfs", "glusterfs", "ncpfs", "davfs",
)  # fmt: skip
_SQL_DRIVERS = {  # (import name, SQLAlchemy's), in the order in which they are sought
    "postgresql": (
        ("psycopg", "psycopg"), ("psycopg2", "psycopg2"), ("pg8000", "pg8000"),
    ),
    "mysql": (("pymysql", "pymysql"), ("MySQLdb", "mysqldb")),
}  # fmt: skip
_SQL_DRIVERS["mariadb"] = _SQL_DRIVERS["mysql"]

_Rows = Dict[str, Tuple[str, str]]  # of each item, the version and the value


def _driver(name: str, package: str) -> Any:
    import importlib

    try:
        return importlib.import_module(name)
    except ImportError as error:
        text = "%s cannot be imported (%s): pip install '%s'"
        raise ClusterError(text % (name, error, package)) from None


class RowStorageBackend(StorageBackend):
    """What the databases share; not to be used by itself.

    A cluster is a few rows, item -> (version, value):

    - identity: the version is the cluster id, the value is empty;
    - joins: the version is the highest join number given, the value is empty;
    - lease: the version is the stamp and the holder, the value is JSON;
    - node-NAME.INCARNATION: the version is the join number, the value is JSON.

    Above all clusters stands another identity, that of the store. With it, a
    cluster whose rows are gone was wiped; without it, this is an empty store in
    place of the right one: a restored database, a replica, a restart without data.
    """

    def __init__(
        self, place: str, secrets: Iterable[Any], create: bool, timeout: float
    ) -> None:
        self.create = create
        """Whether `open` makes what is missing, instead of refusing."""
        self.timeout = _seconds("timeout", timeout)
        """Seconds for connecting, and for each statement."""
        self._place = place  # without user or password: it is in errors
        self._secrets = [str(secret) for secret in secrets if secret]
        self._space = ""
        self._cluster_id = ""
        self._root: Optional[str] = None
        self._id_missing_since: Optional[float] = None
        self._top_number = 0
        self._records: Dict[str, Tuple[str, Optional[NodeRecord]]] = {}

    def __repr__(self) -> str:
        return "%s(%r)" % (type(self).__name__, self._place)

    # ---- what an engine can do; any exception means that the outcome is unknown

    def _prepare(self) -> None:
        """Makes what the rows need, if allowed."""

    def _rows(self, space: str) -> _Rows:
        """All the rows of a cluster, as they were at one instant."""
        raise NotImplementedError

    def _swap(
        self, item: str, expected: Optional[str], version: str, value: str
    ) -> int:
        """Changes a row whose version is `expected` (None: if there is no such row).

        Returns 1 if it did, 0 if the version was another, -1 if the row is missing
        and the cluster's identity is too: nothing is ever added to another store.
        """
        raise NotImplementedError

    def _found(self, space: str, identity: str) -> None:
        """Adds an identity unless there is one."""
        raise NotImplementedError

    def _delete(self, item: str) -> None:
        raise NotImplementedError

    def _ask(self, call: Callable[[], Any], again: bool = False) -> Any:
        """Carries out a call; `again`: once more, if a kept connection had ended."""
        began = time.monotonic()
        try:
            return call()
        except StorageError:
            raise
        except Exception as error:
            took = time.monotonic() - began
            if again and took < self.timeout / 2:
                return self._ask(call)
            # Not chained: drivers' errors hold statements, parameters and addresses
            raise StorageError(self._why(error, took)) from None

    def _why(self, error: Exception, took: float) -> str:
        text = " ".join(str(getattr(error, "orig", None) or error).split())[:300]
        for secret in self._secrets:
            text = text.replace(secret, "***")
        if took >= self.timeout:
            text = "no answer within %g s: %s" % (self.timeout, text)
        return "%s: %s (%s)" % (self._place, text, type(error).__name__)

    # ---- which store is this?

    def open(self, cluster_name: str) -> str:
        space = _quote(cluster_name)
        if space != self._space:
            self._space, self._cluster_id, self._root = space, "", None
        self._ask(self._prepare)
        rows = self._ask(lambda: self._rows(space), True)
        found = self._identity_in(rows) or self._bootstrap(rows)
        self._root = self._identity_in(self._ask(lambda: self._rows(_ROOT)))
        self._id_missing_since = None
        self._cluster_id = found
        return found

    def _identity_in(self, rows: _Rows) -> Optional[str]:
        version = rows["identity"][0] if "identity" in rows else None
        return version if _is_id(version) else None

    def _bootstrap(self, rows: _Rows) -> str:
        if self._cluster_id:
            self._must_be_wiped()
        if not self.create:
            text = "%s holds no such cluster (create=True makes a new one)"
            raise StorageError(text % self._place)
        if rows:
            self._wait_for_repair()
        self._ask(lambda: self._found(_ROOT, _random_id()))
        self._lay(_random_id(), rows)
        found = self._identity_in(self._ask(lambda: self._rows(self._space)))
        if found is None:
            raise StorageError("%s: the cluster's id cannot be written" % self._place)
        return found

    def _lay(self, identity: str, rows: _Rows) -> None:
        """Gives the cluster an identity, unless it has one that can be read."""
        if "identity" in rows:
            self._ask(lambda: self._delete("identity"))
        self._ask(lambda: self._found(self._space, identity))

    def _wait_for_repair(self) -> None:
        now = time.monotonic()
        if self._id_missing_since is None:
            self._id_missing_since = now
        if now < self._id_missing_since + _IDENTITY_GRACE:
            text = "%s: the cluster's id is missing; a running member restores it"
            raise StorageError(text % self._place)

    def _must_be_wiped(self) -> None:
        """Raises if not the cluster alone is gone, but the store that held it."""
        root = self._identity_in(self._ask(lambda: self._rows(_ROOT), True))
        if root is None or root != self._root:
            text = (
                "%s is empty, or another store: put the right one back, or stop every "
                "node and start them anew there"
            )
            raise StorageError(text % self._place)

    def repair(self, cluster_id: str) -> None:
        rows = self._ask(lambda: self._rows(self._space), True)
        found = self._identity_in(rows)
        if found not in (None, cluster_id):
            raise StorageError("%s holds another cluster" % self._place)
        if found is None:
            self._must_be_wiped()
            self._lay(cluster_id, rows)
        self._ask(lambda: self._swap("joins", None, str(self._top_number), ""))

    # ---- reading

    def read(self, fresh: bool = False) -> Snapshot:
        if not self._cluster_id:
            raise StorageError("%s: not opened" % self._place)
        rows = self._ask(lambda: self._rows(self._space), True)
        cluster_id = self._identity_in(rows)
        if cluster_id is None:
            self._must_be_wiped()
        return Snapshot(cluster_id, self._lease_in(rows), self._nodes_in(rows))

    def _lease_in(self, rows: _Rows) -> Optional[Lease]:
        if "lease" not in rows:
            return None
        try:
            return Lease.from_dict(json.loads(rows["lease"][1]))
        except (ValueError, RecursionError) as error:
            text = "%s: the lease cannot be understood: %.200s"
            raise StorageError(text % (self._place, error)) from None

    def _nodes_in(self, rows: _Rows) -> Tuple[NodeRecord, ...]:
        cache = {}
        for item, (_, value) in sorted(rows.items()):
            if item.startswith("node-"):
                known = self._records.get(item)
                if known is None or known[0] != value:
                    known = value, self._parse_record(item, value)
                cache[item] = known
        self._records = cache
        return tuple(record for _, record in cache.values() if record is not None)

    def _parse_record(self, item: str, value: str) -> Optional[NodeRecord]:
        try:
            _check(len(value) <= MAX_RECORD, "too long for a record", len(value))
            record = NodeRecord.from_dict(json.loads(value))
            _check(_node_item(*record[:2]) == item, "record of another node", item)
        except (ValueError, RecursionError) as error:
            text = "%s: %s is no node record, and skipped: %.200s"
            log.warning(text, self._place, item, error)
            return None
        self._top_number = max(self._top_number, record.join_number)
        return record

    # ---- writing

    def next_join_number(self) -> int:
        for _ in range(_RACES):
            rows = self._ask(lambda: self._rows(self._space), True)
            self._nodes_in(rows)  # if the counter is lost: above those of the records
            found = rows["joins"][0] if "joins" in rows else None
            given = int(found) if found and re.match("[0-9]{1,18}$", found) else 0
            number = max(self._top_number, given) + 1
            if self._change("joins", found, str(number), ""):
                self._top_number = number
                return number
        raise StorageError("%s: no join number is to be had" % self._place)

    def write_node(self, record: NodeRecord) -> None:
        value = json.dumps(record.to_dict())
        if len(value) > MAX_RECORD:
            raise StorageError("%r: too long for a record" % record.name)
        item, version = _node_item(record.name, record.incarnation), record.join_number
        if not self._change(item, _ANY, str(version), value):
            raise StorageError("%s: %s was written twice at once" % (self._place, item))

    def remove_node(self, name: str, incarnation: str) -> None:
        self._ask(lambda: self._delete(_node_item(name, incarnation)))

    def swap_lease(self, expected: Optional[Lease], new: Lease) -> bool:
        version = None if expected is None else _lease_version(expected)
        value = json.dumps(new.to_dict())
        return self._change("lease", version, _lease_version(new), value)

    def _change(
        self, item: str, expected: Optional[str], version: str, value: str
    ) -> bool:
        done = self._ask(lambda: self._swap(item, expected, version, value))
        if done < 0:
            raise StorageError("%s holds another cluster, or none" % self._place)
        return bool(done)


def _node_item(name: str, incarnation: str) -> str:
    return "node-%s.%s" % (_quote(name), incarnation)


def _lease_version(lease: Lease) -> str:
    return "%d.%d.%s" % (lease.term, lease.counter, lease.holder)


class SqlStorageBackend(RowStorageBackend):
    """Keeps clusters in one table of PostgreSQL, MySQL, MariaDB or SQLite.

    Needs SQLAlchemy 2 and a driver: `pip install 'sqlalchemy>=2.0.43'
    'psycopg[binary]'`. Each operation is one statement by itself, so it works behind a
    connection pooler; there are no advisory locks, no session settings, and nobody's
    clock is asked. A read is one statement, a renewal another.

    The table is `<prefix>storage` (cluster, item, version, value), and is created
    if missing, which needs the right to create tables once; after that, SELECT,
    INSERT, UPDATE and DELETE on it. What stands in it is text; nothing is secret.

    Give the address of the one primary server, never that of a read replica or of a
    proxy that sends reads to one. A server that fails over to a replica that lacks
    its last commits has rolled the lease back (N4): replicate synchronously.

    SQLite serves the nodes of one host, without a server. Its file must be on a
    local disk: on a network file system it is refused, where that can be told.

    Args:
        url_or_engine: as SQLAlchemy takes it, for example
            `postgresql://user:password@host/database`; with no driver named, one
            that is installed is taken. Or an engine of the application's own, whose
            pool, time-outs and tables' place are then the application's business.
        table_prefix: what the table's name begins with.
        create: whether to create the table and the cluster if they are not there.
        timeout: seconds, for connecting and for each statement; well below the
            renewal deadline. Drivers that take whole seconds round it up, and
            libpq waits at least 2 s for a connection.

    Raises:
        ClusterError: SQLAlchemy or the driver is not installed.
        ValueError: this is no such address, or one that no two processes share.
    """

    def __init__(
        self,
        url_or_engine: Any,
        *,
        table_prefix: str = "cluster_",
        create: bool = True,
        timeout: float = 1.0,
    ) -> None:
        self._sql = _driver("sqlalchemy", "sqlalchemy>=2.0.43")
        ok = re.match(r"[A-Za-z0-9_]{0,40}\Z", table_prefix) is not None
        _check(ok, "table_prefix is letters, digits and _", table_prefix)
        self._owned = isinstance(url_or_engine, (str, self._sql.engine.URL))
        known = self._owned or hasattr(url_or_engine, "dialect")
        _check(known, "not a database URL or an engine", type(url_or_engine).__name__)
        url = self._parsed(url_or_engine) if self._owned else url_or_engine.url
        secrets = [url.password] + [v for k, v in url.query.items() if "pass" in k]
        super().__init__(_sql_place(url), secrets, create, timeout)
        self._file = self._sqlite_file(url)
        self._engine = self._connected(url) if self._owned else url_or_engine
        if self._engine.dialect.is_async:
            raise ValueError("%s: needs a driver that is not async" % self._place)
        if not self._owned:
            self._engine = url_or_engine.execution_options(isolation_level="AUTOCOMMIT")
        self._table = self._make_table(table_prefix + "storage")

    def _parsed(self, url: Any) -> Any:
        try:
            url = self._sql.engine.make_url(url)
            kind = url.get_backend_name()
        except (self._sql.exc.ArgumentError, ValueError):  # its text may have a secret
            raise ValueError("this is no database URL that SQLAlchemy takes") from None
        if kind == "postgres":
            kind, url = "postgresql", url.set(drivername="postgresql")
        if "+" in url.drivername or kind not in _SQL_DRIVERS:
            return url
        import importlib.util

        for module, driver in _SQL_DRIVERS[kind]:
            if importlib.util.find_spec(module) is not None:
                return url.set(drivername="%s+%s" % (kind, driver))
        names = " or ".join(module for module, _ in _SQL_DRIVERS[kind])
        raise ClusterError("%s:// needs a driver: pip install %s" % (kind, names))

    def _sqlite_file(self, url: Any) -> str:
        if url.get_backend_name() != "sqlite":
            return ""
        ok = url.database and url.database != ":memory:" and url.database[:5] != "file:"
        _check(bool(ok), "sqlite:/// needs the path of a file", url.database)
        return os.path.abspath(str(url.database))

    def _connected(self, url: Any) -> Any:
        options: Dict[str, Any] = {"connect_args": self._time_outs(url)}
        if self._file:
            options["creator"] = self._connect_sqlite
        options.update(isolation_level="AUTOCOMMIT", hide_parameters=True)
        # No rollback after each statement, which would be a round trip
        options.update(pool_reset_on_return=None, skip_autocommit_rollback=True)
        options.update(poolclass=self._sql.QueuePool, pool_size=1)
        options.update(max_overflow=MAX_ABANDONED, pool_timeout=self.timeout)
        try:
            return self._sql.create_engine(url, **options)
        except (ImportError, self._sql.exc.NoSuchModuleError) as error:
            raise ClusterError("%s: install its driver (%s)" % (self._place, error))

    def _time_outs(self, url: Any) -> Dict[str, Any]:
        whole = max(1, math.ceil(self.timeout))
        known: Dict[str, Dict[str, Any]] = {
            # no prepared statements: a pooler gives each transaction any connection
            "psycopg": {"connect_timeout": max(2, whole), "prepare_threshold": None},
            "psycopg2": {"connect_timeout": max(2, whole)},
            "pg8000": {"timeout": self.timeout},
            "mysqlconnector": {"connection_timeout": whole},
        }
        for driver in ("pymysql", "mysqldb"):
            known[driver] = dict.fromkeys(
                ("connect_timeout", "read_timeout", "write_timeout"), whole
            )
        found = known.get(url.get_driver_name(), {})
        return {key: value for key, value in found.items() if key not in url.query}

    def _connect_sqlite(self) -> Any:
        import sqlite3
        import urllib.parse

        # Once opened, a file that is missing is gone, and is not made anew
        mode = "rwc" if self.create and not self._cluster_id else "rw"
        address = "file:%s?mode=%s" % (urllib.parse.quote(self._file), mode)
        db = sqlite3.connect(
            address,
            uri=True,
            timeout=0.05,
            isolation_level=None,
            check_same_thread=False,
        )
        try:
            db.execute("PRAGMA journal_mode=WAL")  # readers do not wait for writers
            db.execute("PRAGMA synchronous=FULL")  # a power cut must not repeat a term
        except BaseException:
            db.close()
            raise
        return db

    def _make_table(self, name: str) -> Any:
        sql = self._sql
        options = {}
        for kind in ("mysql", "mariadb"):  # everything in it is quoted, or JSON: ASCII
            options[kind + "_engine"] = "InnoDB"
            options[kind + "_charset"] = "ascii"
            options[kind + "_collate"] = "ascii_bin"
        return sql.Table(
            name,
            sql.MetaData(),
            sql.Column("cluster", sql.String(160), primary_key=True),
            sql.Column("item", sql.String(190), primary_key=True),
            sql.Column("version", sql.String(64), nullable=False),
            sql.Column("value", sql.Text, nullable=False),
            **options
        )  # fmt: skip

    # ---- rows

    def _prepare(self) -> None:
        if self._file:
            folder = os.path.dirname(self._file)
            kind = _file_system(folder)
            if kind in _NETWORK_FILE_SYSTEMS or kind.startswith("fuse."):
                text = "%s is on %s: SQLite needs a local disk; give a server's URL"
                raise StorageError(text % (self._file, kind))
            self.one_kernel = kind in _ONE_KERNEL_FILE_SYSTEMS
        if not self._has_table():
            if not self.create or self._cluster_id:
                text = "%s has no table %s (create=True makes a new one)"
                raise StorageError(text % (self._place, self._table.name))
            self._make()

    def _has_table(self) -> bool:
        name = self._table.name
        return bool(self._run(lambda db: self._sql.inspect(db).has_table(name)))

    def _make(self) -> None:
        make = self._sql.schema.CreateTable(self._table, if_not_exists=True)
        try:
            self._run(lambda db: db.execute(make))
        except self._sql.exc.SQLAlchemyError:  # PostgreSQL: another made it just now
            if not self._has_table():
                raise

    def _run(self, work: Callable[[Any], Any]) -> Any:
        deadline = time.monotonic() + self.timeout
        while True:
            try:
                return self._run_once(work)
            except self._sql.exc.OperationalError as error:
                # SQLite looks ever more rarely: begun anew, it gets in between others
                busy = self._file and "locked" in str(error.orig)
                if not busy or time.monotonic() >= deadline:
                    raise

    def _run_once(self, work: Callable[[Any], Any]) -> Any:
        with self._engine.connect() as connection:
            try:
                self._must_be_same_file(connection)
                with _Watchdog(connection, self.timeout):
                    return work(connection)
            except self._sql.exc.IntegrityError:
                raise
            except BaseException:  # an answer may still come: it is nobody else's
                connection.invalidate()
                raise

    def _must_be_same_file(self, connection: Any) -> None:
        """A file that was removed or replaced stays open, but is nobody else's."""
        if self._file:
            status = os.stat(self._file)
            identity = status.st_dev, status.st_ino
            if connection.info.setdefault("file", identity) != identity:
                raise OSError("%s was replaced" % self._file)

    def _rows(self, space: str) -> _Rows:
        row = self._table.c
        query = self._sql.select(row.item, row.version, row.value)
        query = query.where(row.cluster == space)
        found = self._run(lambda db: db.execute(query).all())
        return {item: (version, value) for item, version, value in found}

    def _swap(
        self, item: str, expected: Optional[str], version: str, value: str
    ) -> int:
        if expected is None:
            return self._insert(item, version, value)
        row = self._table.c
        update = self._table.update()
        update = update.where(row.cluster == self._space, row.item == item)
        if expected != _ANY:
            update = update.where(row.version == expected)
        update = update.values(version=version, value=value)
        done = int(self._run(lambda db: db.execute(update).rowcount))
        return done if done or expected != _ANY else self._insert(item, version, value)

    def _insert(self, item: str, version: str, value: str) -> int:
        row, text = self._table.c, self._sql.String
        values = (self._space, item, version, value)
        query = self._sql.select(*[self._sql.literal(v, text) for v in values])
        query = query.where(
            row.cluster == self._space,
            row.item == "identity",
            row.version == self._cluster_id,
        )
        insert = self._table.insert().from_select(
            ["cluster", "item", "version", "value"], query
        )
        insert = insert.execution_options(preserve_rowcount=True)
        try:
            return int(self._run(lambda db: db.execute(insert).rowcount)) or -1
        except self._sql.exc.IntegrityError:
            return 0

    def _found(self, space: str, identity: str) -> None:
        insert = self._table.insert().values(
            cluster=space, item="identity", version=identity, value=""
        )
        try:
            self._run(lambda db: db.execute(insert))
        except self._sql.exc.IntegrityError:
            pass

    def _delete(self, item: str) -> None:
        row = self._table.c
        delete = self._table.delete()
        delete = delete.where(row.cluster == self._space, row.item == item)
        self._run(lambda db: db.execute(delete))

    def close(self) -> None:
        if self._owned:
            self._engine.dispose()


def _sql_place(url: Any) -> str:
    host = url.host or ""
    if url.port:
        host += ":%d" % url.port
    return "%s://%s/%s" % (url.get_backend_name(), host, url.database or "")


class _Watchdog:
    """Ends a connection whose server does not answer: libpq would wait for ever.

    A thread of its own waits for the end of each statement. Drivers with a time-out of
    their own show no descriptor, and need none of this.
    """

    def __init__(self, connection: Any, seconds: float) -> None:
        self._timer: Optional[threading.Timer] = None
        driver: Any = connection.connection.driver_connection
        if not hasattr(driver, "fileno"):
            return
        try:
            self._socket = socket.socket(fileno=os.dup(driver.fileno()))
        except OSError:
            return
        self._timer = threading.Timer(seconds, self._end)
        self._timer.daemon = True

    def _end(self) -> None:
        try:
            self._socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass

    def __enter__(self) -> None:
        if self._timer is not None:
            try:
                self._timer.start()
            except RuntimeError:  # 3.12 starts none while the interpreter ends
                self._socket.close()
                self._timer = None

    def __exit__(self, *_: Any) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer.join()  # the descriptor may be another's after this
            self._socket.close()


class RedisStorageBackend(RowStorageBackend):
    """Keeps clusters in Redis or Valkey, each in one hash.

    Needs redis-py: `pip install 'redis>=5'`. A read is one HGETALL, a
    renewal one script. Nothing has a time to live, so nothing vanishes by itself.
    The account needs HGETALL, HGET, HSET, HSETNX, HDEL, EVALSHA, EVAL and SCRIPT
    LOAD on keys that begin with the prefix; the server must not evict them
    (`maxmemory-policy noeviction`).

    Not guaranteed:
        Redis answers before a write is on disk, unless `appendfsync always` is set,
        and before any replica has it. A restart, or a replica that is promoted
        (Sentinel, Cluster, managed services), may so roll the lease back: that is a
        storage without an atomic compare-and-swap, N4. `min-replicas-to-write`
        narrows the window, and WAIT, which this backend does not send, would too;
        neither closes it. One server with `appendonly yes` and `appendfsync always`
        keeps every guarantee.

    Args:
        url_or_client: `redis://`, `rediss://`, `valkey://`, `valkeys://` or
            `unix://`, as redis-py takes it; or a client, whose time-outs and retries
            are then the application's business. For Redis Cluster: a client of it.
        prefix: what the keys begin with.
        create: whether to create the cluster if it is not there.
        timeout: seconds, for connecting and for each answer.

    Raises:
        ClusterError: redis-py is not installed.
        ValueError: this is no such address.
    """

    _SWAP = """
        local found = redis.call('HGET', KEYS[1], ARGV[2])
        if not found and redis.call('HGET', KEYS[1], 'identity') ~= ARGV[1] then
            return -1
        end
        local version = found and string.match(found, '^[^ ]*') or ''
        if ARGV[3] ~= '*' and ARGV[3] ~= version then return 0 end
        redis.call('HSET', KEYS[1], ARGV[2], ARGV[4])
        return 1
    """

    def __init__(
        self,
        url_or_client: Any,
        *,
        prefix: str = "cluster:",
        create: bool = True,
        timeout: float = 1.0,
    ) -> None:
        self._prefix = prefix
        self._owned = isinstance(url_or_client, str)
        seconds = _seconds("timeout", timeout)
        client = url_or_client
        if self._owned:
            client = self._client_of(url_or_client, seconds)
        pool = getattr(client, "connection_pool", None)
        settings = getattr(pool, "connection_kwargs", {})
        super().__init__(
            _redis_place(settings), [settings.get("password")], create, timeout
        )
        self._client = client
        self._swap_script = client.register_script(self._SWAP)

    def _client_of(self, url: str, seconds: float) -> Any:
        redis = _driver("redis", "redis>=5")
        backoff = _driver("redis.backoff", "redis>=5")
        scheme = url.partition("://")[0]
        schemes = {"valkey": "redis", "valkeys": "rediss"}
        try:
            return redis.Redis.from_url(
                schemes.get(scheme, scheme) + url[len(scheme) :],
                socket_timeout=seconds,
                socket_connect_timeout=seconds,
                # a second try is not ours to make in the time that there is
                retry=_driver("redis.retry", "redis>=5").Retry(backoff.NoBackoff(), 0),
            )
        except ValueError:  # its text may show a password
            raise ValueError("this is no Redis URL that redis-py takes") from None

    def _key(self, space: str) -> str:
        return self._prefix + space

    def _rows(self, space: str) -> _Rows:
        rows = {}
        for item, text in self._client.hgetall(self._key(space)).items():
            version, _, value = _as_text(text).partition(" ")
            rows[_as_text(item)] = version, value
        return rows

    def _swap(
        self, item: str, expected: Optional[str], version: str, value: str
    ) -> int:
        text = "%s %s" % (version, value) if value else version
        arguments = [self._cluster_id, item, expected or "", text]
        keys = [self._key(self._space)]
        return int(self._swap_script(keys=keys, args=arguments))

    def _found(self, space: str, identity: str) -> None:
        self._client.hsetnx(self._key(space), "identity", identity)

    def _delete(self, item: str) -> None:
        self._client.hdel(self._key(self._space), item)

    def close(self) -> None:
        if self._owned:
            self._client.close()


def _as_text(value: Union[str, bytes]) -> str:
    """Whatever `decode_responses` is for the client."""
    return value if isinstance(value, str) else value.decode("utf-8", "replace")


def _redis_place(settings: Dict[str, Any]) -> str:
    if "path" in settings:
        return "unix://%s" % settings["path"]
    if "host" not in settings:  # of a Sentinel or a Cluster, say
        return "redis"
    port, db = settings.get("port", 6379), settings.get("db") or 0
    return "redis://%s:%s/%s" % (settings["host"], port, db)


def storage_from_url(url: str, **options: Any) -> StorageBackend:
    """The backend for an address, so that a setting can name the storage.

    - `file:///srv/shared`: a shared folder;
    - `sqlite:////srv/cluster.sqlite`, `postgresql://...`, `mysql://...`,
      `mariadb://...`: as SQLAlchemy takes them, `postgresql+psycopg://` included;
    - `redis://...`, `rediss://...`, `valkey://...`, `valkeys://...`, `unix://...`.

    Args:
        url: the address.
        **options: keyword arguments of that backend, such as `create=False`.

    Raises:
        ValueError: no such kind of address; nothing that is secret is in the text.
        ClusterError: a library that it needs is not installed.
    """
    import urllib.parse
    import urllib.request

    scheme, colon, _ = url.partition(":")
    kind = scheme.partition("+")[0].lower() if colon else ""
    if kind == "file":
        parts = urllib.parse.urlsplit(url)
        local = parts.netloc in ("", "localhost") and parts.path not in ("", "/")
        _check(local, "a folder is file:///path, three slashes", parts.netloc)
        path = urllib.request.url2pathname(parts.path)
        return SharedFsStorageBackend(path, **options)
    if kind in ("sqlite", "postgresql", "postgres", "mysql", "mariadb"):
        return SqlStorageBackend(url, **options)
    if kind in ("redis", "rediss", "valkey", "valkeys", "unix"):
        return RedisStorageBackend(url, **options)
    text = (
        "a storage URL begins with file://, sqlite://, postgresql://, mysql://, "
        "mariadb://, redis://, rediss://, valkey:// or unix://, not with"
    )
    known = re.match("[a-z0-9]{1,20}$", kind)
    shown = kind + "://" if known else "(none of a known form)"
    raise ValueError("%s %s" % (text, shown))


# --------------------------------------------------------------------------------
# Decision core: pure. Events and the time in, actions out
# --------------------------------------------------------------------------------

JOINING = "joining"
MEMBER = "member"
CLAIMANT = "claimant"  # holds the lease, waits until nobody else can be primary
PRIMARY = "primary"
STOPPING = "stopping"  # is primary no more, its callbacks still run
FINISHED = "finished"

PROBE_INTERVAL = 0.1  # seconds between two questions to whoever has our name
PROBE_TIME = 3.0  # seconds, at most, until silence counts as an answer
LEAVE_TIME = 5.0  # seconds, at most, that leaving waits for the storage
PAUSED = "paused: nobody becomes primary until resume() is called"
COMPLAINT_INTERVAL = 60.0  # seconds between two log lines of one complaint
MAX_ABANDONED = 4  # storage calls that never returned, each with a thread of its own
MAX_UNRECORDED = 1000  # peers that are known by hearsay alone
MAX_HEARD_TERM = 2**40  # terms count seconds: above any clock, in storage or nowhere
MAX_DENIED = 32  # leases that were heard of and are not, as remembered
EDIT_STEP = 10**6  # more than any holder makes attempts between two successes
MAX_STRANGERS = 32  # unknown senders that may prompt a read within a check interval


# As in a Heartbeat, in order
Flags = Tuple[bool, bool, bool, int, int, int, int, bool, str]


class Peer:
    """What a node knows of one other incarnation. Owned by its decision core."""

    __slots__ = (
        "appeared", "asked_at", "dead_at", "dismissed", "ever", "examined_at",
        "flags", "flags_at", "heard", "incarnation", "left", "linked_at",
        "linked_since", "missing_since", "newest", "newest_at", "notice", "offer_at",
        "record", "record_at", "reported", "running_at", "running_term",
        "stopped_term", "successor", "vouch", "vouched_at",
    )  # fmt: skip

    def __init__(self, incarnation: str, now: float) -> None:
        self.incarnation = incarnation
        self.record: Optional[NodeRecord] = None
        # absent from the snapshots since then; None: its record is there
        self.missing_since: Optional[float] = now
        self.appeared = False  # its record came while we watched: newly joined
        self.ever = False  # a heartbeat of it came in that echoed one of ours
        self.linked_at = -FOREVER  # when that was last so
        self.linked_since = now  # since when it has not been lost
        self.heard = now  # the same, with the grace that it is given
        self.newest = 0  # the newest `sent` of its heartbeats: what we echo
        self.newest_at = -FOREVER  # when that one came in
        # A vouch is an echo that does not flag the holder as lost. The two sides:
        # the holder counts from when it *sent* what was echoed (vouch), a claimant
        # waits from when it *received* what it echoed (vouched_at), which is later.
        self.vouch = -FOREVER
        self.vouched_at = -FOREVER
        self.flags: Optional[Heartbeat] = None  # its newest, if the link was shown
        self.flags_at = -FOREVER
        self.offer_at = FOREVER
        self.stopped_term = 0
        self.successor = (0, "")  # whom it wants to be the next after that term
        self.running_term = 0  # callbacks of this term, which is over, still run
        self.running_at = -FOREVER
        self.notice = (0, 0)  # (running_term, notice) as last found in its record
        self.left = False
        self.dead_at: Optional[float] = None  # when its death was proven
        self.dismissed = False  # its record was removed, for this loss
        self.record_at = now  # when its record was last news
        self.reported = False  # its loss was logged
        self.asked_at = -FOREVER  # last time it was sent an *answer now*
        self.examined_at = -FOREVER

    @property
    def name(self) -> str:
        return self.record.name if self.record else self.incarnation


class Pending(NamedTuple):
    """A storage call that was sent off, and what for."""

    id: int
    request: Request
    began: float
    purpose: str


class Deposed(NamedTuple):
    """The lease that a claim took, as known when the claim was sent."""

    lease: Optional[Lease]
    seen_at: float
    term_seen_at: float
    vouched_at: float


class Core:
    """Everything that one node decides.

    A pure function of what it is told: `step` takes the time and events, and
    returns actions. Whoever drives it (the threads of `ClusterControl`, or a
    simulator) carries them out in order and calls `step` again at `wake_at` at the
    latest. Times are seconds on the node's own monotonic clock.

    Invariants, by the promise that they carry:
        At most one primary: a claim is a compare-and-swap of the newest lease; its
        claimant starts only when the deposed holder has said that it stopped, is
        proven dead, or must have stopped by its own clock (`_startable_at`).

        is_primary: `primacy` states until when the lease holds. It is renewed from
        the *beginning* of a successful swap, extended only while every member of
        the roster vouches, and never again once it has passed.

        Pairing: every start callback handed out is followed by one stop callback,
        unless it was skipped.
    """

    def __init__(
        self,
        timings: Timings,
        record: NodeRecord,
        now: float,
        first_term: int,
        heeds_versions: bool = True,
    ) -> None:
        self.timings = timings
        self._heeds_versions = heeds_versions
        self._lost_after = timings.detection_time  # asked for at every turn
        self._ask_interval = timings.ask_interval
        self.record = record
        self.written: Optional[NodeRecord] = None
        self.first_term = first_term
        self._least_term = 0  # above all that were seen in a store that is forgotten
        self.role = JOINING
        self.primacy: Tuple[int, float] = (0, -FOREVER)
        self.wake_at = now
        self._epoch = now
        self._now = now
        self._out: List[Action] = []
        self._sent = 0
        # Membership
        self.cluster_id: Optional[str] = None
        self.peers: Dict[str, Peer] = {}
        self.records: Dict[str, NodeRecord] = {}
        self._nodes: Optional[Tuple[NodeRecord, ...]] = None
        self._top_join = 0
        self._strangers: Dict[Tuple[str, int], float] = {}
        self._probe: Optional[NodeRecord] = None
        self._probe_until = -FOREVER
        self._probe_at = -FOREVER
        self._exiled_until: Optional[float] = None
        # The lease as known: newest value seen anywhere, and the one in storage
        self.lease: Optional[Lease] = None
        self._stored: Optional[Lease] = None
        self._seen_at = now
        self._term_seen_at = now
        self._rolled_back_at: Optional[float] = None
        # Hearsay: a lease newer than any read, its stamp and who told it first
        self._hearsay: Tuple[Tuple[int, int], str] = ((0, 0), "")
        self._denied: Deque[Tuple[int, int]] = collections.deque(maxlen=MAX_DENIED)
        self._renewals_behind = 0  # seen in the storage, of an older lease than that
        # Claiming
        self._started_by_user = False
        self._claim_from: Optional[float] = None
        self._doubt: Optional[Swap] = None  # a claim that may still land
        self._last_claim = 0  # the term of the newest claim
        self._barred: Tuple[float, float] = (-FOREVER, -FOREVER)  # in company, alone
        self._failures = 0
        # Holding
        self._deposed = Deposed(None, -FOREVER, -FOREVER, -FOREVER)
        self._claimed_at = -FOREVER
        self._start_ok_since: Optional[float] = None
        self._held: Optional[Lease] = None
        self._attempts: Dict[Tuple[int, int], Tuple[Lease, float]] = {}
        self._counter = 0
        self._renewed_at = -FOREVER
        self._renew_tried_at = -FOREVER
        self._renew_failing_since: Optional[float] = None
        self._renew_failed_began = -FOREVER
        self._freeze_asked_at = -FOREVER
        self._frozen = False
        self._challenge = 0  # a higher term that somebody claims to know
        self._refuted = 0  # up to here the storage has denied such challenges
        self._orderly = False
        self._stopping_since = -FOREVER
        self._release: Optional[Lease] = None
        self._release_at = -FOREVER
        self._step_down = False
        self._successor = (0, "")  # whom we want to be the next after that term
        # Callbacks
        self._queue: List[RunCallback] = []
        self._callback: Optional[RunCallback] = None
        # Leaving
        self._leaving: Optional[str] = None  # why: "stop" or "exit"
        self._leave_until = FOREVER
        self._record_written = False
        self._record_removed = False
        self._exit_called = False
        # Storage
        self._call: Optional[Pending] = None
        self._calls: Dict[int, Pending] = {}
        self._call_count = 0
        self._purpose = ""  # of the last call
        self._failing_since: Optional[float] = None
        self._last_error = ""
        self._complained_at = -FOREVER
        self._read_began = -FOREVER
        self._read_wanted = False
        self._retry_at = -FOREVER
        self._write_wanted = False
        self._described = False  # others are to be told of the next write
        self._changed_at = -FOREVER  # when that was done
        self._noticed_at = -FOREVER
        self._news_at = -FOREVER  # when the record last became news for the holder
        self._offer = 0
        self._offer_asked = 0
        self._pauses: List[PauseAsked] = []  # in order; the first may be under way
        self._edited: List[int] = []  # tickets of those that are done
        self._pause_told = False  # what people were told last
        self._removals: Dict[str, str] = {}  # incarnation -> name, of our own name
        # Heartbeats
        self.repeated = 0  # heartbeats that came in again, or out of order
        self._next_beat = -FOREVER
        self._beat_wanted = False
        self._roster_stale = False
        self._flags_sent: Tuple[object, ...] = ()
        self._sweep_at = -FOREVER
        # What people are told
        self._announced: Optional[str] = None
        self.why = "it is joining"
        self.since = now

    # ---- the one entry

    def step(self, now: float, *events: Event) -> List[Action]:
        """Takes events that happened, and that the time is `now`.

        Returns:
            What is to be done, in this order. `wake_at` and `primacy` are set.
        """
        late = now - self.wake_at
        self._now = now
        self._out = []
        if self.role is FINISHED:
            return self._out
        # The clock speaks before any event: a lease that has run out while this
        # node slept is not brought back by what arrived meanwhile.
        self._check_lease()
        if late > self.timings.hb_timeout / 20:
            self._excuse(late)
        for event in events:
            self._HANDLERS[type(event)](self, event)
        self._advance()
        return self._out

    def _wake(self, at: float) -> None:
        # What is due by now was looked at in this step, or waits for an event
        if self._now < at < self.wake_at:
            self.wake_at = at

    def _say(self, level: int, text: str, *args: object) -> None:
        self._out.append(Say(level, text % args if args else text))

    def _excuse(self, late: float) -> None:
        """This loop was late: the peers get that much more time."""
        for peer in self.peers.values():
            peer.heard = min(self._now, peer.heard + late)
        self._sweep_at = self._now

    def _advance(self) -> None:
        """Does whatever is due now, and finds out when the next thing is."""
        self.wake_at = FOREVER
        if self.role is FINISHED:
            return
        self._watch_storage()
        if self.role is not JOINING:
            self._sweep()
            self._settle()
            self._publish()
            self._announce()
        self._pump()
        self._drive_storage()
        if self.role is not JOINING:
            self._beat()
        self._finish()

    def _settle(self) -> None:
        """Moves through roles for as long as something changes."""
        if self.role is CLAIMANT:
            self._consider_start()
        if self.role is PRIMARY:
            self._consider_handover()
        if self.role is STOPPING:
            self._wake(self._stopping_since + self.timings.stop_timeout)
        if self.role is MEMBER:
            self._disown()
            self._consider_claim()

    # ---- joining

    def _drive_joining(self) -> Optional[Request]:
        if self._exiled_until is not None:
            self._wake(self._exiled_until)
            if self._now < self._exiled_until:
                return None
            self._exiled_until = None
        if self._leaving:
            return None
        if self._now < self._retry_at:
            self._wake(self._retry_at)
            return None
        if self.cluster_id is None:
            return Open()
        if self._nodes is None:
            return Read(True)
        if self._probe and self._ask_namesake(self._probe):
            return None
        self._record_written = True  # from now on, perhaps
        return Join(self.record)

    def _ask_namesake(self, namesake: NodeRecord) -> bool:
        """True while it may still answer that it lives."""
        if self._peer(namesake.incarnation).dead_at is not None:
            return False
        if self._now >= self._probe_until:
            return False
        if self._now >= self._probe_at:
            self._probe_at = self._now + PROBE_INTERVAL
            self._send(namesake.address, namesake.incarnation, 0, True)
            self._out.append(Examine(namesake, bind=True))
        self._wake(min(self._probe_at, self._probe_until))
        return True

    def _opened(self, cluster_id: str) -> None:
        self.cluster_id = cluster_id

    def _looked(self, snapshot: Snapshot) -> None:
        """The first read: who is there, and does anybody have this node's name?"""
        namesakes = [
            r for r in snapshot.nodes
            if r.name == self.record.name and r.incarnation != self.record.incarnation
        ]  # fmt: skip
        self._removals = {r.incarnation: r.name for r in namesakes}
        self._take_nodes(snapshot.nodes)
        if namesakes and self._probe is None:
            self._probe = max(namesakes, key=lambda r: r.seniority)
            self._probe_until = self._now + min(self.timings.hb_timeout, PROBE_TIME)

    def _namesake_lives(self, namesake: NodeRecord) -> None:
        text = "node name %r is in use in this cluster by a living process at %s:%d"
        text %= namesake.name, namesake.host, namesake.port
        self._tell(text)
        self._out.append(JoinFailed(text + "; give every node a name of its own"))
        self.role = FINISHED
        self.wake_at = FOREVER

    def _joined(self, record: NodeRecord) -> None:
        # Described anew meanwhile?
        own = self.record
        self.record = record._replace(
            metadata=own.metadata, companions=own.companions
        )
        self.written = record
        self._write_wanted = record != self.record
        self.role = MEMBER
        self._top_join = max(self._top_join, record.join_number)
        self._read_wanted = self._beat_wanted = True
        if not self._leaving:
            self._tell("it has just joined")
        self._out.append(Joined())
        number = len(self.records)
        self._say(
            logging.INFO,
            "node %r joined (%d other member%s)",
            record.name, number, "" if number == 1 else "s",
        )  # fmt: skip

    # ---- what the storage said

    def _on_returned(self, event: Returned) -> None:
        pending = self._calls.pop(event.id, None)
        if pending is None:
            return
        if pending is not self._call:  # given up: it may have landed, a read tells
            if event.error is None and event.result is False:
                self._claim_was_lost(pending.request)
            if isinstance(event.result, Snapshot):
                self._read_late(pending, event.result)
            return
        self._call = None
        if event.error is not None:
            self._storage_failed(pending, event.error)
        else:
            self._storage_answered(pending, event.result)

    def _read_late(self, pending: Pending, snapshot: Snapshot) -> None:
        """A read that was given up is old news, but may be all that a holder gets.

        Whatever was renewed since, no other store, nor another term, stood there.
        """
        held, lease = self._held, snapshot.lease
        if held is None or pending.began <= self._claimed_at:
            return
        if snapshot.cluster_id not in (None, self.cluster_id):
            self._store_replaced()
        elif lease is None or lease.term != held.term:
            self._lose_lease("the lease is gone from the storage")
        elif lease.holder == held.holder and lease.stamp in self._attempts:
            # It did land, whatever followed
            self._adopt(*self._attempts[lease.stamp])

    def _storage_failed(self, pending: Pending, error: str) -> None:
        self._note_failure(pending, error)
        if pending.purpose != "renew":
            # Not after a renewal: the next one, due by then, would go before the read
            # again and again, and a holder would never find that its store was wiped.
            self._retry_at = self._now + min(self.timings.renewal_period, 1.0)
        # Reading tells what became of it, and whether the store is still ours; a
        # write that fails for good must not keep this node from reading.
        self._read_wanted = self._read_wanted or not isinstance(pending.request, Read)
        if pending.purpose == "release":
            self._release_at = self._now + self.timings.renewal_period
        if isinstance(pending.request, Pause):
            self._pause_done(error)
        if isinstance(pending.request, Join):
            # It may have landed: a second attempt replaces it, leaving removes it.
            # Looked at anew first: the store may have been wiped
            self.cluster_id = self._nodes = None

    def _note_failure(self, pending: Pending, error: str) -> None:
        if self._failing_since is None:
            self._failing_since = pending.began
            if self._now >= self._complained_at + COMPLAINT_INTERVAL:
                self._complained_at = self._now
                self._say(logging.WARNING, "the storage does not work: %s", error)
        self._last_error = error
        self._offer = 0
        if isinstance(pending.request, Swap) or pending is self._call:
            if self._held and self._renew_failing_since is None:
                self._renew_failing_since = pending.began
            self._renew_failed_began = max(self._renew_failed_began, pending.began)
        if self._challenge:
            self._lose_lease("a higher term is known, and the storage does not answer")

    def _storage_answered(self, pending: Pending, result: Any) -> None:
        if self._failing_since is not None:
            outage = self._now - self._failing_since
            self._failing_since = None
            if self._complained_at + outage >= self._now:
                text = "the storage works again after %.1f s"
                self._say(logging.INFO, text, outage)
        self._retry_at = -FOREVER
        request = pending.request
        if isinstance(request, Open):
            self._opened(result)
        elif isinstance(request, Read):
            self._read_began = pending.began
            self._on_snapshot(result, pending.began)
        elif isinstance(request, Join):
            self._joined(result)
        elif isinstance(request, Write):
            self._wrote(request.record, pending.purpose)
        elif isinstance(request, Remove):
            self._removed(request.incarnation)
        elif isinstance(request, Swap):
            self._swapped(pending, request.new, result)
        elif isinstance(request, Pause):
            self._paused(result)

    def _swapped(self, pending: Pending, new: Lease, won: bool) -> None:
        if not won:
            # Somebody else's value is there, or an earlier attempt of our own
            self._read_wanted = True
            self._claim_was_lost(pending.request)
            # The next of its kind would go before that read, each time
            if pending.purpose == "release":
                self._release_at = self._now + self.timings.renewal_period
            elif pending.purpose == "renew":
                self._renew_tried_at = self._now
        elif pending.purpose == "claim":
            self._claimed(pending, new)
        elif pending.purpose == "renew":
            self._adopt(new, pending.began)
        elif pending.purpose == "release":
            self._released(new)

    def _paused(self, result: Union[Lease, str]) -> None:
        if isinstance(result, str):
            self._pause_done(result)
        else:
            # It is told once this node has read it, and acts by it
            self._edited.append(self._pauses.pop(0).ticket)
            self._read_wanted = True

    def _pause_done(self, error: str) -> None:
        self._out.append(PauseDone(self._pauses.pop(0).ticket, error))

    def _wrote(self, record: NodeRecord, purpose: str) -> None:
        self.written = record
        if record == self.record:
            self._write_wanted = False
            if self._described:
                self._described = False
                self._changed_at = self._now
        if purpose == "offer" and self._offer_asked:
            self._offer = self._offer_asked

    def _removed(self, incarnation: str) -> None:
        self._removals.pop(incarnation, None)
        if incarnation == self.record.incarnation:
            self._record_removed = True
            self._beat_wanted = True
        elif incarnation in self.peers:
            self.peers[incarnation].dismissed = True
            self._read_wanted = True

    def _on_snapshot(self, snapshot: Snapshot, began: float) -> None:
        if snapshot.cluster_id not in (None, self.cluster_id):
            self._store_replaced()
            return
        if self.role is JOINING:
            self._looked(snapshot)
            self._take_lease(snapshot.lease, began)
            return
        if snapshot.cluster_id is None:
            assert self.cluster_id is not None
            self._issue(Repair(self.cluster_id), "repair")
        self._take_nodes(snapshot.nodes)
        self._check_own_record(snapshot.nodes)
        self._take_lease(snapshot.lease, began)
        if not self._read_wanted:  # since this read began
            self._challenge = 0
        self._out += [PauseDone(ticket, "") for ticket in self._edited]
        self._edited = []

    def _store_replaced(self) -> None:
        """Another cluster id under the same root: a new store, to be joined late."""
        if self._exiled_until is not None:
            return
        wait = self._lease_duration() + self._freeze_limit()
        self._say(
            logging.ERROR,
            "the storage was replaced by another one (another cluster id); "
            "this node joins it in %.0f s, when no primary of the old one is left",
            wait,
        )
        self._lose_lease("the storage was replaced by another one")
        if self.role is STOPPING:
            self._exiled_until = self._now + wait
        else:
            self._forget_store(self._now + wait)

    def _forget_store(self, until: float) -> None:
        self.role = JOINING
        self._exiled_until = until
        if self.lease is not None:  # terms rise across stores as well
            self._least_term = max(self._least_term, self.lease.term + 1)
        self.record = self.record._replace(join_number=0)
        self.cluster_id = self._nodes = self._probe = None
        self.lease = self._stored = self._release = self._rolled_back_at = None
        self._held = self._doubt = self._claim_from = None
        self._record_written = False
        self.peers, self.records, self._attempts = {}, {}, {}
        self._top_join = 0

    # ---- members

    def _peer(self, incarnation: str) -> Peer:
        peer = self.peers.get(incarnation)
        if peer is None:
            peer = self.peers[incarnation] = Peer(incarnation, self._now)
            self._sweep_at = self._now
        return peer

    def _take_nodes(self, nodes: Tuple[NodeRecord, ...]) -> None:
        if nodes == self._nodes:
            return
        first, self._nodes = self._nodes is None, nodes
        view: Dict[str, NodeRecord] = {}
        for record in sorted(nodes, key=lambda r: r.seniority):
            view[record.name] = record
        view.pop(self.record.name, None)
        present = set()
        for record in nodes:
            if record.incarnation != self.record.incarnation:
                present.add(record.incarnation)
                self._take_record(record, first)
        for peer in self.peers.values():
            if peer.incarnation not in present and peer.missing_since is None:
                peer.missing_since = self._now
        self._log_members(view)
        self.records = view
        self._forget_peers()
        self._sweep_at = self._now
        self._roster_stale = True

    def _forget_peers(self) -> None:
        """Drops those who are gone for longer than anything compares."""
        keep = {self.lease.holder} | (self.lease.roster or set()) if self.lease else ()
        old = self._lease_duration() + self._freeze_limit() + 60.0
        for peer in list(self.peers.values()):
            gone = peer.missing_since
            if gone is not None and gone + old < self._now:
                if peer.incarnation not in keep:
                    del self.peers[peer.incarnation]

    def _forget_unrecorded(self) -> None:
        """Without a secret, anybody can name holders that there never were."""
        keep = {self.lease.holder} | (self.lease.roster or set()) if self.lease else ()
        for peer in list(self.peers.values()):
            if peer.record is None and peer.incarnation not in keep:
                del self.peers[peer.incarnation]

    def _take_record(self, record: NodeRecord, first: bool) -> None:
        peer = self._peer(record.incarnation)
        new = peer.record is None
        if new:
            # Known only from the lease so far, it could not be asked: its callbacks
            # may run, and it gets the time to say so
            peer.heard = self._now
            self._sweep_at = self._now
        if peer.record and peer.missing_since is not None:
            # Not written back by a living node, which would count on
            peer.dismissed = peer.dismissed and record.notice > peer.record.notice
        if record != peer.record or peer.missing_since is not None:
            peer.record_at = self._now
        if peer.dead_at is not None and peer.record is not None:
            if record.companions != peer.record.companions:
                # The proof was made of an old record; these may live. Who was proven
                # dead wrote it before, so no start follows on a read that lacks it
                peer.dead_at, peer.reported = None, False
                self._out.append(Examine(record))
        peer.record, peer.missing_since = record, None
        peer.stopped_term = max(peer.stopped_term, record.stopped_term)
        notice = (record.running_term, record.notice)
        if record.running_term and notice != peer.notice:
            peer.notice = notice
            peer.running_term, peer.running_at = record.running_term, self._now
        if record.join_number > self._top_join:
            self._top_join = record.join_number
            peer.appeared = not first
        if new:
            self._out.append(Examine(record))
            if self.role is not JOINING:
                self._greet(peer)

    def _greet(self, peer: Peer) -> None:
        if peer.record:
            peer.asked_at = self._now
            self._send(peer.record.address, peer.incarnation, peer.newest, True)

    def _log_members(self, view: Dict[str, NodeRecord]) -> None:
        if self.role is JOINING:
            return
        for name in sorted(view.keys() - self.records.keys()):
            self._say(logging.INFO, "node %r is a member now", name)
        for name in sorted(self.records.keys() - view.keys()):
            self._say(logging.INFO, "node %r is no member any more", name)

    def _check_own_record(self, nodes: Tuple[NodeRecord, ...]) -> None:
        """Writes it back if it was removed; leaves if the name was taken over."""
        mine = None
        for record in nodes:
            if record.incarnation == self.record.incarnation:
                mine = record
            elif record.name != self.record.name:
                continue
            elif (
                record.seniority < self.record.seniority
                or self._peer(record.incarnation).dead_at is not None
            ):  # the dead may be the more senior: their join has landed late
                self._removals[record.incarnation] = record.name
            else:
                self._exit("its name was taken over by %s:%d" % record.address)
        if mine is not None and mine.join_number > self.record.join_number:
            # A join that was given up has landed late, and cannot be undone by a lower
            self.record = self.record._replace(join_number=mine.join_number)
        if mine != self.record and not self._leaving:
            if mine is None and not self._write_wanted:
                self._say(logging.INFO, "this node's record was removed; it is back")
                # News: what the dead wrote may land late, and is to be removed again
                self._make_news()
            self._write_wanted = True
        elif self._news_at > -FOREVER and self._lost_term():
            # The holder cannot hear that this node, which it removed, lives
            if self._now >= self._news_at + self.timings.detection_time:
                self._make_news()

    def _make_news(self) -> None:
        self._news_at = self._now
        self.record = self.record._replace(notice=self.record.notice + 1)
        self._write_wanted = True

    def _is_lost(self, peer: Peer) -> bool:
        if peer.left or peer.dead_at is not None:
            return True
        return self._now - peer.heard >= self._lost_after

    def _is_alive(self, peer: Peer) -> bool:
        """Alive in the cluster, as the version rule means it."""
        return (peer.ever or peer.appeared) and not self._is_lost(peer)

    def _company(self) -> List[Peer]:
        """Those whose heartbeats come in, and who echo ours."""
        return [p for p in self.peers.values() if p.ever and not self._is_lost(p)]

    def _on_proven_dead(self, event: ProvenDead) -> None:
        peer = self._peer(event.incarnation)
        if peer.dead_at is None:
            peer.dead_at = self._now
            self._sweep_at = self._now

    def _sweep(self) -> None:
        """Looks at every peer whose silence may have come to something."""
        if self._now >= self._sweep_at:
            self._sweep_at = FOREVER
            for peer in list(self.peers.values()):
                self._sweep_at = min(self._sweep_at, self._look_at(peer))
            self._check_versions()
        self._wake(self._sweep_at)

    def _look_at(self, peer: Peer) -> float:
        """Returns when to look at this peer again."""
        if self._is_lost(peer):
            self._lost(peer)
            return FOREVER
        lost_at = peer.heard + self.timings.detection_time
        if peer.record is None:
            return lost_at
        ask_at = peer.heard + 1.5 * self.timings.hb_interval
        if self._now < ask_at:
            return min(ask_at, lost_at)
        ask_at = peer.asked_at + self._ask_interval
        if self._now >= ask_at:
            ask_at = self._now + self._ask_interval
            self._greet(peer)
            self._examine(peer)
        return min(ask_at, lost_at)

    def _examine(self, peer: Peer) -> None:
        if peer.record and self._now >= peer.examined_at + self.timings.hb_interval:
            peer.examined_at = self._now
            self._out.append(Examine(peer.record, bind=True))

    def _lost(self, peer: Peer) -> None:
        if peer.reported:
            return
        peer.reported = self._roster_stale = True
        if peer.record is None:
            return
        if peer.left:
            reason = "left"
        elif peer.dead_at is not None:
            reason = "is dead (its process is gone)"
        elif peer.ever:
            reason = "is lost: not heard for %.1f s" % (self._now - peer.linked_at)
        else:
            reason = "is lost: never heard"
        self._say(logging.INFO, "node %r %s", peer.name, reason)

    def _check_versions(self) -> None:
        own = self.record.version
        if own is None or self._leaving or not self._heeds_versions:
            return
        for peer in self.peers.values():
            theirs = peer.record.version if peer.record else None
            if theirs is None or theirs == own or not self._is_alive(peer):
                continue
            if version_key(theirs) > version_key(own):
                text = "node %r runs version %s, newer than this one's %s"
                self._exit(text % (peer.name, theirs, own))
                return

    # ---- heartbeats in

    def _on_heard(self, event: Heard) -> None:
        heartbeat = event.heartbeat
        if heartbeat.receiver != self.record.incarnation:
            return  # meant for an earlier incarnation, or replayed
        if heartbeat.sender == self.record.incarnation:
            return
        if self.role is JOINING:
            self._heard_joining(heartbeat)
            return
        peer = self.peers.get(heartbeat.sender)
        if peer is None:
            self._heard_stranger(heartbeat, event.source)
        elif heartbeat.sent > peer.newest:
            self._heard_peer(peer, heartbeat, event.source)
        else:
            self.repeated += 1

    def _heard_joining(self, heartbeat: Heartbeat) -> None:
        probe = self._probe
        if self._record_written or probe is None or heartbeat.leaving:
            return  # an answer that comes too late would end both
        if heartbeat.sender == probe.incarnation:
            self._namesake_lives(probe)

    def _heard_stranger(self, heartbeat: Heartbeat, source: Tuple[str, int]) -> None:
        if self._must_answer(heartbeat, None):
            self._send(source, heartbeat.sender, 0)  # no echo: not a vouch either
        if not heartbeat.leaving:
            self._prompt_read(source)
        if heartbeat.holder:
            self._depose_too(heartbeat)

    def _must_answer(
        self, heartbeat: Heartbeat, record: Optional[NodeRecord]
    ) -> bool:
        """True if it asks, or if it would not hear of us otherwise.

        Whoever joined while our storage hung may be a claimant, and must be told
        that callbacks still run here; without its record it gets no heartbeats.
        """
        return heartbeat.answer or (self.role is STOPPING and record is None)

    def _prompt_read(self, source: Tuple[str, int]) -> None:
        """A sender prompts at most one read per check interval.

        Told apart by its address: incarnations cost a forger nothing.
        """
        fresh = self._now - self.timings.check_interval
        known = self._strangers
        if len(known) >= MAX_STRANGERS:
            known = {s: at for s, at in known.items() if at > fresh}
            self._strangers = known
        if known.get(source, -FOREVER) <= fresh and len(known) < MAX_STRANGERS:
            known[source] = self._now
            self._read_wanted = True

    def _heard_peer(
        self, peer: Peer, heartbeat: Heartbeat, source: Tuple[str, int]
    ) -> None:
        peer.newest, peer.newest_at = heartbeat.sent, self._now
        peer.stopped_term = max(peer.stopped_term, heartbeat.stopped)
        if heartbeat.successor:
            peer.successor = heartbeat.stopped, heartbeat.successor
        if heartbeat.running:
            peer.running_term, peer.running_at = heartbeat.running, self._now
        if 0 < heartbeat.echo <= self._sent:
            self._echoed(peer, heartbeat)
        if heartbeat.leaving:
            # Said twice: on leaving, and once the record is removed
            peer.left = True
            self._sweep_at = self._now
            self._read_wanted = self._read_wanted or peer.missing_since is None
        elif peer.missing_since is not None or heartbeat.changed:
            self._prompt_read(source)
        if heartbeat.holder:
            self._heard_lease(heartbeat)
        if self._must_answer(heartbeat, peer.record) and not peer.left:
            address = peer.record.address if peer.record else source
            self._send(address, peer.incarnation, peer.newest)

    def _echoed(self, peer: Peer, heartbeat: Heartbeat) -> None:
        sent_at = self._epoch + heartbeat.echo / 1e6
        if self._now - sent_at < self.timings.echo_age:
            self._link_shown(peer)
            offered = peer.flags is not None and peer.flags.offer == heartbeat.offer
            if not offered or not heartbeat.offer:
                peer.offer_at = self._now if heartbeat.offer else FOREVER
            peer.flags, peer.flags_at = heartbeat, self._now
        # Who knows a higher term, or has lost us, or may be claiming, vouches not
        if heartbeat.lost != self._term() and heartbeat.term <= self._term():
            peer.vouch = max(peer.vouch, sent_at)

    def _link_shown(self, peer: Peer) -> None:
        if peer.reported or not peer.ever:
            peer.linked_since = self._now
        if peer.reported and not peer.left and peer.dead_at is None:
            self._say(logging.INFO, "node %r is heard again", peer.name)
            peer.reported = peer.dismissed = False
            self._sweep_at = self._now
        if not peer.ever:
            peer.ever = True
            self._sweep_at = self._now
        peer.linked_at = peer.heard = self._now
        if self._held and peer.incarnation not in (self._held.roster or ()):
            self._roster_stale = True

    def _heard_lease(self, heartbeat: Heartbeat) -> None:
        stamp = (heartbeat.term, heartbeat.counter)
        if not self._is_possible(heartbeat.term):
            return
        self._depose_too(heartbeat)
        if heartbeat.sender == self._hearsay[1] and stamp < self._hearsay[0]:
            self._deny_hearsay("who told of it does not know it")
        held = self._held
        if held and (heartbeat.term, heartbeat.holder) == (held.term, held.holder):
            return  # somebody has edited our lease: the storage tells, and no one else
        known = self.lease
        if stamp in self._denied or (known is not None and stamp <= known.stamp):
            return
        if known is None or heartbeat.term > known.term or heartbeat.released:
            self._read_wanted = True
        if self._held and heartbeat.term > max(self._held.term, self._refuted):
            self._challenge = self._refuted = heartbeat.term
            self._read_wanted = True
        self._see(self._lease_from(heartbeat, known))
        if len(self.peers) > MAX_UNRECORDED + len(self.records):
            self._forget_unrecorded()
        self._hearsay = (stamp, heartbeat.sender)

    def _is_possible(self, term: int) -> bool:
        stored = self._stored.term if self._stored is not None else 0
        return term <= max(MAX_HEARD_TERM, stored + 1)

    def _deny_hearsay(self, why: str) -> None:
        """A lease that heartbeats told of is not: forged ones, or a broken node's.

        A genuine one must go on counting, as the register may have been wiped or
        rolled back under its holder. But a node never knows less than it has told,
        unless the register has shown it better; and where a holder renews an older
        lease, it is the newest: at most one renewal of a former holder lands late.
        """
        stamp, _ = self._hearsay
        self._hearsay = ((0, 0), "")
        if self.lease is None or self.lease.stamp != stamp or self._held is not None:
            return
        text = "heartbeats told of a lease of term %d, which is not: %s"
        self._say(logging.WARNING, text, stamp[0], why)
        self._denied.append(stamp)
        self.lease, self._rolled_back_at = self._stored, None
        self._seen_at = self._term_seen_at = self._now

    def _depose_too(self, heartbeat: Heartbeat) -> None:
        """Waits for a holder that the register did not show when it was claimed.

        Heard of while the claim was on its way, or later: the register was wiped or
        rolled back. That holder may freeze with a roster which we are not in. If it
        holds the very term that was claimed, this node must take a higher one.
        """
        deposed, claimed = self._deposed.lease, self._claimed_term()
        if heartbeat.term == claimed and heartbeat.holder != self.record.incarnation:
            self._least_term = max(self._least_term, claimed + 1)
            if self.role is CLAIMANT:
                self._abandon_claim("another node holds this term")
        elif heartbeat.term < claimed:
            if deposed is None or heartbeat.term > deposed.term:
                lease = self._lease_from(heartbeat, self.lease)
                lease = lease._replace(duration=lease.duration + lease.freeze_limit)
                self._deposed = Deposed(lease, self._now, self._now, self._now)

    def _claimed_term(self) -> int:
        """The term for which this node's claim is on its way, or waits; 0: none."""
        if self.role is CLAIMANT:
            return self._term()
        return self._doubt.new.term if self._doubt is not None else 0

    def _lease_from(self, heartbeat: Heartbeat, known: Optional[Lease]) -> Lease:
        """What a heartbeat tells of the lease; the rest as last read, or unknown."""
        same = known is not None and known.holder == heartbeat.holder
        timings = self.timings
        rest = known if known is not None and same else None
        return Lease(
            heartbeat.term, heartbeat.counter, heartbeat.holder,
            heartbeat.started, heartbeat.released, None,
            rest.duration if rest else timings.lease_duration,
            rest.freeze_limit if rest else timings.freeze_limit,
            rest.stop_timeout if rest else timings.stop_timeout,
        )  # fmt: skip

    # ---- heartbeats out

    def _send(
        self,
        address: Tuple[str, int],
        to: str,
        echo: int,
        answer: bool = False,
        flags: Optional[Flags] = None,
    ) -> None:
        self._sent = max(self._sent + 1, int((self._now - self._epoch) * 1e6))
        flags = flags or self._flags()
        lease = self.lease
        known = lease[:5] if lease is not None else (0, 0, "", False, False)
        term, counter, holder, started, released = known
        heartbeat = Heartbeat(
            self.record.incarnation, to, self._sent, echo,
            term, counter, holder, started, released,
            answer, *flags,
        )  # fmt: skip
        self._out.append(Send(address, heartbeat))
        peer = self.peers.get(to)
        if peer is not None and not self._withholds_vouch(peer, heartbeat):
            peer.vouched_at = max(peer.vouched_at, peer.newest_at)

    def _withholds_vouch(self, peer: Peer, heartbeat: Heartbeat) -> bool:
        """True if the peer, as holder, cannot take this heartbeat for a vouch."""
        lease = self.lease
        if lease is None or lease.holder != peer.incarnation:
            return False
        return heartbeat.lost == lease.term

    def _flags(self) -> Flags:
        """Those of a `Heartbeat`, from `leaving` on."""
        failing = self._failing_since is not None
        if self._held is not None:
            failing = self._renew_failing_since is not None
        running = self._held.term if self.role is STOPPING and self._held else 0
        return (
            bool(self._leaving) and self.role is not STOPPING,
            self._is_candidate() and not failing,
            failing,
            self._offer,
            self._lost_term(),
            running,
            self.record.stopped_term,
            self._now < self._changed_at + self.timings.hb_interval,
            self._wished(self.record.stopped_term),
        )

    def _wished(self, term: int) -> str:
        """Whom this node wants to be the primary after that term, its newest one."""
        known = self.lease.term if self.lease is not None else term
        return self._successor[1] if self._successor[0] == term == known else ""

    def _lost_term(self) -> int:
        """The term whose holder this node does not vouch for; 0: none."""
        lease = self.lease
        if lease is not None and self._doubt is not None:
            return lease.term
        if lease is None or lease.released or lease.holder == self.record.incarnation:
            return 0
        return lease.term if self._is_lost(self._peer(lease.holder)) else 0

    def _beat(self) -> None:
        flags = self._flags()
        if flags != self._flags_sent:
            self._beat_wanted = True
        if self._beat_wanted or self._now >= self._next_beat:
            self._flags_sent = flags
            self._beat_wanted = False
            interval = self.timings.hb_interval
            if self.role is STOPPING:
                interval = self.timings.notice_interval
            self._next_beat = self._now + interval
            for peer in self._receivers():
                assert peer.record is not None
                to = peer.incarnation
                self._send(peer.record.address, to, peer.newest, False, flags)
        self._wake(self._next_beat)

    def _receivers(self) -> List[Peer]:
        needed: Set[str] = set(self.lease.roster or ()) if self.lease else set()
        if self.role is CLAIMANT and self._deposed.lease is not None:
            # Asked on: whoever was deposed may have to say that its callbacks run
            needed.add(self._deposed.lease.holder)
        return [
            peer
            for peer in self.peers.values()
            if peer.record
            and peer.dead_at is None
            and (
                peer.missing_since is None
                or peer.incarnation in needed
                # a wiped store takes the records, not the nodes
                or not self._is_lost(peer)
            )
        ]

    # ---- the lease as others know it

    def _term(self) -> int:
        return self._held.term if self._held is not None else 0

    def _lease_duration(self) -> float:
        lease = self.lease
        return lease.duration if lease else self.timings.lease_duration

    def _freeze_limit(self) -> float:
        return self.lease.freeze_limit if self.lease else self.timings.freeze_limit

    def _see(self, lease: Lease) -> None:
        """Times the lease by when this value was first seen, here, on our clock."""
        if self.lease is not None and lease.stamp < self.lease.stamp:
            return
        known = self.lease
        if known is None or lease.term > known.term:
            self._term_seen_at = self._now
        if known is None or lease.stamp > known.stamp:
            self._seen_at = self._now
        if known is None or lease.roster is not None or lease.stamp > known.stamp:
            self.lease = lease
        if known is None or (lease.holder, lease.term) != (known.holder, known.term):
            self._say(logging.DEBUG, "term %d: %s holds the lease", *self._who(lease))
        self._peer_of_holder(lease)

    def _who(self, lease: Lease) -> Tuple[int, str]:
        if lease.holder == self.record.incarnation:
            return lease.term, "this node"
        return lease.term, repr(self._peer(lease.holder).name)

    def _peer_of_holder(self, lease: Lease) -> None:
        if lease.holder != self.record.incarnation:
            peer = self._peer(lease.holder)
            if lease.released:
                peer.stopped_term = max(peer.stopped_term, lease.term)

    def _take_lease(self, lease: Optional[Lease], began: float) -> None:
        """What a read that began then has found in the storage."""
        before, self._stored = self._stored, lease
        self._tell_pause()
        if lease is not None and lease.stamp >= self._hearsay[0]:
            self._hearsay = ((0, 0), "")
        self._clear_doubt(lease)
        if self._held is not None:
            self._found(lease)
        if self._held is not None and self.role is not STOPPING:
            # The storage says that it is ours: whoever told us of more was wrong
            self.lease = self._held
            self._rolled_back_at = None
            return
        if lease is not None:
            self._see(lease)
        if not self._is_behind(lease):
            self._rolled_back_at = None
        elif self._rolled_back_at is None and began > self._seen_at:
            self._rolled_back_at, self._renewals_behind = self._now, 0
            self._say(
                logging.ERROR,
                "the storage was %s: a lease of term %d stood there",
                "wiped" if lease is None else "rolled back to an old copy",
                self.lease.term if self.lease else 0,
            )
        elif self._rolled_back_at is not None and before and lease:
            more = lease.counter - before.counter  # one that is edited goes far
            self._renewals_behind += lease.term == before.term and 0 < more < EDIT_STEP
            if self._renewals_behind == 2:
                self._deny_hearsay("an older one is in force")
        if self._release is not None:
            self._check_release(lease)

    @property
    def paused(self) -> bool:
        """Whether nobody may claim, as this node last saw the storage."""
        return self._stored is not None and self._stored.paused

    def _tell_pause(self) -> None:
        if self.paused != self._pause_told:
            self._pause_told = self.paused
            resumed = "resumed: a primary is elected again where there is none"
            text = PAUSED if self.paused else resumed
            self._say(logging.WARNING, "the cluster is " + text)

    def _is_behind(self, lease: Optional[Lease]) -> bool:
        """Is this older than the newest lease known?"""
        known = self.lease
        return known is not None and (lease is None or lease.stamp < known.stamp)

    def _clear_doubt(self, lease: Optional[Lease]) -> None:
        """A claim can land no more once what it expected has been replaced."""
        if self._doubt is None or lease is None:
            return
        expected = self._doubt.expected
        if expected is None or lease.stamp > expected.stamp:
            self._doubt = None

    def _claim_was_lost(self, request: Request) -> None:
        """Who won? It stays in doubt until a read shows: perhaps this node has."""
        if request is self._doubt:
            self._claim_from = None

    # ---- claiming

    def _is_candidate(self) -> bool:
        """Whether this node would take the lease if it could."""
        return (
            self.role is MEMBER
            and self.record.priority is not None
            and self._started_by_user
            and not self._leaving
            and self._callback is None
            and not self._queue
            and self._now >= self._barred_until()
        )

    def _barred_until(self) -> float:
        together, alone = self._barred
        if together <= self._now and alone <= self._now:
            return -FOREVER
        # A member that has just joined is company, though nothing was heard of it yet
        company = any(
            peer.missing_since is None and not self._is_lost(peer)
            for peer in self.peers.values()
        )
        return together if company else alone

    def _is_free(self, lease: Lease) -> bool:
        """True if the callbacks of the holder are known to be over."""
        if lease.released or lease.holder == self.record.incarnation:
            return True
        peer = self._peer(lease.holder)
        return peer.stopped_term >= lease.term or peer.dead_at is not None

    def _is_running_on(self, lease: Lease) -> bool:
        """Does the holder say that it is primary no more, and its callbacks run?"""
        return self._peer(lease.holder).running_term >= lease.term

    def _is_proven_dead(self, lease: Lease) -> bool:
        peer = self.peers.get(lease.holder)
        return peer is not None and peer.dead_at is not None

    def _claimable_at(self, lease: Lease) -> float:
        """From when on this node may claim over the lease, as far as it knows now."""
        if self._is_free(lease):
            return -FOREVER
        holder = self._peer(lease.holder)
        lost_at = holder.heard + self.timings.detection_time
        if self._is_running_on(lease):
            lost_at = -FOREVER  # its callbacks hold up the start only
        seen_at = self._seen_at
        if self._rolled_back_at is not None:
            seen_at = max(seen_at, self._rolled_back_at)
        stale_at = seen_at + lease.duration
        allowed = stale_at + lease.freeze_limit
        if self._has_majority(lease):
            allowed = lost_at
        elif lease.roster is not None:
            allowed = min(allowed, max(stale_at, self._standing_since(lease)))
        return max(lost_at, allowed)

    def _standing_since(self, lease: Lease) -> float:
        """From when on this node counts as one without whom no freeze is possible."""
        roster = lease.roster
        if roster is None:
            return FOREVER
        if not roster or self.record.incarnation in roster:
            return -FOREVER
        dead = [
            self.peers[i].dead_at
            for i in roster
            if i in self.peers and self.peers[i].dead_at is not None
        ]
        return min(at for at in dead if at is not None) + lease.duration if dead else (
            FOREVER
        )

    def _has_majority(self, lease: Lease) -> bool:
        """Have most of roster and holder, this node among them, lost the holder?"""
        roster, me = lease.roster, self.record.incarnation
        if not roster or me not in roster or self._lost_term() != lease.term:
            return False
        recent = self._now - self.timings.hb_timeout
        votes = 1
        for incarnation in roster - {me}:
            peer = self.peers.get(incarnation)
            if peer is None or self._is_lost(peer) or peer.flags_at < recent:
                continue
            if not self._is_steady(peer):
                continue
            votes += peer.flags is not None and peer.flags.lost == lease.term
        return votes * 2 > len(roster) + 1

    def _is_steady(self, peer: Peer) -> bool:
        """Has it been heard for long enough for everybody else to be heard as well?

        When a network heals, the first heartbeat is that of anybody: two members
        must not depose the holder because they have heard each other before it, nor
        must the holder dismiss one of them because it has heard the other.
        """
        steady_at = peer.linked_since + 2 * self.timings.hb_interval
        self._wake(steady_at)
        return self._now >= steady_at

    def _rank(self, lease: Optional[Lease]) -> int:
        """How many live candidates, whom this node hears, are preferred to it."""
        if lease is not None and self._is_proven_dead(lease):
            return 0
        mine = self.record.rank
        return sum(
            1
            for peer in self._company()
            if peer.record
            and peer.flags is not None
            and peer.flags.candidate
            and peer.record.rank < mine
        )

    def _turn(self, lease: Optional[Lease]) -> float:
        """For how long this node leaves the lease to those who come before it."""
        named = self._named(lease) if lease is not None else ""
        if named == self.record.incarnation:
            return 0.0
        if named and not self._is_lost(self._peer(named)):
            return self._lost_after
        return self._rank(lease) * self.timings.check_interval / 2

    def _named(self, lease: Lease) -> str:
        """Whom its last holder wants to be the next; empty: anybody."""
        if lease.released:
            return lease.successor
        holder = self.peers.get(lease.holder)
        term, named = holder.successor if holder is not None else (0, "")
        return named if term == lease.term else ""

    def _isolation_wait(self, lease: Optional[Lease]) -> float:
        """Who hears nobody of a roster gives those others time to claim."""
        if lease is None or self._is_proven_dead(lease):
            return 0.0
        others = [self.peers.get(i) for i in lease.roster or ()]
        present = [
            p for p in others
            if p and p.missing_since is None and not p.left and p.dead_at is None
        ]  # fmt: skip
        heard = any(p.ever and not self._is_lost(p) for p in present)
        return 0.0 if heard or not present else self.timings.detection_time

    def _acquainted_at(self, lease: Optional[Lease]) -> float:
        """When this node will have heard, or lost, every member more senior than it.

        A newcomer that finds no lease, or a released one, may have come to a register
        that was wiped or rolled back under a primary. The others know of it. Where
        the holder is proven dead, no ghost holds this up: the living answer within H.
        """
        wait, brief = self._lost_after, self.timings.hb_interval
        if lease is not None and self._is_proven_dead(lease):
            wait = brief
        # One whose record has vanished left, or was wiped; it would answer by then
        strangers = [
            peer.heard + (wait if peer.missing_since is None else brief)
            for peer in self.peers.values()
            if not peer.ever and peer.record
            and peer.record.seniority < self.record.seniority
            and not self._is_lost(peer)
        ]  # fmt: skip
        return max(strangers, default=-FOREVER)

    def _judged(self) -> Optional[Lease]:
        """The lease to claim over: the last one seen stands even if it is gone."""
        if self._stored is None or self._rolled_back_at is not None:
            return self.lease
        return self._stored

    def _consider_claim(self) -> None:
        if not self._is_candidate() or self._failing_since is not None:
            self._claim_from = None
            if self._now < self._barred_until():
                self._wake(self._barred_until())
            self._explain_member()
            return
        if self._read_began == -FOREVER:
            return
        if self.paused:
            self._claim_from = None
            self._explain_member()
            return
        lease = self._judged()
        at = -FOREVER if lease is None else self._claimable_at(lease)
        if self._now < at:
            self._claim_from = None
            self._wake(at)
            self._explain_member()
            return
        if self._claim_from is None:
            self._claim_from = self._now
        wait = max(self._turn(lease), self._isolation_wait(lease))
        due = self._claim_from + wait
        due = max(due, self._acquainted_at(lease))
        if self._now < due:
            self._wake(due)
        else:
            # Also while an earlier claim may still land: of the two only one can
            self._claim_or_read(lease)
        self._explain_member()

    def _claim_or_read(self, lease: Optional[Lease]) -> None:
        """At the instant of loss one reads first: the news may be old."""
        assert self._claim_from is not None
        if self._call is not None:
            return
        behind = self._rolled_back_at is None and self._is_behind(self._stored)
        if self._read_began < self._claim_from or behind:
            self._read_wanted = True
        else:
            self._claim(lease)

    def _disown(self) -> None:
        """A claim landed unknown to this node: it says that it will not start.

        The others hear this node, and would wait for it, also where its storage is
        gone for good. A claim whose reply is merely on its way is not meant.
        """
        lease = self.lease
        if lease is None or lease.holder != self.record.incarnation:
            return
        if lease.term > self._last_claim:
            return  # nobody but this node makes claims for it
        under_way = self._call is not None and self._call.request is self._doubt
        if under_way and self._failing_since is None:
            return
        if lease.term > self.record.stopped_term:
            self.record = self.record._replace(stopped_term=lease.term)
            self._write_wanted = True

    def _claim(self, lease: Optional[Lease]) -> None:
        timings = self.timings
        seen_at, term_seen_at = self._seen_at, self._term_seen_at
        if lease is not None and self._rolled_back_at is not None:
            # The register has forgotten whoever held it in between. Nobody of them
            # can renew once this claim has landed, so it hides them like a lease.
            lease = lease._replace(started=False)
            seen_at = term_seen_at = self._now
        self._counter += 1
        new = Lease(
            self._next_term(lease), self._counter, self.record.incarnation,
            False, False, self._inherited_roster(lease),
            timings.lease_duration, timings.freeze_limit, timings.stop_timeout,
        )  # fmt: skip
        if lease is not None and not (lease.started and self._is_free(lease)):
            # The claim hides a lease that may still be in force: until this one is
            # started it must be judged by the longer durations of the two.
            new = new._replace(
                duration=max(new.duration, lease.duration),
                freeze_limit=max(new.freeze_limit, lease.freeze_limit),
                stop_timeout=max(new.stop_timeout, lease.stop_timeout),
            )
        holder = self.peers.get(lease.holder) if lease else None
        self._deposed = Deposed(
            lease, seen_at, term_seen_at,
            holder.vouched_at if holder else -FOREVER,
        )  # fmt: skip
        self._last_claim = new.term
        self._doubt = Swap(self._stored, new)
        self._issue(self._doubt, "claim")

    def _next_term(self, lease: Optional[Lease]) -> int:
        known = max(lease.term, self.lease.term if self.lease else 0) if lease else 0
        # The wall clock, as it was told at the start of this core and goes on since:
        # who has just joined may know nothing of the terms that a register held
        # before it was wiped or rolled back.
        wall_clock = self.first_term + int(self._now - self._epoch)
        ours = self.record.stopped_term  # perhaps disowned, and denied since
        return max(known + 1, ours + 1, self._least_term, wall_clock)

    def _inherited_roster(self, lease: Optional[Lease]) -> FrozenSet[str]:
        """The deposed roster without this node. One that is unknown: everybody.

        With an empty one, a claimant that is cut off (and so admits nobody) could be
        deposed by nobody. One too many in it is safe: it may claim sooner, and the
        holder needs its vouch. But over the first lease there is nobody to inherit.
        """
        roster: Optional[FrozenSet[str]] = lease.roster if lease else frozenset()
        if roster is None:
            roster = frozenset(r.incarnation for r in self.records.values())
        return roster - {self.record.incarnation}

    def _claimed(self, pending: Pending, new: Lease) -> None:
        self._doubt = self._claim_from = None
        given_up = new.term < self._least_term or new.term <= self.record.stopped_term
        if self.role is not MEMBER or self._leaving or given_up:
            self._release = new
            return
        self.role = CLAIMANT
        self._held = self._stored = new
        self._release = None
        self._attempts = {}
        self._renewed_at = self._renew_tried_at = pending.began
        self._renew_failing_since = None
        self._claimed_at = self._now
        self._start_ok_since = None
        self._challenge = self._offer = 0
        self._beat_wanted = self._read_wanted = True
        for peer in self.peers.values():
            peer.vouch = -FOREVER
            peer.dismissed = False
        self._see(new)
        self._say(logging.DEBUG, "claimed term %d", new.term)

    # ---- starting

    def _startable_at(self) -> float:
        """From when on nobody else can be primary, as far as this node knows now."""
        deposed = self._deposed
        at = -FOREVER
        lease = deposed.lease
        if lease is not None:
            if not self._is_free(lease):
                at = max(deposed.seen_at, deposed.vouched_at) + lease.duration
            if not lease.started:
                # It hides the lease before it, whose holder nobody here can name:
                # neither release, nor word, nor proof shortens this wait.
                at = max(at, deposed.term_seen_at + lease.duration)
        return max(at, self._callbacks_over_at())

    def _callbacks_over_at(self) -> float:
        """Until when a notice that callbacks still run holds back this claimant."""
        lease = self._deposed.lease
        duration = lease.duration if lease else self.timings.lease_duration
        timeout = lease.stop_timeout if lease else self.timings.stop_timeout
        at = -FOREVER
        for peer in self.peers.values():
            if peer.running_term <= peer.stopped_term or peer.dead_at is not None:
                continue
            if peer.running_term < self._term():
                at = max(at, peer.running_at + duration)
        return min(at, self._claimed_at + timeout)

    def _consider_start(self) -> None:
        if self._is_outdone():
            self._abandon_claim("another node holds this term, or a higher one")
            return
        at = self._startable_at()
        if self._now < at:
            self._start_ok_since = None
            self._wake(at)
            self._tell("it holds the lease, and waits until its predecessor is over")
            return
        if self._start_ok_since is None:
            self._start_ok_since = self._now
        if self._read_began >= self._start_ok_since:
            self._become_primary()
            return
        if self._call is None:
            self._read_wanted = True  # judge all this anew on what is there now
        give_up_at = self._start_ok_since + self._lost_after
        self._wake(give_up_at)
        if self._now >= give_up_at:  # the others, who hear this node, wait for it
            self._abandon_claim("it cannot read the storage")

    def _is_outdone(self) -> bool:
        """Does a heartbeat tell of another holder, in this term or a later one?

        Only after a roll-back or a wipe: the register has forgotten that term.
        """
        held, known = self._held, self.lease
        if held is None or known is None or known.holder == held.holder:
            return False
        return known.term >= held.term

    def _become_primary(self) -> None:
        assert self._held is not None
        self.role = PRIMARY
        self._frozen = False
        self._renew_tried_at = -FOREVER  # `started` is made known at once
        self._queue.append(RunCallback("start", self._held.term))
        self._tell("it is the primary")
        self._say(
            logging.INFO,
            "this node is the primary now (term %d): %s",
            self._held.term, self._reason_of_start(),
        )  # fmt: skip

    def _reason_of_start(self) -> str:
        lease = self._deposed.lease
        if lease is None:
            return "there was none before"
        if lease.holder == self.record.incarnation:
            return "it was the last one"
        name = repr(self._peer(lease.holder).name)
        if self._is_proven_dead(lease):
            return "the process of %s is gone" % name
        if self._is_free(lease):
            return "%s has stopped being it" % name
        return "the lease of %s has run out" % name

    # ---- holding

    def _renewal_due(self) -> bool:
        if self._held is None or self.role is MEMBER:
            return False
        if self.role is STOPPING and not self._keeps_renewing():
            return False
        due = self._renew_tried_at + self.timings.renewal_period
        if self._roster_changes():  # an admission or a drop does not wait so long
            due = min(due, self._renew_tried_at + self.timings.renewal_period / 4)
        self._wake(due)
        return self._now >= due

    def _keeps_renewing(self) -> bool:
        """An orderly stop holds the lease while its callback runs."""
        within = self._now < self._stopping_since + self.timings.stop_timeout
        return self._orderly and within and self._now < self._deadline

    def _renewal(self) -> Swap:
        assert self._held is not None
        self._counter += 1
        self._renew_tried_at = self._now
        new = self._held._replace(
            counter=self._counter,
            started=self.role is not CLAIMANT,
            roster=self._next_roster(),
            successor="",
            step_down=False,
        )
        if new.started:
            timings = self.timings
            new = new._replace(
                duration=timings.lease_duration,
                freeze_limit=timings.freeze_limit,
                stop_timeout=timings.stop_timeout,
            )
        self._attempts[new.stamp] = (new, self._now)
        return Swap(self._held, new)

    def _roster_changes(self) -> bool:
        held = self._held
        if not self._roster_stale or held is None:
            return False
        if self._renew_failing_since is not None:
            return False  # and the roster stays stale
        self._roster_stale = self._next_roster() != held.roster
        return self._roster_stale

    def _next_roster(self) -> FrozenSet[str]:
        assert self._held is not None
        roster = self._held.roster or frozenset()
        if self._renew_failing_since is not None and self._held.roster is not None:
            return roster  # which needs no space: else a full disk ends the primary
        keep = {i for i in sorted(roster) if not self._drops(self._peer(i), roster)}
        recent = self._now - self.timings.hb_timeout
        for record in self.records.values():
            peer = self.peers[record.incarnation]
            if peer.linked_at > recent and not self._is_lost(peer):
                keep.add(peer.incarnation)
        return frozenset(keep)

    def _drops(self, peer: Peer, roster: FrozenSet[str]) -> bool:
        if peer.dead_at is not None or peer.left or self._is_replaced(peer):
            return True
        if not self._is_lost(peer):
            return False
        if self._is_gone(peer, roster):
            return True
        long_lost = self.timings.detection_time + 2 * self.timings.hb_interval
        # A cut-off holder must not dismiss the very nodes that may depose it
        return self._now - peer.heard >= long_lost and self._in_company(roster)

    def _is_gone(self, peer: Peer, roster: FrozenSet[str]) -> bool:
        """Has its removed record stayed away for so long that it must be dead?

        The living write theirs back, once they can. A holder that hears nobody may be
        cut off from members whose storage fails: were they dropped after L, nobody
        could depose it when their storage is back. To keep them for good would make
        whoever starts after the death of all wait for L + freeze limit, not L.
        """
        if peer.missing_since is None:
            return False
        away = self.timings.lease_duration
        if not self._count_heard(roster):
            away += self.timings.freeze_limit
        return self._now >= peer.missing_since + away

    def _in_company(self, roster: FrozenSet[str]) -> bool:
        return (1 + self._count_heard(roster)) * 2 > len(roster) + 1

    def _count_heard(self, roster: FrozenSet[str]) -> int:
        peers = [self._peer(i) for i in sorted(roster)]
        return sum(not self._is_lost(p) and self._is_steady(p) for p in peers)

    def _is_replaced(self, peer: Peer) -> bool:
        if peer.record is None:
            return False
        current = self.records.get(peer.record.name)
        return current is not None and current.seniority > peer.record.seniority

    def _adopt(self, lease: Lease, began: float) -> None:
        """An attempt of our own that began then stands in the storage."""
        if self._held is None:
            return
        self._held = self._stored = lease
        self._attempts = {}
        # Holds although `began` may be long ago: the clock was asked first, so a
        # success that comes too late finds no primary any more.
        self._renewed_at = max(self._renewed_at, began)
        self._renew_failing_since = None
        if self._frozen:
            self._frozen = False
            self._say(logging.INFO, "thawed: the lease is renewed in the storage again")
        self._see(lease)
        self._beat_wanted = True

    def _found(self, lease: Optional[Lease]) -> None:
        """The storage holds this lease while we think that it is ours."""
        assert self._held is not None
        if lease is not None and lease.holder == self.record.incarnation:
            if lease.stamp == self._held.stamp:
                return
            if lease.stamp in self._attempts:
                self._adopt(*self._attempts[lease.stamp])
                return
            if lease.term == self._held.term and lease.counter > self._counter:
                self._take_edit(lease)  # no attempt of ours has such a counter
                return
        if lease is None or lease.stamp < self._held.stamp:
            self._lose_lease("the lease is gone from the storage")
        else:
            term, who = self._who(lease)
            self._lose_lease("deposed: %s holds the lease in term %d" % (who, term))

    def _take_edit(self, lease: Lease) -> None:
        """Somebody has changed our lease: the next renewal builds on that.

        It is none itself, and nothing of ours lasts longer for it; only the others
        wait anew. Attempts that expected what it replaced can land no more.
        """
        assert self._held is not None
        if lease.roster is None:
            rosters = [self._held.roster or frozenset()]
            rosters += [a.roster or frozenset() for a, _ in self._attempts.values()]
            lease = lease._replace(roster=frozenset().union(*rosters))
        self._held = self._stored = lease
        self._attempts = {}
        self._counter = lease.counter
        self._renew_tried_at = -FOREVER
        if lease.released:  # a renewal would keep it, and invite everybody to claim
            self._lose_lease("its lease was declared released")
        elif lease.step_down and self.role in (PRIMARY, CLAIMANT):
            self._obey(lease.successor)

    def _obey(self, successor: str) -> None:
        """Steps down as the lease asks; goes on if the one that is named cannot."""
        if successor:
            name = self._peer(successor).name
            why = self.no_successor(name)
            if why is not None:
                text = "asked to step down for %r, and does not: %s"
                self._say(logging.WARNING, text, name, why)
                return
        self._on_step_down_asked(StepDownAsked(successor))

    @property
    def _deadline(self) -> float:
        """Until when the last success carries."""
        return self._renewed_at + self.timings.renewal_deadline

    def _late_at(self) -> float:
        return self._renewed_at + 1.5 * self.timings.renewal_period

    def _deposers(self) -> FrozenSet[str]:
        """Everybody who might depose this holder; empty: anybody might.

        Those of all rosters that may stand in the storage, now or later.
        """
        assert self._held is not None
        rosters = [self._held.roster]
        rosters += [lease.roster for lease, _ in self._attempts.values()]
        known = [roster for roster in rosters if roster]
        return frozenset().union(*known) if len(known) == len(rosters) else frozenset()

    def _frozen_until(self) -> float:
        """Until when the vouches of everybody who might depose us carry."""
        members = self._deposers()
        if not members:
            return -FOREVER
        vouch = min(self._vouch_of(i) for i in members)
        limit = self.timings.freeze_limit * (1 - CLOCK_MARGIN)
        return min(vouch + self.timings.renewal_deadline, self._renewed_at + limit)

    def _vouch_of(self, incarnation: str) -> float:
        peer = self.peers.get(incarnation)
        if peer is None or peer.dead_at is not None or peer.left:
            return -FOREVER
        if peer.flags is not None and peer.flags.lost == self._term():
            return -FOREVER
        return peer.vouch

    def _publish(self) -> None:
        """Sets `primacy`, and stops here if it does not hold any more."""
        if self.role is PRIMARY and self._held is not None:
            deadline = self._deadline
            if self._now >= self._late_at():
                deadline = max(deadline, self._frozen_until())
                self._ask_for_vouches()
            else:
                self._wake(self._late_at())
            self.primacy = (self._held.term, deadline)
            self._check_lease()
        if self.role is CLAIMANT:
            self._check_lease()
        if self.role is not PRIMARY:
            self.primacy = (0, -FOREVER)

    def _check_lease(self) -> None:
        if self.role is CLAIMANT:
            self._wake(self._deadline)
            if self._now >= self._deadline:
                self._lose_lease("the lease could not be renewed in time")
        elif self.role is PRIMARY:
            deadline = self.primacy[1]
            self._wake(deadline)
            # `primacy` is set at the end of each step; -inf: not once yet
            if deadline > -FOREVER and self._now >= deadline:
                self._lose_lease(self._reason_of_end())
            elif self._now >= self._deadline and not self._frozen:
                self._frozen = True
                self._say(
                    logging.WARNING,
                    "frozen: the storage does not answer; this node stays primary "
                    "while every member vouches for it, for %.0f s at most",
                    self.timings.freeze_limit,
                )

    def _reason_of_end(self) -> str:
        return "the lease has run out (last renewed %.1f s ago)%s" % (
            self._now - self._renewed_at,
            "; " + self._last_error if self._last_error else "",
        )

    def _ask_for_vouches(self) -> None:
        interval = min(self.timings.hb_interval, self.timings.renewal_deadline / 6)
        if self._now >= self._freeze_asked_at + interval:
            self._freeze_asked_at = self._now
            for incarnation in sorted(self._deposers()):
                self._greet(self._peer(incarnation))
        self._wake(self._freeze_asked_at + interval)

    def _consider_handover(self) -> None:
        """Storage fails here alone: a member that can write takes over.

        Its offer has to stand for a while, and a renewal begun since then has to fail:
        where an outage of all ends, a member may see it a little earlier, and where
        the storage is back for a moment only, that renewal may not be due by then.
        """
        since = self._renew_failing_since
        if since is None or self._held is None or self._held.paused:
            return
        wait = 2 * self.timings.check_interval
        recent = self._now - self.timings.hb_timeout
        for incarnation in sorted(self._held.roster or ()):
            peer = self._peer(incarnation)
            flags = peer.flags
            if flags is None or flags.offer != self._held.term or not flags.candidate:
                continue
            if self._is_lost(peer) or peer.flags_at < recent:
                continue
            at = max(since, peer.offer_at) + wait
            self._wake(at)
            if self._now >= at and self._failed_since(peer.offer_at):
                text = "its storage fails, and %r can write" % peer.name
                self._begin_stop("handing over: " + text, orderly=True)
                return

    def _failed_since(self, offer_at: float) -> bool:
        """Has a renewal, begun since the offer, failed as well, or does it hang?"""
        if self._renew_failed_began >= offer_at:
            return True
        if self._call is None:
            return False
        hangs_at = max(offer_at, self._call.began) + self._slow()
        self._wake(hangs_at)
        return self._now >= hangs_at

    # ---- stopping

    def _lose_lease(self, reason: str) -> None:
        """The lease is not ours any more, or cannot be shown to be."""
        if self.role is CLAIMANT:
            self._abandon_claim(reason)
        elif self.role is PRIMARY:
            self._begin_stop(reason, orderly=False)
        elif self.role is STOPPING:
            self._orderly = False

    def _abandon_claim(self, reason: str) -> None:
        assert self._held is not None
        text = "gave up the claim of term %d: %s"
        self._say(logging.INFO, text, self._term(), reason)
        self._callbacks_over()

    def _begin_stop(self, reason: str, orderly: bool) -> None:
        assert self._held is not None
        self.role = STOPPING
        self.primacy = (0, -FOREVER)
        self._orderly = orderly
        self._stopping_since = self._now
        self._frozen = False
        self._say(
            logging.INFO if orderly else logging.WARNING,
            "this node is not the primary any more (term %d): %s",
            self._held.term, reason,
        )  # fmt: skip
        self._tell(reason)
        start = RunCallback("start", self._held.term)
        if start in self._queue:  # never begun, so nothing to stop
            self._queue.remove(start)
            self._callbacks_over()
        else:
            self._queue.append(RunCallback("stop", self._held.term))

    def _callbacks_over(self) -> None:
        """Nothing of this term runs here any more: says so, and releases."""
        held = self._held
        assert held is not None
        self.role = MEMBER
        self.record = self.record._replace(
            stopped_term=max(self.record.stopped_term, held.term),
            running_term=0,
        )
        self._write_wanted = True
        self._release = held
        self._release_at = -FOREVER
        self._held = None
        self._attempts = {}
        self._claim_from = None
        self._challenge = 0
        if self._exiled_until is not None:
            self._forget_store(self._exiled_until)
        if self._step_down:
            self._step_down = False
            self._barred = (self._now + self.timings.detection_time, -FOREVER)

    def _check_release(self, lease: Optional[Lease]) -> None:
        """Goes on releasing while the lease in the storage is that term of ours."""
        assert self._release is not None
        ours = lease is not None and lease.holder == self.record.incarnation
        if lease is not None and ours and lease.term == self._release.term:
            self._counter = max(self._counter, lease.counter)  # somebody changed it
            self._release = None if lease.released else lease
        else:
            self._release = None

    def _releasing(self) -> Optional[Request]:
        if self._release is None or self._held is not None:
            return None
        if self._failing_since is not None and self._read_wanted:
            return None  # that read comes first, see `_storage_failed`
        if self._now < self._release_at:
            self._wake(self._release_at)
            return None
        if self._stored is not None and self._stored.stamp > self._release.stamp:
            self._check_release(self._stored)
            if self._release is None:
                return None
        self._counter += 1
        self._release_at = self._now + self.timings.renewal_period
        new = self._release._replace(
            counter=self._counter,
            released=True,
            successor=self._wished(self._release.term),
            step_down=False,
        )
        return Swap(self._release, new)

    def _released(self, new: Lease) -> None:
        self._release = None
        self._stored = new
        self._see(new)
        self._beat_wanted = True

    # ---- callbacks

    def _pump(self) -> None:
        if self._callback is None and self._queue:
            self._callback = self._queue.pop(0)
            self._out.append(self._callback)

    def _on_callback_ended(self, event: CallbackEnded) -> None:
        self._callback = None
        if event.error is not None:
            self._say(
                logging.ERROR, "the %s callback failed: %s", event.kind, event.error
            )
        if event.kind == "exit":
            self._exit_called = True
        elif event.kind == "stop":
            self._callbacks_over()
        elif event.skipped:
            self._start_skipped()
        elif event.error is not None:
            self._start_failed()
        else:
            self._failures = 0

    def _start_skipped(self) -> None:
        self._queue = [c for c in self._queue if c.kind != "stop"]
        if self.role is PRIMARY:
            self._begin_stop("the lease ran out before the start callback", False)
            self._queue = [c for c in self._queue if c.kind != "stop"]
        if self.role is STOPPING:
            self._callbacks_over()

    def _start_failed(self) -> None:
        together = min(10.0 * 2**self._failures, 300.0)
        alone = min(1.0 * 2**self._failures, 30.0)
        self._failures = min(self._failures + 1, 10)
        self._barred = (self._now + together, self._now + alone)
        if self.role is PRIMARY:
            self._begin_stop("its start callback failed", orderly=True)

    # ---- asked by the application

    def _on_start_asked(self, event: StartAsked) -> None:
        self._started_by_user = True
        self._read_wanted = True

    def _on_stop_asked(self, event: StopAsked) -> None:
        self._leave("stop", "it was asked to stop")

    def _on_step_down_asked(self, event: StepDownAsked) -> None:
        if self.role not in (PRIMARY, CLAIMANT):
            return
        self._step_down = True
        self._successor = self._term(), event.successor
        if self.role is PRIMARY:
            self._begin_stop("asked to step down", orderly=True)
        else:
            self._abandon_claim("asked to step down")

    def _on_pause_asked(self, event: PauseAsked) -> None:
        self._pauses.append(event)

    def _on_described(self, event: Described) -> None:
        for field, value in event._asdict().items():
            if value is not None:
                self.record = self.record._replace(**{field: value})
        self._write_wanted = self._described = True

    def _on_expired(self, event: Expired) -> None:
        if self.role is PRIMARY and self._term() == event.term:
            self._lose_lease(self._reason_of_end())

    # ---- leaving

    def _exit(self, reason: str) -> None:
        if not self._leaving:
            self._say(logging.ERROR, "this node exits: %s", reason)
            self._leave("exit", reason)

    def _leave(self, how: str, reason: str) -> None:
        if self._leaving:
            return
        self._leaving = how
        self._tell(reason)
        if self.role is PRIMARY:
            self._begin_stop(reason, orderly=True)
        elif self.role is CLAIMANT:
            self._abandon_claim(reason)

    def _finish(self) -> None:
        """The last steps, once no callback of a term runs any more."""
        if not self._leaving or self.role not in (JOINING, MEMBER):
            return
        if self._callback is not None or self._queue:
            return
        if self._leave_until == FOREVER:
            self._leave_until = self._now + LEAVE_TIME
        self._wake(self._leave_until)
        done = self._record_removed or not self._record_written
        if not done and self._now < self._leave_until:
            return
        if self._leaving == "exit" and not self._exit_called:
            self._queue.append(RunCallback("exit", 0))
            self._pump()
            return
        if not done:
            self._say(
                logging.WARNING,
                "left without removing the record: the storage does not answer; "
                "the others remove it",
            )
        self.role = FINISHED
        self.wake_at = FOREVER
        self._out.append(Finished())

    def _leaving_request(self) -> Optional[Request]:
        if self._record_removed or not self._record_written:
            return None
        if self._callback is not None or self._queue or self.role is STOPPING:
            return None
        return Remove(self.record.name, self.record.incarnation)

    # ---- storage, one call at a time

    def _slow(self) -> float:
        """A call that takes longer counts as one that fails, until it returns.

        Not below R/3: so slow a storage still elects, see `_lets_pass`.
        """
        deadline = self.timings.renewal_deadline
        return max(min(self.timings.check_interval, deadline / 2), deadline / 3)

    def _lets_pass(self) -> bool:
        """May another call go before a renewal that is due?

        Where calls take longer than the renewal period, nothing else would ever be
        done, and a claimant never read what it must have read to start. A renewal,
        another call and the next renewal, of up to R/3 each, are over by R.
        """
        was_renewal = self._purpose in ("claim", "renew")
        in_time = self._renewed_at + self.timings.renewal_deadline / 3
        return was_renewal and self._now <= in_time

    def _watch_storage(self) -> None:
        call = self._call
        if call is None:
            return
        if self._now >= call.began + self._slow():
            self._note_failure(call, "it does not return from a call")
        else:
            self._wake(call.began + self._slow())
        give_up_at = call.began + self._patience(call)
        if self._now < give_up_at:
            self._wake(give_up_at)
        elif len(self._calls) <= MAX_ABANDONED:
            self._call = None  # and stays in _calls: its write may still land
            if isinstance(call.request, Read):
                self._read_wanted = True
            if isinstance(call.request, Pause):
                self._pause_done("the storage does not return from the call")

    def _patience(self, call: Pending) -> float:
        if isinstance(call.request, Read) and self._held is not None:
            # A read changes nothing: it must not keep a renewal waiting
            deadline = self.timings.renewal_deadline
            return min(max(deadline / 3, 1.0), deadline / 2)
        return max(10.0, 2 * self.timings.lease_duration)

    def _issue(self, request: Request, purpose: str = "") -> Pending:
        self._call_count += 1
        pending = Pending(self._call_count, request, self._now, purpose)
        self._call = self._calls[pending.id] = pending
        self._purpose = purpose
        if isinstance(request, Read):
            self._read_wanted = False  # what is news from now on wants another one
        self._wake(self._now + self._slow())
        self._out.append(Call(pending.id, request))
        return pending

    def _drive_storage(self) -> None:
        if self._call is not None:
            return
        for choose, purpose in self._CHOICES:
            request = choose(self)
            if request is not None:
                self._issue(request, purpose)
                return

    def _choose_joining(self) -> Optional[Request]:
        return self._drive_joining() if self.role is JOINING else None

    def _choose_urgent_renewal(self) -> Optional[Request]:
        return None if self._lets_pass() else self._choose_renewal()

    def _choose_renewal(self) -> Optional[Request]:
        return self._renewal() if self._renewal_due() else None

    def _choose_release(self) -> Optional[Request]:
        return self._releasing() if self.role is MEMBER else None

    def _holds_off(self) -> bool:
        """After a failure everything but renewals waits a little."""
        if self.role is JOINING:
            return not self._leaving
        self._wake(self._retry_at)
        return self._now < self._retry_at

    def _choose_prompted_read(self) -> Optional[Request]:
        if self._holds_off() or not self._read_wanted:
            return None
        if self._leaving and self._release is None:
            return None
        return Read(True)

    def _choose_pause(self) -> Optional[Request]:
        if not self._pauses or self._leaving or self._holds_off():
            return None
        return Pause(self._pauses[0].paused)

    def _choose_leaving(self) -> Optional[Request]:
        if not self._leaving or self._holds_off() or self._release is not None:
            return None
        return self._leaving_request()

    def _choose_notice(self) -> Optional[Request]:
        """Tells in the record that callbacks of a term that is over still run."""
        if self.role is not STOPPING or self._holds_off() or self._keeps_renewing():
            return None
        due = self._noticed_at + self.timings.notice_interval
        self._wake(due)
        if self._now < due:
            return None
        self._noticed_at = self._now
        self.record = self.record._replace(
            running_term=self._term(), notice=self.record.notice + 1
        )
        return Write(self.record)

    def _choose_write(self) -> Optional[Request]:
        if not self._write_wanted or self._holds_off() or self._leaving:
            return None
        return Write(self.record)

    def _choose_offer(self) -> Optional[Request]:
        """Shows by a write that this node could take over from the holder."""
        lease = self.lease
        holder = self.peers.get(lease.holder) if lease is not None else None
        flags = holder.flags if holder is not None else None
        if lease is None or flags is None or not flags.failing:
            self._offer = self._offer_asked = 0
            return None
        if self._holds_off() or not self._is_candidate() or self._offer == lease.term:
            return None
        self._offer_asked = lease.term
        return Write(self.record)

    def _choose_removal(self) -> Optional[Request]:
        if self._holds_off() or self._leaving:
            return None
        for incarnation, name in self._removals.items():
            return Remove(name, incarnation)
        if self.role is not PRIMARY or self._renew_failing_since is not None:
            return None
        for record in self.records.values():
            peer = self.peers[record.incarnation]
            if self._is_lost(peer) and not (peer.dismissed and self._has_news(peer)):
                return Remove(record.name, record.incarnation)
        return None

    def _has_news(self, peer: Peer) -> bool:
        """Whoever lives unheard, and was removed, makes its record news each D.

        At its first read after that, and this node sees it at its own next: D + 2 C.
        """
        timings = self.timings
        wait = 2 * (timings.detection_time + timings.check_interval)
        return self._now < peer.record_at + wait

    def _choose_read(self) -> Optional[Request]:
        if self._holds_off() or self._leaving:
            return None
        due = self._read_began + self.timings.check_interval
        self._wake(due)
        return Read() if self._now >= due else None

    _CHOICES: Tuple[Tuple[Callable[["Core"], Optional[Request]], str], ...] = (
        (_choose_joining, "join"),
        (_choose_urgent_renewal, "renew"),
        (_choose_release, "release"),
        (_choose_prompted_read, "read"),
        (_choose_pause, "pause"),
        (_choose_leaving, "leave"),
        (_choose_notice, "notice"),
        (_choose_offer, "offer"),
        (_choose_write, "write"),
        (_choose_removal, "remove"),
        (_choose_read, "read"),
        (_choose_renewal, "renew"),
    )

    # ---- plain words

    def _tell(self, why: str) -> None:
        if why != self.why:
            self.why, self.since = why, self._now

    def _explain_member(self) -> None:
        """Why this member is not the primary."""
        lease = self._judged()
        if self._leaving:
            return
        if not self._started_by_user:
            self._tell("start() has not been called")
        elif self.record.priority is None:
            self._tell("this node never becomes primary: its priority is None")
        elif self._failing_since is not None:
            self._tell("its storage does not work: " + self._last_error)
        elif self._now < self._barred_until():
            self._tell("it stepped down, or its start callback failed, not long ago")
        elif self.paused:
            self._tell("the cluster is " + PAUSED)
        elif lease is None:
            self._tell("it is about to claim the first lease")
        elif self._is_free(lease):
            self._tell("the lease is free, and it is about to claim it")
        elif self._is_running_on(lease):
            self._tell(
                "%r is the primary no more, but its callbacks still run"
                % self._peer(lease.holder).name
            )
        elif not self._is_lost(self._peer(lease.holder)):
            self._tell("%r is the primary" % self._peer(lease.holder).name)
        else:
            self._tell(
                "%r is lost, but its lease may still be in force"
                % self._peer(lease.holder).name
            )

    def _announce(self) -> None:
        """One sentence whenever another node, or nobody, is the primary now."""
        primary = self.known_primary()
        if primary == self._announced:
            return
        self._announced = primary
        if primary is None:
            self._say(logging.INFO, "there is no primary: %s", self.explain_none())
        elif primary != self.record.incarnation and self.lease is not None:
            name, term = self._peer(primary).name, self.lease.term
            self._say(logging.INFO, "node %r is the primary (term %d)", name, term)

    def explain(self) -> str:
        """One sentence: why this node is not the primary, or that it is."""
        return self.why

    def explain_none(self) -> Optional[str]:
        """Why nobody is the primary, as far as this node knows; None if one is."""
        lease = self._judged()
        if self.known_primary() is not None:
            return None
        if self.paused:
            return "the cluster is " + PAUSED
        living = [r for r in self.members() if self.is_alive(r)]
        if living and all(record.priority is None for record in living):
            return "no living member ever becomes primary: all have the priority None"
        if lease is None:
            return "no lease has been claimed yet"
        who = self._who(lease)[1]
        if self._is_free(lease):
            return "%s was the last one, and has stopped" % who
        if self._is_running_on(lease):
            return "%s is it no more, but its callbacks still run" % who
        if not lease.started:
            return "%s has claimed the lease, and waits for its predecessor" % who
        return "%s is lost, and its lease may still be in force" % who

    # ---- for the views

    def members(self) -> List[NodeRecord]:
        """Everybody with a record in the last good snapshot, this node included."""
        joined = self.role is not JOINING and not self._record_removed
        return list(self.records.values()) + ([self.record] if joined else [])

    def known_primary(self) -> Optional[str]:
        """The incarnation that holds the lease, unless it is known to be over."""
        if self.role is PRIMARY:
            return self.record.incarnation
        lease = self.lease
        if lease is None or not lease.started or lease.released:
            return None
        if lease.holder == self.record.incarnation:
            return None
        peer = self._peer(lease.holder)
        over = peer.stopped_term >= lease.term or self._is_running_on(lease)
        return None if over or self._is_lost(peer) else lease.holder

    def active(self) -> FrozenSet[str]:
        """The holder of the stored lease and its roster."""
        lease = self._stored
        if lease is None or lease.released:
            return frozenset()
        return frozenset({lease.holder}) | (lease.roster or frozenset())

    def no_successor(self, name: str) -> Optional[str]:
        """Why this primary cannot step down for that node; None if it can."""
        record = self.records.get(name)
        if name == self.record.name:
            return "it is this node"
        if record is None:
            return "it is no member"
        peer, held = self.peers[record.incarnation], self._held
        if self._is_lost(peer):
            return "it is lost"
        if held is None or record.incarnation not in (held.roster or ()):
            return "it is not active"
        if record.priority is None:
            return "its priority is None"
        if peer.flags is None or not peer.flags.candidate:
            return "it is no candidate now"
        if held.paused:
            return "the cluster is " + PAUSED
        return None

    def counts_as_lost(self, record: NodeRecord) -> bool:
        """Whether this node has lost that member."""
        peer = self.peers.get(record.incarnation)
        return peer is not None and self._is_lost(peer)

    def is_alive(self, record: NodeRecord) -> bool:
        """Whether that member counts as alive in the cluster."""
        peer = self.peers.get(record.incarnation)
        return peer is None or self._is_alive(peer)

    def storage_state(self) -> str:
        """"ok", or what is wrong with the storage."""
        return "ok" if self._failing_since is None else self._last_error

    def record_stays(self) -> bool:
        """True if a record of this node may still be in the storage."""
        return self._record_written and not self._record_removed

    _HANDLERS: Dict[type, Callable[["Core", Any], None]] = {
        Heard: _on_heard,
        Returned: _on_returned,
        CallbackEnded: _on_callback_ended,
        ProvenDead: _on_proven_dead,
        StartAsked: _on_start_asked,
        StopAsked: _on_stop_asked,
        StepDownAsked: _on_step_down_asked,
        PauseAsked: _on_pause_asked,
        Described: _on_described,
        Expired: _on_expired,
    }


# --------------------------------------------------------------------------------
# Proof of death (I/O edge)
# --------------------------------------------------------------------------------

_FIRST_PID_NAMESPACE = "pid:[4026531836]"  # PROC_PID_INIT_INO of the Linux kernel
_CONTAINER_BOOT = "container "  # marks a boot id that is not the kernel's


class _ProcessStat(NamedTuple):
    """What /proc tells about a process; empty text and 0 if it does not."""

    state: str = ""
    threads: int = 0
    start_time: int = 0


def own_identity() -> ProcessIdentity:
    """Which process this is; read anew, since a fork changes the answer."""
    pid_namespace = _read_link("/proc/self/ns/pid")
    return ProcessIdentity(
        boot_id=_boot_id(),
        machine_id=_read_id("/etc/machine-id") or _read_id("/var/lib/dbus/machine-id"),
        pid=os.getpid(),
        start_time=_process_stat("self").start_time,
        pid_namespace=pid_namespace,
        network_namespace=_read_link("/proc/self/ns/net"),
        time_namespace=_read_link("/proc/self/ns/time"),
        first_namespace=pid_namespace == _FIRST_PID_NAMESPACE,
    )


def _boot_id() -> str:
    path = "/proc/sys/kernel/random/boot_id"
    try:
        genuine = os.stat(path).st_dev == os.stat("/proc/self/stat").st_dev
    except OSError:
        return ""
    # LXC and systemd-nspawn bind a file of their own over it: two containers with
    # different ids then live on one kernel, and neither proves the other dead.
    text = _read_id(path)
    return text if genuine or not text else _CONTAINER_BOOT + text


def _read_id(path: str) -> str:
    # a machine id can also be the word "uninitialized", the same on every machine
    found = re.match(rb"[0-9a-f-]{32,36}\s*\Z", _read_bytes(path))
    return found.group().decode().strip() if found else ""


def _read_bytes(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError:
        return b""


def _read_link(path: str) -> str:
    try:
        return os.readlink(path)
    except (OSError, AttributeError):  # AttributeError: a system without links
        return ""


def _process_stat(pid: str) -> _ProcessStat:
    # the name, in parentheses, may itself contain blanks and parentheses
    fields = _read_bytes("/proc/%s/stat" % pid).rpartition(b")")[2].split()
    if len(fields) < 20:
        return _ProcessStat()
    return _ProcessStat(fields[0].decode(), int(fields[17]), int(fields[19]))


def _sees_own_pids() -> bool:
    """True if /proc shows the pids of this very namespace.

    After `unshare --pid` without a mount of its own it shows those of another
    one, where the pid of a living node can belong to somebody else.
    """
    return b"NSpid:\t%d\n" % os.getpid() in _read_bytes("/proc/self/status")


def _packed_address(host: str) -> Tuple[int, bytes]:
    """Family and bytes of a numeric address; no bytes for names and wildcards."""
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            packed = socket.inet_pton(family, host)
        except (OSError, ValueError):
            continue
        wildcard = packed.strip(b"\0") in (b"", b"\xff\xff")  # also ::ffff:0.0.0.0
        return family, b"" if wildcard else packed
    return socket.AF_INET, b""


def _is_routable(host: str) -> bool:
    """True for a numeric address that is neither a wildcard nor loopback."""
    family, packed = _packed_address(host)
    if family == socket.AF_INET6 and packed.startswith(bytes(10) + b"\xff\xff"):
        packed = packed[12:]
    loopback = packed == bytes(15) + b"\1" or (len(packed) == 4 and packed[0] == 127)
    return bool(packed) and not loopback


class _Coroner:
    """Says which processes are dead, where that can be proven; it never guesses.

    Owns the pidfds of the peers on this host. An own record whose address is not
    the one that its socket has bound (behind NAT, say) must carry no network
    namespace and no `first_namespace`, or binding would prove what is not so.

    Thread:
        The heartbeat thread's alone; no call waits for anything but the kernel.
    """

    def __init__(
        self, own: NodeRecord, enabled: bool = True, one_kernel: bool = False
    ) -> None:
        """Takes the own record, whose address the own socket has bound by now."""
        self.one_kernel = one_kernel
        """Set it as soon as the backend knows its `one_kernel`."""
        self.own = own
        self._enabled = enabled
        self._sees_pids = _sees_own_pids()
        self._pidfds: Dict[str, int] = {}

    def is_dead(self, record: NodeRecord, bind: bool = False) -> bool:
        """True if the record's process is proven dead; False proves nothing.

        Args:
            bind: also try whether its address is free. The address is held for
                some microseconds then, in which nobody else can bind it.
        """
        if not self._may_judge(record):
            return False
        if record.process.boot_id != self.own.process.boot_id:
            return self._ended_with_its_boot(record)
        if all(map(self._process_is_gone, _processes(record))):
            return True
        # Companions hold no port: a free one says nothing about them
        return not record.companions and self._left(record, bind)

    def _may_judge(self, record: NodeRecord) -> bool:
        known = record.process.boot_id and self.own.process.boot_id
        other = record.incarnation != self.own.incarnation
        return bool(self._enabled and other and known)

    def _ended_with_its_boot(self, record: NodeRecord) -> bool:
        own, theirs = self.own.process, record.process
        if _CONTAINER_BOOT in own.boot_id + theirs.boot_id:
            return False
        return self.one_kernel or (
            self.own.name == record.name
            and self.own.address == record.address
            and _is_routable(record.host)
            and own.machine_id == theirs.machine_id != ""
            and own.first_namespace
            and theirs.first_namespace
        )

    def _left(self, record: NodeRecord, bind: bool) -> bool:
        """True if somebody else can bind the address: the own socket, or a probe."""
        network = record.process.network_namespace
        if not self.own.process.network_namespace == network != "":
            return False
        if not _packed_address(record.host)[1]:
            return False
        return record.address == self.own.address or (bind and _can_bind(record))

    def _same_pids(self, theirs: ProcessIdentity) -> bool:
        own = self.own.process
        same_time = own.time_namespace == theirs.time_namespace
        same_pids = own.pid_namespace == theirs.pid_namespace != ""
        return same_time and same_pids and theirs.pid > 0

    def _process_is_gone(self, theirs: ProcessIdentity) -> bool:
        if not self._same_pids(theirs):
            return False
        try:
            os.kill(theirs.pid, 0)
        except ProcessLookupError:
            return True
        except (OSError, OverflowError):
            pass  # a process of another user: it exists, but whose pid is it now?
        stat = self._stat(theirs)
        recycled = 0 != theirs.start_time != stat.start_time != 0
        # the main thread of a living process may have ended: a zombie with threads
        return recycled or (stat.state in ("Z", "X") and stat.threads <= 1)

    def _stat(self, theirs: ProcessIdentity) -> _ProcessStat:
        return _process_stat(str(theirs.pid)) if self._sees_pids else _ProcessStat()

    def watch(self, record: NodeRecord) -> Optional[int]:
        """A file descriptor that is readable once a process of the record is dead.

        With companions, the first that lives: ask `is_dead`, and watch anew. None
        where the kernel cannot tell: on another host, in this very process,
        without pidfds, or if the process has gone already (ask `is_dead`). The
        same record gets the same descriptor, until it is forgotten.
        """
        if record.incarnation not in self._pidfds and self._may_watch(record):
            candidates = [record.process]
            if record.companions:  # a zombie would wake its watcher again and again
                processes = _processes(record)
                candidates = [p for p in processes if not self._process_is_gone(p)]
            opened = map(self._open_pidfd, candidates)
            fd = next((fd for fd in opened if fd is not None), None)
            if fd is not None:
                self._pidfds[record.incarnation] = fd
        return self._pidfds.get(record.incarnation)

    def _may_watch(self, record: NodeRecord) -> bool:
        own, theirs = self.own.process, record.process
        return (
            self._may_judge(record)
            and own.boot_id == theirs.boot_id
            and self._same_pids(theirs)
            and theirs.pid != own.pid
        )

    def _open_pidfd(self, theirs: ProcessIdentity) -> Optional[int]:
        try:
            fd: int = getattr(os, "pidfd_open")(theirs.pid)
        except (OSError, OverflowError, AttributeError):  # no such call before 3.9
            return None
        # Compared after opening: a pid recycled in between would be watched for it.
        if 0 != self._stat(theirs).start_time == theirs.start_time:
            return fd
        os.close(fd)
        return None

    def incarnation_of(self, fd: int) -> Optional[str]:
        """Whose process `watch` returned this descriptor for."""
        return {fd: who for who, fd in self._pidfds.items()}.get(fd)

    def forget(self, incarnation: str) -> None:
        """Closes the descriptor of a peer; take it out of the selector first."""
        fd = self._pidfds.pop(incarnation, None)
        if fd is not None:
            os.close(fd)

    def close(self) -> None:
        """Closes all descriptors. Idempotent."""
        for incarnation in list(self._pidfds):
            self.forget(incarnation)


def _processes(record: NodeRecord) -> List[ProcessIdentity]:
    """All that must be dead before the node is."""
    process = record.process
    companions = [
        process._replace(pid=pid, start_time=start_time)
        for pid, start_time in record.companions
    ]
    return [process] + companions


def _can_bind(record: NodeRecord) -> bool:
    family, _ = _packed_address(record.host)
    if record.port <= 0:  # 0 would be any free port
        return False
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.bind(record.address)
    except (OSError, OverflowError):
        return False
    return True


# --------------------------------------------------------------------------------
# I/O edges: clock, socket, storage worker, callback worker
# --------------------------------------------------------------------------------

# Goes on in suspend, as CLOCK_MONOTONIC does on macOS, where time.monotonic does not
_BOOTTIME = getattr(time, "CLOCK_BOOTTIME", getattr(time, "CLOCK_MONOTONIC", None))
_SIOCGIFADDR = 0x8915  # Linux: the address of an interface
_MADV_WIPEONFORK = 18  # Linux: a forked copy finds zeros. No system call to look
_BIND_PATIENCE = 1.0  # seconds: somebody's proof of death may hold the port just now
_PACKETS_PER_TURN = 64  # a flood must not keep the timers waiting
_BUFFER = 4 << 20  # bytes of packets that may wait for the heartbeat thread
_BRIEFLY = 0.5  # seconds, for what is worth no longer wait
_MAX_LINES = 10000  # of the log, that wait for handlers which block
_QUICK = 0.05  # seconds: a storage call that took longer may count as slow already
_EXIT_PATIENCE = 2.0  # seconds that the interpreter's exit waits for an orderly stop

if _BOOTTIME is not None:

    def _clock() -> float:
        """Seconds on a clock that nobody sets, and that goes on in suspend."""
        return time.clock_gettime(_BOOTTIME)  # type: ignore[arg-type]

else:  # pragma: no cover
    _clock = time.monotonic


class _ByProcessId:
    """The mark of `_mark_of_own_process` where the system has no better one."""

    def __init__(self) -> None:
        self._pid = os.getpid()

    def __getitem__(self, index: int) -> int:
        return os.getpid() == self._pid


def _mark_of_own_process() -> Any:
    """Its item 0 is true in this process, and false in every copy of it.

    However that was forked: not every fork runs Python's hooks, uWSGI's does not.
    """
    if sys.platform == "linux":
        try:
            import mmap

            private = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
            page = mmap.mmap(-1, mmap.PAGESIZE, private)
            getattr(page, "madvise")(_MADV_WIPEONFORK)
            page[0] = 1
            return page
        except (ImportError, AttributeError, OSError):  # Python 3.7; an old kernel
            pass
    return _ByProcessId()


class _Limit:
    """Lets the same complaint through at most once a minute."""

    def __init__(self) -> None:
        self._passed_at = -FOREVER

    def passes(self) -> bool:
        now = _clock()
        passes = now >= self._passed_at + COMPLAINT_INTERVAL
        self._passed_at = now if passes else self._passed_at
        return passes


class _LogWriter:
    """Hands what the node's own threads log to the application's handlers.

    These may block (a full pipe, a file on the storage that hangs) or raise, and the
    stop callback must not wait for that. The thread lives as long as the node: one that
    is started for a line could take a signal from the main thread as it starts, and
    leave that waiting.
    """

    def __init__(self) -> None:
        self._records: "queue.SimpleQueue[Optional[logging.LogRecord]]"
        self._records = queue.SimpleQueue()
        self.thread = threading.Thread(
            target=self._run, name="cluster-log", daemon=True
        )

    def log(self, level: int, text: str, *args: object, trace: bool = False) -> None:
        if log.isEnabledFor(level) and self._records.qsize() < _MAX_LINES:
            error = sys.exc_info() if trace else None
            record = log.makeRecord(log.name, level, __file__, 0, text, args, error)
            self._records.put(record)

    def close(self) -> None:
        """Ends the thread after what was logged so far."""
        self._records.put(None)

    def _run(self) -> None:
        for record in iter(self._records.get, None):
            try:
                log.handle(record)
            except BaseException:
                pass  # of a handler that raises there is nobody to tell


class _Gate:
    """Counts the packets that are no heartbeats for us, and says so once a minute.

    Of each kind, of which there are a handful, whatever is in the packets.
    """

    def __init__(self, node_name: str, lines: _LogWriter) -> None:
        self._node_name = node_name
        self._lines = lines
        self._limits: Dict[str, _Limit] = {}
        self.counts: Dict[str, int] = {}

    def note(self, kind: str, source: Tuple[str, int]) -> None:
        self.counts[kind] = self.counts.get(kind, 0) + 1
        # Peers go on sending to a node that was restarted, for a moment
        if kind != NOT_FOR_US and self._limits.setdefault(kind, _Limit()).passes():
            text = "%s: dropped packets (%s): %d so far, the last from %s:%d"
            if kind == TAKEN:
                text = "%s: took packets (%s): %d so far, the last from %s:%d"
            said = self._node_name, kind, self.counts[kind], *source
            self._lines.log(logging.WARNING, text, *said)


class _Socket:
    """The UDP socket: bound to one address for as long as the node runs."""

    def __init__(self, host: str, port: int) -> None:
        family, address = _resolve("host_name", host, port)
        self.family = family
        self.wildcard = address[0] in ("0.0.0.0", "::")
        # Flow and scope of IPv6. Peers with link-local addresses share our link, but
        # not our name for it: what goes to them goes out where we are bound
        self._scope = address[2:]
        self.link_local = any(self._scope)
        self._socket = socket.socket(family, socket.SOCK_DGRAM)
        try:
            if family == socket.AF_INET6 and hasattr(socket, "IPV6_V6ONLY"):
                self._socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            self._bind(address)
            self._socket.setblocking(False)
            self._enlarge_buffer()
        except BaseException:
            self._socket.close()
            raise
        self.host, self.port = self._socket.getsockname()[:2]

    def _bind(self, address: Tuple[Any, ...]) -> None:
        # Exclusive on purpose, no SO_REUSEADDR: a bound port is proof of life.
        deadline = _clock() + _BIND_PATIENCE
        while True:
            try:
                return self._socket.bind(address)
            except OSError as error:
                in_use = error.errno == errno.EADDRINUSE
                if not in_use or _clock() >= deadline:
                    text = "cannot bind UDP %s:%s: %s"
                    raise ClusterError(text % (*address[:2], error)) from error
            time.sleep(0.02)

    def _enlarge_buffer(self) -> None:
        """For heartbeats to find room in a flood; the system may grant less."""
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)
        except OSError:
            pass

    def fileno(self) -> int:
        return self._socket.fileno()

    def send(self, data: bytes, address: Tuple[str, int]) -> None:
        # A name in somebody's record would be looked up here, and block all timers
        if _packed_address(address[0])[1]:
            try:
                self._socket.sendto(data, (*address, *self._scope))
            except (OSError, ValueError, TypeError, OverflowError):
                pass  # unreachable, full, closed, another family: a lost datagram

    def receive(self) -> Optional[Tuple[bytes, Tuple[str, int]]]:
        try:
            data, address = self._socket.recvfrom(MAX_PACKET + 1)
            return data, address[:2]
        except OSError:
            return None

    def route_to(self, host: str) -> Optional[str]:
        """Our address as that host would see it. No packet is sent."""
        if not _packed_address(host)[1]:
            return None  # never looks up a name
        try:
            with socket.socket(self.family, socket.SOCK_DGRAM) as probe:
                probe.connect((host, 9))
                found: str = probe.getsockname()[0]
                return found
        except (OSError, ValueError, TypeError):
            return None

    def close(self) -> None:
        self._socket.close()


def _interface_addresses() -> Iterator[str]:
    """IPv4 addresses of this machine's interfaces, where the system tells (Linux)."""
    try:
        import fcntl

        names = [name for _, name in socket.if_nameindex()]
    except (ImportError, OSError, AttributeError):
        return
    for name in names:
        request = name.encode()[:15].ljust(256, b"\0")
        try:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
                answer = fcntl.ioctl(probe.fileno(), _SIOCGIFADDR, request)
        except OSError:  # it has none, or no descriptor is left; elsewhere, no request
            continue
        host = socket.inet_ntoa(answer[20:24])
        if _is_routable(host):
            yield host


def _resolve(
    setting: str, host: str, port: int, family: int = 0
) -> Tuple[int, Tuple[Any, ...]]:
    """May ask a name server, and so take any time: never in the heartbeat thread."""
    # A text would load the tables of IDNA, of half a megabyte
    name: Union[str, bytes] = host.encode() if host.isascii() else host
    try:
        found = socket.getaddrinfo(name, port, family, socket.SOCK_DGRAM)
    except (OSError, ValueError) as error:
        text = "%s %r is no address: %s" % (setting, host, error)
        raise ClusterError(text) from error
    return int(found[0][0]), found[0][4]


def _close_quietly(backend: StorageBackend) -> None:
    try:
        backend.close()
    except Exception as error:
        log.debug("closing the storage: %s", error)


def _news_in(snapshot: Snapshot) -> Tuple[object, ...]:
    lease = snapshot.lease
    return snapshot[0], snapshot.nodes, lease and (lease.term, *lease[2:])


class _StorageWorker:
    """The maintenance thread: one storage call at a time, results into the inbox.

    A call that hangs keeps its thread; the next one gets a new thread.
    """

    def __init__(
        self,
        backend: StorageBackend,
        cluster_name: str,
        post: Callable[[Event, bool], None],
        lines: _LogWriter,
    ) -> None:
        self._backend = backend
        self._cluster_name = cluster_name
        self._post = post
        self._lines = lines
        self._busy = 0  # id of the call that the present thread works on
        self._limit = _Limit()
        self._found: Optional[Snapshot] = None  # by the last read, if it worked
        self._queue: "queue.SimpleQueue[Optional[Call]]"
        self.thread: Optional[threading.Thread] = None
        self.abandoned = self._ended = False
        self.last_error: Optional[str] = None

    def submit(self, call: Call) -> None:
        try:
            if self.thread is None or self._busy:
                self._new_thread()
        except RuntimeError as error:
            # 3.12 starts none while the interpreter ends. The storage may be tried
            # again; a dead decision loop could not
            self._post(Returned(call.id, error=str(error)), True)
            return
        self._busy = call.id
        self._queue.put(call)

    def done(self, call_id: int) -> None:
        """The result of this call was taken from the inbox."""
        if self._busy == call_id:
            self._busy = 0

    def _new_thread(self) -> None:
        calls: "queue.SimpleQueue[Optional[Call]]" = queue.SimpleQueue()
        thread = threading.Thread(
            target=self._run, args=(calls,), name="cluster-maintenance", daemon=True
        )
        thread.start()
        self.close()
        self.thread, self._queue = thread, calls

    def close(self) -> None:
        """The present thread ends when it is back from its call."""
        if self.thread is not None:
            self._queue.put(None)

    def end(self) -> None:
        """No call comes any more: the last thread closes the backend."""
        self._ended = True
        self.close()

    def _run(self, calls: "queue.SimpleQueue[Optional[Call]]") -> None:
        while True:
            call = calls.get()
            if call is None:
                if self._ended:
                    _close_quietly(self._backend)
                return
            began = _clock()
            try:
                returned = Returned(call.id, self._carry_out(call.request))
            except StorageError as error:
                returned = Returned(call.id, error=str(error))
            except BaseException as error:  # a faulty backend is a failing storage
                if self._limit.passes():
                    text = "the storage backend failed"
                    self._lines.log(logging.ERROR, text, trace=True)
                returned = Returned(call.id, error=repr(error))
            self.last_error = returned.error or self.last_error
            if self.abandoned:
                self._take_back(call.request)
                return
            quick = _clock() < began + _QUICK
            self._post(returned, self._is_news(call.request, returned) or not quick)

    def _is_news(self, request: Request, returned: Returned) -> bool:
        """False if the heartbeat thread need not be woken for it.

        It takes it when it wakes for something else, at the latest when the call
        would count as slow. A higher counter of the lease is no news either: the
        holder's heartbeat told of it, or else it is timed by a little later.
        """
        if returned.error is None and not isinstance(request, Read):
            return True
        before, self._found = self._found, returned.result  # none after an error
        if before is None or self._found is None or request == Read(fresh=True):
            return True
        return _news_in(before) != _news_in(self._found)

    def _carry_out(self, request: Request) -> Any:
        backend = self._backend
        if isinstance(request, Open):
            return _checked("open", str, backend.open(self._cluster_name))
        if isinstance(request, Read):
            return _checked("read", Snapshot, backend.read(request.fresh))
        if isinstance(request, Join):
            number = _checked("next_join_number", int, backend.next_join_number())
            record = request.record._replace(join_number=number)
            backend.write_node(record)
            return record
        if isinstance(request, Swap):
            won = backend.swap_lease(request.expected, request.new)
            return _checked("swap_lease", bool, won)
        if isinstance(request, Write):
            return backend.write_node(request.record)
        if isinstance(request, Remove):
            return backend.remove_node(request.name, request.incarnation)
        if isinstance(request, Pause):
            try:
                return _set_paused(backend, request.paused)
            except RuntimeError as error:
                return str(error)
        return backend.repair(request.cluster_id)

    def _take_back(self, request: Request) -> None:
        """A join that was given up must not leave a record behind."""
        if isinstance(request, Join):
            record = request.record
            try:
                self._backend.remove_node(record.name, record.incarnation)
            except Exception:
                log.debug("a record stays behind", exc_info=True)


def _checked(method: str, kind: type, result: Any) -> Any:
    if not isinstance(result, kind):
        text = "a faulty storage backend: its %s() returned %.80r"
        raise StorageError(text % (method, result))
    return result


class _CallbackWorker:
    """The callback thread: the application's callbacks, one at a time, in order.

    Two queues: what became of this node as primary goes before news of others, which
    delay it by no more than the one that runs.
    """

    def __init__(
        self,
        callbacks: Dict[str, Optional[Callable[..., object]]],
        may_start: Callable[[int], bool],
        post: Callable[[Event], None],
        ended: Callable[[], None],
        lines: _LogWriter,
    ) -> None:
        self._callbacks = callbacks
        self._may_start = may_start
        self._post = post
        self._tell_ended = ended
        self._lines = lines
        self._owes_stop = False  # a start callback began, and no stop callback since
        self._actions: Deque[RunCallback] = collections.deque()
        self._news: Deque[Tuple[str, Tuple[ClusterNode, ...]]] = collections.deque()
        self._wakes: "queue.SimpleQueue[bool]" = queue.SimpleQueue()
        self._changed_waits = self._closing = False
        self.ended = False
        self.thread = threading.Thread(
            target=self._run, name="cluster-callbacks", daemon=True
        )

    def submit(self, action: RunCallback) -> None:
        self._actions.append(action)
        self._wakes.put(True)

    def tell(self, kind: str, *node: "ClusterNode") -> None:
        """Queues a callback that has no part in primacy. One `changed` tells all."""
        if kind == "changed":
            if self._changed_waits:
                return
            self._changed_waits = True
        self._news.append((kind, node))
        self._wakes.put(True)

    def close(self) -> None:
        """Ends the thread after the actions; news that still wait are not told."""
        self._closing = True
        self._wakes.put(False)

    def _run(self) -> None:
        while self._wakes.get():
            if self._actions:
                self._post(self._call(self._actions.popleft()))
            elif not self._closing:
                kind, node = self._news.popleft()
                if kind == "changed":  # before it looks: what changes later is news
                    self._changed_waits = False
                self._guarded(kind, *node)
        self._tell_ended()

    def _call(self, action: RunCallback) -> CallbackEnded:
        kind, term = action
        # Asked at the last instant: the lease may have run out in the queue
        if kind == "start" and not self._may_start(term):
            return CallbackEnded(kind, term, skipped=True)
        if kind == "stop" and not self._owes_stop:  # after the core's death only
            return CallbackEnded(kind, term)
        if kind != "exit":
            self._owes_stop = kind == "start"
        return CallbackEnded(kind, term, error=self._guarded(kind))

    def _guarded(self, kind: str, *arguments: object) -> Optional[str]:
        """Runs a callback, if there is one, and returns what it raised."""
        callback = self._callbacks[kind]
        try:
            if callback is not None:
                callback(*arguments)
        except BaseException as error:  # SystemExit too: it would end this thread
            text = "the %s callback raised"
            self._lines.log(logging.ERROR, text, kind, trace=True)
            return repr(error)
        return None


class _Observer:
    """Notices, between two steps of the core, what applications want to be told."""

    def __init__(self, kinds: Iterable[str]) -> None:
        self._kinds = frozenset(kinds) & {"node_joined", "node_left", "changed"}
        self._alive: Dict[str, ClusterNode] = {}
        self._state: Tuple[object, ...] = (None, True, frozenset())

    def look(self, runtime: "_Runtime") -> List[Tuple[Any, ...]]:
        """The news since the last look, in order; with the runtime's lock held."""
        if not self._kinds:
            return []
        core = runtime.core
        news: List[Tuple[Any, ...]] = []
        alive = {r.incarnation for r in core.records.values() if core.is_alive(r)}
        if alive != self._alive.keys():
            news += self._comings_and_goings(alive, _build_cluster(runtime))
        works = core.storage_state() == "ok"
        state = core.known_primary(), works, core.active()
        if state != self._state:
            self._state = state
            news.append(("changed",))
        return [item for item in news if item[0] in self._kinds]

    def _comings_and_goings(
        self, alive: Set[str], cluster: "Cluster"
    ) -> List[Tuple[Any, ...]]:
        left = [node for id, node in self._alive.items() if id not in alive]
        nodes = [node for node in cluster.nodes.values() if node.id in alive]
        joined = [node for node in nodes if node.id not in self._alive]
        self._alive = {node.id: node for node in nodes}
        news: List[Tuple[Any, ...]] = [("node_left", node) for node in left]
        return news + [("node_joined", node) for node in joined]


class _Runtime:
    """The heartbeat thread: owns the core, its timers and the socket.

    Everything else talks to it through the inbox. `changed` guards the core: it is
    held while a step runs, and by readers while they copy what they want. A signal
    handler may interrupt a reader, and wait for this thread to end: it waits on
    `changed` then, which lets go of the reader's hold as well (see `look`, `wait_end`).
    """

    def __init__(self, control: "ClusterControl", host: str, port: int) -> None:
        self.changed = threading.Condition()
        self.primacy: Tuple[int, float] = (0, -FOREVER)
        self.fallen = 0  # a term whose end some reader has been told of
        self._mark = _mark_of_own_process()
        self.watchers: Set[Callable[[], object]] = set()  # as `changed`, for coroutines
        self.join_error: Optional[str] = None
        self.joined = False
        self.joining = 0  # threads that wait in join_cluster
        self.ended = False
        self.removed = False  # the record, after the end
        self.closed = False  # `ended`, and `changed` is not needed any more
        self.tickets = 0  # of those who have asked to pause or to resume
        self.answers: Dict[int, Optional[str]] = {}  # None: not yet
        self._control = control
        self._inbox: Deque[Event] = collections.deque()
        self._socket = _Socket(host, port)
        try:
            record = self._new_record()
        except ClusterError:
            self._socket.close()
            raise
        self._waker, self._woken = socket.socketpair()
        for end in (self._waker, self._woken):
            end.setblocking(False)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._socket, selectors.EVENT_READ)
        self._selector.register(self._woken, selectors.EVENT_READ)
        self._watched: Dict[int, str] = {}
        self._tag = b""
        self._tag_of: Optional[str] = None
        self.lines = _LogWriter()
        self.gate = _Gate(control.node_name, self.lines)
        self.terms_started = 0
        self.recent: Deque[Tuple[float, str]] = collections.deque(maxlen=_RECENT)
        self._trip_limit = _Limit()
        first_term = int(time.time())
        self.core: Core = Core(
            control.timings, record, _clock(), first_term,
            heeds_versions=control.version_policy == "newest",
        )  # fmt: skip
        self._coroner = _Coroner(record, enabled=control.same_host_proof)
        self._polled_at = -FOREVER
        self._abandoned = False
        self.storage = _StorageWorker(
            control.storage_backend, control.cluster_name, self.post, self.lines
        )
        callbacks = control._callbacks()
        self._observer = _Observer(kind for kind, call in callbacks.items() if call)
        self._news: List[Tuple[Any, ...]] = []
        self.callbacks = _CallbackWorker(
            callbacks, self._may_start, self.post, self._callbacks_ended, self.lines
        )
        self.thread = threading.Thread(
            target=self._run, name="cluster-heartbeat", daemon=True
        )
        try:
            for thread in (self.lines.thread, self.callbacks.thread, self.thread):
                thread.start()
        except RuntimeError:  # the system has no thread left
            self._close()
            self.lines.close()
            raise

    def _new_record(self) -> NodeRecord:
        control, sock = self._control, self._socket
        identity = own_identity() if control.same_host_proof else ProcessIdentity()
        host = control.advertise_host
        if host:
            _, address = _resolve("advertise_host", host, sock.port, sock.family)
            host = address[0]
        if host or sock.link_local:
            # Others may bind what is no address of ours, or the same link-local one
            # on another link: that would prove nothing
            identity = identity._replace(network_namespace="", first_namespace=False)
        return NodeRecord(
            control.node_name, _random_id(), host or self._own_address(()), sock.port,
            version=control.own_version, joined_at=time.time(), process=identity,
            metadata=control._metadata, priority=control.priority,
        )  # fmt: skip

    def _own_address(self, peers: Iterable[NodeRecord]) -> str:
        """The address to advertise: for a wildcard, the one that routes to peers."""
        sock = self._socket
        if not sock.wildcard:
            return str(sock.host)
        six = sock.family == socket.AF_INET6
        anywhere = "2001:db8::1" if six else "192.0.2.1"  # reserved, never answers
        for host in [record.host for record in peers] + [anywhere]:
            found = sock.route_to(host)
            if found and _is_routable(found):
                return found
        # No default route: whatever address there is, until a peer is known
        found = None if six else next(_interface_addresses(), None)
        return found or ("::1" if six else "127.0.0.1")

    def _follow_address(self, events: List[Event]) -> None:
        """Advertises another address once the present one is not ours any more."""
        sock, own = self._socket, self.core.record
        if not sock.wildcard or self._control.advertise_host or not self.joined:
            return
        if _is_routable(own.host) and sock.route_to(own.host) == own.host:
            return
        host = self._own_address(self.core.records.values())
        # Loopback is what is left where nothing can be asked, without a descriptor say
        if host != own.host and _is_routable(host):
            text = "%s: the address %s is not ours any more; it is %s now"
            self.lines.log(logging.WARNING, text, own.name, own.host, host)
            self._coroner.own = own._replace(host=host)
            events.append(Described(host=host))

    # ---- from other threads

    def post(self, event: Event, wake: bool = True) -> None:
        """Hands an event to the heartbeat thread. Never blocks."""
        self._inbox.append(event)
        if wake:
            self._wake()

    def _wake(self) -> None:
        try:
            self._waker.send(b"\0")
        except OSError:  # full: it will wake anyway; closed: nobody is left to
            pass

    def term(self) -> int:
        """The term that is held right now, by the caller's own clock; else 0."""
        term, deadline = self.primacy
        if term and term != self.fallen:
            if _clock() < deadline:
                return term if self._mark[0] else 0
            # Once told, it stays so: a later vouch must not bring the term back
            self.fallen = term
        return 0

    def _may_start(self, term: int) -> bool:
        return self.term() == term

    def look(self, build: Callable[[], Any]) -> Any:
        """What `build` makes of the core, which stands still meanwhile.

        Unless a signal handler that interrupts it waits for the end of this node:
        then, and only then, it may trip, and is called once more.
        """
        with self.changed:
            try:
                return build()
            except Exception:
                return build()

    def wait_end(self, timeout: Optional[float]) -> bool:
        """Waits until no thread of this node but for the storage's has work left."""
        with self.changed:
            return self.changed.wait_for(
                lambda: self.closed and self.callbacks.ended, timeout
            )

    def abandon(self) -> None:
        """Gives up a node that has not joined, leaving nothing behind."""
        self._abandoned = self.storage.abandoned = True
        self._wake()
        self.thread.join(1.0)

    # ---- the loop

    def _run(self) -> None:
        try:
            self._step([])
            while not self.ended and not self._abandoned:
                self._turn()
        except BaseException:
            text = "the decision loop died; this node falls silent"
            self.lines.log(logging.CRITICAL, text, trace=True)
            self._emergency_stop()
        finally:
            self._close()

    def _turn(self) -> None:
        timeout = max(0.0, min(self.core.wake_at - _clock(), 60.0))
        events: List[Event] = []
        for key, _ in self._selector.select(timeout):
            if key.fileobj is self._socket:
                self._receive(events)
            elif key.fileobj is self._woken:
                self._drain_wakes()
            else:
                self._process_ended(self._unwatch(key.fd), events)
        # Proofs before reads: what they are made of may be an older record
        self._poll_processes(events)
        while self._inbox:
            events.append(self._inbox.popleft())
        self._step(events)

    def _drain_wakes(self) -> None:
        try:
            self._woken.recv(4096)
        except OSError:
            pass

    def _step(self, events: List[Event]) -> None:
        while True:
            actions = self._think(events)
            events = []
            for action in actions:
                self._carry_out(action, events)
            for news in self._news:
                self.callbacks.tell(*news)
            if not events:
                return

    def _think(self, events: List[Event]) -> List[Action]:
        for event in events:
            if isinstance(event, Returned):
                self.storage.done(event.id)
        core = self.core
        if self.fallen and self.fallen == core.primacy[0]:
            events.insert(0, Expired(self.fallen))
        with self.changed:
            before = self._milestones()
            actions = self._guarded_step(events)
            self.primacy = core.primacy
            self._news = self._observer.look(self)
            if before != self._milestones():
                self._notify()
        if core.cluster_id is not None and core.cluster_id != self._tag_of:
            self._tag_of = core.cluster_id
            self._tag = _cluster_tag(self._control.cluster_name, core.cluster_id)
        return actions

    def _milestones(self) -> Tuple[object, ...]:
        """What other threads may wait for."""
        core = self.core
        return core.primacy[0], core.role, core.record.stopped_term, core.written

    def _callbacks_ended(self) -> None:
        self.lines.close()  # the other threads have said what they have to
        with self.changed:  # with the lock, as `wait_end` returns with it
            self.callbacks.ended = True
            self._notify()

    def _notify(self) -> None:
        """With the lock held: wakes all who wait for a change."""
        self.changed.notify_all()
        for watcher in self.watchers:
            try:
                watcher()
            except RuntimeError:  # its event loop was closed meanwhile
                pass

    def _guarded_step(self, events: List[Event]) -> List[Action]:
        heard = [event for event in events if isinstance(event, Heard)]
        others = [event for event in events if not isinstance(event, Heard)]
        actions: List[Action] = []
        if others or not heard:
            actions += self.core.step(_clock(), *others)
        try:
            if heard:
                actions += self.core.step(_clock(), *heard)
        except Exception:
            # A packet that trips us must not end the node; all else would leave
            # it in a state that nobody has thought of. What was decided before that
            # packet is done all the same: the core waits for its results
            actions += self.core._out
            if self._trip_limit.passes():
                text = "a heartbeat could not be handled, and is dropped"
                self.lines.log(logging.ERROR, text, trace=True)
            actions += self.core.step(_clock())
        return actions

    def _carry_out(self, action: Action, events: List[Event]) -> None:
        if isinstance(action, Send):
            secret = self._control._secret
            data = encode_heartbeat(action.heartbeat, self._tag, secret)
            self._socket.send(data, action.address)
        elif isinstance(action, Say):
            if action.level >= logging.INFO:
                self.recent.append((time.time(), action.text))
            name = self._control.node_name
            self.lines.log(action.level, "%s: %s", name, action.text)
        elif isinstance(action, Call):
            self.storage.submit(self._with_address(action))
        elif isinstance(action, RunCallback):
            self.terms_started += action.kind == "start"
            self.callbacks.submit(action)
        elif isinstance(action, Examine):
            self._examine(action, events)
        elif isinstance(action, PauseDone):
            with self.changed:
                if action.ticket in self.answers:  # else nobody waits any more
                    self.answers[action.ticket] = action.error
                self.changed.notify_all()
        elif isinstance(action, Joined):
            self._tell_joined(None)
        elif isinstance(action, JoinFailed):
            self._tell_joined(action.text)
        elif isinstance(action, Finished):
            self.ended = True

    def _with_address(self, call: Call) -> Call:
        """Before joining, the peers are known: advertise what routes to them."""
        request = call.request
        if not isinstance(request, Join) or self._control.advertise_host:
            return call
        host = self._own_address(self.core.records.values())
        record = request.record._replace(host=host)
        self._coroner.own = record
        return Call(call.id, Join(record))

    def _tell_joined(self, error: Optional[str]) -> None:
        with self.changed:
            self.joined, self.join_error = error is None, error
            self.ended = self.ended or error is not None
            self._notify()
        if error is not None:
            self.lines.log(logging.ERROR, "%s: %s", self._control.node_name, error)

    # ---- packets

    def _receive(self, events: List[Event]) -> None:
        secret, required = self._control._secret, self._control.secret_required
        receiver = self.core.record.incarnation
        for _ in range(_PACKETS_PER_TURN):
            received = self._socket.receive()
            if received is None:
                return
            data, source = received
            if not self._tag:
                continue
            try:
                heartbeat = decode_heartbeat(
                    data, self._tag, secret, required, receiver
                )
            except ValueError as error:
                self.gate.note(str(error).split(":")[0], source)
                continue
            if secret and data[_MAC] == _NO_MAC:
                self.gate.note(TAKEN, source)
            events.append(Heard(heartbeat, source))

    # ---- processes on this host

    def _examine(self, action: Examine, events: List[Event]) -> None:
        record = action.record
        self._coroner.one_kernel = self._control.storage_backend.one_kernel
        fd = self._coroner.watch(record)
        if fd is not None and fd not in self._watched:
            try:
                self._selector.register(fd, selectors.EVENT_READ)
                self._watched[fd] = record.incarnation
            except OSError:  # the system's limit: it is looked at now and then
                self._coroner.forget(record.incarnation)
        if self._coroner.is_dead(record, action.bind):
            events.append(ProvenDead(record.incarnation))

    def _process_ended(self, incarnation: str, events: List[Event]) -> None:
        """The kernel said so; companions, if there are any, have to be dead too."""
        peer = self.core.peers.get(incarnation)
        if peer is not None and peer.record is not None and peer.record.companions:
            self._examine(Examine(peer.record), events)
        else:
            events.append(ProvenDead(incarnation))

    def _unwatch(self, fd: int) -> str:
        incarnation = self._watched.pop(fd)
        self._selector.unregister(fd)
        self._coroner.forget(incarnation)
        return incarnation

    def _poll_processes(self, events: List[Event]) -> None:
        """Where no pidfd tells, looks at the members of this host each interval."""
        if _clock() < self._polled_at + self._control.timings.hb_interval:
            return
        self._polled_at = _clock()
        self._follow_address(events)
        watched = set(self._watched.values())
        for record in self.core.records.values():
            if record.incarnation in watched:
                watched.discard(record.incarnation)
            elif self._coroner.is_dead(record):
                events.append(ProvenDead(record.incarnation))
        if len(watched) > 16:  # of former members, who live on
            for fd, incarnation in list(self._watched.items()):
                if incarnation in watched:
                    self._unwatch(fd)

    # ---- the end

    def _emergency_stop(self) -> None:
        """The core is dead: what it owes the application is done without it."""
        self.primacy = (0, -FOREVER)
        # Called if it is owed; the worker knows, as a start may be in its queue
        self.callbacks.submit(RunCallback("stop", self.core.primacy[0]))
        self.callbacks.close()
        self.callbacks.thread.join()  # the port stays bound until it returned

    def _close(self) -> None:
        with self.changed:
            self.ended = self.closed = True
            self.primacy = (0, -FOREVER)
            self._notify()
        self._selector.close()  # and with it whatever was registered
        self._coroner.close()
        self._socket.close()
        self._waker.close()
        self._woken.close()
        self.storage.end()
        self.callbacks.close()
        self._control._close_health()

    def close_in_child(self) -> None:
        """After a fork: lets go of the copies, and of nothing that is shared."""
        self.primacy = (0, -FOREVER)
        self.ended = True
        # Closing an epoll's copy is harmless; *unregistering* would reach the parent
        closers: List[Callable[[], None]] = [
            self._selector.close, self._socket.close,
            self._waker.close, self._woken.close,
        ]  # fmt: skip
        for close in closers:
            try:
                close()
            except OSError:
                pass
        self._coroner.close()


# --------------------------------------------------------------------------------
# What applications see: the views
# --------------------------------------------------------------------------------


class ClusterNode:
    """One member of the cluster, as this node knows it.

    A copy, except for `last_hb` and the own node's `is_primary`, which are always
    those of now.
    """

    def __init__(
        self,
        record: NodeRecord,
        peer: Optional[Peer],
        runtime: Optional[_Runtime],
        is_primary: bool,
        is_active: bool,
    ) -> None:
        self._record = record
        self._peer = peer
        self._runtime = runtime
        self._is_primary = is_primary
        self.name: str = record.name
        """The name that it was configured with."""
        self.id: str = record.incarnation
        """New at each start of the node, and the same for as long as it runs."""
        self.ip: str = record.host
        """Address of its heartbeat socket."""
        self.port: int = record.port
        """Port of its heartbeat socket."""
        self.version: Optional[str] = record.version
        """What it gave as own_version."""
        self.priority: Optional[int] = record.priority
        """The higher, the sooner it becomes primary; None: never."""
        self.is_self: bool = peer is None
        """True for the node that was asked."""
        self.is_active: bool = is_active
        """True for the primary, and for every member that it has admitted."""

    def __repr__(self) -> str:
        return "<ClusterNode %r %s:%d>" % (self.name, self.ip, self.port)

    @property
    def is_primary(self) -> bool:
        """True for the primary. About oneself it is exact, by one's own clock;
        about another node it may be as old as its last heartbeat."""
        if self._runtime is not None and self.is_self:
            return self._runtime.term() != 0
        return self._is_primary

    @property
    def last_hb(self) -> Optional[float]:
        """When it was last heard, in seconds on this node's own monotonic clock
        (`time.clock_gettime(time.CLOCK_BOOTTIME)` where that exists); None if
        never, and for the own node."""
        if self._peer is None or not self._peer.ever:
            return None
        return self._peer.linked_at

    @property
    def metadata(self) -> Dict[str, Any]:
        """What it says of itself, as it was when this view was made: a copy."""
        metadata: Dict[str, Any] = json.loads(self._record.metadata)
        return metadata

    @property
    def join_timestamp(self) -> Any:
        """When it joined, by its own wall clock: an aware UTC datetime, for people."""
        from datetime import datetime, timezone

        return datetime.fromtimestamp(self._record.joined_at, timezone.utc)


class Cluster:
    """The membership as this node knew it when it was asked: a copy."""

    def __init__(
        self,
        nodes: Dict[str, ClusterNode],
        dead_nodes: List[ClusterNode],
        version: Optional[str],
        oldest_node: Optional[ClusterNode],
    ) -> None:
        self.nodes: Dict[str, ClusterNode] = nodes
        """Every member with a record in the last good snapshot, by name."""
        self.dead_nodes: List[ClusterNode] = dead_nodes
        """Members that this node counts as lost."""
        self.version: Optional[str] = version
        """The highest version among the nodes that are alive in the cluster."""
        self.oldest_node: Optional[ClusterNode] = oldest_node
        """The most senior active member."""

    @property
    def primary_node(self) -> Optional[ClusterNode]:
        """The primary, or None if there is none that this node knows of."""
        return next((n for n in self.nodes.values() if n.is_primary), None)

    @property
    def own_node(self) -> Optional[ClusterNode]:
        """The node that was asked; None while it is no member."""
        return next((n for n in self.nodes.values() if n.is_self), None)


def _build_cluster(runtime: _Runtime) -> Cluster:
    """Called with the runtime's lock held."""
    core = runtime.core
    members = sorted(core.members(), key=lambda record: record.seniority)
    holder = None if runtime.ended else core.known_primary()  # what became of it?
    active = core.active()
    nodes: Dict[str, ClusterNode] = {}
    for record in members:
        own = record.incarnation == core.record.incarnation
        nodes[record.name] = ClusterNode(
            record,
            None if own else core.peers.get(record.incarnation),
            runtime,
            record.incarnation == holder,
            record.incarnation in active,
        )
    dead = [nodes[record.name] for record in members if core.counts_as_lost(record)]
    alive = [r.version for r in members if r.version and core.is_alive(r)]
    version = max(alive, key=version_key) if alive else None
    oldest = next((node for node in nodes.values() if node.is_active), None)
    return Cluster(nodes, dead, version, oldest)


# --------------------------------------------------------------------------------
# Health and metrics over HTTP
# --------------------------------------------------------------------------------

_RECENT = 20  # transitions that the status page shows
_HTTP_PATIENCE = 5.0  # seconds for which a client may keep a connection without asking

_PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta http-equiv="refresh" content="2">
<title>%(title)s</title><style>
body{font:16px/1.5 system-ui,sans-serif;max-width:60em;margin:2em auto;padding:0 1em}
table{border-collapse:collapse;width:100%%}
th,td{text-align:left;padding:.3em .8em;border-bottom:1px solid #8884}
.primary{font-weight:bold;color:#0a7d32}.lost{color:#b3261e}
:root{color-scheme:light dark}</style></head><body>
<h1>%(title)s</h1><p class="%(class)s">%(verdict)s</p>
<p>Node %(node)s: %(why)s. Storage: %(storage)s.</p>
<table><tr><th>Node</th><th>Address</th><th>Version</th><th>State</th>
<th>Last heard</th></tr>%(members)s</table>
<h2>Recent transitions</h2><ul>%(recent)s</ul></body></html>
"""


class _Health:
    """Answers GET requests about one control, on threads of its own; read-only."""

    def __init__(self, control: "ClusterControl", host: str, port: int) -> None:
        import http.server
        import socketserver

        health = self

        class Handler(http.server.BaseHTTPRequestHandler):
            timeout = _HTTP_PATIENCE
            server_version, sys_version = "cluster", ""

            def do_GET(self) -> None:
                code, kind, text = _health_answer(control, self.path.split("?")[0])
                body = text.encode()
                self.send_response(code)
                self.send_header("Content-Type", kind + "; charset=utf-8")
                self.send_header("Content-Length", str(len(body)))
                self.send_header("Cache-Control", "no-store")
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(body)

            do_HEAD = do_GET

            def log_message(self, format: str, *args: Any) -> None:
                log.debug("health: " + format, *args)

        class Server(http.server.ThreadingHTTPServer):
            address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
            daemon_threads = True
            request_queue_size = 64

            def server_bind(self) -> None:
                # Its own one asks the name service for this host's name, which may wait
                socketserver.TCPServer.server_bind(self)
                self.server_name, self.server_port = host, port

            def get_request(self) -> Any:
                try:
                    return super().get_request()
                except OSError:
                    time.sleep(0.1)  # no descriptor left, perhaps, and it still waits
                    raise

            def verify_request(self, request: Any, client_address: Any) -> bool:
                return not health._closing

            def handle_error(self, request: Any, client_address: Any) -> None:
                log.debug("health: a request failed", exc_info=True)

        try:
            self._server = Server((host, port), Handler)
        except (OSError, OverflowError) as error:
            text = "health_port %d of %r cannot be bound: %s; 0 takes any free one"
            raise ClusterError(text % (port, host, error)) from error
        self.host, self.port = host, int(self._server.server_address[1])
        self._closing = False
        self.thread = threading.Thread(
            target=self._run, name="cluster-health", daemon=True
        )
        self.thread.start()

    def _run(self) -> None:
        while not self._closing:  # serve_forever() would look twice a second
            self._server.handle_request()
        self._server.server_close()

    def close(self) -> None:
        """Wakes the thread by a connection; it lets go of the port."""
        self._closing = True
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)
        try:
            socket.create_connection((host, self.port), timeout=1.0).close()
        except OSError:  # the address has gone, or a firewall is there
            try:
                self._server.socket.shutdown(socket.SHUT_RDWR)  # which wakes on Linux
            except OSError:
                self._server.socket.close()

    def close_in_child(self) -> None:
        self._server.socket.close()


def _health_answer(control: "ClusterControl", path: str) -> Tuple[int, str, str]:
    """Status code, media type and text for a path."""
    status = control.status()
    if path == "/primary":
        code = 200 if status["is_primary"] else 503
        return code, "text/plain", status["why"] + "\n"
    if path == "/member":
        good = status["role"] in ("member", "claimant", "primary", "stopping")
        return (200 if good else 503), "text/plain", status["role"] + "\n"
    if path == "/live":
        text = "alive" if status["alive"] else "the heartbeat thread does not run"
        return (200 if status["alive"] else 503), "text/plain", text + "\n"
    if path == "/status":
        return 200, "application/json", json.dumps(status, indent=2) + "\n"
    if path == "/metrics":
        return 200, "text/plain; version=0.0.4", _metrics(control, status)
    if path == "/":
        return 200, "text/html", _page(control, status)
    return 404, "text/plain", "/primary /member /live /status /metrics /\n"


def _metrics(control: "ClusterControl", status: Dict[str, Any]) -> str:
    members, runtime = status["members"], control._runtime
    values: List[Tuple[str, str, str, float]] = [
        ("is_primary", "gauge", "1 on the primary.", status["is_primary"]),
        ("term", "gauge", "Fencing token; 0 when not primary.", status["term"]),
        ("has_primary", "gauge", "1 if this node knows of a primary.",
         status["primary"] is not None),
        ("lease_left_seconds", "gauge", "Until this primary's lease runs out.",
         status["lease_left"]),
        ("storage_ok", "gauge", "1 if the storage works.", status["storage"] == "ok"),
        ("members", "gauge", "Nodes with a record.", len(members)),
        ("active_members", "gauge", "Members that the primary has admitted.",
         sum(member["active"] for member in members)),
        ("lost_members", "gauge", "Members that this node counts as lost.",
         sum(member["lost"] for member in members)),
        ("alive", "gauge", "1 while the heartbeat thread runs.", status["alive"]),
        ("terms_started_total", "counter", "Times that this node became primary.",
         runtime.terms_started if runtime else 0),
        ("packets_dropped_total", "counter", "Packets that were not believed.",
         sum(count for kind, count in status["packets"].items() if kind != TAKEN)),
    ]  # fmt: skip
    labels = ",".join(
        '%s="%s"' % (key, re.sub(r'(["\\])', r"\\\1", text).replace("\n", "\\n"))
        for key, text in (("cluster", status["cluster"]), ("node", status["node"]))
    )
    line = "# HELP cluster_%s %s\n# TYPE cluster_%s %s\ncluster_%s{%s} %s\n"
    return "".join(
        line % (name, text, name, kind, name, labels, repr(float(value)))
        for name, kind, text, value in values
    )


def _page(control: "ClusterControl", status: Dict[str, Any]) -> str:
    from html import escape

    primary, runtime = status["primary"], control._runtime
    verdict = "%s is the primary" % primary if primary else "There is no primary"
    recent = [
        "<li>%s %s</li>" % (time.strftime("%H:%M:%S", time.localtime(at)), escape(text))
        for at, text in reversed(list(runtime.recent) if runtime else [])
    ]
    return _PAGE % {
        "title": "Cluster " + escape(status["cluster"]),
        "class": "primary" if primary else "lost",
        "verdict": escape(verdict),
        "node": escape(status["node"]),
        "why": escape(status["why"]),
        "storage": escape(status["storage"]),
        "members": "".join(map(_page_row, status["members"])),
        "recent": "".join(recent) or "<li>none yet</li>",
    }


def _page_row(member: Dict[str, Any]) -> str:
    from html import escape

    states = ("primary", "lost", "active")
    state = next((name for name in states if member[name]), "joining")
    heard = member["silence"]
    cells = (member["name"], member["address"], member["version"] or "", state,
             "" if heard is None else "%.1f s ago" % heard)  # fmt: skip
    row = "".join("<td>%s</td>" % escape(cell) for cell in cells)
    return '<tr class="%s">%s</tr>' % (state, row)


# --------------------------------------------------------------------------------
# What applications use: the control
# --------------------------------------------------------------------------------

_DEFAULT_SETTINGS = (1, 5, 5, 2)  # H, T, M, C, where none is given
_controls: "weakref.WeakSet[ClusterControl]" = weakref.WeakSet()


def _seconds(name: str, value: Any, zero: bool = False) -> float:
    if not _is_seconds(value) or (not zero and not value):
        rule = "0 or more" if zero else "above 0"
        raise ValueError("%s must be %s seconds, not %.80r" % (name, rule, value))
    return float(value)


def _make_timings(
    hb_interval: Any,
    hb_timeout: Any,
    hb_missed_count: Any,
    check_interval: Any,
    lease_duration: Any,
    freeze_limit: Any,
    stop_timeout: Any,
) -> Timings:
    """Checks the inequalities between the settings, one clear error each."""
    if not _is_int(hb_missed_count, 1, 10**6):
        text = "hb_missed_count must be an int from 1 to 1000000, not %.80r"
        raise ValueError(text % (hb_missed_count,))
    timings = Timings(
        _seconds("hb_interval", hb_interval),
        _seconds("hb_timeout", hb_timeout),
        hb_missed_count,
        _seconds("check_interval", check_interval),
        freeze_limit=_seconds("freeze_limit", freeze_limit, zero=True),
        stop_timeout=_seconds("stop_timeout", stop_timeout, zero=True),
    )
    interval, timeout = timings.hb_interval, timings.hb_timeout
    if timeout <= interval:
        text = "hb_timeout (%g s) must be longer than hb_interval (%g s)"
        raise ValueError(text % (timeout, interval))
    if timeout < 2 * interval:
        log.warning(
            "hb_timeout (%g s) is shorter than two hb_interval (%g s): one lost "
            "packet makes a node silent",
            timeout, interval,
        )  # fmt: skip
    return timings._replace(lease_duration=_check_lease(timings, lease_duration))


def _settings_for(
    failover_time: Any, given: Tuple[Any, Any, Any, Any]
) -> Tuple[Any, Any, Any, Any]:
    """H, T, M, C with D = 0.9 of failover_time: the rest is for the takeover itself.

    Returns `given`, which is the same four, where there is no failover_time.
    """
    if failover_time is None:
        return given
    seconds = _seconds("failover_time", failover_time)
    if given != _DEFAULT_SETTINGS:
        raise ValueError(
            "failover_time (%g s) takes the place of hb_interval, hb_timeout, "
            "hb_missed_count and check_interval; give it or them, not both" % seconds
        )
    if seconds < MIN_FAILOVER:
        text = "failover_time (%g s) must be %g s or more"
        raise ValueError(text % (seconds, MIN_FAILOVER))
    return 0.09 * seconds, 0.54 * seconds, 3, 0.18 * seconds


def _check_lease(timings: Timings, lease_duration: Any) -> float:
    longest = timings.detection_time
    if lease_duration is None:
        return min(max(timings.hb_timeout, MIN_LEASE), longest)
    duration = _seconds("lease_duration", lease_duration)
    if not MIN_LEASE <= duration <= longest:
        text = (
            "lease_duration (%g s) must be between %g s and the detection time "
            "hb_timeout + (hb_missed_count - 1) * check_interval (%g s)"
        )
        raise ValueError(text % (duration, MIN_LEASE, longest))
    return duration


def _check_name(what: str, name: Any) -> str:
    if not _is_name(name):
        text = "%s must be a text of 1 to %d bytes in UTF-8, not %.80r"
        raise ValueError(text % (what, MAX_NAME, name))
    return str(name)


def _metadata_text(metadata: Any) -> str:
    """A node's metadata as JSON text.

    Raises:
        ValueError: no dict, not JSON, or too long; names the size and the limit.
    """
    try:
        text = json.dumps(metadata, allow_nan=False, separators=(",", ":"))
        ok = isinstance(metadata, dict) and json.loads(text) == metadata
    except (TypeError, ValueError, RecursionError):
        text, ok = "", False
    if not ok:
        what = "metadata must be a dict that JSON gives back equal, not %.80r"
        raise ValueError(what % (metadata,))
    if len(text) > MAX_METADATA:
        what = "metadata has %d bytes as JSON, and the limit is %d"
        raise ValueError(what % (len(text), MAX_METADATA))
    return text


def _check_host(what: str, host: Any) -> str:
    if not isinstance(host, str) or not host:
        raise ValueError("%s must be an address or a name, not %r" % (what, host))
    return host


def _check_advertised(host: Any) -> Optional[str]:
    """A name is looked up by `start`, which may wait; the constructor does not."""
    if host is None:
        return None
    if not isinstance(host, str) or host in ("", "0.0.0.0", "::") or "%" in host:
        text = "advertise_host must be one address or name, without a scope, not %r"
        raise ValueError(text % (host,))
    return host


def _check_secret(secret: Any) -> bytes:
    if secret is None:
        return b""
    data = secret.encode() if isinstance(secret, str) else secret
    if not isinstance(data, bytes) or not data:
        # an empty one is a mistake of a configuration, and would protect nothing
        raise ValueError("secret must be text or bytes, and not empty")
    _mac(b"", data)  # loads what it needs here, not in the heartbeat thread
    return data


def _default_node_name() -> str:
    host = socket.gethostname()[:100] or "node"
    return "%s-%d-%s" % (host, os.getpid(), _random_id()[:8])


class ClusterControl:
    """One node of a cluster: makes this process aware of its other instances.

    Create it, `start()` it, and ask `is_primary`, or let the callbacks tell. As a
    context manager it joins and starts, and on the way out stops and leaves.

    Detection time: a node is lost `hb_timeout + (hb_missed_count - 1) *
    check_interval` seconds after its last heartbeat.

    Args:
        cluster_name: nodes with the same name and storage form one cluster.
        host_name: the address to bind, IPv4 or IPv6; "0.0.0.0" (the default) or
            "::" binds all, and advertises the one that routes to the peers. One
            like "fe80::1%eth0" finds the peers that are on that link.
        node_name: unique in the cluster. Default: a new unique one.
        hb_port: UDP port; 0 (the default) takes any free one.
        hb_interval: seconds between two heartbeats. Shorter finds the dead
            sooner, and costs one packet per peer each.
        hb_timeout: seconds without a heartbeat until a node is silent, its first
            miss. Longer survives more packet loss, and fails over later.
        check_interval: seconds between two looks at the storage, and per further
            miss. Shorter sees trouble with the storage sooner, and costs a call each.
        start_primary_callback: called when this node has become the primary.
        stop_primary_callback: called when it is the primary no more, once for each
            start callback that began, also for one that raised. It should return
            within the stop budget, about a third of lease_duration; a longer one
            delays the successor.
        exit_callback: called when this node was told to exit: a newer version is
            alive in the cluster, or another process took over its name. Called last,
            after the stop callback, and after the record was removed (or 5 s without
            storage); the node then ends, and the program should too.
        hb_missed_count: misses until a silent node is lost. More survives longer
            trouble, and adds a check_interval each to the detection time.
        own_version: nodes leave and exit when one with a higher version is alive.
            None takes no part.
        storage_backend: where the cluster is kept, such as a
            `SharedFsStorageBackend`; one object for each control.
        lease_duration: seconds for which the primary holds the cluster without
            renewing, from 0.3 to the detection time; default hb_timeout. Longer
            gives the stop callback more time and outlasts longer trouble with the
            storage. Shorter asks more of the storage; a failover waits for the
            detection time anyway.
        freeze_limit: seconds, 0 or more, for which the primary may go on while the
            storage is gone and every active member still vouches for it. Longer
            outlasts longer outages; but if all nodes die, and nobody can prove it, a
            restart waits for so long too. 0: it stops at the renewal deadline, two
            thirds of lease_duration.
        stop_timeout: seconds, 0 or more, for which callbacks that still run delay the
            successor; after an orderly stop, for up to twice that. After that it
            starts although they run: longer is safer, shorter ends a hang sooner.
        same_host_proof: whether the death of a process on the same host is taken
            from the kernel, without waiting for the timeouts.
        secret: text or bytes that all nodes share; then only packets that are
            authenticated by it are believed. Make it long and random, such as
            `secrets.token_hex(16)`: whoever sees packets can try guesses.
        secret_required: False also believes packets without any secret, for the
            time in which a running cluster gets one: first restart every node with
            the secret and False, then every node with the secret alone.
        advertise_host: the address to tell the peers, behind NAT. A name is looked
            up once, when the node starts or joins.
        metadata: a dict that every node sees as `ClusterNode.metadata`, at most
            1024 bytes as JSON: a role, a URL, a data centre.
        priority: an int; of the candidates the one with the highest is preferred
            in an election, then the most senior. Nobody who is primary is
            deposed for it. None: this node never becomes primary, and is a member
            like any other.
        health_port: TCP port for health checks and metrics over HTTP, read-only: the
            paths are `/primary`, `/member` and `/live` (200 or 503), `/status` (JSON),
            `/metrics` (Prometheus) and `/` (a page for people). 0 takes any free one,
            which `health_address` tells; None, the default, opens none.
        health_host: the address to bind for it. Whoever reaches it can read the
            cluster's names and addresses; so by default only this host can.
        failover_time: seconds within which another node is primary when the
            primary's host dies, from 1. Takes the place of hb_interval, hb_timeout,
            hb_missed_count and check_interval, which are made from it: 0.09, 0.54,
            3 and 0.18 of it, so that the detection time is 0.9 of it.
        version_policy: "newest", or "ignore": this node stays whatever the others'
            versions are. Give it on all nodes: those with "newest" heed all others.
        node_joined_callback: called with a `ClusterNode` for each other node that is
            alive in the cluster: was heard, or appeared while this one watched.
        node_left_callback: called with a `ClusterNode` that has left, or is lost. A
            node that comes back joins anew; its `id` tells whether it is the same.
        changed_callback: called when another node (or nobody) is primary, the
            storage fails or works again, or another set of nodes is active. Several
            changes may be one call: look at `cluster` or `status()`.
        enabled: False makes a control that takes no part: it starts no thread, needs
            no storage, and is never primary.

    Raises:
        ValueError: a setting that cannot work; names the values and the rule.

    Thread:
        All methods may be called from any thread. Callbacks are called on one
        thread of their own, one at a time; what they raise is logged. They may call
        everything but `join` and `leave_cluster`. The start, stop and exit callbacks
        go first: those of nodes and changes delay them by the one that runs just
        then, so keep them short, within the stop budget. What of these is still
        queued when the node ends is not called.

    Fork:
        A control that was not started before a fork works in each child, as a node
        of its own (give no node_name and no hb_port: the second child with the same
        ones is refused). One that was started stays the parent's: in the child it is
        never primary, and `start` raises RuntimeError.

    Not guaranteed:
        A process that is kept from running (stopped, suspended, starved) past
        its lease finds `is_primary` False when it goes on, but what it was in the
        middle of goes on too. Hand `term` to whatever must refuse a former primary.
    """

    def __init__(
        self,
        cluster_name: str,
        host_name: Optional[str] = None,
        node_name: Optional[str] = None,
        hb_port: int = 0,
        hb_interval: float = 1,
        hb_timeout: float = 5,
        check_interval: float = 2,
        start_primary_callback: Optional[Callable[[], object]] = None,
        stop_primary_callback: Optional[Callable[[], object]] = None,
        exit_callback: Optional[Callable[[], object]] = None,
        hb_missed_count: int = 5,
        own_version: Optional[str] = None,
        storage_backend: Optional[StorageBackend] = None,
        *,
        lease_duration: Optional[float] = None,
        freeze_limit: float = 300,
        stop_timeout: float = 60,
        same_host_proof: bool = True,
        secret: Union[str, bytes, None] = None,
        secret_required: bool = True,
        advertise_host: Optional[str] = None,
        metadata: Optional[Dict[str, Any]] = None,
        priority: Optional[int] = 0,
        health_port: Optional[int] = None,
        health_host: str = "127.0.0.1",
        failover_time: Optional[float] = None,
        version_policy: str = "newest",
        node_joined_callback: Optional[Callable[[ClusterNode], object]] = None,
        node_left_callback: Optional[Callable[[ClusterNode], object]] = None,
        changed_callback: Optional[Callable[[], object]] = None,
        enabled: bool = True,
    ) -> None:
        self.enabled = bool(enabled)
        self.cluster_name = _check_name("cluster_name", cluster_name)
        self._unnamed = not node_name
        self.node_name = _check_name("node_name", node_name or _default_node_name())
        self.host_name = _check_host("host_name", host_name or "0.0.0.0")
        if not _is_int(hb_port, 0, 65535):
            raise ValueError("hb_port must be 0 to 65535, not %r" % (hb_port,))
        self.hb_port = hb_port
        settings = hb_interval, hb_timeout, hb_missed_count, check_interval
        self.timings = _make_timings(
            *_settings_for(failover_time, settings),
            lease_duration, freeze_limit, stop_timeout,
        )  # fmt: skip
        """All durations of this node, as they were checked."""
        if storage_backend is None and not self.enabled:
            storage_backend = StorageBackend()  # never asked for anything
        if not isinstance(storage_backend, StorageBackend):
            text = "storage_backend must be a StorageBackend, such as %s, not %r"
            raise ValueError(
                text % ("SharedFsStorageBackend('/shared/folder')", storage_backend)
            )
        self.storage_backend: StorageBackend = storage_backend
        if own_version not in (None, ""):
            _check_name("own_version", own_version)
        if version_policy not in ("newest", "ignore"):
            text = "version_policy must be 'newest' or 'ignore', not %r"
            raise ValueError(text % (version_policy,))
        self.version_policy = version_policy
        self.start_primary_callback = start_primary_callback
        self.stop_primary_callback = stop_primary_callback
        self.exit_callback = exit_callback
        self.node_joined_callback = node_joined_callback
        self.node_left_callback = node_left_callback
        self.changed_callback = changed_callback
        for callback in self._callbacks().values():
            if callback is not None and not callable(callback):
                raise ValueError("a callback must be callable, not %r" % (callback,))
        self.own_version = own_version
        self.same_host_proof = bool(same_host_proof)
        self.advertise_host = _check_advertised(advertise_host)
        self._metadata = _metadata_text({} if metadata is None else metadata)
        if not _is_priority(priority):
            text = "priority must be an int of 32 bits, or None, not %.80r"
            raise ValueError(text % (priority,))
        self.priority = priority
        self.secret_required = bool(secret_required)
        self._secret = _check_secret(secret)
        if health_port is not None and not _is_int(health_port, 0, 65535):
            text = "health_port must be 0 to 65535 or None, not %r"
            raise ValueError(text % (health_port,))
        self.health_port = health_port
        self.health_host = _check_host("health_host", health_host)
        self._health: Optional[_Health] = None
        self._runtime: Optional[_Runtime] = None
        self._started = self._stopped = self._forked = False
        self._launching = self._stop_wanted = False
        self._guard = threading.Lock()
        self._pid = os.getpid()
        _controls.add(self)

    def _callbacks(self) -> Dict[str, Optional[Callable[..., object]]]:
        return {
            "start": self.start_primary_callback,
            "stop": self.stop_primary_callback,
            "exit": self.exit_callback,
            "node_joined": self.node_joined_callback,
            "node_left": self.node_left_callback,
            "changed": self.changed_callback,
        }

    def __repr__(self) -> str:
        return "<ClusterControl %r of %r>" % (self.node_name, self.cluster_name)

    def __enter__(self) -> "ClusterControl":
        ours = self._runtime is None
        try:
            join_cluster(self)
            self.start()
        except BaseException:  # an interrupt, say
            if ours:  # nobody else would stop it
                self.stop()
            raise
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()
        self.join()
        leave_cluster(self)

    async def __aenter__(self) -> "ClusterControl":
        import asyncio

        cancelled = threading.Event()

        def enter() -> None:
            self.__enter__()
            if cancelled.is_set():  # nobody else would stop it
                self.stop()

        joining = asyncio.get_running_loop().run_in_executor(None, enter)
        try:
            await asyncio.shield(joining)
        except asyncio.CancelledError:
            cancelled.set()
            self.stop()
            raise
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        import asyncio

        self.stop()
        await asyncio.get_running_loop().run_in_executor(None, self.__exit__)

    def __reduce__(self) -> str:
        raise TypeError(
            "a ClusterControl cannot be pickled or copied, since it owns threads and "
            "a socket: make one in each process"
        )

    # ---- running

    def start(self) -> None:
        """Makes this node a candidate: from now on it may become the primary.

        Joins in the background if `join_cluster` was not called, as soon as the
        storage answers. Returns at once. A second call does nothing.

        Should a living process have this node's name, an ERROR line says so, the node
        ends, and `is_alive` turns False; `join_cluster` (or `with`) raises instead.

        Raises:
            RuntimeError: the control was stopped; make a new one. Or its storage
                backend serves another control.
            ClusterError: the port or health_port cannot be bound, or a host is no
                address; nothing was started.
        """
        self._refuse_fork()
        if not self.enabled:
            log.info("%s: is disabled, and takes no part", self.node_name)
            return
        if self._stopped:
            raise RuntimeError("a stopped control cannot be started; make a new one")
        if self._launch(start=True):
            timings = self.timings
            log.info(
                "%s: starts in cluster %r; a node is lost after %.1f s, the stop "
                "callback should return within %.1f s",
                self.node_name, self.cluster_name,
                timings.detection_time, timings.stop_budget,
            )  # fmt: skip

    def _launch(self, start: bool = False) -> bool:
        """Sees to it that the node runs; True if this has started it."""
        with self._guard:
            if self._runtime is None:
                self._refuse_shared_backend()
                self._launching, self._stop_wanted = True, False
                try:
                    self._open_health()
                    self._runtime = _Runtime(self, self.host_name, self.hb_port)
                except BaseException:
                    self._close_health()
                    raise
                finally:
                    self._launching = False
                if self._stop_wanted:  # meanwhile, by a signal handler say
                    self.stop()
            started = start and not self._started and not self._runtime.ended
            if started:
                self._started = True
                self._runtime.post(StartAsked())
            return started

    def _refuse_shared_backend(self) -> None:
        for other in list(_controls):
            if other is not self and other.storage_backend is self.storage_backend:
                if other.is_alive():
                    raise RuntimeError(
                        "%r serves %r already; make one for each control"
                        % (self.storage_backend, other)
                    )

    def _give_up(self, runtime: _Runtime, even_if_started: bool) -> None:
        """Makes an end of a node that could not join, unless others still want it."""
        with self._guard:
            others = runtime.joining or self._started
            if self._runtime is not runtime or (others and not even_if_started):
                return
            self._runtime, self._started = None, False  # so that a retry starts anew
        runtime.abandon()
        if runtime.core.record_stays():
            _remove_record(self, runtime.core.record, _BRIEFLY)

    def _open_health(self) -> None:
        if self.health_port is not None:
            self._health = _Health(self, self.health_host, self.health_port)

    def _close_health(self) -> None:
        health, self._health = self._health, None
        if health is not None:
            health.close()

    def _own_runtime(self) -> Optional[_Runtime]:
        """None before the start, and in a child of the process that started it."""
        if self._pid != os.getpid():
            self._after_fork_in_child()
        return None if self._forked else self._runtime

    def _refuse_fork(self) -> None:
        self._own_runtime()
        if self._forked:
            raise RuntimeError(
                "this control was started before the fork and belongs to the parent "
                "process; start it (or make one) in the child"
            )

    def stop(self) -> None:
        """Asks the node to stop: stop callback if primary, release, leave, end.

        Returns at once; `join` waits. May be called in a callback, more than once,
        and on a control that does not run.
        """
        self._stop_wanted = self._launching
        runtime = self._own_runtime()
        if runtime is not None:
            self._stopped = True
            runtime.post(StopAsked())

    def join(self, timeout: Optional[float] = None) -> None:
        """Waits until the node has stopped: threads gone, port free.

        Storage that hangs delays it by a few seconds only. A stop callback that
        does not return does delay it.

        Args:
            timeout: seconds; None waits without bound. `is_alive` tells whether the
                node has stopped.

        Raises:
            RuntimeError: called in a callback, which would wait for itself.
        """
        self._refuse_callback("join()")
        runtime, health = self._own_runtime(), self._health
        if runtime is None:
            return
        deadline = FOREVER if timeout is None else _clock() + timeout
        if not runtime.wait_end(None if timeout is None else max(0.0, timeout)):
            return
        threads = [runtime.thread, runtime.callbacks.thread]
        for thread in threads + [health.thread] if health else threads:
            thread.join(None if timeout is None else max(0.0, deadline - _clock()))
        # These may hang in a call for ever, and are daemons
        if runtime.storage.thread is not None:
            runtime.storage.thread.join(max(0.0, min(1.0, deadline - _clock())))
        runtime.lines.thread.join(max(0.0, min(1.0, deadline - _clock())))

    def _refuse_callback(self, what: str) -> None:
        runtime = self._own_runtime()
        if runtime and threading.current_thread() is runtime.callbacks.thread:
            raise RuntimeError("%s in a callback would wait for itself" % what)

    def is_alive(self) -> bool:
        """True from start() (or join_cluster) until the node has stopped."""
        runtime = self._own_runtime()
        return runtime is not None and runtime.thread.is_alive()

    # ---- primacy

    @property
    def is_primary(self) -> bool:
        """True while this node is the primary.

        From just before the start callback is called until just before the stop
        callback is. Exact, by the caller's own clock: False from the instant at which
        the lease has run out, whether or not any thread has noticed, and never True
        again in that term. False in a forked child.
        """
        runtime = self._runtime
        return runtime is not None and runtime.term() != 0

    @property
    def term(self) -> int:
        """The fencing token: higher for each primary than for any before; 0 while
        this node is not the primary. Hand it to what you protect."""
        runtime = self._runtime
        return runtime.term() if runtime is not None else 0

    def wait_for_primary(self, timeout: Optional[float] = None) -> bool:
        """Waits until *this* node is the primary; its start callback follows at once.

        Returns:
            True if it is; False after `timeout` seconds, or if the node has ended;
            at once where it neither has joined nor was started, or is disabled.
        """
        runtime = self._own_runtime()
        if runtime is None:
            return False
        with runtime.changed:
            runtime.changed.wait_for(
                lambda: runtime.ended or runtime.term() != 0, timeout
            )
        return runtime.term() != 0

    async def wait_for_primary_async(self, timeout: Optional[float] = None) -> bool:
        """As `wait_for_primary`, for coroutines: needs no thread, can be cancelled."""
        import asyncio

        runtime = self._own_runtime()
        if runtime is None:
            return False
        changed = asyncio.Event()
        loop = asyncio.get_running_loop()
        watcher = functools.partial(loop.call_soon_threadsafe, changed.set)

        async def wait() -> None:
            while not runtime.ended and not runtime.term():
                await changed.wait()
                changed.clear()

        with runtime.changed:
            runtime.watchers.add(watcher)
        try:
            await asyncio.wait_for(wait(), timeout)
        except asyncio.TimeoutError:
            pass
        finally:
            with runtime.changed:
                runtime.watchers.discard(watcher)
        return runtime.term() != 0

    def assert_primary(self) -> int:
        """The term, for a function that must not begin elsewhere than on the primary.

        Raises:
            NotPrimaryError: this node is not the primary.
        """
        term = self.term
        if not term:
            text = "node %r is not the primary of cluster %r"
            raise NotPrimaryError(text % (self.node_name, self.cluster_name))
        return term

    def primary_only(
        self, function: Optional[Callable[..., Any]] = None, *, raises: bool = False
    ) -> Callable[..., Any]:
        """Decorates a function, or a coroutine function, to run on the primary alone.

            @control.primary_only
            def poll_mailbox(): ...

        Asked at each call, when it begins: what runs longer asks `is_primary`
        itself, or hands `term` along.

        Args:
            function: what to call on the primary.
            raises: elsewhere NotPrimaryError is raised; by default nothing is
                done, and None is returned.
        """
        if function is None:
            return functools.partial(self.primary_only, raises=raises)
        from inspect import iscoroutinefunction

        call = function

        def may_run() -> bool:
            return bool(self.assert_primary() if raises else self.is_primary)

        @functools.wraps(call)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            return call(*args, **kwargs) if may_run() else None

        @functools.wraps(call)
        async def async_wrapper(*args: Any, **kwargs: Any) -> Any:
            return await call(*args, **kwargs) if may_run() else None

        return async_wrapper if iscoroutinefunction(call) else wrapper

    def step_down(self, to: Optional[str] = None) -> bool:
        """Hands over: stops being the primary, and stays a member.

        Returns after the stop callback, however long that takes (in a callback: at
        once). This node is no candidate for the detection time then, unless it is
        alone.

        Args:
            to: name of the node that is to be the next primary. It claims at once,
                and the others leave it the lease for the detection time; if it has
                not claimed by then, or is lost, any of them may. None: anybody.

        Returns:
            False if this node is not the primary, and nothing was done.

        Raises:
            ValueError: `to` is no active member, is lost, or is no candidate; names
                it and why. This node is the primary as before.
        """
        runtime, term = self._own_runtime(), self.term
        if runtime is None or not term:
            return False
        successor = ""
        if to is not None:
            with runtime.changed:
                core, record = runtime.core, runtime.core.records.get(to)
                why = core.no_successor(to)
            if why is not None or record is None:
                raise ValueError("cannot step down for node %r: %s" % (to, why))
            successor = record.incarnation
        runtime.post(StepDownAsked(successor))
        if threading.current_thread() is not runtime.callbacks.thread:
            with runtime.changed:
                runtime.changed.wait_for(
                    lambda: runtime.ended or runtime.core.record.stopped_term >= term
                )
        return True

    # ---- pausing the cluster

    def pause(self, timeout: float = 10) -> None:
        """Keeps the whole cluster from electing anybody, until `resume`.

        For work on the storage, the network or the program. The primary goes on and
        stops only for its own safety, or if it is asked to. If it ends, nobody is
        the primary before `resume()`. Kept in the storage, so that it outlives every
        node; each node logs a WARNING when it sees it. A second call does nothing.

        A claim that had landed before is not undone. A wipe of the storage, or a
        roll-back to before the pause, lifts it.

        Args:
            timeout: seconds; never blocks much longer.

        Raises:
            StorageError: the storage did not answer in time, or there is no lease yet
                in which it could be kept. State: unknown, ask again.
            RuntimeError: this node is no member.
            ValueError: `timeout` is no finite number of seconds, 0 or more.

        Thread:
            Any, callbacks included.
        """
        self._set_paused(True, timeout)

    def resume(self, timeout: float = 10) -> None:
        """Lifts what `pause` has set, on any member. Raises as `pause` does."""
        self._set_paused(False, timeout)

    def _set_paused(self, paused: bool, timeout: float) -> None:
        self._refuse_fork()
        runtime, what = self._runtime, "pause" if paused else "resume"
        if runtime is None or not runtime.joined or runtime.ended:
            raise RuntimeError("%s() needs a node that is a member" % what)
        timeout = _seconds("timeout", timeout, zero=True)
        with runtime.changed:
            runtime.tickets += 1
            ticket = runtime.tickets
            runtime.answers[ticket] = None
        runtime.post(PauseAsked(paused, ticket))
        with runtime.changed:
            runtime.changed.wait_for(
                lambda: runtime.answers[ticket] is not None or runtime.ended, timeout
            )
            error = runtime.answers.pop(ticket)
            if error is None:
                late = "no answer within %g s" % timeout
                error = "this node has stopped" if runtime.ended else late
        if error:
            text = "%s() of cluster %r: %s; state: unknown, ask again"
            raise StorageError(text % (what, self.cluster_name, error))

    # ---- views

    @property
    def metadata(self) -> Dict[str, Any]:
        """What this node says of itself: a copy. Assign a new dict to change it.

        The others see it as `ClusterNode.metadata` once it is written to the storage:
        at once where a datagram tells them, else after check_interval.

        Raises:
            ValueError: on assignment, if it is no dict, is not JSON, or has more than
                1024 bytes; nothing was changed.
        """
        metadata: Dict[str, Any] = json.loads(self._metadata)
        return metadata

    @metadata.setter
    def metadata(self, metadata: Dict[str, Any]) -> None:
        text = _metadata_text(metadata)
        with self._guard:  # a runtime that is being made has read the old one
            self._metadata = text
            runtime = self._own_runtime()
            if runtime is not None:
                runtime.post(Described(text))

    @property
    def cluster(self) -> Cluster:
        """The members as this node knows them now: a copy."""
        runtime = self._own_runtime()
        if runtime is None:
            return Cluster({}, [], None, None)
        found: Cluster = runtime.look(lambda: _build_cluster(runtime))
        return found

    @property
    def health_address(self) -> Optional[Tuple[str, int]]:
        """Host and port of the health checks; None while there are none."""
        health = self._health
        return None if health is None else (health.host, health.port)

    @property
    def cluster_version(self) -> Optional[str]:
        """The highest version among the nodes that are alive in the cluster."""
        return self.cluster.version

    def owner_of(self, key: Union[str, bytes]) -> Optional[ClusterNode]:
        """The member that this key falls to: shares work out without a coordinator.

        Every active member gets an equal share of the keys. When one comes or goes,
        only the keys move that it gets or had; a name keeps its keys over a restart.

        Returns:
            An active member; None while this node is no member, or there is no
            primary that has admitted anybody.

        Not guaranteed:
            That two nodes agree at once: after a change they may differ until both
            have seen it, up to the detection time. For what must be done by one
            alone there is the primary.
        """
        from hashlib import sha256

        data = key.encode("utf-8", "surrogatepass") if isinstance(key, str) else key
        if not isinstance(data, bytes):
            raise TypeError("a key must be text or bytes, not %.80r" % (key,))
        cluster = self.cluster
        active = [node for node in cluster.nodes.values() if node.is_active]
        if cluster.own_node is None or not active:
            return None

        def weight(node: ClusterNode) -> bytes:
            return sha256(node.name.encode() + b"\0" + data).digest()

        return max(active, key=weight)

    def status(self) -> Dict[str, Any]:
        """What this node knows, for people and monitoring; can be made JSON.

        Returns:
            A dict with these keys: `cluster`, `node`, `address`, `version`;
            `alive` (does the heartbeat thread run), `role` (stopped: not started, or
            disabled; else joining, member, claimant, primary, stopping, finished),
            `is_primary`, `term` (0 when not primary), `lease_left` (seconds),
            `primary` (a name or None), `why` (plain words: why this node is not
            primary, or that it is), `since` (for how many seconds that has been so),
            `why_none` (why nobody is, as far as this node knows, or None), `paused`
            (may nobody claim, see `pause`), `storage` ("ok" or what is wrong),
            `packets` (a dict: how many so far, by kind; all of them dropped, but for
            the kind that `secret_required=False` lets in), and `members`: a list of
            dicts with `name`, `address`, `version`, `priority`, `metadata`,
            `primary`, `active`, `lost`, `silence` (seconds since it was heard, or
            None).
        """
        runtime = self._own_runtime()
        status: Dict[str, Any] = {
            "cluster": self.cluster_name, "node": self.node_name,
            "version": self.own_version, "alive": self.is_alive(),
            "is_primary": False, "term": 0,
        }  # fmt: skip
        if runtime is None:
            why = "it belongs to the parent process" if self._forked else "not started"
            if not self.enabled:
                why = "it is disabled"
            return dict(
                status, address=None, role="stopped", lease_left=0.0, primary=None,
                why=why, why_none=None, since=0.0, paused=False, storage="unknown",
                packets={}, members=[],
            )  # fmt: skip
        status.update(runtime.look(lambda: _core_status(runtime)))
        term = self.term  # after the role: what has just run out is told below
        status.update(is_primary=term != 0, term=term)
        if status["role"] == PRIMARY and not status["is_primary"]:
            why = "its lease has run out, and its heartbeat thread does not get to run"
            status.update(primary=None, lease_left=0.0, why=why, why_none=why)
        if not status["alive"]:
            status.update(primary=None, why_none="this node has ended")
        return status

    # ---- after a fork

    def _after_fork_in_child(self) -> None:
        """What was not started yet is a node of its own; what was is the parent's."""
        self._pid = os.getpid()
        self._guard = threading.Lock()
        if self._health is not None:
            self._health.close_in_child()
            self._health = None
        if self._runtime is not None:
            self._forked = True
            self._runtime.close_in_child()
        elif self._unnamed:
            self.node_name = _default_node_name()


def _core_status(runtime: _Runtime) -> Dict[str, Any]:
    """What the core knows of it; with the runtime's lock held."""
    now, core, cluster = _clock(), runtime.core, _build_cluster(runtime)
    lost = set(node.id for node in cluster.dead_nodes)
    primary, members = cluster.primary_node, cluster.nodes.values()
    return {
        "address": "%s:%d" % core.record.address,
        "role": core.role,
        "lease_left": max(0.0, core.primacy[1] - now) if core.primacy[0] else 0.0,
        "primary": primary.name if primary else None,
        "why": core.explain(),
        "why_none": core.explain_none(),
        "since": max(0.0, now - core.since),
        "paused": core.paused,
        "storage": core.storage_state(),
        "packets": dict(runtime.gate.counts, **{REPEATED: core.repeated}),
        "members": [_member_status(node, node.id in lost, now) for node in members],
    }


def _member_status(node: ClusterNode, lost: bool, now: float) -> Dict[str, Any]:
    heard = node.last_hb
    return {
        "name": node.name, "address": "%s:%d" % (node.ip, node.port),
        "version": node.version, "priority": node.priority,
        "metadata": node.metadata, "primary": node.is_primary,
        "active": node.is_active, "lost": lost,
        "silence": None if heard is None else max(0.0, now - heard),
    }  # fmt: skip


def join_cluster(ctrl: ClusterControl, timeout: float = 10) -> None:
    """Makes the node a member: its record is in the storage when this returns.

    It is no candidate before `ctrl.start()`. Does nothing if it is a member already.

    Args:
        ctrl: the control of the node.
        timeout: seconds; never blocks much longer.

    Raises:
        DuplicateNodeError: a living process has this node name.
        StorageError: the storage did not answer in time. Nothing is left behind,
            and a retry is safe. After start() the node goes on trying by itself.
        ClusterError: the port cannot be bound, or a host is no address; or the node
            was stopped while it joined.
        RuntimeError: the control was stopped, or has ended; or its storage backend
            serves another control.
        ValueError: `timeout` is no finite number of seconds, 0 or more.
    """
    ctrl._refuse_fork()
    if not ctrl.enabled:
        return
    deadline = _clock() + _seconds("timeout", timeout, zero=True)
    runtime = ctrl._runtime
    if ctrl._stopped or (runtime is not None and runtime.joined and runtime.ended):
        raise RuntimeError("a stopped control cannot join; make a new one")
    ctrl._launch()
    runtime = ctrl._runtime
    if runtime is None:  # somebody who joined at the same time has just given up
        why = "it does not answer"
        raise StorageError(_join_failure(ctrl, timeout, why, "try again"))
    with runtime.changed:
        runtime.joining += 1
        try:
            runtime.changed.wait_for(
                lambda: runtime.joined or runtime.ended,
                max(0.0, deadline - _clock()),
            )
        finally:
            runtime.joining -= 1
        joined, error = runtime.joined, runtime.join_error
        reason = runtime.core.storage_state()
        if reason == "ok":  # its reads may work, and its writes fail
            reason = runtime.storage.last_error or "it does not answer"
    if joined:
        return
    ctrl._give_up(runtime, even_if_started=error is not None)
    if error is not None:
        raise DuplicateNodeError(error)
    if ctrl._stopped:
        raise ClusterError("node %r was stopped while it joined" % ctrl.node_name)
    fix = "it goes on trying" if ctrl._runtime is runtime else "try again"
    raise StorageError(_join_failure(ctrl, timeout, reason, fix))


def _join_failure(ctrl: ClusterControl, timeout: float, why: str, fix: str) -> str:
    return "node %r could not join within %g s: %r: %s; check that storage, and %s" % (
        ctrl.node_name, timeout, ctrl.storage_backend, why, fix,
    )  # fmt: skip


def leave_cluster(ctrl: ClusterControl, timeout: float = 5) -> None:
    """Stops the node if it still runs, and sees to it that its record is removed.

    Logs and returns if the storage does not answer: the others remove the record.
    Does nothing for a node that is no member.

    Args:
        ctrl: the control of the node.
        timeout: seconds; never blocks much longer.

    Raises:
        RuntimeError: called in a callback, which would wait for itself.
        ValueError: `timeout` is no finite number of seconds; the node runs on.
    """
    ctrl._refuse_callback("leave_cluster()")
    runtime = ctrl._own_runtime()
    if runtime is None:
        return
    deadline = _clock() + _seconds("timeout", timeout, zero=True)
    ctrl.stop()
    ctrl.join(timeout)
    if runtime.thread.is_alive():
        log.warning("%s: has not stopped within %g s", ctrl.node_name, timeout)
    elif runtime.core.record_stays() and not runtime.removed:
        left = max(0.1, deadline - _clock())
        runtime.removed = _remove_record(ctrl, runtime.core.record, left)


def _remove_record(ctrl: ClusterControl, record: NodeRecord, timeout: float) -> bool:
    removed = []

    def remove() -> None:
        try:
            ctrl.storage_backend.remove_node(record.name, record.incarnation)
            removed.append(True)
        except Exception as error:
            log.debug("%s: %s", ctrl.node_name, error)
        _close_quietly(ctrl.storage_backend)

    thread = threading.Thread(target=remove, name="cluster-leave", daemon=True)
    try:
        thread.start()
        thread.join(timeout)
    except RuntimeError:  # 3.12 starts none while the interpreter ends
        pass
    if not removed:
        log.warning("%s: its record stays behind; the others remove it", ctrl.node_name)
    return bool(removed)


# --------------------------------------------------------------------------------
# Without a node: changes to a lease that others hold
# --------------------------------------------------------------------------------

_EDIT_RACES = 20  # swaps that may be lost, each to somebody else's success


def _edit_lease(
    backend: StorageBackend, change: Callable[[Snapshot, Lease], Lease]
) -> Lease:
    """Changes the lease in an opened storage; returns it as it then is.

    The holder finds a counter that it did not write, and takes it as the base of its
    next renewal; for all others it is a lease that has just been renewed. So it must
    equal no attempt, of the holder or of another editor, that may still land.

    Raises:
        RuntimeError: nobody has been primary yet; nothing was done.
        StorageError: outcome unknown; it is safe to try again.
    """
    for _ in range(_EDIT_RACES):
        snapshot = backend.read(fresh=True)
        lease = snapshot.lease
        if lease is None:
            raise RuntimeError("there is no lease, since nobody has been primary yet")
        new = change(snapshot, lease)
        if new == lease:
            return lease
        step = EDIT_STEP + int.from_bytes(os.urandom(4), "big") % EDIT_STEP
        new = new._replace(counter=lease.counter + step)
        if backend.swap_lease(lease, new):
            return new
    raise StorageError("the lease changes faster than it can be edited")


def _set_paused(backend: StorageBackend, paused: bool) -> Lease:
    """Pauses or resumes the cluster of an opened storage, see `ClusterControl.pause`.

    Raises:
        RuntimeError, StorageError: see `_edit_lease`.
    """
    return _edit_lease(backend, lambda snapshot, lease: lease._replace(paused=paused))


def _ask_step_down(backend: StorageBackend, to: Optional[str] = None) -> Lease:
    """Asks the primary to step down, for the member named `to` or for anybody.

    It does so at its next renewal, and releases the lease. If the member that is
    named cannot take over then, the primary goes on, and logs why.

    Raises:
        ValueError: `to` cannot be the next primary; names it and why.
        RuntimeError: nobody is primary; nothing was done.
        StorageError: see `_edit_lease`.
    """

    def change(snapshot: Snapshot, lease: Lease) -> Lease:
        if lease.released:
            raise RuntimeError("nobody is primary: the lease is released")
        successor = "" if to is None else _successor_in(snapshot, lease, to)
        return lease._replace(step_down=True, successor=successor)

    return _edit_lease(backend, change)


def _successor_in(snapshot: Snapshot, lease: Lease, name: str) -> str:
    records = [record for record in snapshot.nodes if record.name == name]
    record = max(records, key=lambda r: r.seniority) if records else None
    why = ""
    if record is None:
        why = "it is no member"
    elif record.incarnation == lease.holder:
        why = "it is the primary"
    elif record.incarnation not in (lease.roster or ()):
        why = "it is not active"
    elif record.priority is None:
        why = "its priority is None"
    elif lease.paused:
        why = "the cluster is " + PAUSED
    if record is None or why:
        raise ValueError("the primary cannot step down for node %r: %s" % (name, why))
    return record.incarnation


# --------------------------------------------------------------------------------
# Process-wide: fork and interpreter exit
# --------------------------------------------------------------------------------


def _after_fork_in_child() -> None:
    for control in list(_controls):
        control._after_fork_in_child()


def _stop_at_exit() -> None:
    """Stops what a program forgot to stop; not for long, and without any promise."""
    running = [control for control in list(_controls) if control.is_alive()]
    for control in running:
        control.stop()
    deadline = _clock() + _EXIT_PATIENCE
    for control in running:
        control.join(max(0.0, deadline - _clock()))


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
atexit.register(_stop_at_exit)


# --------------------------------------------------------------------------------
# Command line: run COMMAND on the primary alone
# --------------------------------------------------------------------------------
#
# The supervisor (this program: the node) starts a guardian (the same file), which
# starts COMMAND in a session of its own. The guardian knows the lease's deadline,
# and needs nobody to end COMMAND then: neither a supervisor that is stopped, nor one
# that is dead, which the end of their socket tells. All three are in the node's
# record before COMMAND begins, so nobody takes the supervisor's death for the end.

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
_GRACE = 0.75  # of the stop budget: the rest is for what SIGKILL takes
_START_PATIENCE = 30.0  # seconds for the guardian's start
_SETTLED = 1.0  # seconds; a COMMAND that ends sooner has failed to start
_POLL = 0.02  # seconds between two looks at processes that are to end
# A third of what running this file as a program takes, which compiles it anew
_GUARDIAN = """
import sys, importlib.util as util
spec = util.spec_from_file_location("cluster", sys.argv[1])
module = util.module_from_spec(spec)
spec.loader.exec_module(module)
module._guard(*sys.argv[2:])
"""


def _prctl(option: int, value: int) -> None:
    """On Linux only; elsewhere what it would do is not to be had."""
    try:
        import ctypes

        if sys.platform.startswith("linux"):
            ctypes.CDLL(None).prctl(option, value, 0, 0, 0)
    except (ImportError, OSError, AttributeError):
        pass


def _descendants(root: int) -> List[int]:
    """All processes below `root`, where /proc tells."""
    if not _sees_own_pids():
        return []
    children: Dict[int, List[int]] = {}
    for name in filter(str.isdigit, os.listdir("/proc")):
        fields = _read_bytes("/proc/%s/stat" % name).rpartition(b")")[2].split()
        if len(fields) > 1:
            children.setdefault(int(fields[1]), []).append(int(name))
    found = [root]
    for pid in found:  # grows on the way
        found += children.get(pid, [])
    return found[1:]


def _signal(send: Callable[[int, int], None], pid: int, number: int) -> bool:
    try:
        send(pid, number)
    except ProcessLookupError:
        return False
    except PermissionError:  # it lives, and has become another user's
        pass
    return True


def _signal_family(group: int, number: int) -> bool:
    """Signals a group (0: none) and all descendants; False once there is nobody."""
    found = group > 0 and _signal(os.killpg, group, number)
    for pid in _descendants(os.getpid()):
        try:
            outside = os.getpgid(pid) != group
        except OSError:
            continue
        found = (outside and _signal(os.kill, pid, number)) or found
    return found


def _reap() -> Dict[int, int]:
    """Takes leave of all children that have ended: exit codes by pid."""
    ended: Dict[int, int] = {}
    try:
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                return ended
            killed = os.WIFSIGNALED(status)
            ended[pid] = 128 + os.WTERMSIG(status) if killed else os.WEXITSTATUS(status)
    except ChildProcessError:
        return ended


class _Guardian:
    """The guardian process: one COMMAND, from its start to the end of all of it.

    It ends when COMMAND and all its descendants have ended, and not before. Only
    SIGKILL ends it sooner: then the kernel kills COMMAND too, and the supervisor the
    rest.
    """

    def __init__(self, link: socket.socket, grace: float, command: List[str]) -> None:
        self._link, self._grace, self._command = link, grace, command
        self._unread = b""
        self._deadline = FOREVER
        self._kill_at: Optional[float] = None  # once set, all is told to end
        self._code: Optional[int] = None
        self._gate, self._child = self._fork()

    def _fork(self) -> Tuple[socket.socket, int]:
        """COMMAND's process, which waits behind a gate until it may begin."""
        import signal

        _prctl(_PR_SET_CHILD_SUBREAPER, 1)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD):
            signal.signal(number, lambda *_: None)  # not SIG_IGN: COMMAND inherits it
        gate, theirs = socket.socketpair()
        guardian = os.getpid()
        child = os.fork()
        if not child:
            gate.close()
            self._become_command(theirs, guardian)
        theirs.close()
        gate.recv(1)
        return gate, child

    def _become_command(self, gate: socket.socket, guardian: int) -> None:
        import signal

        code = 126  # as shells have it: found, but cannot be run
        try:
            os.setsid()
            _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGPIPE):
                signal.signal(number, signal.SIG_DFL)
            gate.send(b"r")
            if os.getppid() == guardian and gate.recv(1):
                os.execvp(self._command[0], self._command)
            code = 0
        except OSError as error:
            text = "cluster: cannot run %s: %s\n" % (self._command[0], error.strerror)
            os.write(2, text.encode(errors="replace"))
            code = 127 if error.errno == errno.ENOENT else code
        finally:
            os._exit(code)

    def run(self) -> None:
        import signal

        waker, woken = socket.socketpair()
        for end in (waker, woken):
            end.setblocking(False)
        signal.set_wakeup_fd(waker.fileno(), warn_on_full_buffer=False)
        self._say("child", self._child, _process_stat(str(self._child)).start_time)
        with selectors.DefaultSelector() as selector:
            selector.register(self._link, selectors.EVENT_READ, self._listen)
            selector.register(woken, selectors.EVENT_READ, lambda: woken.recv(4096))
            while not self._is_over():
                for key, _ in selector.select(self._timeout()):
                    if key.data() is False:
                        selector.unregister(key.fileobj)
        self._say("ended", self._code)

    def _timeout(self) -> float:
        at = self._deadline if self._kill_at is None else self._kill_at
        # not longer: select's own clock stands still in suspend
        return max(_POLL, min(at - _clock(), 0.2))

    def _is_over(self) -> bool:
        import signal

        self._code = _reap().get(self._child, self._code)
        now, last = _clock(), self._deadline + self._grace
        if self._kill_at is None and (self._code is not None or now >= self._deadline):
            self._end(signal.SIGTERM, min(now + self._grace, last))
        if self._kill_at is None:
            return False
        kill = now >= min(self._kill_at, last)
        # Reaped before the look, so that no zombie of ours counts
        return not self._signal_all(signal.SIGKILL if kill else 0)

    def _signal_all(self, number: int) -> bool:
        # Once it is reaped, its number may become that of a strange group
        known = self._code is None or not _sees_own_pids()
        return _signal_family(self._child if known else 0, number)

    def _end(self, number: int, kill_at: float) -> None:
        if self._kill_at is None:
            self._signal_all(number)
        self._kill_at = min(self._kill_at or kill_at, kill_at)
        self._gate.close()

    def _listen(self) -> bool:
        """Takes what the supervisor says; False at the end of it."""
        import signal

        try:
            data = self._link.recv(4096)
        except OSError:
            data = b""
        if not data:
            self._end(signal.SIGTERM, _clock() + self._grace)
            return False
        *lines, self._unread = (self._unread + data).split(b"\n")
        for line in lines:
            self._obey(*json.loads(line))
        return True

    def _obey(self, word: str, *values: Any) -> None:
        if word == "end":
            self._end(*values)
            return
        self._deadline = values[0]
        if word == "begin" and self._kill_at is None and _clock() < self._deadline:
            try:
                self._gate.send(b"g")
            except OSError:  # somebody has killed it
                pass

    def _say(self, *message: object) -> None:
        try:
            self._link.sendall(json.dumps(message).encode() + b"\n")
        except OSError:  # the supervisor is dead
            pass


def _guard(descriptor: str, grace: str, *command: str) -> None:
    """The whole of a guardian process."""
    link = socket.socket(fileno=int(descriptor))
    link.set_inheritable(False)
    _Guardian(link, float(grace), list(command)).run()


class _Work:
    """COMMAND in one term, as the supervisor has it: by way of a guardian process.

    Thread:
        One of its own hears the guardian. All else from any thread.
    """

    def __init__(
        self,
        command: List[str],
        grace: float,
        environment: Dict[str, str],
        notify: Callable[[], object],
    ) -> None:
        import subprocess

        self._notify = notify
        self._changed = threading.Condition()
        self._link, theirs = socket.socketpair()
        # Nothing but the standard library: what is installed may be anything
        program = [sys.executable, "-I", "-S", "-c", _GUARDIAN]
        program.append(os.path.abspath(__file__))
        with theirs:
            self._guardian = subprocess.Popen(
                program + [str(theirs.fileno()), repr(grace)] + command,
                env=environment, pass_fds=[theirs.fileno()], start_new_session=True,
            )  # fmt: skip
        self._child: Optional[Tuple[int, int]] = None
        self.code: Optional[int] = None
        """COMMAND's exit code; 128 + N if signal N has ended it."""
        self.ended = False
        """True once COMMAND and all its descendants are dead."""
        threading.Thread(target=self._hear, name="cluster-work", daemon=True).start()

    def companions(self) -> Tuple[Tuple[int, int], ...]:
        """Guardian and COMMAND's process, which does not run COMMAND yet."""
        with self._changed:
            self._changed.wait_for(lambda: self._child or self.ended, _START_PATIENCE)
        guardian = self._guardian.pid
        start_time = _process_stat(str(guardian)).start_time
        return ((guardian, start_time), self._child) if self._child else ()

    def begin(self, deadline: float) -> None:
        self._say("begin", deadline)

    def renew(self, deadline: float) -> None:
        self._say("until", deadline)

    def end(self, number: int, grace: float) -> None:
        """Signals all of it, kills it after `grace` seconds; then it is dead."""
        self._say("end", number, _clock() + grace)
        if not self.wait(grace + 1.0):
            log.error("the guardian of COMMAND does not answer, and is killed")
            self._guardian.kill()
            self.wait(None)

    def wait(self, timeout: Optional[float]) -> bool:
        """True once it has ended, within `timeout` seconds."""
        with self._changed:
            return self._changed.wait_for(lambda: self.ended, timeout)

    def _say(self, *message: object) -> None:
        try:
            data = json.dumps(message).encode() + b"\n"
            self._link.send(data, socket.MSG_DONTWAIT)
        except OSError:  # it is dead; or stopped, which `end` finds out
            pass

    def _hear(self) -> None:
        try:
            with self._link.makefile("rb") as lines:
                for line in lines:
                    word, *values = json.loads(line)
                    if word == "child":
                        self._become(child=(values[0], values[1]))
                    else:
                        self._become(code=values[0], ended=True)
        except OSError:  # it died with something unread
            pass
        if not self.ended:
            log.error("the guardian of COMMAND was killed; COMMAND is ended")
            self._end_by_force()
        self._guardian.wait()
        self._link.close()

    def _become(
        self,
        child: Optional[Tuple[int, int]] = None,
        code: Optional[int] = None,
        ended: bool = False,
    ) -> None:
        with self._changed:
            self._child, self.code = child or self._child, code
            self.ended = ended
            self._changed.notify_all()
        self._notify()

    def _end_by_force(self) -> None:
        """Without a guardian all of its family is the supervisor's: a subreaper."""
        import signal

        self._guardian.kill()
        group = self._child[0] if self._child and not _sees_own_pids() else 0
        while _signal_family(group, signal.SIGKILL):
            _reap()
            time.sleep(_POLL)
        self._become(code=128 + signal.SIGKILL, ended=True)


def _node_of(options: Any, **keywords: Any) -> ClusterControl:
    """The node that the options describe; $CLUSTER_SECRET is its secret."""
    names = [name for _, _, group in _SETTINGS for name in group]
    given = {name: getattr(options, name) for name in names}
    settings = {k: v for k, v in given.items() if v is not None}
    settings.update(keywords, secret=os.environ.get("CLUSTER_SECRET") or None)
    return ClusterControl(options.cluster, **settings)


class _Supervisor:
    """`run`: one node of the cluster, whose work as primary is COMMAND."""

    def __init__(self, options: Any) -> None:
        self._control = _node_of(
            options,
            storage_backend=_storage(options.storage, create=options.create),
            start_primary_callback=self._start,
            stop_primary_callback=self._stop,
        )
        self._command, self._once = options.command, options.once
        self._timings = self._control.timings
        self._short = _GRACE * self._timings.stop_budget
        self._long = self._short if options.grace is None else options.grace
        self._work: Optional[_Work] = None  # of this term, or the last one
        self._settled: Optional[_Work] = None  # the same, if its end is to be told
        self._asked: List[int] = []  # signals that told this program to stop
        self._code = _EXIT_NO  # for an end that nobody asked for
        self._waker, self._woken = socket.socketpair()
        for end in (self._waker, self._woken):
            end.setblocking(False)

    # ---- callbacks

    def _start(self) -> None:
        control = self._control
        term = control.term
        environment = dict(
            os.environ, CLUSTER_TERM=str(term), CLUSTER_NAME=control.cluster_name,
            CLUSTER_NODE=control.node_name,
        )  # fmt: skip
        work = self._work = _Work(
            self._command, self._short, environment, self._wake
        )
        if not self._record(work.companions(), term):
            raise ClusterError("the lease was lost before COMMAND could begin")
        work.begin(self._deadline())
        settled_at = _clock() + _SETTLED
        while control.term == term and _clock() < settled_at and not self._once:
            if work.wait(_POLL):
                text = "COMMAND ended with exit code %s, within %g s of its start"
                raise ClusterError(text % (work.code, _SETTLED))
        self._settled = work
        self._wake()

    def _record(self, companions: Tuple[Tuple[int, int], ...], term: int) -> bool:
        """Waits until the storage has them, or the term is over."""
        runtime = self._control._runtime
        assert runtime is not None
        runtime.post(Described(companions=companions))

        def is_written() -> bool:
            written = runtime.core.written
            return written is not None and written.companions == companions

        while companions and runtime.term() == term:
            with runtime.changed:
                if runtime.changed.wait_for(is_written, self._timings.renewal_period):
                    return True
        return False

    def _stop(self) -> None:
        work, runtime = self._work, self._control._runtime
        if work is not None and runtime is not None:
            import signal

            number = self._asked[0] if self._asked else signal.SIGTERM
            grace = self._long if runtime.core._orderly else self._short
            work.end(number, grace)

    # ---- the main thread

    def _wake(self, *_: object) -> None:
        try:
            self._waker.send(b"\0")
        except OSError:
            pass

    def _deadline(self) -> float:
        """Until when COMMAND may run, by what is known now."""
        runtime = self._control._runtime
        if runtime is None:
            return -FOREVER
        with runtime.changed:
            core = runtime.core
            # in an orderly stop the lease is still renewed, for what COMMAND needs
            return core._deadline if core._keeps_renewing() else core.primacy[1]

    def run(self) -> int:
        import signal

        if os.name != "posix":
            raise ValueError("run needs a POSIX system, best Linux")
        _prctl(_PR_SET_CHILD_SUBREAPER, 1)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda number, _: self._asked.append(number))
        signal.set_wakeup_fd(self._waker.fileno(), warn_on_full_buffer=False)
        control = self._control
        control.start()
        with selectors.DefaultSelector() as selector:
            selector.register(self._woken, selectors.EVENT_READ)
            while control.is_alive():
                works = self._asked or (self._work and not self._work.ended)
                pause = self._timings.renewal_period / 4 if works else 1.0
                if selector.select(pause):
                    self._woken.recv(4096)
                self._look()
        leave_cluster(control)
        return self._code

    def _look(self) -> None:
        work, control = self._work, self._control
        if self._asked:
            self._code = 0
            control.stop()
        if work is not None and not work.ended:
            deadline = self._deadline()
            if deadline > -FOREVER:  # else `_stop` is about to end it, by SIGTERM first
                work.renew(deadline)
        elif work is not None and work is self._settled and control.term:
            self._settled = None
            log.info("COMMAND ended with exit code %s", work.code)
            if self._once:
                self._code = work.code or 0
                control.stop()
            else:
                control.step_down()


def _run(options: Any) -> int:
    if not options.command:
        raise ValueError("give COMMAND after --, as in: run ... -- python work.py")
    log.setLevel(logging.INFO)
    return _Supervisor(options).run()


# --------------------------------------------------------------------------------
# Command line
# --------------------------------------------------------------------------------

_EXIT_NO, _EXIT_USAGE, _EXIT_STORAGE = 1, 2, 3
_EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells have it
_HELP = """\
$CLUSTER_SECRET: the secret of the nodes, for run and doctor

exit codes: 0 ok, 1 no primary (or another negative answer), 2 wrong usage,
3 the storage cannot be reached or holds no such cluster
"""
_ENVIRONMENT = (("cluster", "CLUSTER_NAME"), ("storage", "CLUSTER_STORAGE"))

_Option = Tuple[Tuple[str, ...], Dict[str, Any]]


def _option(*flags: str, **settings: Any) -> _Option:
    """What argparse's add_argument takes, before argparse is imported."""
    return flags, settings


class _Subcommand(NamedTuple):
    """One row of the command line."""

    run: Callable[[Any], int]
    """Takes the options, prints, and returns the exit code. What it raises is told
    to the user: a StorageError ends with 3, another ClusterError with 1, a
    ValueError with 2."""
    help: str
    options: Tuple[_Option, ...] = ()


def _storage(url: str, create: bool = False) -> StorageBackend:
    """The storage that a folder's path or a URL names."""
    if re.match("[A-Za-z][A-Za-z0-9+.-]+:", url):  # not C:\, a folder on Windows
        return storage_from_url(url, create=create)
    return SharedFsStorageBackend(url, create=create)


def _within(timeout: float, call: Callable[[], Any]) -> Any:
    """The result of a call on a storage that may hang; StorageError if it does."""
    results: "queue.SimpleQueue[Tuple[Any, Optional[Exception]]]" = queue.SimpleQueue()

    def run() -> None:
        try:
            results.put((call(), None))
        except Exception as error:
            results.put((None, error))

    threading.Thread(target=run, name="cluster-storage", daemon=True).start()
    try:
        result, error = results.get(timeout=timeout)
    except queue.Empty:
        raise StorageError("it has not answered within %g s" % timeout) from None
    if error is not None:
        raise error
    return result


def _told(error: Exception) -> str:
    """An error of the library, for somebody at the command line."""
    return str(error).replace("create=True", "`run`, or `doctor --create`,")


class _Onlooker:
    """Watches a cluster through its storage alone, without joining it.

    Whether the primary lives is told by a renewal that was *seen*, and when, on the
    own clock: a timestamp in the storage decides nothing.
    """

    def __init__(self, options: Any) -> None:
        self._cluster, self._timeout = options.cluster, options.timeout
        self._url, self._storage = options.storage, _storage(options.storage)
        self._opened = False
        self._snapshot: Optional[Snapshot] = None
        self._since = -FOREVER
        self._renewed_at: Optional[float] = None

    def look(self) -> Dict[str, Any]:
        """Reads the storage once, and says what is known by now."""
        before = self._snapshot.lease if self._snapshot else None
        self._snapshot = snapshot = _within(self._timeout, self._read)
        lease, now = snapshot.lease, _clock()
        if self._since == -FOREVER:
            self._since = now
        elif lease != before:
            self._renewed_at = now
        return self._picture(snapshot, now)

    def _read(self) -> Snapshot:
        if not self._opened:
            self._storage.open(self._cluster)
            self._opened = True
        return self._storage.read(True)

    def settle(self) -> Dict[str, Any]:
        """Looks until there is a primary, or waiting for a renewal is no use."""
        picture = self.look()
        while not self._is_settled(picture):
            time.sleep(0.1)
            picture = self.look()
        return picture

    def _is_settled(self, picture: Dict[str, Any]) -> bool:
        lease = self._snapshot.lease if self._snapshot else None
        if picture["primary"] or lease is None or lease.released or not lease.started:
            return True
        # renewed each L/5 at the latest: two are missing by then
        return _clock() > self._since + 0.4 * lease.duration + 0.3

    def _picture(self, snapshot: Snapshot, now: float) -> Dict[str, Any]:
        lease = snapshot.lease
        holder = _holder(snapshot)
        named = repr(holder.name) if holder else "a node whose record is gone"
        age = None if self._renewed_at is None else now - self._renewed_at
        why_none = _why_none(lease, named, age, now - self._since)
        active = {lease.holder} | (lease.roster or frozenset()) if lease else ()
        primary = lease.holder if lease and why_none is None else None
        return {
            "cluster": self._cluster, "storage": "ok",
            "primary": (holder.name if holder else named) if primary else None,
            "term": lease.term if lease else 0, "why_none": why_none,
            "paused": bool(lease and lease.paused),
            "lease_age": age, "lease_duration": lease.duration if lease else None,
            "lease_left": (
                lease.duration - age
                if lease and age is not None and primary else None
            ),
            "members": [
                _observed_member(record, primary, active)
                for record in sorted(snapshot.nodes, key=lambda r: r.seniority)
            ],
        }  # fmt: skip

    def failed(self, error: StorageError) -> Dict[str, Any]:
        """The same for a storage that did not answer."""
        return {
            "cluster": self._cluster, "storage": _told(error), "primary": None,
            "term": 0, "why_none": "the storage does not answer", "paused": False,
            "lease_age": None, "lease_duration": None, "lease_left": None,
            "members": [],
        }  # fmt: skip


def _holder(snapshot: Snapshot) -> Optional[NodeRecord]:
    holder = snapshot.lease.holder if snapshot.lease else ""
    records = [r for r in snapshot.nodes if r.incarnation == holder]
    return records[0] if records else None


def _why_none(
    lease: Optional[Lease], holder: str, age: Optional[float], watched: float
) -> Optional[str]:
    """Why no primary can be seen in the storage; None if one can."""
    if lease is None:
        return "no lease has been claimed yet"
    if lease.released:
        return "%s was the last one, and has stopped" % holder
    if not lease.started:
        return "%s has claimed the lease, and waits for its predecessor" % holder
    if age is None or age > lease.duration:
        text = "%s holds the lease, but has not renewed it for the %.1f s of watching"
        return text % (holder, watched if age is None else age)
    return None


def _observed_member(
    record: NodeRecord, primary: Optional[str], active: Iterable[str]
) -> Dict[str, Any]:
    from datetime import datetime, timezone

    joined = datetime.fromtimestamp(int(record.joined_at), timezone.utc)
    return {
        "name": record.name, "address": "%s:%d" % record.address,
        "version": record.version, "primary": record.incarnation == primary,
        "active": record.incarnation in active, "joined": joined.isoformat(),
    }  # fmt: skip


def _seconds_text(value: Optional[float]) -> str:
    return "unknown" if value is None else "%.1f s" % value


def _table(picture: Dict[str, Any]) -> List[Tuple[str, str]]:
    """The lines for a terminal, each with its colour ("" for none)."""
    head = "cluster %(cluster)s, storage: %(storage)s" % picture
    if "time" in picture:
        head = time.strftime("%H:%M:%S  ", time.localtime(picture["time"])) + head
    lines = [(head, "" if picture["storage"] == "ok" else "31")]
    if picture["paused"]:
        text = "PAUSED: nobody becomes primary until resume"
        lines.append((text, "33"))
    if picture["primary"] is None:
        lines.append(("no primary: %s" % picture["why_none"], "31"))
    heads = "NODE,ADDRESS,VERSION,PRIMARY,ACTIVE,JOINED,LEASE AGE,LEFT"
    rows = [tuple(heads.split(","))]
    for member in picture["members"]:
        mine = member["primary"]
        rows.append((
            member["name"], member["address"], member["version"] or "-",
            "term %d" % picture["term"] if mine else "-",
            "yes" if member["active"] else "no", member["joined"],
            _seconds_text(picture["lease_age"]) if mine else "-",
            _seconds_text(picture["lease_left"]) if mine else "-",
        ))  # fmt: skip
    widths = [max(map(len, column)) for column in zip(*rows)]
    for number, row in enumerate(rows):
        text = "  ".join(cell.ljust(width) for cell, width in zip(row, widths))
        bold = "1" if number == 0 else ""
        lines.append((text.rstrip(), "32" if row[3][:4] == "term" else bold))
    return lines


def _in_colour() -> bool:
    plain = "NO_COLOR" in os.environ or os.environ.get("TERM") == "dumb"
    return sys.stdout.isatty() and not plain


def _show(picture: Dict[str, Any], as_json: bool, clear: bool = False) -> None:
    if as_json:
        print(json.dumps(picture), flush=True)
        return
    colour = _in_colour()
    lines = _table(picture)
    painted = ["\x1b[%sm%s\x1b[0m" % (c, t) if c and colour else t for t, c in lines]
    print("\x1b[H\x1b[J" * (clear and colour) + "\n".join(painted), flush=True)


def _status(options: Any) -> int:
    picture = _Onlooker(options).settle()
    _show(picture, options.json)
    return 0 if picture["primary"] else _EXIT_NO


def _watch(options: Any) -> int:
    observer = _Onlooker(options)
    look = observer.settle
    try:
        while True:
            try:
                picture = look()
                look = observer.look
            except StorageError as error:
                picture = observer.failed(error)
            _show(dict(picture, time=time.time()), options.json, clear=True)
            time.sleep(options.interval)
    except KeyboardInterrupt:
        return 0


# ---- asking the primary, and acting for a dead one


def _opened(options: Any, create: bool = False) -> StorageBackend:
    storage = _storage(options.storage, create)
    _within(options.timeout, lambda: storage.open(options.cluster))
    return storage


def _edit(options: Any, edit: Callable[[StorageBackend], Lease]) -> Lease:
    """Edits the lease of a cluster that somebody else runs."""
    storage = _opened(options)
    try:
        lease: Lease = _within(options.timeout, lambda: edit(storage))
    except RuntimeError as error:
        raise ClusterError(str(error)) from None
    return lease


def _step_down(options: Any) -> int:
    asked = _edit(options, lambda storage: _ask_step_down(storage, options.to))
    storage, until = _opened(options), _clock() + options.timeout + asked.stop_timeout
    while _clock() < until:
        lease = _within(options.timeout, lambda: storage.read(True)).lease
        if lease is None or lease.term != asked.term or lease.released:
            text = "the primary of term %d has stepped down"
            if asked.paused:
                text += "; nobody follows until the cluster is resumed"
            print(text % asked.term)
            return 0
        time.sleep(0.1)
    raise ClusterError(
        "the primary has not stepped down: it is stopping, or it does not answer, or "
        "its log says why"
    )


def _pause(options: Any) -> int:
    _edit(options, lambda storage: _set_paused(storage, True))
    print("paused: nobody becomes primary until it is resumed")
    return 0


def _resume(options: Any) -> int:
    _edit(options, lambda storage: _set_paused(storage, False))
    print("resumed")
    return 0


def _evict(options: Any) -> int:
    storage = _opened(options)
    snapshot = _within(options.timeout, lambda: storage.read(True))
    records = [record for record in snapshot.nodes if record.name == options.node]
    if not records:
        names = ", ".join(sorted(repr(record.name) for record in snapshot.nodes))
        text = "no node is called %r; there are: %s"
        raise ClusterError(text % (options.node, names))
    lease, holds = snapshot.lease, {record.incarnation for record in records}
    held = lease if lease and not lease.released and lease.holder in holds else None
    if not options.yes and not _confirmed(options.node, held is not None):
        return _EXIT_NO
    if held is not None:
        _release_for(storage, held, options.timeout)
    for record in records:
        _within(
            options.timeout,
            lambda: storage.remove_node(record.name, record.incarnation),
        )
    print("%r is evicted" % options.node)
    return 0


def _confirmed(node: str, holds: bool) -> bool:
    risk = "the record of %r is removed; if it is alive, it writes it back" % node
    if holds:
        risk = (
            "%r holds the lease, which is declared released: if it is alive and does "
            "not see that (frozen, or cut off from the storage), there are two "
            "primaries. Be sure that it is dead" % node
        )
    print(risk, file=sys.stderr)
    if not sys.stdin.isatty():
        raise ValueError("give --yes to confirm that without a terminal")
    return input("Type the node's name to go on: ") == node


def _release_for(storage: StorageBackend, held: Lease, timeout: float) -> None:
    """Watches a lease for as long as it lasts; released only if it is not renewed."""
    print("watching its lease for %.1f s" % held.duration, file=sys.stderr)
    until = _clock() + held.duration
    while _clock() < until:
        time.sleep(min(0.2, max(0.0, until - _clock())))
        if _within(timeout, lambda: storage.read(True)).lease != held:
            text = "the lease is in use: its holder is alive; try step-down"
            raise ClusterError(text)

    def release(snapshot: Snapshot, lease: Lease) -> Lease:
        if lease != held:
            raise ClusterError("the lease was renewed just now: its holder is alive")
        return lease._replace(released=True)

    _within(timeout, lambda: _edit_lease(storage, release))


# ---- doctor

_RACING = 4  # racers, each with a connection of its own
_TRIES = 25  # of each racer, and of each timed call
_GOOD, _ODD, _BAD = "ok", "warning", "FAILED"
_COLOURS = {_GOOD: "32", _ODD: "33", _BAD: "31"}


class _Finding(NamedTuple):
    """What one check of the doctor found."""

    verdict: str
    text: str


class _Doctor:
    """Checks whether a storage and a network are fit for a cluster.

    Writes nothing but join numbers, of which some may be left out, and, for the time
    of the last check, the record of a member that never becomes primary.
    """

    def __init__(self, options: Any) -> None:
        self._options = options
        self._control = _node_of(
            options, storage_backend=_storage(options.storage),
            node_name="doctor-" + _random_id(), priority=None,
        )  # fmt: skip
        self._timings = self._control.timings
        self._began = _clock(), time.time()
        self._snapshot: Optional[Snapshot] = None

    def _call(self, call: Callable[[], Any]) -> Any:
        return _within(self._options.timeout, call)

    def _opened(self) -> StorageBackend:
        return _opened(self._options, self._options.create)

    def storage(self) -> _Finding:
        """Can it be opened, and is it the kind that is meant?"""
        storage = self._opened()
        snapshot: Snapshot = self._call(lambda: storage.read(True))
        self._snapshot = snapshot
        text = "holds the cluster, with %d records" % len(snapshot.nodes)
        if isinstance(storage, SharedFsStorageBackend):
            kind = _file_system(storage.path) or "unknown"
            text += "; its file system: " + kind
            if "fuse" in kind and kind != "fuse.sshfs":
                text += ". Object stores mounted as folders rename by copying: unfit"
                return _Finding(_ODD, text)
        return _Finding(_GOOD, text)

    def swaps(self) -> _Finding:
        """Of racing compare-and-swaps, does exactly one win?"""
        storages = [self._opened() for _ in range(_RACING)]
        numbers: List[int] = []
        racers = [
            threading.Thread(target=self._race, args=(storage, numbers), daemon=True)
            for storage in storages
        ]
        for racer in racers:
            racer.start()
        for racer in racers:
            racer.join(self._options.timeout)
        for storage in storages:
            self._call(storage.close)
        won, distinct = len(numbers), len(set(numbers))
        if won != distinct:
            text = "%d of %d swaps were won twice: not atomic, never use this storage"
            return _Finding(_BAD, text % (won - distinct, won))
        if won < _RACING * _TRIES:
            text = "%d of %d racing swaps failed or hang"
            return _Finding(_BAD, text % (_RACING * _TRIES - won, _RACING * _TRIES))
        return _Finding(_GOOD, "each of %d racing swaps was won once" % won)

    def _race(self, storage: StorageBackend, numbers: List[int]) -> None:
        try:
            for _ in range(_TRIES):
                numbers.append(storage.next_join_number())
        except StorageError as error:
            log.warning("%s", error)

    def latency(self) -> _Finding:
        """Is it fast enough for the timings?"""
        storage, timings = self._opened(), self._timings
        reads = self._timed(lambda: storage.read(True))
        swaps = self._timed(storage.next_join_number)
        limit = timings.renewal_deadline / 3
        text = "a read takes %.1f ms (worst %.1f), a swap %.1f ms (worst %.1f)" % (
            _median(reads) * 1e3, max(reads) * 1e3,
            _median(swaps) * 1e3, max(swaps) * 1e3,
        )  # fmt: skip
        if max(_median(reads), _median(swaps)) > limit:
            text += "; more than %.0f ms: longer timings are needed"
            return _Finding(_BAD, text % (limit * 1e3))
        if max(reads + swaps) > limit:
            text += "; single ones above %.0f ms delay a failover"
            return _Finding(_ODD, text % (limit * 1e3))
        return _Finding(_GOOD, text)

    def _timed(self, call: Callable[[], Any]) -> List[float]:
        times = []
        for _ in range(_TRIES):
            began = _clock()
            self._call(call)
            times.append(_clock() - began)
        return times

    def clock(self) -> _Finding:
        """Does this host's monotonic clock run as fast as its wall clock?"""
        self._sleep_until(self._began[0] + 1.0)
        rate = (_clock() - self._began[0]) / max(1e-9, time.time() - self._began[1])
        text = "the monotonic clock runs at %.4f of the wall clock's rate" % rate
        if abs(rate - 1) > CLOCK_MARGIN / 2:
            text += "; up to %g may differ. Was the wall clock set just now?"
            return _Finding(_ODD, text % CLOCK_MARGIN)
        return _Finding(_GOOD, text)

    def _sleep_until(self, at: float) -> None:
        while _clock() < at:
            time.sleep(max(0.0, min(0.2, at - _clock())))

    def timings(self) -> _Finding:
        """What the timings mean, and whether the primary has the same."""
        timings = self._timings
        text = (
            "a node is lost after %.1f s; next primary about %.1f s after a host's "
            "death, at once after a process's on a shared host; a stop callback has "
            "%.1f s"
        ) % (
            timings.detection_time,
            max(timings.detection_time, timings.lease_duration),
            timings.stop_budget,
        )
        lease = self._snapshot.lease if self._snapshot else None
        if lease and abs(lease.duration - timings.lease_duration) > 1e-6:
            text += ". The primary's lease is of %g s, these options give %g s"
            text %= (lease.duration, timings.lease_duration)
            return _Finding(_ODD, text)
        return _Finding(_GOOD, text)

    def members(self) -> _Finding:
        """Does every member hear this host, and this host every member?"""
        control, options = self._control, self._options
        try:
            join_cluster(control, options.timeout)
            control.start()
            return self._heard(control)
        finally:
            leave_cluster(control, options.timeout)

    def _heard(self, control: ClusterControl) -> _Finding:
        deadline = _clock() + self._timings.detection_time
        while True:
            links = _links(control)
            if _clock() >= deadline or all(how == _BOTH for how in links.values()):
                break
            self._sleep_until(_clock() + 0.05)
        if not links:
            return _Finding(_GOOD, "there is no other member to be heard")
        bad = ["%s %s" % item for item in sorted(links.items()) if item[1] != _BOTH]
        if bad:
            packets = control.status()["packets"].items()
            dropped = [
                "%s: %d" % (k, count) for k, count in packets if count and k != TAKEN
            ]
            hint = "; packets were dropped (%s)" % ", ".join(dropped) if dropped else ""
            if "secret" in hint:
                hint += ": is $CLUSTER_SECRET the members'?"
            return _Finding(_BAD, "; ".join(bad) + hint)
        return _Finding(_GOOD, "heard both ways: " + ", ".join(sorted(links)))

    checks: Tuple[Tuple[str, Callable[["_Doctor"], _Finding]], ...] = (
        ("storage", storage), ("swaps", swaps), ("latency", latency),
        ("clock", clock), ("timings", timings), ("members", members),
    )  # fmt: skip


_BOTH = "is heard both ways"


def _links(control: ClusterControl) -> Dict[str, str]:
    """How each other member is heard, by name."""
    runtime, links = control._runtime, {}
    if runtime is not None:
        with runtime.changed:
            for record in runtime.core.records.values():
                peer = runtime.core.peers.get(record.incarnation)
                one_way = peer is not None and peer.newest_at > -FOREVER
                address = " (at %s:%d)" % record.address
                links[record.name] = (
                    _BOTH if peer is not None and peer.ever
                    else "is heard, but does not hear this host: firewall, or secret?"
                    if one_way else "is not heard: lost, or unreachable" + address
                )  # fmt: skip
    return links


def _median(values: List[float]) -> float:
    return sorted(values)[len(values) // 2]


def _run_doctor(options: Any) -> int:
    import signal

    def terminated(*_: object) -> None:
        raise KeyboardInterrupt  # so that the record of the last check is removed

    before = signal.signal(signal.SIGTERM, terminated)
    try:
        return _examine_all(options)
    finally:
        signal.signal(signal.SIGTERM, before)


def _examine_all(options: Any) -> int:
    doctor, colour = _Doctor(options), _in_colour() and not options.json
    findings = {}
    for subject, check in _Doctor.checks:
        if not options.json:
            print("%-8s " % subject, end="", flush=True)
        try:
            finding = check(doctor)
        except ClusterError as error:
            finding = _Finding(_BAD, _told(error))
        findings[subject] = finding
        verdict = finding.verdict
        if colour:
            verdict = "\x1b[%sm%s\x1b[0m" % (_COLOURS[verdict], verdict)
        if not options.json:
            print("%s: %s" % (verdict, finding.text), flush=True)
        if subject == "storage" and finding.verdict == _BAD:
            break  # nothing else can be asked
    if options.json:
        print(json.dumps({key: value._asdict() for key, value in findings.items()}))
    if findings["storage"].verdict == _BAD:
        return _EXIT_STORAGE
    return _EXIT_NO if any(f.verdict == _BAD for f in findings.values()) else 0


# ---- the table of subcommands


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < 1e9:
        raise ValueError(text)
    return value


_positive.__name__ = "positive number of seconds"  # argparse puts it into its errors

_CLUSTER_OPTIONS = (
    _option("--cluster", metavar="NAME", help="default: $CLUSTER_NAME"),
    _option(
        "--storage", metavar="URL",
        help="a folder, or file://, sqlite://, postgresql://, mysql://, redis:// and "
        "the like; default: $CLUSTER_STORAGE (which hides a password in it)",
    ),
    _option(
        "--timeout", type=_positive, default=10, metavar="SECONDS",
        help="how long the storage may take for an answer (default: 10)",
    ),
)  # fmt: skip
_JSON = _option("--json", action="store_true", help="one JSON object in a line")

# Those of ClusterControl, by the same names; it checks them
_SETTINGS: Tuple[Tuple[Callable[[str], Any], str, Tuple[str, ...]], ...] = (
    (str, "TEXT", ("node_name", "host_name", "advertise_host", "own_version")),
    (int, "N", ("hb_port", "hb_missed_count", "priority", "health_port")),
    (float, "SECONDS", ("failover_time", "hb_interval", "hb_timeout")),
    (float, "SECONDS", ("check_interval", "lease_duration")),
    (float, "SECONDS", ("freeze_limit", "stop_timeout")),
)
_NODE_OPTIONS = tuple(
    _option(
        "--" + name.replace("_", "-"), type=kind, metavar=metavar,
        help="%s of ClusterControl" % name,
    )
    for kind, metavar, names in _SETTINGS
    for name in names
)  # fmt: skip

_SUBCOMMANDS: Dict[str, _Subcommand] = {
    "status": _Subcommand(
        _status,
        "members and primary, as seen in the storage, without joining",
        (_JSON,),
    ),
    "watch": _Subcommand(
        _watch,
        "the same again and again, until interrupted",
        (
            _JSON,
            _option(
                "--interval", type=_positive, default=1, metavar="SECONDS",
                help="between two looks (default: 1)",
            ),
        ),
    ),
    "run": _Subcommand(
        _run,
        "run COMMAND on the primary alone: run [options] -- COMMAND [ARGUMENT...]",
        (
            _option(
                "--once", action="store_true",
                help="leave and exit with COMMAND's exit code when it ends, instead of "
                "stepping down and waiting for the next turn",
            ),
            _option(
                "--no-create", dest="create", action="store_false",
                help="refuse a storage that holds no such cluster: for mounted shares",
            ),
            _option(
                "--grace", type=_positive, metavar="SECONDS",
                help="between SIGTERM and SIGKILL in an orderly stop (default: what "
                "the stop budget has); in all other cases the stop budget rules",
            ),
        ) + _NODE_OPTIONS,
    ),
    "step-down": _Subcommand(
        _step_down,
        "asks the primary to hand over, and waits until it has",
        (_option("--to", metavar="NODE", help="the next primary; default: anybody"),),
    ),
    "pause": _Subcommand(
        _pause, "keeps everybody from becoming primary, until resumed"
    ),
    "resume": _Subcommand(_resume, "lets the members elect a primary again"),
    "evict": _Subcommand(
        _evict,
        "removes the record of a dead node, and releases the lease if it holds it",
        (
            _option("node", metavar="NODE", help="its name"),
            _option("--yes", action="store_true", help="do not ask"),
        ),
    ),
    "doctor": _Subcommand(
        _run_doctor,
        "is the storage fit, and does every member hear this host; 1 if not",
        (
            _JSON,
            _option("--create", action="store_true", help="if it is not there yet"),
        ) + _NODE_OPTIONS,
    ),
}  # fmt: skip


def _parser() -> Any:
    import argparse

    parser = argparse.ArgumentParser(
        prog="cluster", description="Looks at a cluster and acts on it.", epilog=_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(metavar="COMMAND", dest="name")
    for name, command in _SUBCOMMANDS.items():
        sub = commands.add_parser(
            name, help=command.help, description=command.help, epilog=_HELP,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )  # fmt: skip
        for flags, settings in _CLUSTER_OPTIONS + command.options:
            sub.add_argument(*flags, **settings)
    return parser


def _options(arguments: Optional[List[str]]) -> Any:
    parser = _parser()
    arguments = sys.argv[1:] if arguments is None else arguments
    split = arguments.index("--") if "--" in arguments else len(arguments)
    options, unknown = parser.parse_known_args(arguments[:split])
    if unknown:
        text = "unknown: " + " ".join(unknown)
        if options.name == "run" and unknown[0][:1] != "-":
            text += "; put -- before COMMAND, as in: run ... -- python work.py"
        parser.error(text)
    options.command = arguments[split + 1 :]
    if options.name is None:
        parser.error("give one of the commands: " + ", ".join(_SUBCOMMANDS))
    for key, variable in _ENVIRONMENT:
        value = getattr(options, key) or os.environ.get(variable)
        if not value:
            parser.error("give --%s, or set %s" % (key, variable))
        setattr(options, key, value)
    return options


class _Formatter(logging.Formatter):
    """Without tracebacks of what is explained by its text."""

    def formatException(self, ei: Any) -> str:
        known = isinstance(ei[1], ClusterError)
        return str(ei[1]) if known else super().formatException(ei)


def main(arguments: Optional[List[str]] = None) -> int:
    """The command line: `python -m cluster --help` tells what it can do.

    Returns:
        The exit code.
    """
    handler = logging.StreamHandler()
    handler.setFormatter(_Formatter("%(asctime)s %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    options = _options(arguments)
    try:
        return _SUBCOMMANDS[options.name].run(options)
    except KeyboardInterrupt:
        return _EXIT_INTERRUPTED
    except BrokenPipeError:  # `| head`: whoever read has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return _EXIT_NO
    except StorageError as error:
        text = "storage: %s; check --storage and --cluster" % _told(error)
        code = _EXIT_STORAGE
    except ClusterError as error:
        code, text = _EXIT_NO, str(error)
    except ValueError as error:
        code, text = _EXIT_USAGE, str(error)
    print("cluster: " + text, file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
