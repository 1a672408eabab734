"""What people use instead, each with its server, held like one of our own nodes.

Run as a program it is one candidate: it prints the events of `node_program.py` and
obeys the word `stop`.
"""

import base64
import contextlib
import glob
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.request

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.dirname(HERE))
from node_program import Node, primaries, until  # noqa: E402

DETECTION = 3.0  # seconds: the nominal detection time of them all


class Missing(Exception):
    """Why something cannot be measured here."""


# ---- candidates: each waits for its turn, calls hold(), and lets go


def repeatedly(action):
    """Three times in each detection time, from a thread of its own."""

    def run():
        while True:
            time.sleep(DETECTION / 3)
            action()

    threading.Thread(target=run, daemon=True).start()


def redis_lock(address, hold, ready):
    import redis

    client = redis.Redis(port=address)
    lock = client.lock("primary", timeout=DETECTION, thread_local=False)
    ready(client.ping())
    lock.acquire()
    repeatedly(lock.reacquire)
    hold()
    lock.release()


def advisory_lock(address, hold, ready):
    import psycopg

    with psycopg.connect(address, autocommit=True) as connection:
        ready()
        connection.execute("SELECT pg_advisory_lock(1)")
        hold()
        connection.execute("SELECT pg_advisory_unlock(1)")


def zookeeper_election(address, hold, ready):
    from kazoo.client import KazooClient

    client = KazooClient("127.0.0.1:%d" % address, timeout=DETECTION)
    client.start()
    ready()
    client.Election("/primary", str(os.getpid())).run(hold)
    client.stop()


def etcd_election(address, hold, ready):
    def ask(path, **fields):
        url = "http://127.0.0.1:%d/v3/%s" % (address, path)
        with urllib.request.urlopen(url, json.dumps(fields).encode()) as answer:
            return json.loads(answer.readline())

    def text(value):
        return base64.b64encode(value.encode()).decode()

    lease = ask("lease/grant", TTL=int(DETECTION))["ID"]
    repeatedly(lambda: ask("lease/keepalive", ID=lease))
    ready()
    won = ask("election/campaign", name=text("primary"), lease=lease, value=text("x"))
    hold()
    ask("election/resign", leader=won["leader"])


def soft_lease(address, hold, ready):
    import filelock

    lease = filelock.SoftFileLease(
        os.path.join(address, "primary"),
        lease_duration=DETECTION, heartbeat_interval=DETECTION / 3,
    )  # fmt: skip
    ready()
    with lease:
        hold()


# ---- their servers, as context managers that give an address


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def find(pattern, what):
    found = shutil.which(pattern) or max(glob.glob(pattern), default=None)
    if found is None:
        raise Missing("no %s on this machine" % what)
    return found


@contextlib.contextmanager
def serving(command, port, folder, **options):
    with open(os.path.join(folder, "log"), "wb") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, **options)
    try:
        until(lambda: server.poll() is not None or answers(port))
        if server.poll() is not None:
            raise Missing("%s ended with %s" % (command[0], server.returncode))
        yield port
    finally:
        server.terminate()
        server.wait()


def answers(port):
    with contextlib.suppress(OSError):
        socket.create_connection(("127.0.0.1", port), 1).close()
        return True


def redis_server(folder):
    binary, port = find("redis-server", "redis-server"), free_port()
    command = "%s --port %d --bind 127.0.0.1 --appendonly no --dir %s --save"
    return serving((command % (binary, port, folder)).split() + [""], port, folder)


@contextlib.contextmanager
def postgres_server(folder):
    binary, port = find("/usr/lib/postgresql/*/bin/postgres", "PostgreSQL"), free_port()
    user = []
    if os.getuid() == 0:  # it refuses to run as root
        user = ["runuser", "-u", "postgres", "--"]
        shutil.chown(folder, "postgres")
        os.chmod(os.path.dirname(folder), 0o755)
    data = os.path.join(folder, "data")
    make = [os.path.join(os.path.dirname(binary), "initdb"), "-D", data]
    make += ["-A", "trust", "-U", "postgres", "--no-sync"]
    subprocess.run(user + make, check=True, stdout=subprocess.DEVNULL, cwd=folder)
    run = [binary, "-D", data, "-h", "127.0.0.1", "-p", str(port), "-k", folder]
    with serving(user + run, port, folder, cwd=folder):
        yield "host=127.0.0.1 user=postgres port=%d" % port


def zookeeper_server(folder):
    find("/usr/share/java/zookeeper.jar", "ZooKeeper")
    port = free_port()
    config = os.path.join(folder, "zoo.cfg")
    with open(config, "w") as file:
        file.write(
            "tickTime=500\ndataDir=%s\nclientPort=%d\n"
            "clientPortAddress=127.0.0.1\nadmin.enableServer=false\n" % (folder, port)
        )
    main = "org.apache.zookeeper.server.ZooKeeperServerMain"
    command = [find("java", "Java"), "-cp", "/usr/share/java/*", main, config]
    return serving(command, port, folder)


def etcd_server(folder):
    binary, port = find("etcd", "etcd"), free_port()
    client = "http://127.0.0.1:%d" % port
    peer = "http://127.0.0.1:%d" % free_port()
    command = [
        binary, "--data-dir", os.path.join(folder, "data"),
        "--listen-client-urls", client, "--advertise-client-urls", client,
        "--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer,
        "--initial-cluster", "default=" + peer,
    ]  # fmt: skip
    return serving(command, port, folder)


@contextlib.contextmanager
def folder_only(folder):
    yield folder


# label: driver, its candidate, its server
KINDS = {
    "Redis lock": ("redis", redis_lock, redis_server),
    "PostgreSQL advisory lock": ("psycopg", advisory_lock, postgres_server),
    "ZooKeeper, kazoo": ("kazoo", zookeeper_election, zookeeper_server),
    "etcd lease": ("json", etcd_election, etcd_server),
    "filelock soft lease": ("filelock", soft_lease, folder_only),
}


class Candidate(Node):
    program = os.path.abspath(__file__)


def main():
    settings = json.loads(sys.argv[1])
    stop = threading.Event()
    lock = threading.Lock()

    def tell(event):
        with lock:
            print(json.dumps({"event": event, "at": time.monotonic()}), flush=True)

    def hold():
        tell("start")
        stop.wait()
        tell("asked")
        tell("stop")

    def listen():
        for line in sys.stdin:
            stop.set()

    threading.Thread(target=listen, daemon=True).start()
    candidate = KINDS[settings["kind"]][1]
    candidate(settings["address"], hold, lambda *_: tell("joined"))
    tell("left")


def settled(nodes):
    until(lambda: all(node.all("joined") for node in nodes), 30)
    until(lambda: len(primaries(nodes)) == 1, 30)
    return primaries(nodes)[0]


if __name__ == "__main__":
    main()
