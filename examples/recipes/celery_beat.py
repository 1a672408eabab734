"""Run Celery beat on every host, and have one of them send the tasks.

    cd examples/recipes
    celery --app celery_beat beat --scheduler celery_beat:PrimaryScheduler

The others stand by. The schedule is in memory, and begins anew with each primary: what
falls due while nobody is primary is left out, and nothing is sent twice. To make up for
what was missed, keep the schedule in a store that all share (celery-redbeat,
django-celery-beat).
"""

import os
import threading

import scheduler
from celery import Celery
from celery.beat import Scheduler

import cluster

queue = os.path.join(scheduler.FOLDER, "queue")
os.makedirs(queue, exist_ok=True)
app = Celery(broker="filesystem://")  # your own broker: redis://, amqp://
app.conf.broker_transport_options = {
    "data_folder_in": queue, "data_folder_out": queue, "control_folder": queue,
}  # fmt: skip
app.conf.beat_schedule = {"tick": {"task": "celery_beat.tick", "schedule": 0.2}}


@app.task
def tick():
    """What a worker does."""


class PrimaryScheduler(Scheduler):
    """Sends what is due on the primary alone; elsewhere it looks again in a second."""

    def setup_schedule(self):
        super().setup_schedule()
        self.merge_inplace(self.app.conf.beat_schedule)
        self.sending = threading.Lock()
        self.term = 0
        self.control = cluster.ClusterControl(
            "celery",
            host_name="127.0.0.1",  # leave it out where there are several hosts
            storage_backend=cluster.SharedFsStorageBackend(scheduler.FOLDER),
            start_primary_callback=lambda: scheduler.mark("begin"),
            stop_primary_callback=self.stop_sending,
        )
        self.control.start()

    def tick(self, *args, **kwargs):
        with self.sending:
            term = self.control.term
            if not term:
                return 1.0
            if term != self.term:
                self.term = term
                self.begin_anew()
            return super().tick(*args, **kwargs)

    def begin_anew(self):
        """Else all that fell due since this process began would be sent again."""
        for entry in self.schedule.values():
            entry.last_run_at = entry.default_now()
        self.old_schedulers = None

    def apply_entry(self, entry, producer=None):
        scheduler.mark("tick")
        super().apply_entry(entry, producer)

    def stop_sending(self):
        with self.sending:  # the tick that was under way has ended
            scheduler.mark("end")

    def close(self):
        self.control.stop()
        self.control.join(10)
        super().close()
