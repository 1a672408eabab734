"""Real processes on real databases: killed, frozen, cut off, with the server gone.

CLUSTER_TEST_OUTAGE=60x3 makes each outage 60 s long and repeats it three times.
"""

import os
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

pytest.importorskip("sqlalchemy")
pytest.importorskip("redis")

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from node_program import Node, overlaps, primaries  # noqa: E402
from node_program import until as until_within  # noqa: E402
from servers import (  # noqa: E402
    PASSWORD,
    PLAIN_PASSWORD,
    MariaDB,
    PgBouncer,
    PostgreSQL,
    Proxy,
    Redis,
    SQLite,
)

pytestmark = [
    pytest.mark.processes,
    pytest.mark.skipif(os.name != "posix", reason="needs POSIX signals"),
]
OUTAGE, _, REPEATS = os.environ.get("CLUSTER_TEST_OUTAGE", "10x1").partition("x")
# D = 2.5 s, L = 2 s, R = 1.3 s, a renewal each 0.4 s
SETTINGS = dict(hb_interval=0.3, hb_timeout=2, check_interval=0.5, hb_missed_count=2)
RENEWAL = 0.4
# R = 3.3 s, as by default: a frozen primary stops if one member is starved for so long
CALM = dict(SETTINGS, hb_timeout=5, check_interval=1)
DATABASES = (PostgreSQL, MariaDB, SQLite, Redis)


class Lab:
    """A database, and a cluster on it."""

    def __init__(self, kind, path):
        self.server = kind()
        self.path = path / kind.__name__
        self.path.mkdir()
        self.nodes, self.proxies = [], {}

    def node(self, name, proxied=False, **settings):
        url = self.server.url
        if proxied:
            self.proxies[name] = Proxy(self.server.port)
            url = url.replace(":%d/" % self.server.port, ":%d/" % self.proxies[name].port)
        settings = dict(settings or SETTINGS, storage=url, log=str(self.path / name))
        self.nodes.append(Node(name, None, **settings))
        return self.nodes[-1]

    def log(self, node):
        return (self.path / node.name).read_text()

    def __enter__(self):
        self.server.start()
        return self

    def __exit__(self, *error):
        for node in self.nodes:
            node.close()
        for proxy in self.proxies.values():
            proxy.close()
        self.server.close()
        if error[0] is None:
            assert overlaps(self.nodes) == []
        for node in self.nodes:
            for secret in (PASSWORD, PLAIN_PASSWORD):
                assert secret not in self.log(node)


def on_each(kinds, path, scenario):
    """Runs a scenario on several databases at once: it waits more than it works."""
    kinds = [kind for kind in kinds if not kind.missing()]
    if not kinds:
        pytest.skip("no database is installed")

    def run(kind):
        try:
            with Lab(kind, path) as lab:
                scenario(lab)
        except BaseException as error:
            error.args = ("%s: %s" % (kind.__name__, error),)
            raise

    with ThreadPoolExecutor(len(kinds)) as pool:
        for done in [pool.submit(run, kind) for kind in kinds]:
            done.result()


def until(condition):
    """Patient: some twenty processes start at once."""
    until_within(condition, 60)


def settled(nodes):
    """Waits until just these are active, and one is primary; returns that one."""
    until(lambda: all(node.all("joined") for node in nodes))
    active = sorted(node.name for node in nodes)
    found = []

    def is_settled():  # on a busy machine the role may move once more meanwhile
        found[:] = primaries(nodes)
        all_see_it = all(node.ask()["active"] == active for node in nodes)
        return len(found) == 1 and all_see_it and primaries(nodes) == found

    until(is_settled)
    return found[0]


def terms(nodes):
    starts = [event for node in nodes for event in node.all("start")]
    return [event["term"] for event in sorted(starts, key=lambda event: event["at"])]


def test_every_database_is_tested_where_ci_runs():
    if os.environ.get("CI") != "true" or os.getuid() != 0:
        pytest.skip("not in CI")
    assert not any(kind.missing() for kind in DATABASES + (PgBouncer,))


def test_failover_handover_and_a_frozen_primary_that_is_fenced(tmp_path):
    def scenario(lab):
        nodes = [lab.node(name) for name in "abcd"]
        first = settled(nodes)
        first.kill()
        nodes.remove(first)
        until(lambda: primaries(nodes))
        second = settled(nodes)
        second.tell("step_down")
        until(lambda: primaries(nodes) and primaries(nodes) != [second])
        third = settled(nodes)
        highest = third.all("start")[-1]["term"]
        third.signal(signal.SIGSTOP)
        others = [node for node in nodes if node is not third]
        until(lambda: primaries(others))
        fourth = primaries(others)[0].all("start")[-1]["term"]
        third.signal(signal.SIGCONT)
        assert third.ask()["is_primary"] is False
        until(lambda: third.all("stopped"))
        found = terms(lab.nodes)
        assert found == sorted(set(found)) and fourth > highest
        # It slept in its term: its callbacks overlap, what they guard refuses its term
        third.events[:] = [e for e in third.events if e["event"] != "start"]

    on_each(DATABASES, tmp_path, scenario)


def test_a_server_that_is_gone_freezes_and_its_return_thaws(tmp_path):
    def scenario(lab):
        nodes = [lab.node(name, **CALM) for name in "abcde"]
        first = settled(nodes)
        term = first.ask()["term"]
        for _ in range(int(REPEATS or 1)):
            lab.server.pause() if isinstance(lab.server, SQLite) else lab.server.kill()
            back_at = time.monotonic() + float(OUTAGE)
            until(lambda: first.ask()["storage"] != "ok")
            while time.monotonic() < back_at:
                time.sleep(0.2)
                assert first.ask()["is_primary"] and primaries(nodes) == [first]
            back = lab.server.resume if isinstance(lab.server, SQLite) else lab.server.start
            back()
            until(lambda: all(node.ask()["storage"] == "ok" for node in nodes))
        assert settled(nodes) is first and first.ask()["term"] == term
        assert terms(nodes) == [term]
        assert not any(node.all("stop") or node.all("exit") for node in nodes)
        for node in nodes:
            # the records of four others, their return, and no line for each try
            assert len(lab.log(node).splitlines()) < 40, lab.log(node)
        told = lab.log(first)
        assert "the storage does not work" in told and "works again after" in told

    on_each(DATABASES, tmp_path, scenario)


def test_a_primary_that_alone_is_cut_off_from_the_server_hands_over(tmp_path):
    def scenario(lab):
        nodes = [lab.node(name, proxied=True) for name in "abc"]
        first = settled(nodes)
        assert_idle_cost(lab, first)
        lab.proxies[first.name].cut()
        until(lambda: first.all("stopped"))
        others = [node for node in nodes if node is not first]
        until(lambda: primaries(others))
        second = primaries(others)[0]
        assert second.all("start")[0]["at"] >= first.all("stopped")[0]["at"]
        lab.proxies[first.name].heal()
        until(lambda: first.ask()["storage"] == "ok" and settled(nodes) is second)

    on_each((PostgreSQL, MariaDB, Redis), tmp_path, scenario)


def assert_idle_cost(lab, primary):
    """What goes over the wire while nothing happens."""
    before = {name: proxy.round_trips for name, proxy in lab.proxies.items()}
    began = time.monotonic()
    while time.monotonic() < began + 5:
        time.sleep(0.1)
    took = time.monotonic() - began
    for name, proxy in lab.proxies.items():
        allowed = took / SETTINGS["check_interval"] + 1
        if name == primary.name:
            allowed = 2 * (took / RENEWAL + 1)
        count = proxy.round_trips - before[name]
        assert took / 2 < count <= allowed, (name, primary.name, count, allowed)
