"""Measures failover and handover with real processes on one host.

python tests/benchmarks/failover.py [--count N] [--dir FOLDER]
"""

import argparse
import os
import statistics
import sys
import tempfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.dirname(HERE))
from node_program import Node, primaries, settled, until  # noqa: E402

SETTINGS = dict(hb_interval=1 / 3, hb_timeout=1, hb_missed_count=2, check_interval=1)
DETECTION = 2.0  # hb_timeout + (hb_missed_count - 1) * check_interval


def show(what, seconds):
    line = "%-46s median %8.1f ms, worst %8.1f ms, %d times"
    median = statistics.median(seconds)
    print(line % (what, 1e3 * median, 1e3 * max(seconds), len(seconds)), flush=True)


def failovers(folder, count, proof):
    settings = dict(SETTINGS, same_host_proof=proof)

    def node(number):
        stamp = os.path.join(folder, "stamp%d" % number)
        return Node("n%d" % number, folder, stamp=stamp, **settings)

    nodes = [node(number) for number in range(3)]
    from_kill, from_heartbeat = [], []
    for number in range(count):
        first = settled(nodes)
        nodes.remove(first)
        first.kill()
        sent = first.last_sent()
        until(lambda: primaries(nodes))
        at = primaries(nodes)[0].all("start")[-1]["at"]
        from_kill.append(at - first.killed_at)
        from_heartbeat.append(at - sent)
        first.close()
        nodes.append(node(number + 3))
    for node in nodes:
        node.close()
    word = "on" if proof else "off"
    show("kill -9, proof %s, since the kill" % word, from_kill)
    if not proof:
        show("  since the last heartbeat (D = 2000 ms)", from_heartbeat)


def handovers(folder, count):
    settings = dict(SETTINGS, hb_interval=0.1, hb_timeout=0.4, check_interval=0.2)
    nodes = [Node("n%d" % i, folder, **settings) for i in range(3)]
    took = []
    for _ in range(count):
        first = settled(nodes)
        time.sleep(0.7)  # D: until then who stepped down is no candidate
        count_of_stops = len(first.all("stopped"))
        first.tell("step_down")
        until(lambda: len(first.all("stopped")) > count_of_stops)
        until(lambda: primaries(nodes))
        at = max(node.all("start")[-1]["at"] for node in nodes if node.all("start"))
        took.append(at - first.all("stopped")[-1]["at"])
    show("handover, since the stop callback's end", took)
    for node in nodes:
        node.close()


def in_process(count):
    sys.path.insert(0, os.path.dirname(os.path.dirname(HERE)))
    import cluster

    cold, visible = [], []
    for _ in range(count):
        with tempfile.TemporaryDirectory(dir=OPTIONS.dir) as folder:
            controls = [
                cluster.ClusterControl(
                    "lab", "127.0.0.1", name,
                    storage_backend=cluster.SharedFsStorageBackend(folder),
                )
                for name in "ab"
            ]  # fmt: skip
            cluster.join_cluster(controls[0])
            began = time.perf_counter()
            controls[0].start()
            assert controls[0].wait_for_primary(10)
            cold.append(time.perf_counter() - began)
            cluster.join_cluster(controls[1])
            began = time.perf_counter()
            until(lambda: len(controls[0].cluster.nodes) == 2)
            visible.append(time.perf_counter() - began)
            for control in controls:
                control.stop()
            for control in controls:
                control.join(10)
    show("cold start, from start() to primary", cold)
    show("join visible to the others", visible)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=20, help="kills of each kind")
    parser.add_argument("--dir", help="where to make the shared folder")
    OPTIONS = parser.parse_args()
    in_process(OPTIONS.count)
    for measure in (
        lambda folder: handovers(folder, OPTIONS.count * 5 // 2),
        lambda folder: failovers(folder, OPTIONS.count, True),
        lambda folder: failovers(folder, OPTIONS.count, False),
    ):
        with tempfile.TemporaryDirectory(dir=OPTIONS.dir) as path:
            measure(path)
