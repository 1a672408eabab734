"""Where the system has only what every system has, a cluster works all the same."""

import os
import subprocess
import sys

import pytest

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

# Takes away what Windows, or an old or small Unix, has not, before anything is
# imported that might look for it; and lets the file system behave as on Windows.
BARE = """
import _socket, builtins, os, select, signal, sys, time

KEEP = {"SIGINT", "SIGTERM", "SIGABRT", "SIGFPE", "SIGILL", "SIGSEGV"}
gone = {
    os: '''fork forkpty register_at_fork getuid geteuid getgid getegid getgroups chown
        lchown fchown fchmod chroot mkfifo mknod statvfs fstatvfs sync uname wait wait3
        wait4 waitid killpg setsid getsid getpgid setpgid nice getloadavg pread pwrite
        sendfile pidfd_open memfd_create eventfd sched_getaffinity sched_yield
        posix_fallocate posix_fadvise posix_spawn pipe2 lockf openpty ttyname confstr
        O_NONBLOCK O_NOFOLLOW O_CLOEXEC O_DIRECTORY O_SYNC O_DSYNC O_NOCTTY'''.split(),
    select: "epoll poll devpoll kqueue".split(),
    signal: [n for n in dir(signal) if n.startswith("SIG") and n not in KEEP]
        + "alarm setitimer pause pthread_kill pthread_sigmask sigwait".split(),
    time: [n for n in dir(time) if n.startswith("CLOCK_")]
        + "clock_gettime clock_settime clock_getres pthread_getcpuclockid".split(),
    _socket: "socketpair if_nameindex AF_UNIX AF_NETLINK AF_PACKET SO_REUSEPORT".split(),
}
for module, names in gone.items():
    for name in names:
        if hasattr(module, name):
            delattr(module, name)
for name in "fcntl pwd grp resource termios syslog readline".split():
    sys.modules[name] = None

real = {name: getattr(os, name) for name in ("open", "rename", "stat", "readlink")}
real_open, real_monotonic = builtins.open, time.monotonic

def hidden(path):
    text = path.decode() if isinstance(path, bytes) else path
    if isinstance(text, str) and text.startswith(("/proc", "/etc/machine-id", "/sys")):
        raise FileNotFoundError(2, "no such file", text)

def hiding(function):
    def call(path, *arguments, **keywords):
        hidden(path)
        return function(path, *arguments, **keywords)
    return call

def open_file(path, flags, *arguments, **keywords):
    hidden(path)
    if os.path.isdir(path):
        raise PermissionError(13, "a folder cannot be opened", path)
    return real["open"](path, flags, *arguments, **keywords)

def rename(source, target):
    if os.path.lexists(target):
        raise FileExistsError(17, "it is there already", target)
    return real["rename"](source, target)

def kill(pid, number):
    raise AssertionError("on Windows, this would end the process")

builtins.open, os.stat, os.readlink = map(
    hiding, (real_open, real["stat"], real["readlink"])
)
os.open, os.rename, os.kill = open_file, rename, kill
time.monotonic = lambda: real_monotonic() // 0.0156 * 0.0156  # the clock of Windows
"""

CLUSTER = """
import logging
logging.basicConfig(stream=sys.stdout, level=logging.INFO)
import cluster

assert not hasattr(os, "fork") and not hasattr(select, "epoll")
deadline = time.monotonic() + 60
calls = []

def node(name):
    note = lambda kind: lambda: calls.append((name, kind))
    control = cluster.ClusterControl(
        "jobs", None, name, hb_interval=0.2, hb_timeout=1, check_interval=0.3,
        hb_missed_count=2, secret="a secret", own_version="1.0",
        storage_backend=cluster.SharedFsStorageBackend(sys.argv[1]),
        start_primary_callback=note("start"), stop_primary_callback=note("stop"),
    )
    control.start()
    return control

def until(condition):
    while not condition():
        assert time.monotonic() < deadline, (calls, [c.status() for c in (one, two)])
        time.sleep(0.01)

one = node("one")
two = one
assert one.wait_for_primary(20)
until(lambda: ("one", "start") in calls)
two = node("two")
until(lambda: all(len(c.cluster.nodes) == 2 for c in (one, two)))
until(lambda: all(n.is_active for n in two.cluster.nodes.values()))
first = one.term
one.stop()
one.join(10)
assert two.wait_for_primary(20) and two.term > first
until(lambda: ("two", "start") in calls)
two.stop()
two.join(10)
assert calls == [("one", "start"), ("one", "stop"), ("two", "start"), ("two", "stop")]
nodes = os.path.join(sys.argv[1], "cluster-jobs", "nodes")
assert [name for name in os.listdir(nodes) if name.startswith("node-")] == []
print("done")
"""


@pytest.mark.processes
def test_a_cluster_works_where_only_what_all_systems_have_is_there(tmp_path):
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", BARE + CLUSTER, str(tmp_path)],
        env=dict(os.environ, PYTHONPATH=ROOT), timeout=90,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, universal_newlines=True,
    )  # fmt: skip
    assert done.returncode == 0 and done.stdout.endswith("done\n"), done.stdout
    assert "WARNING" not in done.stdout and "ERROR" not in done.stdout, done.stdout
