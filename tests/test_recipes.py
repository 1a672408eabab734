"""The recipes under the real servers: one scheduler, also after kill -9, never two.

Each recipe's callbacks write a ledger, which is checked for overlap. They need the
extra `recipes`; what is not installed is skipped.
"""

import glob
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.request

import pytest

from test_control import ROOT, free_port, until

RECIPES = os.path.join(ROOT, "examples", "recipes")
DJANGO = os.path.join(RECIPES, "django_site")

pytestmark = [
    pytest.mark.processes,
    pytest.mark.skipif(not hasattr(os, "fork"), reason="kill -9 is for POSIX"),
]


def needs(*modules):
    for module in modules:
        if importlib.util.find_spec(module) is None:
            pytest.skip("%s is not installed: pip install '.[recipes]'" % module)


class Stage:
    """Runs the recipe's processes in a folder of their own, and reads its ledger."""

    def __init__(self, folder):
        self.folder = str(folder)
        self.ledger = os.path.join(self.folder, "ledger.txt")
        self.log = open(os.path.join(self.folder, "log.txt"), "w+")
        self.processes = []
        self.killed = []

    def run(self, *command, cwd=RECIPES, count=1):
        path = os.pathsep.join((ROOT, RECIPES))
        environment = dict(os.environ, CLUSTER_FOLDER=self.folder, PYTHONPATH=path)
        for _ in range(count):
            process = subprocess.Popen(
                [sys.executable, "-m"] + list(command) if command[0][0] != "/" else command,
                cwd=cwd, env=environment, stdout=self.log, stderr=self.log,
                start_new_session=True,
            )  # fmt: skip
            self.processes.append(process)

    def members(self):
        """The processes that have a record."""
        pids = set()
        pattern = os.path.join(self.folder, "cluster-*", "nodes", "node-*")
        for path in glob.glob(pattern):
            try:
                with open(path) as file:
                    pids.add(json.load(file)["process"]["pid"])
            except FileNotFoundError:  # it has just left
                pass
        return pids

    def marks(self):
        """All that was written down, in order of time: (time, pid, what)."""
        if not os.path.exists(self.ledger):
            return []
        with open(self.ledger) as file:
            lines = [line.split() for line in file]
        marks = [(float(at), int(pid), what) for at, pid, what in lines]
        return sorted(marks + self.killed)

    def working(self):
        """Who works now, if anybody: fails if there ever were two."""
        worker, killed = None, set()
        for _, pid, what in self.marks():
            if what == "begin":
                assert worker is None, "%d began while %s worked" % (pid, worker)
                worker = pid
            elif what == "killed":
                killed.add(pid)
                worker = None if worker == pid else worker
            elif pid not in killed:  # a last tick, on the way to os.kill
                assert worker == pid, "%d: %s, but %s works" % (pid, what, worker)
                worker = None if what == "end" else worker
        return worker

    def ticks(self, pid):
        return sum(mark[1:] == (pid, "tick") for mark in self.marks())

    def kill_worker(self):
        pid = self.working()
        self.killed.append((time.monotonic(), pid, "killed"))
        os.kill(pid, signal.SIGKILL)
        return pid

    def check(self, members, respawns=False):
        """One works; it is killed; another works; all end in order."""
        until(lambda: len(self.members()) >= members and self.working(), 40)
        first = self.working()
        until(lambda: self.ticks(first) > 2, 20)
        assert self.working() == first
        self.kill_worker()
        until(lambda: self.working() not in (None, first), 20)
        second = self.working()
        until(lambda: self.ticks(second) > 2, 20)
        if respawns:  # a worker that has just been forked may not hear SIGTERM yet
            until(lambda: len(self.members() - {first}) >= members, 40)
        for process in self.processes:
            if process.poll() is None:
                process.terminate()
        for process in self.processes:
            process.wait(30)
        assert self.working() is None
        self.log.seek(0)
        assert "Traceback" not in self.log.read()
        assert sum(what == "begin" for _, _, what in self.marks()) >= 2

    def close(self):
        for process in self.processes:
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            process.wait(10)
        self.log.seek(0)
        print(self.log.read()[-8000:])
        self.log.close()


@pytest.fixture
def stage(tmp_path):
    stage = Stage(tmp_path)
    yield stage
    stage.close()


def page(port):
    with urllib.request.urlopen("http://127.0.0.1:%d/" % port, timeout=10) as answer:
        return answer.read().decode()


@pytest.mark.parametrize(
    "options", [[], ["--preload"], ["--worker-class=gevent"]], ids=" ".join
)
def test_gunicorn_with_eight_workers_runs_one_scheduler(stage, options):
    needs("gunicorn", "flask", "gevent")
    port = free_port()
    stage.run(
        "gunicorn", "--workers", "8", "--bind", "127.0.0.1:%d" % port,
        "--config", "gunicorn_conf.py", *options, "gunicorn_flask:app",
    )  # fmt: skip
    until(lambda: stage.working(), 40)
    assert '"primary"' in page(port)
    stage.check(members=8, respawns=True)


def test_uvicorn_with_several_workers_runs_one_scheduler(stage):
    needs("uvicorn", "fastapi")
    port = free_port()
    stage.run("uvicorn", "--workers", "8", "--port", str(port), "uvicorn_fastapi:app")
    until(lambda: stage.working(), 40)
    assert '"primary"' in page(port)
    stage.check(members=8, respawns=True)


def test_uwsgi_with_eight_workers_runs_one_scheduler(stage):
    beside = os.path.join(os.path.dirname(sys.executable), "uwsgi")
    program = beside if os.path.exists(beside) else shutil.which("uwsgi")
    if program is None:
        pytest.skip("uwsgi is not installed: pip install '.[recipes]'")
    port = free_port()
    stage.run(
        program, "--http-socket", "127.0.0.1:%d" % port, "--master", "--processes", "8",
        "--enable-threads", "--die-on-term", "--wsgi-file", "uwsgi_app.py",
    )  # fmt: skip
    until(lambda: stage.working(), 40)
    assert "primary" in page(port)
    stage.check(members=8, respawns=True)


def test_django_in_the_workers_of_a_web_server_runs_one_scheduler(stage):
    needs("django", "gunicorn")
    port = free_port()
    stage.run(
        "gunicorn", "--workers", "8", "--bind", "127.0.0.1:%d" % port, "wsgi", cwd=DJANGO
    )
    until(lambda: stage.working(), 40)
    assert '"primary"' in page(port)
    stage.check(members=8, respawns=True)


def test_djangos_command_works_in_one_process_of_several(stage):
    needs("django")
    stage.run("manage", "runjobs", cwd=DJANGO, count=8)
    stage.check(members=8)


def test_apscheduler_runs_its_jobs_in_one_process_of_eight(stage):
    needs("apscheduler")
    stage.run("apscheduler_jobs", count=8)
    stage.check(members=8)


def test_celery_beat_sends_from_one_process_of_several(stage):
    needs("celery")
    stage.run(
        "celery", "--app", "celery_beat", "beat",
        "--scheduler", "celery_beat:PrimaryScheduler", "--pidfile=", count=8,
    )  # fmt: skip
    stage.check(members=8)
    assert os.listdir(os.path.join(stage.folder, "queue"))


HOURLY = """
import os
import time
from datetime import timedelta
import celery_beat
ledger = os.path.join(celery_beat.scheduler.FOLDER, "ledger.txt")
hourly = {"task": "celery_beat.tick", "schedule": 3600}
celery_beat.app.conf.beat_schedule = {"hourly": hourly}
beat = celery_beat.PrimaryScheduler(celery_beat.app)
beat.schedule["hourly"].last_run_at -= timedelta(hours=3)  # it stood by for so long
while not os.path.exists(ledger):  # its start callback has begun
    time.sleep(0.01)
beat.tick()
beat.close()
"""


def test_celery_beat_does_not_send_again_what_was_due_while_it_stood_by(stage):
    needs("celery")
    stage.run(sys.executable, "-c", HOURLY)
    assert stage.processes[0].wait(20) == 0
    assert [what for _, _, what in stage.marks()] == ["begin", "end"]


def test_a_daemon_works_in_one_process_of_eight_and_ends_in_order(stage):
    stage.run("daemon", count=8)
    stage.check(members=8)
    assert sorted(process.returncode for process in stage.processes) == [-9] + [0] * 7
    assert not stage.members()  # SIGTERM left no record behind
