"""What runs inside a host of the laboratory: its share, and its nodes.

    lab_programs.py share SETTINGS      serves one folder through FUSE, with faults
    lab_programs.py node SETTINGS       one node, which writes a history

SETTINGS is JSON. Both take orders on standard input, one JSON object a line, and end
when it is closed: also a killed laboratory leaves no process and no mount behind.
"""

import contextlib
import errno
import importlib
import json
import logging
import os
import random
import resource
import sys
import threading
import time

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(HERE)


def now():
    """The clock that all processes of this machine share, and that nobody sets."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


# --------------------------------------------------------------------------------
# The share: a folder behind FUSE
# --------------------------------------------------------------------------------

# Which calls change something, and which of those need space
NEED_SPACE = {"create", "mkdir", "write", "truncate"}
CHANGES = NEED_SPACE | {"rename", "unlink", "rmdir", "chmod"}


class Gate:
    """The fault of now. A fault is a dict with any of these keys:

    `errno` (a name, such as "EIO") raised by the calls in `calls` ("all", "changes",
    "space"), `latency` (seconds for each call), `hang` (true: calls begin only when
    it is put back; they are carried out then, late), `lie` (probability that a rename
    is applied and reported as failed), `stale` (seconds for which a listing is
    believed, as long as the client itself changed nothing in that folder).
    """

    def __init__(self):
        self.fault = {}
        self.changed = threading.Condition()

    def set(self, fault):
        with self.changed:
            self.fault = fault
            self.changed.notify_all()

    def pass_through(self, call):
        time.sleep(self.fault.get("latency", 0))
        with self.changed:
            self.changed.wait_for(lambda: not self.fault.get("hang"))
        fault = self.fault
        hit = {"all": True, "changes": call in CHANGES, "space": call in NEED_SPACE}
        if "errno" in fault and hit[fault.get("calls", "all")]:
            number = getattr(errno, fault["errno"])
            raise OSError(number, os.strerror(number))


class Folder:
    """The calls of a share, on a local folder; `lab_nfs.Client` has the same ones."""

    def __init__(self, root):
        self.root = root

    def stat(self, path, handle):
        status = os.lstat(self.root + path) if handle is None else os.fstat(handle)
        names = ("st_mode", "st_nlink", "st_size", "st_uid", "st_gid", "st_ino")
        found = {name: getattr(status, name) for name in names}
        for name in ("st_atime", "st_mtime", "st_ctime"):
            found[name] = getattr(status, name + "_ns")
        return found

    def listdir(self, path):
        return os.listdir(self.root + path)

    def open(self, path, flags):
        return os.open(self.root + path, flags | os.O_CLOEXEC)

    def create(self, path, mode):
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        return os.open(self.root + path, flags, mode)

    def pread(self, handle, size, offset):
        return os.pread(handle, size, offset)

    def pwrite(self, handle, data, offset):
        return os.pwrite(handle, data, offset)

    def fsync(self, handle):
        pass  # no power is ever cut here

    def close(self, handle):
        os.close(handle)

    def truncate(self, path, length):
        os.truncate(self.root + path, length)

    def rename(self, old, new):
        os.rename(self.root + old, self.root + new)

    def unlink(self, path):
        os.unlink(self.root + path)

    def mkdir(self, path, mode):
        os.mkdir(self.root + path, mode)

    def rmdir(self, path):
        os.rmdir(self.root + path)

    def chmod(self, path, mode):
        os.chmod(self.root + path, mode)


def share_operations(store, gate):
    import mfusepy

    listings = {}  # folder -> (when, names)
    chance = random.Random(1)

    def forget(*paths):
        for path in paths:
            listings.pop(os.path.dirname(path).rstrip("/"), None)

    class Share(mfusepy.Operations):
        use_ns = True

        def getattr(self, path, fh=None):
            return store.stat(path, fh)

        def readdir(self, path, fh):
            key = path.rstrip("/")
            read_at, names = listings.get(key, (0, []))
            if now() >= read_at + gate.fault.get("stale", 0):
                names = store.listdir(path)
                listings[key] = now(), names
            # of inode 0 the C library would show nothing
            return [(name, {"st_ino": 1}, 0) for name in [".", ".."] + names]

        def open(self, path, flags):
            return store.open(path, flags & ~os.O_NOFOLLOW)

        def create(self, path, mode, fi=None):
            forget(path)
            return store.create(path, mode)

        def read(self, path, size, offset, fh):
            return store.pread(fh, size, offset)

        def write(self, path, data, offset, fh):
            return store.pwrite(fh, data, offset)

        def truncate(self, path, length, fh=None):
            store.truncate(path, length)

        def fsync(self, path, datasync, fh):
            store.fsync(fh)

        def flush(self, path, fh):
            return 0

        def fsyncdir(self, path, datasync, fh):
            return 0

        def rename(self, old, new):
            forget(old, new)
            store.rename(old, new)
            if chance.random() < gate.fault.get("lie", 0):
                raise OSError(errno.EIO, "applied all the same")

        def unlink(self, path):
            forget(path)
            store.unlink(path)

        def mkdir(self, path, mode):
            forget(path)
            store.mkdir(path, mode)

        def rmdir(self, path):
            forget(path)
            store.rmdir(path)

        def chmod(self, path, mode):
            store.chmod(path, mode)

        def release(self, path, fh):  # never gated: nobody waits for it
            store.close(fh)

    def gated(name, method):
        def call(*args, **kwargs):
            gate.pass_through(name)
            return method(*args, **kwargs)

        return call

    for name, method in list(vars(Share).items()):
        if callable(method) and name != "release":
            setattr(Share, name, gated(name, method))
    return Share()


def run_share(settings):
    import mfusepy

    gate = Gate()

    def obey():
        print("{}", flush=True)
        for line in sys.stdin:
            gate.set(json.loads(line))
            print("{}", flush=True)
        os._exit(0)  # and with it the mount: what hangs in it gets ENOTCONN

    store = Folder(settings["root"])
    if settings["root"].startswith("nfs:"):
        import lab_nfs

        store = lab_nfs.Client(settings["root"])
    operations = share_operations(store, gate)
    operations.init = lambda path: threading.Thread(target=obey, daemon=True).start()
    mfusepy.FUSE(
        operations, settings["mount"], foreground=True, fsname="lab",
        attr_timeout=0, entry_timeout=0, negative_timeout=0,
        use_ino=True, direct_io=True, hard_remove=True,
    )  # fmt: skip


# --------------------------------------------------------------------------------
# The node
# --------------------------------------------------------------------------------


class History:
    """Appends one JSON line per event to a file of this process alone."""

    def __init__(self, path, run):
        self.run = run
        self.file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def tell(self, event, at=None, **more):
        at = now() if at is None else at
        line = json.dumps(dict(more, e=event, run=self.run, at=round(at, 6)))
        os.write(self.file, line.encode() + b"\n")


class LogToHistory(logging.Handler):
    def __init__(self, history):
        super().__init__(logging.INFO)
        self.history = history

    def emit(self, record):
        text = record.getMessage()
        if record.exc_info:
            text += ": %r" % (record.exc_info[1],)
        self.history.tell("log", level=record.levelname, text=text[:1500])


def callback(history, control, kind, slow, failing):
    done = {"stop": "stopped"}.get(kind, kind + "ed")

    def call():
        history.tell(kind, term=control().term)
        time.sleep(slow.get(kind, 0))
        history.tell(done)
        if kind in failing:
            raise ValueError("told to fail")

    return call


def view_of(control):
    view, status = control.cluster, control.status()
    return {
        "nodes": {node.name: node.id for node in view.nodes.values()},
        "active": sorted(node.name for node in view.nodes.values() if node.is_active),
        "dead": sorted(node.name for node in view.dead_nodes),
        "primary": view.primary_node.name if view.primary_node else None,
        "version": view.version,
        "role": status["role"],
        "storage": status["storage"],
        "addresses": {n.name: "%s:%d" % (n.ip, n.port) for n in view.nodes.values()},
    }


def watch(control, history):
    """Tells every change of what an application could read."""
    seen_primary = seen_view = seen_dead = last_true = None
    at = now()
    while True:
        before, at = at, now()
        if at > before + 0.5:  # it was kept from running
            history.tell("late", seconds=round(at - before, 3))
        term = control.term
        if term != seen_primary:
            history.tell("primary", at, term=term, last_true=last_true)
            seen_primary = term
        last_true = at if term else last_true
        view = view_of(control)
        if view != seen_view:
            history.tell("view", **view)
            seen_view = view
        runtime = control._runtime
        threads = {"heartbeat": runtime.thread, "callbacks": runtime.callbacks.thread}
        dead = sorted(name for name, thread in threads.items() if not thread.is_alive())
        if dead != seen_dead:
            history.tell("threads", dead=dead)
            seen_dead = dead
        time.sleep(0.03)


def hog(seconds, threads):
    """Keeps the interpreter busy, so that all other threads starve."""
    until = now() + seconds

    def burn():
        while now() < until:
            sum(range(1000))

    for _ in range(threads):
        threading.Thread(target=burn, daemon=True).start()


def exhaust(held):
    """Takes every file descriptor that is left."""
    with contextlib.suppress(OSError):
        while True:
            held.append(os.open("/dev/null", os.O_RDONLY))


def break_it(cluster, name):
    """Puts a broken core or backend, "module:class", in the place of the right one."""
    module, _, name = name.partition(":")
    broken = getattr(importlib.import_module(module), name)
    core = issubclass(broken, cluster.Core)
    setattr(cluster, "Core" if core else "SharedFsStorageBackend", broken)


def run_node(settings):
    sys.path[:0] = [HERE, ROOT]
    import cluster

    if settings.get("broken"):
        break_it(cluster, settings["broken"])

    history = History(settings["history"], settings["run"])
    logging.getLogger("cluster").setLevel(logging.INFO)
    logging.getLogger("cluster").addHandler(LogToHistory(history))
    sys.unraisablehook = lambda what: history.tell("died", text=repr(what.exc_value))
    threading.excepthook = lambda what: history.tell("died", text=repr(what.exc_value))
    if settings.get("boot"):  # as if this machine had been started anew
        cluster._boot_id = lambda: settings["boot"]
    resource.setrlimit(resource.RLIMIT_NOFILE, (4096, 4096))
    for _ in range(settings["ballast"]):  # the node's own descriptors are above these
        os.open("/dev/null", os.O_RDONLY)
    slow, failing = settings.get("slow", {}), settings.get("failing", [])

    def call(kind):
        return callback(history, lambda: control, kind, slow, failing)

    control = cluster.ClusterControl(
        settings.get("cluster", "lab"),
        start_primary_callback=call("start"),
        stop_primary_callback=call("stop"),
        exit_callback=call("exit"),
        storage_backend=cluster.SharedFsStorageBackend(
            settings["folder"], create=settings["create"]
        ),
        **settings["control"]
    )  # fmt: skip
    history.tell("boot", name=control.node_name)
    while True:
        try:
            cluster.join_cluster(control, timeout=settings["join_timeout"])
            break
        except cluster.StorageError as error:
            history.tell("waits", error=str(error))
        except cluster.ClusterError as error:
            history.tell("refused", error=repr(error))
            return
    control.start()
    own = control._runtime.core.record
    address = "%s:%d" % own.address
    history.tell("joined", id=own.incarnation, join=own.join_number, address=address)
    threading.Thread(target=watch, args=(control, history), daemon=True).start()
    held = []
    for line in sys.stdin:
        order = json.loads(line)
        history.tell("order", **order)
        if order["do"] == "stop":
            break
        elif order["do"] == "step_down":
            control.step_down()
        elif order["do"] == "hog":
            hog(order["seconds"], order["threads"])
        elif order["do"] == "exhaust":
            exhaust(held)
        elif order["do"] == "refill":
            while held:
                os.close(held.pop())
        elif order["do"] == "status":
            history.tell("status", status=control.status())
    control.stop()
    control.join(20)
    cluster.leave_cluster(control)
    history.tell("left")
    os._exit(0)  # a storage call may still hang


if __name__ == "__main__":
    {"share": run_share, "node": run_node}[sys.argv[1]](json.loads(sys.argv[2]))
