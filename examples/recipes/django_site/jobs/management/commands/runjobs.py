"""python manage.py runjobs: works if it is the primary, and stands by if it is not."""

import signal
import threading

from django.apps import apps
from django.core.management.base import BaseCommand


class Command(BaseCommand):
    help = "Runs the jobs, or waits until whoever runs them is gone."

    def handle(self, *args, **options):
        done = threading.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *ignored: done.set())
        with apps.get_app_config("jobs").control:
            done.wait()
