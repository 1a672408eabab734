"""The promises of the README, asked of the shipped core in virtual time."""

import ast
import inspect
import os
import subprocess
import sys
import textwrap
import time

import pytest

import cluster
import simulator
from cluster import Described, Heard, Heartbeat, NodeRecord, Returned, Swap, Write
from simulator import Broken, Plan, World, run_seed, timings

SECONDS = float(os.environ.get("CLUSTER_SIM_SECONDS", "20"))
FIRST = int(os.environ.get("CLUSTER_SIM_FIRST", "0"))
# at least, however slow the machine is
SCHEDULES = 2000 if SECONDS >= 240 else 200 if SECONDS >= 20 else 50
COMMON = timings()
D = COMMON.detection_time
H = COMMON.hb_interval
C = COMMON.check_interval
R = COMMON.renewal_deadline
L = COMMON.lease_duration


def settled(nodes=3, core=None, seed=0, **plan):
    """A calm cluster with a primary and full views."""
    world = World(Plan(nodes, **plan), seed, core)
    world.boot_all()
    world.wait_for(world.is_settled, 10 * D)
    world.run(2 * D)
    return world


def starts(world):
    return world.judge.starts


def kept(world, why):
    """The first primary is the only one that there was."""
    if starts(world) != 1:
        raise Broken("liveness", why)


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


def test_the_death_of_a_node_whose_work_lives_on_proves_nothing():
    """Also where its last words, which tell of that work, come after the proof."""
    world = settled(2, pidfd=True, machines={"n1": "m", "n2": "m"})
    primary = world.primary()
    world.isolate(primary.name)
    primary.tell(Described(companions=((7, 7),)))
    world.wait_for(lambda: bool(primary.core.written.companions), 1.0)
    (other,) = world.others()
    assert not other.core.records[primary.name].companions
    world.crash(primary.name)
    assert wait_for_start(world, 2 * D) > 0.7 * L
    assert other.core.records[primary.name].companions


@pytest.mark.parametrize("phase", range(12))
def test_without_all_udp_the_same_node_stays_primary_and_all_come_back_as_they_were(
    phase,
):
    # Who beats first when it heals? Two members that hear each other before they
    # hear the primary must not depose it.
    world = World(Plan(3), seed=phase)
    for name in ("n1", "n2", "n3"):
        world.boot(name)
        world.run(H * world.dice.roll())
    world.wait_for(world.is_settled, 10 * D)
    world.run(2 * D)
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


@pytest.mark.parametrize("mode", ["error", "readonly", "hang"])
@pytest.mark.parametrize(
    "setting", [(1, 3, 2, 1), (1, 5, 5, 2), (0.3, 5, 2, 0.1), (1, 30, 2, 1)], ids=str
)
def test_a_primary_that_alone_has_no_storage_hands_over(setting, mode):
    common = timings(*setting, freeze=300.0)
    bound = 2 * common.check_interval + common.renewal_period + 0.1
    if mode == "hang":
        bound += common.renewal_deadline
    for seed in range(4):
        world = settled(seed=seed, common=common)
        primary = world.primary()
        world.run(seed / 4 * common.renewal_period)
        world.set_storage(mode, primary.name)
        assert wait_for_start(world, 60.0) < bound
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


HOURS = float(os.environ.get("CLUSTER_SIM_HOURS", "1"))


@pytest.mark.parametrize("setting", [(1, 3, 2, 1), (1, 5, 5, 2), (5, 10, 2, 2)])
def test_half_of_all_packets_lost_cause_no_failover_and_no_node_is_lost(setting):
    found = simulator.measure_losses(setting, 0.5, HOURS * 3600)
    assert (found.false, found.starts) == (0, 1), found


def test_who_is_dead_costs_each_node_forty_asks_and_no_more():
    nodes = 6
    world = settled(nodes)
    world.crash(world.others()[0].name)
    sent = world.sent
    world.run(D + H)
    asks = world.sent - sent - nodes * (nodes - 1) * (D + H) / H
    assert 30 * (nodes - 1) < asks < 50 * (nodes - 1)
    sent = world.sent
    world.run(D)
    assert world.sent - sent < 1.1 * nodes * (nodes - 1) * D / H + nodes


def test_while_nobody_hears_anybody_and_after_that_there_is_no_storm_of_answers():
    nodes = 6
    world = settled(nodes)
    world.cut_all()
    sent = world.sent
    world.run(D - 3 * COMMON.ask_interval)
    asks = world.sent - sent
    assert asks < nodes * (nodes - 1) * (D / H + 41)
    world.heal_network()
    sent = world.sent
    world.run(H)
    assert world.sent - sent < nodes * (nodes - 1) * 10


def test_a_node_whose_storage_hangs_still_stops():
    world = settled()
    world.set_storage("hang")
    for process in list(world.alive):
        world.ask_to_stop(process)
    world.run(cluster.LEAVE_TIME + 1)
    assert not world.alive


def test_a_store_that_was_replaced_is_joined_once_no_primary_of_the_old_is_left():
    world = settled()
    term = world.primary().core.primacy[0]
    world.store.replace()
    world.wait_for(lambda: not world.primaries(), C + 0.1)
    took = wait_for_start(world, 2 * (L + COMMON.freeze_limit))
    assert took > (L + COMMON.freeze_limit) * 0.9
    world.settle()
    assert world.primary().core.primacy[0] > term


def test_who_meets_a_new_store_while_joining_joins_it_in_the_end():
    # The id is known, and then the first read finds another one
    world = World(Plan(1))
    node = world.boot("n1")
    world.mounts["n1"].holds = (cluster.Read,)
    world.wait_for(lambda: bool(world.mounts["n1"].hung), 1.0)
    world.store.replace()
    world.set_storage("ok")
    world.wait_for(lambda: node.is_primary, 2 * (L + COMMON.freeze_limit) + 1)


def test_a_start_callback_that_raises_is_followed_by_stop_and_another_node():
    world = settled(raising=1.0)
    world.calm = False
    first = world.primary()
    world.ask_to_step_down(first)
    wait_for_start(world, D + 1)  # raises, is stopped, and gives way to the third
    assert wait_for_start(world, 1.0) < 0.1
    world.plan.raising = 0.0
    world.run(60)
    assert len(world.primaries()) == 1


def test_alone_a_node_whose_start_callback_raised_tries_again_soon():
    world = World(Plan(1, raising=1.0))
    world.calm = False
    world.boot_all()
    wait_for_start(world, 1.0)
    assert 1.0 <= wait_for_start(world, 2.0) < 1.2
    assert 2.0 <= wait_for_start(world, 3.0) < 2.2


def test_who_stepped_down_is_no_candidate_for_a_while():
    world = settled(2)
    first = world.primary()
    world.ask_to_step_down(first)
    assert wait_for_start(world, 1.0) < 0.1
    second = world.primary()
    world.run(D / 2)
    world.ask_to_stop(second)
    world.wait_for(lambda: first.is_primary, D)
    world.settle()


# ---- roles: metadata, priority


@pytest.mark.parametrize("which", ["the primary", "a member"])
def test_who_moved_to_another_address_is_heard_there_and_nothing_else_changes(which):
    world = settled()
    moved = world.primary() if which == "the primary" else world.others()[0]
    number, losses = moved.core.record.join_number, world.losses
    world.move(moved, C)  # at the worst time: it has just looked
    world.wait_for(
        lambda: all(p.core.records[moved.name].address == moved.address
                    for p in world.alive if p is not moved), C + 0.05
    )  # fmt: skip
    world.run(3 * D)
    assert world.is_settled() and starts(world) == 1 and world.losses == losses
    assert moved.core.record.join_number == number


def test_who_moved_is_found_without_any_word_by_the_next_look_at_the_storage():
    world = settled()
    moved = world.others()[0]
    world.isolate(moved.name)
    world.move(moved, 0.0)
    world.run(C + 0.1)
    world.heal_network()
    world.run(3 * H)
    assert world.is_settled() and starts(world) == 1


def test_new_metadata_is_seen_by_everybody_at_once():
    world = settled()
    world.describe(world.node("n2"), '{"site":"b"}')
    assert world.wait_for(
        lambda: all(p.core.records["n2"].metadata == '{"site":"b"}'
                    for p in world.alive if p.name != "n2"), 1.0
    ) < 0.05  # fmt: skip


def test_new_metadata_is_seen_without_udp_by_the_next_look_at_the_storage():
    world = settled()
    world.isolate("n2")
    world.describe(world.node("n2"), '{"site":"b"}')
    assert world.wait_for(
        lambda: all(p.core.records["n2"].metadata == '{"site":"b"}'
                    for p in world.alive if p.name != "n2"), 2 * C
    ) < C + 0.1  # fmt: skip


def test_metadata_given_while_joining_is_not_lost():
    world = World(Plan(2))
    first = world.boot("n1")
    world.run(0.0012)  # about to be written, or just written
    world.describe(first, '{"site":"a"}')
    world.boot("n2")
    world.wait_for(world.is_settled, 10 * D)
    assert world.node("n2").core.records["n1"].metadata == '{"site":"a"}'


def test_a_join_that_lands_late_does_not_keep_a_node_from_writing_its_record():
    world = settled(2)
    late = world.boot("n3")
    mount = world.mounts["n3"]
    mount.holds = (cluster.Join,)
    world.wait_for(lambda: bool(mount.hung), 1.0)
    mount.holds = ()
    world.wait_for(lambda: late.joined, max(10.0, 2 * L) + 1)  # the first is given up
    mount.set("ok")
    world.run(1.0)
    world.describe(late, '{"site":"c"}')
    world.settle()


@pytest.mark.parametrize("priorities", [dict(n3=1), dict(n1=-2, n2=-1, n3=-1, n4=3)])
def test_the_candidate_of_the_highest_priority_is_preferred(priorities):
    world = World(Plan(4, priorities=priorities))
    world.boot("n1")  # the first is primary, whatever it prefers
    world.wait_for(lambda: bool(world.primaries()), 1.0)
    for name in ("n2", "n3", "n4"):
        world.boot(name)
    world.wait_for(world.is_settled, 10 * D)
    world.run(2 * D)
    assert world.primary().name == "n1"  # and nobody is pushed out
    world.ask_to_stop(world.primary())
    assert wait_for_start(world, 1.0) < 0.06
    assert world.primary().name == ("n4" if "n4" in priorities else "n3")


def test_who_has_no_priority_is_a_member_and_votes_and_is_never_primary():
    world = settled(3, priorities=dict(n1=None, n2=None))
    assert world.primary().name == "n3"
    assert len(world.store.lease.roster) == 2
    assert "priority is None" in world.node("n1").core.explain()
    world.ask_to_step_down(world.primary())
    assert wait_for_start(world, D + 1) > D - 1  # it was barred, and nobody else may
    world.settle()
    world.isolate("n3")  # two of three have lost it: it is deposed by nobody
    world.run(5 * D)
    assert starts(world) == 2
    world.heal_network()
    world.settle()
    world.crash("n3")
    world.run(5 * D)
    assert not world.primaries() and starts(world) == 2
    for process in world.alive:
        assert "all have the priority None" in process.core.explain_none()
    world.boot("n4")
    wait_for_start(world, L + COMMON.freeze_limit + D)


def test_a_primary_without_storage_hands_over_to_a_candidate_only():
    world = settled(3, priorities=dict(n2=None))
    world.set_storage("error", "n1")
    assert wait_for_start(world, 10 * C) < 2 * C + L
    assert world.primary().name == "n3"


# ---- stepping down for somebody


def for_the_least_preferred(**plan):
    """A primary n1 is to give way to n4, which would be the last to be elected."""
    world = World(Plan(4, priorities=dict(n4=-1), **plan))
    for name in ("n1", "n2", "n3", "n4"):
        world.boot(name)
        world.run(0.05)
    world.wait_for(world.is_settled, 10 * D)
    world.run(2 * D)
    assert world.primary().name == "n1"
    return world


def test_the_named_successor_takes_over_at_once():
    world = for_the_least_preferred()
    world.ask_to_step_down(world.node("n1"), "n4")
    assert wait_for_start(world, 1.0) < 0.06
    assert world.primary().name == "n4"
    world.ask_to_stop(world.node("n4"))  # and the wish is spent
    assert wait_for_start(world, 1.0) < 0.06
    assert world.primary().name == "n2"


def test_who_is_asked_twice_to_step_down_is_no_candidate_all_the_same():
    world = settled(2, stop_callback=(0.5, 0.5))
    first = world.primary()
    world.ask_to_step_down(first)
    world.run(0.2)
    world.ask_to_step_down(first)
    assert wait_for_start(world, 1.0) < 0.5
    assert world.primary() is not first


@pytest.mark.parametrize("channel", ["storage", "udp"])
def test_the_wish_for_a_successor_needs_one_channel_only(channel):
    world = for_the_least_preferred()
    first = world.node("n1")
    world.ask_to_step_down(first, "n4")
    if channel == "udp":
        world.mounts["n1"].holds = (Swap, Write)
    else:
        world.isolate("n1")
    wait_for_start(world, D - 0.1)
    assert world.primary().name == "n4"


@pytest.mark.parametrize("mode", ["error", "hang"])
def test_a_successor_that_does_not_claim_is_waited_for_and_then_another_may(mode):
    world = for_the_least_preferred()
    world.ask_to_step_down(world.node("n1"), "n4")
    world.set_storage(mode, "n4")
    took = wait_for_start(world, D + C)
    assert D - H < took and world.primary().name in ("n2", "n3")


def test_a_successor_that_dies_is_waited_for_no_longer_than_any_other():
    names = ("n1", "n2", "n3", "n4")
    world = for_the_least_preferred(pidfd=True, machines={name: "m" for name in names})
    world.ask_to_step_down(world.node("n1"), "n4")
    world.crash("n4")
    assert wait_for_start(world, 1.0) < 0.06


def test_nobody_steps_down_for_whom_cannot_take_over():
    world = settled(4, priorities=dict(n2=None))
    first = world.primary().core
    world.crash("n3")
    world.run(D + H)
    world.boot("n5", start=False)
    world.run(D)
    expected = dict(
        n1="this node", n2="priority is None", n3="no member", n5="no candidate"
    )
    for name, why in expected.items():
        assert why in first.no_successor(name)
    assert first.no_successor("n4") is None
    world.isolate("n4")
    world.run(D + 0.1)
    assert first.no_successor("n4") in ("it is lost", "it is no member")
    world.ask_to_step_down(world.primary(), "n4")
    world.run(1.0)
    assert world.primary().core is first


# ---- pausing the cluster, and other changes to a lease that another one holds


def lines(said, *words):
    return [line for line in said if all(word in line for word in words)]


def paused(through=None, **plan):
    """A cluster that was paused on a node, or past all of them; all know it."""
    said = []
    world = World(Plan(3, **plan), say=said.append)
    world.boot_all()
    world.wait_for(world.is_settled, 10 * D)
    world.run(2 * D)
    process = world.primary() if through == "primary" else (
        world.others()[0] if through == "member" else None
    )
    world.ask_to_pause(True, process)
    world.run(C + 0.1)
    return world, said


@pytest.mark.parametrize("through", ["primary", "member", None])
def test_in_a_paused_cluster_the_primary_goes_on_and_nobody_succeeds_it(through):
    world, said = paused(through)
    assert len(lines(said, "  the cluster is paused")) == 3  # once on each
    world.run(10 * D)
    assert starts(world) == 1 and world.store.lease.paused
    primary = world.primary()
    assert primary.core.paused and primary.core.explain() == "it is the primary"
    world.crash(primary.name)
    world.run(5 * D)
    assert starts(world) == 1
    for process in world.alive:
        assert "until resume()" in process.core.explain()
        assert "until resume()" in process.core.explain_none()
    world.ask_to_pause(False, world.alive[0] if through else None)
    # the change of the lease is seen by C, and from then the others wait for L
    assert wait_for_start(world, 2 * L) < C + L + 0.1
    world.settle()
    assert len(lines(said, "  the cluster is resumed")) == 2
    assert len(lines(said, "  the cluster is paused")) == 3


def test_a_pause_survives_the_primary_that_stops_and_all_nodes():
    world, said = paused()
    world.ask_to_stop(world.primary())
    world.run(5 * D)
    assert starts(world) == 1 and world.store.lease.released
    for process in list(world.alive):
        world.ask_to_stop(process)
    world.run(D)
    world.boot_all()
    world.run(L + COMMON.freeze_limit + D)
    assert starts(world) == 1 and world.store.lease.paused
    world.ask_to_pause(False)
    wait_for_start(world, C + 0.1)
    world.settle()


def test_a_primary_that_is_cut_off_is_not_deposed_while_the_cluster_is_paused():
    world, said = paused()
    primary = world.primary()
    world.isolate(primary.name)
    world.run(5 * D)
    assert world.primary() is primary and starts(world) == 1


def test_a_primary_without_storage_does_not_hand_over_while_the_cluster_is_paused():
    world, said = paused()
    primary = world.primary()
    world.set_storage("error", primary.name)
    world.run(10 * C)
    assert world.primary() is primary and starts(world) == 1  # frozen
    world.set_storage("ok")
    world.settle()


def test_who_finds_its_lease_edited_counts_on_from_its_own_last_renewal():
    world = settled(common=timings(freeze=0.0))
    primary = world.primary()
    world.set_storage("readonly", primary.name)  # it can look, and not renew
    world.run(0.7)
    deadline = primary.core.primacy[1]
    world.ask_to_pause(True)
    world.ask_to_pause(False)
    world.wait_for(lambda: primary.core._held.counter > cluster.EDIT_STEP, R)
    assert primary.core.primacy[1] == deadline
    world.wait_for(lambda: not primary.is_primary, R)


def test_an_edit_that_races_with_renewals_is_found_and_built_upon():
    world = settled()
    for number in range(50):
        world.run(world.dice.between(0.1, 1.3))
        world.ask_to_pause(number % 2 == 0)
    world.run(L)
    assert starts(world) == 1 and not world.store.lease.paused
    world.settle()


def test_an_edit_is_found_where_calls_take_longer_than_the_renewal_period():
    world = settled(latency=(0.31, 0.31))
    primary = world.primary()
    world.ask_to_pause(True, primary)
    world.wait_for(lambda: primary.core._held.paused, 2 * L)
    world.run(COMMON.freeze_limit + D)
    assert primary.is_primary and starts(world) == 1


def test_an_edit_while_the_primary_stops_does_not_keep_it_from_releasing():
    world = settled(stop_callback=(1.0, 1.0), long_callbacks=True)
    world.ask_to_step_down(world.primary())
    world.run(0.9)
    world.mounts["n1"].swap_reply_delay = 0.3
    world.ask_to_pause(True)
    world.run(0.1)
    world.ask_to_pause(False)
    assert wait_for_start(world, L) < 2 * C


def test_without_a_lease_there_is_nothing_to_pause():
    said = []
    world = World(Plan(1), say=said.append)
    node = world.boot("n1", start=False)
    world.run(1.0)
    world.ask_to_pause(True, node)
    world.run(1.0)
    assert lines(said, "pause or resume: there is no lease")
    world.set_storage("hang")
    world.ask_to_pause(True, node)
    world.run(20.0)
    assert lines(said, "pause or resume: the storage does not return")


def test_the_lease_may_ask_its_holder_to_step_down():
    world = for_the_least_preferred()
    world.store.edit(step_down=True, successor=world.node("n4").incarnation)
    assert wait_for_start(world, C) < C
    assert world.primary().name == "n4" and not world.store.lease.step_down
    world.store.edit(step_down=True)
    assert wait_for_start(world, C) < C
    assert world.primary().name == "n2"
    world.store.edit(step_down=True, successor="f" * 16)
    world.run(D)
    assert world.primary().name == "n2" and not world.store.lease.step_down


def test_a_slow_stop_callback_delays_the_successor_and_does_not_meet_it():
    world = settled(long_callbacks=True, stop_callback=(6.0, 6.0))
    world.isolate(world.primary().name)
    assert wait_for_start(world, D + COMMON.stop_timeout + L) > 6.0


def test_a_stop_callback_that_never_ends_delays_the_successor_by_the_stop_timeout():
    world = settled(long_callbacks=True, stop_callback=(1e6, 1e6))
    world.isolate(world.primary().name)
    took = wait_for_start(world, D + COMMON.stop_timeout + L)
    assert took > COMMON.stop_timeout


def test_a_second_node_of_a_living_name_fails_to_join():
    world = settled()
    twin = world.boot("n2", new_port=True)
    world.wait_for(lambda: not twin.alive, 1.0)
    assert twin.ended == "failed to join"
    assert world.is_settled() and starts(world) == 1


def test_who_cannot_answer_loses_its_name_and_exits():
    world = settled()
    old = world.others()[0]
    world.isolate(old.name)
    world.network.cuts[old.name, old.name] = True  # the two do not hear each other
    new = world.boot(old.name, new_port=True)
    world.wait_for(lambda: not old.alive, 5 * D)
    world.heal_network()
    world.settle()
    assert old.ended == "finished" and new.alive


def test_a_primary_that_finds_itself_paused_reads_false_and_stops_at_once():
    world = settled()
    primary = world.primary()
    term = primary.core.primacy[0]
    primary.pause(R + 0.1)
    world.run(R + 0.1 + 0.0001)
    assert not primary.is_primary
    world.run(0.05)
    assert world.judge.one.active.get(primary) != term


def test_a_start_that_comes_too_late_is_skipped_with_its_stop():
    # The process is stopped between the decision and the callback
    world = World(Plan(1))
    node = world.boot("n1")
    world.wait_for(lambda: node.core.role == cluster.PRIMARY, 1.0)
    term = node.core.primacy[0]
    node.pause(R + 1.0)
    took = wait_for_start(world, 2 * R + 2)
    assert took > R and world.judge.one.active[node] > term
    world.run(D)
    assert starts(world) == 1 and node.is_primary


def test_a_stalled_heartbeat_thread_lets_nobody_read_true_past_the_lease():
    world = settled()
    primary = world.primary()
    primary.pause(D + L, whole=False)
    world.run(R + 0.1)
    assert not primary.is_primary
    world.run(2 * D + L)
    world.settle()


def test_a_claim_with_an_unknown_outcome_is_claimed_again():
    world = World(Plan(1))
    node = world.boot("n1", start=False)
    world.run(1.0)
    world.mounts["n1"].set("readonly")
    node.tell(cluster.StartAsked())
    world.run(5.0)
    assert not node.is_primary
    world.set_storage("ok")
    world.wait_for(lambda: node.is_primary, 2 * C)


def test_a_record_of_the_dead_that_lands_late_is_removed_again():
    world = settled()
    member = world.others()[0]
    world.mounts[member.name].holds = (Write,)
    world.store.wipe("nodes")
    world.wait_for(lambda: bool(world.mounts[member.name].hung), 3 * C)
    world.crash(member.name)
    world.run(2 * D)
    world.set_storage("ok")
    world.run(2 * D)
    assert world.is_settled()


def test_who_was_cut_off_and_came_back_by_record_only_is_removed_once_it_is_dead():
    world = settled()
    primary, member = world.primary(), world.others()[0]
    world.isolate(member.name)
    world.wait_for(lambda: member.name not in primary.core.records, 2 * D)
    world.wait_for(lambda: member.name in primary.core.records, 3 * C)
    for _ in range(40 * int(D)):  # it is dropped once, however long this lasts
        world.run(1.0)
        assert member.name in primary.core.records
    world.crash(member.name)
    world.run(6 * D)
    assert world.is_settled()


def test_living_nodes_write_their_records_back():
    world = settled()
    numbers = {p.name: p.core.record.join_number for p in world.alive}
    world.store.wipe("nodes")
    world.run(3 * C)
    assert world.is_settled() and starts(world) == 1
    assert numbers == {p.name: p.core.record.join_number for p in world.alive}


def test_a_ghost_of_a_newer_version_sends_nobody_home():
    world = World(Plan(2, versions=["1.9"]))
    world.store.cluster_id = "%016x" % 1
    dead = world.boot("ghost", version="2.0")
    world.wait_for(lambda: dead.joined, 1.0)
    world.crash("ghost")
    nodes = world.boot_all()
    world.wait_for(world.is_settled, 2 * (L + COMMON.freeze_limit))
    assert world.alive == nodes


def test_nodes_with_different_timings_respect_the_holders():
    slow = timings(1, 5, 3, 2, lease=9.0)
    for holder in ("n1", "n2"):
        world = World(Plan(3, timings={"n1": slow}))
        world.boot(holder)
        world.wait_for(lambda: bool(world.primaries()), 1.0)
        world.boot("n1" if holder == "n2" else "n2")
        world.boot("n3")
        world.wait_for(world.is_settled, 10 * D)
        world.run(5.0)
        primary = world.primary()
        assert primary.name == holder
        world.isolate(holder)
        world.set_storage("hang", holder)
        wait_for_start(world, 30.0)
        world.heal()
        world.settle()


def test_a_claimant_that_hears_of_another_holder_of_its_term_takes_a_higher_one():
    # Only a register that was wiped within a second of a claim has two of one term
    world = settled()
    world.isolate(world.primary().name)
    everybody = world.others()

    def claimants():
        return [p for p in everybody if p.core.role == cluster.CLAIMANT]

    world.wait_for(lambda: bool(claimants()), D + C)
    (claimant,) = claimants()
    teller = [p for p in everybody if p is not claimant][0]
    term = claimant.core.lease.term
    heartbeat = cluster.Heartbeat(
        teller.incarnation, claimant.incarnation, 10**9, 0, term, 1, "%016x" % 7, True
    )
    claimant.tell(cluster.Heard(heartbeat, teller.address))
    assert claimant.core.role == cluster.MEMBER
    world.wait_for(lambda: any(
        p.is_primary and p.core.primacy[0] > term for p in everybody), 3 * (D + L))


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


@pytest.mark.parametrize("seed", [1075008, 1083977, 1084437])
def test_seeds_that_once_failed(seed):
    """A lone survivor, a second roll-back, a join of the dead that landed late."""
    assert run_seed(seed).broken is None


def test_a_seed_is_one_history():
    def history(seed):
        lines = []
        run_seed(seed, say=lines.append)
        return lines

    assert history(7) == history(7)


def test_a_seed_is_one_history_whatever_the_hash_seed():
    def history(hash_seed):
        command = [sys.executable, simulator.__file__, "--replay", "9", "--verbose"]
        environment = dict(os.environ, PYTHONHASHSEED=hash_seed)
        return subprocess.check_output(command, env=environment)

    one = history("1")
    assert one == history("2") and one.count(b"\n") > 100


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


# ---- claims whose outcome is not what it seems


def let_land(mount):
    """What was held is carried out now."""
    hung, mount._hung, mount.holds = mount._hung, [], ()
    for each in hung:
        mount._land(*each, 0.001)


def a_stop_callback_longer_than_a_lease_shorter_than_an_interval(core):
    """Notices that its callbacks run count for a lease, so they come more often."""
    common = cluster.Timings(1.0, 3.0, 2, 1.0, 0.5, 20.0, 30.0)
    world = settled(core=core, common=common, long_callbacks=True,
                    stop_callback=(6.0, 6.0))  # fmt: skip
    world.isolate(world.primary().name)
    world.run(common.detection_time + 10.0)


def a_claim_that_landed_and_is_told_lost(core):
    """Its claimant vouches for nobody until it has read who won."""
    for lands_late in (False, True):
        world = settled(core=core, common=timings(freeze=300.0), pidfd=True,
                        machines=dict(n1="1", n2="2", n3="3", n9="2"))  # fmt: skip
        primary, mount = world.primary(), world.mounts["n2"]
        assert primary.name == "n1"
        plain, claims, told_lost = mount.call, [], []

        def call(process, call_id, request):
            if type(request) is not Swap or request.new.started or told_lost:
                plain(process, call_id, request)
                return
            claims.append(request)
            if lands_late and len(claims) == 1:
                world.set_storage("hang", "n1")
                world.at(0.001, process.tell, Returned(call_id, None, "I/O error"))
                return
            assert world.store.apply(claims[0])
            mount.holds = (cluster.Read,)
            world.at(0.001, process.tell, Returned(call_id, False))
            told_lost.append(request)

        mount.call = call
        world.set_storage("hang", "n3")
        world.isolate("n1")
        world.wait_for(lambda: told_lost, 3 * D)
        world.set_storage("hang", "n1")
        world.heal_network()
        world.run(0.2)
        world.boot("n9")
        world.isolate("n9")
        world.run(8.0)
        world.crash("n2")  # the kernel tells the newcomer on its host
        world.run(5.0)


def a_claim_over_a_wiped_register_that_takes_long(core):
    """Its claimant knows the primary that the register has forgotten."""
    world = settled(core=core, common=timings(freeze=300.0))
    primary = world.primary()
    claimant, other = world.others()
    world.isolate(primary.name)
    world.set_storage("hang", other.name)
    world.run(D - 1.5)
    world.store.wipe("lease")
    world.set_storage("hang", primary.name)
    mount = world.mounts[claimant.name]
    mount.holds = (Swap,)
    world.wait_for(lambda: any(type(r) is Swap for r in mount.hung), 2 * D)
    world.heal_network()
    world.run(1.7)
    world.isolate(primary.name)
    let_land(mount)
    world.run(6.0)


def a_vouch_of_one_whose_callbacks_still_run(core):
    """Primary once more, it waits for the successor that went on by its vouch."""
    world = settled(2, core=core, common=timings(freeze=300.0, stop=2.0),
                    long_callbacks=True, latency=(0.0005, 0.001))  # fmt: skip
    first, second = world.primary(), world.others()[0]
    first.callbacks._seconds = lambda action: 1e6 if action.kind == "stop" else 0.01
    second.callbacks._seconds = lambda action: 0.5
    world.ask_to_step_down(first)
    world.run(3.0)
    world.isolate(first.name)
    world.wait_for(lambda: second.is_primary, 60.0)
    world.heal_network()
    world.run(5.0)
    world.cut(first.name, second.name, both=False)
    peer = first.core.peers[second.incarnation]
    while first.clock.local(world.now) <= peer.heard + D - 1.3:
        world.run(0.01)
    lost_at = first.clock.true(peer.heard + D)
    world.set_storage("hang", second.name)
    world.run_until(lost_at - 0.06)
    world.network.cuts.pop((first.name, second.name), None)
    world.run(0.0)
    world.network.cut(second.name, first.name)
    first.core._next_beat = first.clock.local(world.now)
    first.tell_time()
    world.run(0.02)
    world.network.cut(first.name, second.name)
    world.run_until(lost_at + 0.1)
    first.callbacks._end()
    world.run(6.0)


def a_claimant_that_cannot_read(core):
    world = settled(core=core, common=timings(freeze=20.0))
    term = world.store.lease.term
    world.crash(world.primary().name)
    world.wait_for(lambda: world.store.lease.term != term, 3 * D)
    mount = world.mounts[world.by_incarnation[world.store.lease.holder].name]
    mount._is_refused = lambda request: type(request) is cluster.Read
    mount.set("unreadable")
    wait_for_start(world, 3 * D + 2 * L)


def a_claim_that_landed_and_was_never_told(core):
    """The claimant is heard, and its storage is gone for good."""
    for mode in ("hang", "error"):
        world = settled(core=core, common=timings(freeze=20.0))
        landed = []
        for process in world.others():
            mount = world.mounts[process.name]

            def call(process, call_id, request, mount=mount, plain=mount.call):
                if type(request) is not Swap or request.new.started or landed:
                    plain(process, call_id, request)
                    return
                landed.append(process)
                assert world.store.apply(request)
                mount.set(mode)
                if mode == "error":
                    world.at(0.01, process.tell, Returned(call_id, None, "I/O error"))

            mount.call = call
        world.crash(world.primary().name)
        wait_for_start(world, 4 * D + 2 * L)


def a_stop_callback_that_hangs_on_a_node_that_is_heard(core):
    world = settled(core=core, long_callbacks=True, stop_callback=(1e6, 1e6))
    primary = world.primary()
    world.ask_to_step_down(primary)
    wait_for_start(world, 2 * primary.timings.stop_timeout + 2 * L + C)


def a_full_disk_and_a_member_that_dies(core):
    """The smaller roster needs a new file: it is told once there is room."""
    for dies in (True, False):
        world = settled(core=core)
        member = world.others()[0]
        world.set_storage("full")
        world.run(2 * D)
        if dies:
            world.crash(member.name)
        else:
            world.isolate(member.name)
        world.run(4 * D)
        kept(world, "a full disk ended the primary")
        world.set_storage("ok")
        world.heal_network()
        world.settle()


def an_admission_that_fails_in_an_outage(core):
    """Whoever may be in the roster is asked for a vouch as well."""
    common = timings(1.0, 5.0, 2, 1.0, lease=2.4, freeze=300.0)
    for phase in (0.0, 0.3, 0.6):
        world = settled(2, core=core, common=common)
        world.run(phase)
        newcomer = world.boot("n9")

        def refused(request):
            if type(request) is not Swap or newcomer.incarnation not in (
                request.new.roster or ()
            ):
                return False
            world.at(0.0, world.set_storage, "hang")
            return True

        primary = world.primary()
        mount = world.mounts[primary.name]
        mount._is_refused = refused
        mount.set("no admission")
        world.run(10 * D)
        if not primary.is_primary:
            raise Broken("liveness", "a frozen primary did not ask everybody")


def a_store_that_is_wiped_before_a_join(core):
    world = World(Plan(1), 0, core)
    world.boot_all()
    mount = world.mounts["n1"]
    mount.holds = (cluster.Join,)
    world.wait_for(lambda: mount.hung, 1.0)
    world.store.wipe("all")
    let_land(mount)
    world.wait_for(world.primaries, 5 * D + 2 * L)


def news_that_comes_during_a_read(core):
    for phase in range(30):
        world = settled(core=core, common=timings(1.0, 5.0, 5, 10.0))
        writer, reader = world.node("n2"), world.node("n3")
        world.mounts["n3"].slowness = 0.1
        world.run(15.0)
        due = reader.core._read_began + 10.0 - reader.clock.local(world.now)
        world.run(due % 10.0 + phase * 0.005)
        news = '{"load":%d}' % phase
        world.describe(writer, news)
        world.wait_for(lambda: reader.core.records["n2"].metadata == news, 1.0)


def one_read_that_takes_long(core):
    common = cluster.Timings(0.5, 1.5, 2, 0.5, 1.5, 300.0, 60.0)
    for phase in range(10):
        world = World(Plan(1, common=common), 0, core)
        world.boot_all()
        world.wait_for(world.is_settled, 10.0)
        world.run(5.0 + phase * 0.05)
        mount, slow = world.mounts[world.primary().name], []

        def call(process, call_id, request, mount=mount, plain=mount.call):
            if type(request) is not cluster.Read or slow:
                plain(process, call_id, request)
                return
            slow.append(request)
            world.at(1.5, mount._land, process, call_id, request, 0.001)

        mount.call = call
        world.run(10.0)
        kept(world, "one read ended the primary")


def an_answer_that_comes_once_the_name_is_taken(core):
    """Either the newcomer is refused, or the former one goes: never both."""
    world = settled(2, core=core)
    old = world.primary()
    old.pause(3.02)  # it is asked for 3 s
    twin = world.boot(old.name, new_port=True)
    world.run(2.9)
    world.mounts[old.name].slowness = 0.3
    world.run(10.0)
    if old.ended and twin.ended:
        raise Broken("liveness", "both are gone")


# ---- broken cores, to prove that the simulator bites
#
# Each rule of the protocol that is turned off has a schedule that needs it. The
# shipped core runs through the same schedule unharmed.


def a_primary_that_is_cut_off_by_udp(core):
    world = settled(core=core, stop_callback=(0.7, 0.7))
    world.isolate(world.primary().name)
    world.run(D + 3 * L)


def a_primary_that_is_cut_off_by_udp_with_long_callbacks(core):
    world = settled(core=core, long_callbacks=True, stop_callback=(6.0, 6.0))
    world.isolate(world.primary().name)
    world.run(D + 3 * L)


def a_primary_that_is_cut_off_altogether(core):
    world = settled(core=core, stop_callback=(0.7, 0.7))
    primary = world.primary().name
    world.isolate(primary)
    world.set_storage("hang", primary)
    world.run(D + 3 * L)


def a_primary_without_storage_that_is_not_heard_and_then_hears_nobody(core):
    world = settled(2, core=core, common=timings(freeze=300.0), stop_callback=(0.7, 0.7))
    primary, member = world.primary().name, world.others()[0].name
    world.set_storage("hang", primary)
    world.cut(primary, member, both=False)
    world.run(D - 0.3)
    world.isolate(primary)
    world.run(D + 3 * L)


def a_primary_that_is_cut_off_by_udp_and_cannot_read(core):
    world = settled(core=core, stop_callback=(0.7, 0.7))
    primary = world.primary()
    mount = world.mounts[primary.name]
    mount._is_refused = lambda request: type(request) is cluster.Read
    mount.set("unreadable")
    world.isolate(primary.name)
    world.run(2 * D + 3 * L)
    if primary.is_primary:
        raise Broken("liveness", "it renews over the claims of the others")


def a_frozen_primary_that_one_of_its_roster_has_lost(core):
    world = settled(core=core, common=timings(freeze=300.0))
    primary, member = world.primary().name, world.others()[0].name
    world.set_storage("hang")
    world.run(2 * D)
    world.cut(primary, member)
    world.run(D)
    world.set_storage("ok", member)
    world.run(D + 3 * L)


def a_frozen_primary_and_a_newcomer_that_hears_nobody(core, freeze=300.0):
    world = settled(core=core, common=timings(freeze=freeze))
    world.set_storage("hang")
    world.boot("n9")
    world.isolate("n9")
    world.run(freeze if freeze < 60 else 60)
    world.run(D + 3 * L)


def the_same_up_to_the_freeze_limit(core):
    a_frozen_primary_and_a_newcomer_that_hears_nobody(core, freeze=5.0)


def a_claim_that_lands_after_its_claimant_has_heard_the_holder_again(core):
    world = settled(core=core, common=timings(freeze=300.0))
    primary = world.primary()
    claimant, bystander = world.others()
    world.mounts[claimant.name].holds = (Swap,)
    world.set_storage("hang", bystander.name)
    world.isolate(primary.name)
    world.wait_for(lambda: bool(world.mounts[claimant.name].hung), 2 * D)
    world.set_storage("hang", primary.name)
    world.heal_network()
    world.run(R - 0.6)  # a vouch now carries the holder past the wait of the claimant
    world.isolate(primary.name)
    world.set_storage("ok", claimant.name)
    world.run(3 * L)


def an_admission_that_lands_unknown_to_the_holder(core):
    world = settled(2, core=core, common=timings(freeze=300.0))
    primary, member = world.primary(), world.others()[0]
    # The swap that admits the newcomer is applied, and no reply ever comes
    newcomer = world.boot("n9")
    world.wait_for(lambda: newcomer.joined, 1.0)
    world.mounts[primary.name].swap_reply_delay = 1e6
    lease = world.store.lease
    world.wait_for(lambda: newcomer.incarnation in world.store.lease.roster, 2 * C)
    assert newcomer.incarnation not in lease.roster
    world.set_storage("hang", primary.name, member.name)
    world.cut(primary.name, "n9")
    world.run(2 * D + 3 * L)


def a_claim_over_one_that_was_never_started(core):
    world = settled(core=core, stop_callback=(0.7, 0.7))
    primary = world.primary()
    world.isolate(primary.name)

    def claimants():
        return [p for p in world.alive if p.core.role == cluster.CLAIMANT]

    world.wait_for(lambda: bool(claimants()), D + C)
    world.set_storage("hang", primary.name)
    world.ask_to_stop(claimants()[0])  # releases what it never started
    world.run(3 * L)


def a_reply_that_comes_late(core):
    for phase in range(6):
        world = settled(core=core, stop_callback=(0.8, 0.8))
        world.run(phase * C / 6)
        primary = world.primary()
        world.isolate(primary.name)
        world.run(D - L - 0.2)
        mount = world.mounts[primary.name]
        mount.swap_reply_delay = R - COMMON.renewal_period - 0.1
        counter = world.store.lease.counter
        world.wait_for(lambda: world.store.lease.counter > counter, 1.0)
        mount.holds = (Swap,)
        world.run(D + 3 * L)


def a_reply_that_comes_while_nobody_looks_at_the_clock(core):
    for throws in range(8):  # in which order is it told of what came meanwhile?
        world = settled(1, core=core)
        primary = world.primary()
        mount = world.mounts[primary.name]
        mount.swap_reply_delay = R - COMMON.renewal_period - 0.05
        counter = world.store.lease.counter
        world.wait_for(lambda: world.store.lease.counter > counter, 1.0)
        world.run(0.9)
        for _ in range(throws):
            world.dice.roll()
        primary.pause(0.7)  # in which the lease ends, and a success comes in
        world.run(L)


def an_orderly_stop_with_a_slow_callback(core):
    world = settled(core=core, stop_callback=(0.7, 0.7))
    world.ask_to_stop(world.primary())
    wait_for_start(world, 2.0)
    world.run(1.0)


def a_wiped_register_under_a_frozen_primary(core):
    world = settled(core=core, common=timings(freeze=300.0))
    world.set_storage("hang", world.primary().name)
    world.store.wipe("lease")
    world.run(3 * L)


def a_wiped_register_and_a_newcomer_that_hears_nobody(core):
    world = settled(core=core, stop_callback=(0.7, 0.7))
    world.run(L / 10)
    world.store.wipe("lease")
    world.boot("n9")
    world.isolate("n9")
    world.run(3 * D)


def a_register_rolled_back_to_a_lease_of_the_dead(core):
    world = settled(core=core, common=timings(freeze=300.0), stop_callback=(0.7, 0.7),
                    machines={"n1": "m", "n2": "m", "n3": "m", "n9": "m"})  # fmt: skip
    world.crash(world.primary().name)
    world.wait_for(lambda: len(world.primaries()) == 1, D)
    world.run(5.0)
    world.set_storage("hang", *[p.name for p in world.alive])
    world.store.roll_back(world.now - 10.0)
    world.boot("n9")
    world.run(3 * D)


def a_newcomer_that_hears_of_a_lease_while_it_claims_the_wiped_register(core):
    for phase in range(6):
        world = settled(core=core, stop_callback=(0.8, 0.8),
                        common=timings(freeze=300.0))  # fmt: skip
        world.set_storage("hang", world.primary().name)
        world.store.wipe("lease")
        world.store.wipe("nodes")
        world.run(phase * C / 6)
        newcomer = world.boot("n9")
        world.mounts["n9"].swap_reply_delay = 0.5
        world.wait_for(lambda: newcomer.core.role == cluster.CLAIMANT, 3 * D)
        world.run(3 * L)


def a_register_rolled_back_before_a_newcomer_comes(core):
    world = World(Plan(2), core_class=core)
    for name in ("n1", "n2"):
        node = world.boot(name)
        world.wait_for(lambda: bool(world.primaries()), 1.0)
        world.run(D)
        world.ask_to_stop(node)
        world.run(1.0)
    world.store.roll_back(world.now - D - 1.5)
    world.boot("n3")
    world.run(3 * D)


def a_store_that_is_wiped_and_refuses_renewals(core):
    world = settled(1, core=core, common=timings(5, 10, 2, 2, lease=5.0))
    world.run(0.5)
    world.store.wipe()
    world.run(2 * C)
    if world.store.cluster_id is None:
        raise Broken("liveness", "the holder does not find that its store was wiped")


def a_cut_off_primary_whose_members_have_no_storage_for_a_while(core):
    world = settled(core=core, common=timings(freeze=300.0))
    primary = world.primary()
    world.isolate(primary.name)
    world.set_storage("hang", *[p.name for p in world.others()])
    world.run(D + 2 * H + 0.5)
    world.set_storage("ok")
    wait_for_start(world, D + L + 4 * C)


def a_cut_off_primary_whose_members_have_no_storage_for_long(core):
    world = settled(core=core, common=timings(freeze=60.0))
    world.isolate(world.primary().name)
    world.set_storage("hang", *[p.name for p in world.others()])
    world.run(D + L + COMMON.freeze_limit)
    world.set_storage("ok")
    wait_for_start(world, D + L + 4 * C)


def a_cut_off_claimant_that_cannot_read_the_roster(core):
    world = settled(5, core=core)
    world.crash(world.primary().name)
    world.store.hide_roster()
    claimant, *others = world.others()
    world.isolate(claimant.name)
    world.set_storage("hang", *[p.name for p in others])
    wait_for_start(world, D + L + COMMON.freeze_limit + D)
    world.set_storage("ok")
    wait_for_start(world, 2 * D + L)
    assert claimant not in world.primaries()


def slow_callbacks_of_a_primary_whose_record_was_never_read(core):
    for phase in (-2.0, -0.5, -0.2, 0.2, 2.0):
        world = settled(2, core=core, common=timings(freeze=0.0, stop=30.0),
                        long_callbacks=True, stop_callback=(12.0, 12.0))  # fmt: skip
        first, member = world.primary(), world.others()[0]
        world.boot("n3", start=False)  # by it the member hears of the newcomer's lease
        world.run(D)
        world.set_storage("hang", member.name)
        world.run(2 * D)
        newcomer = world.boot("n9")
        world.run(2 * H)
        world.ask_to_stop(first)
        world.wait_for(lambda: newcomer.is_primary, 20.0)
        world.run(H)
        world.set_storage("hang", "n9")
        world.run(D + L + phase)
        world.set_storage("ok", member.name)
        world.run(2 * D)


def a_storage_that_is_back_for_a_moment(core):
    """The members have offered by then, and the primary had no time to renew."""
    common = timings(0.3, 5.0, 2, 1.0, freeze=300.0)
    world = settled(nodes=5, core=core, common=common)
    for back in (0.2, 0.4, 0.6, 0.8):
        for phase in range(8):
            world.set_storage("error")
            world.run(10.0 + phase / 8)
            world.set_storage("ok")
            world.run(back)
            world.set_storage("error")
            world.run(10.0)
            world.set_storage("ok")
            world.run(5.0)
    kept(world, "the end of an outage is no reason to hand over")


def the_end_of_an_outage(core):
    world = settled(core=core, common=timings(freeze=300.0))
    for kind in ("readonly", "error", "hang"):
        world.set_storage(kind)
        world.run(20.0)
        world.set_storage("ok", *[p.name for p in world.others()])
        world.run(C)
        world.set_storage("ok")
        world.run(20.0)
    kept(world, "the end of an outage is no reason to hand over")


def an_outage_that_leaves_the_storage_of_the_primary_slow(core):
    """Its first renewal since then is still under way when others have offered."""
    common = timings(0.3, 5.0, 2, 0.5, freeze=300.0)
    for phase in range(16):
        world = settled(core=core, common=common)
        world.set_storage("error")
        world.run(20.0 + phase / 16 * common.renewal_period)
        world.mounts[world.primary().name].slowness = 1.0  # R/3 is 1.1
        world.set_storage("ok")
        world.run(10.0)
        kept(world, "the end of an outage is no reason to hand over")


def a_renewal_that_landed_and_reads_that_are_given_up(core):
    world = settled(seed=3, core=core, common=timings(1.0, 5.0, 5, 2.0, freeze=300.0))
    world.set_storage("error")  # of those that failed, one lands late
    world.run(20.0)
    world.mounts[world.primary().name].slowness = 1.17  # R/3 is 1.1
    world.set_storage("ok")
    world.run(400.0)
    kept(world, "it had renewed its lease, and could have known")


def forge(world, sender, ahead, counter, holder="f" * 16):
    """Tells all but the sender of a lease that is not, in the sender's name.

    With the holder None, each is told that it is the holder itself.
    """
    term = world.store.lease.term + ahead
    for target in world.alive:
        if target is not sender:
            peer = target.core.peers[sender.incarnation]
            target.tell(Heard(Heartbeat(
                sender.incarnation, target.incarnation, peer.newest + 1,
                target.core._sent, term, counter, holder or target.incarnation,
                started=True,
            ), sender.address))  # fmt: skip


def next_to_beat(world):
    """The member that sends the next heartbeat."""

    def due(process):
        return process.core._next_beat - process.clock.local(world.now)

    return min(world.others(), key=due)


FORGED = [(2**62, 1), (2**39, 1), (1, 1), (0, 2**40)]


def a_forged_term_and_a_living_primary(core):
    """Neither does anybody depose it, nor does the freeze end."""
    for ahead, counter in FORGED:
        for who in ("dead", "member", "primary"):
            world = settled(4, core=core)
            sender = {"primary": world.primary(), "member": world.others()[0],
                      "dead": world.others()[1]}[who]  # fmt: skip
            if who == "dead":
                world.crash(sender.name)
                world.run(2 * D)
            for _ in range(3):
                forge(world, sender, ahead, counter)
                world.run(H / 3)
            world.run(4 * C)
            world.set_storage("error")
            world.run(2 * D)
            world.set_storage("ok")
            world.run(2 * (D + L + COMMON.freeze_limit))
            known = {p.core.known_primary() for p in world.alive}
            if starts(world) > 1 or known != {world.primary().incarnation}:
                raise Broken("liveness", "deposed by hearsay of %s" % who)


def a_forged_term_and_a_primary_that_dies(core):
    for ahead, counter in FORGED:
        world = settled(4, core=core)
        term = world.store.lease.term
        # Its next heartbeat denies it. Were those who are told first to speak, each
        # would have it from the other as well
        sender = next_to_beat(world)
        forge(world, sender, ahead, counter)
        world.crash(world.primary().name)
        wait_for_start(world, D + L)
        if world.store.lease.term >= term + 2**38:
            raise Broken("liveness", "a term from nowhere")
        world.settle()


def a_forged_lease_in_each_one_s_own_name(core):
    """Whoever has claimed nothing has nothing to disown."""
    for ahead, counter in FORGED:
        world = settled(3, core=core)
        term = world.store.lease.term
        forge(world, world.primary(), ahead, counter, None)
        world.run(D)
        world.crash(world.primary().name)
        wait_for_start(world, D + L)
        if world.store.lease.term >= term + 2**38:
            raise Broken("liveness", "a term from nowhere")
        world.settle()


def an_impossible_term_in_the_name_of_the_dead(core):
    world = settled(4, core=core)
    sender = world.others()[0]
    world.crash(sender.name)
    world.run(2 * D)
    forge(world, sender, 2**62, 1)
    world.crash(world.primary().name)
    wait_for_start(world, D + L)
    world.settle()


def a_storage_whose_calls_take_nearly_a_third_of_the_deadline(core):
    for setting in simulator.SETTINGS[1:]:
        for share in (0.2, 0.26, 0.31, 0.33):
            common = timings(*setting)
            call = common.renewal_deadline * share
            world = World(Plan(3, common=common, latency=(call / 2, call / 2)),
                          core_class=core)  # fmt: skip
            world.boot("n1")
            wait_for_start(world, 8 * call)
            world.boot("n2")
            world.boot("n3")
            world.wait_for(world.is_settled, 10 * call + 3 * common.check_interval)
            world.run(20 * common.detection_time)
            if starts(world) > 1:
                raise Broken("liveness", "it handed over because of slowness alone")
            world.ask_to_stop(world.primary())
            wait_for_start(world, 8 * call)
            world.crash(world.primary().name)
            wait_for_start(world, common.detection_time + 8 * call)
            world.boot("n4")
            world.settle()


def half_of_all_packets_lost(core):
    found = simulator.measure_losses((1, 3, 2, 1), 0.5, 600, core_class=core)
    if found.false:
        raise Broken("liveness", "%d living peers were lost" % found.false)


def a_primary_that_moves_to_another_address(core):
    world = settled(core=core)
    world.move(world.primary(), C)
    world.run(3 * D)
    world.settle()
    if world.losses or starts(world) > 1:
        raise Broken("liveness", "it was lost")


def a_store_that_is_replaced_as_only_a_read_given_up_could_tell(core):
    world = settled(core=core, common=timings(freeze=300.0))
    mount = world.mounts[world.primary().name]
    mount.holds = (cluster.Read,)
    world.wait_for(lambda: bool(mount.hung), 2 * C)
    mount.holds = ()
    world.run(1.1)
    world.store.replace()
    mount.set("ok")
    world.set_storage("hang")
    world.run(L)
    world.boot("n9")
    world.run(2 * D)


def a_network_that_heals(core):
    for seed in range(40):  # in some, the members hear each other first
        world = World(Plan(3), seed, core)
        for name in ("n1", "n2", "n3"):
            world.boot(name)
            world.run(H * world.dice.roll())
        world.wait_for(world.is_settled, 10 * D)
        world.cut_all()
        world.run(3 * D)
        world.heal_network()
        world.run(3 * D)
        kept(world, "a primary that was well was deposed")


def one_claim_that_fails(core):
    world = World(Plan(1), core_class=core)
    node = world.boot("n1", start=False)
    world.run(1.0)
    world.mounts["n1"].set("readonly")
    node.tell(cluster.StartAsked())
    world.run(3.0)
    world.set_storage("ok")
    world.wait_for(lambda: node.is_primary, 10.0)


def a_ghost_of_a_newer_version(core):
    world = World(Plan(1, versions=["1.9"]), core_class=core)
    ghost = NodeRecord("ghost", "%016x" % 7, "10.9.9.9", 7000, "2.0", 5)
    world.store.nodes[("ghost",)] = ghost
    world.boot("n1")
    world.by_incarnation[ghost.incarnation] = world.boot("ghost")
    world.owners[ghost.address] = "ghost"
    world.crash("ghost")
    world.run(3 * D)
    if not world.alive:
        raise Broken("liveness", "sent home by a ghost")


def a_paused_cluster_whose_primary_dies(core):
    world = settled(core=core)
    world.ask_to_pause(True)
    world.run(2 * C)
    world.crash(world.primary().name)
    world.run(5 * D)


def a_frozen_primary_whose_lease_is_declared_released(core):
    """It was taken for dead; nobody has claimed when its storage comes back."""
    world = settled(core=core)
    world.ask_to_pause(True)
    world.run(2 * C)
    primary = world.primary()
    world.set_storage("error", primary.name)
    world.run(R + 1.0)
    world.store.edit(released=True)
    world.set_storage("ok")
    world.run(2 * L)
    world.ask_to_pause(False)
    assert wait_for_start(world, 2 * C)
    world.settle()


class StartsWithoutWaiting(cluster.Core):
    def _startable_at(self):
        return -cluster.FOREVER


class TakesSilenceForDeath(cluster.Core):
    def _is_free(self, lease):
        lost = self._is_lost(self._peer(lease.holder))
        return lost or super()._is_free(lease)


class OverlooksNotices(cluster.Core):
    def _callbacks_over_at(self):
        return -cluster.FOREVER


class TakesAnyVouchForAll(cluster.Core):
    def _frozen_until(self):
        vouches = [self._vouch_of(i) for i in sorted(self._held.roster or ())]
        return max(vouches, default=-cluster.FOREVER) + self.timings.renewal_deadline


class FreezesForEver(cluster.Core):
    def _frozen_until(self):
        self._renewed_at, renewed_at = self._now, self._renewed_at
        until = super()._frozen_until()
        self._renewed_at = renewed_at
        return until


class ForgetsTheRostersOfItsAttempts(cluster.Core):
    def _frozen_until(self):
        self._attempts, attempts = {}, self._attempts
        until = super()._frozen_until()
        self._attempts = attempts
        return until


class LetsAnyNewcomerClaimTheStale(cluster.Core):
    def _standing_since(self, lease):
        return -cluster.FOREVER


class VouchesWhileItsClaimMayLand(cluster.Core):
    def _lost_term(self):
        self._doubt, doubt = None, self._doubt
        term = super()._lost_term()
        self._doubt = doubt
        return term


class ForgetsWhatAClaimHides(cluster.Core):
    def _startable_at(self):
        lease = self._deposed.lease
        if lease is not None and self._is_free(lease):
            return self._callbacks_over_at()
        return super()._startable_at()


class RenewsFromTheAnswer(cluster.Core):
    def _adopt(self, lease, began):
        super()._adopt(lease, self._now)


class Whatever:
    """Equal to anything."""

    def __eq__(self, other):
        return True

    def __ne__(self, other):
        return False

    __hash__ = None


class RenewsWithoutComparing(cluster.Core):
    def _issue(self, request, purpose=""):
        if purpose == "renew" and request.expected is not None:
            anything = request.expected._replace(
                term=Whatever(), counter=Whatever(), holder=Whatever()
            )
            request = request._replace(expected=anything)
        return super()._issue(request, purpose)


class VouchesBlindly(cluster.Core):
    def _lost_term(self):
        return 0

    def _send(self, address, to, echo, *rest, **named):
        if echo:  # as if it had been heard just now, whenever that was
            silence = self._now - self.peers[to].newest_at
            echo += int(max(0.0, silence - self.timings.hb_interval / 2) * 1e6)
        super()._send(address, to, echo, *rest, **named)


class ListensBeforeItLooksAtTheClock(cluster.Core):
    _heeds = True

    def step(self, now, *events):
        self._heeds = not events
        return super().step(now, *events)

    def _check_lease(self):
        if self._heeds:
            super()._check_lease()
        self._heeds = True


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
    def _next_term(self, lease):
        return super()._next_term(lease) if lease is None else lease.term

    def _disown(self):
        pass

    def _is_outdone(self):
        return False

    def _depose_too(self, heartbeat):
        pass


class RunsNoStopCallback(cluster.Core):
    def _begin_stop(self, reason, orderly):
        super()._begin_stop(reason, orderly)
        if self._queue:
            self._queue.clear()
            self._callbacks_over()


class TakesAWipedRegisterForANewOne(cluster.Core):
    def _judged(self):
        return self._stored

    def _depose_too(self, heartbeat):
        pass


class ForgetsWhoTheRegisterForgot(cluster.Core):
    def _depose_too(self, heartbeat):
        pass


class ClaimsBeforeItHasHeardTheOthers(cluster.Core):
    def _acquainted_at(self, lease):
        return -cluster.FOREVER


class ClaimsOverTheDeadAtOnce(cluster.Core):
    def _acquainted_at(self, lease):
        if lease is not None and self._is_proven_dead(lease):
            return -cluster.FOREVER
        return super()._acquainted_at(lease)


class CountsTermsByTheRegisterAlone(cluster.Core):
    def _issue(self, request, purpose=""):
        if purpose == "claim" and request.expected is not None:
            term = request.expected.term + 1
            request = request._replace(new=request.new._replace(term=term))
        return super()._issue(request, purpose)


class RenewsRatherThanReads(cluster.Core):
    def _storage_failed(self, pending, error):
        super()._storage_failed(pending._replace(purpose=""), error)


class DismissesThoseWhoMayDeposeIt(cluster.Core):
    def _in_company(self, roster):
        return True


class TakesThoseWithoutStorageForDead(cluster.Core):
    def _is_gone(self, peer, roster):
        gone = peer.missing_since
        return gone is not None and self._now >= gone + self.timings.lease_duration


class TakesAnUnknownRosterForAnEmptyOne(cluster.Core):
    def _inherited_roster(self, lease):
        roster = (lease.roster if lease else None) or frozenset()
        return roster - {self.record.incarnation}


class TakesThoseItCouldNotAskForLost(cluster.Core):
    def _take_record(self, record, first):
        heard = self._peer(record.incarnation).heard
        super()._take_record(record, first)
        self._peer(record.incarnation).heard = heard


class HandsOverWithoutOneMoreTry(cluster.Core):
    def _failed_since(self, offer_at):
        return True


class HandsOverToAnyOffer(cluster.Core):
    def _consider_handover(self):
        for peer in self.peers.values():
            peer.offer_at = -cluster.FOREVER
        super()._consider_handover()


class ClaimsOnlyOnce(cluster.Core):
    def _claim_or_read(self, lease):
        if self._doubt is None:
            super()._claim_or_read(lease)


class BelievesAllItHears(cluster.Core):
    def _deny_hearsay(self, why):
        pass


class BelievesAnyTerm(cluster.Core):
    def _is_possible(self, term):
        return True


class TakesSlownessForFailure(cluster.Core):
    def _slow(self):
        timings = self.timings
        return min(timings.check_interval / 2, timings.renewal_deadline / 4)


class RenewsBeforeAllElse(cluster.Core):
    def _lets_pass(self):
        return False


class AsksTooSeldom(cluster.Core):
    def __init__(self, timings, *rest):
        super().__init__(timings, *rest)
        self._ask_interval = timings.hb_interval / 5


class ForgetsWhatItGaveUp(cluster.Core):
    def _read_late(self, pending, snapshot):
        pass


class StaysWhereItWas(cluster.Core):
    _HANDLERS = {**cluster.Core._HANDLERS, cluster.Described: lambda core, event: None}


class DeposesAtTheFirstVote(cluster.Core):
    def _is_steady(self, peer):
        return True


class HeedsGhosts(cluster.Core):
    def _is_alive(self, peer):
        return not self._is_lost(peer)


class ClaimsWhilePaused(cluster.Core):
    paused = False


class GoesOnWithWhatWasReleased(cluster.Core):
    def _lose_lease(self, reason):
        if "released" not in reason:
            super()._lose_lease(reason)


class NoticesTooSeldom(cluster.Core):
    class Seldom(cluster.Timings):
        notice_interval = property(lambda self: self.hb_interval)

    def __init__(self, timings, *rest):
        super().__init__(self.Seldom(*timings), *rest)


class BelievesALostRace(cluster.Core):
    def _claim_was_lost(self, request):
        super()._claim_was_lost(request)
        if request is self._doubt:
            self._doubt = None


class FlagsOnlyWhatItClaimed(cluster.Core):
    def _lost_term(self):
        doubt, self._doubt = self._doubt, None
        term = super()._lost_term()
        self._doubt = doubt
        return doubt.expected.term if doubt and doubt.expected else term


class NotesNoVouchWhileItHolds(cluster.Core):
    def _withholds_vouch(self, peer, heartbeat):
        return self._held is not None or super()._withholds_vouch(peer, heartbeat)


class HoldsOnWithoutReading(cluster.Core):
    def _abandon_claim(self, reason):
        if "cannot read" not in reason:
            super()._abandon_claim(reason)


class DisownsNothing(cluster.Core):
    def _disown(self):
        pass


class DisownsWhatItNeverClaimed(cluster.Core):
    def _disown(self):
        last, self._last_claim = self._last_claim, cluster.FOREVER
        super()._disown()
        self._last_claim = last


class WaitsForWhomItHears(cluster.Core):
    def _claimable_at(self, lease):
        holder = self._peer(lease.holder)
        running, holder.running_term = holder.running_term, 0
        at = super()._claimable_at(lease)
        holder.running_term = running
        return at


class InsistsOnANewRoster(cluster.Core):
    def _next_roster(self):
        failing, self._renew_failing_since = self._renew_failing_since, None
        roster = super()._next_roster()
        self._renew_failing_since = failing
        return roster


class AsksOnlyItsRoster(cluster.Core):
    def _ask_for_vouches(self):
        attempts, self._attempts = self._attempts, {}
        super()._ask_for_vouches()
        self._attempts = attempts


class JoinsWhatItSawBefore(cluster.Core):
    def _storage_failed(self, pending, error):
        seen = self.cluster_id, self._nodes
        super()._storage_failed(pending, error)
        self.cluster_id, self._nodes = seen


class ForgetsWhatItIsToldMeanwhile(cluster.Core):
    def _on_snapshot(self, snapshot, began):
        super()._on_snapshot(snapshot, began)
        self._read_wanted = False


class WaitsForEachRead(cluster.Core):
    def _patience(self, call):
        return max(super()._patience(call), 1.0)


class HeedsLateAnswers(cluster.Core):
    def _heard_joining(self, heartbeat):
        written, self._record_written = self._record_written, False
        super()._heard_joining(heartbeat)
        self._record_written = written


BITES = [
    (StartsWithoutWaiting, a_primary_that_is_cut_off_by_udp, "S1 S3"),
    (TakesSilenceForDeath, a_primary_that_is_cut_off_by_udp, "S1 S3"),
    (OverlooksNotices, a_primary_that_is_cut_off_by_udp_with_long_callbacks, "S1"),
    (RenewsWithoutComparing, a_primary_that_is_cut_off_by_udp_and_cannot_read,
     "liveness"),
    (VouchesBlindly,
     a_primary_without_storage_that_is_not_heard_and_then_hears_nobody, "S1 S3"),
    (TakesAnyVouchForAll, a_frozen_primary_that_one_of_its_roster_has_lost, "S1 S3"),
    (FreezesForEver, the_same_up_to_the_freeze_limit, "S1 S3"),
    (ForgetsTheRostersOfItsAttempts, an_admission_that_lands_unknown_to_the_holder,
     "S1 S3"),
    (LetsAnyNewcomerClaimTheStale, a_frozen_primary_and_a_newcomer_that_hears_nobody,
     "S1 S3"),
    (VouchesWhileItsClaimMayLand,
     a_claim_that_lands_after_its_claimant_has_heard_the_holder_again, "S1 S3"),
    (ForgetsWhatAClaimHides, a_claim_over_one_that_was_never_started, "S1 S3"),
    (RenewsFromTheAnswer, a_reply_that_comes_late, "S1 S3"),
    (ListensBeforeItLooksAtTheClock,
     a_reply_that_comes_while_nobody_looks_at_the_clock, "S3"),
    (GoesOnPastItsLease, a_primary_that_is_cut_off_altogether, "S1 S3"),
    (SaysStoppedBeforeItHas, an_orderly_stop_with_a_slow_callback, "S1"),
    (RepeatsATerm, an_orderly_stop_with_a_slow_callback, "S2"),
    (RunsNoStopCallback, an_orderly_stop_with_a_slow_callback, "S4"),
    (TakesAWipedRegisterForANewOne, a_wiped_register_under_a_frozen_primary, "S1 S3"),
    (ForgetsWhoTheRegisterForgot,
     a_newcomer_that_hears_of_a_lease_while_it_claims_the_wiped_register, "S1 S3"),
    (ClaimsBeforeItHasHeardTheOthers,
     a_wiped_register_and_a_newcomer_that_hears_nobody, "S1 S3"),
    (ClaimsOverTheDeadAtOnce, a_register_rolled_back_to_a_lease_of_the_dead, "S1 S3"),
    (CountsTermsByTheRegisterAlone, a_register_rolled_back_before_a_newcomer_comes,
     "S2"),
    (RenewsRatherThanReads, a_store_that_is_wiped_and_refuses_renewals, "liveness"),
    (DismissesThoseWhoMayDeposeIt,
     a_cut_off_primary_whose_members_have_no_storage_for_a_while, "liveness"),
    (TakesThoseWithoutStorageForDead,
     a_cut_off_primary_whose_members_have_no_storage_for_long, "liveness"),
    (TakesThoseItCouldNotAskForLost,
     slow_callbacks_of_a_primary_whose_record_was_never_read, "S1"),
    (TakesAnUnknownRosterForAnEmptyOne,
     a_cut_off_claimant_that_cannot_read_the_roster, "liveness"),
    (HandsOverWithoutOneMoreTry,
     an_outage_that_leaves_the_storage_of_the_primary_slow, "liveness"),
    (ForgetsWhatItGaveUp, a_renewal_that_landed_and_reads_that_are_given_up,
     "liveness"),
    (HandsOverToAnyOffer, the_end_of_an_outage, "liveness"),
    (HandsOverToAnyOffer, a_storage_that_is_back_for_a_moment, "liveness"),
    (ClaimsOnlyOnce, one_claim_that_fails, "liveness"),
    (BelievesAllItHears, a_forged_term_and_a_living_primary, "liveness"),
    (BelievesAllItHears, a_forged_term_and_a_primary_that_dies, "liveness"),
    (BelievesAnyTerm, an_impossible_term_in_the_name_of_the_dead, "liveness"),
    (TakesSlownessForFailure,
     a_storage_whose_calls_take_nearly_a_third_of_the_deadline, "liveness"),
    (RenewsBeforeAllElse, a_storage_whose_calls_take_nearly_a_third_of_the_deadline,
     "liveness"),
    (AsksTooSeldom, half_of_all_packets_lost, "liveness"),
    (ClaimsWhilePaused, a_paused_cluster_whose_primary_dies, "pause"),
    (GoesOnWithWhatWasReleased, a_frozen_primary_whose_lease_is_declared_released,
     "S1 S3"),
    (ForgetsWhatItGaveUp,
     a_store_that_is_replaced_as_only_a_read_given_up_could_tell, "S1 S3"),
    (StaysWhereItWas, a_primary_that_moves_to_another_address, "liveness"),
    (DeposesAtTheFirstVote, a_network_that_heals, "liveness"),
    (HeedsGhosts, a_ghost_of_a_newer_version, "liveness"),
    (NoticesTooSeldom, a_stop_callback_longer_than_a_lease_shorter_than_an_interval,
     "S1"),
    (BelievesALostRace, a_claim_that_landed_and_is_told_lost, "S1 S3"),
    (FlagsOnlyWhatItClaimed, a_claim_over_a_wiped_register_that_takes_long, "S1 S3"),
    (NotesNoVouchWhileItHolds, a_vouch_of_one_whose_callbacks_still_run, "S1 S3"),
    (HoldsOnWithoutReading, a_claimant_that_cannot_read, "liveness"),
    (DisownsNothing, a_claim_that_landed_and_was_never_told, "liveness"),
    (DisownsWhatItNeverClaimed, a_forged_lease_in_each_one_s_own_name, "liveness"),
    (WaitsForWhomItHears, a_stop_callback_that_hangs_on_a_node_that_is_heard,
     "liveness"),
    (InsistsOnANewRoster, a_full_disk_and_a_member_that_dies, "liveness"),
    (AsksOnlyItsRoster, an_admission_that_fails_in_an_outage, "liveness"),
    (JoinsWhatItSawBefore, a_store_that_is_wiped_before_a_join, "liveness"),
    (ForgetsWhatItIsToldMeanwhile, news_that_comes_during_a_read, "liveness"),
    (WaitsForEachRead, one_read_that_takes_long, "liveness"),
    (HeedsLateAnswers, an_answer_that_comes_once_the_name_is_taken, "liveness"),
]  # fmt: skip
SCHEDULES_OF = sorted({case[1] for case in BITES}, key=lambda s: s.__name__)


@pytest.mark.parametrize("schedule", SCHEDULES_OF, ids=lambda s: s.__name__)
def test_the_shipped_core_survives(schedule):
    schedule(cluster.Core)


BITES_IDS = ["%s-%s" % (core.__name__, run.__name__) for core, run, _ in BITES]


@pytest.mark.parametrize("core, schedule, promises", BITES, ids=BITES_IDS)
def test_the_simulator_catches_a_core_that(core, schedule, promises):
    with pytest.raises(Broken) as caught:
        schedule(core)
    assert caught.value.promise in promises.split()


@pytest.mark.parametrize(
    "core",
    [
        StartsWithoutWaiting,
        TakesAnyVouchForAll,
        RunsNoStopCallback,
        SaysStoppedBeforeItHas,
    ],
)
def test_random_schedules_alone_catch_it_too(core):
    assert any(run_seed(seed, core).broken for seed in range(100))
