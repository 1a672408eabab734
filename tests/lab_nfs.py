"""A real NFS server for the laboratory, and a client in user space (NFSv3, libnfs).

The kernel's client cannot be had everywhere: `Client` has the few calls that a share
needs, and `lab_programs` puts them behind FUSE.
"""

import ctypes
import errno
import os
import shutil
import signal
import subprocess
import threading
import time

PORT, MOUNT_PORT = 12049, 12050
IP = "10.77.0.250"

CONFIG = """
NFS_CORE_PARAM {{ Protocols = 3; NFS_Port = {port}; MNT_Port = {mount_port};
    Enable_NLM = false; Enable_RQUOTA = false; Enable_UDP = false; }}
EXPORT {{ Export_Id = 1; Path = {path}; Pseudo = /exp; Access_Type = RW;
    Squash = None; SecType = sys; Protocols = 3; Transports = TCP;
    FSAL {{ Name = VFS; }} }}
"""


def missing():
    """Why there is no NFS here, or None."""
    tools = [tool for tool in ("ganesha.nfsd", "rpcbind") if not shutil.which(tool)]
    if tools:
        return "needs nfs-ganesha, nfs-ganesha-vfs and rpcbind"
    try:
        ctypes.CDLL("libnfs.so.13")
    except OSError:
        return "needs libnfs13"
    return None


class Server:
    """nfs-ganesha in a network namespace of its own, with a folder as its export."""

    ip = IP

    def __init__(self, namespace, path, folder):
        self.url = "nfs://%s%s?version=3&nfsport=%d&mountport=%d" % (
            IP, path, PORT, MOUNT_PORT
        )  # fmt: skip
        config = os.path.join(folder, "ganesha.conf")
        with open(config, "w") as file:
            file.write(CONFIG.format(port=PORT, mount_port=MOUNT_PORT, path=path))
        self.log = os.path.join(folder, "ganesha.log")
        script = (
            "mount -t tmpfs tmpfs /run && mkdir -p /run/ganesha /run/rpcbind && "
            "rpcbind -f -w & sleep 0.2; exec ganesha.nfsd -F -f %s -L %s -p %s/pid"
        )
        self.process = subprocess.Popen(
            ["ip", "netns", "exec", namespace, "unshare", "-m", "sh", "-c",
             script % (config, self.log, folder)],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip

    def pause(self):
        """As a hard mount whose server is gone: calls wait until it is back."""
        os.killpg(self.process.pid, signal.SIGSTOP)

    def resume(self):
        os.killpg(self.process.pid, signal.SIGCONT)

    def close(self):
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(20)


class Stat(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_uint64)
        for name in "dev ino mode nlink uid gid rdev size blksize blocks "
        "atime mtime ctime atime_nsec mtime_nsec ctime_nsec used".split()
    ]


class Entry(ctypes.Structure):
    pass


Entry._fields_ = [("next", ctypes.POINTER(Entry)), ("name", ctypes.c_char_p)]


class Client:
    """One connection; a call that the server does not answer keeps the others waiting,
    as with one mount of the kernel."""

    def __init__(self, url):
        lib = self.lib = ctypes.CDLL("libnfs.so.13")
        lib.nfs_init_context.restype = ctypes.c_void_p
        lib.nfs_parse_url_dir.restype = ctypes.c_void_p
        lib.nfs_readdir.restype = ctypes.POINTER(Entry)
        lib.nfs_get_error.restype = ctypes.c_char_p
        self.lock = threading.RLock()
        server, path = url.split("/")[2], "/" + url.split("/", 3)[3].partition("?")[0]
        deadline = time.monotonic() + 15
        while True:
            self.context = ctypes.c_void_p(lib.nfs_init_context())
            lib.nfs_parse_url_dir(self.context, url.encode())  # the version, the ports
            if not lib.nfs_mount(self.context, server.encode(), path.encode()):
                return
            if time.monotonic() > deadline:
                raise OSError(errno.EIO, lib.nfs_get_error(self.context).decode())
            time.sleep(0.1)

    def call(self, name, *arguments):
        encoded = [a.encode() if isinstance(a, str) else a for a in arguments]
        with self.lock:
            result = getattr(self.lib, name)(self.context, *encoded)
        if result < 0:
            raise OSError(-result, os.strerror(-result))
        return result

    def stat(self, path, handle):
        status = Stat()
        if handle is None:
            self.call("nfs_lstat64", path, ctypes.byref(status))
        else:
            self.call("nfs_fstat64", ctypes.c_void_p(handle), ctypes.byref(status))
        found = {"st_" + name: getattr(status, name)
                 for name in ("mode", "nlink", "size", "uid", "gid", "ino")}  # fmt: skip
        for kind in ("atime", "mtime", "ctime"):
            seconds, rest = getattr(status, kind), getattr(status, kind + "_nsec")
            found["st_" + kind] = seconds * 10**9 + rest
        return found

    def listdir(self, path):
        folder, names = ctypes.c_void_p(), []
        with self.lock:
            self.call("nfs_opendir", path, ctypes.byref(folder))
            entry = self.lib.nfs_readdir(self.context, folder)
            while entry:
                names.append(os.fsdecode(entry.contents.name))
                entry = self.lib.nfs_readdir(self.context, folder)
            self.lib.nfs_closedir(self.context, folder)
        return [name for name in names if name not in (".", "..")]

    def open(self, path, flags):
        handle = ctypes.c_void_p()
        flags &= os.O_ACCMODE | os.O_TRUNC
        self.call("nfs_open", path, flags, ctypes.byref(handle))
        return handle.value

    def create(self, path, mode):
        handle = ctypes.c_void_p()
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL
        self.call("nfs_create", path, flags, mode & 0o7777, ctypes.byref(handle))
        return handle.value

    def pread(self, handle, size, offset):
        data = ctypes.create_string_buffer(size)
        count = self.call("nfs_pread", ctypes.c_void_p(handle), ctypes.c_uint64(offset),
                          ctypes.c_uint64(size), data)  # fmt: skip
        return data.raw[:count]

    def pwrite(self, handle, data, offset):
        return self.call("nfs_pwrite", ctypes.c_void_p(handle), ctypes.c_uint64(offset),
                         ctypes.c_uint64(len(data)), data)  # fmt: skip

    def fsync(self, handle):
        return self.call("nfs_fsync", ctypes.c_void_p(handle))

    def close(self, handle):
        self.call("nfs_close", ctypes.c_void_p(handle))

    def truncate(self, path, length):
        self.call("nfs_truncate", path, ctypes.c_uint64(length))

    def rename(self, old, new):
        self.call("nfs_rename", old, new)

    def unlink(self, path):
        self.call("nfs_unlink", path)

    def mkdir(self, path, mode):
        self.call("nfs_mkdir2", path, mode & 0o7777)

    def rmdir(self, path):
        self.call("nfs_rmdir", path)

    def chmod(self, path, mode):
        self.call("nfs_chmod", path, mode & 0o7777)
