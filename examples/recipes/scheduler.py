"""Stands in for what must run once: put your own scheduler in its place.

It ticks ten times a second, in a thread, and writes into a ledger when it began,
ticked and ended; so the recipes can be checked for two that ran at once.
"""

import os
import tempfile
import threading
import time

FOLDER = os.environ.get(
    "CLUSTER_FOLDER", os.path.join(tempfile.gettempdir(), "cluster-recipes")
)
_done = threading.Event()
_threads = []


def start():
    """The start callback: returns soon, the work goes on in a thread."""
    _done.clear()
    mark("begin")
    _threads.append(threading.Thread(target=_work, daemon=True))
    _threads[-1].start()


def stop():
    """The stop callback: when it returns, the work has ended."""
    _done.set()
    while _threads:
        _threads.pop().join()
    mark("end")


def _work():
    while not _done.wait(0.1):
        mark("tick")


def mark(what):
    with open(os.path.join(FOLDER, "ledger.txt"), "a") as ledger:
        ledger.write("%.6f %d %s\n" % (time.monotonic(), os.getpid(), what))
