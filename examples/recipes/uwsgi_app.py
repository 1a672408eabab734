"""Run the scheduler once, although uWSGI has eight workers.

    cd examples/recipes
    uwsgi --http-socket 127.0.0.1:8000 --master --processes 8 --enable-threads \\
        --die-on-term --wsgi-file uwsgi_app.py

Without --enable-threads no thread of Python runs between two requests, and so no
heartbeat. This module is imported before the workers are forked: so it only makes
the control, and each worker starts it, as a node of its own.
"""

import os

import scheduler
import uwsgi

import cluster

control = cluster.ClusterControl(
    "uwsgi",
    host_name="127.0.0.1",  # leave it out where the workers are on several hosts
    storage_backend=cluster.SharedFsStorageBackend(scheduler.FOLDER),
    start_primary_callback=scheduler.start,
    stop_primary_callback=scheduler.stop,
)


def leave():
    control.stop()
    control.join(10)


uwsgi.post_fork_hook = control.start
uwsgi.atexit = leave


def application(environ, start_response):
    primary = control.cluster.primary_node
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"pid %d, primary %s" % (os.getpid(), repr(primary).encode())]
