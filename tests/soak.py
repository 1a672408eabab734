"""Random faults over real nodes, from a seed; a verdict, and a picture.

    python tests/soak.py --seed 1 --minutes 30 --nodes 5 --picture soak.png

A run is a sequence of rounds. In each, faults of the laboratory begin and end at
random, up to three at a time, half of them aimed at the primary; then all is healed,
and within a bound all nodes must agree on the members and on one primary, and every
record must be there. The seed decides which faults are chosen, and when; what the
nodes make of it also depends on the machine.

The verdict is true, false, or unknown: a finding that begins while a process was kept
from running, by a busy machine, is nobody's fault.
"""

import argparse
import collections
import concurrent.futures
import itertools
import json
import os
import random
import sys
import tempfile
import threading
import time

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, HERE)

import lab_checker  # noqa: E402
from lab import QUICK, Lab, Profile, now, until  # noqa: E402

FREEZE = 15.0  # the freeze limit, so that also it is reached
AT_A_TIME = 3
PORT = 40000
FAULTS = []
Kind = collections.namedtuple("Kind", "function kind aim weight")


def fault(kind, aim="one", weight=1):
    """Registers a generator: what comes before its yield begins the fault.

    `kind` is what it occupies on its hosts: "network", "storage" or "process". `aim`
    says how many hosts it takes: one, two, some or all.
    """

    def register(function):
        FAULTS.append(Kind(function, kind, aim, weight))
        return function

    return register


# --------------------------------------------------------------------------------
# Faults
# --------------------------------------------------------------------------------


def ruled(rules):
    """Adds nft rules, (host, text), and takes them away again."""
    for host, text in rules:
        host.rule(text)
    yield
    for host, text in rules:
        host.unrule(text)


def between(one, other):
    return [
        (one, "ip saddr %s drop" % other.ip), (other, "ip saddr %s drop" % one.ip)
    ]  # fmt: skip


@fault("network", weight=3)
def cut_off_by_udp(soak, hosts):
    others = [host for host in soak.lab.hosts if host is not hosts[0]]
    yield from ruled(sum((between(hosts[0], other) for other in others), []))


@fault("network", "two", weight=2)
def one_link_cut(soak, hosts):
    yield from ruled(between(*hosts))


@fault("network", "two")
def one_direction_cut(soak, hosts):
    yield from ruled(between(*hosts)[:1])


@fault("network")
def deaf(soak, hosts):
    yield from ruled([(hosts[0], "meta l4proto udp drop")])


@fault("network", "some")
def parted(soak, hosts):
    others = [host for host in soak.lab.hosts if host not in hosts]
    pairs = [between(one, other) for one in hosts for other in others]
    yield from ruled(sum(pairs, []))


@fault("network", "all", weight=2)
def all_udp_lost(soak, hosts):
    yield from ruled([(h, "ip saddr != %s meta l4proto udp drop" % h.ip) for h in hosts])


@fault("network", "all")
def all_udp_rejected(soak, hosts):
    text = "ip saddr != %s meta l4proto udp reject"
    yield from ruled([(host, text % host.ip) for host in hosts])


@fault("network", "all", weight=2)
def packets_lost(soak, hosts):
    text = "meta l4proto udp numgen random mod 100 < %d drop" % soak.chance.choice(
        [10, 30, 60]
    )
    yield from ruled([(host, text) for host in hosts])


@fault("network")
def interface_down(soak, hosts):
    hosts[0].link(False)
    yield
    hosts[0].link(True)


def stored(hosts, **what):
    for host in hosts:
        host.storage(**what)
    yield
    for host in hosts:
        host.storage()


def storage_faults():
    errors = dict(errno="EIO"), dict(errno="ESTALE"), dict(hang=True)
    changes = dict(errno="EROFS", calls="changes"), dict(errno="ENOSPC", calls="space")
    odd = dict(lie=0.3), dict(stale=2.0), dict(latency=0.01)
    for what in errors + changes + odd:
        for aim, weight in (("one", 1.0), ("some", 0.4), ("all", 0.6)):

            def run(soak, hosts, what=what):
                yield from stored(hosts, **what)

            run.__name__ = "storage " + " ".join(map(str, what.values()))
            fault("storage", aim, weight)(run)


storage_faults()


@fault("storage", weight=1)
def unmounted(soak, hosts):
    hosts[0].unmount()
    yield
    hosts[0].remount()


@fault("storage", "all", weight=0.5)
def unmounted_everywhere(soak, hosts):
    for host in hosts:
        host.unmount()
    yield
    for host in hosts:
        host.remount()


@fault("process", weight=3)
def killed(soak, hosts):
    soak.node_of(hosts[0]).kill()
    yield
    soak.boot_again(hosts[0])


@fault("process", "some")
def several_killed(soak, hosts):
    for host in hosts:
        soak.node_of(host).kill()
    yield
    for host in hosts:
        soak.boot_again(host)


@fault("process", weight=2)
def stopped(soak, hosts):
    node = soak.node_of(hosts[0])
    node.order("stop")
    yield
    until(lambda: node.all("left"), 60, "%s leaves" % node)
    soak.boot_again(hosts[0])


@fault("process", weight=1)
def stepped_down(soak, hosts):
    soak.node_of(hosts[0]).order("step_down")
    yield


@fault("process", weight=3)
def paused(soak, hosts):
    soak.node_of(hosts[0]).pause()
    yield
    soak.node_of(hosts[0]).resume()


@fault("process")
def busy_interpreter(soak, hosts):
    soak.node_of(hosts[0]).order("hog", seconds=3, threads=2)
    yield


@fault("process")
def no_descriptors(soak, hosts):
    soak.node_of(hosts[0]).order("exhaust")
    yield
    soak.node_of(hosts[0]).order("refill")


@fault("clock", weight=2)
def wall_clock_jumped(soak, hosts):
    hosts[0].jump_wall(soak.chance.choice([-86400, -3600, 3600, 86400]))
    yield
    hosts[0].jump_wall(0)


# What alone must not cost the cluster its primary
HARMLESS = {
    "wall_clock_jumped", "one_direction_cut", "all_udp_lost", "all_udp_rejected",
    "storage 0.3", "storage 2.0",
}  # fmt: skip


# --------------------------------------------------------------------------------
# The run
# --------------------------------------------------------------------------------


class Soak:
    def __init__(self, lab, seed, nodes):
        self.lab, self.chance, self.size = lab, random.Random(seed), nodes
        self.active = []  # [(ends at, number, Kind, hosts, generator)]
        self.numbers = itertools.count(1)
        self.waiting = []  # hosts whose node is to be started again
        self.findings = []
        self.watching = True
        self.count = collections.Counter()
        lab.control["freeze_limit"] = FREEZE
        timings = lab.timings
        self.bound = FREEZE + 2 * timings.L + 2 * timings.D + 2 * timings.C + 5

    def node_of(self, host):
        return [node for node in self.lab.nodes if node.host is host][-1]

    def boot(self, host, name, create=False):
        """Where the share may be an empty folder, only the first one may create."""
        control = {"hb_port": PORT + host.index}
        own_pids = host.index % 2 == 0  # the death of these is never proven
        self.lab.node(name, host, control=control, own_pids=own_pids, wall=True,
                      create=create)  # fmt: skip

    def boot_again(self, host):
        """In place, or now and then under a new name."""
        old = self.node_of(host)
        if old.process.poll() is None:
            # Killed in a call that hangs still: it has its port until that is put back
            self.waiting.append(host)
            return
        new = self.chance.random() < 0.25
        self.boot(host, "h%d-%s" % (host.index, old.run) if new else old.name)

    def primary_host(self):
        primaries = self.lab.primaries()
        return primaries[0].host if primaries else None

    def targets(self, kind):
        busy = {h for _, _, other, hosts, _ in self.active for h in hosts
                if other.kind == kind.kind}  # fmt: skip
        if kind.kind == "process":
            busy.update(self.waiting)
        hosts = [host for host in self.lab.hosts if host not in busy]
        wanted = {"one": 1, "two": 2, "some": max(2, self.size // 2), "all": self.size}
        count = wanted[kind.aim]
        if len(hosts) < count:
            return None
        self.chance.shuffle(hosts)
        primary = self.primary_host()
        if primary in hosts and self.chance.random() < 0.5:
            hosts.remove(primary)
            hosts.insert(0, primary)
        return hosts[:count]

    def begin(self):
        kind = self.chance.choices(FAULTS, [kind.weight for kind in FAULTS])[0]
        detection = self.lab.timings.D
        lasts = self.chance.choice([0.3, 1, 1, 2, 3, 6]) * detection
        hosts = self.targets(kind)
        if hosts is None:
            return
        number, generator = next(self.numbers), kind.function(self, hosts)
        self.note(number, kind, hosts, True)
        next(generator)
        self.count[kind.function.__name__] += 1
        self.active.append((now() + lasts, number, kind, hosts, generator))

    def end(self, due):
        for entry in [entry for entry in self.active if entry[0] <= due]:
            _, number, kind, hosts, generator = entry
            self.active.remove(entry)
            next(generator, None)
            self.note(number, kind, hosts, False)

    def boot_waiting(self):
        waiting, self.waiting = self.waiting, []
        for host in waiting:
            self.boot_again(host)

    def note(self, number, kind, hosts, on):
        value = {
            "number": number, "name": kind.function.__name__, "kind": kind.kind,
            "hosts": [host.index for host in hosts], "on": on,
        }  # fmt: skip
        self.lab.note("soak", "injected", value)

    def round(self, seconds):
        ends = now() + seconds
        while now() < ends:
            if len(self.active) < AT_A_TIME:
                self.begin()
            pause = now() + self.chance.uniform(0.1, 1.0) * self.lab.timings.D
            while now() < pause:
                self.end(now())
                self.boot_waiting()
                time.sleep(0.05)
        # those of the storage first: a killed node may wait in it
        self.active.sort(key=lambda entry: entry[2].kind != "storage")
        self.end(lab_checker.FOREVER)
        self.lab.heal()
        self.recover()

    def recover(self):
        since = now()
        try:
            until(lambda: self.whole(), self.bound, "all agree")
            self.lab.note("soak", "agreed", round(now() - since, 3))
        except AssertionError:
            views = ["%s %s" % (n, n.view) for n in self.lab.living()]
            text = "liveness: at %.3f all did not agree %.0f s after healing: %s"
            self.findings.append(text % (now(), self.bound, "; ".join(views)))
            self.lab.note("soak", "agreed", None)
        for node in self.lab.nodes:
            if node.all("exit") or node.all("refused"):
                said = [e["text"] for e in node.all("log")][-3:]
                if not (node.ended or node.all("joined") and not node.all("exit")):
                    self.findings.append("liveness: %s was sent home: %s" % (node, said))

    def whole(self):
        self.boot_waiting()
        living = self.lab.living()
        if len(living) != self.size or not self.lab.agree(living):
            return False
        ids = {node.name: node.last("joined")["id"] for node in living}
        return self.lab.records() == ids

    def watch_the_machine(self):
        while self.watching:
            at = now()
            time.sleep(0.1)
            if now() > at + 0.5:
                self.lab.note("machine", "late", round(now() - at, 3))

    def run(self, seconds):
        threading.Thread(target=self.watch_the_machine, daemon=True).start()
        for index in range(self.size):
            host = self.lab.host()
            self.boot(host, "h%d" % host.index, create=host.index == 1)
        self.recover()
        ends = now() + seconds
        longest = 12 * self.lab.timings.D
        while now() < ends:
            left = ends - now()
            self.round(min(left, self.chance.uniform(0.5, 1.0) * longest))
            time.sleep(self.lab.timings.C)
        self.lab.note("soak", "over", True)
        self.watching = False
        with concurrent.futures.ThreadPoolExecutor(self.size) as pool:
            list(pool.map(lambda node: node.stop(30), self.lab.living()))


def accounts(events, timings):
    """Every second without a primary, by what explains it.

    Returns ({explanation: seconds}, [what nothing explains]). A fault explains the
    time in which it lasts, and the failover after it.
    """
    failover = timings.D + timings.L + 2 * timings.C + 1
    began, causes = {}, []
    for event in events:
        if event.get("what") == "injected":
            value = event["value"]
            if value["on"]:
                began[value["number"]] = event["at"]
            else:
                at = began.pop(value["number"])
                if value["name"] not in HARMLESS:
                    causes.append((at, event["at"], value["name"]))
    over = next((e["at"] for e in events if e.get("what") == "over"), events[-1]["at"])
    seconds, left = collections.Counter(), []
    for begin, end in lab_checker.without_primary(events):
        at, end = begin, min(end, over)
        while at < end:
            step = min(at + 0.05, end)
            during = [name for b, e, name in causes if b <= at <= e]
            after = [name for b, e, name in causes if e < at <= e + failover]
            if during or after:
                seconds["during faults" if during else "after faults"] += step - at
            else:
                seconds["unexplained"] += step - at
                left.append((at, begin, end))
            at = step
    text = "liveness: no primary from %.3f to %.3f, and no fault explains %.3f"
    by_gap = {gap: at for at, *gap in map(tuple, left) for gap in [tuple(gap)]}
    return seconds, [text % (b, e, at) for (b, e), at in by_gap.items()]


def verdict(findings, events):
    """true, false, or unknown if each finding is near to a stall of the machine."""
    if not findings:
        return "true"
    late = [e for e in events if e.get("what") == "late" and e["value"] > 1]
    return "unknown" if late and all("liveness" in f for f in findings) else "false"


def figures(events, timings):
    spans = lab_checker.spans(events)
    over = next((e["at"] for e in events if e.get("what") == "over"), events[-1]["at"])
    seconds, _ = accounts(events, timings)
    agreed = [e["value"] for e in events if e.get("what") == "agreed"]
    injected = [e for e in events if e.get("what") == "injected" and e["value"]["on"]]
    return {
        "seconds": round(over - events[0]["at"], 1),
        "faults": len(injected),
        "terms": len(spans),
        "rounds": len(agreed),
        "longest healing": max((a for a in agreed if a is not None), default=None),
        "overlaps": len(lab_checker.overlaps(events)),
        "without primary": {name: round(value, 1) for name, value in seconds.items()},
        "machine late": len([e for e in events if e.get("what") == "late"]),
        "drops": sum(lab_checker.drops(events).values()),
    }


# --------------------------------------------------------------------------------
# The picture
# --------------------------------------------------------------------------------

COLOURS = {"network": "#7aa6d6", "storage": "#e3b04b", "process": "#c0504d",
           "clock": "#9bbb59"}  # fmt: skip


def draw(events, path, title):
    """A lane per host: who was primary, in which term; faults are shaded."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    zero = events[0]["at"]
    over = next((e["at"] for e in events if e.get("what") == "over"), events[-1]["at"])
    width = max(8, min(24, (over - zero) / 60))
    names = {e["run"]: e["name"] for e in events if e["e"] == "boot"}
    lane = {run: int(name[1:].split("-")[0]) for run, name in names.items()}
    lanes = max(lane.values())
    figure, axes = plt.subplots(figsize=(width, 0.6 * lanes + 1.2), dpi=80)
    began = {}
    for event in events:
        if event.get("what") != "injected":
            continue
        value = event["value"]
        if value["on"]:
            began[value["number"]] = event["at"]
            continue
        start = began.pop(value["number"])
        offset = {"network": 0.4, "storage": 0.2, "process": -0.2, "clock": -0.4}
        for index in value["hosts"]:
            low = index + offset[value["kind"]] - 0.1
            axes.broken_barh([(start - zero, event["at"] - start)], (low, 0.2),
                             color=COLOURS[value["kind"]], linewidth=0)  # fmt: skip
    paused = lab_checker.pauses(events)
    for number, span in enumerate(lab_checker.spans(events), 1):
        asleep = [at for at, woken in paused.get(span.run, []) if woken >= span.end]
        length = min([span.end, over] + asleep) - span.begin
        axes.broken_barh([(span.begin - zero, length)], (lane[span.run] - 0.1, 0.2),
                         color="#222222", linewidth=0)  # fmt: skip
        if length > (over - zero) / 120:
            axes.text(span.begin - zero, lane[span.run] + 0.1, str(number), fontsize=6)
    for gap_begin, gap_end in lab_checker.without_primary(events):
        axes.axvspan(gap_begin - zero, min(gap_end, over) - zero, color="#f4dede",
                     zorder=0, linewidth=0)  # fmt: skip
    axes.set_yticks(range(1, lanes + 1), ["h%d" % n for n in range(1, lanes + 1)])
    axes.set_xlim(0, over - zero)
    axes.set_xlabel("seconds; black: primary, with the number of its term; "
                    "pink: no primary; above: faults of network (blue), storage "
                    "(yellow); below: process (red), clock (green)", fontsize=7)
    axes.set_title(title, fontsize=8)
    figure.tight_layout()
    figure.savefig(path)
    plt.close(figure)


# --------------------------------------------------------------------------------
# Command line
# --------------------------------------------------------------------------------


def soak(seed, minutes, nodes, profile=QUICK, history=None):
    """Returns (verdict, findings, figures, events)."""
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        with Lab(profile, history=history or folder) as lab:
            run = Soak(lab, seed, nodes)
            try:
                run.run(60 * minutes)
            finally:
                run.watching = False
            findings = run.findings + lab.findings()
            events = lab_checker.load(lab.history)
    findings += accounts(events, lab.timings)[1]
    return verdict(findings, events), findings, figures(events, lab.timings), events


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=1)
    parser.add_argument("--nodes", type=int, default=5)
    parser.add_argument("--picture", help="a PNG file to write")
    parser.add_argument("--history", help="a folder to keep the history in")
    parser.add_argument("--fast", action="store_true", help="0.5/1.5/2/0.5 s")
    options = parser.parse_args()
    profile = Profile(0.5, 1.5, 2, 0.5) if options.fast else QUICK
    result, findings, numbers, events = soak(
        options.seed, options.minutes, options.nodes, profile, options.history
    )
    for text in findings:
        print(text)
    title = "seed %d, %d nodes, %g minutes: %s" % (
        options.seed, options.nodes, options.minutes, result
    )  # fmt: skip
    if options.picture:
        draw(events, options.picture, title)
    print(title, json.dumps(numbers), sep="\n")
    return result == "false"


if __name__ == "__main__":
    sys.exit(main())
