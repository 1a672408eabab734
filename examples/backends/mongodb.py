"""A cluster in MongoDB: an example of a storage backend of your own.

    client = pymongo.MongoClient(url, timeoutMS=1000)
    control = cluster.ClusterControl(
        "jobs", storage_backend=MongoStorageBackend(client.my_database))

Tested on mongomock, a stand-in; on a real server only where the environment variable
CLUSTER_TEST_MONGODB gives the URL of one.

The register is one document, the store: it holds the id, the lease, and the last
join number, so one filter compares the id and the lease, and one read finds all.
"""

import contextlib
import logging
import os

import pymongo
from pymongo.errors import DuplicateKeyError, PyMongoError
from pymongo.read_concern import ReadConcern
from pymongo.write_concern import WriteConcern

import cluster

log = logging.getLogger("cluster")


@contextlib.contextmanager
def failures_told():
    """As the contract asks: any failure is a StorageError."""
    try:
        yield
    except PyMongoError as error:
        raise cluster.StorageError("MongoDB: %s" % error) from error


class MongoStorageBackend(cluster.StorageBackend):
    """Keeps clusters in one collection of a MongoDB database.

    Waits for a majority of the replica set, so that no failover of the database
    takes a swap back. Its client needs a `timeoutMS` well under the renewal deadline.
    """

    def __init__(self, database, collection="cluster"):
        safe = dict(read_concern=ReadConcern("linearizable"),
                    write_concern=WriteConcern("majority"))  # fmt: skip
        self.collection = database.get_collection(collection, **safe)
        self.cluster_id, self.top_number = "", 0

    def open(self, cluster_name):
        self.name = cluster_name
        self.repair(os.urandom(8).hex())
        with failures_told():
            self.cluster_id = self.collection.find_one(self.key("store"))["id"]
        return self.cluster_id

    def repair(self, cluster_id):
        store = {"id": cluster_id, "number": self.top_number, "lease": None,
                 "stamp": None, "cluster": self.name}  # fmt: skip
        with failures_told():
            try:
                self.collection.update_one(
                    self.key("store"), {"$setOnInsert": store}, upsert=True
                )
            except DuplicateKeyError:
                pass  # somebody else was faster

    def read(self, fresh=False):
        with failures_told():
            found = list(self.collection.find({"cluster": self.name}))
        store = next((d for d in found if "id" in d), {"id": None, "lease": None})
        if store["id"] not in (None, self.cluster_id):
            raise cluster.StorageError("MongoDB holds another cluster now")
        lease = store["lease"] and cluster.Lease.from_dict(store["lease"])
        nodes = [self.record(d["record"]) for d in found if "record" in d]
        return cluster.Snapshot(store["id"], lease, tuple(filter(None, nodes)))

    def next_join_number(self):
        with failures_told():
            store = self.collection.find_one_and_update(
                self.ours(), {"$inc": {"number": 1}},
                return_document=pymongo.ReturnDocument.AFTER,
            )  # fmt: skip
        if store is None:
            raise cluster.StorageError("MongoDB: the cluster is not there")
        self.top_number = store["number"]
        return self.top_number

    def write_node(self, record):
        key = self.key("node", record.name, record.incarnation)
        document = {"cluster": self.name, "record": record.to_dict()}
        with failures_told():
            if self.collection.find_one(self.ours()) is None:
                raise cluster.StorageError("MongoDB: the cluster is not there")
            self.collection.update_one(key, {"$set": document}, upsert=True)

    def remove_node(self, name, incarnation):
        with failures_told():
            self.collection.delete_one(self.key("node", name, incarnation))

    def swap_lease(self, expected, new):
        stamp = [expected.term, expected.counter, expected.holder] if expected else None
        values = {"lease": new.to_dict(), "stamp": [new.term, new.counter, new.holder]}
        unchanged = dict(self.ours(), stamp=stamp)
        with failures_told():
            done = self.collection.update_one(unchanged, {"$set": values})
        return bool(done.matched_count)

    def key(self, *parts):
        return {"_id": "\n".join((self.name.encode().hex(),) + parts)}

    def ours(self):
        return dict(self.key("store"), id=self.cluster_id)

    def record(self, data):
        try:
            return cluster.NodeRecord.from_dict(data)
        except ValueError as error:
            log.warning("no node record, and skipped: %.200s", error)
