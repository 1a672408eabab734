"""The shared folder as storage: the contract, and what only a folder can suffer."""

import functools
import os
import shutil
import tempfile

import pytest

from cluster import SharedFsStorageBackend
from contract import CLUSTER, StorageContract


class TestTheContract(StorageContract):
    @pytest.fixture(autouse=True)
    def store(self):
        memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
        self.path = tempfile.mkdtemp(prefix="sharedfs-", dir=memory)
        yield
        shutil.rmtree(self.path)

    def make_factory(self):
        return functools.partial(SharedFsStorageBackend, self.path)

    def wipe(self):
        for name in os.listdir(self.path):
            shutil.rmtree(os.path.join(self.path, name))
