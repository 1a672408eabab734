"""Interleavings in the shared folder, each forced by a hook on one system call."""

import errno
import os

import pytest

from cluster import Lease, NodeRecord, SharedFsStorageBackend, StorageError

CLUSTER = "contract"


def make_lease(term=1, counter=1, number=1, roster=(), **changes):
    lease = Lease(
        term, counter, "%016x" % number, True, False, frozenset(roster), 5.0, 300.0, 60.0
    )
    return lease._replace(**changes)


def make_record(name="a", number=1, join_number=1, **changes):
    record = NodeRecord(name, "%016x" % number, "127.0.0.1", 4000, "1.0", join_number)
    return record._replace(**changes)


@pytest.fixture
def root(tmp_path):
    return tmp_path / "shared"


@pytest.fixture
def folder(root):
    return root / ("cluster-" + CLUSTER)


@pytest.fixture
def opened(root):
    def make():
        backend = SharedFsStorageBackend(str(root))
        backend.open(CLUSTER)
        return backend

    return make


def before(monkeypatch, function, matches, action):
    """Runs `action` once, just before the first matching call of os.`function`."""
    real, done = getattr(os, function), []

    def hooked(*args, **keywords):
        if not done and matches(*args):
            done.append(True)
            action()
        return real(*args, **keywords)

    monkeypatch.setattr(os, function, hooked)
    return done


def both(monkeypatch, functions, matches, action):
    done = []

    def once():
        if not done:
            done.append(True)
            action()

    for function in functions:
        before(monkeypatch, function, matches, once)
    return done


def test_who_loses_the_race_for_a_join_number_gets_another_one(opened, monkeypatch):
    a, b = opened(), opened()
    taken = []
    hit = before(
        monkeypatch, "rename",
        lambda source, target: "seniority" in str(target),
        lambda: taken.append(b.next_join_number()),
    )  # fmt: skip
    taken.append(a.next_join_number())
    assert hit and len(set(taken)) == 2, taken


def test_a_file_in_the_place_of_the_register_lets_nobody_win_twice(
    opened, folder, monkeypatch
):
    a, b = opened(), opened()
    (folder / "lease").write_text("")
    won = []
    hit = both(
        monkeypatch, ("rename", "replace"),
        lambda source, target: str(source) == str(folder / "lease"),
        lambda: won.append(b.swap_lease(None, make_lease(1, 1, 2))),
    )  # fmt: skip
    try:
        won.append(a.swap_lease(None, make_lease(1, 1, 1)))
    except StorageError:
        pass
    assert hit and won.count(True) == 1, won
    assert opened().read(True).lease == make_lease(1, 1, 2)


def test_a_share_unmounted_in_mid_read_does_not_make_members_vanish(
    opened, root, folder, monkeypatch
):
    a = opened()
    a.write_node(make_record())
    a.swap_lease(None, make_lease(1, 1))
    a.read()

    def unmount():
        root.rename(root.parent / "away")
        root.mkdir()

    hit = both(
        monkeypatch, ("listdir", "scandir"),
        lambda path: str(path) == str(folder / "nodes"), unmount,
    )  # fmt: skip
    with pytest.raises(StorageError):
        print(a.read())
    assert hit


def test_the_holder_writes_a_lost_roster_again(opened, folder):
    a, b = opened(), opened()
    roster = ["%016x" % 9]
    assert a.swap_lease(None, make_lease(1, 1, roster=roster))
    for path in (folder / "rosters").iterdir():
        path.unlink()
    assert b.read().lease.roster is None
    assert a.swap_lease(make_lease(1, 1, roster=roster), make_lease(1, 2, roster=roster))
    assert b.read(True).lease.roster == frozenset(roster)


class CachingClient:
    """As an NFS client: a listing is repeated until the folder is changed here."""

    def __init__(self, monkeypatch):
        self.cache = {}
        self.on = False
        self.listdir, self.scandir = os.listdir, os.scandir
        self.open, self.rename, self.replace = os.open, os.rename, os.replace
        monkeypatch.setattr(os, "listdir", lambda path=".": self.names(path))
        monkeypatch.setattr(os, "scandir", self.entries)
        monkeypatch.setattr(os, "open", self.opened)

    def names(self, path):
        path = os.fspath(path)
        if not self.on:
            return self.listdir(path)
        if path not in self.cache:
            self.cache[path] = self.listdir(path)
        return list(self.cache[path])

    def entries(self, path="."):
        path = os.fspath(path)
        if not self.on:
            return self.scandir(path)
        names = self.names(path)

        class Entry:
            def __init__(self, name):
                self.name, self.path = name, os.path.join(path, name)

            def is_file(self, *, follow_symlinks=True):
                return True  # d_type comes out of the cached listing, too

        class Entries(list):
            def __enter__(self):
                return self

            def __exit__(self, *args):
                pass

        return Entries(map(Entry, names))

    def opened(self, path, flags, *args, **keywords):
        if self.on and flags & os.O_CREAT:
            self.cache.pop(os.path.dirname(os.fspath(path)), None)
        return self.open(path, flags, *args, **keywords)


def test_a_fresh_read_sees_a_new_member_past_a_cached_listing(opened, monkeypatch):
    a, b = opened(), opened()
    client = CachingClient(monkeypatch)
    client.on = True
    assert a.read().nodes == ()
    client.on = False
    b.write_node(make_record())
    client.on = True
    assert a.read(True).nodes == (make_record(),)


@pytest.mark.parametrize("shown", ["neither", "both"])
def test_a_cached_listing_from_mid_rename_is_not_believed_for_good(
    opened, folder, monkeypatch, shown
):
    a, b = opened(), opened()
    first, second = make_lease(1, 1), make_lease(1, 2)
    b.swap_lease(None, first)
    old = os.listdir(str(folder / "lease"))
    b.swap_lease(first, second)
    client = CachingClient(monkeypatch)
    path = str(folder / "lease")
    client.cache[path] = [] if shown == "neither" else old + os.listdir(path)
    client.on = True
    assert a.read().lease == second


def test_a_share_that_was_mounted_again_and_then_wiped_is_wiped_not_gone(
    opened, root, folder
):
    a = opened()
    a.read()
    root.rename(root.parent / "before")
    root.mkdir()
    (root.parent / "before" / folder.name).rename(folder)
    assert a.read().cluster_id
    folder.rename(root.parent / "wiped")
    assert a.read().cluster_id is None


def test_open_again_under_another_root_does_not_adopt_the_store_there(opened, root):
    a = opened()
    root.rename(root.parent / "away")
    opened()  # somebody founds another one on the local disk
    with pytest.raises(StorageError):
        a.open(CLUSTER)


def test_a_field_that_a_later_version_appends_leaves_the_lease_readable(
    opened, folder
):
    a = opened()
    a.swap_lease(None, make_lease(1, 1))
    (name,) = os.listdir(str(folder / "lease"))
    os.rename(str(folder / "lease" / name), str(folder / "lease" / (name + "_new")))
    assert opened().read().lease == make_lease(1, 1)


@pytest.mark.parametrize("landed", [True, False])
def test_an_io_error_of_the_first_swap_leaves_nothing_wrong(opened, monkeypatch, landed):
    a, rename = opened(), os.rename

    def failing(source, target):
        if landed:
            rename(source, target)
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "rename", failing)
    if landed:
        assert a.swap_lease(None, make_lease(1, 1))
    else:
        with pytest.raises(StorageError):
            a.swap_lease(None, make_lease(1, 1))
    monkeypatch.setattr(os, "rename", rename)
    assert opened().read().lease == (make_lease(1, 1) if landed else None)


def test_a_record_that_cannot_be_read_for_a_moment_stays_what_it_was(
    opened, folder, monkeypatch
):
    a, b = opened(), opened()
    a.write_node(make_record())
    assert b.read().nodes == (make_record(),)
    a.write_node(make_record(notice=1))
    real = os.open

    def failing(path, *args, **keywords):
        if "node-a" in str(path):
            raise OSError(errno.EIO, "Input/output error")
        return real(path, *args, **keywords)

    monkeypatch.setattr(os, "open", failing)
    assert b.read().nodes == (make_record(),)
    monkeypatch.setattr(os, "open", real)
    assert b.read().nodes == (make_record(notice=1),)


def test_what_was_moved_aside_though_an_error_was_reported_is_kept(
    opened, folder, monkeypatch
):
    backend = opened()
    backend.write_node(make_record())
    (path,) = (folder / "nodes").iterdir()
    path.unlink()
    path.mkdir()
    (path / "precious").write_text("precious")
    for function in ("rename", "replace"):
        real = getattr(os, function)

        def lossy(source, target, real=real):
            real(source, target)
            if "aside-" in str(target):
                raise OSError(errno.EIO, "Input/output error")

        monkeypatch.setattr(os, function, lossy)
    with pytest.raises(StorageError):
        backend.write_node(make_record())
    assert len(list(folder.glob("**/precious"))) == 1
