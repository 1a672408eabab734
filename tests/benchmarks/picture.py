"""Draws who was primary when, while three real processes are killed, frozen and asked.

    python tests/benchmarks/picture.py failover.png     # takes 20 s; needs matplotlib
"""

import os
import signal
import sys
import tempfile
import time

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from node_program import Node, primaries, settled, until  # noqa: E402

TIMINGS = dict(hb_interval=0.5, hb_timeout=1.5, hb_missed_count=2, check_interval=0.5)


def play(folder):
    """Plays the faults; all nodes that there were, and what was done, when, to whom."""
    nodes = [Node(name, folder, **TIMINGS) for name in ("a", "b", "c")]
    done = []

    def do(what, node):
        time.sleep(2)  # so that the picture shows what there was before
        done.append((time.monotonic(), what, node.name))

    first = settled(nodes)
    do("kill -9", first)
    first.kill()
    rest = [node for node in nodes if node is not first]
    until(lambda: len(primaries(rest)) == 1)
    do("started again", first)
    nodes.append(Node(first.name, folder, **TIMINGS))
    second = settled(rest + nodes[-1:])
    do("SIGSTOP", second)
    second.signal(signal.SIGSTOP)
    others = [node for node in rest + nodes[-1:] if node is not second]
    until(lambda: len(primaries(others)) == 1)
    do("SIGCONT", second)
    second.signal(signal.SIGCONT)
    third = settled(rest + nodes[-1:])
    do("step_down()", third)
    third.tell("step_down")
    until(lambda: third.all("stopped") and third not in primaries(nodes))
    settled(rest + nodes[-1:])
    time.sleep(2)
    return nodes, done


def spans(node, done, end):
    """When it was primary and ran: (from, to) between its callbacks, or its end.

    A process that is frozen does nothing, and is told to stop when it wakes."""
    frozen = [at for at, what, name in done if (what, name) == ("SIGSTOP", node.name)]
    began = None
    for event in list(node.events):
        if event["event"] == "start":
            began = event["at"]
        elif event["event"] == "stop":
            ends = [at for at in frozen if began < at] + [event["at"]]
            yield began, min(ends)
            began = None
    if began is not None:
        yield began, node.killed_at or end


def draw(nodes, done, path):
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    zero, end = done[0][0] - 2, time.monotonic()
    lanes = {name: height for height, name in enumerate("cba")}
    figure, axes = plt.subplots(figsize=(9, 2.2))
    for node in nodes:
        for begin, over in spans(node, done, end):
            bar = [(begin - zero, over - begin)]
            axes.broken_barh(bar, (lanes[node.name] - 0.25, 0.5), color="#0a7d32")
    for at, what, name in done:
        axes.axvline(at - zero, color="#b3261e", linewidth=0.8)
        axes.text(at - zero + 0.08, lanes[name] + 0.3, what, fontsize=8, color="#b3261e")
    axes.set_yticks(list(lanes.values()))
    axes.set_yticklabels(["node " + name for name in lanes])
    axes.set_xlim(0, end - zero)
    axes.set_ylim(-0.5, 2.8)
    axes.set_xlabel("seconds; green: primary, from its start to its stop callback")
    figure.tight_layout()
    figure.savefig(path)


def main():
    with tempfile.TemporaryDirectory() as folder:
        nodes = []
        try:
            nodes, done = play(folder)
            draw(nodes, done, sys.argv[1])
        finally:
            for node in nodes:
                node.close()


if __name__ == "__main__":
    main()
