"""One node of a cluster on a shared folder: start it two or three times.

    python examples/node.py node01 44330
    python examples/node.py node02 44331

Kill the primary, or press Ctrl-C there, and watch the other one take over.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import tempfile
import threading
from typing import List, Optional

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import cluster  # noqa: E402

done = threading.Event()


def become_primary() -> None:
    print("*** this node is primary: start the work here", flush=True)


def leave_primary() -> None:
    print("*** this node is no longer primary: the work ends here", flush=True)


def forced_exit() -> None:
    print("*** a newer version is running: this node leaves", flush=True)
    done.set()


def parse(arguments: Optional[List[str]]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="One node of a cluster.")
    parser.add_argument("name", nargs="?", help="node name (default: a unique one)")
    parser.add_argument("port", nargs="?", type=int, default=0, help="UDP (any free)")
    parser.add_argument(
        "folder",
        nargs="?",
        default=os.path.join(tempfile.gettempdir(), "cluster-example"),
        help="the folder that all nodes share (default: %(default)s)",
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to bind")
    parser.add_argument("--version", default="1.0", help="version of this program")
    return parser.parse_args(arguments)


def main(arguments: Optional[List[str]] = None) -> None:
    options = parse(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    shared_backend = cluster.SharedFsStorageBackend(options.folder)
    cluster_ctrl = cluster.ClusterControl(
        cluster_name="sample_cluster",
        host_name=options.host,
        node_name=options.name,
        hb_port=options.port,
        hb_interval=1,
        hb_timeout=3,
        hb_missed_count=2,
        own_version=options.version,
        check_interval=1,
        start_primary_callback=become_primary,
        stop_primary_callback=leave_primary,
        exit_callback=forced_exit,
        storage_backend=shared_backend,
    )
    cluster.join_cluster(cluster_ctrl)
    cluster_ctrl.start()
    try:
        while not done.wait(0.5):  # the application's own work goes here
            pass
    except KeyboardInterrupt:
        pass
    finally:
        cluster_ctrl.stop()
        cluster_ctrl.join(10)
        cluster.leave_cluster(cluster_ctrl)


if __name__ == "__main__":
    main()
