"""The contract on the folder CONTRACT_FOLDER, such as a share that you have mounted.

    CONTRACT_FOLDER=/mnt/share CONTRACT_RACES=200 pytest tests/contract_on_a_folder.py
"""

import functools
import os
import shutil
import tempfile

import pytest

from cluster import SharedFsStorageBackend
from contract import StorageContract


class TestTheContractOnAFolder(StorageContract):
    @pytest.fixture(autouse=True)
    def store(self):
        self.path = tempfile.mkdtemp(dir=os.environ["CONTRACT_FOLDER"])
        yield
        shutil.rmtree(self.path)

    def make_factory(self):
        return functools.partial(SharedFsStorageBackend, self.path)

    def wipe(self):
        for name in os.listdir(self.path):
            shutil.rmtree(os.path.join(self.path, name))
