"""Drives many real decision cores through virtual time, from a seed.

    python tests/simulator.py --seeds 2000 --first 0 [--jobs 2] [--seconds 240]
        [--family wipes]
    python tests/simulator.py --replay SEED [--family ...] [--verbose]
    python tests/simulator.py --loss 0.5 [--hours 4]

Only the edges are replaced: clock, network, storage, the callback thread and the
kernel that knows who is dead. The core under test is the shipped one. A run has a
phase of faults, in which the promises of at most one primary are asked at every
step; then everything is healed, and there must be exactly one primary, full views,
and no more transitions within a bound; then every node is told to stop, and must.

The checkers (`Judge` and what it owns) know nothing of the protocol: they look at
callbacks, at what a reader of `is_primary` would be told, and at the clocks.

Map: chance and clocks - the plan of a run - the store and the ways to it - the
network - processes - the checkers - the world - random faults - command line.

Units: seconds of true time, unless a name says `local`. Nothing here iterates a set
or depends on the hash seed, so a seed is one history on every Python version.
"""

from __future__ import annotations

import argparse
import collections
import functools
import gc
import heapq
import itertools
import multiprocessing
import os
import random
import sys
import time
import traceback
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Set, Tuple

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import cluster  # noqa: E402
from cluster import (  # noqa: E402
    Call,
    CallbackEnded,
    Described,
    Examine,
    Finished,
    Heard,
    Join,
    Joined,
    JoinFailed,
    Lease,
    NodeRecord,
    Open,
    Pause,
    PauseAsked,
    PauseDone,
    ProvenDead,
    Read,
    Remove,
    Repair,
    Returned,
    RunCallback,
    Say,
    Send,
    Snapshot,
    StartAsked,
    StepDownAsked,
    StopAsked,
    StorageError,
    Swap,
    Timings,
    Write,
)

Address = Tuple[str, int]
EPOCH = 1_000_000  # wall clock at the beginning of every run, in seconds
DRIFT = 0.0098  # two rates, one fast and one slow by this, differ by less than 2 %
PROMPT = 0.1  # seconds within which a stop callback begins once the lease is over
MAX_STEPS = 2000  # of a core within a second, if nothing happens meanwhile
TICK = 1e-9  # below it, clocks are equal: rounding, not time


# --------------------------------------------------------------------------------
# Chance and clocks
# --------------------------------------------------------------------------------


class Dice:
    """Chance from a seed.

    Built on `Random.random` alone: of all its methods only that one is promised to
    give the same numbers on every version of Python.
    """

    def __init__(self, seed: int) -> None:
        self.roll = random.Random(seed).random

    def chance(self, probability: float) -> bool:
        return self.roll() < probability

    def between(self, low: float, high: float) -> float:
        return low + (high - low) * self.roll()

    def pick(self, choices: Any) -> Any:
        return choices[int(self.roll() * len(choices))]

    def weighted(self, weights: Dict[str, float]) -> str:
        at = self.roll() * sum(weights.values())
        for choice, weight in weights.items():
            at -= weight
            if at < 0:
                return choice
        return choice

    def shuffle(self, items: List[Any]) -> None:
        for i in range(len(items) - 1, 0, -1):
            j = int(self.roll() * (i + 1))
            items[i], items[j] = items[j], items[i]


class Clock:
    """A node's monotonic clock: its zero and its rate are its own."""

    def __init__(self, offset: float = 0.0, rate: float = 1.0) -> None:
        self.offset = offset
        self.rate = rate

    def local(self, true: float) -> float:
        return self.offset + true * self.rate

    def true(self, local: float) -> float:
        return (local - self.offset) / self.rate


# --------------------------------------------------------------------------------
# The plan: everything about a run that is fixed before it begins
# --------------------------------------------------------------------------------


def timings(
    interval: float = 1.0,
    timeout: float = 3.0,
    missed: int = 2,
    check: float = 1.0,
    lease: Optional[float] = None,
    freeze: float = 20.0,
    stop: float = 8.0,
) -> Timings:
    """Timings, quick by default; the lease lasts for the timeout, as it ships."""
    lease = timeout if lease is None else lease
    return Timings(interval, timeout, missed, check, lease, freeze, stop)


SETTINGS = ((1, 3, 2, 1), (1, 3, 2, 1), (1, 5, 5, 2), (5, 10, 2, 2), (10, 15, 5, 10))
# What a run concentrates on, and how often
FAMILIES = {
    "mixed": 5.0, "oneway": 3.0, "storage": 3.0, "churn": 3.0, "pauses": 2.0,
    "callbacks": 2.0, "wipes": 0.8, "replaced": 0.2,
}  # fmt: skip


class Plan:
    """What a run is like. The defaults are a calm one, for directed runs."""

    def __init__(self, nodes: int = 3, **changes: Any) -> None:
        self.family = "directed"
        self.names = ["n%d" % i for i in range(1, nodes + 1)]
        self.timings: Dict[str, Timings] = {}  # by name; the rest get `common`
        self.common = timings()
        self.clocks: Dict[str, Clock] = {}
        self.machines: Dict[str, str] = {}  # which nodes share a host; else its own
        self.pidfd = False  # the kernel tells of a death on the same host at once
        self.lag = 0.0005  # the longest time by which a thread is late
        self.latency = (0.0005, 0.002)  # of the storage, to its effect and back
        self.spikes = 0.0  # how often a storage call takes seconds instead
        self.delay = (0.0003, 0.001)  # of a packet
        self.duplicates = 0.0
        self.second_tries = 0.0  # swaps that win, and are reported as lost
        self.beside = False  # records of two incarnations stand side by side
        self.start_callback = (0.0, 0.01)
        self.stop_callback = (0.0, 0.01)
        self.long_callbacks = False  # may exceed the stop budget
        self.raising = 0.0
        self.priorities: Dict[str, Optional[int]] = {}  # by name; else 0
        self.supervised = False  # a node that ended is started again
        self.versions: List[Optional[str]] = [None]
        self.duration = 120.0
        self.fault_interval = 4.0
        self.watched = False  # also after the bound is nothing to happen
        for key, value in changes.items():
            assert hasattr(self, key), key
            setattr(self, key, value)

    @classmethod
    def random(cls, dice: Dice, family: Optional[str] = None) -> "Plan":
        plan = cls(dice.pick((1, 2, 2, 3, 3, 3, 3, 4, 4, 5)))
        rolled = dice.weighted(FAMILIES)
        plan.family = family or rolled
        plan._roll_timings(dice)
        plan._roll_hosts(dice)
        plan._roll_weather(dice)
        plan._roll_callbacks(dice)
        plan._roll_roles(dice)
        return plan

    def _roll_timings(self, dice: Dice) -> None:
        base = dice.pick(SETTINGS)
        freeze = dice.pick((20.0,) * 14 + (0.0,) * 3 + (60.0, 60.0, 300.0))
        stop = dice.pick((8.0, 8.0, 20.0))
        self.common = self._roll_one(dice, base, freeze, stop)
        if dice.chance(0.15):
            for name in self.names:
                mixed = dice.pick(SETTINGS[:-1])
                limit = dice.pick((0.0, 5.0, freeze, freeze))
                self.timings[name] = self._roll_one(dice, mixed, limit, stop)
        longest = max(t.detection_time for t in self.all_timings())
        self.duration = min(max(60.0, 15 * longest), 400.0)
        self.fault_interval = max(3.0, self.duration / 30)

    def _roll_one(
        self, dice: Dice, base: Tuple[Any, ...], freeze: float, stop: float
    ) -> Timings:
        lease = None
        if dice.chance(0.25):
            # Down to below H; D is 4/3 T at least; the storage is too slow for less
            lease = max(1.5, base[1] * dice.between(0.2, 1.3))
        return timings(*base, lease=lease, freeze=freeze, stop=stop)

    def all_timings(self) -> List[Timings]:
        own = [self.timings[name] for name in self.names if name in self.timings]
        return [self.common] + own

    def _roll_hosts(self, dice: Dice) -> None:
        hosts = dice.pick(("own", "own", "own", "one", "mixed"))
        for name in self.names:
            if hosts == "one" or (hosts == "mixed" and dice.chance(0.6)):
                self.machines[name] = "m"
            rate = 1 + DRIFT * dice.pick((-1, 1, dice.between(-1, 1)))
            self.clocks[name] = Clock(dice.between(0, 1e5), rate)
        self.pidfd = dice.chance(0.5)
        self.lag = dice.pick((0.001, 0.001, 0.001, 0.02))
        self.versions = ["1.9"] if dice.chance(0.5) else [None]
        self.supervised = dice.chance(0.7)
        self.watched = dice.chance(0.1)

    def _roll_weather(self, dice: Dice) -> None:
        self.latency = dice.pick(((0.0005, 0.01), (0.0005, 0.01), (0.02, 0.15)))
        self.spikes = dice.pick((0.0, 0.01, 0.02))
        self.delay = (0.0005, 0.02)
        self.duplicates = 0.02
        self.second_tries = dice.pick((0.0, 0.01))
        self.beside = dice.chance(0.5)

    def _roll_callbacks(self, dice: Dice) -> None:
        shortest = min(t.stop_budget for t in self.all_timings())
        room = max(0.0, shortest * 0.85 - 2 * self.lag)
        share = dice.pick((0.0, 0.5, 1.0))
        self.start_callback = (0.0, room * (1 - share))
        self.stop_callback = (0.0, room * share)
        if self.family == "callbacks":
            self.long_callbacks = dice.chance(0.7)
            self.raising = dice.pick((0.0, 0.3))
            if self.long_callbacks:
                longest = min(t.stop_timeout for t in self.all_timings()) * 0.45
                self.start_callback = (0.0, longest)
                self.stop_callback = (0.0, longest)

    def _roll_roles(self, dice: Dice) -> None:
        if dice.chance(0.4):
            for name in self.names[1:]:
                self.priorities[name] = dice.pick((0, 0, 1, 5, -1, None, None))

    @property
    def longest_wait(self) -> float:
        """For a lease that nobody can prove to be over."""
        return max(t.lease_duration + t.freeze_limit for t in self.all_timings())

    @property
    def settle_bound(self) -> float:
        """So long after healing there is one primary and nothing moves any more.

        A ghost's lease may have to run out, with its freeze limit (L + F); before
        that it must be noticed (D), and who hears nobody, or not everybody yet, waits
        (D); a ghost's record that landed late counts as a living node's until it was
        no news for 2 (D + C); a namesake is asked (T); callbacks take their time.
        """
        every = self.all_timings()
        detection = max(t.detection_time for t in every)
        check = max(t.check_interval for t in every)
        interval = max(t.hb_interval for t in every)
        slow = max(t.stop_timeout for t in every) if self.long_callbacks else 1.0
        bound = self.longest_wait * 1.05 + 4 * detection + 4 * interval + 2 * slow + 10.0
        return bound + check * (4 + len(self.names) / 2)


# --------------------------------------------------------------------------------
# The store, and each node's way to it
# --------------------------------------------------------------------------------


class Store:
    """What is stored: node records and one register, changed atomically."""

    def __init__(self, world: "World") -> None:
        self.world = world
        self.cluster_id: Optional[str] = None
        self.lease: Optional[Lease] = None
        self.nodes: Dict[Tuple[str, ...], NodeRecord] = {}
        self.hidden_roster: Optional[Lease] = None  # its side file cannot be read
        self.copies: List[Tuple[float, Optional[Lease], Dict[Any, NodeRecord]]] = []
        self.keeps_copies = world.plan.family in ("directed", "wipes", "replaced")
        self.generation = 0  # of the register: how often it was made anew
        self._ids = 0
        self._edits = 0
        self._join_number = 0
        self._snapshot: Optional[Snapshot] = None

    def apply(self, request: Any) -> Any:
        """Carries out one request at one instant; raises StorageError if refused."""
        result = self._HANDLERS[type(request)](self, request)
        if type(request) is not Read and result is not False:
            self._snapshot = None
            if self.keeps_copies:
                self.copies.append((self.world.now, self.lease, dict(self.nodes)))
        return result

    def _open(self, request: Open) -> str:
        if self.cluster_id is None:
            self._ids += 1
            self.cluster_id = "%016x" % self._ids
        return self.cluster_id

    def _read(self, request: Read) -> Snapshot:
        if self._snapshot is None:
            lease = self.lease
            if lease is not None and lease is self.hidden_roster:
                lease = lease._replace(roster=None)
            nodes = tuple(self.nodes[key] for key in sorted(self.nodes))
            self._snapshot = Snapshot(self.cluster_id, lease, nodes)
        return self._snapshot

    def _join(self, request: Join) -> NodeRecord:
        # From the wall clock, so that numbers rise across a wipe as well
        wall = EPOCH + int(self.world.now)
        self._join_number = max(self._join_number + 1, wall)
        record = request.record._replace(join_number=self._join_number)
        self._write(Write(record))
        return record

    def _write(self, request: Write) -> None:
        self._refuse_if_wiped()
        record = request.record
        key: Tuple[str, ...] = (record.name,)
        if self.world.plan.beside:
            key = (record.name, record.incarnation)
        there = self.nodes.get(key)
        if there is None or there.join_number <= record.join_number:
            self.nodes[key] = record

    def _remove(self, request: Remove) -> None:
        for key, record in list(self.nodes.items()):
            if record.incarnation == request.incarnation:
                del self.nodes[key]

    def _swap(self, request: Swap) -> bool:
        self._refuse_if_wiped()
        expected, lease = request.expected, self.lease
        if (lease is None) != (expected is None):
            return False
        if lease is not None and expected is not None:
            if (lease.stamp, lease.holder) != (expected.stamp, expected.holder):
                return False
        self.lease = request.new
        self.world.judge.leases.swapped(request.new, lease)
        return True

    def _repair(self, request: Repair) -> None:
        if self.cluster_id is None:
            self.cluster_id = request.cluster_id
        elif self.cluster_id != request.cluster_id:
            raise StorageError("another store is here")

    def _pause(self, request: Pause) -> Any:
        return self.edit(paused=request.paused)

    def edit(self, **changes: Any) -> Any:
        """What a node, or a command line, does to the lease that another one holds."""
        self._refuse_if_wiped()
        old = self._read(Read()).lease
        if old is None:
            return "there is no lease"
        new = old._replace(**changes)
        if new == old:
            return old
        self._edits += 1  # spread, as chance does it there: sums must not coincide
        step = cluster.EDIT_STEP + self._edits * 104729 % cluster.EDIT_STEP
        new = new._replace(counter=old.counter + step)
        self.lease, self._snapshot = new, None
        self.world.judge.leases.edited(new, old)
        self.world.note("", "EDITED %s -> %s", brief(old), brief(new))
        return new

    def _refuse_if_wiped(self) -> None:
        if self.cluster_id is None:
            raise StorageError("the store was wiped")

    _HANDLERS: Dict[type, Callable[["Store", Any], Any]] = {
        Open: _open, Read: _read, Join: _join, Write: _write, Remove: _remove,
        Swap: _swap, Repair: _repair, Pause: _pause,
    }  # fmt: skip

    # ---- what befalls it

    def wipe(self, what: str = "all") -> None:
        """Loses `all` with its identity, the `lease`, or the `nodes`."""
        if what in ("all", "lease"):
            self.lease = None
            self.generation += 1
        if what in ("all", "nodes"):
            self.nodes = {}
        if what == "all":
            self.cluster_id = None
        self._snapshot = None

    def replace(self) -> None:
        """Another store under the same root."""
        self.wipe()
        self._open(Open())

    def roll_back(self, to: float) -> None:
        """Puts back the copy that was made at that time."""
        for at, lease, nodes in self.copies:
            if at > to:
                break
            self.lease, self.nodes = lease, dict(nodes)
        self.generation += 1
        self._snapshot = None

    def hide_roster(self) -> None:
        """Makes the roster of the present lease unreadable, until the next swap."""
        self.hidden_roster = self.lease
        self._snapshot = None


class Mount:
    """One node's way to the store: what it suffers is that node's alone."""

    def __init__(self, world: "World", name: str) -> None:
        self.world = world
        self.name = name
        self.mode = "ok"  # or error, hang, full, readonly
        self.bad_until = -1.0  # until then it was not all right
        self.holds: Tuple[type, ...] = ()  # requests that hang, until set("ok")
        self.swap_reply_delay = 0.0  # from its effect to the reply
        self.slowness = 0.0  # of each call that works, half of it before its effect
        self._hung: List[Tuple["Process", int, Any]] = []

    def set(self, mode: str) -> None:
        if self.mode != "ok":
            self.bad_until = self.world.now
        self.mode = mode
        self.holds = ()
        if mode != "hang":
            hung, self._hung = self._hung, []
            for process, call_id, request in hung:
                delay = self.world.dice.between(0.0, 0.5)
                self.world.at(delay, self._land, process, call_id, request, 0.001)

    @property
    def hung(self) -> List[Any]:
        """The requests that hang now."""
        return [request for _, _, request in self._hung]

    def was_bad_since(self, when: float) -> bool:
        return self.mode != "ok" or self.bad_until > when

    def call(self, process: "Process", call_id: int, request: Any) -> None:
        dice, plan = self.world.dice, self.world.plan
        if self.mode == "hang" or isinstance(request, self.holds):
            self._hung.append((process, call_id, request))
        elif self.mode == "error":
            self._fail(process, call_id, request)
        elif self.mode != "ok" and self._is_refused(request):
            reply = Returned(call_id, None, "no space left, or read-only")
            self.world.at(dice.between(*plan.latency), process.tell, reply)
        else:
            there, back = dice.between(*plan.latency), dice.between(*plan.latency)
            if not self.world.calm and plan.spikes:
                there, back = self._spiked(there), self._spiked(back)
            there, back = there + self.slowness / 2, back + self.slowness / 2
            if type(request) is Swap:
                back += self.swap_reply_delay
            self.world.at(there, self._land, process, call_id, request, back)

    def _spiked(self, delay: float) -> float:
        dice, spikes = self.world.dice, self.world.plan.spikes
        if dice.chance(spikes):
            delay += dice.between(0, 3 if dice.chance(0.85) else 40)
            # As good as broken meanwhile: a node asks one thing at a time, so that no
            # notice of its callbacks comes through beside a call that hangs
            self.bad_until = max(self.bad_until, self.world.now + delay)
        return delay

    def _fail(self, process: "Process", call_id: int, request: Any) -> None:
        """An error may hide an effect, or one that is still to come."""
        dice = self.world.dice
        fate = dice.roll()
        if fate < 0.2:
            self._try(request)
        elif fate < 0.4:
            self.world.at(dice.between(0, 5), self._try, request)
        reply = Returned(call_id, None, "I/O error")
        self.world.at(dice.between(0.001, 0.05), process.tell, reply)

    def _try(self, request: Any) -> None:
        try:
            self.world.store.apply(request)
        except StorageError:
            pass

    def _is_refused(self, request: Any) -> bool:
        if isinstance(request, Read):
            return False
        if self.mode == "readonly":
            return not isinstance(request, Open)
        if isinstance(request, Swap):  # a rename needs no space, a roster does
            old = request.expected.roster if request.expected else None
            return request.new.roster != old
        return isinstance(request, (Join, Write, Repair))

    def _land(
        self, process: "Process", call_id: int, request: Any, back: float
    ) -> None:
        world = self.world
        try:
            reply = Returned(call_id, world.store.apply(request))
            if type(request) is Read:
                process.reads[call_id] = world.store.generation
        except StorageError as error:
            reply = Returned(call_id, None, str(error))
        if type(request) is Swap:
            world.note_swap(process, request, reply)
            if reply.result is True and not world.calm:
                if world.dice.chance(world.plan.second_tries):
                    # The driver lost the reply, tried again, and was told: lost
                    reply = Returned(call_id, False)
        world.at(back, process.tell, reply)


# --------------------------------------------------------------------------------
# The network
# --------------------------------------------------------------------------------


class Network:
    """Datagrams between addresses: lost, late, doubled, overtaken, cut off."""

    def __init__(self, world: "World") -> None:
        self.world = world
        self.cuts: Dict[Tuple[str, str], bool] = {}  # (from, to), a set in order
        self.loss = 0.0
        self.slow = 0.0
        self.bad_until = -1.0

    def cut(self, source: str, target: str) -> None:
        """One way only."""
        if source != target:
            self.cuts[source, target] = True

    def heal(self) -> None:
        if self.cuts or self.loss or self.slow:
            self.bad_until = self.world.now
        self.cuts = {}
        self.loss = self.slow = 0.0

    def was_bad_since(self, when: float) -> bool:
        return bool(self.cuts or self.loss or self.slow) or self.bad_until > when

    def send(self, process: "Process", address: Address, heartbeat: Any) -> None:
        world, dice = self.world, self.world.dice
        world.sent += 1
        if self.loss and dice.chance(self.loss):
            return
        delay = dice.between(*world.plan.delay)
        if self.slow and dice.chance(self.slow):
            delay += dice.between(0, 6)
        packet = (process, address, heartbeat, process.core.cluster_id)
        if self._is_cut(process, address):
            return
        world.at(delay, self._arrive, *packet)
        if not world.calm and dice.chance(world.plan.duplicates):
            late = dice.between(0, 5 if dice.chance(0.9) else 90)
            world.at(delay + late, self._arrive, *packet)

    def _is_cut(self, process: "Process", address: Address) -> bool:
        cuts = self.cuts
        return bool(cuts) and (process.name, self.world.owners[address]) in cuts

    def _arrive(
        self, process: "Process", address: Address, heartbeat: Any, tag: Optional[str]
    ) -> None:
        target = self.world.bound.get(address)
        if target is None or target.core.cluster_id != tag:
            return
        # What was on its way when the cable was pulled now and then gets through
        if self._is_cut(process, address) and self.world.dice.chance(0.9):
            return
        if self.world.verbose:
            self.world.note(target, "hears %s: %s" % (process.name, brief(heartbeat)))
        target.tell(Heard(heartbeat, process.address))


# --------------------------------------------------------------------------------
# Processes: the shell around one core
# --------------------------------------------------------------------------------


class CallbackThread:
    """Runs the user's callbacks one at a time, in order."""

    def __init__(self, process: "Process") -> None:
        self.process = process
        self.queue: List[RunCallback] = []
        self.running: Optional[RunCallback] = None
        self._is_due = False  # the next one is about to begin
        self.stop_takes = 0.0  # the stop callback that belongs to this term's start
        self.failures = 0

    def ask(self, action: RunCallback) -> None:
        self.queue.append(action)
        self._next()

    def _next(self) -> None:
        if self.queue and self.running is None and not self._is_due:
            self._is_due = True
            world = self.process.world
            world.at(world.dice.between(0, 2 * world.plan.lag), self._begin)

    def _begin(self) -> None:
        process = self.process
        if not process.alive:
            return
        if process.is_frozen:
            process.backlog.append(self._begin)
            return
        self._is_due = False
        action = self.queue.pop(0)
        if action.kind == "start" and not process.may_start(action.term):
            process.world.note(process, "start of term %d skipped", action.term)
            process.tell(CallbackEnded("start", action.term, skipped=True))
            self._next()
            return
        self.running = action
        seconds = self._seconds(action)
        process.world.judge.begins(process, action)
        process.world.at(seconds, self._end)

    def _seconds(self, action: RunCallback) -> float:
        world = self.process.world
        if action.kind == "start":
            self.stop_takes = world.dice.between(*world.plan.stop_callback)
            return world.dice.between(*world.plan.start_callback)
        return self.stop_takes if action.kind == "stop" else 0.01

    def _end(self) -> None:
        process, action = self.process, self.running
        if not process.alive or action is None:
            return
        if process.is_frozen:
            process.backlog.append(self._end)
            return
        self.running = None
        error = self._error(action)
        process.world.judge.ended(process, action, error)
        process.tell(CallbackEnded(action.kind, action.term, error))
        self._next()

    def _error(self, action: RunCallback) -> Optional[str]:
        world = self.process.world
        raising = 0.0 if world.calm and action.kind == "start" else world.plan.raising
        raised = raising > 0 and world.dice.chance(raising)
        if action.kind == "start":
            self.failures = self.failures + 1 if raised else 0
        return "ValueError: no" if raised else None


class Process:
    """One incarnation of a node: a core, and what a real one has around it."""

    def __init__(
        self, world: "World", name: str, record: NodeRecord, clock: Clock
    ) -> None:
        self.world = world
        self.name = name
        self.incarnation = record.incarnation
        self.address = record.address
        self.clock = clock
        self.timings = world.plan.timings.get(name, world.plan.common)
        self.alive = True
        self.joined = self.asked_to_stop = False
        self.ended = ""  # how: finished, crashed, failed to join
        self.backlog: List[Any] = []
        self.reads: Dict[int, int] = {}  # call id -> generation that it has read
        self.callbacks = CallbackThread(self)
        # What readers of is_primary have been told: terms that are over for good
        self.lapsed: Set[int] = set()
        self.lapsed_at = -1.0
        # A paused process runs nothing; a stalled one still runs its callbacks
        self.paused = self.is_frozen = False
        self.paused_at = -1.0
        self.resumed_at = -1.0
        self.pauses: List[Tuple[float, float]] = []
        self._wake_due = -1.0
        self._idle_steps = (0.0, 0)  # since when, and how many
        first_term = EPOCH + int(world.now)
        local = clock.local(world.now)
        self.core = world.core_class(self.timings, record, local, first_term)
        self.role = self.core.role
        self._wake_later()

    def __repr__(self) -> str:
        return "%s/%s" % (self.name, self.incarnation[-3:])

    @property
    def is_primary(self) -> bool:
        """As a reader in this process would see it now."""
        term, deadline = self.core.primacy
        now = self.clock.local(self.world.now)
        return term > 0 and now < deadline and term not in self.lapsed

    def may_start(self, term: int) -> bool:
        """The shell's duty at the instant at which a start callback would begin."""
        return self.is_primary and self.core.primacy[0] == term

    # ---- time and events

    def tell(self, *events: Any) -> None:
        """Events reach the core: now, or when the process runs again."""
        if not self.alive:
            return
        if self.paused:
            self.backlog.extend(events)
        else:
            self._step(events)

    def _step(self, events: Any) -> None:
        world = self.world
        local = self.clock.local(world.now)
        if local < self.core.wake_at < local + TICK:
            local = self.core.wake_at
        self._count_step(events)
        readers = world.judge.readers
        readers.look(self, local)
        if world.judge.known.is_wanted:
            world.judge.known.told(self, events)
        try:
            actions = self.core.step(local, *events)
        except Exception:
            text = "%r: the core raised\n%s"
            raise Broken("S4", text % (self, traceback.format_exc()))
        readers.look_again(self, local)
        if self.core.role != self.role:
            world.note(self, "%s -> %s", self.role, self.core.role)
            self.role = self.core.role
        for action in actions:
            self._HANDLERS[type(action)](self, action)
        if self.alive:
            self._wake_later()

    def _count_step(self, events: Any) -> None:
        """A core that asks to be woken at once, again and again, is a busy loop."""
        since, count = self._idle_steps
        if events or self.world.now > since + 1.0:
            since, count = self.world.now, 0
        self._idle_steps = since, count + 1
        if count > MAX_STEPS:
            text = "%r spins: %d steps within %.3f s in which nothing happened"
            raise Broken("S4", text % (self, count, self.world.now - since))

    def _wake_later(self) -> None:
        """Keeps at most one valid wake-up in the world's heap: the earliest."""
        local = self.core.wake_at
        if local == cluster.FOREVER:
            self._wake_due = -1.0
            return
        due = self.clock.true(local)
        if due < self._wake_due or self._wake_due < 0:
            self._wake_due = due
            self.world.at(due - self.world.now, self._wake, due)
        elif due > self._wake_due:
            pass  # looked at again when the earlier one comes

    def _wake(self, due: float) -> None:
        if not self.alive or due != self._wake_due:
            return
        self._wake_due = -1.0
        if self.clock.local(self.world.now) + TICK < self.core.wake_at:
            self._wake_later()
        elif self.world.plan.lag > 0:
            lag = self.world.dice.between(0, self.world.plan.lag)
            self._wake_due = self.world.now + lag
            self.world.at(lag, self._wake_up, self._wake_due)
        else:
            self.tell_time()

    def _wake_up(self, due: float) -> None:
        if due == self._wake_due:
            self._wake_due = -1.0
            self.tell_time()

    def tell_time(self) -> None:
        if not self.alive:
            return
        if not self.paused:
            self._step(())
        elif not self.backlog or self.backlog[-1] is not TIME:
            self.backlog.append(TIME)

    # ---- what befalls it

    def pause(self, seconds: float, whole: bool = True) -> None:
        """SIGSTOP, or only a starved heartbeat thread. Events queue up meanwhile."""
        if not self.alive or self.paused:
            return
        self.paused, self.is_frozen = True, whole
        self.paused_at = self.world.now
        self.world.note(self, "paused for %.2f s" if whole else "stalls for %.2f s",
                        seconds)  # fmt: skip
        self.world.at(seconds, self.resume, self.paused_at)

    def resume(self, paused_at: Optional[float] = None) -> None:
        if not self.alive or not self.paused:
            return
        if paused_at is not None and paused_at != self.paused_at:
            return
        dice = self.world.dice
        self.paused = self.is_frozen = False
        self.resumed_at = self.world.now
        self.pauses.append((self.paused_at, self.resumed_at))
        self.world.note(self, "runs again, with a backlog of %d", len(self.backlog))
        # Some thread asks is_primary before any other has done anything
        term = self.core.primacy[0]
        self.world.judge.readers.look(self, self.clock.local(self.world.now))
        backlog, self.backlog = self.backlog, []
        if dice.chance(0.5):
            dice.shuffle(backlog)
        if term in self.lapsed and dice.chance(0.5):
            backlog.insert(0, cluster.Expired(term))
        self._work_off(backlog, together=dice.chance(0.5))

    def _work_off(self, backlog: List[Any], together: bool) -> None:
        events = []
        for item in backlog:
            if not self.alive:
                return
            if callable(item):
                item()
            elif together:
                events += [] if item is TIME else [item]
            else:
                self._step(() if item is TIME else (item,))
        if self.alive:
            self._step(events)

    def paused_seconds(self, since: float) -> float:
        """For how long it was kept from running since then."""
        pauses = self.pauses + [(self.paused_at, self.world.now)] * self.paused
        return sum(max(0.0, end - max(begin, since)) for begin, end in pauses)

    def die(self, how: str) -> None:
        if self.alive:
            self.alive = False
            self.ended = how
            self.world.process_ended(self)

    # ---- actions

    def _send(self, action: Send) -> None:
        self.world.network.send(self, action.address, action.heartbeat)

    def _call(self, action: Call) -> None:
        self.world.calls += 1
        if self.world.verbose:
            self.world.note(self, "asks #%d %s", action.id, brief(action.request))
        self.world.mounts[self.name].call(self, action.id, action.request)

    def _run_callback(self, action: RunCallback) -> None:
        self.callbacks.ask(action)

    def _examine(self, action: Examine) -> None:
        self.world.examine(self, action.record)

    def _say(self, action: Say) -> None:
        self.world.losses += " is lost: " in action.text
        self.world.note(self, "%s", action.text)

    def _pause_done(self, action: PauseDone) -> None:
        self.world.note(self, "pause or resume: %s", action.error or "done")

    def _joined(self, action: Joined) -> None:
        self.joined = True
        self.world.joined(self)

    def _join_failed(self, action: JoinFailed) -> None:
        self.world.note(self, "%s", action.text)
        self.die("failed to join")

    def _finished(self, action: Finished) -> None:
        self.world.note(self, "finished")
        self.world.judge.finished(self)
        self.die("finished")

    _HANDLERS: Dict[type, Callable[["Process", Any], None]] = {
        Send: _send, Call: _call, RunCallback: _run_callback, Examine: _examine,
        Say: _say, PauseDone: _pause_done, Joined: _joined,
        JoinFailed: _join_failed, Finished: _finished,
    }  # fmt: skip


class _Time(NamedTuple):
    """Stands in a backlog for 'the time has come'."""


TIME = _Time()


# --------------------------------------------------------------------------------
# The checkers: they know callbacks, readers and clocks, not the protocol
# --------------------------------------------------------------------------------


class Broken(Exception):
    """A promise was broken: which, and by what."""

    def __init__(self, promise: str, text: str) -> None:
        super().__init__("%s: %s" % (promise, text))
        self.promise = promise
        self.text = text

    def __reduce__(self) -> Any:
        return Broken, (self.promise, self.text)


class OnePrimary:
    """S1: no start callback begins while another node's callbacks are not over."""

    def __init__(self, world: "World") -> None:
        self.world = world
        self.active: Dict[Process, int] = {}  # since their start, with the term
        self.excused: Dict[str, int] = collections.Counter()

    def begins(self, process: Process, term: int) -> None:
        for other in self.active:
            if other is not process:
                excuse = self._excuse(other, process)
                if excuse is None:
                    text = "%r starts in term %d while %r has not stopped in term %d"
                    self._broken(text % (process, term, other, self.active[other]))
                else:
                    self.excused[excuse] += 1
                    self.world.note(process, "overlap excused: %s", excuse)
        self.active[process] = term

    def _broken(self, text: str) -> None:
        raise Broken("S1", text)

    def over(self, process: Process) -> None:
        self.active.pop(process, None)

    def _excuse(self, other: Process, successor: Process) -> Optional[str]:
        """Conditions (d) and (c) of S1. None: the overlap breaks the promise."""
        now = self.world.now
        if other.paused:  # nobody has looked yet: the lease runs by the clock
            self.world.judge.readers.look(other, other.clock.local(now))
        if self.world.judge.known.excuses(other, successor):
            return "the register was made anew, and neither could know"
        if other.is_primary:
            return None
        over_at = other.lapsed_at + other.timings.stop_budget * 0.98
        if now < over_at:  # whatever befell it: its lease was in force so long
            return None
        paused = other.paused_seconds(other.lapsed_at)
        # Long callbacks hold the lease or are told of, while the process runs
        gap = other.timings.lease_duration / 2 if self.world.plan.long_callbacks else 0
        if paused and (now < over_at + paused + PROMPT or paused > gap > 0):
            return "paused past its lease"
        if not self.world.plan.long_callbacks:
            return None
        if self._was_cut_off(other, successor):
            return "long callbacks, and nothing to say so"
        if now >= self.world.judge.leases.claimed_at(successor) + self._patience():
            return "callbacks longer than the stop timeout"
        return None

    def _patience(self) -> float:
        return min(t.stop_timeout for t in self.world.plan.all_timings()) * 0.95

    def _was_cut_off(self, other: Process, successor: Process) -> bool:
        """No word of its callbacks has come for a lease duration, nor could it."""
        since = other.lapsed_at - 1.0
        mounts = self.world.mounts
        told_at = self.world.judge.known.told_of_callbacks_at(other, successor)
        shortest = min(t.lease_duration for t in self.world.plan.all_timings())
        if told_at > self.world.now - shortest * 0.98:
            return False
        return self.world.network.was_bad_since(since) and (
            mounts[other.name].was_bad_since(since)
            or mounts[successor.name].was_bad_since(since)
        )


class TermsRise:
    """S2: every primary's term is above all earlier ones'.

    Who was never told of the last one, as its register was wiped, can go by the wall
    clock alone; and here that runs as fast or slow as the node's own.
    """

    def __init__(self, world: "World") -> None:
        self.world = world
        self.last = 0
        self._holder: Optional[Process] = None

    def begins(self, process: Process, term: int) -> None:
        if term <= self.last and not self._is_excused(process, term):
            text = "%r starts in term %d after term %d" % (process, term, self.last)
            raise Broken("S2", text)
        self.last, self._holder = max(self.last, term), process

    def _is_excused(self, process: Process, term: int) -> bool:
        judge = self.world.judge
        if self._holder is None or judge.known.was_told_of(process, self.last):
            return False
        ours = judge.leases.generation_of(process, term)
        if ours <= judge.leases.generation_of(self._holder, self.last):
            return False
        # seconds that are cut to whole ones at the start, and again at the claim
        error = 2 * DRIFT * self.world.now + 1
        by_the_clock = EPOCH + int(judge.leases.claimed_at(process) - error)
        return by_the_clock <= term and self.last - term <= error


class Readers:
    """S3: is_primary is false past the lease, and then for good in that term.

    The reader here is the worst one: it has always just looked. And of all the
    readers on all nodes, at most one reads true at any instant.
    """

    def __init__(self, world: "World") -> None:
        self.world = world
        self._told_true: Dict[Process, int] = {}

    def look(self, process: Process, local: float) -> None:
        """Just before the core does anything."""
        term, deadline = process.core.primacy
        if term and local >= deadline:
            lapse = min(max(process.clock.true(deadline), 0.0), self.world.now)
            self._lapse(process, term, lapse)

    def look_again(self, process: Process, local: float) -> None:
        """Just after."""
        term, deadline = process.core.primacy
        before = self._told_true.get(process, 0)
        if term and local < deadline:
            if term in process.lapsed:
                text = "%r reads true again in term %d, which had run out"
                raise Broken("S3", text % (process, term))
            if term != before:
                self._reads_true(process, term)
        elif before:
            self._lapse(process, before, self.world.now)
        elif term:
            process.lapsed.add(term)

    def _lapse(self, process: Process, term: int, when: float) -> None:
        if term not in process.lapsed:
            process.lapsed.add(term)
            process.lapsed_at = when
        self._told_true.pop(process, None)

    def _reads_true(self, process: Process, term: int) -> None:
        if process.core.role != "primary":
            raise Broken("S3", "%r reads true as %s" % (process, process.core.role))
        for other in list(self._told_true):
            if other is not process and other.alive and other.is_primary:
                if self.world.judge.known.excuses(other, process):
                    continue
                text = "%r and %r both read true, in terms %d and %d"
                text %= process, other, term, self._told_true[other]
                raise Broken("S3", text)
        self._told_true[process] = term

    def forget(self, process: Process) -> None:
        self._told_true.pop(process, None)


class Pairs:
    """S4: a start callback has exactly one stop callback, and it comes at once."""

    def __init__(self, world: "World") -> None:
        self.world = world
        self._open: Dict[Process, int] = {}
        self._idle_since: Dict[Process, float] = {}
        self.raised: Dict[Process, int] = {}

    def begins(self, process: Process, action: RunCallback) -> None:
        term = self._open.get(process)
        if action.kind == "start":
            if term is not None:
                raise Broken("S4", "%r: start, but term %d is open" % (process, term))
            self._open[process] = action.term
        elif action.kind == "stop":
            if term != action.term:
                text = "%r: stop of term %d, but %s is open"
                raise Broken("S4", text % (process, action.term, term))
            self._comes_at_once(process)
        elif term is not None:
            raise Broken("S4", "%r: exit before stop of term %d" % (process, term))

    def _comes_at_once(self, process: Process) -> None:
        due = max(process.lapsed_at, self._idle_since[process], process.resumed_at)
        late = self.world.now - due - 4 * self.world.plan.lag
        if process.is_primary:
            raise Broken("S4", "%r: stop begins while is_primary is true" % process)
        if late > PROMPT:
            text = "%r: its stop callback comes %.2f s too late"
            raise Broken("S4", text % (process, late))

    def ended(self, process: Process, action: RunCallback, error: Any) -> None:
        self._idle_since[process] = self.world.now
        if action.kind == "stop":
            del self._open[process]
            self.raised.pop(process, None)
        elif action.kind == "start" and error:
            self.raised[process] = action.term

    def finished(self, process: Process) -> None:
        if process in self._open:
            raise Broken("S4", "%r finished without a stop callback" % process)

    def died(self, process: Process) -> None:
        self._open.pop(process, None)
        self.raised.pop(process, None)


class Leases:
    """Looks at what is swapped in: a value of the register is never repeated."""

    def __init__(self, world: "World") -> None:
        self.world = world
        self._seen: Dict[Tuple[int, int, str], Lease] = {}
        self._claims: Dict[str, float] = {}
        self._generations: Dict[Tuple[str, int], int] = {}
        self._deposed: Dict[Tuple[str, int], str] = {}

    def swapped(self, lease: Lease, old: Optional[Lease]) -> None:
        if old is not None and old.paused:
            if not lease.paused or lease.term != old.term:
                text = "%s is swapped in over %s, which is paused"
                raise Broken("pause", text % (brief(lease), brief(old)))
        self.edited(lease, old)

    def edited(self, lease: Lease, old: Optional[Lease]) -> None:
        """Also by who holds it not, and then the same term remains."""
        key = (lease.term, lease.counter, lease.holder)
        if self._seen.setdefault(key, lease) is not lease:
            raise Broken("S1", "the lease %s is written twice" % (key,))
        self._generations.setdefault(
            (lease.holder, lease.term), self.world.store.generation
        )
        if old is not None and old.term < lease.term:
            self._deposed[lease.holder, lease.term] = old.holder
        if not lease.started:
            self._claims.setdefault("%s %d" % (lease.holder, lease.term),
                                    self.world.now)  # fmt: skip

    def generation_of(self, process: Process, term: int = 0) -> int:
        """Of the register in which it has claimed that term (its present one)."""
        key = (process.incarnation, term or process.core.primacy[0])
        return self._generations.get(key, self.world.store.generation)

    def took_from_the_dead(self, process: Process) -> bool:
        """Is the holder, over whose lease it claimed, a dead process of its host?"""
        key = (process.incarnation, process.core.primacy[0])
        old = self.world.by_incarnation.get(self._deposed.get(key, ""))
        if old is None or old.alive:
            return False
        return self.world.machine(old.name) == self.world.machine(process.name)

    def claimed_at(self, process: Process) -> float:
        term = process.core.primacy[0]
        key = "%s %d" % (process.incarnation, term)
        return self._claims.get(key, self.world.now)


class Known:
    """Who was told what of a register that was made anew. Excuses by that.

    A register that was wiped or rolled back, or another one in its place, is not
    linearizable: assumption (a) of S1 fails from then until its holder has found out.
    Nobody can know better than a successor that claimed the new register, was never
    shown the holder's term, in storage or heartbeats, and was not shown its record
    either (or has waited for a detection time to hear from it; for a heartbeat
    interval if the register showed a dead process of its own host); and on the other
    side a holder without the answer to a read of the new register, or just stopping.
    """

    def __init__(self, world: "World") -> None:
        self.world = world
        self._terms: Dict[Process, Dict[int, float]] = {}  # told of a term, when
        self._records: Dict[Process, Dict[str, float]] = {}  # and of an incarnation
        self._reads: Dict[Process, List[Tuple[int, float]]] = {}  # generation, when
        self._callbacks: Dict[Tuple[Process, str], Tuple[int, float]] = {}  # run on
        self.is_wanted = world.plan.long_callbacks or world.store.keeps_copies

    def told(self, process: Process, events: Any) -> None:
        for event in events:
            if type(event) is Heard:
                heartbeat = event.heartbeat
                self._told_term(process, heartbeat.term, heartbeat.holder)
                if event.heartbeat.running:
                    self._told_callbacks(process, event.heartbeat.sender, -1)
            elif type(event) is Returned and event.id in process.reads:
                self._read(process, process.reads.pop(event.id), event.result)

    def was_told_of(self, process: Process, term: int) -> bool:
        return term in self._terms.get(process, {})

    def _told_term(self, process: Process, term: int, holder: str) -> None:
        if holder != process.incarnation:  # its own tells nothing of others'
            self._terms.setdefault(process, {}).setdefault(term, self.world.now)

    def _read(self, process: Process, generation: int, snapshot: Snapshot) -> None:
        reads = self._reads.setdefault(process, [(-1, 0.0)])
        if generation > reads[-1][0]:
            reads.append((generation, self.world.now))
        if snapshot.cluster_id not in (None, process.core.cluster_id):
            return  # a store that it is yet to join: it may be replaced before that
        if snapshot.lease is not None:
            self._told_term(process, snapshot.lease.term, snapshot.lease.holder)
        records = self._records.setdefault(process, {})
        for record in snapshot.nodes:
            records.setdefault(record.incarnation, self.world.now)
            if record.running_term:
                self._told_callbacks(process, record.incarnation, record.notice)

    def _told_callbacks(self, process: Process, sender: str, notice: int) -> None:
        """A notice in a record counts from when it is first seen."""
        before = self._callbacks.get((process, sender), (-2, 0.0))
        if notice == -1 or notice > before[0]:
            at = self.world.now
            self._callbacks[process, sender] = max(before[0], notice), at

    def told_of_callbacks_at(self, other: Process, process: Process) -> float:
        key = (process, other.incarnation)
        return self._callbacks.get(key, (0, -cluster.FOREVER))[1]

    def excuses(self, other: Process, successor: Process) -> bool:
        """Did the successor claim in a later generation, neither knowing of it?"""
        leases, now = self.world.judge.leases, self.world.now
        term = self.world.judge.one.active.get(other) or other.core.primacy[0]
        generation = leases.generation_of(successor)
        if generation <= leases.generation_of(other, term):
            return False
        shown = self._terms.get(successor, {}).get(term, now)
        if shown < now - 4 * self.world.plan.lag:
            return False
        met = self._records.get(successor, {}).get(other.incarnation, -cluster.FOREVER)
        wait = successor.timings.detection_time
        if leases.took_from_the_dead(successor):
            wait = successor.timings.hb_interval
        if met > now - wait * (1 - DRIFT):
            return False
        found = [at for g, at in self._reads.get(other, ()) if g >= generation]
        budget = other.timings.stop_budget + PROMPT
        return not found or now < found[0] + budget


class Judge:
    """Owns the checkers, and tells them what happened."""

    def __init__(self, world: "World") -> None:
        self.world = world
        self.one = OnePrimary(world)
        self.terms = TermsRise(world)
        self.readers = Readers(world)
        self.known = Known(world)
        self.pairs = Pairs(world)
        self.leases = Leases(world)
        self.starts = 0
        self.moved_at = 0.0  # when a callback last began

    def begins(self, process: Process, action: RunCallback) -> None:
        self.world.note(process, "%s callback begins (term %d)", action.kind.upper(),
                        action.term)  # fmt: skip
        self.moved_at = self.world.now
        self.pairs.begins(process, action)
        if action.kind == "start":
            if process.core.record.priority is None:
                raise Broken("priority", "%r starts, and must never" % process)
            self.starts += 1
            self.one.begins(process, action.term)
            self.terms.begins(process, action.term)

    def ended(self, process: Process, action: RunCallback, error: Any) -> None:
        self.world.note(process, "%s callback %s (term %d)", action.kind,
                        "raised" if error else "ended", action.term)  # fmt: skip
        self.pairs.ended(process, action, error)
        if action.kind == "stop":
            self.one.over(process)

    def finished(self, process: Process) -> None:
        self.pairs.finished(process)

    def died(self, process: Process) -> None:
        self.one.over(process)
        self.pairs.died(process)
        self.readers.forget(process)


# --------------------------------------------------------------------------------
# The world
# --------------------------------------------------------------------------------


class World:
    """Everything in a run: virtual time, and all that happens in it."""

    def __init__(
        self,
        plan: Optional[Plan] = None,
        seed: int = 0,
        core_class: Any = None,
        say: Optional[Callable[[str], None]] = None,
        verbose: bool = False,
    ) -> None:
        self.plan = plan if plan is not None else Plan()
        self.dice = Dice(seed)
        self.core_class = core_class or cluster.Core
        self.say = say
        self.verbose = verbose and say is not None
        self.now = 0.0
        self.calm = self.plan.family == "directed"
        self.sent = self.calls = self.losses = 0
        self._heap: List[Tuple[float, int, Callable[..., None], Tuple[Any, ...]]] = []
        self._order = itertools.count()
        self.store = Store(self)
        self.judge = Judge(self)
        self.network = Network(self)
        self.mounts: Dict[str, Mount] = {}
        self.processes: List[Process] = []  # every one that ever was
        self.alive: List[Process] = []
        self.by_incarnation: Dict[str, Process] = {}
        self.bound: Dict[Address, Process] = {}
        self.owners: Dict[Address, str] = {}
        self.started: Dict[str, bool] = {}  # names that are asked to start
        self._watches: Dict[str, Dict[Process, bool]] = {}
        self._hosts: Dict[str, str] = {}
        self.last_boot = 0.0
        self.stopping = False

    # ---- time

    def at(self, delay: float, act: Callable[..., None], *args: Any) -> None:
        entry = (self.now + max(delay, 0.0), next(self._order), act, args)
        heapq.heappush(self._heap, entry)

    def run(self, seconds: float) -> None:
        self.run_until(self.now + seconds)

    def run_until(self, until: float) -> None:
        heap, pop = self._heap, heapq.heappop
        while heap and heap[0][0] <= until:
            self.now, _, act, args = pop(heap)
            act(*args)
        self.now = until

    def wait_for(self, is_so: Callable[[], bool], seconds: float) -> float:
        """Runs until it is so; returns how long that took.

        Raises:
            Broken: it did not become so in time.
        """
        began, until = self.now, self.now + seconds
        heap = self._heap
        while not is_so():
            if not heap or heap[0][0] > until:
                self.now = until
                raise Broken("liveness", "not within %.3f s: %s" % (seconds, self))
            self.now, _, act, args = heapq.heappop(heap)
            act(*args)
        return self.now - began

    def note(self, who: Any, text: str, *args: object) -> None:
        if self.say is not None:
            text = text % args if args else text
            self.say("%10.4f  %-8s %s" % (self.now, who or "", text))

    def note_swap(self, process: Process, request: Swap, reply: Returned) -> None:
        if self.say is not None and (self.verbose or request.new.counter % 10 == 1
                                     or not request.new.started):  # fmt: skip
            outcome = {True: "won", False: "lost"}.get(reply.result, reply.error)
            text = "swap %s -> %s: %s"
            old, new = brief(request.expected), brief(request.new)
            self.note(process, text, old, new, outcome)

    def __str__(self) -> str:
        nodes = [
            "%r %s%s: %s" % (p, p.core.role, ", paused" * p.paused, p.core.explain())
            for p in self.alive
        ]
        lease = brief(self.store.lease)
        return "%s; lease %s" % ("; ".join(nodes) or "nobody lives", lease)

    # ---- nodes

    def boot(
        self,
        name: str,
        version: Any = "newest",
        new_port: bool = False,
        start: bool = True,
    ) -> Process:
        """Starts a new incarnation of a node; at its usual address if that is free."""
        host = self._hosts.setdefault(name, "10.0.0.%d" % (len(self._hosts) + 1))
        address = (host, 7000)
        while new_port or address in self.bound:
            address = (host, address[1] + 1)
            new_port = False
        self.owners[address] = name
        self.mounts.setdefault(name, Mount(self, name))
        if version == "newest":
            version = self.plan.versions[-1]
        # Not in the order of booting, or ties would always be resolved alike
        number = len(self.processes) + 1
        identity = "%013x%03x" % (int(self.dice.roll() * 2**48), number)
        record = NodeRecord(name, identity, *address, version=version,
                            priority=self.plan.priorities.get(name, 0))  # fmt: skip
        clock = self.plan.clocks.get(name) or Clock()
        self.started[name] = start
        self.note(name, "boots as %s, version %s", identity[-3:], version)
        process = Process(self, name, record, clock)
        self.processes.append(process)
        self.alive.append(process)
        self.by_incarnation[identity] = process
        self.bound[address] = process
        self.last_boot = self.now
        return process

    def boot_all(self) -> List[Process]:
        return [self.boot(name) for name in self.plan.names]

    def joined(self, process: Process) -> None:
        if self.started[process.name]:
            self.at(0.0, process.tell, StartAsked())

    def node(self, name: str) -> Process:
        """The living process of that name (the newest one)."""
        return [p for p in self.alive if p.name == name][-1]

    def primaries(self) -> List[Process]:
        return [p for p in self.alive if not p.paused and p.is_primary]

    def primary(self) -> Process:
        (process,) = self.primaries()
        return process

    def others(self) -> List[Process]:
        return [p for p in self.alive if not p.is_primary]

    def process_ended(self, process: Process) -> None:
        self.note(process, "is gone: %s", process.ended)
        self.alive.remove(process)
        self.last_boot = self.now
        if self.bound.get(process.address) is process:
            del self.bound[process.address]
        self.judge.died(process)
        for watcher in self._watches.pop(process.incarnation, ()):
            self.at(2e-5, watcher.tell, ProvenDead(process.incarnation))
        if self.plan.supervised and not self.stopping and process.ended != "crashed":
            self.at(self.dice.pick((1, 5, 30)), self._restart, process.name)

    def _restart(self, name: str) -> None:
        if not self.stopping and not any(p.name == name for p in self.alive):
            self.boot(name)

    def machine(self, name: str) -> str:
        return self.plan.machines.get(name, name)

    def examine(self, process: Process, record: NodeRecord) -> None:
        """Tells the truth about a process on the same host, and else nothing."""
        other = self.by_incarnation[record.incarnation]
        if self.machine(process.name) != self.machine(other.name):
            return
        if record.companions:  # they are alive, always
            return
        if not other.alive:
            self.at(0.0, process.tell, ProvenDead(record.incarnation))
        elif self.plan.pidfd:
            self._watches.setdefault(record.incarnation, {})[process] = True

    # ---- faults, by name; they are noted, so that a trace can be read

    def cut(self, source: str, target: str, both: bool = True) -> None:
        self.note("", "CUT %s -> %s%s", source, target, ", and back" if both else "")
        self.network.cut(source, target)
        if both:
            self.network.cut(target, source)

    def isolate(self, name: str, way: str = "both") -> None:
        self.note("", "ISOLATED %s (%s)", name, way)
        for other in list(self.mounts):
            if way in ("both", "out"):
                self.network.cut(name, other)
            if way in ("both", "in"):
                self.network.cut(other, name)

    def cut_all(self) -> None:
        for name in list(self.mounts):
            self.isolate(name)

    def heal_network(self) -> None:
        self.note("", "NETWORK HEALED")
        self.network.heal()

    def set_storage(self, mode: str, *names: str) -> None:
        """For these nodes; for all if none is named."""
        self.note("", "STORAGE %s for %s", mode, ", ".join(names) or "all")
        for name in names or list(self.mounts):
            self.mounts[name].set(mode)

    def crash(self, name: str) -> None:
        for process in [p for p in self.alive if p.name == name]:
            process.die("crashed")

    def move(self, process: Process, notices: float) -> None:
        """Its host gets another address; the process notices after so long."""
        host = "10.0.1.%d" % (len(self.owners) + 1)
        self.note(process, "MOVED to %s", host)
        del self.bound[process.address]
        process.address = (host, process.address[1])
        self.owners[process.address] = process.name
        self.bound[process.address] = process
        self.at(notices, self._notice_move, process)

    def _notice_move(self, process: Process) -> None:
        """Members look each check interval; until then, joining advertises it."""
        if process.alive and process.core.record.host != process.address[0]:
            if process.joined:
                process.tell(Described(host=process.address[0]))
            self.at(process.timings.check_interval, self._notice_move, process)

    def ask_to_stop(self, process: Process) -> None:
        self.note(process, "ASKED TO STOP")
        process.asked_to_stop = True
        process.tell(StopAsked())

    def ask_to_pause(self, paused: bool, process: Optional[Process] = None) -> None:
        """Through a node, which needs its storage, or past all of them."""
        self.note(process, "ASKED TO PAUSE" if paused else "ASKED TO RESUME")
        if process is not None:
            process.tell(PauseAsked(paused, 0))
        elif self.store.cluster_id is not None:
            self.store.edit(paused=paused)

    def describe(self, process: Process, metadata: str) -> None:
        self.note(process, "DESCRIBED AS %s", metadata)
        process.tell(Described(metadata))

    def ask_to_step_down(self, process: Process, to: str = "") -> None:
        """For a node, by its name, or for anybody; for nobody who is refused."""
        successor = ""
        if to:
            if process.core.no_successor(to) is not None:
                return
            successor = process.core.records[to].incarnation
        self.note(process, "ASKED TO STEP DOWN %s", to and "for " + to)
        process.tell(StepDownAsked(successor))

    # ---- healing, and what must come of it

    def heal(self) -> None:
        self.calm = True
        self.network.heal()
        self.set_storage("ok")
        self.note("", "ALL IS HEALED")
        for process in list(self.alive):
            process.resume()
        if not self.alive:
            self.boot(self.plan.names[0])

    def is_settled(self) -> bool:
        """Exactly one primary, full views, nothing running or waiting."""
        return self.unsettled() is None

    def unsettled(self) -> Optional[str]:
        if not self.alive:
            return None
        primaries = self.primaries()
        able = any(p.core.record.priority is not None for p in self.alive)
        if len(primaries) != able:
            return "%d primaries" % len(primaries)
        names = [p.name for p in self.alive]
        for process in self.alive:
            if not process.joined:
                return "%r has not joined" % process
            if process.callbacks.running or process.callbacks.queue:
                return "callbacks run"
            if not able:
                continue  # nobody removes the records of the dead
            if sorted(list(process.core.records) + [process.name]) != sorted(names):
                return "%r sees %s" % (process, sorted(process.core.records))
            for record in process.core.records.values():
                if record.metadata != self.node(record.name).core.record.metadata:
                    return "%r sees old metadata of %s" % (process, record.name)
        return self._unsettled_lease(primaries[0]) if primaries else None

    def _unsettled_lease(self, primary: Process) -> Optional[str]:
        lease = self.store.lease
        if lease is None or lease.holder != primary.incarnation or lease.released:
            return "the lease is %s" % brief(lease)
        members = sorted(p.incarnation for p in self.alive if p is not primary)
        if sorted(lease.roster or ()) != members:
            return "the roster is not everybody: %s" % brief(lease)
        return None

    def settle(self) -> float:
        """Runs until everything is as it must be, and has been for a while.

        Returns:
            How long it took, as a share of the bound.

        Raises:
            Broken: it was not so within the bound, or something moved after it.
        """
        plan, healed = self.plan, self.now
        bound = plan.settle_bound + self._barred()
        if len(self.alive) == 1:  # it keeps the dead in its roster for as long again
            bound += plan.longest_wait
        quiet = max(t.detection_time + t.lease_duration for t in plan.all_timings()) + 5
        settled_at: Optional[float] = None
        while settled_at is None or self.now < settled_at + quiet:
            self.run(1.0)
            if self.store.lease is not None and self.store.lease.paused:
                self.ask_to_pause(False)  # it may have landed late
                healed = self.now
            late = self.now > max(healed, self.last_boot) + bound
            why = self.unsettled()
            if why is not None or self.judge.moved_at > self.now - 1.0:
                if late:
                    why = why or "a callback has just begun"
                    text = "%.0f s after healing: %s\n%s" % (bound, why, self)
                    raise Broken("liveness", text)
                settled_at = None
            elif settled_at is None:
                settled_at = self.now
        if plan.watched:
            self._watch(bound)
        return (settled_at - max(healed, min(self.last_boot, settled_at))) / bound

    def _barred(self) -> float:
        """A node whose start callback failed is no candidate for a while."""
        failures = max([p.callbacks.failures for p in self.alive] or [0])
        if failures == 0 and not self.plan.raising:
            return 0.0
        return min(10.0 * 2 ** (failures + 1), 300.0)

    def _watch(self, seconds: float) -> None:
        moved_at, boots = self.judge.moved_at, self.last_boot
        self.run(seconds)
        why = self.unsettled()
        if why or (self.judge.moved_at != moved_at and self.last_boot == boots):
            text = "restless long after healing: %s\n%s"
            raise Broken("liveness", text % (why, self))

    def shut_down(self) -> None:
        """Tells every node to stop, and sees that it does, storage or not."""
        self.stopping = True
        if self.dice.chance(0.3):
            self.set_storage(self.dice.pick(("hang", "error")))
        for process in list(self.alive):
            self.ask_to_stop(process)
        longest = self.plan.start_callback[1] + self.plan.stop_callback[1]
        self.run(cluster.LEAVE_TIME + longest + 1.0)
        if self.alive:
            raise Broken("S4", "asked to stop, but still there: %s" % self)


def brief(thing: Any) -> str:
    """A request, lease or heartbeat, as short as a trace needs it."""
    if isinstance(thing, Lease):
        marks = "%s%s" % ("" if thing.started else "?", "!" * thing.released)
        marks += "P" * thing.paused + "D" * thing.step_down
        roster = ["*"] if thing.roster is None else sorted(i[-3:] for i in thing.roster)
        text = "(%d.%d%s of %s with %s)"
        who = thing.holder[-3:], ",".join(roster) or "nobody"
        return text % (thing.term % EPOCH, thing.counter, marks, *who)
    if isinstance(thing, Swap):
        return "Swap(%s -> %s)" % (brief(thing.expected), brief(thing.new))
    if isinstance(thing, cluster.Heartbeat):
        fields = thing._asdict()
        for key in ("sender", "receiver", "holder"):
            fields[key] = fields[key][-3:]
        return " ".join("%s=%s" % (k, v) for k, v in fields.items() if v)
    return repr(thing)[:100]


# --------------------------------------------------------------------------------
# Random faults
# --------------------------------------------------------------------------------

# How often each fault comes in each family; the names are methods of Nemesis
_MIXED = dict(
    cut=1, cut_one_way=1, split=1, isolate=1, heal_network=2, storage_one=1,
    storage_primary=1, storage_all=1, heal_storage=2, crash=1, pause=1, stall=0.3,
    loss=1, slow=1, newcomer=1, leave=1, step_down=0.3, hidden_roster=0.3,
    move=0.3,
    describe=0.5, pause_cluster=0.3, ask_step_down=0.3,
)  # fmt: skip
WEIGHTS: Dict[str, Dict[str, float]] = {
    "mixed": _MIXED,
    "oneway": dict(_MIXED, cut_one_way=4, storage_one=2, storage_primary=2,
                   storage_all=2),  # fmt: skip
    "storage": dict(
        storage_one=2, storage_primary=3, storage_all=3, heal_storage=4, crash=0.7,
        cut_one_way=0.7, heal_network=1, pause=0.5, newcomer=0.7, hidden_roster=1,
        pause_cluster=0.5, ask_step_down=0.3,
    ),  # fmt: skip
    "churn": dict(
        crash=3, leave=2, newcomer=1, twin=0.7, upgrade=0.7, step_down=1, pause=0.5,
        describe=0.5, pause_cluster=0.5, ask_step_down=0.5,
        isolate=0.5, split=0.5, heal_network=2, storage_one=0.5, heal_storage=1, move=1,
    ),  # fmt: skip
    "pauses": dict(
        pause=4, stall=2, pause_primary=3, crash=0.5, cut_one_way=1, isolate=0.5,
        heal_network=1.5, storage_all=0.5, storage_primary=0.5, heal_storage=1,
        pause_cluster=0.5, ask_step_down=0.3,
    ),  # fmt: skip
    # One of the two channels stays whole, so that long callbacks can be told of
    "callbacks": dict(
        step_down=2, leave=1.5, crash=1, isolate=1, cut_one_way=1, heal_network=2,
        newcomer=0.5, pause=0.3, storage_primary=1, storage_all=1, heal_storage=2,
        pause_cluster=0.3, ask_step_down=0.3,
    ),  # fmt: skip
    # The packets stay whole: a store that lies is a fault of its own
    "wipes": dict(
        wipe=1, wipe_lease=1, wipe_nodes=1, roll_back=1.5, step_down=0.5,
        hidden_roster=1, newcomer=1, crash=0.5, leave=0.5, pause_cluster=0.5,
        ask_step_down=0.3,
    ),  # fmt: skip
    # Whoever finds a new store has forgotten the old
    "replaced": dict(
        replace=1, newcomer=1, crash=0.5, leave=0.5, pause=0.3, isolate=0.3, split=0.2,
        heal_network=1, storage_one=0.3, storage_primary=0.3, heal_storage=1,
    ),  # fmt: skip
}


class Nemesis:
    """Does harm at random, for as long as the phase of faults lasts."""

    MAX_NEWCOMERS = 3

    def __init__(self, world: World) -> None:
        self.world = world
        self.dice = world.dice
        self.weights = WEIGHTS[world.plan.family]
        if world.plan.family == "callbacks":
            spared = "storage" if self.dice.chance(0.5) else "network"
            udp = ("cut", "isolate", "network")
            self.weights = {
                fault: weight
                for fault, weight in self.weights.items()
                if ("storage" in fault) != (spared == "storage")
                and (spared != "network" or not any(u in fault for u in udp))
                or "storage" not in fault and not any(u in fault for u in udp)
            }  # fmt: skip
        self.newcomers = 0
        self._replaced_at = -cluster.FOREVER
        self._names = list(world.plan.names)
        for name in self._names:
            late = self.dice.between(0, 60) if self.dice.chance(0.2) else 0
            world.at(late or self.dice.between(0, 5), self._boot_if_absent, name)
        world.at(self.dice.between(5, 15), self._strike)

    def _strike(self) -> None:
        world = self.world
        if world.now >= world.plan.duration:
            return
        world.at(self.dice.between(0, 2 * world.plan.fault_interval), self._strike)
        fault = self.dice.weighted(self.weights)
        if world.alive:
            getattr(self, fault)()

    def _boot_if_absent(self, name: str) -> None:
        world = self.world
        if not world.stopping and not any(p.name == name for p in world.alive):
            world.boot(name)

    def _anybody(self) -> Process:
        return self.dice.pick(self.world.alive)

    def _primary_or_anybody(self) -> Process:
        return (self.world.primaries() or [self._anybody()])[0]

    def _failure(self) -> str:
        return self.dice.pick(("error", "error", "hang", "hang", "hang", "full",
                               "readonly"))  # fmt: skip

    # ---- network

    def cut(self) -> None:
        self.world.cut(self.dice.pick(self._names), self.dice.pick(self._names))

    def cut_one_way(self) -> None:
        source, target = self.dice.pick(self._names), self.dice.pick(self._names)
        self.world.cut(source, target, both=False)

    def split(self) -> None:
        sides = {name: self.dice.chance(0.5) for name in self._names}
        broken = self.dice.chance(0.4)
        for a in self._names:
            for b in self._names:
                if sides[a] and not sides[b]:
                    self.world.cut(a, b)
            if sides[a] and broken:
                self._set_storage(self._failure(), a)

    def isolate(self) -> None:
        name = self._primary_or_anybody().name
        self.world.isolate(name, self.dice.pick(("both", "both", "in", "out")))
        if self.world.plan.family != "callbacks" and self.dice.chance(0.4):
            self._set_storage(self._failure(), name)

    def heal_network(self) -> None:
        self.world.heal_network()

    def loss(self) -> None:
        self.world.network.loss = self.dice.pick((0.1, 0.3, 0.6))
        self.world.note("", "LOSS %.1f", self.world.network.loss)

    def slow(self) -> None:
        self.world.network.slow = self.dice.pick((0.1, 0.5))
        self.world.note("", "SLOW PACKETS %.1f", self.world.network.slow)

    # ---- storage

    def _set_storage(self, mode: str, name: str) -> None:
        if name in self.world.mounts:
            self.world.set_storage(mode, name)

    def storage_one(self) -> None:
        self._set_storage(self._failure(), self.dice.pick(self._names))

    def storage_primary(self) -> None:
        self._set_storage(self._failure(), self._primary_or_anybody().name)

    def storage_all(self) -> None:
        self.world.set_storage(self._failure())

    def heal_storage(self) -> None:
        self.world.set_storage("ok")

    def hidden_roster(self) -> None:
        self.world.note("", "ROSTER UNREADABLE")
        self.world.store.hide_roster()

    def wipe(self, what: str = "all") -> None:
        self.world.note("", "WIPED: %s", what)
        self.world.store.wipe(what)

    def wipe_lease(self) -> None:
        self.wipe("lease")

    def wipe_nodes(self) -> None:
        self.wipe("nodes")

    def replace(self) -> None:
        """Not again before everybody is in the new store."""
        world = self.world
        wait = max(t.lease_duration + t.freeze_limit for t in world.plan.all_timings())
        if world.now > self._replaced_at + 1.5 * wait + 30:
            self._replaced_at = world.now
            world.note("", "STORE REPLACED")
            world.store.replace()

    def roll_back(self) -> None:
        seconds = self.dice.pick((0.5, 2, 10, 30))
        self.world.note("", "ROLLED BACK by %.1f s", seconds)
        self.world.store.roll_back(self.world.now - seconds)

    # ---- processes

    def crash(self) -> None:
        name = self._anybody().name
        self.world.crash(name)
        self.world.at(self.dice.pick((0.1, 1, 5, 30)), self._boot_if_absent, name)

    def leave(self) -> None:
        process = self._anybody()
        self.world.ask_to_stop(process)
        if not self.world.plan.supervised:
            late = self.dice.pick((1, 5, 30))
            self.world.at(late, self._boot_if_absent, process.name)

    def step_down(self) -> None:
        to = self.dice.pick(self._names) if self.dice.chance(0.5) else ""
        self.world.ask_to_step_down(self._primary_or_anybody(), to)

    def pause_cluster(self) -> None:
        self._ask_to_pause(True)
        self.world.at(self.dice.pick((1, 5, 20)), self._ask_to_pause, False)

    def _ask_to_pause(self, paused: bool) -> None:
        if self.world.alive:
            through = self._anybody() if self.dice.chance(0.7) else None
            self.world.ask_to_pause(paused, through)

    def ask_step_down(self) -> None:
        """By an edit of the lease, as a command line does it."""
        to = self._anybody().incarnation if self.dice.chance(0.5) else ""
        if self.world.store.cluster_id is not None:
            self.world.store.edit(step_down=True, successor=to)

    def describe(self) -> None:
        metadata = '{"load":%d}' % int(self.dice.roll() * 100)
        self.world.describe(self._anybody(), metadata)

    def _pause_seconds(self) -> float:
        unit = self.world.plan.common.hb_timeout / 3
        return self.dice.pick((0.5, 1, 2, 5, 10, 30)) * unit

    def pause(self) -> None:
        self._anybody().pause(self._pause_seconds())

    def pause_primary(self) -> None:
        self._primary_or_anybody().pause(self._pause_seconds())

    def stall(self) -> None:
        self._primary_or_anybody().pause(self._pause_seconds(), whole=False)

    def move(self) -> None:
        process = self._anybody()
        delay = self.dice.between(0, process.timings.check_interval)
        self.world.move(process, delay)

    def newcomer(self) -> None:
        if self.newcomers >= self.MAX_NEWCOMERS:
            return
        self.newcomers += 1
        name = "x%d" % self.newcomers
        plan = self.world.plan
        plan.clocks[name] = Clock(self.dice.between(0, 1e5),
                                  1 + DRIFT * self.dice.between(-1, 1))  # fmt: skip
        self._names.append(name)
        self.world.boot(name)
        if plan.family != "callbacks" and self.dice.chance(0.5):
            self.world.isolate(name)

    def twin(self) -> None:
        """Somebody starts a node with a name that lives already."""
        self.world.boot(self._anybody().name, new_port=True)

    def upgrade(self) -> None:
        """A newer version comes up somewhere; from now on it is what is started."""
        versions = self.world.plan.versions
        if versions[0] is not None and len(versions) < 3:
            versions.append("1.%d" % (len(versions) + 9))
            process = self._anybody()
            self.world.note(process, "UPGRADE to %s", versions[-1])
            self.world.ask_to_stop(process)
            self.world.at(2.0, self._boot_if_absent, process.name)


class Result(NamedTuple):
    """What a run came to."""

    seed: int
    broken: Optional[str]  # which promise; None: all were kept
    text: str
    family: str
    virtual: float  # seconds of virtual time
    starts: int
    excused: Dict[str, int]  # overlaps, by the name of their excuse
    settled: float  # how much of the bound healing took


def run_seed(
    seed: int,
    core_class: Any = None,
    say: Optional[Callable[[str], None]] = None,
    verbose: bool = False,
    family: Optional[str] = None,
) -> Result:
    """One random run: faults, healing, the end."""
    plan = Plan.random(Dice(seed * 2 + 1), family)
    world = World(plan, seed * 2, core_class, say, verbose)
    if say is not None:
        say("seed %d: %s, %s" % (seed, plan.family, plan.common))
        for key, value in sorted(vars(plan).items()):
            if key not in ("common", "clocks", "family"):
                say("    %s = %s" % (key, value))
    settled = 0.0
    broken, text = None, "kept"
    try:
        Nemesis(world)
        world.run_until(plan.duration)
        world.heal()
        settled = world.settle()
        world.shut_down()
    except Broken as error:
        broken, text = error.promise, str(error)
        world.note("", "BROKEN %s", text)
    excused = dict(world.judge.one.excused)
    return Result(
        seed, broken, text, plan.family, world.now, world.judge.starts, excused, settled
    )


class Losses(NamedTuple):
    """What packet loss alone did to nodes that all live."""

    false: int  # peers that were taken for lost
    starts: int  # 1: no failover
    packets: float  # a second and node


def measure_losses(
    setting: Tuple[Any, ...],
    loss: float,
    seconds: float,
    seed: int = 0,
    core_class: Any = None,
    nodes: int = 3,
) -> Losses:
    """Lets so much virtual time pass, with that share of all packets lost."""
    world = World(Plan(nodes, common=timings(*setting)), seed, core_class)
    world.boot_all()
    world.wait_for(world.is_settled, 10 * world.plan.common.detection_time)
    world.network.loss = loss
    sent = world.sent
    world.run(seconds)
    packets = (world.sent - sent) / seconds / nodes
    return Losses(world.losses, world.judge.starts, packets)


# --------------------------------------------------------------------------------
# Command line
# --------------------------------------------------------------------------------


class Tally:
    """Adds up results, and prints those that matter at once."""

    def __init__(self, family: Optional[str] = None) -> None:
        self.options = " --family %s" % family if family else ""
        self.failed: List[int] = []
        self.done = self.starts = 0
        self.excused: "collections.Counter[str]" = collections.Counter()
        self.virtual = 0.0
        self.settled = 0.0
        self.began = time.time()
        self.next_seed = 0

    def add(self, result: Result) -> None:
        self.done += 1
        self.starts += result.starts
        self.excused.update(result.excused)
        self.virtual += result.virtual
        self.settled = max(self.settled, result.settled)
        self.next_seed = result.seed + 1
        if result.broken:
            self.failed.append(result.seed)
            print("seed %d (%s) BROKE %s" % (result.seed, result.family, result.text))
            again = "    python tests/simulator.py --replay %d%s"
            print(again % (result.seed, self.options), flush=True)

    def report(self) -> None:
        took = max(time.time() - self.began, 1e-9)
        print(
            "%d runs (%.1f a second), %.0f s of virtual time, %d start callbacks, "
            "slowest healing took %.0f %% of its bound"
            % (self.done, self.done / took, self.virtual, self.starts,
               100 * self.settled)  # fmt: skip
        )
        for excuse, count in sorted(self.excused.items()):
            print("%d overlaps excused: %s" % (count, excuse))
        print("%d failed %s" % (len(self.failed), self.failed or ""))
        print("go on with --first %d%s" % (self.next_seed, self.options))


def run_range(
    first: int, seeds: int, jobs: int, seconds: float, family: Optional[str] = None
) -> Tally:
    """Runs a range of seeds in order, for so many seconds at most."""
    tally = Tally(family)
    run = functools.partial(run_seed, family=family)
    numbers = range(first, first + seeds)
    if jobs <= 1:
        for seed in numbers:
            tally.add(run(seed))
            if time.time() > tally.began + seconds:
                break
        return tally
    batch = 32 * jobs  # so that there is nothing to be broken off in the end
    with multiprocessing.Pool(jobs) as pool:
        for start in range(0, seeds, batch):
            for result in pool.map(run, numbers[start : start + batch], 4):
                tally.add(result)
            if time.time() > tally.began + seconds:
                break
        pool.close()
        pool.join()
    return tally


def report_losses(loss: float, hours: float, seed: int) -> int:
    """Per setting: how many living peers were taken for lost, and failovers."""
    every = [
        (setting, measure_losses(setting, loss, hours * 3600, seed))
        for setting in sorted(set(SETTINGS))
    ]
    for setting, found in every:
        text = "H T M C = %s: %d false losses, %d failovers, %.1f packets a second"
        name = " ".join(map(str, setting))
        print(text % (name, found.false, found.starts - 1, found.packets))
    return 1 if any(found.false for _, found in every) else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=2000, help="how many")
    parser.add_argument("--first", type=int, default=0, help="where to begin")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--seconds", type=float, default=1e9, help="at most")
    parser.add_argument("--family", choices=sorted(FAMILIES), help="only this one")
    parser.add_argument("--replay", type=int, metavar="SEED", help="print one run")
    parser.add_argument("--verbose", action="store_true", help="with every packet")
    parser.add_argument("--loss", type=float, help="only lose this share of packets")
    parser.add_argument("--hours", type=float, default=1.0, help="of it, virtual")
    options = parser.parse_args()
    gc.set_threshold(100_000, 50, 50)  # a sixth of the time else: worlds are cycles
    if options.loss is not None:
        return report_losses(options.loss, options.hours, options.first)
    if options.replay is not None:
        result = run_seed(
            options.replay, None, print, options.verbose, options.family
        )
        print(result.text)
        return 1 if result.broken else 0
    tally = run_range(
        options.first, options.seeds, options.jobs, options.seconds, options.family
    )
    tally.report()
    return 1 if tally.failed else 0


if __name__ == "__main__":
    sys.exit(main())
