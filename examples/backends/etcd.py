"""A cluster in etcd: an example of a storage backend of your own.

    control = cluster.ClusterControl(
        "jobs", storage_backend=EtcdStorageBackend("http://127.0.0.1:2379"))

Speaks to etcd's JSON gateway (3.4 and newer). Every write is one transaction that
compares the store's id, so that none lands in a store that was emptied or replaced;
all reads are linearizable, etcd's default.
"""

import base64
import http.client
import json
import logging
import os
import urllib.request
from urllib.parse import quote

import cluster

log = logging.getLogger("cluster")


def encoded(text):
    return base64.b64encode(text.encode()).decode()


def decoded(data):
    return base64.b64decode(data).decode()


class EtcdStorageBackend(cluster.StorageBackend):
    """Keeps a cluster under the keys `cluster/NAME/`; timeout is that of a request."""

    def __init__(self, url, timeout=1.0):
        self.url, self.timeout = url.rstrip("/"), timeout
        self.cluster_id = ""

    def open(self, cluster_name):
        self.prefix = "cluster/%s/" % quote(cluster_name, safe="")
        self.repair(os.urandom(8).hex())
        self.cluster_id = self.read_keys()["id"]
        return self.cluster_id

    def repair(self, cluster_id):
        self.transact([self.is_absent("id")], {"id": cluster_id})

    def read(self, fresh=False):
        found = self.read_keys()
        cluster_id = found.pop("id", None)
        if cluster_id not in (None, self.cluster_id):
            raise cluster.StorageError("%s holds another cluster now" % self.url)
        lease = json.loads(found.pop("lease", "null"))
        lease = lease and cluster.Lease.from_dict(lease)
        nodes = (self.record(k, v) for k, v in found.items() if k.startswith("node/"))
        return cluster.Snapshot(cluster_id, lease, tuple(filter(None, nodes)))

    def next_join_number(self):
        # etcd counts its writes: the number of this one is above all before
        return self.put_if_ours("seniority", "")

    def write_node(self, record):
        key = self.node_key(record.name, record.incarnation)
        self.put_if_ours(key, json.dumps(record.to_dict()))

    def remove_node(self, name, incarnation):
        key = encoded(self.prefix + self.node_key(name, incarnation))
        self.call("deleterange", {"key": key})

    def swap_lease(self, expected, new):
        old, stamp = (lease and "%d.%d.%s" % lease[:3] for lease in (expected, new))
        expected = self.is_equal("stamp", old) if old else self.is_absent("stamp")
        ours = self.is_equal("id", self.cluster_id)
        values = {"lease": json.dumps(new.to_dict()), "stamp": stamp}
        return bool(self.transact([ours, expected], values).get("succeeded"))

    # ---- etcd's gateway

    def node_key(self, name, incarnation):
        return "node/%s/%s" % (quote(name, safe=""), incarnation)

    def record(self, key, value):
        try:
            return cluster.NodeRecord.from_dict(json.loads(value))
        except ValueError as error:
            log.warning("%s is no node record, and skipped: %.200s", key, error)

    def is_absent(self, key):
        key = encoded(self.prefix + key)
        return {"key": key, "target": "CREATE", "create_revision": "0"}

    def is_equal(self, key, value):
        key = encoded(self.prefix + key)
        return {"key": key, "target": "VALUE", "value": encoded(value)}

    def put_if_ours(self, key, value):
        answer = self.transact([self.is_equal("id", self.cluster_id)], {key: value})
        if not answer.get("succeeded"):
            raise cluster.StorageError("%s: the cluster is not there" % self.url)
        return int(answer["header"]["revision"])

    def read_keys(self):
        keys = {"key": self.prefix, "range_end": self.prefix[:-1] + "0"}  # after "/"
        answer = self.call("range", {what: encoded(key) for what, key in keys.items()})
        pairs = answer.get("kvs", ())
        found = {decoded(kv["key"]): kv.get("value", "") for kv in pairs}
        return {key[len(self.prefix) :]: decoded(v) for key, v in found.items()}

    def transact(self, compare, values):
        pairs = [(encoded(self.prefix + key), encoded(v)) for key, v in values.items()]
        puts = [{"requestPut": {"key": key, "value": value}} for key, value in pairs]
        return self.call("txn", {"compare": compare, "success": puts})

    def call(self, what, body):
        url, data = "%s/v3/kv/%s" % (self.url, what), json.dumps(body).encode()
        try:
            with urllib.request.urlopen(url, data, self.timeout) as answer:
                return json.loads(answer.read().decode())
        except (OSError, ValueError, http.client.HTTPException) as error:
            raise cluster.StorageError("%s: %s" % (self.url, error)) from error
