"""PostgreSQL, MariaDB, SQLite and Redis: the contract, and servers that fail.

Each test starts from an empty store on a private server of `servers.py`. Databases
take part on the oldest and the newest Python and on the one with every test; the
drivers come with the `test` extra.
"""

import contextlib
import functools
import json
import logging
import os
import sqlite3
import subprocess
import sys
import threading
import time
import traceback
import uuid

import pytest

sqlalchemy = pytest.importorskip("sqlalchemy")
redis = pytest.importorskip("redis")

import cluster  # noqa: E402
from cluster import (  # noqa: E402
    ClusterError,
    RedisStorageBackend,
    SqlStorageBackend,
    StorageError,
    storage_from_url,
)
from contract import CLUSTER, RECORD, StorageContract, lease  # noqa: E402
from servers import (  # noqa: E402
    PASSWORD,
    PLAIN_PASSWORD,
    MariaDB,
    PgBouncer,
    PostgreSQL,
    Proxy,
    Redis,
    SQLite,
)

pytestmark = pytest.mark.processes
DRIVERS = {
    "postgresql+psycopg": ("psycopg", PostgreSQL),
    "postgresql+psycopg2": ("psycopg2", PostgreSQL),
    "postgresql+pg8000": ("pg8000", PostgreSQL),
    "mariadb+pymysql": ("pymysql", MariaDB),
    "sqlite": ("sqlite3", SQLite),
}


@pytest.fixture(scope="module")
def running():
    """Gives a server of a kind, started when it is first asked for."""
    servers = {}

    def give(kind):
        if kind.missing():
            pytest.skip(kind.missing())
        if kind not in servers:
            servers[kind] = kind()
            servers[kind].start()
        return servers[kind]

    yield give
    for server in servers.values():
        server.close()


def with_driver(url, scheme):
    return scheme + url[url.index(":") :]


class SqlContract(StorageContract):
    races = 200
    scheme = ""

    @pytest.fixture(autouse=True)
    def store(self, running):
        module, kind = DRIVERS[self.scheme]
        pytest.importorskip(module)
        self.url = with_driver(running(kind).url, self.scheme)
        self.prefix = "t%s_" % uuid.uuid4().hex[:12]
        self.opened_ones = []
        yield
        for backend in self.opened_ones:
            backend.close()

    def make_factory(self):
        # four that do nothing else wait longer for each other than nodes ever do
        return functools.partial(
            SqlStorageBackend, self.url, table_prefix=self.prefix, timeout=20
        )

    def make_backend(self):
        self.opened_ones.append(self.make_factory()())
        return self.opened_ones[-1]

    def wipe(self):
        engine = sqlalchemy.create_engine(self.opened_ones[0]._engine.url)
        with engine.begin() as db:
            text = "DELETE FROM %sstorage WHERE cluster <> '@'" % self.prefix
            db.execute(sqlalchemy.text(text))
        engine.dispose()


class TestPsycopg(SqlContract):
    scheme = "postgresql+psycopg"


class WithoutRaces(SqlContract):
    """For a further driver: who wins a race is the server's affair."""

    test_processes_that_race_to_create_the_store_get_one_id = None
    test_join_numbers_of_racing_processes_rise_and_are_all_different = None
    test_of_processes_that_race_for_the_first_term_one_wins = None
    test_of_racing_processes_exactly_one_wins_each_term = None


class TestPsycopg2(WithoutRaces):
    scheme = "postgresql+psycopg2"


class TestPg8000(WithoutRaces):
    scheme = "postgresql+pg8000"


class TestPyMySQL(SqlContract):
    scheme = "mariadb+pymysql"


class TestSQLite(SqlContract):
    scheme = "sqlite"


class TestRedis(StorageContract):
    races = 1000

    @pytest.fixture(autouse=True)
    def store(self, running):
        self.url = running(Redis).url
        self.prefix = uuid.uuid4().hex + ":"

    def make_factory(self):
        return functools.partial(RedisStorageBackend, self.url, prefix=self.prefix)

    def wipe(self):
        client = redis.Redis.from_url(self.url)
        for key in client.keys(self.prefix + "[^@]*"):
            client.delete(key)
        client.close()


# ---- a server that fails, and comes back

FAILING = sorted(DRIVERS) + ["redis"]
FAILING.remove("sqlite")
FIRST = lease(1, 1)


class Failing:
    """A server, a way to it that can be cut, and backends on it."""

    def __init__(self, scheme, running):
        self.is_redis = scheme == "redis"
        if not self.is_redis:
            pytest.importorskip(DRIVERS[scheme][0])
        self.server = running(Redis if self.is_redis else DRIVERS[scheme][1])
        self.url = with_driver(self.server.url, scheme)
        self.proxy = Proxy(self.server.port)
        self.prefix = "t%s_" % uuid.uuid4().hex[:12]
        self.backends = []

    def backend(self, proxied=False, **options):
        url = self.url
        if proxied:
            url = url.replace(":%d/" % self.server.port, ":%d/" % self.proxy.port)
        kind = RedisStorageBackend if self.is_redis else SqlStorageBackend
        name = "prefix" if self.is_redis else "table_prefix"
        self.backends.append(kind(url, **dict({name: self.prefix}, **options)))
        return self.backends[-1]

    def opened(self, proxied=False):
        backend = self.backend(proxied)
        backend.open(CLUSTER)
        return backend

    def close(self):
        self.proxy.close()
        self.server.resume()
        if self.server.process.poll() is not None:
            self.server.start()
        for backend in self.backends:
            backend.close()


@pytest.fixture(params=FAILING)
def failing(request, running):
    failing = Failing(request.param, running)
    yield failing
    failing.close()


def patient(call, seconds=30):
    """The result of a call, which may fail until a server is up again."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            return call()
        except StorageError:
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_a_swap_whose_answer_is_lost_is_unknown_and_a_read_tells(failing):
    backend, other = failing.opened(proxied=True), failing.opened()
    assert backend.swap_lease(None, FIRST)
    failing.proxy.hold_answers()
    began = time.monotonic()
    with pytest.raises(StorageError):
        backend.swap_lease(FIRST, lease(1, 2))
    assert time.monotonic() - began < 5
    # pg8000 asks for the types first, and waits for that answer
    found = FIRST if "pg8000" in failing.url else lease(1, 2)
    assert other.read().lease == found
    failing.proxy.heal()
    assert patient(backend.read).lease == found
    assert backend.swap_lease(lease(1, 9), lease(1, 3)) is False
    assert backend.swap_lease(found, lease(1, 4)) is True


def test_a_paused_server_is_given_up_and_found_again(failing):
    backend = failing.opened()
    assert backend.swap_lease(None, FIRST)
    failing.server.pause()
    for call in (lambda: backend.swap_lease(FIRST, lease(1, 2)), backend.read):
        began = time.monotonic()
        with pytest.raises(StorageError):
            call()
        assert time.monotonic() - began < 8  # 2 s of libpq's, on a busy machine
    failing.server.resume()
    found = patient(backend.read).lease
    assert found in (FIRST, lease(1, 2))
    # The lost attempt may land even now, but only where it expected to
    new = found._replace(term=found.term + 1)
    if not backend.swap_lease(found, new):
        found = backend.read().lease
        assert found == lease(1, 2)
        assert backend.swap_lease(found, new)
    assert backend.read().lease == new


def test_a_server_that_is_killed_amid_swaps_keeps_what_it_acknowledged(failing):
    backend = failing.opened()
    assert backend.swap_lease(None, FIRST)
    done = FIRST
    for number in range(3):
        killer = threading.Timer(0.02 + 0.03 * number, failing.server.kill)
        killer.start()
        tried = done
        with pytest.raises(StorageError):
            while True:
                tried = done._replace(counter=done.counter + 1)
                assert backend.swap_lease(done, tried) is True
                done = tried
        killer.join()
        failing.server.start()
        found = patient(backend.read).lease
        assert found in (done, tried)
        done = found


def test_after_a_restart_a_read_needs_no_second_try(failing):
    backend = failing.opened()
    backend.write_node(RECORD)
    failing.server.restart()
    assert backend.read().nodes == (RECORD,)


def test_no_error_and_no_log_shows_a_password(failing, caplog):
    caplog.set_level(logging.DEBUG)
    backend = failing.opened()
    texts = [repr(backend), str(backend)]
    wrong = failing.url.replace(PASSWORD, "other%20word")
    dead = failing.url.replace(":%d/" % failing.server.port, ":1/")
    nowhere = failing.url.replace("127.0.0.1", "no-such-host.invalid")
    for url in (wrong, dead, nowhere):
        with pytest.raises(StorageError) as caught:
            storage_from_url(url).open(CLUSTER)
        shown = traceback.format_exception(*caught._excinfo)
        texts += [str(caught.value), repr(caught.value), "".join(shown)]
    failing.server.kill()
    with pytest.raises(StorageError) as caught:
        backend.read()
    texts += [str(caught.value), caplog.text]
    for secret in (PASSWORD, PLAIN_PASSWORD, "other%20word", "other word"):
        assert not any(secret in text for text in texts), secret


def test_a_read_and_a_renewal_are_one_round_trip_each(failing):
    trips = 3 if "pg8000" in failing.url else 1  # parses, asks for types, executes
    backend = failing.opened(proxied=True)
    backend.write_node(RECORD)
    assert backend.swap_lease(None, FIRST)
    old = FIRST
    for counter in range(2, 12):
        before = failing.proxy.round_trips
        backend.read()
        assert failing.proxy.round_trips - before == trips
        new = old._replace(counter=counter)
        before = failing.proxy.round_trips
        assert backend.swap_lease(old, new)
        assert failing.proxy.round_trips - before == trips
        old = new


@pytest.mark.parametrize("driver", ["psycopg", "psycopg2", "pg8000"])
def test_a_pooler_may_give_each_statement_another_connection(running, driver):
    pytest.importorskip(driver)
    if PgBouncer.missing():
        pytest.skip(PgBouncer.missing())
    prefix = "t%s_" % uuid.uuid4().hex[:12]
    with PgBouncer(running(PostgreSQL)) as pooler:
        url = with_driver(pooler.url, "postgresql+" + driver)
        backends = [SqlStorageBackend(url, table_prefix=prefix) for _ in range(4)]
        for backend in backends:
            backend.open(CLUSTER)
        old = None
        for counter in range(1, 41):
            new = lease(1, counter)
            mine, other = backends[counter % 4], backends[(counter + 1) % 4]
            assert mine.swap_lease(old, new) is True
            assert other.swap_lease(old, new) is False
            assert other.read().lease == new
            mine.write_node(RECORD)
            old = new
        for backend in backends:
            backend.close()


# ---- a store that is gone, or another one


@pytest.fixture(params=["sqlite", "redis"])
def emptied(request, running):
    """A backend that was opened, and how to take all away, or the cluster's id."""
    if request.param == "redis":
        url, prefix = running(Redis).url, uuid.uuid4().hex + ":"
        client = redis.Redis.from_url(url)

        def take(what):
            keys = client.keys(prefix + "*")
            if what == "all":
                client.delete(*keys)
                return
            for key in keys:
                if b"@" not in key:
                    client.hset(key, "identity", what)

        yield functools.partial(RedisStorageBackend, url, prefix=prefix), take
        client.close()
        return
    with SQLite() as server:

        def take(what):
            with contextlib.closing(sqlite3.connect(server.path)) as db, db:
                if what == "all":
                    db.execute("DELETE FROM cluster_storage")
                text = "UPDATE cluster_storage SET version = ? WHERE item = 'identity'"
                db.execute(text + " AND cluster <> '@'", (what,))

        yield functools.partial(SqlStorageBackend, server.url), take


def test_a_store_that_was_emptied_is_gone_and_not_repaired(emptied):
    make, take = emptied
    backend = make()
    cluster_id = backend.open(CLUSTER)
    assert backend.swap_lease(None, FIRST)
    take("all")
    for call in (
        backend.read,
        lambda: backend.repair(cluster_id),
        lambda: backend.open(CLUSTER),
        lambda: backend.write_node(RECORD),
        lambda: backend.swap_lease(None, lease(2, 1)),
        backend.next_join_number,
    ):
        with pytest.raises(StorageError):
            call()
    # A node that starts anew there makes a cluster, and the others see another id
    other_id = make().open(CLUSTER)
    assert other_id != cluster_id
    assert backend.read() == (other_id, None, ())
    with pytest.raises(StorageError):
        backend.repair(cluster_id)
    with pytest.raises(StorageError):
        backend.swap_lease(None, lease(2, 1))


def test_another_identity_is_shown_as_it_is(emptied):
    make, take = emptied
    backend = make()
    backend.open(CLUSTER)
    take("f" * 16)
    assert backend.read().cluster_id == "f" * 16


def test_without_create_nothing_is_made(emptied):
    make, _ = emptied
    with pytest.raises(StorageError, match="create=True"):
        make(create=False).open(CLUSTER)
    cluster_id = make().open(CLUSTER)
    assert make(create=False).open(CLUSTER) == cluster_id
    with pytest.raises(StorageError, match="create=True"):
        make(create=False).open("other")


def test_a_record_that_cannot_be_understood_is_reported_once(emptied, caplog):
    make, _ = emptied
    backend = make()
    backend.open(CLUSTER)
    backend.write_node(RECORD)
    item = "node-broken." + "b" * 16
    assert backend._swap(item, None, "1", '{"name": "broken"}') == 1
    for _ in range(3):
        assert backend.read().nodes == (RECORD,)
    assert caplog.text.count(item) == 1


# ---- SQLite's file


def test_a_file_that_is_taken_away_or_replaced_is_gone(tmp_path):
    path = tmp_path / "cluster.sqlite"
    backend = SqlStorageBackend("sqlite:///%s" % path)
    cluster_id = backend.open(CLUSTER)
    assert backend.swap_lease(None, FIRST)
    away = tmp_path / "away"
    away.mkdir()
    for name in os.listdir(str(tmp_path)):
        if name != "away":
            (tmp_path / name).rename(away / name)
    for call in (backend.read, lambda: backend.swap_lease(FIRST, lease(1, 2))):
        with pytest.raises(StorageError):
            call()
    assert not path.exists()
    other = SqlStorageBackend("sqlite:///%s" % path).open(CLUSTER)
    assert other != cluster_id
    assert backend.read().cluster_id == other
    backend.close()


def test_a_locked_file_is_given_up_within_the_time_out():
    with SQLite() as server:
        backend = SqlStorageBackend(server.url, timeout=0.3)
        backend.open(CLUSTER)
        assert backend.swap_lease(None, FIRST)
        server.pause()
        began = time.monotonic()
        with pytest.raises(StorageError, match="locked"):
            backend.swap_lease(FIRST, lease(1, 2))
        assert time.monotonic() - began < 3
        server.resume()
        assert backend.swap_lease(FIRST, lease(1, 2))
        backend.close()


@pytest.mark.parametrize("kind", ["nfs4", "cifs", "fuse.sshfs", "9p"])
def test_a_file_on_a_network_file_system_is_refused(tmp_path, monkeypatch, kind):
    monkeypatch.setattr("cluster._file_system", lambda path: kind)
    backend = SqlStorageBackend("sqlite:///%s" % (tmp_path / "cluster.sqlite"))
    with pytest.raises(StorageError, match="local disk") as caught:
        backend.open(CLUSTER)
    assert kind in str(caught.value)
    assert list(tmp_path.iterdir()) == []


# ---- what the application hands in


def test_an_engine_of_the_application_is_used_and_left_open(running):
    pytest.importorskip("psycopg")
    url = with_driver(running(PostgreSQL).url, "postgresql+psycopg")
    engine = sqlalchemy.create_engine(url)
    backend = SqlStorageBackend(engine, table_prefix="own_")
    backend.open(CLUSTER)
    assert backend.swap_lease(None, FIRST)
    backend.close()
    with engine.begin() as db:  # in a transaction, as the application made it
        text = "SELECT value FROM own_storage WHERE item = 'lease'"
        assert json.loads(db.execute(sqlalchemy.text(text)).scalar())["term"] == 1
        assert db.get_isolation_level() == "READ COMMITTED"
    engine.dispose()


@pytest.mark.parametrize("decode", [False, True])
def test_a_client_of_the_application_is_used_and_left_open(running, decode):
    client = redis.Redis.from_url(running(Redis).url, decode_responses=decode)
    backend = RedisStorageBackend(client, prefix=uuid.uuid4().hex)
    backend.open(CLUSTER)
    backend.write_node(RECORD)
    assert backend.swap_lease(None, FIRST)
    assert backend.read()[1:] == (FIRST, (RECORD,))
    backend.close()
    assert client.ping()
    client.close()


# ---- addresses


@pytest.mark.parametrize(
    "url, shown",
    [
        ("sqlite:////srv/c.sqlite", "SqlStorageBackend('sqlite:////srv/c.sqlite')"),
        ("postgresql://u:p@h:1/d", "SqlStorageBackend('postgresql://h:1/d')"),
        ("postgres://u:p@h/d", "SqlStorageBackend('postgresql://h/d')"),
        ("postgresql+pg8000://u:p@h/d", "SqlStorageBackend('postgresql://h/d')"),
        ("mysql://u:p@h/d", "SqlStorageBackend('mysql://h/d')"),
        ("mariadb://u:p@h/d", "SqlStorageBackend('mariadb://h/d')"),
        ("redis://u:p@h:2/3", "RedisStorageBackend('redis://h:2/3')"),
        ("rediss://h", "RedisStorageBackend('redis://h:6379/0')"),
        ("valkey://h", "RedisStorageBackend('redis://h:6379/0')"),
        ("valkeys://:p@h", "RedisStorageBackend('redis://h:6379/0')"),
        ("unix:///run/r.sock?password=p", "RedisStorageBackend('unix:///run/r.sock')"),
        ("file:///srv/sh%20ared", "SharedFsStorageBackend('/srv/sh ared')"),
    ],
)
def test_a_url_names_a_backend(url, shown):
    backend = storage_from_url(url, create=False)
    assert repr(backend) == shown and backend.create is False


@pytest.mark.parametrize(
    "url, text",
    [
        ("/srv/shared", "begins with file://"),
        ("s3cret", "begins with file://"),
        ("mongodb://u:s3cret@h/d", "not with mongodb"),
        ("file://server/s3cret", "three slashes"),
        ("sqlite://", "path of a file"),
        ("sqlite:///:memory:", "path of a file"),
        ("postgresql://u:s3cret@h:port/d", "no database URL"),
        ("redis://u:s3cret@h:port/0", "no Redis URL"),
        ("postgresql+asyncpg://u:s3cret@h/d", "async"),
    ],
)
def test_a_wrong_url_is_refused_without_its_secrets(url, text):
    with pytest.raises((ValueError, ClusterError), match=text) as caught:
        storage_from_url(url)
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    "option", [{"timeout": 0}, {"timeout": "1"}, {"table_prefix": "a;b"}], ids=str
)
def test_a_wrong_option_is_refused(option):
    with pytest.raises(ValueError, match=next(iter(option))):
        SqlStorageBackend("sqlite:////srv/c.sqlite", **option)


def test_what_is_not_installed_is_named_with_the_remedy(monkeypatch):
    for module, url in (("sqlalchemy", "sqlite:////c"), ("redis", "redis://h")):
        monkeypatch.setitem(sys.modules, module, None)
        with pytest.raises(ClusterError, match="pip install"):
            storage_from_url(url)


def test_the_command_line_takes_the_url_of_a_database(tmp_path):
    url = "sqlite:///%s" % (tmp_path / "cluster.sqlite")
    backend = storage_from_url(url)
    backend.open(CLUSTER)
    backend.write_node(RECORD)
    command = [sys.executable, "-m", "cluster", "status", "--json", "--cluster"]
    done = subprocess.run(
        command + [CLUSTER, "--storage", url],
        stdout=subprocess.PIPE, cwd=os.path.dirname(cluster.__file__), timeout=60,
    )  # fmt: skip
    backend.close()
    assert RECORD.name in done.stdout.decode(), done
