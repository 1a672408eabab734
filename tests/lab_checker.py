"""Judges a history of the laboratory. Knows nothing of how the nodes work.

Each finding is a sentence that begins with the promise it concerns: S1 (two at one
time), S2 (terms), S3 (a reader was told true too long), S4 (pairing, threads).
"""

import collections
import glob
import json
import os

FOREVER = float("inf")
WAKING = 1.0  # seconds within which a process that wakes has begun to stop

Span = collections.namedtuple("Span", "run begin stop end term")
"""One primary: start callback begins, stop callback begins, it is over."""


def load(folder):
    """All events of all processes, in the order of one clock."""
    events = []
    for path in sorted(glob.glob(os.path.join(folder, "*.jsonl"))):
        with open(path, "rb") as file:
            lines = file.read().split(b"\n")
        events += [json.loads(line) for line in lines[:-1]]  # the last may be torn
    return sorted(events, key=lambda event: event["at"])


def by_run(events):
    runs = collections.defaultdict(list)
    for event in events:
        if event["e"] != "fault":
            runs[event["run"]].append(event)
    return runs


def kills(events):
    return {e["run"]: e["at"] for e in events if e.get("what") == "killed"}


def pauses(events):
    """For each run, when it was kept from running: (from, to)."""
    found, open_at = collections.defaultdict(list), {}
    for event in events:
        if event.get("what") == "paused":
            if event["value"]:
                open_at[event["run"]] = event["at"]
            elif event["run"] in open_at:
                span = (open_at.pop(event["run"]), event["at"])
                found[event["run"]].append(span)
    for run, at in open_at.items():
        found[run].append((at, FOREVER))
    return found


def spans(events):
    """The times in which each run was primary, by its callbacks."""
    found = []
    killed = kills(events)
    for run, own in by_run(events).items():
        begin = stop = None
        for event in own:
            if event["e"] == "start":
                begin, stop, term = event["at"], FOREVER, event["term"]
            elif event["e"] == "stop" and begin is not None:
                stop = event["at"]
            elif event["e"] == "stopped" and begin is not None:
                found.append(Span(run, begin, stop, event["at"], term))
                begin = None
        if begin is not None:
            end = killed.get(run, FOREVER)
            found.append(Span(run, begin, min(stop, end), end, term))
    return sorted(found, key=lambda span: span.begin)


def _slept_through(span, other, paused):
    """Was it kept from running when the other began, and stopped on waking?"""
    return any(
        at < other.begin < woken + WAKING and span.stop < woken + WAKING
        for at, woken in paused.get(span.run, [])
    )


def overlaps(events):
    """S1: pairs of spans; a process that was paused past its lease is excused."""
    all_spans, paused = spans(events), pauses(events)
    return [
        (span, other)
        for index, span in enumerate(all_spans)
        for other in all_spans[index + 1 :]
        if other.begin < span.end and not _slept_through(span, other, paused)
    ]


def _check_terms(events):
    highest = 0
    for span in spans(events):
        if 0 < span.term <= highest:
            yield "S2: %s started with term %d after %d" % (
                span.run, span.term, highest,
            )  # fmt: skip
        highest = max(highest, span.term)


def truths(events):
    """For each run, when `is_primary` certainly read true: (first, last, term)."""
    found = []
    for run, own in by_run(events).items():
        since = None
        for event in own:
            if event["e"] != "primary":
                continue
            if since is not None:
                found.append((run, since[0], event["last_true"], since[1]))
            since = (event["at"], event["term"]) if event["term"] else None
    return found


def _check_reads(events, timings):
    all_truths, paused = truths(events), pauses(events)
    for index, (run, begin, end, term) in enumerate(all_truths):
        for other, begins, ends, _ in all_truths[index + 1 :]:
            if begin <= ends and begins <= end and run != other:
                yield "S3: is_primary was true for %s and %s at once" % (run, other)
        for at, woken in paused.get(run, []):
            if woken - at > timings.L and begin < at and woken <= end:
                yield "S3: %s woke after %.1f s, and is_primary was true" % (
                    run, woken - at,
                )  # fmt: skip


def _check_pairs(events):
    killed = kills(events)
    for run, own in by_run(events).items():
        begun = {"start": 0, "started": 0, "stop": 0, "stopped": 0}
        for event in own:
            if event["e"] not in begun:
                continue
            begun[event["e"]] += 1
            ahead = begun["start"] - begun["stop"]
            if ahead not in (0, 1):
                yield "S4: %s: %s is out of order" % (run, event)
        left = any(event["e"] == "left" for event in own)
        if left and run not in killed and begun["start"] != begun["stopped"]:
            yield "S4: %s left, and its callbacks are not paired" % run


def _check_threads(events):
    for run, own in by_run(events).items():
        over = False
        for event in own:
            over = over or event["e"] in ("exit", "left", "refused")
            over = over or (event["e"] == "order" and event["do"] == "stop")
            if event["e"] == "died":
                yield "S4: %s: a thread died: %s" % (run, event["text"])
            if event["e"] == "threads" and event["dead"] and not over:
                yield "S4: %s: threads are dead: %s" % (run, event["dead"])
            if event["e"] == "log" and event["level"] in ("CRITICAL",):
                yield "S4: %s: %s" % (run, event["text"])
            if event["e"] == "log" and "could not be handled" in event["text"]:
                yield "S4: %s: %s" % (run, event["text"])


def check(events, timings):
    """All findings: an empty list is the verdict that the promises held."""
    findings = [
        "S1: %s (term %d) began %.3f s before %s (term %d) was over"
        % (b.run, b.term, min(a.end, b.end) - b.begin, a.run, a.term)
        for a, b in overlaps(events)
    ]
    findings += _check_terms(events)
    findings += _check_reads(events, timings)
    findings += _check_pairs(events)
    findings += _check_threads(events)
    return findings


def drops(events):
    """How often each run saw a member vanish that was not killed and did not leave:
    {(who saw it, who vanished): times}."""
    gone = set()
    counts = collections.Counter()
    ids = {e["id"]: e["run"] for e in events if e["e"] == "joined"}
    before = {}
    for event in events:
        if event.get("what") == "killed" or event["e"] in ("left", "exit"):
            gone.add(event["run"])
        if event["e"] == "order" and event["do"] == "stop":
            gone.add(event["run"])
        if event["e"] == "view":
            members = set(event["nodes"].values())
            for missing in before.get(event["run"], set()) - members:
                if ids.get(missing) not in gone:
                    counts[event["run"], ids.get(missing)] += 1
            before[event["run"]] = members
    return counts


def without_primary(events):
    """The times between the first start and the last event in which nobody was."""
    found, covered = [], None
    for span in spans(events):
        if covered is not None and span.begin > covered:
            found.append((covered, span.begin))
        covered = span.end if covered is None else max(covered, span.end)
    if covered is not None and covered < events[-1]["at"]:
        found.append((covered, events[-1]["at"]))
    return found
