"""The promises of the README, asked of the shipped core in virtual time."""

import ast
import inspect
import os
import textwrap
import time

import pytest

import cluster
from simulator import Plan, World, run_seed, timings

SECONDS = float(os.environ.get("CLUSTER_SIM_SECONDS", "20"))
FIRST = int(os.environ.get("CLUSTER_SIM_FIRST", "0"))
SCHEDULES = 200  # at least, however slow the machine is
COMMON = timings()
D = COMMON.detection_time
H = COMMON.hb_interval
C = COMMON.check_interval
R = COMMON.renewal_deadline
L = COMMON.lease_duration


def settled(nodes=3, **plan):
    """A calm cluster with a primary and full views."""
    world = World(Plan(nodes, **plan))
    world.boot_all()
    world.wait_for(world.is_settled, 10 * D)
    world.run(2 * D)
    return world


def starts(world):
    return world.judge.starts


def wait_for_start(world, seconds):
    """Runs until the next start callback begins; returns how long that took."""
    before = starts(world)
    return world.wait_for(lambda: starts(world) > before, seconds)


# ---- the table of what happens when


def test_a_first_node_is_primary_at_once():
    world = World(Plan(1, latency=(0.0005, 0.001)))
    world.boot_all()
    assert world.wait_for(world.is_settled, 1.0) < 0.05


@pytest.mark.parametrize("nodes", [2, 3, 5])
def test_of_several_that_start_at_once_one_becomes_primary(nodes):
    world = World(Plan(nodes))
    world.boot_all()
    assert world.wait_for(lambda: bool(world.primaries()), 2 * H) < 2 * H
    world.run(3 * D)
    assert starts(world) == 1


def test_every_view_shows_a_newcomer_at_once_and_a_leaver_too():
    world = settled()
    everybody = list(world.alive)
    newcomer = world.boot("n9")
    assert world.wait_for(
        lambda: all("n9" in p.core.records for p in everybody), 1.0
    ) < 0.05
    world.ask_to_stop(newcomer)
    assert world.wait_for(
        lambda: all("n9" not in p.core.records for p in everybody), 1.0
    ) < 0.05


def test_an_orderly_stop_hands_over_at_once():
    world = settled()
    world.ask_to_stop(world.primary())
    assert wait_for_start(world, 1.0) < 0.06  # the stop callback takes up to 0.01


@pytest.mark.parametrize("nodes", [2, 3, 5])
def test_after_the_death_of_a_host_the_next_starts_by_the_detection_time(nodes):
    world = settled(nodes)
    world.crash(world.primary().name)
    took = wait_for_start(world, D + 0.1)
    assert D - H - 0.1 < took < D + 0.1


def test_the_kernel_tells_of_a_death_on_the_same_host_at_once():
    names = ("n1", "n2", "n3")
    world = settled(pidfd=True, machines={name: "m" for name in names})
    world.crash(world.primary().name)
    assert wait_for_start(world, 1.0) < 0.02


def test_without_all_udp_the_same_node_stays_primary_and_all_come_back_as_they_were():
    world = settled()
    primary = world.primary()
    numbers = {p.name: p.core.record.join_number for p in world.alive}
    world.cut_all()
    for _ in range(10):
        world.run(D)
        assert world.primary() is primary
    world.heal_network()
    world.settle()
    assert world.primary() is primary and starts(world) == 1
    assert numbers == {p.name: p.core.record.join_number for p in world.alive}


@pytest.mark.parametrize("way", ["both", "out", "in"])
def test_a_primary_that_is_cut_off_alone_is_deposed_and_comes_back_as_a_member(way):
    world = settled()
    primary = world.primary()
    world.isolate(primary.name, way)
    assert wait_for_start(world, D + L + 2 * C) <= D + L + 2 * C
    world.run(3 * D)
    assert world.primary() is not primary and starts(world) == 2
    world.heal_network()
    world.settle()
    assert world.primary() is not primary and starts(world) == 2


def test_of_two_nobody_can_tell_who_is_cut_off_and_the_primary_stays():
    world = settled(2)
    primary = world.primary()
    world.isolate(primary.name)
    world.run(10 * D)
    assert world.primary() is primary and starts(world) == 1


@pytest.mark.parametrize("mode", ["error", "hang", "full", "readonly"])
def test_without_storage_for_all_the_cluster_is_frozen_and_thaws_by_itself(mode):
    world = settled(common=timings(freeze=300.0))
    primary = world.primary()
    everybody = list(world.alive)
    world.set_storage(mode)
    for _ in range(40):
        world.run(5.0)
        assert world.primary() is primary
    world.set_storage("ok")
    world.settle()
    assert world.primary() is primary and starts(world) == 1
    assert world.alive == everybody


def test_no_freeze_outlasts_its_limit():
    world = settled()
    world.set_storage("error")
    world.run(COMMON.freeze_limit + 1)
    assert not world.primaries()


def test_a_member_that_dies_ends_the_freeze():
    world = settled()
    world.set_storage("error")
    world.run(2 * D)
    world.crash(world.others()[0].name)
    world.run(R + H)
    assert not world.primaries()


@pytest.mark.parametrize("mode", ["error", "hang"])
def test_a_primary_that_alone_has_no_storage_hands_over(mode):
    world = settled()
    primary = world.primary()
    world.set_storage(mode, primary.name)
    assert wait_for_start(world, 10 * C) < 2 * C + L
    assert world.primary() is not primary


@pytest.mark.parametrize("mode", ["error", "hang"])
def test_without_storage_and_udp_it_stops_before_others_start(mode):
    world = settled()
    primary = world.primary()
    world.isolate(primary.name)
    world.set_storage(mode, primary.name)
    world.wait_for(lambda: not primary.is_primary, R + 0.1)
    wait_for_start(world, D + L)
    assert world.primary() is not primary


@pytest.mark.parametrize("fault", ["wipe", "roll_back"])
def test_a_store_that_is_wiped_or_rolled_back_gets_a_primary_of_a_higher_term(fault):
    world = settled()
    term = world.primary().core.primacy[0]
    if fault == "wipe":
        world.store.wipe()
    else:
        world.store.roll_back(world.now - D)
    world.wait_for(
        lambda: any(p.core.primacy[0] > term for p in world.primaries()), 2 * L + D
    )
    world.settle()


def test_a_node_that_was_paused_past_its_lease_comes_back_as_a_member():
    world = settled()
    primary = world.primary()
    primary.pause(3 * D)
    wait_for_start(world, D + L)
    world.run(4 * D)
    assert world.primary() is not primary and primary.alive
    world.settle()


def test_older_versions_leave_when_a_newer_one_is_alive():
    world = settled(versions=["1.9"])
    world.boot("new", version="1.10")
    world.wait_for(lambda: [p.name for p in world.alive] == ["new"], 3 * C)
    world.wait_for(lambda: bool(world.primaries()), D + L)
    assert world.primary().name == "new"


def test_after_all_have_died_one_becomes_primary_again():
    world = settled()
    for process in list(world.alive):
        world.crash(process.name)
    world.run(1.0)
    world.boot_all()
    world.wait_for(lambda: bool(world.primaries()), L + COMMON.freeze_limit + D)
    world.settle()


def test_after_all_have_died_on_one_host_one_becomes_primary_at_once():
    world = settled(machines={name: "m" for name in ("n1", "n2", "n3")})
    for process in list(world.alive):
        world.crash(process.name)
    world.boot_all()
    assert wait_for_start(world, D) < 2 * H


def test_half_of_all_packets_lost_cause_no_failover():
    world = settled()
    world.network.loss = 0.5
    world.run(600)
    assert starts(world) == 1


def test_a_node_whose_storage_hangs_still_stops():
    world = settled()
    world.set_storage("hang")
    for process in list(world.alive):
        world.ask_to_stop(process)
    world.run(cluster.LEAVE_TIME + 1)
    assert not world.alive


# ---- random schedules


def test_random_schedules_keep_every_promise():
    began, seed = time.time(), FIRST
    while seed < FIRST + SCHEDULES or time.time() < began + SECONDS:
        result = run_seed(seed)
        assert result.broken is None, (
            "%s\nreplay it: python tests/simulator.py --replay %d" % (result.text, seed)
        )
        seed += 1
    print("%d schedules, seeds %d to %d" % (seed - FIRST, FIRST, seed - 1))


def test_a_seed_is_one_history():
    def history(seed):
        lines = []
        run_seed(seed, say=lines.append)
        return lines

    assert history(7) == history(7)


# ---- the core is pure


def test_the_core_names_no_clock_socket_thread_file_or_chance():
    allowed = {"DEBUG", "INFO", "WARNING", "ERROR"}
    forbidden = {"time", "socket", "threading", "os", "random", "open", "log", "queue",
                 "selectors", "print", "input"}  # fmt: skip
    for part in (cluster.Core, cluster.Peer):
        tree = ast.parse(textwrap.dedent(inspect.getsource(part)))
        names = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name)}
        assert not names & forbidden
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                if node.value.id == "logging":
                    assert node.attr in allowed


# ---- broken cores, to prove that the simulator bites

BROKEN_SEEDS = 400


class StartsWithoutWaiting(cluster.Core):
    def _startable_at(self):
        return -cluster.FOREVER


class TakesAnyVouchForAll(cluster.Core):
    def _frozen_until(self):
        rosters = [self._held.roster or frozenset()]
        vouches = [self._vouch_of(i) for roster in rosters for i in roster]
        return max(vouches, default=-cluster.FOREVER) + self.timings.renewal_deadline


class ClaimsOverALiveHolder(cluster.Core):
    def _claimable_at(self, lease):
        return -cluster.FOREVER

    def _startable_at(self):
        return self._claimed_at


class LetsAnyNewcomerClaimTheStale(cluster.Core):
    def _standing_since(self, lease):
        return -cluster.FOREVER


class GoesOnPastItsLease(cluster.Core):
    def _publish(self):
        super()._publish()
        if self.role is cluster.PRIMARY:
            self.primacy = (self.primacy[0], self._now + 3600)

    def _check_lease(self):
        pass


class SaysStoppedBeforeItHas(cluster.Core):
    def _begin_stop(self, reason, orderly):
        super()._begin_stop(reason, orderly)
        self.record = self.record._replace(stopped_term=self._term())


class RepeatsATerm(cluster.Core):
    def _claimed(self, pending, new):
        super()._claimed(pending, new)
        if self._held is not None and self._deposed.lease is not None:
            self._held = self._held._replace(term=self._deposed.lease.term)


class RunsNoStopCallback(cluster.Core):
    def _begin_stop(self, reason, orderly):
        super()._begin_stop(reason, orderly)
        if self._queue:
            self._queue.clear()
            self._callbacks_over()


class RenewsFromTheAnswer(cluster.Core):
    def _adopt(self, lease, began):
        super()._adopt(lease, self._now)


BROKEN = [  # each with a seed, or a few, that shows it
    (StartsWithoutWaiting, 18), (TakesAnyVouchForAll, 40), (ClaimsOverALiveHolder, 0),
    (LetsAnyNewcomerClaimTheStale, 77), (GoesOnPastItsLease, 2),
    (SaysStoppedBeforeItHas, 0), (RepeatsATerm, 0), (RunsNoStopCallback, 0),
    (RenewsFromTheAnswer, 0),
]  # fmt: skip


@pytest.mark.parametrize("core, first", BROKEN, ids=[c.__name__ for c, _ in BROKEN])
def test_the_simulator_catches_a_core_that(core, first):
    def breaks(seed):
        try:
            broken = run_seed(seed, core).broken
        except (AssertionError, KeyError, TypeError, AttributeError):
            return False  # it crashed, which is not what this asks
        return broken is not None and broken.startswith("S")

    seeds = list(range(first, first + BROKEN_SEEDS)) + list(range(first))
    assert any(breaks(seed) for seed in seeds)
