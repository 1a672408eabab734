"""PostgreSQL, MariaDB, SQLite and Redis: the contract, and servers that fail.

Each test starts from an empty store on a private server of `servers.py`. Databases
take part on the oldest and the newest Python and on the one with every test; the
drivers come with the `test` extra.
"""

import functools
import uuid

import pytest

sqlalchemy = pytest.importorskip("sqlalchemy")
redis = pytest.importorskip("redis")

from cluster import RedisStorageBackend, SqlStorageBackend  # noqa: E402
from contract import StorageContract  # noqa: E402
from servers import MariaDB, PostgreSQL, Redis, SQLite  # noqa: E402

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


class TestPsycopg2(SqlContract):
    scheme = "postgresql+psycopg2"


class TestPg8000(SqlContract):
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
