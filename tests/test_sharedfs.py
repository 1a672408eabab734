"""The shared folder as storage: the contract, and what only a folder can suffer."""

import errno
import functools
import json
import logging
import os
import pathlib
import shutil
import signal
import stat
import subprocess
import sys
import tempfile

import pytest

import cluster
from cluster import SharedFsStorageBackend, StorageError
from contract import (
    CLUSTER,
    LEASE,
    ODD_NAMES,
    RECORD,
    StorageContract,
    in_processes,
    lease,
    name_of,
    read_during,
)

A, B, C = "a" * 16, "b" * 16, "c" * 16
posix_only = pytest.mark.skipif(os.name != "posix", reason="needs POSIX files")
HOLDS_ROSTER = lease(1, 5, A, [B])


class TestTheContract(StorageContract):
    @pytest.fixture(autouse=True)
    def store(self):
        self.path = in_memory()
        yield
        shutil.rmtree(self.path)

    def make_factory(self):
        return functools.partial(SharedFsStorageBackend, self.path)

    def wipe(self):
        empty(self.path)


class Share:
    """A shared folder, seen from outside."""

    def __init__(self, path):
        self.path = path
        self.folder = path / ("cluster-" + CLUSTER)
        self.nodes = self.folder / "nodes"
        self.lease = self.folder / "lease"
        self.rosters = self.folder / "rosters"

    def opened(self, **options):
        backend = SharedFsStorageBackend(str(self.path), **options)
        backend.open(CLUSTER)
        return backend

    def everything(self):
        return sorted(path.relative_to(self.path) for path in self.path.rglob("*"))


@pytest.fixture
def place():
    """An empty folder, in memory where that can be: nothing waits for a disk."""
    path = in_memory()
    yield pathlib.Path(path)
    shutil.rmtree(path)


@pytest.fixture
def share(place):
    return Share(place / "share")


def in_memory():
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    return os.path.realpath(tempfile.mkdtemp(prefix="sharedfs-", dir=memory))


def empty(folder):
    for name in os.listdir(str(folder)):
        shutil.rmtree(os.path.join(str(folder), name))


def only(folder):
    (path,) = folder.iterdir()
    return path


def plant_fifo(path):
    os.mkfifo(str(path))


def plant_folder(path):
    path.mkdir()
    (path / "inside").write_text("{}")


def plant_link(path):
    root = next(parent for parent in path.parents if parent.name == "share")
    target = root.with_name("outside")
    target.write_text(json.dumps(RECORD.to_dict()))
    path.symlink_to(target)


def plant_loop(path):
    path.symlink_to(path.name)


def plant_huge_file(path):
    with open(str(path), "wb") as file:
        file.truncate(1 << 40)


PLANTS = [plant_fifo, plant_folder, plant_link, plant_loop, plant_huge_file]
CORRUPT = [
    b"", b"\xff\xfe", b"{", b"null", b"[]", b"{}", b"1e999", b"\0" * 1000,
    b"[" * 60000, b'{"name":"n2"}', b"9" * 60000,
    json.dumps(dict(RECORD.to_dict(), port=0)).encode(),
    json.dumps(RECORD._replace(name="other").to_dict()).encode(),
]  # fmt: skip


# ---- records


@pytest.mark.parametrize("content", CORRUPT, ids=lambda content: ascii(content[:12]))
def test_a_corrupt_record_is_reported_once_and_left_alone(share, caplog, content):
    backend = share.opened()
    backend.write_node(RECORD)
    path = share.nodes / ("node-n2.%s.json" % B)
    path.write_bytes(content)
    for _ in range(3):
        assert backend.read().nodes == (RECORD,)
    assert [r.levelname for r in caplog.records] == ["WARNING"]
    assert str(path) in caplog.text and len(caplog.text) < 1000
    assert path.read_bytes() == content


def test_a_corrupt_record_counts_again_once_its_owner_has_rewritten_it(share):
    backend, owner = share.opened(), share.opened()
    owner.write_node(RECORD)
    path = only(share.nodes)
    path.write_bytes(b"{")
    assert backend.read().nodes == ()
    owner.write_node(RECORD)
    assert backend.read().nodes == (RECORD,)


@posix_only
@pytest.mark.parametrize("plant", PLANTS)
def test_what_is_planted_among_the_records_is_harmless(share, caplog, plant):
    backend = share.opened()
    backend.write_node(RECORD)
    path = share.nodes / ("node-n2.%s.json" % B)
    plant(path)
    for _ in range(3):
        assert backend.read().nodes == (RECORD,)
    assert len(caplog.records) == 1
    assert os.path.lexists(str(path))


@posix_only
@pytest.mark.parametrize("plant", PLANTS)
def test_what_is_planted_in_place_of_a_record_is_moved_aside(share, plant):
    backend = share.opened()
    plant(share.nodes / ("node-n1.%s.json" % A))
    assert backend.read().nodes == ()
    backend.write_node(RECORD)
    assert backend.read().nodes == share.opened().read().nodes == (RECORD,)
    aside = [p for p in share.nodes.iterdir() if p.name.startswith("aside-")]
    assert len(aside) == (plant is not plant_huge_file)
    outside = share.path.parent / "outside"
    if plant is plant_link:
        assert json.loads(outside.read_text()) == RECORD.to_dict()


def test_foreign_names_are_ignored_without_a_word(share, caplog):
    backend = share.opened()
    backend.write_node(RECORD)
    assert backend.swap_lease(None, HOLDS_ROSTER)
    name = only(share.lease).name
    foreign = [
        ".DS_Store", "Thumbs.db", ".nfs0001", "desktop.ini", "README.json", "tmp-x",
        "tmp-" + A, name + "~", name + " (copy)", "0" + name, name.replace("_5.0", "_5"),
        "+1_1_%s_0_0_-1_5.0_300.0_60.0" % A, "1_1_1", "07", "1_1", "\u0663",
        name.replace("_300.0_", "_3e2_"), name.replace("_300.0_", "_nan_"),
        name.upper(),
    ]  # fmt: skip
    for folder in [share.path, share.folder] + [
        path for path in share.folder.iterdir() if path.is_dir()
    ]:
        for word in foreign:
            (folder / word).write_text("x")
    for each in (backend, share.opened()):
        assert each.read()[1:] == (HOLDS_ROSTER, (RECORD,))
        assert each.next_join_number() > 0
    new = lease(1, 6, A, [B, C])
    assert backend.swap_lease(HOLDS_ROSTER, new)
    assert share.opened().read().lease == new
    assert not caplog.records


def test_a_record_of_the_next_format_is_a_member(share, caplog):
    backend = share.opened()
    later = dict(RECORD.to_dict(), format=2, colour="red", deep={"a": [1]})
    later["process"]["cgroup"] = "x"
    backend.write_node(RECORD)
    only(share.nodes).write_text(json.dumps(later))
    assert share.opened().read().nodes == backend.read().nodes == (RECORD,)
    assert not caplog.records


def test_unchanged_records_are_not_parsed_again(share, monkeypatch):
    backend = share.opened()
    for number in range(10):
        backend.write_node(RECORD._replace(name="n%d" % number))
    first = backend.read()
    opened = []
    original = os.open
    monkeypatch.setattr(os, "open", lambda *a, **k: opened.append(a) or original(*a, **k))
    assert backend.read() == first
    assert opened == []
    backend.write_node(RECORD._replace(name="n3", notice=1))
    del opened[:]
    assert backend.read() != first
    assert len(opened) == 1


def test_a_change_is_seen_where_inode_and_time_stay_the_same(share, monkeypatch):
    backend, reader = share.opened(), share.opened()
    original = cluster._signature
    coarse = lambda status: (1, 1, original(status)[2])  # noqa: E731
    monkeypatch.setattr(cluster, "_signature", coarse)
    for notice in list(range(1, 12)) + [5, 1000, 7]:
        record = RECORD._replace(notice=notice)
        backend.write_node(record)
        assert reader.read().nodes == (record,)


@pytest.mark.parametrize("call", ["lstat", "open"])
@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.EACCES])
def test_a_record_that_cannot_be_read_now_is_read_later(
    share, monkeypatch, caplog, call, number
):
    backend, knowing = share.opened(), share.opened()
    backend.write_node(RECORD)
    assert knowing.read().nodes == (RECORD,)
    newer = RECORD._replace(notice=77)
    backend.write_node(newer)
    original = getattr(os, call)

    def fail(path, *arguments, **keywords):
        if str(path).endswith(".json"):
            raise OSError(number, os.strerror(number), path)
        return original(path, *arguments, **keywords)

    with monkeypatch.context() as patch:
        patch.setattr(os, call, fail)
        for _ in range(3):
            assert backend.read().nodes == ()
            assert knowing.read().nodes == (RECORD,)  # still what it was
        assert len(caplog.records) == 2
    assert backend.read().nodes == knowing.read().nodes == (newer,)


def test_a_listing_that_misses_a_record_does_not_lose_the_member(share, monkeypatch):
    backend = share.opened()
    backend.write_node(RECORD)
    backend.read()
    original = os.listdir
    hide = lambda p: [n for n in original(p) if not n.endswith(".json")]  # noqa: E731
    monkeypatch.setattr(os, "listdir", hide)
    assert backend.read().nodes == (RECORD,)
    backend.remove_node(RECORD.name, RECORD.incarnation)
    assert backend.read().nodes == ()


def test_a_record_too_long_to_be_read_is_not_written(share):
    backend = share.opened()
    backend.write_node(RECORD)
    with pytest.raises(StorageError, match="too long"):
        backend.write_node(RECORD._replace(version="x" * cluster.MAX_RECORD))
    assert backend.read().nodes == (RECORD,)


# ---- lease and rosters


@posix_only
@pytest.mark.parametrize("plant", PLANTS[:-1])
def test_what_is_planted_beside_the_lease_is_harmless(share, plant):
    backend = share.opened()
    assert backend.swap_lease(None, LEASE)
    plant(share.lease / cluster._lease_name(lease(9, 9, B), -1))
    assert backend.read().lease == share.opened().read().lease == LEASE
    assert backend.swap_lease(LEASE, lease(2, 1, C))
    assert backend.read(fresh=True).lease == lease(2, 1, C)


@posix_only
@pytest.mark.parametrize("plant", PLANTS)
@pytest.mark.parametrize("folder", ["lease", "seniority", "rosters", "nodes"])
def test_what_is_planted_in_place_of_a_folder_is_harmless(share, plant, folder):
    backend = share.opened()
    path = share.folder / folder
    if path.exists():
        shutil.rmtree(str(path))
    if plant is plant_folder:
        path.mkdir()
    else:
        plant(path)
    assert backend.read()[1:] == (None, ())
    backend.write_node(RECORD)
    assert backend.next_join_number() > 0
    assert backend.swap_lease(None, HOLDS_ROSTER)
    assert share.opened().read()[1:] == (HOLDS_ROSTER, (RECORD,))


@posix_only
@pytest.mark.parametrize("plant", PLANTS)
def test_what_is_planted_in_place_of_a_roster_makes_it_unknown(share, caplog, plant):
    backend = share.opened()
    assert backend.swap_lease(None, HOLDS_ROSTER)
    path = only(share.rosters)
    path.unlink()
    plant(path)
    reader = share.opened()
    for _ in range(3):
        assert reader.read().lease == HOLDS_ROSTER._replace(roster=None)
    assert len(caplog.records) == 1


@pytest.mark.parametrize(
    "content",
    [None, b"", b"{", b"[]", b"null", b"{}", b'{"roster":null}', b'{"roster":[1]}',
     b'{"roster":"x"}', b"[" * 60000, b"\xff"],
    ids=str,
)  # fmt: skip
def test_a_roster_that_is_missing_or_unreadable_is_unknown_until_renewed(share, content):
    backend = share.opened()
    assert backend.swap_lease(None, HOLDS_ROSTER)
    path = only(share.rosters)
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    reader = share.opened()
    assert reader.read().lease == HOLDS_ROSTER._replace(roster=None)
    renewed = HOLDS_ROSTER._replace(counter=6)
    assert share.opened().swap_lease(HOLDS_ROSTER, renewed)
    assert reader.read().lease == renewed


def test_a_renewal_with_an_unchanged_roster_writes_no_file(share, monkeypatch):
    backend = share.opened()
    assert backend.swap_lease(None, HOLDS_ROSTER)
    before = share.everything()

    def full(*arguments, **keywords):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    for name in ("open", "write", "mkdir"):
        monkeypatch.setattr(os, name, full)
    old = HOLDS_ROSTER
    for counter in range(6, 10):
        new = old._replace(counter=counter)
        assert backend.swap_lease(old, new)
        assert backend.read().lease == new
        old = new
    monkeypatch.undo()
    assert len(share.everything()) == len(before)


def test_old_rosters_are_removed(share):
    backend = share.opened()
    old = None
    for counter in range(1, 30):
        new = lease(1 + counter // 7, counter, A, ["%016x" % counter])
        assert backend.swap_lease(old, new)
        assert not share.opened().swap_lease(old, lease(new.term, 99, B, [C]))
        old = new
    assert len(list(share.rosters.iterdir())) <= 3
    assert share.opened().read().lease == old


def test_two_leases_for_good_are_a_storage_error_that_names_them(share):
    backend = share.opened()
    assert backend.swap_lease(None, LEASE)
    second = share.lease / cluster._lease_name(lease(2, 1, B), -1)
    second.write_bytes(b"")
    for call in (backend.read, lambda: backend.swap_lease(LEASE, lease(3, 1))):
        with pytest.raises(StorageError, match=second.name):
            call()
    second.unlink()
    assert backend.read().lease == LEASE


def test_a_listing_that_shows_both_names_or_none_for_once_is_no_error(share, monkeypatch):
    backend = share.opened()
    assert backend.swap_lease(None, LEASE)
    original = cluster._Register._names
    pending = []

    def names(register):
        return pending.pop() if pending else original(register)

    monkeypatch.setattr(cluster._Register, "_names", names)
    both = [cluster._lease_name(value, -1) for value in (LEASE, lease(2, 1))]
    for odd in ([], both):
        pending[:] = [odd, odd]
        assert backend.read().lease == LEASE


def failing_rename(error, after=True):
    """A rename that is applied (or not) and reported as failed all the same."""
    original = os.rename

    def rename(source, target):
        if after:
            original(source, target)
        raise OSError(error, os.strerror(error), source)

    return rename


@pytest.mark.parametrize("error", [errno.ENOENT, errno.EIO, errno.ETIMEDOUT])
@pytest.mark.parametrize("expected", [None, LEASE])
def test_a_swap_applied_but_reported_as_failed_is_won(
    share, monkeypatch, error, expected
):
    backend = share.opened()
    if expected is not None:
        assert backend.swap_lease(None, expected)
    new = lease(2, 1, B, [A])
    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", failing_rename(error))
        assert backend.swap_lease(expected, new) is True
    assert share.opened().read().lease == new


@pytest.mark.parametrize("error", [errno.EIO, errno.EACCES, errno.ESTALE, errno.EROFS])
@pytest.mark.parametrize("expected", [None, LEASE])
def test_a_swap_that_fails_otherwise_is_a_storage_error(
    share, monkeypatch, error, expected
):
    backend = share.opened()
    if expected is not None:
        assert backend.swap_lease(None, expected)
    monkeypatch.setattr(os, "rename", failing_rename(error, after=False))
    with pytest.raises(StorageError, match="lease"):
        backend.swap_lease(expected, lease(2, 1, B))
    assert backend.read().lease == expected


def test_a_swap_not_applied_since_its_source_is_gone_is_lost(share, monkeypatch):
    backend = share.opened()
    assert backend.swap_lease(None, LEASE)
    monkeypatch.setattr(os, "rename", failing_rename(errno.ENOENT, after=False))
    assert backend.swap_lease(LEASE, lease(2, 1, B)) is False


CALLS = {
    "open": lambda backend: backend.open(CLUSTER),
    "read": lambda backend: backend.read(),
    "next_join_number": lambda backend: backend.next_join_number(),
    "write_node": lambda backend: backend.write_node(RECORD._replace(notice=1)),
    "remove_node": lambda backend: backend.remove_node("n1", A),
    "swap_lease": lambda backend: backend.swap_lease(
        HOLDS_ROSTER, lease(2, 1, B, [A, C])
    ),
    "repair": lambda backend: backend.repair(backend._cluster_id),
}
FUNCTIONS = ["open", "mkdir", "rename", "replace", "unlink", "listdir", "scandir",
             "stat", "lstat", "write", "fsync"]  # fmt: skip


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE])
@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("call", sorted(CALLS))
def test_whatever_fails_is_a_storage_error_that_names_the_path_or_nothing(
    share, monkeypatch, call, function, number
):
    backend = share.opened()
    backend.write_node(RECORD)
    assert backend.swap_lease(None, HOLDS_ROSTER)

    def fail(*arguments, **keywords):
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(os, function, fail)
        try:
            CALLS[call](backend)
        except StorageError as error:
            assert str(share.path) in str(error)
    # and works again
    CALLS[call](backend)
    assert backend.read().cluster_id == share.opened().read().cluster_id


def test_a_disk_that_takes_a_part_of_each_write_gets_the_whole(share, monkeypatch):
    backend = share.opened()
    original = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: original(fd, data[:7]))
    backend.write_node(RECORD)
    assert backend.read().nodes == (RECORD,)


def test_a_full_disk_leaves_the_old_record_and_no_rubbish(share, monkeypatch):
    backend = share.opened()
    backend.write_node(RECORD)
    before = share.everything()

    def full(descriptor, data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        with pytest.raises(StorageError, match="nodes"):
            backend.write_node(RECORD._replace(notice=5))
    assert share.everything() == before
    assert backend.read().nodes == (RECORD,)


# ---- which store is it?


def test_a_backend_that_was_never_opened_is_refused(share):
    share.opened()
    backend = SharedFsStorageBackend(str(share.path))
    for call in ("read", "next_join_number", "write_node", "repair"):
        with pytest.raises(StorageError):
            CALLS[call](backend)


def used(share):
    backend = share.opened()
    backend.write_node(RECORD)
    assert backend.swap_lease(None, HOLDS_ROSTER)
    return backend


def test_a_root_replaced_by_an_empty_folder_is_gone_until_it_is_back(share):
    backend = used(share)
    before = backend.read()
    away = share.path.with_name("away")
    share.path.rename(away)
    share.path.mkdir()
    for call in sorted(CALLS):  # opening again included, with create=True
        with pytest.raises(StorageError, match="gone|holds another cluster"):
            CALLS[call](backend)
    assert share.everything() == []
    share.path.rmdir()
    away.rename(share.path)
    assert backend.read() == before
    assert backend.swap_lease(HOLDS_ROSTER, lease(2, 1, B))
    assert backend.next_join_number() > 0


def test_a_root_that_is_missing_is_a_storage_error_and_not_made_anew(share):
    backend = used(share)
    shutil.rmtree(str(share.path))
    for call in sorted(CALLS):
        with pytest.raises(StorageError, match="share"):
            CALLS[call](backend)
    assert not share.path.exists()


def test_a_copy_under_another_root_is_the_same_store(share):
    backend = used(share)
    before = backend.read()
    shutil.move(str(share.path), str(share.path) + "-old")
    shutil.copytree(str(share.path) + "-old", str(share.path))
    assert backend.read() == before


def test_a_share_that_vanishes_in_the_middle_of_a_read_is_not_a_wiped_one(
    share, monkeypatch
):
    backend = used(share)
    away = share.path.with_name("away")
    original = backend._read_lease

    def unmount():
        share.path.rename(away)
        share.path.mkdir()
        return original()

    monkeypatch.setattr(backend, "_read_lease", unmount)
    with pytest.raises(StorageError, match="gone"):
        backend.read()


def test_another_id_under_the_same_root_is_told_in_the_snapshot(share):
    backend = used(share)
    empty(share.path)
    other = SharedFsStorageBackend(str(share.path)).open(CLUSTER)
    assert backend.read() == (other, None, ())
    for call in ("next_join_number", "write_node", "remove_node", "swap_lease", "repair"):
        with pytest.raises(StorageError, match="another cluster"):
            CALLS[call](backend)
    assert backend.open(CLUSTER) == other
    backend.write_node(RECORD)
    assert backend.read().nodes == (RECORD,)


def test_a_store_wiped_in_place_takes_no_writes_before_it_is_repaired(share):
    backend = used(share)
    cluster_id = backend.open(CLUSTER)
    shutil.rmtree(str(share.folder))
    assert backend.read() == (None, None, ())
    for call in ("next_join_number", "write_node", "remove_node", "swap_lease"):
        with pytest.raises(StorageError):
            CALLS[call](backend)
    backend.repair(cluster_id)
    backend.write_node(RECORD)
    assert share.opened().read() == (cluster_id, None, (RECORD,))


def test_a_lost_id_comes_back_by_repair_and_nothing_else_is_touched(share):
    backend = used(share)
    before = backend.read()
    number = backend.next_join_number()
    shutil.rmtree(str(share.folder / "identity"))
    assert backend.read() == before._replace(cluster_id=None)
    with pytest.raises(StorageError, match="a running member restores it"):
        share.opened()
    backend.repair(before.cluster_id)
    assert backend.read() == share.opened().read() == before
    assert backend.next_join_number() > number


def _open_without_grace(number, barrier, path):
    cluster._IDENTITY_GRACE = 0.0
    backend = SharedFsStorageBackend(path)
    barrier.wait(60)
    return backend.open(CLUSTER)


def test_processes_that_race_to_restore_a_lost_id_agree(share):
    share.opened()
    shutil.rmtree(str(share.folder / "identity"))
    ids = in_processes(_open_without_grace, str(share.path))
    assert len(set(ids)) == 1
    assert share.opened().read().cluster_id == ids[0]


def _repair_at_once(number, barrier, path, cluster_id):
    backend = SharedFsStorageBackend(path)
    backend._cluster_id = cluster_id
    backend._set_folder("cluster-" + CLUSTER)
    backend._root = backend._root_identity()
    barrier.wait(60)
    backend.repair(cluster_id)
    return [backend.next_join_number() for _ in range(20)]


def test_members_that_race_to_repair_leave_one_whole_store(share):
    cluster_id = share.opened().read().cluster_id
    for _ in range(2):
        empty(share.path)
        lists = in_processes(_repair_at_once, str(share.path), cluster_id)
        numbers = sum(lists, [])
        assert len(set(numbers)) == len(numbers)
        assert share.opened().read() == (cluster_id, None, ())


def test_a_lost_seniority_register_goes_on_above_the_records(share):
    backend = share.opened()
    backend.write_node(RECORD._replace(join_number=41))
    shutil.rmtree(str(share.folder / "seniority"))
    assert share.opened().next_join_number() == 42


def test_foreign_files_in_a_register_without_value_do_not_block_the_first(share):
    backend = share.opened()
    share.lease.mkdir()
    (share.lease / "notes.txt").write_text("precious")
    (share.lease / "folder").mkdir()
    (share.lease / "folder" / "inside").write_text("precious")
    (share.lease / ("\u1234" * 80)).write_text("precious")  # as long as can be
    (share.lease / ("tmp-" + A)).write_text("")  # a probe whose writer was killed
    assert backend.read().lease is None
    assert backend.swap_lease(None, LEASE)
    assert only(share.lease).name == cluster._lease_name(LEASE, -1)
    kept = [p for p in share.folder.rglob("*") if p.is_file() and "aside-" in str(p)]
    assert [p.read_text() for p in kept] == ["precious"] * 3


def test_lease_names_of_earlier_and_later_versions_are_understood(share):
    backend = share.opened()
    assert backend.swap_lease(None, LEASE)
    path = only(share.lease)
    assert path.name.endswith("_0_0_")
    earlier = path.with_name(path.name[: -len("_0_0_")])
    path.rename(earlier)
    assert backend.read().lease == share.opened().read().lease == LEASE
    new = lease(1, 2, roster=[B], successor=B, released=True)
    assert backend.swap_lease(LEASE, new)
    path = only(share.lease)
    later = path.with_name(path.name + "_9_x")
    path.rename(later)
    assert backend.read().lease == new
    assert backend.swap_lease(new, lease(1, 3))
    assert only(share.lease).name == cluster._lease_name(lease(1, 3), -1)


def test_a_register_blocked_by_what_has_the_name_of_a_value_says_so(share):
    backend = share.opened()
    share.lease.mkdir()
    (share.lease / cluster._lease_name(LEASE, -1)).mkdir()
    with pytest.raises(StorageError, match="does not belong there"):
        backend.swap_lease(None, lease(1, 1, B))


@posix_only
@pytest.mark.parametrize("folder", ["lease", "seniority", "rosters", "nodes", "identity"])
def test_a_link_in_place_of_a_folder_is_moved_aside_and_not_followed(share, folder):
    backend = used(share)
    real, target = share.folder / folder, share.path.with_name("outside")
    real.rename(target)
    before = sorted(target.iterdir())
    real.symlink_to(target)
    snapshot = backend.read()
    if folder == "lease":
        assert snapshot.lease is None
    if folder == "rosters":  # none has read it from the link
        assert share.opened().read().lease.roster is None
    if folder == "nodes":
        assert snapshot.nodes == ()
    if folder == "identity":
        assert snapshot.cluster_id is None
        backend.repair(backend._cluster_id)
    backend.write_node(RECORD)
    backend.remove_node("n1", A)
    assert backend.next_join_number() > 0
    assert backend.swap_lease(snapshot.lease, lease(2, 1, B, [A]))
    assert sorted(target.iterdir()) == before
    (aside,) = [p for p in share.folder.iterdir() if p.name.startswith("aside-")]
    assert aside.is_symlink()


@pytest.mark.parametrize("which", ["folder", "lease"])
def test_a_folder_whose_rename_may_still_land_is_not_emptied(share, monkeypatch, which):
    first = {"folder": share.opened, "lease": lambda: backend.swap_lease(None, LEASE)}
    late, original = [], os.rename

    def rename(source, target):
        if target == str(getattr(share, which)):
            late.append((source, target))
            raise OSError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT), source)
        original(source, target)

    if which == "lease":
        backend = share.opened()
    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", rename)
        with pytest.raises(StorageError):
            first[which]()
    original(*late.pop())  # now it lands
    reader = share.opened()
    assert late == [] and reader.read().lease == (LEASE if which == "lease" else None)
    assert len(list((share.folder / "identity").iterdir())) == 1


# ---- creation


def test_without_create_a_folder_that_holds_no_cluster_is_refused(share):
    for _ in range(2):
        with pytest.raises(StorageError, match="create=True"):
            share.opened(create=False)
        share.path.mkdir(exist_ok=True)
    assert share.everything() == []
    cluster_id = share.opened().read().cluster_id
    assert share.opened(create=False).read() == (cluster_id, None, ())
    with pytest.raises(StorageError, match="create=True"):
        SharedFsStorageBackend(str(share.path), create=False).open("other")


def test_a_path_that_is_a_file_is_a_storage_error(share):
    share.path.write_text("mine")
    for create in (True, False):
        with pytest.raises(StorageError, match=share.path.name):
            share.opened(create=create)
    assert share.path.read_text() == "mine"


@posix_only
def test_nothing_is_writable_for_the_world_whatever_the_umask(place):
    share = Share(place / "deep" / "er" / "share")
    old = os.umask(0)
    try:
        backend = used(share)
        backend.next_join_number()
        assert backend.swap_lease(HOLDS_ROSTER, lease(2, 1, B, [A]))
        shutil.rmtree(str(share.folder))
        backend.repair(backend._cluster_id)
        used(share)
    finally:
        os.umask(old)
    found = list(place.rglob("*"))
    assert len(found) > 10
    assert [p for p in found if p.stat().st_mode & stat.S_IWOTH] == []


def test_processes_that_race_to_create_leave_one_cluster_and_no_rubbish(share):
    factory = functools.partial(SharedFsStorageBackend, str(share.path))
    ids = in_processes(_open_once, factory)
    assert len(set(ids)) == 1
    assert [path.name for path in share.path.iterdir()] == [share.folder.name]


def _open_once(number, barrier, factory):
    backend = factory()
    barrier.wait(60)
    return backend.open(CLUSTER)


def test_a_creation_that_fails_leaves_no_rubbish(share, monkeypatch):
    def full(*arguments, **keywords):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(cluster, "_write_file", full)
    with pytest.raises(StorageError):
        share.opened()
    monkeypatch.undo()
    assert share.everything() == []


def test_stale_temporary_files_are_removed_and_young_ones_are_not(share):
    used(share)
    old, young, foreign = [], [], []
    for folder in share.folder, share.nodes, share.rosters, share.lease:
        old += [folder / ("tmp-" + A)]
        young += [folder / ("tmp-" + B)]
        foreign += [folder / "tmp-notes", folder / "mine"]
    for path in old + young + foreign:
        path.write_text("x")
    for name, paths in ((A, old), (B, young), ("notes", foreign)):
        folder = share.path / ("tmp-cluster-" + name)
        (folder / "nodes").mkdir(parents=True)
        paths.append(folder)
    foreign.append(share.path / ("tmp-" + C))  # in the root, not ours to judge
    foreign[-1].write_text("x")
    long_ago = os.stat(str(share.path)).st_mtime - 2 * cluster._STALE_AFTER
    for path in old + foreign:
        os.utime(str(path), (long_ago, long_ago))
    share.opened()
    assert [path for path in old if path.exists()] == []
    assert [path for path in young + foreign if not path.exists()] == []


# ---- names, file systems, kills


@pytest.mark.parametrize("name", ODD_NAMES, ids=name_of)
def test_names_never_escape_the_root(place, name):
    share = Share(place / "in" / "share")
    backend = SharedFsStorageBackend(str(share.path))
    backend.open(name)
    backend.write_node(RECORD._replace(name=name))
    backend.remove_node(name, B)
    assert backend.read().nodes[0].name == name
    inside = [share.path] + list(share.path.rglob("*"))
    assert set(place.rglob("*")) == set(inside) | {share.path.parent}
    for path in inside[1:]:
        plain = set("abcdefghijklmnopqrstuvwxyz0123456789_-.%~")
        assert set(path.name) <= plain and len(path.name) < 220


@posix_only
def test_the_file_system_is_the_one_that_a_link_leads_to(tmp_path):
    if not os.path.ismount("/proc") or cluster._file_system("/proc") != "proc":
        pytest.skip("needs Linux's /proc")
    link = tmp_path / "link"
    link.symlink_to("/proc")
    assert cluster._file_system(str(link)) == "proc"
    assert cluster._file_system(str(tmp_path)) not in ("", "proc")


def test_without_mount_table_no_file_system_is_taken_for_a_local_one(monkeypatch):
    def fail(*arguments, **keywords):
        raise OSError(errno.ENOENT, "no such file")

    monkeypatch.setattr("builtins.open", fail)
    assert cluster._file_system("/") == ""


WRITER = """
import sys
import cluster
from contract import CLUSTER, RECORD, lease
backend = cluster.SharedFsStorageBackend(sys.argv[1])
backend.open(CLUSTER)
old, counter = backend.read().lease, int(sys.argv[2])
print("ready", flush=True)
while True:
    counter += 1
    new = lease(counter, counter, roster=["%016x" % counter])
    assert backend.swap_lease(old, new)
    old = new
    record = RECORD._replace(version="x" * (counter % 30000), notice=counter)
    backend.write_node(record)
"""


@posix_only
def test_a_kill_in_the_middle_of_writes_leaves_nothing_half_written(share, caplog):
    reader = share.opened()
    here = os.path.dirname(os.path.abspath(__file__))
    paths = [here, os.path.dirname(cluster.__file__), os.environ.get("PYTHONPATH", "")]
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join(filter(None, paths)))
    for turn in range(5):
        command = [sys.executable, "-c", WRITER, str(share.path), str(turn * 10**6)]
        writer = subprocess.Popen(command, stdout=subprocess.PIPE, env=environment)
        try:
            assert writer.stdout.readline() == b"ready\n"
            seen = 0
            while seen < turn * 10**6 + 20 + turn:  # kill it at a place of its own
                assert writer.poll() is None
                snapshot = reader.read()
                seen = snapshot.nodes[0].notice if snapshot.nodes else 0
        finally:
            os.kill(writer.pid, signal.SIGKILL)
            writer.wait()
            writer.stdout.close()
        snapshot = share.opened().read()
        (record,) = snapshot.nodes
        assert len(record.version) == record.notice % 30000
        assert snapshot.lease.term - record.notice in (0, 1)
        assert snapshot.lease.roster == {"%016x" % snapshot.lease.counter}
    assert [r for r in caplog.records if r.levelno > logging.WARNING] == []
    assert "no node record" not in caplog.text


def test_a_second_thread_may_call_while_the_first_one_hangs(share):
    backend, other = used(share), share.opened()

    def write():
        for counter in range(100):
            backend.write_node(RECORD._replace(notice=counter))
            backend.read()

    for snapshot in read_during(write, backend):
        assert snapshot.lease == HOLDS_ROSTER
        assert [record.name for record in snapshot.nodes] == ["n1"]
    assert other.read().nodes[0].notice == 99
