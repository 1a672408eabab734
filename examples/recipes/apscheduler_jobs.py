"""Run APScheduler's jobs once, although this program runs on every host.

    cd examples/recipes
    python apscheduler_jobs.py      # as often as you like

A scheduler that was shut down cannot be used again, so each term gets a new one. To
shut down waits for the job that runs: keep jobs shorter than the stop budget, or let
them ask `control.is_primary`.
"""

import signal
import threading

import scheduler
from apscheduler.schedulers.background import BackgroundScheduler

import cluster

running = []


def start_jobs():
    scheduler.mark("begin")
    jobs = BackgroundScheduler()
    jobs.add_job(scheduler.mark, "interval", ["tick"], seconds=0.1)
    jobs.start()
    running.append(jobs)


def stop_jobs():
    while running:
        running.pop().shutdown(wait=True)
    scheduler.mark("end")


def main():
    done = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *ignored: done.set())
    control = cluster.ClusterControl(
        "apscheduler",
        host_name="127.0.0.1",  # leave it out where there are several hosts
        storage_backend=cluster.SharedFsStorageBackend(scheduler.FOLDER),
        start_primary_callback=start_jobs,
        stop_primary_callback=stop_jobs,
    )
    with control:
        done.wait()


if __name__ == "__main__":
    main()
