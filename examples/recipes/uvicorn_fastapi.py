"""Run the scheduler once, although Uvicorn has eight workers.

    cd examples/recipes
    uvicorn --workers 8 uvicorn_fastapi:app

Each worker joins when its application starts up, and hands over when it shuts down.
"""

import os
from contextlib import asynccontextmanager

import scheduler
from fastapi import FastAPI

import cluster

control = cluster.ClusterControl(
    "uvicorn",
    host_name="127.0.0.1",  # leave it out where the workers are on several hosts
    storage_backend=cluster.SharedFsStorageBackend(scheduler.FOLDER),
    start_primary_callback=scheduler.start,
    stop_primary_callback=scheduler.stop,
)


@asynccontextmanager
async def lifespan(app):
    async with control:
        yield


app = FastAPI(lifespan=lifespan)


@app.get("/")
async def index():
    primary = control.cluster.primary_node
    return {"pid": os.getpid(), "primary": primary and primary.name}
