"""A resource that refuses a former primary, by the fencing token.

    python examples/fencing.py

No cluster can keep a paused process from finishing, on waking, the very statement
in which it was paused. The resource can: each write carries the writer's term, and
the resource refuses a term lower than the highest that it has seen.

Here the first primary is stopped (SIGSTOP) *between* its check of `is_primary` and
its write. Another node takes over and writes. Then the first one is woken, goes on
where it was, and its write is refused. Takes a few seconds.
"""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from typing import IO, List

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import cluster  # noqa: E402


class StaleTerm(Exception):
    """The write came from a node that has since been replaced. Nothing was done."""


class GuardedLedger:
    """An SQLite file that takes entries from the newest primary only."""

    def __init__(self, path: str) -> None:
        self._db = sqlite3.connect(path, timeout=10, isolation_level=None)
        self._db.execute("CREATE TABLE IF NOT EXISTS fence (term INTEGER)")
        self._db.execute("CREATE TABLE IF NOT EXISTS entry (term INTEGER, text TEXT)")

    def write(self, term: int, text: str) -> None:
        """Adds an entry, in one transaction with the comparison of the terms."""
        self._db.execute("BEGIN IMMEDIATE")
        try:
            (highest,) = self._db.execute("SELECT MAX(term) FROM fence").fetchone()
            # 0 is what `ctrl.term` reads on a node that is not primary
            if term < max(highest or 0, 1):
                raise StaleTerm("term %d is below %d" % (term, highest or 1))
            self._db.execute("DELETE FROM fence")
            self._db.execute("INSERT INTO fence VALUES (?)", (term,))
            self._db.execute("INSERT INTO entry VALUES (?, ?)", (term, text))
            self._db.execute("COMMIT")
        except BaseException:
            self._db.execute("ROLLBACK")
            raise

    def entries(self) -> List[str]:
        rows = self._db.execute("SELECT text FROM entry ORDER BY rowid")
        return [text for (text,) in rows]

    def close(self) -> None:
        self._db.close()


def make_control(folder: str, name: str) -> cluster.ClusterControl:
    return cluster.ClusterControl(
        "fencing",
        host_name="127.0.0.1",
        node_name=name,
        hb_interval=0.3,
        hb_timeout=1,
        check_interval=0.5,
        hb_missed_count=2,
        storage_backend=cluster.SharedFsStorageBackend(folder),
    )


def work_as_primary(folder: str, name: str) -> None:
    """In a process of its own: becomes primary, then writes when a line comes in."""
    ledger = GuardedLedger(os.path.join(folder, "ledger.sqlite"))
    with make_control(folder, name) as control:
        control.wait_for_primary()
        term = control.term  # taken once, when the work begins
        if control.is_primary:
            print(term, flush=True)
            sys.stdin.readline()  # <- the pause happens here, after the check
            try:
                ledger.write(term, "written by %s" % name)
                print("accepted", flush=True)
            except StaleTerm as error:
                print("refused: %s" % error, flush=True)
        sys.stdin.readline()


def start_worker(folder: str, name: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, os.path.abspath(__file__), "--worker", folder, name],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        universal_newlines=True,
    )


def pipe(stream: "IO[str] | None") -> "IO[str]":
    assert stream is not None
    return stream


def tell(worker: "subprocess.Popen[str]") -> str:
    """Lets the worker write, and returns what became of it."""
    pipe(worker.stdin).write("write\n")
    pipe(worker.stdin).flush()
    return pipe(worker.stdout).readline().strip()


def freeze(worker: "subprocess.Popen[str]") -> None:
    if hasattr(signal, "SIGSTOP"):
        os.kill(worker.pid, signal.SIGSTOP)
    else:  # Windows can't pause a process; a dead primary's token is as stale
        print("(no SIGSTOP here: the first primary is ended instead)")
        worker.kill()


def show(folder: str, workers: "List[subprocess.Popen[str]]") -> bool:
    started = time.monotonic()

    def say(text: str, *arguments: object) -> None:
        seconds = time.monotonic() - started
        print("%5.2f s  %s" % (seconds, text % arguments), flush=True)

    workers.append(start_worker(folder, "old"))
    old_term = int(pipe(workers[0].stdout).readline())
    say("'old' is primary in term %d and is about to write", old_term)
    freeze(workers[0])
    say("'old' is frozen in the middle of its work (SIGSTOP)")
    workers.append(start_worker(folder, "new"))
    new_term = int(pipe(workers[1].stdout).readline())
    say("'new' took over in term %d", new_term)
    say("'new' writes: %s", tell(workers[1]))
    if workers[0].poll() is None and hasattr(signal, "SIGCONT"):
        os.kill(workers[0].pid, signal.SIGCONT)
        answer = tell(workers[0])
        say("'old' is awake again and goes on where it was: %s", answer)
    else:
        answer = write_with(folder, old_term)
        say("a write with the old term: %s", answer)
    ledger = GuardedLedger(os.path.join(folder, "ledger.sqlite"))
    entries = ledger.entries()
    ledger.close()
    say("the ledger holds: %s", entries)
    return answer.startswith("refused") and entries == ["written by new"]


def write_with(folder: str, term: int) -> str:
    ledger = GuardedLedger(os.path.join(folder, "ledger.sqlite"))
    try:
        ledger.write(term, "written by old")
        return "accepted"
    except StaleTerm as error:
        return "refused: %s" % error
    finally:
        ledger.close()


def main() -> int:
    if sys.argv[1:2] == ["--worker"]:
        work_as_primary(sys.argv[2], sys.argv[3])
        return 0
    workers: "List[subprocess.Popen[str]]" = []
    with tempfile.TemporaryDirectory() as folder:
        try:
            fenced = show(folder, workers)
        finally:
            for worker in workers:
                worker.kill()
                worker.wait()
                pipe(worker.stdin).close()
                pipe(worker.stdout).close()
    print("The stale write was refused." if fenced else "FAILED: it was let through.")
    return 0 if fenced else 1


if __name__ == "__main__":
    sys.exit(main())
