"""One node as a real process, and the handle by which tests and benchmarks hold it.

Run as a program it takes its settings as JSON, prints one JSON line per event, with
a stamp of the monotonic clock that all processes of one host share, and obeys the
words `stop`, `step_down` and `primary` on its standard input.
"""

import json
import logging
import mmap
import os
import signal
import struct
import subprocess
import sys
import threading
import time

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(HERE)


def note_sends(socket_class, path):
    """Keeps the time of the newest datagram where it outlives this process."""
    with open(path, "wb") as file:
        file.write(bytes(8))
    with open(path, "r+b") as file:
        memory = mmap.mmap(file.fileno(), 8)
    send = socket_class.send

    def noted_send(self, data, address):
        send(self, data, address)
        memory[:] = struct.pack("d", time.monotonic())

    socket_class.send = noted_send


def main():
    sys.path.insert(0, ROOT)
    import cluster

    settings = json.loads(sys.argv[1])
    slow, failing = settings.pop("slow", {}), settings.pop("failing", [])
    folder, stamp = settings.pop("folder"), settings.pop("stamp", None)
    storage, log = settings.pop("storage", None), settings.pop("log", None)
    if log:
        form = "%(asctime)s %(levelname)s %(message)s"
        logging.basicConfig(filename=log, level=logging.INFO, format=form)
    backend = cluster.SharedFsStorageBackend(folder) if folder else None
    lock = threading.Lock()

    def tell(event, **more):
        line = json.dumps(dict(more, event=event, at=time.monotonic()))
        with lock:
            print(line, flush=True)

    def callback(kind):
        def call():
            tell(kind, term=control.term)
            time.sleep(slow.get(kind, 0))
            tell({"stop": "stopped"}.get(kind, kind + "ed"))
            if kind in failing:
                raise ValueError("told to fail")

        return call

    if stamp:
        note_sends(cluster._Socket, stamp)
    control = cluster.ClusterControl(
        "lab", "127.0.0.1",
        start_primary_callback=callback("start"),
        stop_primary_callback=callback("stop"),
        exit_callback=callback("exit"),
        storage_backend=backend or cluster.storage_from_url(storage),
        **settings
    )  # fmt: skip
    try:
        cluster.join_cluster(control)
    except cluster.ClusterError as error:
        tell("refused", error=type(error).__name__)
        return
    tell("joined")
    control.start()
    for line in sys.stdin:
        word = line.strip()
        if word == "stop":
            break
        if word == "step_down":
            control.step_down()
        if word == "primary":
            view = control.cluster
            tell(
                "view", is_primary=control.is_primary, term=control.term,
                nodes=sorted(view.nodes),
                active=sorted(n.name for n in view.nodes.values() if n.is_active),
                storage=control.status()["storage"],
                packets=control.status()["packets"],
            )  # fmt: skip
    tell("asked")
    control.stop()
    control.join(10)
    cluster.leave_cluster(control)
    tell("left")


class Node:
    """A running node program, and what it has told.

    Its storage is a folder or, with None, that of the URL `storage` in its settings.
    """

    program = os.path.abspath(__file__)

    def __init__(self, name, folder, **settings):
        settings = dict(settings, node_name=name, folder=folder and str(folder))
        self.stamp = settings.get("stamp")
        self.name = name
        self.events = []
        self.killed_at = None
        self.process = subprocess.Popen(
            [sys.executable, self.program, json.dumps(settings)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            universal_newlines=True,
        )  # fmt: skip
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self):
        for line in self.process.stdout:
            self.events.append(json.loads(line))

    def tell(self, word):
        self.process.stdin.write(word + "\n")
        self.process.stdin.flush()

    def all(self, kind):
        return [event for event in list(self.events) if event["event"] == kind]

    def ask(self):
        """The node's view now; waits up to 10 s for the answer."""
        count = len(self.all("view"))
        self.tell("primary")
        until(lambda: len(self.all("view")) > count)
        return self.all("view")[-1]

    def is_primary(self):
        return len(self.all("start")) > len(self.all("stop")) and not self.killed_at

    def signal(self, number):
        if number == signal.SIGKILL:
            self.killed_at = time.monotonic()
        self.process.send_signal(number)

    def kill(self):
        self.signal(signal.SIGKILL)
        self.process.wait()

    def last_sent(self):
        """When a killed node had sent its last datagram; needs a `stamp` file."""
        with open(self.stamp, "rb") as file:
            return struct.unpack("d", file.read())[0]

    def close(self):
        if self.process.poll() is None:
            self.kill()  # noted, since a survivor may take over within milliseconds
        self.reader.join(5)
        self.process.stdin.close()
        self.process.stdout.close()


def until(condition, seconds=15.0):
    """Waits until the condition holds; fails after a deadline."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.002)


def process_stat(name):
    """What Linux tells of a process, from its state on; of one that is gone, `Z`.

    Of a thread, if the name is `PID/task/TID`.
    """
    try:
        with open("/proc/%s/stat" % name, errors="replace") as file:
            return file.read().rpartition(")")[2].split()
    except OSError:
        return ["Z"]


def primaries(nodes):
    return [node for node in nodes if node.is_primary()]


def settled(nodes):
    """Waits until all are active and one of them is the primary; returns that one."""
    names = sorted(node.name for node in nodes)
    until(lambda: all(node.all("joined") for node in nodes))
    until(lambda: len(primaries(nodes)) == 1)
    until(lambda: all(node.ask()["active"] == names for node in nodes))
    return primaries(nodes)[0]


def overlaps(nodes):
    """Pairs of nodes that were primary at one time: from the start callback's begin
    to the stop callback's end, or the kill."""
    spans = []
    for node in nodes:
        began = None
        for event in list(node.events) + [{"event": "stopped", "at": node.killed_at}]:
            if event["event"] == "start":
                began = event["at"]
            if event["event"] == "stopped" and began is not None:
                end = float("inf") if event["at"] is None else event["at"]
                spans.append((began, end, node.name))
                began = None
    spans.sort()
    return [(a, b) for a, b in zip(spans, spans[1:]) if b[0] < a[1]]


if __name__ == "__main__":
    main()
