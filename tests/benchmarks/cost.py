"""What a node costs: to import, to ask, to store, and while nothing happens.

Run as a program it is one process with some idle nodes, which answers the words
`report` and `view`. So nothing but what a user's program would import is imported
at the top. Each measure yields (what, unit, values), or (what, None, why not).
"""

import json
import os
import sys
import time

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.dirname(os.path.dirname(HERE)))

import cluster  # noqa: E402

QUICKLY = dict(hb_interval=1, hb_timeout=3, hb_missed_count=2, check_interval=1)
CALMLY = dict(hb_interval=5, hb_timeout=10, hb_missed_count=2, check_interval=2)
PER_PROCESS = 25  # nodes
STORE = "1" * 16
TAG = cluster._cluster_tag("lab", STORE)


# ---- the process that is measured


class Counted:
    """Counts what a node sends, receives and asks its storage for."""

    def __init__(self):
        self.packets = self.bytes = self.operations = 0
        self.around(cluster._Socket, "send", lambda result, data: len(data))
        for name in ("read", "write_node", "remove_node", "swap_lease"):
            self.around(cluster.SharedFsStorageBackend, name)

    def around(self, owner, name, size=None):
        call = getattr(owner, name)

        def counted(this, *arguments):
            result = call(this, *arguments)
            if size:
                self.packets += 1
                self.bytes += size(result, arguments[0])
            else:
                self.operations += 1
            return result

        setattr(owner, name, counted)


def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def serve(names, folder, timings, counts):
    counted = Counted() if counts else None
    controls = []
    for name in names:
        backend = cluster.SharedFsStorageBackend(folder)
        one = cluster.ClusterControl(
            "lab", "127.0.0.1", name, storage_backend=backend, **timings
        )
        cluster.join_cluster(one, timeout=120)
        one.start()
        controls.append(one)
    for line in sys.stdin:
        if line.strip() == "view":
            views = [list(one.cluster.nodes.values()) for one in controls]
            answer = {
                "active": min(sum(n.is_active for n in nodes) for nodes in views),
                "primary": any(one.is_primary for one in controls),
            }
        else:
            threads = len(os.listdir("/proc/self/task")) - 1
            answer = dict(vars(counted)) if counted else {}
            answer.update(
                cpu=time.process_time(), at=time.monotonic(), memory=resident(),
                threads=threads / len(controls),
            )  # fmt: skip
        print(json.dumps(answer), flush=True)
    for one in controls:
        one.stop()
    for one in controls:
        one.join(10)


class Idle:
    """Handle of such a process."""

    def __init__(self, names, folder, timings, counts=False):
        import subprocess

        arguments = json.dumps([names, folder, timings, counts])
        self.size = len(names)
        self.process = subprocess.Popen(
            [sys.executable, os.path.abspath(__file__), arguments],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, universal_newlines=True,
        )  # fmt: skip

    def ask(self, word):
        self.process.stdin.write(word + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def close(self):
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()


# ---- idle nodes


def settle(processes, number):
    """Waits until each node counts all as active."""
    deadline = time.monotonic() + 60 + number
    while any(each.ask("view")["active"] < number for each in processes):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.5)


def rates(process, seconds):
    """Per node and second, while nothing happens."""
    before = process.ask("report")
    time.sleep(seconds)
    after = process.ask("report")
    spent = (after["at"] - before["at"]) * process.size
    found = {key: (after[key] - before[key]) / spent for key in after}
    return dict(found, memory=after["memory"], threads=after["threads"])


def all_rates(processes, seconds):
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(len(processes)) as pool:
        return list(pool.map(lambda each: rates(each, seconds), processes))


def system_calls(process, seconds):
    """Per node and second, as strace counts them; None where it can't."""
    import shutil
    import signal
    import subprocess

    if not shutil.which("strace"):
        return None
    command = ["strace", "-f", "-c", "-p", str(process.process.pid)]
    trace = subprocess.Popen(command, stderr=subprocess.PIPE, universal_newlines=True)
    time.sleep(seconds)
    trace.send_signal(signal.SIGINT)
    total = [line.split() for line in trace.communicate()[1].splitlines()]
    calls = [int(line[3]) for line in total if line and line[-1] == "total"]
    return calls[0] / seconds / process.size if calls else None


def bare_memory():
    import subprocess

    program = "import os; print(open('/proc/self/statm').read().split()[1])"
    pages = int(subprocess.check_output([sys.executable, "-c", program]))
    return pages * os.sysconf("SC_PAGE_SIZE")


def cluster_of(number, folder, timings, counts):
    names = ["n%d" % i for i in range(number)]
    step = PER_PROCESS if number > 3 else 1
    groups = [names[i : i + step] for i in range(0, number, step)]
    return [Idle(group, folder, timings, counts) for group in groups]


def idle_at(number, timings, seconds, folder):
    """CPU first, undisturbed; then in a second cluster what counting finds."""
    import tempfile

    title = "N = %d at %d/%d/%d/%d, " % ((number,) + tuple(timings.values()))
    found = []
    for counts in (False, True):
        with tempfile.TemporaryDirectory(dir=folder) as path:
            processes = cluster_of(number, path, timings, counts)
            try:
                settle(processes, number)
                first = [each.ask("view")["primary"] for each in processes]
                if not counts:
                    calls = [system_calls(each, seconds / 3) for each in processes[:3]]
                    time.sleep(timings["hb_interval"])
                found.append(list(zip(first, all_rates(processes, seconds))))
            finally:
                for each in processes:
                    each.close()
    cpu, counted = found
    if number == 3:
        for role, is_first in (("member", False), ("primary", True)):
            hourly = [3600 * r["cpu"] for first, r in cpu if first == is_first]
            yield title + role, "CPU s/h", hourly
        more = [(r["memory"] - bare_memory()) / 2**20 for _, r in cpu]
        yield title + "memory above a bare interpreter", "MiB", more
    yield title + "CPU per node", "% of a core", [100 * r["cpu"] for _, r in cpu]
    yield title + "threads per node", "", [r["threads"] for _, r in cpu]
    for key in ("packets", "bytes", "operations"):
        what = "storage operations" if key == "operations" else key + " sent"
        yield title + what + " per node", "/s", [r[key] for _, r in counted]
    calls = [each for each in calls if each is not None]
    if calls:
        yield title + "system calls per node", "/s", calls
    else:
        yield title + "system calls per node", None, "no strace, or it may not attach"


def exchange(descriptor, others, seconds):
    """A process that sends and receives a node's packets, and thinks nothing.

    Prints the CPU seconds that it took, and how often it woke.
    """
    import selectors
    import socket

    with socket.socket(fileno=descriptor) as own:
        own.setblocking(False)
        selector = selectors.DefaultSelector()
        selector.register(own, selectors.EVENT_READ)
        wakes, data, due = 0, bytes(150), time.monotonic()
        end, spent = due + seconds, time.process_time()
        while time.monotonic() < end:
            if time.monotonic() >= due:
                due += QUICKLY["hb_interval"]
                for address in others:
                    own.sendto(data, address)
            if selector.select(due - time.monotonic()):
                own.recv(len(data))
            wakes += 1
    print(json.dumps([time.process_time() - spent, wakes]))


def bare(quick, count, folder):
    """What Python and the system take for the packets of three idle nodes."""
    import socket
    import subprocess

    seconds = 3 if quick else 60
    sockets = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(3)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    program = "import cost; cost.exchange(%r, %r, %r)"
    running = []
    for each in sockets:
        others = [other.getsockname() for other in sockets if other is not each]
        code = program % (each.fileno(), others, seconds)
        running.append(
            subprocess.Popen(
                [sys.executable, "-c", code],
                stdout=subprocess.PIPE, cwd=HERE, pass_fds=[each.fileno()],
            )
        )  # fmt: skip
    for each in sockets:
        each.close()
    found = [json.loads(each.communicate()[0]) for each in running]
    title = "packets of N = 3 at 1/3/2/1, by a loop that does nothing else: "
    yield title + "CPU", "CPU s/h", [3600 * cpu / seconds for cpu, _ in found]
    yield title + "each wake", "s", [cpu / wakes for cpu, wakes in found]


def idle(quick, count, folder):
    """Three nodes, a process each."""
    for timings in (QUICKLY,) if quick else (QUICKLY, CALMLY):
        yield from idle_at(3, timings, 3 if quick else 60, folder)


def large(quick, count, folder):
    """Full meshes of real nodes, up to 25 in a process."""
    for number in (10,) if quick else (10, 30, 100, 300):
        if number > 50 * os.cpu_count():  # they would only show that it is too busy
            yield "N = %d" % number, None, "too few cores"
            continue
        yield from idle_at(number, CALMLY, 3 if quick else 30, folder)


# ---- one core among very many, in virtual time


class Crowd:
    """One member, and the heartbeats of as many others as one likes."""

    def __init__(self, number, timings):
        def record(i):
            address = "10.0.%d.%d" % (i // 250, i % 250 + 1)
            name = "%016x" % (i + 1)
            return cluster.NodeRecord("n%d" % i, name, address, 4433, None, i + 1)

        self.now, self.counter, self.sent = 0.0, 1, {}
        self.timings = timings
        self.records = [record(i) for i in range(number)]
        self.roster = frozenset(each.incarnation for each in self.records[1:])
        own = self.records[-1]._replace(join_number=0)
        self.core = cluster.Core(timings, own, 0.0, 1)
        self.packets = 0

    def snapshot(self):
        holder = self.records[0].incarnation
        lease = cluster.Lease(
            1, self.counter, holder, True, False, self.roster,
            self.timings.lease_duration, 300.0, 60.0,
        )  # fmt: skip
        return cluster.Snapshot(STORE, lease, tuple(self.records))

    def step(self, *events):
        for action in self.core.step(self.now, *events):
            if isinstance(action, cluster.Call):
                self.step(cluster.Returned(action.id, self.answer(action.request)))
            elif isinstance(action, cluster.Send):
                data = cluster.encode_heartbeat(action.heartbeat, TAG)
                self.packets += 1
                self.sent[action.heartbeat.receiver] = action.heartbeat.sent
                assert len(data) < cluster.MAX_PACKET

    def answer(self, request):
        if isinstance(request, cluster.Open):
            return STORE
        if isinstance(request, cluster.Join):
            return self.records[-1]
        return self.snapshot() if isinstance(request, cluster.Read) else None

    def datagrams(self):
        """What all others send in one heartbeat interval, spread over it."""
        own = self.records[-1].incarnation
        return [
            cluster.encode_heartbeat(
                cluster.Heartbeat(
                    each.incarnation, own, int(1e6 * self.now) + 1,
                    self.sent.get(each.incarnation, 0), 1, self.counter,
                    self.records[0].incarnation, True, candidate=True,
                ),
                TAG,
            )
            for each in self.records[:-1]
        ]  # fmt: skip

    def interval(self):
        """Lives through one heartbeat interval; returns the CPU seconds it took."""
        self.counter += 1
        packets = self.datagrams()
        step = self.timings.hb_interval / len(packets)
        began = time.process_time()
        for data in packets:
            self.now += step
            heard = cluster.Heard(cluster.decode_heartbeat(data, TAG), ("", 0))
            self.step(heard)
        return time.process_time() - began


def simulated(quick, count, folder):
    """One member's decisions and packets, without system calls."""
    timings = cluster.Timings(5.0, 10.0, 2, 2.0, 10.0)
    for number in (100,) if quick else (100, 300, 1000, 3000):
        crowd = Crowd(number, timings)
        crowd.step()
        for _ in range(2):
            crowd.interval()
        share = [crowd.interval() / timings.hb_interval for _ in range(3)]
        assert len(crowd.core.active()) == number and not crowd.core.primacy[0]
        title = "N = %d at 5/10/2/2, one member in virtual time" % number
        yield title, "% of a core", [100 * each for each in share]


# ---- importing, asking, storing


def importing(quick, count, folder):
    """Above bare Python, from compiled files, each in a new interpreter."""
    import subprocess

    program = (
        "import sys, time; sys.path.insert(0, %r); began = time.process_time();"
        "import cluster; print(time.process_time() - began)"
    )
    place = os.path.dirname(cluster.__file__)
    command = [sys.executable, "-c", program % place]
    subprocess.check_output(command)
    times = [subprocess.check_output(command) for _ in range(3 if quick else 30)]
    yield "import cluster, CPU time", "s", [float(each) for each in times]


def is_primary(quick, count, folder):
    import tempfile
    import timeit

    with tempfile.TemporaryDirectory(dir=folder) as path:
        backend = cluster.SharedFsStorageBackend(path)
        control = cluster.ClusterControl("lab", "127.0.0.1", storage_backend=backend)
        with control:
            assert control.wait_for_primary(10)
            times = timeit.repeat(
                lambda: control.is_primary, timer=time.thread_time,
                repeat=3 if quick else 30, number=10000,
            )  # fmt: skip
            yield "control.is_primary, on the primary", "s", [t / 10000 for t in times]


def storage(quick, count, folder):
    """read and swap_lease of each backend, with 3 and with 100 records."""
    import tempfile

    with tempfile.TemporaryDirectory(dir=folder) as path:
        for number in (3,) if quick else (3, 100):
            own = os.path.join(path, str(number))
            os.mkdir(own)
            backend = cluster.SharedFsStorageBackend(own)
            yield from operations("SharedFs", backend, number, quick)
    yield from servers(quick, folder)


def servers(quick, folder):
    import tempfile

    import peers

    connect = getattr(cluster, "storage_from_url", None)
    for label, server, form in (
        ("Redis", peers.redis_server, "redis://127.0.0.1:%s/0"),
        ("PostgreSQL", peers.postgres_server, "postgresql://postgres@127.0.0.1:%s/"),
    ):
        if connect is None or quick:
            yield label + ": read, swap_lease", None, "no such backend, or --quick"
            continue
        try:
            with tempfile.TemporaryDirectory(dir=folder) as path:
                own = os.path.join(path, "server")
                os.mkdir(own)
                with server(own) as address:
                    port = str(address).split("port=")[-1]
                    for number in (3, 100):
                        backend = connect(form % port)
                        yield from operations(label, backend, number, quick)
        except (ImportError, peers.Missing, cluster.ClusterError) as error:
            yield label + ": read, swap_lease", None, str(error)


def operations(label, backend, number, quick):
    crowd = Crowd(number, cluster.Timings())
    backend.open("lab%d" % number)
    for record in crowd.records:
        backend.write_node(record)
    lease = crowd.snapshot().lease
    assert backend.swap_lease(backend.read().lease, lease)
    took = {}

    def timed(what, call, *arguments):
        began = time.perf_counter()
        result = call(*arguments)
        took.setdefault(what, []).append(time.perf_counter() - began)
        return result

    for _ in range(10 if quick else 200):
        renewed = lease._replace(counter=lease.counter + 1)
        assert timed("swap_lease", backend.swap_lease, lease, renewed)
        timed("read", backend.read)
        timed("read, nothing changed", backend.read)
        lease = renewed._replace(term=lease.term + 1)
        assert timed("swap_lease, a new term", backend.swap_lease, renewed, lease)
    backend.close()
    for what, values in took.items():
        yield "%s, %d records: %s" % (label, number, what), "s", values


if __name__ == "__main__":
    serve(*json.loads(sys.argv[1]))
