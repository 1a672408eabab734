"""The backends in examples/backends: the contract, on a real etcd and on a stand-in."""

import functools
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
import uuid
from pathlib import Path

import pytest

from cluster import StorageError
from contract import StorageContract

EXAMPLES = Path(__file__).parent.parent / "examples" / "backends"
sys.path.insert(0, str(EXAMPLES))


@pytest.fixture(scope="module")
def etcd_url(tmp_path_factory):
    """A private etcd for this module's tests."""
    if shutil.which("etcd") is None:
        pytest.skip("no etcd: apt-get install etcd-server")
    url, peers = ("http://127.0.0.1:%d" % free_port() for _ in range(2))
    folder = tmp_path_factory.mktemp("etcd")
    with open(str(folder / "log"), "wb") as log:
        server = subprocess.Popen(
            ["etcd", "--data-dir", str(folder / "data"),
             "--listen-client-urls", url, "--advertise-client-urls", url,
             "--listen-peer-urls", peers, "--initial-advertise-peer-urls", peers,
             "--initial-cluster", "default=" + peers, "--unsafe-no-fsync"],
            stdout=log, stderr=log,
        )  # fmt: skip
    try:
        wait_until_healthy(url)
        yield url
    finally:
        server.kill()
        server.wait()


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_until_healthy(url, patience=30):
    deadline = time.monotonic() + patience
    while True:
        try:
            with urllib.request.urlopen(url + "/health", timeout=1) as answer:
                if b"true" in answer.read():
                    return
        except OSError:
            pass
        assert time.monotonic() < deadline, "etcd does not start"
        time.sleep(0.05)


def new_etcd_backend(url, prefix):
    import etcd

    class Apart(etcd.EtcdStorageBackend):  # each test has keys of its own
        def open(self, cluster_name):
            return super().open(prefix + cluster_name)

    return Apart(url)


class TestEtcd(StorageContract):
    races = 1000

    @pytest.fixture(autouse=True)
    def store(self, etcd_url):
        self.url, self.prefix = etcd_url, uuid.uuid4().hex

    def make_factory(self):
        return functools.partial(new_etcd_backend, self.url, self.prefix)

    def wipe(self):
        backend = self.opened()
        body = {"key": backend.prefix, "range_end": backend.prefix[:-1] + "0"}
        import etcd

        backend.call("deleterange", {k: etcd.encoded(v) for k, v in body.items()})


def test_an_etcd_that_is_not_there_is_a_storage_error():
    backend = new_etcd_backend("http://127.0.0.1:%d" % free_port(), "")
    with pytest.raises(StorageError, match="127.0.0.1"):
        backend.open("jobs")


class TestMongo(StorageContract):
    """Without CLUSTER_TEST_MONGODB on mongomock, which one process has to itself."""

    url = os.environ.get("CLUSTER_TEST_MONGODB")

    @pytest.fixture(autouse=True)
    def store(self):
        pytest.importorskip("pymongo", reason="pip install pymongo")
        self.name = "test_" + uuid.uuid4().hex
        self.client = self.new_client()
        yield
        self.client.drop_database(self.name)

    def new_client(self):
        if self.url:
            import pymongo

            return pymongo.MongoClient(self.url, timeoutMS=2000)
        return pytest.importorskip("mongomock").MongoClient()

    def make_factory(self):
        if not self.url:
            pytest.skip("mongomock is not shared between processes")
        return functools.partial(new_mongo_backend, self.url, self.name)

    def make_backend(self):
        import mongodb

        return mongodb.MongoStorageBackend(self.client[self.name])

    def wipe(self):
        self.client.drop_database(self.name)


def new_mongo_backend(url, name):
    import mongodb
    import pymongo

    return mongodb.MongoStorageBackend(pymongo.MongoClient(url, timeoutMS=2000)[name])
