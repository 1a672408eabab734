"""The app: makes the control, and starts nothing."""

import scheduler
from django.apps import AppConfig

import cluster


class JobsConfig(AppConfig):
    name = "jobs"

    def ready(self):
        self.control = cluster.ClusterControl(
            "django",
            host_name="127.0.0.1",  # leave it out where there are several hosts
            storage_backend=cluster.SharedFsStorageBackend(scheduler.FOLDER),
            start_primary_callback=scheduler.start,
            stop_primary_callback=scheduler.stop,
        )
