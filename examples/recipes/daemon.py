"""A plain daemon on every host, of which one does the work; for systemd.

    cd examples/recipes
    python daemon.py        # as often as you like; Ctrl-C or SIGTERM ends it

Or with daemon@.service beside this file, eight on one host:

    systemctl start daemon@{1..8}

The order at the end: the stop callback ends the work, the lease is released, the next
one starts, the record is removed, and only then does the process exit. `with` does
that; all that the signal handler does is to wake the main thread.
"""

import logging
import signal
import threading

import scheduler

import cluster


def main():
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    done = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *ignored: done.set())
    control = cluster.ClusterControl(
        "daemon",
        host_name="127.0.0.1",  # leave it out where there are several hosts
        # on a mounted share: create=False, once the cluster exists
        storage_backend=cluster.SharedFsStorageBackend(scheduler.FOLDER),
        start_primary_callback=scheduler.start,
        stop_primary_callback=scheduler.stop,
        exit_callback=done.set,  # a newer version is alive elsewhere
    )
    with control:
        done.wait()


if __name__ == "__main__":
    main()
