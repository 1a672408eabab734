"""The contract suite for storage backends: what every one of them must do.

To run it on a backend of your own, in a test module of yours:

    from contract import StorageContract

    class TestMyBackend(StorageContract):
        @pytest.fixture(autouse=True)
        def store(self, tmp_path):
            self.address = make_an_empty_store(tmp_path)

        def make_factory(self):
            return functools.partial(MyBackend, self.address)

        def wipe(self):  # optional
            delete_everything(self.address)

The environment variable CONTRACT_RACES says how many terms are raced for.
"""

import multiprocessing
import os
import threading

import pytest

from cluster import Lease, NodeRecord, ProcessIdentity

RACES = int(os.environ.get("CONTRACT_RACES", "10000"))
RACERS = 4
PATIENCE = 300  # seconds after which a process that says nothing has failed
CLUSTER = "jobs"

A, B, C = "a" * 16, "b" * 16, "c" * 16
LEASE = Lease(1, 1, A, False, False, frozenset(), 5.0, 300.0, 60.0)
RECORD = NodeRecord(
    name="n1", incarnation=A, host="10.0.0.1", port=7000, version="1.0rc1 \u20ac",
    join_number=3, joined_at=1.7e9 + 0.1, stopped_term=2**63 - 1, running_term=7,
    notice=9,
    process=ProcessIdentity("boot", "machine", 42, 99, "pid:[1]", "net:[2]", "t", True),
)  # fmt: skip

ODD_NAMES = [
    "a/b", "a\\b", "/", "..", "../../escape", ".", ".hidden", "~", "~/x", "-rf", "a:b",
    "con", "NUL", "aux.json", "a\nb", "\n", "a\0b", " ", " a ", "a.", "%41", "%", "*?",
    "a|b<c>\"'", "node-x.json", "tmp-" + A, "\U0001f389", "\u00e9", "e\u0301",
    "\u20ac" * 66, "x" * 200, "X" * 200, "/" * 200, "\x7f", "\u202e",
]  # fmt: skip


def name_of(value):
    """Names test cases: most odd names can't be shown."""
    return ascii(value)[:20].replace("\\", "_")


def lease(term, counter, holder=A, roster=(), **changes):
    value = LEASE._replace(term=term, counter=counter, holder=holder)
    return value._replace(roster=frozenset(roster), **changes)


def in_processes(task, *arguments, count=RACERS):
    """What `task(number, barrier, *arguments)` returned in each of some processes."""
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(count)
    processes, pipes = [], []
    try:
        for number in range(count):
            pipe, child_end = context.Pipe(False)
            process = context.Process(
                target=_run, args=(child_end, task, number, barrier) + arguments
            )
            process.start()
            child_end.close()
            processes.append(process)
            pipes.append(pipe)
        return [_answer(pipe) for pipe in pipes]
    finally:
        for process in processes:
            process.terminate()
            process.join()


def _run(pipe, task, number, barrier, *arguments):
    try:
        pipe.send((True, task(number, barrier, *arguments)))
    except BaseException as error:
        barrier.abort()
        pipe.send((False, "%s: %s" % (type(error).__name__, error)))
        raise


def _answer(pipe):
    assert pipe.poll(PATIENCE), "a process does not answer"
    done, answer = pipe.recv()
    assert done, answer
    return answer


def _open_at_once(number, barrier, factory):
    backend = factory()
    barrier.wait(PATIENCE)
    return backend.open(CLUSTER)


def _join_often(number, barrier, factory, times):
    backend = factory()
    backend.open(CLUSTER)
    barrier.wait(PATIENCE)
    return [backend.next_join_number() for _ in range(times)]


def _claim_first(number, barrier, factory):
    backend = factory()
    backend.open(CLUSTER)
    barrier.wait(PATIENCE)
    return backend.swap_lease(None, lease(1, number, "%016x" % number))


def _claim_until(number, barrier, factory, last):
    """Claims each next term until `last` is reached; the terms that were won."""
    backend = factory()
    backend.open(CLUSTER)
    me, won, attempt = "%016x" % number, [], 0
    barrier.wait(PATIENCE)
    while True:
        found = backend.read().lease
        if found is not None and found.term >= last:
            return won
        attempt += 1
        new = lease(found.term + 1 if found else 1, attempt, me)
        if backend.swap_lease(found, new):
            won.append(new.term)


class StorageContract:
    """Subclass it as `TestSomething` and override `make_factory`."""

    races = RACES
    """How many terms are raced for; fewer where a swap is slow."""

    def make_factory(self):
        """A picklable callable that returns a new, unopened backend.

        Within one test all of them are on one store, which is empty at first.
        """
        raise NotImplementedError

    def make_backend(self):
        """A new, unopened backend; override it alone if processes can't share one."""
        return self.make_factory()()

    def wipe(self):
        """Empties the store in place, its identity included."""
        pytest.skip("this storage can't be wiped in place")

    def opened(self):
        backend = self.make_backend()
        backend.open(CLUSTER)
        return backend

    # ---- opening and closing

    def test_opening_again_gives_the_same_id(self):
        backend = self.make_backend()
        first = backend.open(CLUSTER)
        assert backend.open(CLUSTER) == first
        assert self.make_backend().open(CLUSTER) == first

    def test_the_id_is_16_hexadecimal_digits(self):
        cluster_id = self.make_backend().open(CLUSTER)
        assert len(cluster_id) == 16
        assert set(cluster_id) <= set("0123456789abcdef")

    def test_opening_again_changes_nothing(self):
        backend = self.opened()
        backend.write_node(RECORD)
        assert backend.swap_lease(None, LEASE)
        before = backend.read()
        backend.open(CLUSTER)
        assert backend.read() == before
        assert self.opened().read() == before

    def test_processes_that_race_to_create_the_store_get_one_id(self):
        ids = in_processes(_open_at_once, self.make_factory())
        assert len(set(ids)) == 1
        assert self.make_backend().open(CLUSTER) == ids[0]

    @pytest.mark.parametrize("name", [CLUSTER.upper()] + ODD_NAMES, ids=name_of)
    def test_clusters_of_different_names_are_apart(self, name):
        backend, other = self.opened(), self.make_backend()
        other.open(name)
        backend.write_node(RECORD)
        assert backend.swap_lease(None, LEASE)
        assert other.read()[1:] == (None, ())
        other.write_node(RECORD._replace(name="n2"))
        assert backend.read()[1:] == (LEASE, (RECORD,))

    def test_closing_is_idempotent_and_opening_after_it_is_legal(self):
        backend = self.make_backend()
        backend.close()
        cluster_id = backend.open(CLUSTER)
        backend.write_node(RECORD)
        backend.close()
        backend.close()
        assert backend.open(CLUSTER) == cluster_id
        assert backend.read().nodes == (RECORD,)

    # ---- node records

    def test_a_new_store_is_empty(self):
        backend = self.make_backend()
        cluster_id = backend.open(CLUSTER)
        for fresh in (False, True):
            assert backend.read(fresh) == (cluster_id, None, ())

    @pytest.mark.parametrize("name", ["n1"] + ODD_NAMES, ids=name_of)
    def test_a_record_is_read_back_equal_and_removed(self, name):
        record = RECORD._replace(name=name)
        backend, other = self.opened(), self.opened()
        backend.write_node(record)
        assert backend.read().nodes == other.read().nodes == (record,)
        assert type(other.read().nodes[0].process) is ProcessIdentity
        other.remove_node(name, record.incarnation)
        assert backend.read().nodes == other.read().nodes == ()

    def test_a_record_of_defaults_is_read_back_equal(self):
        record = NodeRecord("n1", A, "::1", 65535)
        backend = self.opened()
        backend.write_node(record)
        assert self.opened().read().nodes == backend.read().nodes == (record,)

    def test_names_that_differ_little_are_apart(self):
        names = ODD_NAMES + ["n1", "N1", "n1 ", "n1\0", "x" * 199, "x" * 199 + "X"]
        backend = self.opened()
        for name in names:
            backend.write_node(RECORD._replace(name=name))
        assert sorted(r.name for r in backend.read().nodes) == sorted(names)

    def test_each_rewrite_of_a_record_is_seen(self):
        backend, reader = self.opened(), self.opened()
        for notice in range(200):
            record = RECORD._replace(notice=100 + notice)  # of one length
            backend.write_node(record)
            assert reader.read().nodes == (record,)

    def test_an_older_incarnation_does_not_replace_a_newer_one(self):
        old, new = RECORD, RECORD._replace(incarnation=B, join_number=4)
        backend = self.opened()
        for record in (old, new, old):
            backend.write_node(record)
        assert new in backend.read().nodes

    def test_the_removal_of_an_older_incarnation_leaves_the_newer_one(self):
        old, new = RECORD, RECORD._replace(incarnation=B, join_number=4)
        backend, other = self.opened(), self.opened()
        backend.write_node(old)
        backend.write_node(new)
        other.remove_node("n1", old.incarnation)
        assert backend.read().nodes == (new,)

    def test_a_removal_of_what_is_not_there_does_nothing(self):
        backend = self.opened()
        backend.write_node(RECORD)
        backend.remove_node("n1", C)
        backend.remove_node("n2", A)
        backend.remove_node("N1", A)
        assert backend.read().nodes == (RECORD,)

    def test_a_removed_record_can_be_written_again(self):
        backend, other = self.opened(), self.opened()
        for _ in range(3):
            backend.write_node(RECORD)
            assert other.read().nodes == (RECORD,)
            other.remove_node("n1", A)
            assert other.read().nodes == ()

    def test_a_member_never_seems_absent_while_records_are_rewritten(self):
        backend, reader = self.opened(), self.opened()
        backend.write_node(RECORD)
        assert len(reader.read().nodes) == 1

        def rewrite():
            for notice in range(300):
                backend.write_node(RECORD._replace(notice=notice))

        for snapshot in read_during(rewrite, reader):
            assert [r.name for r in snapshot.nodes] == ["n1"]

    # ---- join numbers

    def test_join_numbers_rise_from_above_zero(self):
        backend, other = self.opened(), self.opened()
        numbers = [b.next_join_number() for b in (backend, other, other, backend)]
        assert numbers[0] > 0
        assert numbers == sorted(set(numbers))
        assert self.opened().next_join_number() > numbers[-1]

    def test_join_numbers_of_racing_processes_rise_and_are_all_different(self):
        lists = in_processes(_join_often, self.make_factory(), 50)
        assert all(numbers == sorted(numbers) for numbers in lists)
        together = sum(lists, [])
        assert len(set(together)) == len(together)
        assert self.opened().next_join_number() > max(together)

    # ---- the lease

    def test_the_first_lease_is_stored_once(self):
        backend, other = self.opened(), self.opened()
        assert backend.swap_lease(None, LEASE) is True
        assert other.swap_lease(None, lease(1, 2, B)) is False
        assert backend.read().lease == other.read(fresh=True).lease == LEASE

    def test_a_swap_of_what_is_not_there_changes_nothing(self):
        backend = self.opened()
        assert backend.swap_lease(LEASE, lease(2, 1)) is False
        assert backend.read().lease is None
        assert backend.swap_lease(None, LEASE)
        for other in (lease(1, 2), lease(2, 1), lease(0, 1)):
            assert backend.swap_lease(other, lease(3, 3, B)) is False
        assert backend.swap_lease(None, lease(3, 3, B)) is False
        assert backend.read().lease == LEASE

    def test_a_swap_of_what_is_there_replaces_it(self):
        backend, other = self.opened(), self.opened()
        chain = [None, LEASE, lease(1, 2, started=True), lease(2, 1, B), lease(3, 9)]
        for expected, new in zip(chain, chain[1:]):
            assert other.swap_lease(expected, new) is True
            assert backend.read().lease == new
            assert backend.swap_lease(expected, new._replace(holder=C)) is False
        assert other.read().lease == chain[-1]

    @pytest.mark.parametrize(
        "value",
        [
            lease(1, 0, roster=[B]),
            lease(2**63 - 1, 2**63 - 1, "f" * 16, [B], started=True, released=True),
            lease(1, 1, started=True),
            lease(1, 1, released=True),
            lease(1, 1, duration=0.3, freeze_limit=0, stop_timeout=1e-5),
            lease(1, 1, duration=1 / 3, freeze_limit=1e9 - 1, stop_timeout=5),
            lease(1, 1, roster=["%016x" % number for number in range(500)]),
        ],
        ids=str,
    )
    def test_a_lease_is_read_back_equal(self, value):
        backend = self.opened()
        assert backend.swap_lease(None, value)
        assert backend.read().lease == self.opened().read().lease == value

    def test_a_roster_is_carried_changed_and_kept(self):
        backend, other = self.opened(), self.opened()
        rosters = [[], [B], [B], [B, C], [B, C], [C], [], [], [C], [C]]
        expected = None
        for counter, roster in enumerate(rosters, 1):
            new = lease(1, counter, roster=roster)
            assert backend.swap_lease(expected, new)
            assert other.read().lease == backend.read().lease == new
            assert self.opened().read().lease == new
            expected = new

    def test_a_new_holder_carries_the_roster_of_the_deposed(self):
        backend, other = self.opened(), self.opened()
        old, claim = lease(1, 5, A, [B, C]), lease(2, 1, B, [B, C])
        assert backend.swap_lease(None, old)
        assert other.swap_lease(old, claim)
        renewed = lease(2, 2, B, [B, C], started=True)
        assert other.swap_lease(claim, renewed)
        assert backend.read().lease == renewed

    def test_an_unknown_roster_never_becomes_an_empty_one(self):
        backend = self.opened()
        assert backend.swap_lease(None, LEASE._replace(roster=None))
        assert self.opened().read().lease.roster is None

    def test_a_wish_for_a_successor_and_a_pause_are_kept_and_lifted(self):
        backend, other = self.opened(), self.opened()
        values = [
            LEASE,
            lease(1, 2, paused=True),
            lease(1, 10**6, roster=[B], step_down=True, successor=B, started=True),
            lease(1, 10**6 + 1, released=True, successor=B, paused=True),
            lease(1, 10**6 + 2),
        ]
        expected = None
        for new in values:
            assert backend.swap_lease(expected, new)
            assert other.read().lease == backend.read().lease == new
            assert self.opened().read().lease == new
            expected = new

    def test_a_lost_swap_leaves_the_roster_of_the_winner(self):
        backend, other = self.opened(), self.opened()
        assert backend.swap_lease(None, LEASE)
        won = lease(2, 1, B, [A])
        assert backend.swap_lease(LEASE, won)
        assert not other.swap_lease(LEASE, lease(2, 1, C, [B]))
        assert not other.swap_lease(LEASE, lease(2, 2, C, [C]))
        assert backend.read().lease == other.read().lease == won

    def test_the_expected_lease_is_told_by_its_stamp(self):
        backend = self.opened()
        assert backend.swap_lease(None, lease(1, 1, roster=[B]))
        assert backend.swap_lease(LEASE._replace(roster=None), lease(1, 2))
        assert backend.read().lease == lease(1, 2)

    def test_a_reader_sees_every_lease_as_a_whole_and_none_go_back(self):
        backend, reader = self.opened(), self.opened()
        assert backend.swap_lease(None, LEASE)

        def renew():
            old = LEASE
            for counter in range(2, 600):
                # the roster tells whether it is that of this very lease
                roster = {"%016x" % (counter // 2)}
                new = lease(1 + counter // 5, counter, A, roster)
                assert backend.swap_lease(old, new)
                old = new

        last = (0, 0)
        for snapshot in read_during(renew, reader):
            found = snapshot.lease
            assert found is not None
            assert found.stamp >= last
            last = found.stamp
            if found.counter > 1 and found.roster is not None:
                assert found.roster == {"%016x" % (found.counter // 2)}
        assert reader.read().lease.counter == 599

    def test_of_processes_that_race_for_the_first_term_one_wins(self):
        wins = in_processes(_claim_first, self.make_factory())
        assert sorted(wins) == [False] * (RACERS - 1) + [True]
        assert self.opened().read().lease.holder == "%016x" % wins.index(True)

    def test_of_racing_processes_exactly_one_wins_each_term(self):
        won = in_processes(_claim_until, self.make_factory(), self.races)
        assert sorted(sum(won, [])) == list(range(1, self.races + 1))
        last = self.opened().read().lease
        assert last.term == self.races
        assert self.races in won[int(last.holder, 16)]

    # ---- wiped in place

    def test_a_wiped_store_has_no_id_and_is_not_taken_for_a_new_one(self):
        backend = self.opened()
        backend.write_node(RECORD)
        assert backend.swap_lease(None, lease(1, 1, roster=[B]))
        self.wipe()
        assert backend.read() == (None, None, ())
        assert backend.read(fresh=True) == (None, None, ())

    def test_a_wiped_store_is_repaired_under_its_old_id(self):
        backend, other = self.opened(), self.make_backend()
        cluster_id = other.open(CLUSTER)
        before = [backend.next_join_number() for _ in range(3)]
        assert backend.swap_lease(None, LEASE)
        self.wipe()
        backend.repair(cluster_id)
        other.repair(cluster_id)
        assert backend.read() == other.read() == (cluster_id, None, ())
        assert self.make_backend().open(CLUSTER) == cluster_id
        backend.write_node(RECORD)
        assert other.read().nodes == (RECORD,)
        assert backend.next_join_number() > max(before)
        assert other.swap_lease(None, lease(7, 1, B, [A]))
        assert backend.swap_lease(None, lease(7, 2)) is False
        assert backend.read().lease == lease(7, 1, B, [A])

    def test_a_repair_of_a_whole_store_changes_nothing(self):
        backend = self.make_backend()
        cluster_id = backend.open(CLUSTER)
        number = backend.next_join_number()
        backend.write_node(RECORD)
        assert backend.swap_lease(None, lease(1, 1, roster=[B]))
        before = backend.read()
        backend.repair(cluster_id)
        assert backend.read() == before
        assert backend.next_join_number() > number


def read_during(action, reader):
    """Each snapshot that was read while an action ran, and one after it."""
    failed = []

    def run():
        try:
            action()
        except BaseException as error:
            failed.append(error)
            raise

    thread = threading.Thread(target=run)
    thread.start()
    try:
        while thread.is_alive():
            yield reader.read()
    finally:
        thread.join()
    assert not failed
    yield reader.read()
