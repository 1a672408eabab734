"""Throws bytes at whatever reads packets, records and file names, and at the core.

    python tests/fuzz.py --seconds 10        guided by coverage; needs `atheris`

Each target takes any bytes. It fails by any exception but the ValueError that says
that they are no good, or by a core that has grown. `test_fuzz.py` runs the same
targets on random bytes, without atheris.
"""

import argparse
import json
import os
import random
import sys
import tempfile

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)

import cluster  # noqa: E402

TAG = b"\x01the tag"
OWN, FIRST, SECOND, STRANGER = ("%016x" % number for number in range(1, 5))
MOST = 1500  # entries of any container in a core, whatever it was sent


def packet(data):
    """A datagram as it is, behind a right header, and with a right MAC."""
    head = cluster._MAGIC + TAG + bytes.fromhex(OWN)
    signed = head + cluster._mac(head + data, b"secret") + data
    for secret, whole in ((b"", data), (b"", head + bytes(16) + data),
                          (b"secret", data), (b"secret", signed)):  # fmt: skip
        try:
            heartbeat = cluster.decode_heartbeat(whole, TAG, secret, True, OWN)
        except ValueError as error:
            assert len(str(error)) < 300
            continue
        again = cluster.encode_heartbeat(heartbeat, TAG, secret)
        assert cluster.decode_heartbeat(again, TAG, secret) == heartbeat


def stored(data):
    """The JSON of a lease or a record."""
    try:
        value = json.loads(data.decode("utf-8", "surrogatepass"))
    except (ValueError, RecursionError):
        return
    for kind in (cluster.Lease, cluster.NodeRecord):
        try:
            found = kind.from_dict(value)
        except ValueError as error:
            assert len(str(error)) < 500
        else:
            assert kind.from_dict(json.loads(json.dumps(found.to_dict()))) == found


def file_name(data):
    """The name of a file in the folder of a register, and a version."""
    name = data.decode("latin-1")
    for reads in (cluster._lease_from_name, cluster._number, cluster._identity):
        try:
            reads(name)
        except ValueError:
            pass
    assert cluster.version_key(name) == cluster.version_key(name)
    assert set(cluster._quote(name)) <= set("abcdefghijklmnopqrstuvwxyz0123456789_-%~")


def file_in_the_folder(data):
    """What a file among the records, or a roster, has in it."""
    backend, folder = _folder()
    for name in ("node-n2.%s.json" % FIRST, "node-n1.%s.json" % OWN):
        with open(os.path.join(folder, "nodes", name), "wb") as file:
            file.write(data)
    with open(os.path.join(folder, "rosters", "7.%s.1.json" % OWN), "wb") as file:
        file.write(data)
    backend._records, backend._rosters = {}, {}
    snapshot = backend.read()
    assert snapshot.lease is not None and len(snapshot.nodes) <= 2


_made = []


def _folder():
    if not _made:
        holder = tempfile.TemporaryDirectory()
        backend = cluster.SharedFsStorageBackend(holder.name)
        backend.open("fuzz")
        lease = cluster.Lease(7, 1, OWN, True, False, frozenset([FIRST]), 5, 300, 60)
        assert backend.swap_lease(None, lease)
        _made.extend([holder, backend])
    return _made[1], os.path.join(_made[1].path, "cluster-fuzz")


class History:
    """A core, a storage that mostly obeys, and bytes that say what happens to them."""

    def __init__(self, data):
        self.data = data
        self.now = 1000.0
        self.clock = 0
        self.lease = None
        self.records = {}
        self.works = True
        self.events = []
        record = cluster.NodeRecord("own", OWN, "10.0.0.1", 1, "1.0")
        timings = cluster.Timings(1, 3, 2, 1, 3, 20, 5)
        self.core = cluster.Core(timings, record, self.now, 100)

    def byte(self):
        return next(self.data)  # StopIteration ends the history

    def one_of(self, choices):
        return choices[self.byte() % len(choices)]

    def number(self):
        lease = self.lease or self.core.lease
        term, counter = lease.stamp if lease else (0, 0)
        sent = self.core._sent
        number = self.one_of([
            0, 1, sent, max(0, sent - 10**6), term, term + 1, counter,
            counter + 1, self.core._term(), 2**31, 2**62, 2**63 - 1, self.byte(),
        ])  # fmt: skip
        return min(number, 2**63 - 1)

    def id(self):
        if self.byte() % 8 == 0:
            return "%016x" % self.byte()
        return self.one_of([OWN, FIRST, FIRST, SECOND, STRANGER])

    def heartbeat(self):
        self.clock += 1
        sent = self.one_of([self.clock, self.clock, self.number()])
        beat = cluster.Heartbeat(self.id(), OWN, sent, self.number())
        fields = list(cluster.Heartbeat._fields[4:])
        for _ in range(self.byte() % 6):
            field = self.one_of(fields)
            default = cluster.Heartbeat._field_defaults[field]
            if isinstance(default, str):
                value = self.id()
            elif isinstance(default, bool):
                value = True
            else:
                value = self.number()
            beat = beat._replace(**{field: value})
        # exactly as it would come from the wire
        data = cluster.encode_heartbeat(beat, TAG)
        beat = cluster.decode_heartbeat(data, TAG, receiver=OWN)
        return cluster.Heard(beat, ("10.0.0.%d" % self.byte(), self.byte()))

    def record(self):
        record = cluster.NodeRecord(
            self.one_of(["first", "second", "own", "\n"]), self.id(), "10.0.0.2", 2,
            self.one_of([None, "1.0", "0.9", "\ud7ff9"]), self.number(), 0.0,
            self.number(), self.number(), self.number(),
        )  # fmt: skip
        if record.incarnation != OWN:
            self.records[record.incarnation] = record

    def foreign_lease(self):
        roster = [None, frozenset(), frozenset([FIRST]), frozenset([OWN, SECOND])]
        self.lease = cluster.Lease(
            self.number() % 2**62, self.number(), self.id(), bool(self.byte() % 2),
            bool(self.byte() % 2), self.one_of(roster), 3.0, 20.0, 5.0,
        )  # fmt: skip

    def carry_out(self, request):
        if isinstance(request, cluster.Open):
            return STRANGER
        if isinstance(request, cluster.Read):
            nodes = tuple(self.records.values())
            return cluster.Snapshot(
                self.one_of([STRANGER] * 9 + [None]), self.lease, nodes
            )
        if isinstance(request, cluster.Join):
            self.records[OWN] = request.record._replace(join_number=1 + self.byte())
            return self.records[OWN]
        if isinstance(request, cluster.Write):
            self.records[OWN] = request.record
        if isinstance(request, cluster.Remove):
            self.records.pop(request.incarnation, None)
        if isinstance(request, cluster.Swap):
            if self.lease != request.expected:
                return False
            # 2**63 cannot be stored
            self.lease = cluster.Lease.from_dict(request.new.to_dict())
            return True
        return None

    def turn(self):
        what = self.byte() % 16
        events, self.events = self.events, []
        if what < 9:
            events += [self.heartbeat() for _ in range(1 + what % 3)]
        elif what < 12:
            self.now = max(self.now, min(self.core.wake_at, self.now + 5))
        elif what == 12:
            self.now += self.byte() / 10
        elif what == 13:
            self.record()
        elif what == 14:
            self.works = self.byte() % 4 > 0
            if self.byte() % 4 == 0:
                self.foreign_lease()
        else:
            events.append(self.one_of([
                cluster.ProvenDead(self.id()), cluster.StartAsked(),
                cluster.StartAsked(), cluster.StepDownAsked(),
                cluster.Expired(self.core._term()),
            ]))  # fmt: skip
        self.now += 1e-4
        for action in self.core.step(self.now, *events):
            self.obey(action)
        self.check()

    def obey(self, action):
        if isinstance(action, cluster.Call):
            returned = cluster.Returned(action.id, error="it does not work")
            if self.works:
                try:
                    result = self.carry_out(action.request)
                    returned = cluster.Returned(action.id, result)
                except ValueError as error:
                    returned = cluster.Returned(action.id, error=str(error))
            self.events.append(returned)
        elif isinstance(action, cluster.RunCallback):
            self.events.append(cluster.CallbackEnded(action.kind, action.term))
        elif isinstance(action, cluster.Send):
            assert len(cluster.encode_heartbeat(action.heartbeat, TAG)) < 512

    def check(self):
        for name, value in vars(self.core).items():
            if isinstance(value, (dict, list, set, tuple)):
                assert len(value) < MOST, name
        json.dumps([self.core.explain(), self.core.explain_none()])
        self.core.members(), self.core.active(), self.core.storage_state()


def history(data):
    """What happens to a core: hostile heartbeats, records, leases, outages."""
    data = iter(data)
    try:
        while True:
            told = History(data)
            told.events.append(cluster.StartAsked())
            while told.core.role is not cluster.FINISHED:
                told.turn()
    except StopIteration:
        return


TARGETS = [packet, stored, file_name, file_in_the_folder, history]


def seeds():
    """Inputs that are nearly right, for a start."""
    beat = cluster.Heartbeat(
        FIRST, OWN, 5, 4, 3, 2, FIRST, True, answer=True, stopped=2
    )
    whole = cluster.encode_heartbeat(beat, TAG)
    record = cluster.NodeRecord("n2", FIRST, "10.0.0.2", 2, "1.0", 3)
    lease = cluster.Lease(3, 4, FIRST, True, False, frozenset([SECOND]), 3, 20, 5)
    yield 0, whole
    for body in (whole[cluster._HEADER :], b"7", b"[]", b"{}"):
        yield 0, body
    for value in (record, lease):
        for target in (1, 3):
            yield target, json.dumps(value.to_dict()).encode()
    yield 2, cluster._lease_name(lease, -1).encode()
    yield 2, cluster._number_name(7).encode()
    rng = random.Random(1)
    for size in (50, 200, 500):
        yield 4, bytes(rng.getrandbits(8) for _ in range(size))


def run(data):
    """The first byte chooses the target."""
    if data:
        TARGETS[data[0] % len(TARGETS)](data[1:])


def fuzz(seconds, folder):
    """Does not return: atheris ends the process."""
    try:
        import atheris
    except ImportError:
        sys.exit("this needs atheris: pip install '.[fuzz]'")
    global cluster
    del sys.modules["cluster"]
    with atheris.instrument_imports(include=["cluster"]):
        import cluster
    cluster.log.setLevel("CRITICAL")
    corpus = os.path.join(folder, "corpus")
    os.mkdir(corpus)
    for number, (target, data) in enumerate(seeds()):
        with open(os.path.join(corpus, str(number)), "wb") as file:
            file.write(bytes([target]) + data)
    options = ["-max_total_time=%d" % seconds, "-max_len=700", "-rss_limit_mb=1024"]
    options += ["-timeout=20", "-verbosity=0", "-print_final_stats=1"]
    atheris.Setup([sys.argv[0]] + options + [corpus], run)
    atheris.Fuzz()


def main():
    parser = argparse.ArgumentParser(description="fuzzing guided by coverage")
    parser.add_argument("--seconds", type=int, default=60)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        child = os.fork()
        if child == 0:
            tempfile.tempdir = folder
            fuzz(options.seconds, folder)
        status = os.waitpid(child, 0)[1]
    sys.exit(1 if status else 0)


if __name__ == "__main__":
    main()
