"""Health checks, metrics and the status page, over real HTTP."""

import json
import multiprocessing
import shutil
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request

import pytest

import cluster
from test_control import Lab, until

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


@pytest.fixture
def lab(tmp_path):
    lab = Lab(tmp_path)
    yield lab
    lab.close()


def get(control, path, method="GET"):
    """Status code, media type and body."""
    url = "http://%s:%d%s" % (control.health_address + (path,))
    request = urllib.request.Request(url, method=method)
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status, answer.headers["Content-Type"], answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.headers["Content-Type"], error.read().decode()


def two(lab):
    first = lab.started("n1", health_port=0)[0]
    second = lab.node("n2 <b>", health_port=0, own_version=None)
    second.start()
    until(lambda: all(len(c.cluster.nodes) == 2 for c in (first, second)))
    until(lambda: second.cluster.own_node.is_active)
    return first, second


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_a_load_balancer_is_sent_to_the_primary_alone(lab, method):
    first, second = two(lab)
    codes = [[get(control, path, method)[0] for path in ("/primary", "/member", "/live")]
             for control in (first, second)]  # fmt: skip
    assert codes == [[200, 200, 200], [503, 200, 200]]
    first.step_down()
    until(lambda: get(second, "/primary", method)[0] == 200)
    assert get(first, "/primary", method)[0] == 503


def test_the_reason_stands_in_the_answer(lab):
    _, second = two(lab)
    assert get(second, "/primary")[2] == "'n1' is the primary\n"


def test_status_is_that_of_the_control(lab):
    first, _ = two(lab)
    code, kind, body = get(first, "/status?x=1")
    assert (code, kind) == (200, "application/json; charset=utf-8")
    told, known = json.loads(body), first.status()
    assert told.keys() == known.keys()
    assert told["term"] == first.term
    assert [m["name"] for m in told["members"]] == ["n1", "n2 <b>"]


def test_an_unknown_path_names_the_known_ones(lab):
    code, _, body = get(lab.started("n1", health_port=0)[0], "/etc/passwd")
    assert code == 404
    assert "/metrics" in body


def test_metrics_are_understood_by_prometheus(lab):
    parser = pytest.importorskip("prometheus_client.parser")
    odd = 'n"1\\\nx'
    control = lab.started(odd, health_port=0)[0]
    code, kind, body = get(control, "/metrics")
    assert code == 200
    assert kind.startswith("text/plain; version=0.0.4")
    values = {}
    for family in parser.text_string_to_metric_families(body):
        for sample in family.samples:
            assert sample.labels == {"cluster": "lab", "node": odd}
            values[sample.name] = sample.value
    assert values["cluster_is_primary"] == values["cluster_terms_started_total"] == 1
    assert values["cluster_term"] == control.term
    assert values["cluster_members"] == values["cluster_storage_ok"] == 1
    assert values["cluster_lost_members"] == 0


def test_metrics_count_what_was_dropped(lab):
    control = lab.started("n1", health_port=0)[0]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.sendto(b"garbage", ("127.0.0.1", control.cluster.own_node.port))
    name = "cluster_packets_dropped_total"
    until(lambda: '%s{cluster="lab",node="n1"} 1.0' % name in get(control, "/metrics")[2])


def test_none_is_opened_unless_asked_for(lab):
    assert lab.started("n1")[0].health_address is None


def test_only_this_host_is_listened_to_by_default(lab):
    assert lab.started("n1", health_port=0)[0].health_address[0] == "127.0.0.1"


def test_after_stop_and_join_thread_and_port_are_gone(lab):
    control = lab.started("n1", health_port=0)[0]
    host, port = control.health_address
    control.stop()
    control.join(10)
    assert control.health_address is None
    assert "cluster-health" not in [thread.name for thread in threading.enumerate()]
    again = lab.started("n1", health_port=port)[0]
    assert get(again, "/live")[0] == 200


def test_a_port_that_is_taken_is_a_clear_error_and_leaves_nothing(lab):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen(1)
        port = taken.getsockname()[1]
        control = lab.node("n1", health_port=port)
        with pytest.raises(cluster.ClusterError, match="health_port %d" % port):
            control.start()
    control.start()
    assert get(control, "/live")[0] == 200


@pytest.mark.parametrize("port", [-1, 65536, "80", 1.5, True])
def test_an_impossible_port_is_refused(lab, port):
    with pytest.raises(ValueError, match="health_port"):
        lab.node("n1", health_port=port)


def test_a_client_that_never_asks_holds_nobody_up(lab):
    control = lab.started("n1", health_port=0)[0]
    idle = [socket.create_connection(control.health_address) for _ in range(20)]
    assert get(control, "/live")[0] == 200
    control.stop()
    control.join(5)
    assert not control.is_alive()
    for connection in idle:
        connection.close()


def _serve_in_child(control, pipe):
    pipe.send(control.health_address)


@pytest.mark.skipif(sys.platform == "win32", reason="needs fork")
def test_a_forked_child_lets_go_of_the_port(lab):
    control = lab.started("n1", health_port=0)[0]
    ours, theirs = multiprocessing.Pipe()
    context = multiprocessing.get_context("fork")
    child = context.Process(target=_serve_in_child, args=(control, theirs))
    child.start()
    assert ours.poll(10)
    assert ours.recv() is None
    child.join()
    assert get(control, "/primary")[0] == 200


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium: apt-get install chromium")
def test_the_page_in_a_browser_shows_primary_members_and_transitions(lab, tmp_path):
    first, _ = two(lab)
    url = "http://%s:%d/" % first.health_address
    command = [
        CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic",
        "--no-first-run", "--disable-background-networking",
        "--disable-component-update", "--disable-sync", "--window-size=900,600",
        "--user-data-dir=%s" % (tmp_path / "profile"),
    ]  # fmt: skip
    picture = tmp_path / "page.png"
    dom = subprocess.run(
        command + ["--dump-dom", url], stdout=subprocess.PIPE, timeout=60
    ).stdout.decode()
    assert "n1 is the primary" in dom
    assert "n2 &lt;b&gt;" in dom
    assert "joined" in dom
    subprocess.run(command + ["--screenshot=%s" % picture, url], timeout=60, check=True)
    assert picture.stat().st_size > 5000
    assert not [word for word in ("src=", "href=", "@import") if word in dom]
