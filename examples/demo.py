"""Three real processes, one primary: watch it being killed, frozen and replaced.

    python examples/demo.py

Takes half a minute or less, needs nothing, and cleans up after itself. It ends with
the measured seconds, and with exit code 1 if two nodes were ever primary at once.

What is checked: of the times in which each node's callbacks said that it is primary,
and in which its `is_primary` read true, no two of different nodes overlap; and terms
only rise. A killed process counts until the kill. A frozen one counts until it is
frozen: nothing can keep it from *believing*, while it can't run, and it must know
better in the very first read after it woke.
"""

from __future__ import annotations

import json
import logging
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Tuple

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import cluster  # noqa: E402

SETTINGS = {"hb_interval": 0.5, "hb_timeout": 1.5, "check_interval": 0.5}
MISSED = 2
PATIENCE = 15.0  # seconds; far more than any step needs, also on a busy machine
PAUSE = 1.2  # seconds between the steps, for the eye
CAN_FREEZE = hasattr(signal, "SIGSTOP")
# time.monotonic() is one clock for all processes of a machine, so that the
# children's stamps can be compared with ours


# --------------------------------------------------------------------------------
# In the child: one node
# --------------------------------------------------------------------------------


class Node:
    """Reports what happens to it as lines of JSON on its standard output."""

    def __init__(self, folder: str, name: str, version: str) -> None:
        self._lock = threading.Lock()
        self.done = threading.Event()
        self.control = cluster.ClusterControl(
            "demo",
            host_name="127.0.0.1",
            node_name=name,
            hb_missed_count=MISSED,
            own_version=version,
            start_primary_callback=self.become_primary,
            stop_primary_callback=self.leave_primary,
            exit_callback=self.exit,
            storage_backend=cluster.SharedFsStorageBackend(folder),
            **SETTINGS,
        )

    def report(self, event: str, **details: Any) -> None:
        line = json.dumps(dict(details, event=event, at=time.monotonic()))
        with self._lock:
            print(line, flush=True)

    def become_primary(self) -> None:
        self.report("start", term=self.control.term)

    def leave_primary(self) -> None:
        self.report("stopping")
        time.sleep(0.05)  # the application puts its work away
        self.report("stopped")

    def exit(self) -> None:
        self.report("exit")
        self.done.set()

    def obey(self) -> None:
        sys.stdin.readline()  # "stop", or the end of the parent
        self.report("asked to stop")
        self.done.set()

    def work(self) -> None:
        """Reads `is_primary` a hundred times a second; reports each change."""
        was, seen = False, 0.0
        while not self.done.is_set():
            # stamped before the read: a pause between the two is then harmless
            now = time.monotonic()
            is_primary = self.control.is_primary
            if is_primary != was:
                self.report("reads", primary=is_primary, first=now, last=seen)
            was, seen = is_primary, now if is_primary else seen
            self.done.wait(0.01)
        self.report("reads", primary=False, first=time.monotonic(), last=seen)

    def run(self) -> None:
        threading.Thread(target=self.obey, daemon=True).start()
        cluster.join_cluster(self.control)
        self.report("joined")
        self.control.start()
        self.work()
        self.control.stop()
        self.control.join(10)
        cluster.leave_cluster(self.control)
        self.report("left")


# --------------------------------------------------------------------------------
# In the parent: processes, and what they reported
# --------------------------------------------------------------------------------


class Event(NamedTuple):
    child: "Child"
    kind: str
    at: float
    details: Dict[str, Any]


class Span(NamedTuple):
    """A time in which a node was primary, by one of the two measures."""

    begin: float
    end: float
    who: str


class Child:
    def __init__(self, folder: str, name: str, version: str, inbox: Any) -> None:
        self.name, self.version, self.state = name, version, "starting"
        self.term = 0
        self.started_at: Optional[float] = None  # primary since, by its callbacks
        self.read_since: Optional[float] = None  # primary since, by is_primary
        self.frozen_at: Optional[float] = None
        self._log = open(os.path.join(folder, name + "-" + version + ".log"), "a")
        self.process = subprocess.Popen(
            [sys.executable, os.path.abspath(__file__), "--node", folder, name, version],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            universal_newlines=True,
        )
        reader = threading.Thread(target=self._read, args=(inbox,), daemon=True)
        reader.start()
        self._reader = reader

    def _read(self, inbox: Any) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            details = json.loads(line)
            inbox.put(Event(self, details.pop("event"), details.pop("at"), details))

    def stop(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("stop\n")
        self.process.stdin.flush()

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self._reader.join(2)
        for stream in (self.process.stdin, self.process.stdout, self._log):
            if stream is not None:
                try:
                    stream.close()
                except OSError:
                    pass  # an unread "stop" to a process that was faster


class Failure(Exception):
    """The cluster did not do what this demo is there to show."""


class Judge:
    """Collects who was primary when; knows nothing of how it is decided."""

    def __init__(self) -> None:
        self.by_callback: List[Span] = []
        self.by_reading: List[Span] = []
        self.terms: List[Tuple[float, int]] = []

    def note(self, event: Event) -> None:
        child, at = event.child, event.at
        if event.kind == "start":
            child.started_at = at
            self.terms.append((at, event.details["term"]))
        elif event.kind == "stopped":
            self._end_callbacks(child, at)
        elif event.kind == "reads" and event.details["primary"]:
            child.read_since = event.details["first"]
        elif event.kind == "reads":
            self._end_reading(child, event.details["last"])

    def died(self, child: Child, at: float) -> None:
        self._end_callbacks(child, at)
        self._end_reading(child, at)

    def _end_callbacks(self, child: Child, at: float) -> None:
        if child.started_at is not None:
            end = at if child.frozen_at is None else min(at, child.frozen_at)
            self.by_callback.append(Span(child.started_at, end, child.name))
        child.started_at = None

    def _end_reading(self, child: Child, at: float) -> None:
        if child.read_since is not None:
            self.by_reading.append(Span(child.read_since, at, child.name))
        child.read_since = None

    def faults(self) -> List[str]:
        found = []
        for what, spans in (
            ("callbacks", self.by_callback),
            ("is_primary", self.by_reading),
        ):
            latest: Optional[Span] = None
            for span in sorted(spans):
                if latest is not None and span.begin < latest.end:
                    text = "two primaries by %s: %s and %s, for %.6f s"
                    overlap = min(latest.end, span.end) - span.begin
                    found.append(text % (what, latest.who, span.who, overlap))
                if latest is None or span.end > latest.end:
                    latest = span
        terms = [term for _, term in sorted(self.terms)]
        if any(late <= early for early, late in zip(terms, terms[1:])):
            found.append("terms did not rise: %s" % terms)
        if not self.by_callback or not self.by_reading:
            found.append("nobody was ever primary: there was nothing to check")
        return found


# --------------------------------------------------------------------------------
# The view
# --------------------------------------------------------------------------------

GREEN, YELLOW, RED, BLUE, GREY, BOLD = "32;1", "33", "31", "36", "90", "1"


class View:
    """Redraws a few lines on a terminal; elsewhere, prints one line per event."""

    def __init__(self) -> None:
        self._live = sys.stdout.isatty() and os.environ.get("TERM") != "dumb"
        self._colour = self._live and not os.environ.get("NO_COLOR")
        if self._live and os.name == "nt":
            os.system("")  # makes the Windows console understand the sequences
        self._begin = time.monotonic()
        self._height = 0
        self._step = ""

    def paint(self, text: str, colour: str) -> str:
        return "\033[%sm%s\033[0m" % (colour, text) if self._colour else text

    def clock(self, at: Optional[float] = None) -> str:
        return "%5.1f s" % ((time.monotonic() if at is None else at) - self._begin)

    def say(self, text: str, colour: str, at: Optional[float] = None) -> None:
        self._clear()
        print("%s  %s" % (self.clock(at), self.paint(text, colour)), flush=True)

    def step(self, text: str) -> None:
        self._step = text
        self._clear()
        print("\n%s  %s" % (self.clock(), self.paint(text, BOLD)), flush=True)

    def draw(self, children: List[Child]) -> None:
        if not self._live:
            return
        lines = ["", "  %s  %s" % (self.clock(), self.paint(self._step, BOLD))]
        lines += [self._line(child) for child in children]
        self._clear()
        print("\n".join(lines), flush=True)
        self._height = len(lines)

    def _line(self, child: Child) -> str:
        state, colour = child.state, GREY
        if state == "primary":
            state, colour = "PRIMARY  in term %d" % child.term, GREEN
        elif state == "member":
            colour = BLUE
        elif state == "frozen":
            colour = YELLOW
        elif state == "killed":
            colour = RED
        mark = self.paint("#" if colour == GREEN else ".", colour)
        text = "%-7s %-4s %s" % (child.name, child.version, state)
        return "    %s %s" % (mark, self.paint(text, colour))

    def _clear(self) -> None:
        if self._height:
            sys.stdout.write("\033[%dA\033[J" % self._height)
            self._height = 0


# --------------------------------------------------------------------------------
# The story
# --------------------------------------------------------------------------------

STATES = {
    "joined": ("member", "joined", BLUE),
    "start": ("primary", "start callback: is PRIMARY", GREEN),
    "stopping": ("stopping", "stop callback begins", YELLOW),
    "stopped": ("member", "stop callback returned", YELLOW),
    "asked to stop": ("", "is asked to stop", YELLOW),
    "exit": ("leaving", "exit callback: a newer version is here", YELLOW),
    "left": ("left", "has left", GREY),
}


class Demo:
    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._inbox: "queue.Queue[Event]" = queue.Queue()
        self._history: List[Event] = []
        self._children: List[Child] = []
        self._every_child: List[Child] = []
        self._judge = Judge()
        self._results: List[Tuple[str, str, float]] = []
        self.view = View()

    def start(self, name: str, version: str = "1.0") -> Child:
        self._children = [child for child in self._children if child.name != name]
        child = Child(self._folder, name, version, self._inbox)
        self._children.append(child)
        self._children.sort(key=lambda child: child.name)
        self._every_child.append(child)
        return child

    def take(self, event: Event) -> None:
        self._history.append(event)
        self._judge.note(event)
        event.child.term = event.details.get("term", event.child.term)
        state, text, colour = STATES.get(event.kind, ("", "", ""))
        if state and event.child.state != "killed":
            event.child.state = state
        if text:
            if event.kind == "start":
                text += " in term %d" % event.child.term
            self.view.say("%-7s %s" % (event.child.name, text), colour, event.at)

    def pump(self, seconds: float) -> None:
        try:
            self.take(self._inbox.get(timeout=seconds))
        except queue.Empty:
            pass
        self.view.draw(self._children)

    def rest(self, seconds: float = PAUSE) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.pump(0.1)

    def wait(self, what: str, found: Callable[[Event], bool], since: float) -> Event:
        """The first event from `since` on that is the one looked for."""
        end = time.monotonic() + PATIENCE
        seen = 0
        while True:
            for event in self._history[seen:]:
                if event.at >= since and found(event):
                    return event
            seen = len(self._history)
            if time.monotonic() > end:
                raise Failure("waited %g s in vain: %s" % (PATIENCE, what))
            self.pump(0.1)

    def wait_for(self, kind: str, since: float, child: Optional[Child] = None) -> Event:
        what = "%s of %s" % (kind, child.name if child else "any node")
        return self.wait(
            what, lambda e: e.kind == kind and child in (None, e.child), since
        )

    def wait_for_members(self, *children: Child) -> None:
        for child in children:
            self.wait_for("joined", 0, child)

    def primary(self) -> Child:
        for child in self._children:
            if child.state == "primary":
                return child
        raise Failure("nobody is primary")

    def measured(self, cause: str, effect: str, seconds: float) -> None:
        self._results.append((cause, effect, seconds))
        self.view.say("%s -> %s: %.3f s" % (cause, effect, seconds), BOLD)

    # the steps

    def form(self) -> None:
        self.view.step("Three nodes start at once on an empty folder")
        begin = time.monotonic()
        children = [self.start("node%d" % number) for number in (1, 2, 3)]
        first = self.wait_for("start", begin)
        joined = self.wait_for("joined", begin, first.child)
        self.measured("first node joined", "it is primary", first.at - joined.at)
        self.wait_for_members(*children)

    def kill(self) -> None:
        victim = self.primary()
        self.view.step("kill -9 of the primary, %s" % victim.name)
        at = time.monotonic()
        victim.process.kill()
        victim.state = "killed"
        started = self.wait_for("start", at)
        victim.process.wait()
        self._judge.died(victim, at)
        self.measured("kill -9 of the primary", "next start", started.at - at)
        self.rest()
        self.wait_for_members(self.start(victim.name))

    def freeze(self) -> None:
        victim = self.primary()
        self.view.step("The primary, %s, is frozen (SIGSTOP)" % victim.name)
        at = time.monotonic()
        victim.process.send_signal(signal.SIGSTOP)
        victim.state, victim.frozen_at = "frozen", time.monotonic()
        started = self.wait_for("start", at)
        self.measured("primary frozen", "next start", started.at - at)
        self.rest()
        self.view.step("%s wakes up (SIGCONT)" % victim.name)
        woken = time.monotonic()
        victim.process.send_signal(signal.SIGCONT)
        reads = self.wait_for("reads", woken, victim)
        if reads.details["primary"] or reads.details["last"] > started.at:
            raise Failure("the woken node still read is_primary as true")
        stopping = self.wait_for("stopping", woken, victim)
        self.measured("primary woken", "its stop callback", stopping.at - woken)
        self.wait_for("stopped", woken, victim)
        victim.frozen_at = None

    def upgrade(self) -> None:
        old = list(self._children)
        self.view.step("Upgrade: version 1.1 starts, the nodes of version 1.0 leave")
        begin = time.monotonic()
        new = [self.start("node4", "1.1")]
        joined = self.wait_for("joined", begin, new[0])
        started = self.wait(
            "start of version 1.1",
            lambda e: e.kind == "start" and e.child.version == "1.1",
            begin,
        )
        self.measured("version 1.1 joined", "it is primary", started.at - joined.at)
        for child in old:
            self.wait_for("exit", begin, child)
            self.wait_for("left", begin, child)
            child.process.wait(PATIENCE)
        self._children = new
        new += [self.start("node%d" % number, "1.1") for number in (5, 6)]
        self.wait_for_members(*new)

    def hand_over(self) -> None:
        leaver = self.primary()
        self.view.step("Handover: the primary, %s, is stopped in order" % leaver.name)
        at = time.monotonic()
        leaver.stop()
        stopped = self.wait_for("stopped", at, leaver)
        started = self.wait_for("start", at)
        seconds = started.at - stopped.at
        self.measured("stop callback returned", "next start", seconds)
        self.wait_for("left", at, leaver)
        self._children.remove(leaver)

    def end(self) -> None:
        self.view.step("All are stopped")
        at = time.monotonic()
        last = self.primary()
        for child in sorted(self._children, key=lambda child: child is last):
            child.stop()  # the primary last, so that nobody takes over for a moment
            self.wait_for("left", at, child)

    def run(self) -> None:
        steps = [self.form, self.kill, self.freeze, self.upgrade, self.hand_over]
        for step in steps:
            if step == self.freeze and not CAN_FREEZE:
                continue  # Windows
            step()
            self.rest()
        self.end()

    def close(self) -> None:
        for child in self._every_child:
            if child.process.poll() is None and child.frozen_at is not None:
                child.process.send_signal(signal.SIGCONT)
            child.close()
            while not self._inbox.empty():
                self.take(self._inbox.get())
            self._judge.died(child, time.monotonic())

    def summary(self) -> List[str]:
        faults = self._judge.faults()
        paint = self.view.paint
        print("\n" + paint("%-24s %-19s %10s" % ("cause", "effect", "seconds"), BOLD))
        for cause, effect, seconds in self._results:
            print("%-24s %-19s %10.3f" % (cause, effect, seconds))
        detection = SETTINGS["hb_timeout"] + (MISSED - 1) * SETTINGS["check_interval"]
        print("\nDetection time D = T + (M - 1) * C = %.1f s." % detection)
        for fault in faults:
            print(paint("FAILED: " + fault, RED))
        if not faults:
            text = "At most one primary at any time, in %d terms, each above the last."
            print(paint(text % len(self._judge.terms), GREEN))
        return faults

    def print_logs(self) -> None:
        for name in sorted(os.listdir(self._folder)):
            if name.endswith(".log"):
                with open(os.path.join(self._folder, name)) as file:
                    print("--- %s\n%s" % (name, file.read()))


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="cluster-demo-") as folder:
        demo = Demo(folder)
        failures: List[str] = []
        try:
            demo.run()
        except (Failure, subprocess.TimeoutExpired) as failure:
            failures.append(str(failure))
            print("FAILED: %s" % failure)
        except KeyboardInterrupt:
            failures.append("interrupted")
        finally:
            demo.close()
        failures += demo.summary()
        if failures and failures != ["interrupted"]:
            demo.print_logs()
        return 1 if failures else 0


if __name__ == "__main__":
    if sys.argv[1:2] == ["--node"]:
        style = "%(asctime)s %(levelname)s %(message)s"
        logging.basicConfig(level=logging.INFO, format=style)
        Node(*sys.argv[2:5]).run()
    else:
        sys.exit(main())
