"""The command line, as people and scripts use it."""

import json
import os
import signal
import socket
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
    assert "`run`, or `doctor --create`, makes a new one" in errors
    assert os.listdir(folder) == []


def test_run_without_the_dashes_says_where_they_belong(folder):
    code, _, errors = run("run", *where(folder), "python", "work.py")
    assert code == 2 and "put -- before COMMAND" in errors


def test_a_url_of_an_unknown_kind_is_wrong_usage_and_its_password_is_not_shown():
    code, _, errors = run("status", "--cluster", "x", "--storage", "odd://u:pass@h/x")
    assert code == 2
    assert "a storage URL begins with file://" in errors and "pass" not in errors


def test_run_refuses_a_folder_without_a_cluster_if_told_so(folder):
    """It waits for the share, as a service does, and says so."""
    os.mkdir(folder)
    node = subprocess.Popen(
        PROGRAM + ["run", "--no-create"] + where(folder) + ["--", "true"],
        cwd=FOLDER,
        stderr=subprocess.PIPE,
    )
    with node.stderr:
        line = next(line for line in node.stderr if b"holds no such cluster" in line)
        node.terminate()
        assert node.wait(20) == 0
    assert folder.encode() in line and os.listdir(folder) == []


def test_status_reads_a_database_too(tmp_path):
    pytest.importorskip("sqlalchemy")
    url = "sqlite:///%s" % (tmp_path / "cluster.sqlite")
    assert run("status", "--cluster", "jobs", "--storage", url)[0] == 3
    with cluster.ClusterControl(
        "jobs", "127.0.0.1", "one", storage_backend=cluster.storage_from_url(url)
    ) as control:
        assert control.wait_for_primary(20)
        code, output, _ = run("status", "--cluster", "jobs", "--storage", url)
    assert code == 0 and "one" in output


@pytest.mark.parametrize(
    "options, rule",
    [
        ([], "give COMMAND after --"),
        (["--hb-timeout", "1", "--", "true"], "hb_timeout (1 s) must be longer"),
        (["--node-name", "x" * 201, "--", "true"], "node_name must be"),
        (["--hb-port", "99999", "--", "true"], "hb_port must be 0 to 65535"),
    ],
)
def test_settings_that_cannot_work_are_wrong_usage_and_name_the_rule(
    folder, options, rule
):
    code, _, errors = run("run", *(where(folder) + options))
    assert code == 2
    assert rule in errors and "Traceback" not in errors
    assert not os.path.exists(folder)


def test_a_port_in_use_ends_run_with_a_reason(folder):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as held:
        held.bind(("127.0.0.1", 0))
        port = str(held.getsockname()[1])
        options = ["--host-name", "127.0.0.1", "--hb-port", port, "--", "true"]
        code, _, errors = run("run", *(where(folder) + options))
    assert code == 1
    assert port in errors and "Traceback" not in errors


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


@pytest.mark.skipif(os.name != "posix", reason="needs a pseudo-terminal")
@pytest.mark.parametrize(
    "environment, coloured", [({}, True), ({"NO_COLOR": ""}, False)]
)
def test_watch_on_a_terminal_is_drawn_anew_in_colour(
    control, folder, environment, coloured
):
    import pty

    ours, theirs = pty.openpty()
    watch = subprocess.Popen(
        PROGRAM + ["watch", "--interval", "0.1"] + where(folder),
        cwd=FOLDER,
        env=dict(os.environ, TERM="xterm", **environment),
        stdout=theirs,
    )
    try:
        seen = b""
        while seen.count(b"one ") < 3:
            seen += os.read(ours, 4096)
        assert (seen.count(b"\x1b[H\x1b[J") >= 2) is coloured
        assert (b"\x1b[32mone " in seen) is coloured
        assert (b"\x1b" in seen) is coloured
        watch.send_signal(signal.SIGINT)
        assert watch.wait(10) == 0
    finally:
        watch.kill()
        watch.wait()
        os.close(ours)
        os.close(theirs)


def test_watch_into_a_pipe_has_no_colour_and_sees_the_primary_stop(control, folder):
    watch = subprocess.Popen(
        PROGRAM + ["watch", "--json", "--interval", "0.1"] + where(folder),
        cwd=FOLDER,
        stdout=subprocess.PIPE,
    )
    with watch.stdout:
        first = json.loads(watch.stdout.readline().decode())
        assert first["primary"] == "one" and abs(first["time"] - time.time()) < 60
        control.stop()
        pictures = (json.loads(line.decode()) for line in watch.stdout)
        stopped = next(p for p in pictures if not p["primary"])
        assert "has stopped" in stopped["why_none"]
    assert watch.wait(10) == 1  # nobody reads any more


def test_watch_goes_on_when_the_storage_is_gone_and_back(control, folder):
    watch = subprocess.Popen(
        PROGRAM + ["watch", "--json", "--interval", "0.1"] + where(folder),
        cwd=FOLDER,
        stdout=subprocess.PIPE,
    )
    try:
        with watch.stdout:
            pictures = (json.loads(line.decode()) for line in watch.stdout)
            assert next(pictures)["storage"] == "ok"
            os.rename(folder, folder + ".away")
            gone = next(p for p in pictures if p["storage"] != "ok")
            assert gone["primary"] is None and gone["members"] == []
            os.rename(folder + ".away", folder)
            assert next(p for p in pictures if p["primary"])["primary"] == "one"
    finally:
        watch.kill()
        watch.wait()


def test_after_an_orderly_stop_status_says_that_there_is_no_primary(control, folder):
    control.stop()
    control.join(10)
    code, output, _ = run("status", *where(folder))
    assert code == 1
    assert "no primary: " in output and "has stopped" in output


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
        assert "'one' holds the lease, but has not renewed it" in output
    finally:
        node.kill()
        node.wait()
        node.stdout.close()
