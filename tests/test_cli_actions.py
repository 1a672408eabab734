"""What the command line does to a cluster: doctor, step-down, pause, resume, evict."""

import json
import os
import subprocess
import sys
import time

import pytest

import cluster
from test_control import FAST, Lab, Storage, until

TIMINGS = []
for _key, _value in FAST.items():
    TIMINGS += ["--" + _key.replace("_", "-"), str(_value)]


@pytest.fixture
def lab(tmp_path):
    lab = Lab(tmp_path)
    yield lab
    lab.close()


@pytest.fixture
def doctor(lab, capsys):
    """Runs it on the lab's cluster; the exit code and what each check found."""

    def run(*options):
        arguments = ["doctor", "--cluster", "lab", "--storage", lab.path, "--json"]
        arguments += ["--host-name", "127.0.0.1"] + TIMINGS + list(options)
        code = cluster.main(arguments)
        findings = json.loads(capsys.readouterr().out)
        return code, {key: (f["verdict"], f["text"]) for key, f in findings.items()}

    return run


def test_a_healthy_cluster_is_found_fit_and_is_left_as_it_was(lab, doctor):
    first, second = lab.started("n1", "n2")
    until(lambda: lab.count("start") == 1)
    calls = list(lab.calls)
    code, found = doctor()
    assert code == 0, found
    ill = {name for name, (verdict, _) in found.items() if verdict != "ok"}
    assert ill <= {"latency"}, found  # a loaded machine has slow moments
    assert "heard both ways: n1, n2" in found["members"][1]
    assert "won once" in found["swaps"][1]
    until(lambda: sorted(first.cluster.nodes) == ["n1", "n2"])
    until(lambda: len(lab.records()) == 2)
    assert lab.calls == calls


def test_it_tells_in_lines_what_it_finds(lab, capsys):
    lab.started("n1")
    arguments = ["doctor", "--cluster", "lab", "--storage", lab.path] + TIMINGS
    assert cluster.main(arguments + ["--host-name", "127.0.0.1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    subjects = [line.split()[0] for line in lines]
    assert subjects == ["storage", "swaps", "latency", "clock", "timings", "members"]
    assert "\x1b" not in "".join(lines)


def test_a_folder_without_the_cluster_is_refused_and_stays_empty(lab, doctor):
    code, found = doctor()
    assert code == 3
    assert list(found) == ["storage"]
    assert "`doctor --create`" in found["storage"][1]
    assert os.listdir(lab.path) == []


def test_with_create_a_new_cluster_is_made_for_the_checks(lab, doctor):
    code, found = doctor("--create")
    assert code == 0, found
    assert found["members"] == ("ok", "there is no other member to be heard")


def test_swaps_that_are_won_twice_are_found(lab, doctor, monkeypatch):
    lab.started("n1")

    def copying(self):  # as an object store that renames by copying
        number = self.read().nodes[0].join_number + 1
        time.sleep(0.001)
        return number

    monkeypatch.setattr(cluster.SharedFsStorageBackend, "next_join_number", copying)
    code, found = doctor()
    assert code == 1
    assert found["swaps"][0] == "FAILED"
    assert "not atomic" in found["swaps"][1]


def test_a_storage_too_slow_for_the_timings_is_found(lab, doctor, monkeypatch):
    lab.started("n1")
    read = cluster.SharedFsStorageBackend.read

    def slow(self, fresh=False):
        time.sleep(0.2)  # the renewal deadline is 0.4
        return read(self, fresh)

    monkeypatch.setattr(cluster.SharedFsStorageBackend, "read", slow)
    code, found = doctor()
    assert code == 1
    assert found["latency"][0] == "FAILED"
    assert "longer timings" in found["latency"][1]


def test_a_storage_that_hangs_ends_at_the_time_limit(lab, doctor, monkeypatch):
    storage = lab.storage()
    storage.mode = "hang"
    monkeypatch.setattr(cluster, "_storage", lambda url, create=False: storage)
    began = time.monotonic()
    code, found = doctor("--timeout", "0.5")
    assert time.monotonic() - began < 5
    assert code == 3
    assert "not answered within 0.5 s" in found["storage"][1]


def test_a_member_that_cannot_be_heard_is_named_with_its_address(lab, doctor):
    first = lab.started("n1")[0]
    ghost = first._runtime.core.record._replace(
        name="ghost", incarnation="f" * 16, port=9, join_number=9**9,
        process=cluster.ProcessIdentity(),
    )  # fmt: skip
    first.stop()
    first.join(10)
    Storage.open(first.storage_backend, "lab")
    first.storage_backend.write_node(ghost)
    code, found = doctor()
    assert code == 1
    assert found["members"][0] == "FAILED"
    assert "ghost is not heard: lost, or unreachable (at 127.0.0.1:9)" in (
        found["members"][1]
    )


def test_another_secret_is_guessed_from_the_packets_dropped(lab, doctor, monkeypatch):
    lab.started("n1", secret="ours")
    monkeypatch.setenv("CLUSTER_SECRET", "theirs")
    code, found = doctor()
    assert code == 1
    text = found["members"][1]
    assert "dropped (with a wrong secret: " in text and "$CLUSTER_SECRET" in text
    assert ": 0" not in text
    monkeypatch.setenv("CLUSTER_SECRET", "ours")
    assert doctor()[0] == 0


def test_other_timings_than_the_primarys_are_told(lab, doctor):
    lab.started("n1", lease_duration=0.5)
    code, found = doctor()
    assert code == 0
    assert found["timings"][0] == "warning"
    assert "lease is of 0.5 s" in found["timings"][1]


@pytest.mark.processes
def test_interrupted_it_leaves_no_record_behind(lab):
    import signal

    first = lab.started("n1")[0]
    silent = first._runtime.core.record._replace(
        name="silent", incarnation="e" * 16, port=9, process=cluster.ProcessIdentity()
    )
    first.storage_backend.write_node(silent)  # so that it waits for that one
    for number in (signal.SIGINT, signal.SIGTERM):
        command = [sys.executable, cluster.__file__, "doctor", "--cluster", "lab",
                   "--storage", lab.path, "--host-name", "127.0.0.1",
                   "--hb-timeout", "30"]  # fmt: skip
        process = subprocess.Popen(command, stdout=subprocess.PIPE)
        try:
            until(lambda: any("doctor-" in name for name in lab.records()), 30)
            process.send_signal(number)
            assert process.wait(20) != 0
        finally:
            process.kill()
            process.communicate()
        assert not any("doctor-" in name for name in lab.records())


# ---- asking the primary


def primary_and_member(lab, **settings):
    first = lab.started("n1", **settings)[0]
    second = lab.node("n2", **settings)
    second.start()
    until(lambda: second.cluster.own_node and second.cluster.own_node.is_active)
    return first, second


def run(lab, name, *options):
    return cluster.main(
        [name, "--cluster", "lab", "--storage", lab.path] + list(options)
    )


def test_the_primary_steps_down_when_it_is_asked(lab, capsys):
    first, second = primary_and_member(lab)
    assert run(lab, "step-down") == 0
    assert "has stepped down" in capsys.readouterr().out
    until(lambda: second.is_primary)
    assert lab.count("stop", "n1") == 1


def test_it_steps_down_for_the_one_that_is_named(lab):
    primary_and_member(lab)
    third = lab.node("n3")
    third.start()
    until(lambda: third.cluster.own_node and third.cluster.own_node.is_active)
    assert run(lab, "step-down", "--to", "n3") == 0
    until(lambda: third.is_primary)
    assert lab.count("start", "n2") == 0


def test_who_cannot_be_the_next_is_refused_by_name(lab, capsys):
    first = lab.started("n1")[0]
    assert run(lab, "step-down", "--to", "n9") == 2
    assert "'n9'" in capsys.readouterr().err
    assert first.is_primary


def test_nobody_can_be_asked_before_there_was_a_primary(lab, capsys):
    node = lab.node("n1")
    cluster.join_cluster(node)
    for name in ("step-down", "pause", "resume"):
        assert run(lab, name) == 1
    assert "nobody has been primary" in capsys.readouterr().err


def test_paused_nobody_takes_over_until_it_is_resumed(lab):
    first, second = primary_and_member(lab)
    assert run(lab, "pause") == 0
    first.stop()
    first.join(10)
    until(lambda: "paused" in (second.status()["why_none"] or ""))
    assert not second.is_primary
    assert run(lab, "resume") == 0
    until(lambda: second.is_primary)


def test_who_steps_down_in_a_pause_is_told_that_nobody_follows(lab, capsys):
    primary_and_member(lab)
    run(lab, "pause")
    assert run(lab, "step-down") == 0
    assert "nobody follows until the cluster is resumed" in capsys.readouterr().out


# ---- evict


def evict(lab, *options):
    return run(lab, "evict", *options)


def test_a_ghost_is_evicted_and_the_living_stay(lab, capsys):
    first = lab.started("n1")[0]
    ghost = first._runtime.core.record._replace(name="ghost", incarnation="f" * 16)
    first.storage_backend.write_node(ghost)
    assert evict(lab, "ghost", "--yes") == 0
    assert [r.name for r in first.storage_backend.read().nodes] == ["n1"]
    assert first.is_primary


def test_evicting_the_dead_holder_of_the_lease_lets_another_claim_at_once(lab):
    first, second = primary_and_member(
        lab, same_host_proof=False, hb_timeout=30, lease_duration=0.6
    )
    first._runtime.storage.abandoned = True  # as good as dead: see it on its socket
    first._runtime.abandon()
    assert not second.is_primary
    assert evict(lab, "n1", "--yes") == 0
    until(lambda: second.is_primary, 15)


def test_a_living_holder_is_not_evicted(lab, capsys):
    first = lab.started("n1")[0]
    assert evict(lab, "n1", "--yes") == 1
    assert "alive" in capsys.readouterr().err
    assert first.is_primary
    assert [r.name for r in first.storage_backend.read().nodes] == ["n1"]


def test_it_says_what_it_risks_and_asks_for_the_name(lab, capsys, monkeypatch):
    first = lab.started("n1")[0]
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", lambda prompt: "no")
    assert evict(lab, "n1") == 1
    assert "two primaries" in capsys.readouterr().err
    assert first.is_primary


def test_without_a_terminal_it_wants_yes(lab, capsys):
    lab.started("n1")
    assert evict(lab, "n1") == 2
    assert "--yes" in capsys.readouterr().err


def test_a_name_that_is_not_there_is_told_with_those_that_are(lab, capsys):
    lab.started("n1")
    assert evict(lab, "n2", "--yes") == 1
    assert "'n1'" in capsys.readouterr().err
