"""Run the scheduler once, although Gunicorn has eight workers.

    cd examples/recipes
    gunicorn --workers 8 --config gunicorn_conf.py gunicorn_flask:app
    gunicorn --workers 8 --config gunicorn_conf.py --preload gunicorn_flask:app
    curl http://127.0.0.1:8000      # tells who is primary, whichever worker answers

With --preload this module is imported before the workers are forked: so it only
makes the control, and each worker starts it, as a node of its own (gunicorn_conf.py).
With --worker-class=gevent a request that never yields holds up the heartbeat too.
"""

import os

import scheduler
from flask import Flask

import cluster

app = Flask(__name__)
control = cluster.ClusterControl(
    "gunicorn",
    host_name="127.0.0.1",  # leave it out where the workers are on several hosts
    storage_backend=cluster.SharedFsStorageBackend(scheduler.FOLDER),
    start_primary_callback=scheduler.start,
    stop_primary_callback=scheduler.stop,
)


@app.route("/")
def index():
    primary = control.cluster.primary_node
    return {"pid": os.getpid(), "primary": primary and primary.name}
