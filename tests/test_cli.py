"""The command line, as people and scripts use it."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

import cluster

pytestmark = pytest.mark.processes

FOLDER = os.path.dirname(os.path.abspath(cluster.__file__))
PROGRAM = [sys.executable, "-m", "cluster"]


def run(*arguments, **environment):
    """Exit code, output and errors of `python -m cluster`."""
    done = subprocess.run(
        PROGRAM + list(arguments),
        cwd=FOLDER,
        env=dict(os.environ, **environment),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        universal_newlines=True,
        timeout=60,
    )
    return done.returncode, done.stdout, done.stderr


def until(condition, seconds=20):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "not within %g s" % seconds
        time.sleep(0.02)


@pytest.fixture
def folder(tmp_path):
    return str(tmp_path / "shared")


@pytest.fixture
def control(folder):
    """One living primary, `one`, version 1.2, of the cluster `jobs`."""
    control = cluster.ClusterControl(
        "jobs",
        "127.0.0.1",
        "one",
        hb_interval=0.2,
        hb_timeout=1,
        check_interval=0.2,
        own_version="1.2",
        storage_backend=cluster.SharedFsStorageBackend(folder),
    )
    with control:
        assert control.wait_for_primary(20)
        yield control


def where(folder):
    return ["--cluster", "jobs", "--storage", folder]


# ---- exit codes and errors that a person can act on


def test_without_a_command_it_says_which_there_are():
    code, _, errors = run()
    assert code == 2
    assert "status" in errors and "watch" in errors


def test_help_documents_the_exit_codes():
    for arguments in (["--help"], ["status", "--help"], ["watch", "--help"]):
        code, output, _ = run(*arguments)
        assert code == 0
        assert "exit codes: 0 ok, 1 no primary" in output


def test_a_missing_cluster_or_storage_is_asked_for():
    code, _, errors = run("status", "--storage", "x", CLUSTER_NAME="")
    assert code == 2 and "--cluster" in errors and "CLUSTER_NAME" in errors
    code, _, errors = run("status", "--cluster", "x", CLUSTER_STORAGE="")
    assert code == 2 and "--storage" in errors and "CLUSTER_STORAGE" in errors


def test_a_folder_without_such_a_cluster_is_exit_code_3_and_stays_empty(folder):
    os.mkdir(folder)
    code, output, errors = run("status", *where(folder))
    assert (code, output) == (3, "")
    assert folder in errors and "--storage" in errors and "Traceback" not in errors
    assert os.listdir(folder) == []


def test_a_url_of_an_unknown_kind_is_wrong_usage_and_its_password_is_not_shown():
    code, _, errors = run("status", "--cluster", "x", "--storage", "odd://u:pass@h/x")
    assert code == 2
    assert "odd://" in errors and "pass" not in errors


# ---- status


def test_status_shows_the_primary_of_a_living_cluster(control, folder):
    code, output, errors = run("status", *where(folder))
    assert (code, errors) == (0, "")
    head, titles, row = output.splitlines()
    assert head == "cluster jobs, storage: ok"
    assert titles.split()[:5] == ["NODE", "ADDRESS", "VERSION", "PRIMARY", "ACTIVE"]
    address = "%s:%d" % control.cluster.own_node._record.address
    term = ["term", str(control.term)]
    assert row.split()[:6] == ["one", address, "1.2"] + term + ["yes"]


def test_status_as_json_and_with_a_file_url_and_the_environment(control, folder):
    url = "file://" + folder
    code, output, _ = run("status", "--json", CLUSTER_NAME="jobs", CLUSTER_STORAGE=url)
    assert code == 0
    picture = json.loads(output)
    assert (picture["primary"], picture["term"]) == ("one", control.term)
    assert 0 <= picture["lease_age"] < picture["lease_duration"] == 1
    assert 0 < picture["lease_left"] <= 1
    assert [m["name"] for m in picture["members"]] == ["one"]


def test_after_an_orderly_stop_status_says_that_there_is_no_primary(control, folder):
    control.stop()
    control.join(10)
    code, output, _ = run("status", *where(folder))
    assert code == 1
    assert "no primary" in output and "has stopped" in output


def test_a_primary_that_does_not_renew_is_not_taken_for_one(folder):
    """Its lease and record are all there; only watching tells."""
    program = (
        "import cluster, time\n"
        "with cluster.ClusterControl('jobs', '127.0.0.1', 'one', hb_timeout=2,\n"
        "        storage_backend=cluster.SharedFsStorageBackend(%r)) as control:\n"
        "    control.wait_for_primary(20)\n"
        "    print('primary', flush=True)\n"
        "    time.sleep(60)\n" % folder
    )
    node = subprocess.Popen(
        [sys.executable, "-c", program], cwd=FOLDER, stdout=subprocess.PIPE
    )
    try:
        assert node.stdout.readline() == b"primary\n"
        until(lambda: run("status", *where(folder))[0] == 0)
        node.send_signal(signal.SIGSTOP)
        code, output, _ = run("status", *where(folder))
        assert code == 1
        assert "one holds the lease, but has not renewed it" in output
    finally:
        node.kill()
        node.wait()
        node.stdout.close()
