"""How long there is no primary: our nodes and what people use instead, side by side.

Each measure yields (what, unit, values), or (what, None, why not).
"""

import importlib
import os
import random
import signal
import sys
import tempfile
import time

import peers

import cluster
from node_program import Node, primaries, settled, until

TIMINGS = dict(hb_interval=0.5, hb_timeout=2.0, hb_missed_count=2, check_interval=1.0)


def detection_time():
    misses = TIMINGS["hb_missed_count"] - 1
    return TIMINGS["hb_timeout"] + misses * TIMINGS["check_interval"]


def patience():
    return 5 * detection_time()


assert detection_time() == peers.DETECTION


# ---- faults: each gives the instant from which to count


def kill(node):
    node.kill()
    return node.killed_at


def vanish(node):
    node.kill()
    return node.last_sent()


def stop(node):
    node.tell("stop")
    until(lambda: node.all("asked"))
    return node.all("asked")[0]["at"]


def freeze(node):
    node.signal(signal.SIGSTOP)
    return time.monotonic()


def step_down(node):
    stops = len(node.all("stopped"))
    began = time.monotonic()
    node.tell("step_down")
    until(lambda: len(node.all("stopped")) > stops)
    return began


def gaps(make, settle, fault, count):
    """Seconds from each fault of the primary to the next one's start callback."""
    nodes = [make(number) for number in range(3)]
    chance = random.Random(count)
    try:
        for number in range(3, 3 + count):
            first = settle(nodes)
            if fault is step_down:  # those that did so before are candidates again
                time.sleep(detection_time())
            time.sleep(chance.uniform(0, detection_time() / 3))
            began = fault(first)
            others = [node for node in nodes if node is not first]
            until(lambda: primaries(others), patience())
            yield primaries(others)[0].all("start")[-1]["at"] - began
            if fault is not step_down:
                first.close()
                nodes = others + [make(number)]
    except AssertionError:
        return  # nobody took over: no figure
    finally:
        for node in nodes:
            node.close()


def measured(what, make, settle, fault, count):
    values = list(gaps(make, settle, fault, count))
    if len(values) < count:
        return what, None, "no successor within %d s" % patience()
    return what, "s", values


# ---- measures


def failover(quick, count, folder):
    """Our nodes: a crash, a host that vanishes, an orderly stop, a freeze."""
    for fault, proof, text, times in (  # what is soon over, more often: its tail tells
        (kill, True, "killed -9, since the kill", 5),
        (vanish, False, "host gone, since its last heartbeat", 1),
        (stop, True, "stop(), since the call", 10),
        (step_down, True, "step_down(), since the call", 1),
        (freeze, True, "SIGSTOP, since the signal", 1),
    ):
        with tempfile.TemporaryDirectory(dir=folder) as path:

            def make(number):
                stamp = os.path.join(path, "stamp%d" % number)
                return Node(
                    "n%d" % number, path, stamp=stamp, same_host_proof=proof, **TIMINGS
                )

            runs = 1 if quick else times * count
            yield measured("cluster.py: " + text, make, settled, fault, runs)
        if quick:
            return


def others(quick, count, folder):
    """What people use instead, with the same faults."""
    for label, (driver, _, server) in peers.KINDS.items():
        try:
            importlib.import_module(driver)
            with tempfile.TemporaryDirectory(dir=folder) as path:
                own = os.path.join(path, "server")
                os.mkdir(own)
                with server(own) as address:
                    yield from faults_of(label, address, path, 1 if quick else count)
        except (ImportError, peers.Missing) as error:
            yield label, None, str(error)
        if quick:
            return


def faults_of(label, address, path, count):
    def make(number):
        return peers.Candidate(str(number), path, kind=label, address=address)

    for fault, text in (
        (kill, "killed -9, since the kill"),
        (stop, "stop, since the call"),
        (freeze, "SIGSTOP, since the signal"),
    ):
        yield measured("%s: %s" % (label, text), make, peers.settled, fault, count)


def control(name, folder, **settings):
    settings = dict(TIMINGS, **settings)
    return cluster.ClusterControl(
        "lab", "127.0.0.1", name,
        storage_backend=cluster.SharedFsStorageBackend(folder), **settings
    )  # fmt: skip


def seconds_until(condition, began=None):
    began = time.perf_counter() if began is None else began
    deadline = began + patience()
    while not condition():
        assert time.perf_counter() < deadline, "waited in vain"
        time.sleep(0.0002)
    return time.perf_counter() - began


def propagation(quick, count, folder):
    """Cold start, and how soon a view of another node shows a join, and a leave."""
    cold, joined, left = [], [], []
    for _ in range(count):
        with tempfile.TemporaryDirectory(dir=folder) as path:
            one, two = control("a", path), control("b", path)
            began = time.perf_counter()
            one.start()
            assert one.wait_for_primary(patience())
            cold.append(time.perf_counter() - began)
            cluster.join_cluster(two)
            joined.append(seconds_until(lambda: len(one.cluster.nodes) == 2))
            began = time.perf_counter()
            two.stop()
            left.append(seconds_until(lambda: len(one.cluster.nodes) == 1, began))
            for each in (one, two):
                each.stop()
                each.join()
    yield "cold start, from start() of the first node to is_primary", "s", cold
    yield "join, from join_cluster's return to another's view", "s", joined
    yield "leave, from stop() to another's view", "s", left


def thaw(quick, count, folder):
    """From the folder's return after an outage to all nodes' storage being well."""
    with tempfile.TemporaryDirectory(dir=folder) as path:
        shared = os.path.join(path, "shared")
        os.mkdir(shared)
        controls = [control(name, shared) for name in "abc"]
        for each in controls:
            cluster.join_cluster(each)
            each.start()
        seconds_until(lambda: any(each.is_primary for each in controls))
        first = next(each for each in controls if each.is_primary)

        def well():
            return all(each.status()["storage"] == "ok" for each in controls)

        def roster_is_full():
            return sum(n.is_active for n in first.cluster.nodes.values()) == 3

        seconds_until(roster_is_full)
        values = []
        for _ in range(count):
            term = first.term
            os.rename(shared, shared + ".away")
            time.sleep(2 * detection_time())
            frozen = first.term == term and not well()
            os.rename(shared + ".away", shared)
            values.append(seconds_until(well))
            if not frozen or first.term != term:  # a machine too busy to vouch in time
                values.pop()
                break
        for each in controls:
            each.stop()
        for each in controls:
            each.join()
    what = "thaw: all nodes well after an outage of 6 s, same primary"
    yield (what, "s", values) if values else (what, None, "the machine was too busy")


if __name__ == "__main__":
    sys.exit("run run.py")
