"""What is stored and what is sent: read back as written, refused if impossible."""

import json

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import cluster
from cluster import (
    Heartbeat,
    Lease,
    NodeRecord,
    ProcessIdentity,
    Timings,
    decode_heartbeat,
    encode_heartbeat,
)

# no verdict depends on how busy the machine is
patient = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

TAG = b"\x01the tag"
TOP = 2**63 - 1

IDS = st.text("0123456789abcdef", min_size=16, max_size=16)
COUNTS = st.integers(0, TOP)
SECONDS = st.floats(0, 1e9, exclude_max=True) | st.integers(0, 10**9 - 1)
CHARACTERS = st.characters(blacklist_categories=["Cs"])  # a surrogate is no text
WORDS = st.text(CHARACTERS, max_size=20)
NAMES = st.text(CHARACTERS, min_size=1, max_size=50)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4)
    | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=10,
)
NO_TEXT = [None, 1, True, [], {}, ["a"]]
NO_ID = NO_TEXT + ["", "0" * 15, "0" * 17, "A" * 16, "0" * 16 + "\n", "\u0661" * 16]
NO_COUNT = [None, -1, 2**63, 1.0, "1", True, [], {}, float("nan")]
NO_SECONDS = [None, -1, -0.1, 1e9, "1", True, [], float("nan"), float("inf")]

LEASES = st.builds(
    Lease,
    term=COUNTS,
    counter=COUNTS,
    holder=IDS,
    started=st.booleans(),
    released=st.booleans(),
    roster=st.none() | st.frozensets(IDS, max_size=5),
    duration=SECONDS,
    freeze_limit=SECONDS,
    stop_timeout=SECONDS,
    successor=IDS | st.just(""),
    step_down=st.booleans(),
    paused=st.booleans(),
)
RECORDS = st.builds(
    NodeRecord,
    name=NAMES,
    incarnation=IDS,
    host=st.from_regex(r"[!-~]{1,255}", fullmatch=True),
    port=st.integers(1, 65535),
    version=st.none() | WORDS,
    join_number=COUNTS,
    joined_at=st.floats(-1e11, 1e11, exclude_min=True, exclude_max=True),
    stopped_term=COUNTS,
    running_term=COUNTS,
    notice=COUNTS,
    metadata=st.sampled_from(["{}", '{"a":[1]}']),
    priority=st.none() | st.integers(-(2**31), 2**31 - 1),
    companions=st.lists(
        st.tuples(st.integers(0, 2**31 - 1), COUNTS), max_size=3
    ).map(tuple),
    process=st.builds(
        ProcessIdentity,
        boot_id=WORDS,
        machine_id=WORDS,
        pid=st.integers(0, 2**31 - 1),
        start_time=COUNTS,
        pid_namespace=WORDS,
        network_namespace=WORDS,
        time_namespace=WORDS,
        first_namespace=st.booleans(),
    ),
)
HEARTBEATS = st.builds(
    Heartbeat,
    sender=IDS,
    receiver=IDS,
    sent=COUNTS,
    echo=COUNTS,
    term=COUNTS,
    counter=COUNTS,
    holder=IDS | st.just(""),
    started=st.booleans(),
    released=st.booleans(),
    answer=st.booleans(),
    leaving=st.booleans(),
    candidate=st.booleans(),
    failing=st.booleans(),
    offer=COUNTS,
    lost=COUNTS,
    running=COUNTS,
    stopped=COUNTS,
    changed=st.booleans(),
    successor=IDS | st.just(""),
)
SECRETS = st.binary(max_size=100)

LEASE = Lease(3, 7, "a" * 16, True, False, frozenset(["b" * 16]), 5, 300, 60)
RECORD = NodeRecord("n1", "a" * 16, "10.0.0.1", 7000, "1.0", 4, 1.5e9)
BEAT = Heartbeat("a" * 16, "b" * 16, 5, 4)
LONGEST = Heartbeat(
    "a" * 16, "b" * 16, TOP, TOP, TOP, TOP, "c" * 16,
    True, True, True, True, True, True, TOP, TOP, TOP, TOP, True,
    "d" * 16,
)  # fmt: skip


HEADER = encode_heartbeat(BEAT, TAG)[: cluster._HEADER]


def nested(depth, inner=0):
    for _ in range(depth):
        inner = [inner]
    return inner


def packet_of(fields, secret=b"", heartbeat=None):
    """A packet with this JSON, and the header of that heartbeat."""
    head = encode_heartbeat(heartbeat or BEAT, TAG)[:20]
    body = json.dumps(fields).encode()
    mac = cluster._mac(head + body, secret) if secret else bytes(16)
    return head + mac + body


def fields_of(packet):
    return json.loads(packet[cluster._HEADER :].decode())


def as_stored(value):
    return json.loads(json.dumps(value.to_dict()))


# Leases


@patient
@given(LEASES)
def test_a_lease_is_read_back_as_written(lease):
    assert Lease.from_dict(as_stored(lease)) == lease


def test_a_lease_of_the_next_format_is_understood():
    later = dict(as_stored(LEASE), format=2, colour="red", also={"deep": [1]})
    assert Lease.from_dict(later) == LEASE


def test_an_unreadable_roster_is_unknown_and_not_empty():
    stored = as_stored(LEASE)
    del stored["roster"]
    assert Lease.from_dict(stored).roster is None
    assert Lease.from_dict(dict(stored, roster=[])).roster == frozenset()


@pytest.mark.parametrize(
    "field, value",
    [("holder", value) for value in NO_ID]
    + [(field, value) for field in ("term", "counter") for value in NO_COUNT]
    + [
        (field, value)
        for field in ("started", "released", "step_down", "paused")
        for value in (None, 0, "no")
    ]
    + [("successor", value) for value in NO_ID if value != ""]
    + [
        (field, value)
        for field in ("duration", "freeze_limit", "stop_timeout")
        for value in NO_SECONDS
    ]
    + [("roster", value) for value in (0, "", {}, [1], ["x"], [None], [["a" * 16]])],
)
def test_an_impossible_field_of_a_lease_is_named(field, value):
    with pytest.raises(ValueError, match=field):
        Lease.from_dict(dict(as_stored(LEASE), **{field: value}))


def test_a_lease_of_an_earlier_version_names_no_successor_and_is_not_paused():
    stored = as_stored(LEASE)
    for field in Lease._field_defaults:
        del stored[field]
    assert Lease.from_dict(stored) == LEASE


@pytest.mark.parametrize(
    "field", sorted(set(Lease._fields) - {"roster"} - set(Lease._field_defaults))
)
def test_a_missing_field_of_a_lease_is_named(field):
    stored = as_stored(LEASE)
    del stored[field]
    with pytest.raises(ValueError, match=field):
        Lease.from_dict(stored)


def test_leases_are_told_apart_by_term_and_counter():
    assert LEASE.stamp == (3, 7)
    assert LEASE._replace(counter=8).stamp < LEASE._replace(term=4, counter=0).stamp


# Node records


@patient
@given(RECORDS)
def test_a_record_is_read_back_as_written(record):
    assert NodeRecord.from_dict(as_stored(record)) == record


def test_a_record_of_the_next_format_is_understood():
    later = dict(as_stored(RECORD), format=2, colour="red")
    later["process"]["cgroup"] = "x"
    assert NodeRecord.from_dict(later) == RECORD


def test_a_record_needs_only_a_name_an_incarnation_and_an_address():
    stored = {"name": "n1", "incarnation": "a" * 16, "host": "h", "port": 1}
    assert NodeRecord.from_dict(stored) == NodeRecord("n1", "a" * 16, "h", 1)


@pytest.mark.parametrize("field", ["name", "incarnation", "host", "port"])
def test_a_missing_field_of_a_record_is_named(field):
    stored = as_stored(RECORD)
    del stored[field]
    with pytest.raises(ValueError, match="'%s'" % field):
        NodeRecord.from_dict(stored)


@pytest.mark.parametrize(
    "field, value",
    [("name", value) for value in NO_TEXT + ["", "x" * 201, "\u20ac" * 67, "\ud800"]]
    + [("incarnation", value) for value in NO_ID]
    # the last of these make sendto() raise TypeError
    + [("host", value) for value in NO_TEXT + ["", "x" * 256, "a b", "a\0b", "\ud800"]]
    + [("port", value) for value in NO_COUNT + [0, 65536]]
    + [("version", value) for value in NO_TEXT[1:]]
    + [
        (field, value)
        for field in ("join_number", "stopped_term", "running_term", "notice")
        for value in NO_COUNT
    ]
    + [
        ("joined_at", value)
        for value in (None, "1", True, [], 1e11, float("nan"), float("-inf"))
    ]
    + [("metadata", value) for value in NO_TEXT + ["", "[]", "{", '{"\ud800":1}']]
    + [("priority", value) for value in (True, 1.0, "1", 2**31, -(2**31) - 1, [])]
    + [("process", value) for value in (None, 0, "", [], [["pid", 1]])]
    + [("companions", [pair]) for pair in (None, 7, "77", [7], [7, -1], [2**31, 1])]
    + [("companions", value) for value in (None, 7, "77", {})],
)
def test_an_impossible_field_of_a_record_is_named(field, value):
    with pytest.raises(ValueError, match=field):
        NodeRecord.from_dict(dict(as_stored(RECORD), **{field: value}))


@pytest.mark.parametrize(
    "field, value",
    [("pid", value) for value in NO_COUNT + [2**31]]
    + [("start_time", value) for value in (None, -1, 1.0, "1", True, [])]
    + [("first_namespace", value) for value in (None, 0, "no")]
    + [
        (field, value)
        for field in ProcessIdentity._fields
        if isinstance(getattr(ProcessIdentity(), field), str)
        for value in NO_TEXT
    ],
)
def test_an_impossible_field_of_a_process_is_named(field, value):
    stored = as_stored(RECORD)
    stored["process"][field] = value
    with pytest.raises(ValueError, match=field):
        NodeRecord.from_dict(stored)


def test_a_name_may_have_200_bytes_of_any_text():
    for name in ("x" * 200, "\u20ac" * 66, "../..", "a\0b", " "):
        assert NodeRecord.from_dict(as_stored(RECORD._replace(name=name))).name == name


def test_the_most_senior_record_sorts_first():
    older, younger = RECORD._replace(join_number=1), RECORD._replace(join_number=2)
    assert min(younger, older, key=lambda record: record.seniority) is older
    twin = older._replace(incarnation="b" * 16)
    assert older.seniority < twin.seniority


def test_metadata_of_a_record_may_have_1024_bytes():
    longest = '{"a":"%s"}' % ("x" * 1016)
    assert len(longest) == cluster.MAX_METADATA == 1024
    record = RECORD._replace(metadata=longest)
    assert NodeRecord.from_dict(as_stored(record)) == record
    for text in (longest + " ", "[" * 10**5):
        with pytest.raises(ValueError, match="metadata"):
            NodeRecord.from_dict(as_stored(RECORD._replace(metadata=text)))


def test_the_record_of_the_highest_priority_and_then_the_most_senior_is_preferred():
    ranked = [
        RECORD._replace(priority=priority, join_number=number)
        for priority, number in ((5, 9), (1, 3), (0, 1), (0, 2), (-1, 0))
    ]
    assert sorted(reversed(ranked), key=lambda record: record.rank) == ranked


def test_the_address_is_where_heartbeats_go():
    assert RECORD.address == ("10.0.0.1", 7000)


# Either


@pytest.mark.parametrize("kind", [Lease, NodeRecord])
@patient
@given(data=JSON)
def test_foreign_json_raises_nothing_but_value_error(kind, data):
    with pytest.raises(ValueError):
        kind.from_dict(data)


@pytest.mark.parametrize("value", [LEASE, RECORD], ids=["lease", "record"])
@pytest.mark.parametrize("depth", [100, 950, 100000])
def test_deeply_nested_json_raises_nothing_but_value_error(value, depth):
    with pytest.raises(ValueError):
        type(value).from_dict(nested(depth))
    for field in value._fields:
        with pytest.raises(ValueError):
            type(value).from_dict(dict(as_stored(value), **{field: nested(depth)}))
    with pytest.raises(ValueError):
        type(value).from_dict({"unknown": nested(depth)})


@pytest.mark.parametrize("value", [LEASE, RECORD], ids=["lease", "record"])
@patient
@given(data=st.data())
def test_a_damaged_field_raises_nothing_but_value_error(value, data):
    stored = as_stored(value)
    stored[data.draw(st.sampled_from(sorted(stored)))] = data.draw(JSON)
    try:
        type(value).from_dict(stored)
    except ValueError as error:
        assert len(str(error)) < 500


# Timings


def test_the_default_timings_are_those_of_the_documentation():
    timings = Timings()
    assert timings.detection_time == 5 + 4 * 2
    assert timings.renewal_deadline == pytest.approx(10 / 3)
    assert timings.renewal_period == 1
    assert timings.stop_budget == pytest.approx(5 / 3 - 0.1)
    assert timings.echo_age == 5


POSITIVE = st.floats(0.01, 1e6)


@patient
@given(
    st.builds(
        Timings,
        hb_interval=POSITIVE,
        hb_timeout=POSITIVE,
        hb_missed_count=st.integers(1, 1000),
        check_interval=POSITIVE,
        lease_duration=st.floats(cluster.MIN_LEASE, 1e6),
    )
)
def test_the_timings_keep_their_inequalities(timings):
    lease = timings.lease_duration
    assert 3 * timings.renewal_period < timings.renewal_deadline < lease
    assert 0 < timings.stop_budget < lease - timings.renewal_deadline
    assert timings.renewal_period <= timings.check_interval
    assert timings.detection_time >= timings.hb_timeout
    assert timings.echo_age >= 2 * timings.hb_interval


# Heartbeats on the wire


@patient
@given(HEARTBEATS, SECRETS)
@example(LONGEST, b"")
@example(LONGEST, b"secret")
def test_a_heartbeat_arrives_as_sent_in_under_512_bytes(heartbeat, secret):
    packet = encode_heartbeat(heartbeat, TAG, secret)
    assert len(packet) < 512
    received = decode_heartbeat(packet, TAG, secret)
    assert received == heartbeat
    assert list(map(type, received)) == list(map(type, heartbeat))


@patient
@given(HEARTBEATS)
@example(LONGEST)
def test_the_order_of_the_keys_in_a_packet_means_nothing(heartbeat):
    packet = encode_heartbeat(heartbeat, TAG)
    head, body = packet[: cluster._HEADER], packet[cluster._HEADER :]
    turned = dict(reversed(list(json.loads(body.decode()).items())))
    assert decode_heartbeat(head + json.dumps(turned).encode(), TAG) == heartbeat


def test_an_ordinary_heartbeat_is_short():
    assert len(encode_heartbeat(BEAT, TAG)) < 128


@pytest.mark.parametrize("required", [True, False])
@pytest.mark.parametrize("sent", [b"b", b""])
@patient
@given(heartbeat=HEARTBEATS)
def test_another_secret_or_none_is_refused(sent, required, heartbeat):
    packet = encode_heartbeat(heartbeat, TAG, sent)
    if sent or required:
        with pytest.raises(ValueError, match="with a wrong" if sent else "without a"):
            decode_heartbeat(packet, TAG, b"a", required)
    else:
        assert decode_heartbeat(packet, TAG, b"a", required) == heartbeat


@patient
@given(heartbeat=HEARTBEATS)
def test_a_node_without_a_secret_takes_what_others_authenticate(heartbeat):
    # while a running cluster gets a secret, node by node
    assert decode_heartbeat(encode_heartbeat(heartbeat, TAG, b"a"), TAG) == heartbeat


@patient
@given(IDS, IDS)
def test_a_packet_for_another_incarnation_is_refused(to, own):
    packet = encode_heartbeat(BEAT._replace(receiver=to), TAG, b"a")
    if to == own:
        assert decode_heartbeat(packet, TAG, b"a", True, own).receiver == own
    else:
        with pytest.raises(ValueError, match=cluster.NOT_FOR_US):
            decode_heartbeat(packet, TAG, b"a", True, own)


@patient
@given(HEARTBEATS, st.data())
def test_a_single_changed_bit_is_refused(heartbeat, data):
    packet = bytearray(encode_heartbeat(heartbeat, TAG, b"secret"))
    place = data.draw(st.integers(0, len(packet) - 1))
    packet[place] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(ValueError):
        decode_heartbeat(bytes(packet), TAG, b"secret")


@patient
@given(HEARTBEATS, st.integers(0, 511))
def test_a_packet_cut_short_is_refused(heartbeat, length):
    for secret in (b"", b"secret"):
        packet = encode_heartbeat(heartbeat, TAG, secret)
        with pytest.raises(ValueError):
            decode_heartbeat(packet[: min(length, len(packet) - 1)], TAG, secret)


def test_a_packet_of_another_cluster_is_refused():
    tags = {
        cluster._cluster_tag(name, cluster_id)
        for name in ("jobs", "mail", "jobs\u20ac")
        for cluster_id in ("a" * 16, "b" * 16)
    }
    assert len(tags) == 6
    for tag in tags:
        with pytest.raises(ValueError, match="another cluster"):
            decode_heartbeat(encode_heartbeat(BEAT, tag), TAG)


@pytest.mark.parametrize("secret", [b"", b"secret"])
@patient
@given(data=st.binary(max_size=600))
@example(data=b"")
@example(data=b"{}")
@example(data=b"\xff" * 512)
@example(data=b"[" * 512)
@example(data=b"[" * 256 + b"]" * 256)
@example(data=HEADER)
@example(data=HEADER + b"[" * 238 + b"]" * 238)
@example(data=HEADER + b'{"k":' * 79 + b"1" + b"}" * 79)
@example(data=HEADER + b"9" * 470)
@example(data=HEADER + b"\xff")
@example(data=b"1" * 512)
@example(data=b"NaN")
@example(data=b" " * 513)
def test_arbitrary_bytes_raise_nothing_but_value_error(secret, data):
    with pytest.raises(ValueError):
        decode_heartbeat(data, TAG, secret)


@patient
@given(JSON)
def test_signed_nonsense_raises_nothing_but_value_error(data):
    with pytest.raises(ValueError):
        decode_heartbeat(packet_of(data, b"secret"), TAG, b"secret")


@patient
@given(st.sampled_from(sorted(cluster._WIRE_KEYS)), JSON)
@example("i", None)
@example("i", "")
@example("lh", None)
@example("s", True)
@example("s", -1)
@example("lt", 2**63)
@example("a", 2)
@example("x", nested(200))
def test_a_damaged_field_on_the_wire_is_named_or_equal(key, value):
    fields = fields_of(encode_heartbeat(BEAT, TAG))
    fields[key] = value
    try:
        heartbeat = decode_heartbeat(packet_of(fields), TAG)
    except ValueError as error:
        assert key in str(error) or "too long" in str(error)
    else:
        assert getattr(heartbeat, cluster._WIRE_KEYS[key]) == value


@pytest.mark.parametrize("key", ["i", "s", "e"])
def test_a_packet_without_sender_or_number_is_refused(key):
    fields = fields_of(encode_heartbeat(BEAT, TAG))
    del fields[key]
    with pytest.raises(ValueError, match=key):
        decode_heartbeat(packet_of(fields), TAG)


@pytest.mark.parametrize("secret", [b"", b"secret"])
def test_a_packet_with_keys_of_a_later_version_is_understood(secret):
    fields = dict(fields_of(encode_heartbeat(BEAT, TAG)), zz={"new": [1]})
    assert decode_heartbeat(packet_of(fields, secret), TAG, secret) == BEAT


@pytest.mark.parametrize("secret", [b"", b"secret"])
def test_a_packet_of_another_layout_is_named_so(secret):
    packet = encode_heartbeat(BEAT, TAG, secret)
    for later in (packet[:3] + b"\2" + packet[4:], packet[:3] + b"\2", packet[:30]):
        with pytest.raises(ValueError, match="of another format"):
            decode_heartbeat(later, TAG, secret)
