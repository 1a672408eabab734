"""A laboratory of real faults: real processes, sockets and file systems (Linux, root).

Every host is a network namespace with an address of its own on a bridge, and a mount
namespace with its own view of one shared folder, through FUSE. Nodes run in hosts.
What is done to them is written to a history, as is what they do; `lab_checker` judges
it afterwards.

    with Lab() as lab:
        nodes = lab.trio()
        lab.settle()
        lab.cut(nodes[0], nodes[1])

Nothing is left behind: what runs here ends when its standard input is closed, and a
new laboratory removes what a killed one could not.
"""

import atexit
import collections
import contextlib
import itertools
import json
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time
import weakref

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, HERE)
sys.path.insert(1, os.path.dirname(HERE))

import lab_checker  # noqa: E402
import lab_nfs  # noqa: E402
from lab_programs import now  # noqa: E402

PROGRAM = os.path.join(HERE, "lab_programs.py")
TOOLS = ("ip", "nft", "nsenter", "unshare", "mount", "fusermount3", "gcc")
PREFIX, WORK = "cl-", "cluster-lab-"  # of namespaces and folders; the pid follows
NETWORK = "10.77.0."
EACH_CALL = 20  # seconds after which a command of the laboratory is given up

# LD_PRELOAD: the wall clock alone, moved by the number of seconds in a mapped file
SHIM = r"""
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>
static volatile double *jump;
__attribute__((constructor)) static void start(void) {
    int file = open(getenv("WALL_JUMP"), O_RDONLY);
    jump = mmap(0, sizeof *jump, PROT_READ, MAP_SHARED, file, 0);
    close(file);
}
int clock_gettime(clockid_t which, struct timespec *at) {
    int failed = syscall(SYS_clock_gettime, which, at);
    if (!failed && which == CLOCK_REALTIME) at->tv_sec += (long)*jump;
    return failed;
}
int gettimeofday(struct timeval *at, void *zone) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    at->tv_sec = now.tv_sec;
    at->tv_usec = now.tv_nsec / 1000;
    return 0;
}
time_t time(time_t *at) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (at) *at = now.tv_sec;
    return now.tv_sec;
}
"""

Profile = collections.namedtuple("Profile", "H T M C")
QUICK = Profile(1, 3, 2, 1)
SLOW = Profile(5, 10, 2, 2)


class Timings:
    """What the design says follows from a profile."""

    def __init__(self, profile):
        self.H, self.T, self.M, self.C = profile
        self.D = self.T + (self.M - 1) * self.C
        self.L = self.T
        self.R = self.L * 2 / 3
        self.period = min(self.C, self.L / 5)


def missing():
    """Why the laboratory cannot be had here, or None."""
    if not sys.platform.startswith("linux") or os.geteuid() != 0:
        return "the laboratory needs Linux and root"
    tools = [tool for tool in TOOLS if not shutil.which(tool)]
    if tools:
        return "the laboratory needs " + ", ".join(tools)
    if not os.path.exists("/dev/fuse"):
        return "the laboratory needs /dev/fuse"
    try:
        import mfusepy  # noqa: F401
    except (ImportError, OSError) as error:
        return "the laboratory needs mfusepy: %s" % error
    try:
        run("ip", "netns", "add", PREFIX + "%d-0-probe" % os.getpid())
        run("ip", "netns", "del", PREFIX + "%d-0-probe" % os.getpid())
    except RuntimeError as error:
        return "network namespaces are not allowed: %s" % error
    return None


def run(*command, **kwargs):
    done = subprocess.run(
        command, timeout=EACH_CALL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        universal_newlines=True, **kwargs
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError("%s: %s" % (" ".join(command), done.stdout.strip()))
    return done.stdout


def until(condition, seconds, what="it"):
    """Waits for a condition; returns after how long, in seconds."""
    began = now()
    while not condition():
        if now() - began > seconds:
            raise AssertionError("not within %.1f s: %s" % (seconds, what))
        time.sleep(0.01)
    return now() - began


def sweep():
    """Removes what laboratories left whose process is gone."""

    def stale(folder, prefix):
        for name in os.listdir(folder) if os.path.isdir(folder) else []:
            owner = re.match(re.escape(prefix) + r"(\d+)-", name)
            if owner and not os.path.exists("/proc/" + owner.group(1)):
                yield name

    for name in stale(tempfile.gettempdir(), WORK):
        shutil.rmtree(os.path.join(tempfile.gettempdir(), name), ignore_errors=True)
    for name in stale("/run/netns", PREFIX):
        with contextlib.suppress(RuntimeError, OSError):
            for pid in run("ip", "netns", "pids", name).split():
                os.kill(int(pid), signal.SIGKILL)
        with contextlib.suppress(RuntimeError):
            run("ip", "netns", "del", name)


class Host:
    """A network namespace, a mount namespace, and a share with faults of its own."""

    def __init__(self, lab, index, boot_id=None):
        self.lab, self.index = lab, index
        self.name = "h%d" % index
        self.namespace = lab.namespace(self.name)
        self.ip = NETWORK + str(index)
        self.rules = []
        self.folder = os.path.join(lab.work, self.name)
        self.mount = os.path.join(self.folder, "share")
        self.wall = os.path.join(self.folder, "wall")
        self.covered = False
        os.makedirs(self.mount)
        os.mkdir(os.path.join(self.folder, "empty"))
        self.jump_wall(0)
        lab.plug_in(self.namespace, "p%d" % index, self.ip)
        self._start_share()
        if boot_id:
            file = os.path.join(self.folder, "boot_id")
            with open(file, "w") as target:
                target.write(boot_id + "\n")
            self.run("mount", "--bind", file, "/proc/sys/kernel/random/boot_id")

    def _start_share(self):
        settings = {"root": self.lab.root, "mount": self.mount}
        self.share = subprocess.Popen(
            ["ip", "netns", "exec", self.namespace, "unshare", "-m",
             sys.executable, PROGRAM, "share", json.dumps(settings)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, universal_newlines=True,
            stderr=self.lab.errors, start_new_session=True,
        )  # fmt: skip
        self._await_share()

    def _await_share(self):
        watchdog = threading.Timer(EACH_CALL, self.share.kill)
        watchdog.start()
        answer = self.share.stdout.readline()
        watchdog.cancel()
        if not answer:
            raise RuntimeError("the share of %s ended" % self.name)

    def inside(self):
        return ["nsenter", "--net=/run/netns/" + self.namespace,
                "--mount=/proc/%d/ns/mnt" % self.share.pid]  # fmt: skip

    def run(self, *command, **kwargs):
        return run(*self.inside() + list(command), **kwargs)

    # ---- storage

    def storage(self, **fault):
        """Sets the fault of the share; none puts it back. See `lab_programs.Gate`."""
        self.lab.note(self, "storage", fault)
        self.share.stdin.write(json.dumps(fault) + "\n")
        self.share.stdin.flush()
        self._await_share()

    def unmount(self):
        """An empty local folder where the share was."""
        self.lab.note(self, "unmounted", True)
        self.run("mount", "--bind", os.path.join(self.folder, "empty"), self.mount)
        self.covered = True

    def remount(self):
        if self.covered:
            self.run("umount", self.mount)
            self.covered = False
            self.lab.note(self, "unmounted", False)

    # ---- network

    def rule(self, text):
        """Adds a rule to what comes in, in the words of nft."""
        self.rules.append(text)
        self._apply_rules()

    def unrule(self, text):
        self.rules.remove(text)
        self._apply_rules()

    def _apply_rules(self):
        self.lab.note(self, "network", self.rules)
        lines = ["table inet lab", "flush table inet lab", "table inet lab {"]
        lines += ["chain in { type filter hook input priority 0;"]
        lines += self.rules + ["}", "}"]
        self.run("nft", "-f", "-", input="\n".join(lines) + "\n")

    def link(self, up):
        """Pulls the cable out of the host, or puts it back."""
        self.lab.note(self, "link", not up)
        state = "up" if up else "down"
        run("ip", "-n", self.namespace, "link", "set", "eth0", state)

    def move(self, ip):
        """Gives the host another address."""
        self.lab.note(self, "address", ip)
        commands = "addr flush dev eth0\naddr add %s/24 dev eth0\n" % ip
        run("ip", "-n", self.namespace, "-batch", "-", input=commands)

    # ---- clock

    def jump_wall(self, seconds):
        with open(self.wall, "r+b" if os.path.exists(self.wall) else "wb") as file:
            file.write(struct.pack("d", seconds))

    def heal(self):
        self.remount()
        self.storage()
        self.jump_wall(0)
        if self.rules:
            self.rules = []
            self._apply_rules()
        self.link(True)

    def close(self):
        self.share.kill()  # first: whatever hangs in its mount gets ENOTCONN
        self.share.wait(EACH_CALL)
        self.share.stdin.close()
        self.share.stdout.close()
        with contextlib.suppress(RuntimeError):
            run("ip", "netns", "del", self.namespace)


class Node:
    """One run of a node program; a restart is another one."""

    def __init__(self, lab, host, name, own_pids=False, wall=False, **settings):
        self.lab, self.host, self.name, self.own_pids = lab, host, name, own_pids
        self.run = "%s#%d" % (name, next(lab.runs))
        self.path = os.path.join(lab.history, self.run + ".jsonl")
        self._events, self._offset = [], 0
        self.ended = False
        self.cluster = settings.get("folder", lab.backing)
        control = dict(lab.control, host_name=host.ip, node_name=name)
        control.update(settings.pop("control", {}))
        self.settings = dict(
            dict(folder=host.mount, history=self.path, run=self.run, control=control,
                 ballast=0, create=True, broken=lab.broken, join_timeout=10),
            **settings
        )  # fmt: skip
        command = host.inside()
        if own_pids:
            command += ["unshare", "-p", "--fork", "--kill-child", "--mount-proc"]
        environment = dict(os.environ)
        if wall:
            environment.update(LD_PRELOAD=lab.shim(), WALL_JUMP=host.wall)
        self.process = subprocess.Popen(
            command + [sys.executable, PROGRAM, "node", json.dumps(self.settings)],
            stdin=subprocess.PIPE, universal_newlines=True, env=environment,
            stdout=lab.errors, stderr=lab.errors, start_new_session=True,
        )  # fmt: skip

    def __repr__(self):
        return self.run

    # ---- what it does

    @property
    def events(self):
        """What it has written so far."""
        try:
            with open(self.path, "rb") as file:
                file.seek(self._offset)
                lines = file.read()
        except FileNotFoundError:
            return self._events
        whole = lines[: lines.rfind(b"\n") + 1]
        self._offset += len(whole)
        self._events += [json.loads(line) for line in whole.splitlines()]
        return self._events

    def all(self, kind):
        return [event for event in list(self.events) if event["e"] == kind]

    def last(self, kind):
        return (self.all(kind) or [None])[-1]

    @property
    def view(self):
        return self.last("view") or {"nodes": {}, "active": [], "primary": None}

    def is_primary(self):
        """By its callbacks: it has begun to start, and not yet to stop."""
        return not self.ended and len(self.all("start")) > len(self.all("stop"))

    def joined(self):
        return bool(self.all("joined"))

    @property
    def port(self):
        return int(self.last("joined")["address"].rpartition(":")[2])

    # ---- what is done to it

    @property
    def pid(self):
        if not self.own_pids:
            return self.process.pid
        path = "/proc/{0}/task/{0}/children".format(self.process.pid)
        with open(path) as file:
            return int(file.read().split()[0])

    def order(self, do, **more):
        self.process.stdin.write(json.dumps(dict(more, do=do)) + "\n")
        self.process.stdin.flush()

    def pause(self):
        self.lab.note(self, "paused", True)
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self):
        os.kill(self.pid, signal.SIGCONT)
        self.lab.note(self, "paused", False)

    def kill(self):
        """Returns when it was done."""
        at = self.lab.note(self, "killed", True)
        self.ended = True
        with contextlib.suppress(ProcessLookupError, IndexError):
            os.kill(self.pid, signal.SIGKILL)
        return at

    def stop(self, seconds=20):
        """In an orderly way; waits for its end."""
        self.order("stop")
        self.process.wait(seconds)
        self.ended = True

    def close(self):
        if not self.ended and self.process.poll() is None:
            self.kill()
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()

    def wait(self):
        try:
            self.process.wait(EACH_CALL)
        except subprocess.TimeoutExpired:  # in a storage call: the share is gone by now
            self.process.kill()


class Lab:
    """Hosts on one bridge, one backing folder, and a history of all that happens."""

    _all = weakref.WeakSet()
    _numbers = itertools.count(1)

    def __init__(self, profile=QUICK, proof=True, own_pids=False, history=None,
                 broken=None, nfs=False):  # fmt: skip
        sweep()
        _clean_up_on_sigterm()
        self.number = next(Lab._numbers)
        self.timings = Timings(profile)
        self.own_pids, self.broken = own_pids, broken
        self.control = dict(
            hb_interval=profile.H, hb_timeout=profile.T, hb_missed_count=profile.M,
            check_interval=profile.C, same_host_proof=proof,
        )  # fmt: skip
        self.runs = itertools.count(1)
        self.hosts, self.nodes = [], []
        self.figures = {}
        self.work = tempfile.mkdtemp(prefix=WORK + "%d-" % os.getpid())
        self.backing = os.path.join(self.work, "backing")
        self.history = history or os.path.join(self.work, "history")
        for folder in (self.backing, self.history):
            os.makedirs(folder, exist_ok=True)
        self.errors = open(os.path.join(self.history, "errors.txt"), "w")
        self._notes = open(os.path.join(self.history, "lab.jsonl"), "w")
        self._lock = threading.Lock()
        self.switch = self.namespace("sw")
        self.closed = False
        Lab._all.add(self)
        run("ip", "netns", "add", self.switch)
        run("ip", "-n", self.switch, "link", "add", "br0", "type", "bridge")
        run("ip", "-n", self.switch, "link", "set", "br0", "up")
        self.root, self.server = self.backing, None
        if nfs:
            self._start_server()

    def _start_server(self):
        """What is in the backing folder goes to the hosts over NFS."""
        namespace = self.namespace("nfs")
        self.plug_in(namespace, "pnfs", lab_nfs.IP)
        self.server = lab_nfs.Server(namespace, self.backing, self.work)
        self.root = self.server.url

    def plug_in(self, namespace, port, ip):
        """Makes a network namespace with that address on the bridge."""
        run("ip", "netns", "add", namespace)
        run("ip", "-n", self.switch, "link", "add", port, "type", "veth", "peer",
            "name", "eth0", "netns", namespace)  # fmt: skip
        run("ip", "-n", self.switch, "link", "set", port, "master", "br0", "up")
        commands = "addr add %s/24 dev eth0\nlink set eth0 up\nlink set lo up\n"
        run("ip", "-n", namespace, "-batch", "-", input=commands % ip)

    def namespace(self, name):
        return "%s%d-%d-%s" % (PREFIX, os.getpid(), self.number, name)

    def note(self, who, what, value):
        """Writes down what is done; returns when."""
        at = now()
        entry = {"e": "fault", "at": at, "who": str(getattr(who, "name", who)),
                 "run": getattr(who, "run", None) if isinstance(who, Node) else None,
                 "what": what, "value": value}  # fmt: skip
        with self._lock:
            self._notes.write(json.dumps(entry) + "\n")
            self._notes.flush()
        return at

    def shim(self):
        library = os.path.join(self.work, "wall.so")
        if not os.path.exists(library):
            command = ["gcc", "-shared", "-fPIC", "-O1", "-o", library, "-xc", "-"]
            run(*command, input=SHIM)
        return library

    # ---- building

    def host(self, **options):
        host = Host(self, len(self.hosts) + 1, **options)
        self.hosts.append(host)
        return host

    def node(self, name=None, host=None, **settings):
        """Starts a node, on a new host unless one is given."""
        settings.setdefault("own_pids", self.own_pids)
        host = host or self.host()
        node = Node(self, host, name or "n%d" % host.index, **settings)
        self.nodes.append(node)
        return node

    def again(self, node, **settings):
        """The same node once more: same name, host and port."""
        control = dict(node.settings["control"], hb_port=node.port)
        settings = dict(dict(control=control, own_pids=node.own_pids), **settings)
        return self.node(node.name, node.host, **settings)

    def start(self, count, **settings):
        """So many nodes, each on a host of its own, the first one as primary."""
        nodes = [self.node(**settings)]
        until(lambda: nodes[0].is_primary(), 10, "the first node is primary")
        for _ in range(count - 1):
            nodes.append(self.node(**settings))
        self.settle()
        return nodes

    # ---- looking

    def living(self):
        return [n for n in self.nodes if not n.ended and not n.all("left")
                and not n.all("exit") and not n.all("refused")]  # fmt: skip

    def primaries(self, nodes=None):
        nodes = self.living() if nodes is None else nodes
        return [node for node in nodes if node.is_primary()]

    def primary(self):
        found = self.primaries()
        assert len(found) == 1, "primaries: %r" % found
        return found[0]

    def others(self):
        primary = self.primary()
        return primary, [node for node in self.living() if node is not primary]

    def agree(self, nodes=None):
        """All know the same members, all active, and the same primary."""
        nodes = self.living() if nodes is None else nodes
        if not all(node.joined() for node in nodes):
            return False
        ids = {node.name: node.last("joined")["id"] for node in nodes}
        primaries = self.primaries(nodes)
        return len(primaries) == 1 and all(
            node.view["nodes"] == ids
            and node.view["storage"] == "ok"
            and node.view["active"] == sorted(ids)
            and node.view["primary"] == primaries[0].name
            for node in nodes
        )

    def settle(self, seconds=None, nodes=None):
        timings = self.timings
        seconds = 10 + 2 * (timings.D + timings.L) if seconds is None else seconds
        return until(lambda: self.agree(nodes), seconds, "all agree")

    def records(self):
        """Who has a record in the store: {name: incarnation}."""
        folder = os.path.join(self.backing, "cluster-lab", "nodes")
        found = {}
        for name in os.listdir(folder):
            if name.endswith(".json"):
                with open(os.path.join(folder, name)) as file:
                    record = json.load(file)
                found[record["name"]] = record["incarnation"]
        return found

    # ---- the network

    def cut(self, node, other, both=True, how="drop"):
        """What `other` sends no longer reaches `node`; nor the reverse, if both."""
        node.host.rule("ip saddr %s %s" % (other.host.ip, how))
        if both:
            other.host.rule("ip saddr %s %s" % (node.host.ip, how))

    def isolate(self, node, how="drop"):
        for other in self.hosts:
            if other is not node.host:
                node.host.rules.append("ip saddr %s %s" % (other.ip, how))
                other.rule("ip saddr %s %s" % (node.host.ip, how))
        node.host._apply_rules()

    def all_udp(self, how="drop"):
        for host in self.hosts:
            host.rule("meta l4proto udp ip saddr != %s %s" % (host.ip, how))

    def all_storage(self, **fault):
        for host in self.hosts:
            host.storage(**fault)

    def heal(self):
        for host in self.hosts:
            host.heal()
        self.note("lab", "healed", True)

    # ---- the end

    def findings(self):
        """What is wrong with the history so far."""
        events, found = lab_checker.load(self.history), []
        for folder in {node.cluster for node in self.nodes}:  # most have one cluster
            apart = {node.run for node in self.nodes if node.cluster != folder}
            own = [event for event in events if event.get("run") not in apart]
            found += lab_checker.check(own, self.timings)
        return found

    def close(self):
        if self.closed:
            return
        self.closed = True
        for node in self.nodes:
            with contextlib.suppress(OSError):
                node.close()
        for host in self.hosts:
            host.close()
        for node in self.nodes:
            node.wait()
        if self.server is not None:
            self.server.close()
            with contextlib.suppress(RuntimeError):
                run("ip", "netns", "del", self.namespace("nfs"))
        with contextlib.suppress(RuntimeError):
            run("ip", "netns", "del", self.switch)
        self.errors.close()
        self._notes.close()
        shutil.rmtree(self.work, ignore_errors=True)

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.close()


def close_all():
    for lab in list(Lab._all):
        lab.close()


def _clean_up_on_sigterm():
    main = threading.current_thread() is threading.main_thread()
    if main and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))


atexit.register(close_all)


def table(rows):
    """The longest of each figure, over all sizes: one line per scenario."""
    profiles = sorted({row[0] for row in rows})
    columns = [(profile, proof) for profile in profiles for proof in ("on", "off")]
    worst = collections.OrderedDict()
    for profile, size, proof, name, figures in rows:
        sizes, cells = worst.setdefault(name, (set(), collections.defaultdict(dict)))
        sizes.add(size)
        cell = cells[profile, proof]
        for figure, seconds in figures.items():
            if figure != "drops":
                cell[figure] = max(seconds, cell.get(figure, 0))
    titles = ["%s, proof %s" % column for column in columns]
    lines = ["| scenario | nodes | " + " | ".join(titles) + " |"]
    lines += ["| --- " * (2 + len(columns)) + "|"]
    for name, (sizes, cells) in worst.items():
        line = [name.replace("_", " "), ", ".join(map(str, sorted(sizes)))]
        for column in columns:
            figures = sorted(cells[column].items(), reverse=True)
            line.append(", ".join("%s %.1f" % figure for figure in figures))
        lines.append("| " + " | ".join(line) + " |")
    return "\n".join(lines)


def main():
    import argparse
    import concurrent.futures

    import lab_scenarios

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--matrix", action="store_true", help="all profiles and sizes")
    parser.add_argument("--size", type=int, help="this size alone")
    parser.add_argument("--at-once", type=int, default=4, help="scenarios side by side")
    parser.add_argument("scenarios", nargs="*", help="all, if none is named")
    options = parser.parse_args()
    profiles = [QUICK, SLOW] if options.matrix else [QUICK]
    cases = [
        (profile, size, proof, name)
        for profile in profiles
        for name in options.scenarios or lab_scenarios.SCENARIOS
        if not lab_scenarios.why_not(name)
        for size in lab_scenarios.SCENARIOS[name].sizes
        for proof in ((True, False) if options.matrix else (True,))
        if size == (options.size or size)
    ]
    failed, rows = [], []

    def play(case):
        profile, size, proof, name = case
        return lab_scenarios.play(name, size, profile, proof)

    with concurrent.futures.ThreadPoolExecutor(options.at_once) as pool:
        for case, outcome in zip(cases, pool.map(play, cases)):
            profile, size, proof, name = case
            figures = ", ".join("%s %s" % item for item in outcome.figures.items())
            print("| %s | %s | %d | %s | %s | %s | %.1f |" % (
                name.replace("_", " "), "/".join(map(str, profile)), size,
                "on" if proof else "off", outcome.verdict, figures, outcome.seconds,
            ), flush=True)  # fmt: skip
            row = ("/".join(map(str, profile)), size, "on" if proof else "off", name)
            rows.append(row + (outcome.figures,))
            if not outcome.verdict:
                failed.append(case)
                print(outcome.text, file=sys.stderr, flush=True)
    print("\nThe longest, in seconds:\n\n%s\n" % table(rows))
    print("%d of %d failed: %s" % (len(failed), len(cases), failed))
    return bool(failed)


if __name__ == "__main__":
    sys.modules["lab"] = sys.modules["__main__"]  # the scenarios import it
    sys.exit(main())
