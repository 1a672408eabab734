"""Backends with a fault, to prove that the laboratory bites. Cores: `test_simulator`."""

import os

import cluster


class TakesAnEmptyFolderForTheCluster(cluster.SharedFsStorageBackend):
    """Goes on in whatever is there, and makes it the cluster where it is empty."""

    def _check_identity(self):
        if not os.path.isdir(self._folder):
            self._root = (0, 0)
            self._bootstrap()
            self._identity.swap(self._identity.value(), self._cluster_id)
        return self._cluster_id
