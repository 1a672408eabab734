"""What happens when: one function for each row of the README's table, and for each
rule on isolation. Each gets a laboratory, does the damage and asserts what a user
would see, and by when; the history is judged afterwards by `lab_checker`.
"""

import collections
import os
import re
import shutil
import time
import traceback

import lab_checker
import lab_nfs
from lab import QUICK, Lab, now, until

# Seconds that a busy machine, and a share served by a Python program, may take on top
SLACK = float(os.environ.get("LAB_SLACK", "1.5"))
FREEZE = 3.0  # the freeze limit, where a scenario waits for it
SCENARIOS = {}

Scenario = collections.namedtuple("Scenario", "name function sizes own_pids nfs")
Outcome = collections.namedtuple("Outcome", "verdict figures text seconds unsafe")


def scenario(sizes=(3,), own_pids=False, nfs=False):
    def register(function):
        SCENARIOS[function.__name__] = Scenario(
            function.__name__, function, sizes, own_pids, nfs
        )
        return function

    return register


def why_not(name):
    """Why this scenario cannot be played here, or None."""
    return lab_nfs.missing() if SCENARIOS[name].nfs else None


def play(name, size=3, profile=QUICK, proof=True, broken=None):
    """Runs one scenario, maybe with a broken core or backend, and judges it."""
    played, began = SCENARIOS[name], now()
    lab = Lab(profile, proof, played.own_pids, broken=broken, nfs=played.nfs)
    try:
        with lab:
            try:
                lab.size = size
                played.function(lab)
                findings = lab.findings()
            except BaseException:
                if broken:  # what comes of it shows only later
                    time.sleep(lab.timings.D + 2 * lab.timings.L)
                findings = lab.findings() + [traceback.format_exc(), story(lab)]
                raise
    except Exception:
        pass
    unsafe = [text for text in findings if re.match("S[1-4]: ", text)]
    text = "\n".join(findings)
    return Outcome(not findings, lab.figures, text, now() - began, unsafe)


def story(lab, lines=60):
    """The last that happened, for whoever has to find out why."""
    events = lab_checker.load(lab.history)
    told = [e for e in events if e["e"] not in ("view", "threads")][-lines:]
    parts = ["%.3f %s" % (e["at"], {k: e[k] for k in e if k != "at"}) for e in told]
    parts += ["%s: %s" % (node, node.view) for node in lab.nodes]
    with open(lab.errors.name) as file:
        return "\n".join(parts + [file.read()[-2000:]])


# --------------------------------------------------------------------------------
# Helpers
# --------------------------------------------------------------------------------


def within(lab, figure, value, bound, least=None):
    lab.figures[figure] = round(value, 3)
    assert value <= bound + SLACK, "%s: %.2f s, not %.2f" % (figure, value, bound)
    assert least is None or value >= least, "%s: %.2f s" % (figure, value)


def failover(lab, nodes, since, bound, figure="next start", least=None):
    """Waits until one of these nodes starts; returns it."""
    until(lambda: lab.primaries(nodes), bound + SLACK, "a next primary")
    found = lab.primaries(nodes)[0]
    within(lab, figure, found.last("start")["at"] - since, bound, least)
    return found


def starts(lab):
    return sum(len(node.all("start")) for node in lab.nodes)


def keep_watching(lab, seconds, condition, what):
    """The condition holds all the time."""
    until_then = now() + seconds
    while now() < until_then:
        assert condition(), what
        time.sleep(0.02)


def stays(lab, primary, seconds):
    """The primary is the primary all the time, without a break."""
    count = starts(lab)

    def same():
        return primary.is_primary() and starts(lab) == count

    keep_watching(lab, seconds, same, "another primary than %s" % primary)
    assert primary.last("primary")["term"] > 0, "is_primary was false"
    assert len([e for e in primary.all("primary") if not e["term"]]) <= 1


def ids(nodes):
    return {node.name: node.last("joined")["id"] for node in nodes}


def one_drop_each(lab):
    """Nobody vanished from anybody's view more than once; all are back."""
    counts = lab_checker.drops(lab_checker.load(lab.history))
    lab.figures["drops"] = max(counts.values(), default=0)
    assert lab.figures["drops"] <= 1, counts


def whole_again(lab, bound=None):
    """All is put back; all agree again; nobody has become another incarnation."""
    since = now()
    lab.heal()
    timings = lab.timings
    bound = 2 * timings.D + 2 * timings.L if bound is None else bound
    lab.settle(bound + SLACK)
    lab.figures["healed"] = round(now() - since, 3)
    store = lab.records()
    assert store == ids(lab.living()), "records %s" % store


# --------------------------------------------------------------------------------
# Starting, joining, leaving
# --------------------------------------------------------------------------------


@scenario(sizes=(1,))
def the_first_node_is_primary_at_once(lab):
    node = lab.node()
    until(node.is_primary, 10)
    within(lab, "start", node.last("start")["at"] - node.last("boot")["at"], 0.05)


@scenario(sizes=(1, 2, 3, 5))
def of_several_that_start_at_once_one_is_primary(lab):
    for host in [lab.host() for _ in range(lab.size)]:
        lab.node(host=host)
    until(lambda: len(lab.primaries()) == 1, 2 * lab.timings.H + 10)
    booted = max(node.last("boot")["at"] for node in lab.nodes)
    started = lab.primary().last("start")["at"]
    within(lab, "start", max(0, started - booted), 2 * lab.timings.H)
    lab.settle()
    assert starts(lab) == 1


@scenario(sizes=(2, 3, 5))
def a_node_that_joins_and_leaves_is_seen_at_once(lab):
    lab.start(lab.size - 1)
    newcomer = lab.node("new")
    until(newcomer.joined, 10)
    joined = newcomer.last("joined")["at"]
    others = [node for node in lab.nodes if node is not newcomer]
    until(lambda: all("new" in n.view["nodes"] for n in others), 5)
    within(lab, "seen", max(n.last("view")["at"] for n in others) - joined, 0.05)
    lab.settle()
    newcomer.order("stop")
    asked = now()
    until(lambda: all("new" not in n.view["nodes"] for n in others), 5)
    within(lab, "left", max(n.last("view")["at"] for n in others) - asked, 0.05)
    assert starts(lab) == 1
    until(lambda: newcomer.all("left"), 15)


@scenario(sizes=(2, 3, 5))
def a_primary_that_stops_hands_over_at_once(lab):
    lab.start(lab.size)
    primary, others = lab.others()
    primary.order("stop")
    until(lambda: primary.all("stopped"), 5)
    failover(lab, others, primary.last("stopped")["at"], 0.05, least=0)
    until(lambda: primary.all("left"), 15)
    lab.settle()


@scenario(sizes=(2, 3, 5))
def a_primary_that_steps_down_stays_a_member(lab):
    lab.start(lab.size)
    primary, others = lab.others()
    primary.order("step_down")
    until(lambda: primary.all("stopped"), 5)
    failover(lab, others, primary.last("stopped")["at"], 0.05, least=0)
    lab.settle()
    assert ids(lab.nodes) == lab.records()


@scenario(sizes=(1, 3))
def a_start_callback_that_raises_gives_way(lab):
    first = lab.node(failing=["start"])
    until(lambda: first.all("stopped"), 10)
    if lab.size == 1:  # alone, it tries again after 1 s
        until(lambda: len(first.all("start")) > 1, 1 + SLACK)
        again = first.all("start")[1]["at"] - first.all("stopped")[0]["at"]
        within(lab, "again", again, 1)
        return
    for _ in range(lab.size - 1):
        lab.node()
    until(lambda: lab.primaries([n for n in lab.nodes if n is not first]), 15)
    until(lambda: not first.is_primary(), 5)
    lab.settle()
    assert lab.primary() is not first


@scenario(sizes=(1, 2, 3, 5))
def a_newer_version_sends_the_older_ones_home(lab):
    older = lab.start(lab.size, control={"own_version": "1.9"})
    newer = lab.node("new", control={"own_version": "1.10"})
    until(newer.joined, 10)
    since = newer.last("joined")["at"]
    until(lambda: all(node.all("exited") for node in older), lab.timings.C + 5)
    last = max(node.last("exited")["at"] for node in older)
    within(lab, "exits", last - since, lab.timings.C)
    failover(lab, [newer], last, 2 * lab.timings.C)


@scenario(sizes=(2, 3))
def two_of_one_name_are_told_apart(lab):
    lab.start(lab.size)
    twin = lab.node(lab.nodes[0].name)
    until(lambda: twin.all("refused"), 15)
    assert "DuplicateNodeError" in twin.last("refused")["error"]
    lab.settle(nodes=lab.nodes[: lab.size])
    assert starts(lab) == 1


# --------------------------------------------------------------------------------
# Deaths
# --------------------------------------------------------------------------------


@scenario(sizes=(2, 3, 5), own_pids=True)
def the_host_of_the_primary_dies(lab):
    lab.start(lab.size)
    primary, others = lab.others()
    at = primary.kill()
    primary.host.link(False)
    failover(lab, others, at, lab.timings.D + 0.1)
    lab.settle()


@scenario(sizes=(2, 3, 5))
def the_process_of_the_primary_dies(lab):
    """With a survivor on its host, in one pid namespace."""
    lab.start(lab.size - 1)
    lab.node("neighbour", host=lab.nodes[0].host)
    lab.settle()
    primary, others = lab.others()
    at = primary.kill()
    proof = lab.control["same_host_proof"]
    failover(lab, others, at, 0.02 if proof else lab.timings.D + 0.1)
    lab.settle()


@scenario(sizes=(2, 3), own_pids=True)
def in_pid_namespaces_of_their_own_the_port_is_proof(lab):
    """On one host: the pids say nothing, since each sees its own ones only."""
    lab.start(lab.size - 1)
    lab.node("neighbour", host=lab.nodes[0].host)
    lab.settle()
    assert lab.nodes[0].pid != lab.nodes[-1].pid
    primary, others = lab.others()
    at = primary.kill()
    proof = lab.control["same_host_proof"]
    failover(lab, others, at, 2 * lab.timings.H if proof else lab.timings.D + 0.1)
    lab.settle()


@scenario(sizes=(3,))
def another_boot_id_proves_nothing_in_a_container(lab):
    """Each host with a boot id of its own, in a file bound over the kernel's."""
    for number in range(lab.size):
        host = lab.host(boot_id="%032x" % (number + 1))
        lab.node(host=host)
    lab.settle(20)
    primary, others = lab.others()
    at = primary.kill()
    failover(lab, others, at, lab.timings.D + 0.1, least=lab.timings.T - 1)
    lab.settle()


@scenario(sizes=(1, 3))
def a_machine_that_is_started_anew_finds_its_primary(lab):
    """All nodes die with their machines, which come back under another boot id."""
    control = {"freeze_limit": FREEZE}
    nodes = lab.start(lab.size, boot="a" * 32, control=control)
    time.sleep(lab.timings.period + 0.5)  # a lease never renewed hides the one before
    killed = [node.kill() for node in nodes][-1]
    back = [lab.again(node, boot="b" * 32) for node in nodes]
    if lab.control["same_host_proof"]:
        # a newcomer asks the others first, for a heartbeat interval
        until(lambda: all(node.joined() for node in back), 20)
        joined = min(node.last("joined")["at"] for node in back)
        failover(lab, back, joined, lab.timings.H)
    else:
        bound = lab.timings.L + FREEZE + lab.timings.D
        failover(lab, back, killed, bound, least=lab.timings.L)
    lab.settle()


@scenario(sizes=(1, 2, 3, 5), own_pids=True)
def every_node_dies_and_the_cluster_restarts(lab):
    """Unprovable deaths: other names, other pid namespaces."""
    lab.start(lab.size, control={"freeze_limit": FREEZE})
    for node in list(lab.nodes):
        node.kill()
    at = now()
    control = {"freeze_limit": FREEZE, "same_host_proof": False}
    back = [lab.node("again%d" % number, control=control) for number in range(lab.size)]
    timings = lab.timings
    bound = timings.L + FREEZE + timings.D + timings.C
    failover(lab, back, at, bound, least=timings.L)
    lab.settle()
    assert sorted(lab.records()) == sorted(node.name for node in back), "ghosts"


@scenario(sizes=(2, 3, 5))
def a_primary_that_is_restarted_in_place_is_back_soon(lab):
    lab.start(lab.size)
    primary, others = lab.others()
    at = primary.kill()
    back = lab.again(primary)
    failover(lab, others + [back], at, lab.timings.D + 0.1)
    lab.settle()
    assert sorted(lab.records()) == sorted(node.name for node in lab.living())


@scenario(sizes=(1, 2, 3, 5))
def a_process_paused_past_its_lease_wakes_as_no_primary(lab):
    lab.start(lab.size)
    primary, timings = lab.primary(), lab.timings
    others = [node for node in lab.nodes if node is not primary]
    primary.pause()
    at = now()
    if others:
        failover(lab, others, at, timings.D + timings.H)
    else:
        time.sleep(timings.L + 0.5)
    primary.resume()
    woken = now()
    until(lambda: primary.all("stopped"), 5)
    within(lab, "stop on waking", primary.last("stop")["at"] - woken, 0)
    if others:
        lab.settle()
        assert lab.primary() is not primary
    assert ids(lab.nodes) == lab.records() or not others


# --------------------------------------------------------------------------------
# The network
# --------------------------------------------------------------------------------


def udp_is_lost(lab, how):
    lab.start(lab.size)
    primary, timings = lab.primary(), lab.timings
    lab.all_udp(how)
    stays(lab, primary, timings.D + 3 * timings.H + timings.C)
    whole_again(lab)
    stays(lab, primary, timings.C)
    one_drop_each(lab)


@scenario(sizes=(2, 3, 5))
def all_udp_is_lost(lab):
    udp_is_lost(lab, "drop")


@scenario(sizes=(3,))
def all_udp_is_rejected(lab):
    udp_is_lost(lab, "reject")


@scenario(sizes=(3, 5))
def the_primary_is_cut_off_by_udp(lab):
    lab.start(lab.size)
    (primary, others), timings = lab.others(), lab.timings
    lab.isolate(primary)
    at = now()
    # the claim, and then the wait for whom it deposes
    bound = timings.D + timings.L + timings.period
    found = failover(lab, others, at, bound)
    noticed = primary.last("stop")["at"] - at
    within(lab, "it stops", noticed, timings.D + 2 * timings.period)
    assert primary.last("primary")["term"] == 0
    stays(lab, found, timings.D)
    whole_again(lab)
    assert lab.primary() is found


@scenario(sizes=(2,))
def of_two_that_are_cut_apart_the_primary_stays(lab):
    lab.start(lab.size)
    primary = lab.primary()
    lab.isolate(primary)
    stays(lab, primary, 2 * lab.timings.D)
    whole_again(lab)
    stays(lab, primary, lab.timings.C)


@scenario(sizes=(3, 5))
def one_link_is_cut_and_the_primary_stays(lab):
    """Only that between the primary and one member."""
    lab.start(lab.size)
    primary, others = lab.others()
    lab.cut(primary, others[0])
    stays(lab, primary, 2 * lab.timings.D)
    whole_again(lab)
    stays(lab, primary, lab.timings.C)


@scenario(sizes=(3,))
def a_member_cannot_hear_the_primary(lab):
    lab.start(lab.size)
    primary, others = lab.others()
    lab.cut(others[0], primary, both=False)
    stays(lab, primary, 2 * lab.timings.D)
    whole_again(lab)


@scenario(sizes=(3,))
def the_primary_cannot_hear_a_member(lab):
    lab.start(lab.size)
    primary, others = lab.others()
    lab.cut(primary, others[0], both=False)
    stays(lab, primary, 2 * lab.timings.D)
    whole_again(lab)


@scenario(sizes=(2, 3))
def nobody_hears_the_primary_but_it_hears_them(lab):
    """One-way: what it sends is lost. With three it is deposed."""
    lab.start(lab.size)
    (primary, others), timings = lab.others(), lab.timings
    for other in others:
        lab.cut(other, primary, both=False)
    at = now()
    if lab.size == 2:
        stays(lab, primary, 2 * timings.D)
    else:
        failover(lab, others, at, timings.D + timings.L + timings.period)
    whole_again(lab)


@scenario(sizes=(2, 3, 5))
def a_third_of_all_packets_is_lost(lab):
    lab.start(lab.size)
    primary = lab.primary()
    for host in lab.hosts:
        host.rule("meta l4proto udp numgen random mod 100 < 30 drop")
    stays(lab, primary, 3 * lab.timings.D)
    whole_again(lab)
    stays(lab, primary, lab.timings.C)


@scenario(sizes=(3, 5))
def the_network_is_parted_in_two(lab):
    """The primary with the smaller part."""
    nodes = lab.start(lab.size)
    primary, others = lab.others()
    small = [primary] + others[: (lab.size - 1) // 2 - 1]
    large = [node for node in nodes if node not in small]
    for one in small:
        for other in large:
            lab.cut(one, other)
    time.sleep(2 * lab.timings.D)
    assert lab.primary() in large, "the majority deposes"
    whole_again(lab)


@scenario(sizes=(2, 3))
def the_interface_of_the_primary_is_down_for_a_while(lab):
    lab.start(lab.size)
    (primary, others), timings = lab.others(), lab.timings
    before = ids(lab.nodes)
    primary.host.link(False)
    if lab.size == 2:
        stays(lab, primary, 2 * timings.D)
    else:
        failover(lab, others, now(), timings.D + timings.L + timings.period)
    whole_again(lab)
    assert ids(lab.nodes) == before


@scenario(sizes=(3,))
def the_interface_of_a_member_is_down_for_a_while(lab):
    lab.start(lab.size)
    primary, others = lab.others()
    others[0].host.link(False)
    stays(lab, primary, 3 * lab.timings.D)
    whole_again(lab)
    stays(lab, primary, lab.timings.C)


def moves(lab, node):
    """Its host gets another address: the record follows, and nobody is lost."""
    primary, before = lab.primary(), ids(lab.nodes)
    ip = "10.77.0.%d" % (100 + node.host.index)
    node.host.move(ip)
    at = now()

    def followed():
        return all(n.view["addresses"][node.name] == "%s:%d" % (ip, node.port)
                   for n in lab.nodes)  # fmt: skip

    until(followed, 2 * lab.timings.H + lab.timings.C + SLACK, "the record follows")
    lab.figures["followed"] = round(now() - at, 3)
    stays(lab, primary, lab.timings.D + 2 * lab.timings.H)
    lab.settle()
    assert ids(lab.nodes) == before == lab.records()


@scenario(sizes=(2, 3))
def the_host_of_the_primary_gets_another_address(lab):
    lab.start(lab.size, control={"host_name": "0.0.0.0"})
    moves(lab, lab.primary())


@scenario(sizes=(3,))
def the_host_of_a_member_gets_another_address(lab):
    lab.start(lab.size, control={"host_name": "0.0.0.0"})
    moves(lab, lab.others()[1][0])


@scenario(sizes=(3,), own_pids=True)
def clusters_of_one_name_that_hear_each_other_stay_apart(lab):
    """Another cluster's node takes over the address of one that has died."""
    lab.start(lab.size)
    primary, others = lab.others()
    folder = os.path.join(others[0].host.folder, "other")
    os.mkdir(folder)
    others[0].kill()
    control = {"hb_port": others[0].port, "node_name": "foreign"}
    foreign = lab.node("foreign", others[0].host, folder=folder, control=control)
    until(foreign.is_primary, 5)
    time.sleep(2 * lab.timings.D)
    assert list(foreign.view["nodes"]) == ["foreign"]
    ours = [node for node in lab.living() if node is not foreign]
    assert primary.is_primary() and lab.agree(ours)
    complaints = {
        node.name: [e for e in node.all("log") if "dropped packets" in e["text"]]
        for node in lab.living()
    }
    assert len(complaints["foreign"]) == 1, complaints  # at most once a minute
    assert all(len(each) <= 1 for each in complaints.values()), complaints
    foreign.stop()


# --------------------------------------------------------------------------------
# The storage
# --------------------------------------------------------------------------------


def frozen(lab, **fault):
    """Gone for all: same primary, same members, nobody exits; then all thaws."""
    lab.start(lab.size)
    primary, members = lab.primary(), ids(lab.nodes)
    lab.all_storage(**fault)
    stays(lab, primary, lab.timings.D + 2 * lab.timings.L)
    assert all(node.view["nodes"] == members for node in lab.nodes)
    whole_again(lab)
    stays(lab, primary, lab.timings.C)


@scenario(sizes=(2, 3, 5))
def storage_is_gone_for_all(lab):
    frozen(lab, errno="EIO")


@scenario(sizes=(2, 3))
def storage_hangs_for_all(lab):
    frozen(lab, hang=True)


@scenario(sizes=(3,))
def storage_is_stale_for_all(lab):
    frozen(lab, errno="ESTALE")


@scenario(sizes=(3,))
def storage_is_read_only_for_all(lab):
    frozen(lab, errno="EROFS", calls="changes")


@scenario(sizes=(3,))
def storage_is_full_for_all(lab):
    frozen(lab, errno="ENOSPC", calls="space")


@scenario(sizes=(3,))
def the_share_is_unmounted_for_all(lab):
    lab.start(lab.size)
    primary, members = lab.primary(), ids(lab.nodes)
    for host in lab.hosts:
        host.unmount()
    stays(lab, primary, lab.timings.D + 2 * lab.timings.L)
    assert all(node.view["nodes"] == members for node in lab.nodes)
    for host in lab.hosts:
        assert os.listdir(os.path.join(host.folder, "empty")) == []
    whole_again(lab)
    stays(lab, primary, lab.timings.C)


@scenario(sizes=(1,))
def storage_is_gone_for_one_that_is_alone(lab):
    lab.start(1)
    primary, timings = lab.primary(), lab.timings
    lab.all_storage(errno="EIO")
    at = now()
    until(lambda: primary.all("stopped"), timings.R + SLACK)
    within(lab, "it stops", primary.last("stop")["at"] - at, timings.R)
    lab.heal()
    until(lambda: len(primary.all("start")) == 2, timings.L + timings.D + SLACK)


def a_member_dies(lab, **fault):
    """It can't vouch any more: the freeze ends, and the primary stops."""
    lab.start(lab.size)
    (primary, others), timings = lab.others(), lab.timings
    lab.all_storage(**fault)
    stays(lab, primary, 2 * timings.L)
    at = others[0].kill()
    until(lambda: primary.all("stopped"), timings.D + timings.R + SLACK)
    stopped = primary.last("stop")["at"] - at
    within(lab, "it stops", stopped, timings.R + timings.H)
    lab.heal()
    lab.settle()


@scenario(sizes=(2, 3))
def a_member_dies_while_storage_is_gone_for_all(lab):
    a_member_dies(lab, errno="EIO")


@scenario(sizes=(3,))
def a_member_dies_while_storage_hangs_for_all(lab):
    a_member_dies(lab, hang=True)


def the_primary_dies(lab, **fault):
    lab.start(lab.size)
    (primary, others), timings = lab.others(), lab.timings
    lab.all_storage(**fault)
    stays(lab, primary, timings.L)
    primary.kill()
    count = starts(lab)
    keep_watching(lab, timings.D + 2, lambda: starts(lab) == count, "no storage")
    lab.heal()
    failover(lab, others, now(), timings.L + timings.C)
    lab.settle()


@scenario(sizes=(2, 3, 5))
def the_primary_is_killed_while_storage_is_gone(lab):
    the_primary_dies(lab, errno="EIO")


@scenario(sizes=(3,))
def the_primary_is_killed_while_storage_hangs(lab):
    the_primary_dies(lab, hang=True)


def handed_over(lab, **fault):
    lab.start(lab.size)
    (primary, others), timings = lab.others(), lab.timings
    primary.host.storage(**fault)
    at = now()
    # a try of its own must fail after it has heard of somebody who can write
    found = failover(lab, others, at, 2 * timings.C + timings.R + timings.C)
    stays(lab, found, timings.D)
    whole_again(lab)
    assert lab.primary() is found


@scenario(sizes=(2, 3, 5))
def storage_is_gone_for_the_primary_only(lab):
    handed_over(lab, errno="EIO")


@scenario(sizes=(2, 3))
def storage_hangs_for_the_primary_only(lab):
    handed_over(lab, hang=True)


@scenario(sizes=(3,))
def storage_is_read_only_for_the_primary_only(lab):
    handed_over(lab, errno="EROFS", calls="changes")


@scenario(sizes=(3,))
def the_share_is_unmounted_for_the_primary_only(lab):
    lab.start(lab.size)
    (primary, others), timings = lab.others(), lab.timings
    primary.host.unmount()
    found = failover(lab, others, now(), 3 * timings.C + timings.R)
    assert os.listdir(os.path.join(primary.host.folder, "empty")) == []
    whole_again(lab)
    assert lab.primary() is found


@scenario(sizes=(2, 3))
def storage_is_gone_for_a_member_only(lab):
    lab.start(lab.size)
    primary, others = lab.others()
    others[0].host.storage(errno="EIO")
    stays(lab, primary, 2 * lab.timings.D)
    whole_again(lab)
    stays(lab, primary, lab.timings.C)


def cut_off_altogether(lab, **fault):
    lab.start(lab.size)
    (primary, others), timings = lab.others(), lab.timings
    lab.isolate(primary)  # first, or it might hand over
    primary.host.storage(**fault)
    at = now()
    until(lambda: primary.all("stopped"), timings.R + SLACK)
    within(lab, "it stops", primary.last("stop")["at"] - at, timings.R)
    least = timings.L - 2 * timings.period  # it was renewed some time before
    found = failover(lab, others, at, timings.D + timings.L, least=least)
    assert found.last("start")["at"] > primary.last("stopped")["at"]
    whole_again(lab)
    assert lab.primary() is found


@scenario(sizes=(2, 3, 5))
def storage_and_udp_are_gone_for_the_primary(lab):
    cut_off_altogether(lab, errno="EIO")


@scenario(sizes=(3,))
def storage_hangs_and_udp_is_gone_for_the_primary(lab):
    cut_off_altogether(lab, hang=True)


@scenario(sizes=(3,))
def the_share_is_unmounted_and_udp_is_gone_for_the_primary(lab):
    """What is there then is an empty local folder, and never a cluster."""
    lab.start(lab.size, control={"freeze_limit": FREEZE})
    (primary, others), timings = lab.others(), lab.timings
    primary.host.unmount()
    lab.isolate(primary)
    at = now()
    until(lambda: primary.all("stopped"), timings.R + SLACK)
    found = failover(lab, others, at, timings.D + timings.L)
    stays(lab, found, timings.L + FREEZE + timings.D)
    assert os.listdir(os.path.join(primary.host.folder, "empty")) == []
    whole_again(lab)


@scenario(sizes=(2, 3))
def a_primary_without_storage_is_not_heard_and_then_hears_nobody(lab):
    """Who does not hear it cannot vouch for it, whatever it hears of them."""
    lab.start(lab.size)
    (primary, others), timings = lab.others(), lab.timings
    primary.host.storage(hang=True)
    at = now()
    for other in others:
        lab.cut(other, primary, both=False)
    time.sleep(timings.D - 1.2 * timings.H)  # just before they can claim
    from_others = ", ".join(other.host.ip for other in others)
    primary.host.rule("ip saddr { %s } drop" % from_others)
    until(lambda: primary.all("stopped"), timings.R + SLACK)
    within(lab, "it stops", primary.last("stop")["at"] - at, timings.R + timings.H)
    failover(lab, others, at, timings.D + timings.L)
    whole_again(lab)


@scenario(sizes=(3,))
def newcomers_that_cannot_hear_the_frozen_do_not_start(lab):
    """They reach the storage, which the others do not."""
    nodes = lab.start(lab.size)
    primary, timings = lab.primary(), lab.timings
    lab.all_storage(errno="EIO")
    newcomers = [lab.node("new%d" % number) for number in range(2)]
    for node in nodes:
        for newcomer in newcomers:
            lab.cut(node, newcomer)
    stays(lab, primary, 3 * timings.D)
    assert not lab.primaries(newcomers)
    whole_again(lab)
    stays(lab, primary, timings.C)


def copy_store(lab, to):
    def ignore_errors(source, target):
        try:
            shutil.copy2(source, target)
        except FileNotFoundError:  # renamed since it was listed
            pass

    shutil.copytree(lab.backing, to, copy_function=ignore_errors)


@scenario(sizes=(2, 3))
def the_storage_is_wiped(lab):
    lab.start(lab.size)
    primary, timings = lab.primary(), lab.timings
    term = primary.last("start")["term"]
    lab.note("backing", "wiped", True)
    for name in os.listdir(lab.backing):
        shutil.rmtree(os.path.join(lab.backing, name))
    at = now()
    until(lambda: primary.all("stopped"), timings.C + timings.L + 10)
    until(lambda: starts(lab) == 2, 3 * timings.L + timings.D + 10)
    found = lab.primary()
    within(lab, "next start", found.last("start")["at"] - at, 2 * timings.L + timings.D)
    assert found.last("start")["term"] > term
    lab.settle()


@scenario(sizes=(2, 3))
def the_storage_is_rolled_back(lab):
    lab.start(lab.size)
    primary, timings = lab.primary(), lab.timings
    term = primary.last("start")["term"]
    old = os.path.join(lab.work, "old")
    copy_store(lab, old)
    time.sleep(timings.L)
    lab.note("backing", "rolled back", True)
    for name in os.listdir(lab.backing):
        shutil.rmtree(os.path.join(lab.backing, name))
        shutil.copytree(os.path.join(old, name), os.path.join(lab.backing, name))
    until(lambda: starts(lab) == 2, 3 * timings.L + timings.D + 10)
    assert lab.primary().last("start")["term"] > term
    lab.settle()


@scenario(sizes=(3,))
def renames_that_are_reported_as_failed(lab):
    lab.start(lab.size)
    primary = lab.primary()
    lab.all_storage(lie=0.3)
    stays(lab, primary, 2 * lab.timings.D)
    at = primary.kill()
    others = lab.living()
    failover(lab, others, at, lab.timings.D + 2 * lab.timings.C)
    whole_again(lab)


@scenario(sizes=(3, 5))
def listings_that_are_seconds_old(lab):
    lab.start(lab.size)
    primary = lab.primary()
    lab.all_storage(stale=2)
    stays(lab, primary, 2 * lab.timings.D)
    newcomer = lab.node("new")
    until(newcomer.joined, 10)
    at = primary.kill()
    failover(lab, lab.living(), at, lab.timings.D + 2 + lab.timings.C)
    whole_again(lab)


@scenario(sizes=(3,))
def storage_calls_take_long(lab):
    lab.start(lab.size)
    primary = lab.primary()
    lab.all_storage(latency=0.005)  # some twenty of these are one call
    stays(lab, primary, 2 * lab.timings.D)
    at = primary.kill()
    failover(lab, lab.living(), at, lab.timings.D + 2 * lab.timings.C)
    whole_again(lab)


@scenario(sizes=(3,))
def a_node_killed_in_a_hanging_call_comes_back(lab):
    lab.start(lab.size)
    (primary, others), timings = lab.others(), lab.timings
    primary.host.storage(hang=True)
    time.sleep(timings.period + 0.5)
    at = primary.kill()
    failover(lab, others, at, timings.D + timings.L)
    primary.host.storage()
    primary.process.wait(10)  # the call has returned
    lab.again(primary)
    whole_again(lab)


# --------------------------------------------------------------------------------
# The process and its machine
# --------------------------------------------------------------------------------


@scenario(sizes=(3,))
def callbacks_longer_than_the_stop_budget_delay_the_next(lab):
    """The primary loses its storage and says by UDP that its callbacks still run."""
    slow = {"stop": 2 * lab.timings.L}
    lab.start(lab.size, slow=slow)
    (primary, others), timings = lab.others(), lab.timings
    primary.host.storage(errno="EIO")
    until(lambda: primary.all("stopped"), 4 * timings.L + SLACK)
    failover(lab, others, primary.last("stopped")["at"], timings.C, least=0)
    whole_again(lab)


@scenario(sizes=(3,))
def the_wall_clock_jumps_by_hours(lab):
    lab.start(lab.size, wall=True)
    primary, others = lab.others()
    primary.host.jump_wall(-7200)
    others[0].host.jump_wall(+7200)
    stays(lab, primary, lab.timings.D)
    primary.host.jump_wall(+7200)
    others[0].host.jump_wall(-7200)
    stays(lab, primary, lab.timings.D)
    at = primary.kill()
    failover(lab, others, at, lab.timings.D + 0.1)
    lab.settle()


@scenario(sizes=(3,))
def a_program_that_keeps_the_interpreter_busy(lab):
    """Its storage calls may take too long: then it hands over."""
    lab.start(lab.size)
    lab.primary().order("hog", seconds=2 * lab.timings.D, threads=4)
    time.sleep(2 * lab.timings.D)
    lab.settle()


@scenario(sizes=(3,))
def a_process_that_gets_little_processor_time(lab):
    """0.25 s of pause after each 0.02 s."""
    lab.start(lab.size)
    primary = lab.primary()
    until_then = now() + 2 * lab.timings.D
    while now() < until_then:
        primary.pause()
        time.sleep(0.25)
        primary.resume()
        time.sleep(0.02)
    lab.settle()


@scenario(sizes=(3,))
def a_primary_without_file_descriptors(lab):
    lab.start(lab.size)
    primary = lab.primary()
    primary.order("exhaust")
    time.sleep(lab.timings.D + lab.timings.L)
    assert len(lab.primaries()) == 1
    primary.order("refill")
    whole_again(lab)


@scenario(sizes=(3,))
def file_descriptors_above_1024(lab):
    lab.start(lab.size, ballast=1100)
    primary, others = lab.others()
    at = primary.kill()
    failover(lab, others, at, lab.timings.D + 0.1)
    lab.settle()


# --------------------------------------------------------------------------------
# A real NFS server
# --------------------------------------------------------------------------------

RETRY = 60  # seconds after which TCP has tried again, and the client has connected


@scenario(sizes=(3,), own_pids=True, nfs=True)
def over_nfs_the_host_of_the_primary_dies(lab):
    lab.start(lab.size)
    primary, others = lab.others()
    primary.host.link(False)
    at = primary.kill()
    failover(lab, others, at, lab.timings.D + 0.1)
    lab.settle()


@scenario(sizes=(3,), nfs=True)
def over_nfs_the_server_hangs(lab):
    lab.start(lab.size)
    primary, members = lab.primary(), ids(lab.nodes)
    lab.server.pause()
    try:
        stays(lab, primary, lab.timings.D + 2 * lab.timings.L)
    finally:
        lab.server.resume()
    assert all(node.view["nodes"] == members for node in lab.nodes)
    whole_again(lab, RETRY)
    stays(lab, primary, lab.timings.C)


@scenario(sizes=(3,), nfs=True)
def over_nfs_the_primary_alone_cannot_reach_the_server(lab):
    lab.start(lab.size)
    (primary, others), timings = lab.others(), lab.timings
    primary.host.rule("ip saddr %s drop" % lab.server.ip)
    found = failover(lab, others, now(), 3 * timings.C + timings.R)
    whole_again(lab, RETRY)
    assert lab.primary() is found


@scenario(sizes=(2, 3), nfs=True)
def over_nfs_the_cable_of_the_primary_is_pulled(lab):
    """Storage and UDP are gone at once: it stops by its own clock."""
    lab.start(lab.size)
    (primary, others), timings = lab.others(), lab.timings
    primary.host.link(False)
    at = now()
    until(lambda: primary.all("stopped"), timings.R + SLACK)
    within(lab, "it stops", primary.last("stop")["at"] - at, timings.R)
    found = failover(lab, others, at, timings.D + timings.L)
    whole_again(lab, RETRY)
    assert lab.primary() is found
