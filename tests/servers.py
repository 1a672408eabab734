"""Private servers for the tests: own ports, temporary data, gone at the end.

    if Redis.missing():  # says which programs, and their Debian package
        pytest.skip(Redis.missing())
    with Redis() as server:
        ...  # server.url; server.kill(), restart(); server.pause(), resume()

None is ever run as root: an ordinary account owns it and its data.
"""

import glob
import os
import pathlib
import pwd
import random
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time

from node_program import process_stat, until

PASSWORD = "pass%20word-1"  # quoted in a URL; must show in no error and no log
PLAIN_PASSWORD = "pass word-1"
PATIENCE = 120  # seconds for a server to come up, on a machine that is very busy


def free_port():
    """Below those that clients get: one that is down must not be taken meanwhile."""
    while True:
        port = random.randrange(20000, 32000)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
                return port
            except OSError:
                pass


def program(name):
    """Where a program is, Debian's PostgreSQL and the system folders included."""
    folders = sorted(glob.glob("/usr/lib/postgresql/*/bin"), reverse=True)
    path = os.pathsep.join([os.environ.get("PATH", "")] + folders + ["/usr/sbin"])
    return shutil.which(name, path=path)


def descendants(pid):
    """A process and all that came of it: PostgreSQL's are in no common group."""
    children = {}
    for path in glob.glob("/proc/[0-9]*"):
        name = os.path.basename(path)
        parent = process_stat(name)[1:2]
        if parent:
            children.setdefault(int(parent[0]), []).append(int(name))
    found = [pid]
    for one in found:
        found.extend(children.get(one, []))
    return found


def states(pids):
    """Of all threads of these processes, in the kernel's letters."""
    paths = [path for pid in pids for path in glob.glob("/proc/%d/task/*" % pid)]
    return {process_stat(path[len("/proc/") :])[0] for path in paths}


class Server:
    """A server process on a port of its own, with its data in a temporary folder."""

    programs = ()
    package = ""

    def __init__(self):
        self.port = free_port()
        # not below the tests' own folders, which are closed to other accounts
        self.folder = tempfile.mkdtemp(prefix="cluster-%s-" % type(self).__name__)
        self.data = os.path.join(self.folder, "data")
        self.process = None
        self.account = []
        if os.getuid() == 0:
            nobody = pwd.getpwnam("nobody")
            os.chown(self.folder, nobody.pw_uid, nobody.pw_gid)
            ids = (nobody.pw_uid, nobody.pw_gid)
            self.account = ["setpriv", "--reuid=%d" % ids[0], "--regid=%d" % ids[1]]
            self.account.append("--clear-groups")

    @classmethod
    def missing(cls):
        """Why it can't be started here; empty if it can."""
        names = [name for name in cls.programs if not program(name)]
        if not names and os.name == "posix":
            return ""
        return "needs %s (Debian: %s)" % (", ".join(names), cls.package)

    def prepare(self):
        """Makes the data folder."""

    def command(self):
        raise NotImplementedError

    def ready(self):
        raise NotImplementedError

    @property
    def url(self):
        raise NotImplementedError

    def run(self, name, *arguments, check=True):
        """Runs a program of the server's; True if it succeeded."""
        with open(os.path.join(self.folder, "log"), "ab") as log:
            done = subprocess.run(
                self.account + [program(name)] + list(arguments),
                stdout=log, stderr=log, cwd=self.folder, timeout=PATIENCE,
            )  # fmt: skip
        assert not check or done.returncode == 0, self.log()
        return done.returncode == 0

    def log(self):
        return pathlib.Path(self.folder, "log").read_text("utf-8", "replace")

    def start(self):
        if not os.path.exists(self.data):
            self.prepare()
        command = self.command()
        with open(os.path.join(self.folder, "log"), "ab") as log:
            self.process = subprocess.Popen(
                self.account + [program(command[0])] + command[1:],
                stdout=log, stderr=log, cwd=self.folder,
            )  # fmt: skip
        deadline = time.monotonic() + PATIENCE
        while not self.ready():
            assert self.process.poll() is None, self.log()
            assert time.monotonic() < deadline, self.log()
            time.sleep(0.02)

    def signal(self, number, into=None):
        """To the server and all that it started; waits until they are in that state."""
        pids = descendants(self.process.pid)
        for pid in pids:
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                pass
        if into:
            until(lambda: states(pids) <= set(into), PATIENCE)

    def kill(self):
        """As a power cut: nothing is written any more, every connection breaks."""
        self.process.send_signal(signal.SIGSTOP)  # it starts nobody else meanwhile
        self.signal(signal.SIGKILL, into="ZX")
        self.process.wait()

    def pause(self):
        """Connections stay, and new ones are taken, but nothing is ever answered."""
        self.signal(signal.SIGSTOP, into="TZX")

    def resume(self):
        self.signal(signal.SIGCONT)

    def restart(self):
        if self.process.poll() is None:
            self.kill()
        self.start()

    def close(self):
        if self.process is not None and self.process.poll() is None:
            self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self):
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_):
        self.close()


class PostgreSQL(Server):
    programs = ("initdb", "postgres", "pg_isready")
    package = "postgresql"

    def prepare(self):
        secret = os.path.join(self.folder, "secret")
        with open(secret, "w") as file:
            file.write(PLAIN_PASSWORD)
        os.chmod(secret, 0o644)
        self.run(
            "initdb", "-D", self.data, "-A", "scram-sha-256", "-U", "app", "--no-sync",
            "--pwfile", secret, "-E", "UTF8", "--locale=C",
        )  # fmt: skip

    def command(self):
        options = ["-k", self.folder, "-h", "127.0.0.1", "-p", str(self.port)]
        for setting in ("fsync=off", "shared_buffers=16MB", "max_connections=50"):
            options += ["-c", setting]
        return ["postgres", "-D", self.data] + options

    def ready(self):
        port = str(self.port)
        return self.run("pg_isready", "-q", "-h", "127.0.0.1", "-p", port, check=False)

    @property
    def url(self):
        return "postgresql://app:%s@127.0.0.1:%d/postgres" % (PASSWORD, self.port)


class PgBouncer(Server):
    """A pooler before a PostgreSQL that runs: each transaction on any connection."""

    programs = ("pgbouncer", "pg_isready")
    package = "pgbouncer"

    def __init__(self, behind):
        super().__init__()
        self.behind = behind

    def prepare(self):
        os.mkdir(self.data)
        with open(os.path.join(self.data, "users"), "w") as file:
            file.write('"app" "%s"\n' % PLAIN_PASSWORD)
        settings = dict(
            listen_addr="127.0.0.1", listen_port=self.port, unix_socket_dir="",
            auth_type="plain", auth_file=os.path.join(self.data, "users"),
            pool_mode="transaction", default_pool_size=2,
        )  # fmt: skip
        with open(os.path.join(self.data, "ini"), "w") as file:
            file.write("[databases]\n* = host=127.0.0.1 port=%d\n" % self.behind.port)
            file.write("[pgbouncer]\n")
            file.writelines("%s = %s\n" % pair for pair in settings.items())

    def command(self):
        return ["pgbouncer", os.path.join(self.data, "ini")]

    def ready(self):
        port = str(self.port)
        return self.run("pg_isready", "-q", "-h", "127.0.0.1", "-p", port, check=False)

    @property
    def url(self):
        return self.behind.url.replace(":%d/" % self.behind.port, ":%d/" % self.port)


class MariaDB(Server):
    programs = ("mariadb-install-db", "mariadbd", "mariadb-admin")
    package = "mariadb-server"

    def prepare(self):
        self.run(
            "mariadb-install-db", "--no-defaults", "--datadir=" + self.data,
            "--auth-root-authentication-method=normal", "--skip-test-db",
        )  # fmt: skip
        with open(os.path.join(self.folder, "init.sql"), "w") as file:
            file.write("CREATE DATABASE IF NOT EXISTS app;\n")
            file.write("CREATE USER IF NOT EXISTS app IDENTIFIED BY '%s';\n"
                       % PLAIN_PASSWORD)  # fmt: skip
            file.write("GRANT ALL ON app.* TO app;\n")

    def command(self):
        return [
            "mariadbd", "--no-defaults", "--datadir=" + self.data,
            "--port=%d" % self.port, "--bind-address=127.0.0.1",
            "--socket=" + os.path.join(self.folder, "s"),
            "--pid-file=" + os.path.join(self.folder, "pid"),
            "--init-file=" + os.path.join(self.folder, "init.sql"),
            "--innodb-flush-log-at-trx-commit=2", "--innodb-buffer-pool-size=16M",
            "--skip-name-resolve", "--performance-schema=0",
        ]  # fmt: skip

    def ready(self):
        return self.run(
            "mariadb-admin", "--no-defaults", "-h127.0.0.1", "-P%d" % self.port,
            "-uapp", "-p" + PLAIN_PASSWORD, "ping", check=False,
        )  # fmt: skip

    @property
    def url(self):
        return "mariadb://app:%s@127.0.0.1:%d/app" % (PASSWORD, self.port)


class Redis(Server):
    programs = ("redis-server", "redis-cli")
    package = "redis-server"

    def prepare(self):
        os.mkdir(self.data)
        os.chmod(self.data, 0o777)

    def command(self):
        # each write is in the file before its answer: a kill loses nothing
        return [
            "redis-server", "--port", str(self.port), "--bind", "127.0.0.1",
            "--dir", self.data, "--save", "", "--appendonly", "yes",
            "--appendfsync", "no", "--requirepass", PLAIN_PASSWORD,
        ]  # fmt: skip

    def ready(self):
        return self.run("redis-cli", "-e", "-p", str(self.port), "-a",
                        PLAIN_PASSWORD, "ping", check=False)  # fmt: skip

    @property
    def url(self):
        return "redis://:%s@127.0.0.1:%d/0" % (PASSWORD, self.port)


class SQLite:
    """No server: a file, in memory if there is a place: its flushes would load the
    machine's disk. `pause` has another process lock it."""

    HOLD = (
        "import sqlite3, sys; db = sqlite3.connect(sys.argv[1], timeout=30);"
        "db.execute('BEGIN EXCLUSIVE'); print(flush=True); sys.stdin.read()"
    )

    def __init__(self):
        memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
        self.folder = tempfile.mkdtemp(prefix="cluster-SQLite-", dir=memory)
        self.path = os.path.join(self.folder, "cluster.sqlite")
        self.holder = None

    @classmethod
    def missing(cls):
        return ""

    @property
    def url(self):
        return "sqlite:///" + self.path

    def start(self):
        sqlite3.connect(self.path).close()

    def pause(self):
        self.holder = subprocess.Popen(
            [sys.executable, "-c", self.HOLD, self.path],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip
        assert self.holder.stdout.readline()

    def resume(self):
        if self.holder is not None:
            self.holder.communicate()
            self.holder = None

    def close(self):
        self.resume()
        shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        self.close()


class Proxy:
    """A way to a port that can be cut, and that counts what goes through.

    `round_trips` counts how often a request went to the server after an answer, or
    at the beginning of a connection.
    """

    def __init__(self, port):
        self.target = port
        self.round_trips = 0
        self._requests, self._answers = threading.Event(), threading.Event()
        self.heal()
        self._pairs = []
        self._listener = socket.socket()
        self._listener.bind(("127.0.0.1", 0))
        self._listener.listen(16)
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:  # closed
                return
            try:
                server = socket.create_connection(("127.0.0.1", self.target))
            except OSError:
                client.close()
                continue
            for one in (client, server):
                one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._pairs.append((client, server))
            asking = [False]
            for pair in ((client, server, True), (server, client, False)):
                arguments = pair + (asking,)
                threading.Thread(
                    target=self._pump, args=arguments, daemon=True
                ).start()

    def _pump(self, source, target, is_request, asking):
        gate = self._requests if is_request else self._answers
        try:
            while True:
                data = source.recv(65536)
                gate.wait()
                if not data:
                    break
                if is_request and not asking[0]:
                    self.round_trips += 1
                asking[0] = is_request
                target.sendall(data)
        except OSError:
            pass
        for one in (source, target):
            try:
                one.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass

    def cut(self):
        """Nothing passes any more, and nothing is refused: as a pulled cable."""
        self._requests.clear()
        self._answers.clear()

    def hold_answers(self):
        """What is asked is done, and nobody learns of it."""
        self._answers.clear()

    def heal(self):
        self._requests.set()
        self._answers.set()

    def close(self):
        self.heal()
        # a thread that waits in accept keeps the descriptor until it is woken
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for pair in self._pairs:
            for one in pair:
                one.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()
