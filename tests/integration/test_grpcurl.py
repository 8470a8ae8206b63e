"""The cluster from a shell: a real grpcurl, which knows nothing but what reflection tells it.

Calls for a key go through a node that does not own it, unless a test says otherwise.
"""

from __future__ import annotations

import base64
import json
import re
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from cacheservice.ring import Ring, RingMember
from tests.integration.processes import DEADLINE_SECONDS, ClusterProcesses

Json = dict[str, Any]

PACKAGE = "cacheservice.v1"
SERVICES = [
    f"{PACKAGE}.AdminService",
    f"{PACKAGE}.CacheService",
    f"{PACKAGE}.ClusterService",
    f"{PACKAGE}.PeerService",
    "grpc.health.v1.Health",
    "grpc.reflection.v1alpha.ServerReflection",
]
CACHE_RPCS = {
    "BatchDelete": ("", ""),
    "BatchGet": ("", ""),
    "BatchSet": ("", ""),
    "Delete": ("", ""),
    "Exchange": ("stream ", "stream "),
    "Get": ("", ""),
    "Increment": ("", ""),
    "InvalidatePrefix": ("", ""),
    "InvalidateTag": ("", ""),
    "ReleaseLease": ("", ""),
    "Scan": ("", ""),
    "Set": ("", ""),
    "Touch": ("", ""),
    "Watch": ("", "stream "),
}
"""Each rpc of CacheService, with what stands before the types of its request and response."""

OWNER, REPLICA, OUTSIDER = range(3)
"""The three nodes of the cluster, as a key sees them."""

MAX_VALUE_BYTES = 8 * 1024 * 1024

INVALID_ARGUMENT = 3
NOT_FOUND = 5
FAILED_PRECONDITION = 9
UNIMPLEMENTED = 12

_FIRST_ERROR_EXIT = 64
"""grpcurl exits with this plus the number of the status."""
_PRINTED_ERROR = re.compile(
    r"ERROR:\n  Code: (?P<code>\w+)\n  Message: (?P<message>[^\n]*)\n"
    r"(?:  Details:\n  1\)\t(?P<detail>\{.*\})\n)?",
    re.DOTALL,
)


@dataclass(frozen=True)
class Refusal:
    """An error as grpcurl prints it."""

    number: int
    code: str
    message: str
    info: Json | None


class Grpcurl:
    """grpcurl with the address of one node."""

    def __init__(self, program: str, address: str) -> None:
        self._program = program
        self._address = address

    def ask(self, *question: str) -> str:
        done = self._run("-plaintext", self._address, *question)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def call(self, rpc: str, request: Json) -> Json:
        done = self._call(rpc, request)
        assert done.returncode == 0, done.stderr
        answer: Json = json.loads(done.stdout)
        return answer

    def refusal(self, rpc: str, request: Json) -> Refusal:
        done = self._call(rpc, request)
        assert done.stdout == ""
        printed = _PRINTED_ERROR.fullmatch(done.stderr)
        assert printed, done.stderr
        detail = printed["detail"]
        return Refusal(
            done.returncode - _FIRST_ERROR_EXIT,
            printed["code"],
            printed["message"],
            json.loads(detail) if detail else None,
        )

    def _call(self, rpc: str, request: Json) -> subprocess.CompletedProcess[str]:
        method = rpc if rpc.startswith("grpc.") else f"{PACKAGE}.{rpc}"
        return self._run("-plaintext", "-d", "@", self._address, method, stdin=json.dumps(request))

    def _run(self, *arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        command = [self._program, "-max-time", str(DEADLINE_SECONDS), *arguments]
        return subprocess.run(
            command, input=stdin, capture_output=True, text=True, timeout=2 * DEADLINE_SECONDS, check=False
        )


class Nodes:
    """The cluster as its first node describes it, and the ring computed from that."""

    def __init__(self, program: str, address: str) -> None:
        self._program = program
        self.any = Grpcurl(program, address)
        topology = self.any.call("ClusterService/Describe", {})["topology"]
        self.ring_epoch: str = topology["ring_epoch"]
        self._addresses = {member["node_id"]: member["address"] for member in topology["members"]}
        self.ring = Ring(
            [
                RingMember(m["node_id"], m.get("zone", ""), m["weight"], m.get("host", ""))
                for m in topology["members"]
            ],
            topology["virtual_nodes"],
        )

    def name(self, key: str, place: int) -> str:
        return self.ring.owners(key, len(self._addresses))[place]

    def at(self, key: str, place: int) -> Grpcurl:
        return Grpcurl(self._program, self._addresses[self.name(key, place)])


@pytest.fixture(scope="module")
def nodes(shared_cluster: ClusterProcesses, tool: Callable[[str], str]) -> Nodes:
    return Nodes(tool("grpcurl"), shared_cluster.addresses[0])


@pytest.fixture
def key(request: pytest.FixtureRequest, nodes: Nodes) -> Iterator[str]:
    """A key of this test alone; its entry is removed in the end."""
    key = f"grpcurl:{request.node.name}"
    yield key
    nodes.any.call("CacheService/Delete", {"key": key})


@pytest.fixture
def grpcurl(nodes: Nodes, key: str) -> Grpcurl:
    """Aimed at the node that holds no copy of `key`."""
    return nodes.at(key, OUTSIDER)


def encoded(value: bytes) -> str:
    return base64.b64encode(value).decode()


def stored(grpcurl: Grpcurl, key: str, value: bytes = b"value", **more: Any) -> str:
    """Writes the entry, and gives its version."""
    answer = grpcurl.call("CacheService/Set", {"key": key, "value": encoded(value), **more})
    assert answer["outcome"] == "SET_OUTCOME_STORED"
    version: str = answer["version"]
    return version


def error_info(reason: str, **metadata: str) -> Json:
    return {
        "@type": "type.googleapis.com/google.rpc.ErrorInfo",
        "reason": reason,
        "domain": "cacheservice",
        **({"metadata": metadata} if metadata else {}),
    }


def test_list_shows_every_service(nodes: Nodes) -> None:
    assert nodes.any.ask("list").splitlines() == SERVICES


def test_describe_shows_every_rpc(nodes: Nodes) -> None:
    rpcs = [
        f"  rpc {rpc} ( {before}.{PACKAGE}.{rpc}Request ) returns ( {after}.{PACKAGE}.{rpc}Response );"
        for rpc, (before, after) in CACHE_RPCS.items()
    ]
    service = f"{PACKAGE}.CacheService"
    described = nodes.any.ask("describe", service)
    assert described.splitlines() == [f"{service} is a service:", "service CacheService {", *rpcs, "}"]


def test_describe_shows_the_fields_of_a_message(nodes: Nodes) -> None:
    described = nodes.any.ask("describe", f"{PACKAGE}.TouchRequest").splitlines()
    assert described == [
        f"{PACKAGE}.TouchRequest is a message:",
        "message TouchRequest {",
        "  string key = 1;",
        "  double ttl_seconds = 2;",
        "}",
    ]


def test_the_ring_follows_from_what_describe_tells(nodes: Nodes) -> None:
    assert int(nodes.ring_epoch) == nodes.ring.epoch
    assert [member.node_id for member in nodes.ring.members] == ["n1", "n2", "n3"]


@pytest.mark.parametrize("place", [OWNER, REPLICA, OUTSIDER], ids=["owner", "replica", "outsider"])
def test_what_set_writes_get_reads_at_any_node(nodes: Nodes, key: str, place: int) -> None:
    grpcurl = nodes.at(key, place)
    request = {"key": key, "value": encoded(b"\x00\xff value"), "ttl_seconds": 600}
    written = grpcurl.call("CacheService/Set", request)
    version = written["version"]
    assert written == {
        "outcome": "SET_OUTCOME_STORED",
        "version": version,
        "replicas": 2,
        "ring_epoch": nodes.ring_epoch,
    }
    read = grpcurl.call("CacheService/Get", {"key": key})
    assert 0 < read.pop("age_seconds") < 60
    assert 540 < read.pop("ttl_seconds") < 600
    assert read == {
        "outcome": "GET_OUTCOME_HIT",
        "value": encoded(b"\x00\xff value"),
        "version": version,
        "served_by": nodes.name(key, OWNER),
        **({} if place == OWNER else {"hops": 1}),
        "ring_epoch": nodes.ring_epoch,
    }


def test_get_of_the_known_version_leaves_the_value_out(grpcurl: Grpcurl, key: str) -> None:
    version = stored(grpcurl, key)
    read = grpcurl.call("CacheService/Get", {"key": key, "known_version": version})
    assert (read["outcome"], read["version"], read.get("value")) == ("GET_OUTCOME_HIT", version, None)
    newer = stored(grpcurl, key, b"newer")
    assert int(newer) > int(version)
    read = grpcurl.call("CacheService/Get", {"key": key, "known_version": version})
    assert (read["version"], read["value"]) == (newer, encoded(b"newer"))


def test_a_miss_is_no_error(nodes: Nodes, grpcurl: Grpcurl, key: str) -> None:
    assert grpcurl.call("CacheService/Get", {"key": key}) == {
        "outcome": "GET_OUTCOME_MISS",
        "served_by": nodes.name(key, OWNER),
        "hops": 1,
        "ring_epoch": nodes.ring_epoch,
    }


def test_a_key_may_have_1024_bytes(grpcurl: Grpcurl, key: str) -> None:
    rest = 1024 - len(key)
    longest = key + "x" * (rest % 2) + "é" * (rest // 2)
    assert len(longest.encode()) == 1024
    version = stored(grpcurl, longest)
    assert grpcurl.call("CacheService/Get", {"key": longest})["version"] == version
    assert grpcurl.call("CacheService/Delete", {"key": longest})["outcome"] == "DELETE_OUTCOME_DELETED"


def test_delete(grpcurl: Grpcurl, key: str) -> None:
    version = stored(grpcurl, key)
    removed = grpcurl.call("CacheService/Delete", {"key": key})
    assert removed["outcome"] == "DELETE_OUTCOME_DELETED"
    assert int(removed["version"]) > int(version)
    assert grpcurl.call("CacheService/Get", {"key": key})["outcome"] == "GET_OUTCOME_MISS"
    assert grpcurl.call("CacheService/Delete", {"key": key})["outcome"] == "DELETE_OUTCOME_NOT_FOUND"


def test_delete_of_another_version_is_a_conflict(nodes: Nodes, grpcurl: Grpcurl, key: str) -> None:
    version = stored(grpcurl, key)
    assert grpcurl.call("CacheService/Delete", {"key": key, "if_version": str(int(version) + 1)}) == {
        "outcome": "DELETE_OUTCOME_CONFLICT",
        "version": version,
        "ring_epoch": nodes.ring_epoch,
    }
    assert grpcurl.call("CacheService/Get", {"key": key})["version"] == version
    removed = grpcurl.call("CacheService/Delete", {"key": key, "if_version": version})
    assert removed["outcome"] == "DELETE_OUTCOME_DELETED"


def test_batches_answer_in_order_whoever_owns_the_keys(nodes: Nodes, grpcurl: Grpcurl, key: str) -> None:
    keys = [f"{key}:{number}" for number in range(30)]
    owners = [nodes.name(each, OWNER) for each in keys]
    assert set(owners) == {"n1", "n2", "n3"}
    asked = nodes.name(key, OUTSIDER)

    requests = [{"key": each, "value": encoded(each.encode())} for each in keys]
    written = grpcurl.call("CacheService/BatchSet", {"requests": requests})
    assert written["ring_epoch"] == nodes.ring_epoch
    versions = [result["response"]["version"] for result in written["results"]]
    assert written["results"] == [
        {"response": {"outcome": "SET_OUTCOME_STORED", "version": version, "replicas": 2}}
        for version in versions
    ]

    read = grpcurl.call("CacheService/BatchGet", {"keys": [*keys, f"{key}:absent"]})
    *found, absent = (result["response"] for result in read["results"])
    assert [
        (got["outcome"], got["value"], got["version"], got["served_by"], got.get("hops", 0)) for got in found
    ] == [
        ("GET_OUTCOME_HIT", encoded(each.encode()), version, owner, int(owner != asked))
        for each, version, owner in zip(keys, versions, owners, strict=True)
    ]
    assert absent["outcome"] == "GET_OUTCOME_MISS"

    removed = grpcurl.call("CacheService/BatchDelete", {"keys": [*keys, f"{key}:absent"]})
    outcomes = [result["response"]["outcome"] for result in removed["results"]]
    assert outcomes == ["DELETE_OUTCOME_DELETED"] * len(keys) + ["DELETE_OUTCOME_NOT_FOUND"]


@pytest.mark.parametrize(
    ("rpc", "field", "good", "bad"),
    [
        ("BatchGet", "keys", lambda key: key, ""),
        ("BatchSet", "requests", lambda key: {"key": key}, {"key": ""}),
        ("BatchDelete", "keys", lambda key: key, ""),
    ],
)
def test_one_bad_element_spoils_no_batch(
    grpcurl: Grpcurl, key: str, rpc: str, field: str, good: Callable[[str], object], bad: object
) -> None:
    answer = grpcurl.call(f"CacheService/{rpc}", {field: [good(key), bad, good(key)]})
    first, refused, last = answer["results"]
    assert first.keys() == last.keys() == {"response"}
    assert refused == {
        "error": {
            "code": INVALID_ARGUMENT,
            "message": f"{field}[1]: key must be 1 to 1024 bytes of UTF-8, got 0 bytes",
            "details": [
                error_info("INVALID_ARGUMENT", field="key", bound="1 to 1024 bytes of UTF-8", index="1")
            ],
        }
    }


def test_touch(nodes: Nodes, grpcurl: Grpcurl, key: str) -> None:
    request = {"key": key, "ttl_seconds": 6_000}
    assert grpcurl.call("CacheService/Touch", request) == {
        "outcome": "TOUCH_OUTCOME_NOT_FOUND",
        "ring_epoch": nodes.ring_epoch,
    }
    version = stored(grpcurl, key, ttl_seconds=600)
    touched = grpcurl.call("CacheService/Touch", request)
    assert touched["outcome"] == "TOUCH_OUTCOME_TOUCHED"
    assert int(touched["version"]) > int(version)
    read = grpcurl.call("CacheService/Get", {"key": key})
    assert (read["version"], read["value"]) == (touched["version"], encoded(b"value"))
    assert 5_900 < read["ttl_seconds"] < 6_000


def test_increment(grpcurl: Grpcurl, key: str) -> None:
    first = grpcurl.call("CacheService/Increment", {"key": key, "delta": 2, "initial": 40})
    second = grpcurl.call("CacheService/Increment", {"key": key, "delta": -50, "initial": 7})
    assert (first["value"], second["value"]) == ("42", "-8")
    assert int(second["version"]) > int(first["version"])
    read = grpcurl.call("CacheService/Get", {"key": key})
    assert (read["value"], read["version"]) == (encoded(b"-8"), second["version"])


@pytest.mark.parametrize(
    ("value", "reason"), [(b"value", "NOT_A_COUNTER"), (b"9223372036854775807", "COUNTER_OVERFLOW")]
)
def test_increment_of_what_cannot_be_incremented(
    grpcurl: Grpcurl, key: str, value: bytes, reason: str
) -> None:
    version = stored(grpcurl, key, value)
    refusal = grpcurl.refusal("CacheService/Increment", {"key": key, "delta": 1})
    assert (refusal.number, refusal.code) == (FAILED_PRECONDITION, "FailedPrecondition")
    assert refusal.info is not None
    assert refusal.info["reason"] == reason
    read = grpcurl.call("CacheService/Get", {"key": key})
    assert (read["value"], read["version"]) == (encoded(value), version)


def test_set_if_absent_and_if_present(nodes: Nodes, grpcurl: Grpcurl, key: str) -> None:
    def not_stored(condition: str) -> Json:
        answer = grpcurl.call("CacheService/Set", {"key": key, "value": encoded(b"never"), condition: True})
        assert answer.pop("outcome") == "SET_OUTCOME_NOT_STORED"
        assert answer.pop("reason") == "NOT_STORED_REASON_CONDITION"
        assert answer.pop("ring_epoch") == nodes.ring_epoch
        return answer

    assert not_stored("if_present") == {}
    first = stored(grpcurl, key, b"first", if_absent=True)
    assert not_stored("if_absent") == {"version": first}
    second = stored(grpcurl, key, b"second", if_present=True)
    read = grpcurl.call("CacheService/Get", {"key": key})
    assert (read["value"], read["version"]) == (encoded(b"second"), second)


def test_compare_and_swap(nodes: Nodes, grpcurl: Grpcurl, key: str) -> None:
    first = stored(grpcurl, key, b"first")
    second = stored(grpcurl, key, b"second", if_version=first)
    late = {"key": key, "value": encoded(b"late"), "if_version": first}
    assert grpcurl.call("CacheService/Set", late) == {
        "outcome": "SET_OUTCOME_NOT_STORED",
        "version": second,
        "reason": "NOT_STORED_REASON_CONDITION",
        "ring_epoch": nodes.ring_epoch,
    }
    read = grpcurl.call("CacheService/Get", {"key": key})
    assert (read["value"], read["version"]) == (encoded(b"second"), second)


@pytest.mark.parametrize("service", ["", "liveness", "readiness"])
def test_health(nodes: Nodes, service: str) -> None:
    answer = nodes.any.call("grpc.health.v1.Health/Check", {"service": service})
    assert answer == {"status": "SERVING"}


def test_health_of_what_is_no_service(nodes: Nodes) -> None:
    refusal = nodes.any.refusal("grpc.health.v1.Health/Check", {"service": "no service"})
    assert (refusal.number, refusal.code) == (NOT_FOUND, "NotFound")


KEY_BOUND = "1 to 1024 bytes of UTF-8"
SECONDS_BOUND = "a number from 0 to 315360000"
VERSION_BOUND = "a version, from 1"
VERSION_GOT = "0"
TAGS_BOUND = "at most 16 tags"
TAG_BOUND = "tags of 1 to 128 bytes of UTF-8 without NUL"
BATCH_BOUND = "1 to 10000 elements"

BAD_KEYS = [
    pytest.param(rpc, {"key": key}, "key", KEY_BOUND, got, id=f"{rpc}-{what}")
    for rpc in ("Get", "Set", "Delete", "Touch", "Increment")
    for key, got, what in (
        ("", "0 bytes", "no key"),
        ("k" * 1025, "1025 bytes", "1025 bytes"),
        ("é" * 513, "1026 bytes", "513 characters of 2 bytes"),
        ("k" * 2048, "2048 bytes", "2 KB"),
    )
]
BAD_SECONDS = [
    pytest.param(rpc, {"key": "k", field: given}, field, SECONDS_BOUND, got, id=f"{rpc}-{field}-{got}")
    for rpc, field in (
        ("Set", "ttl_seconds"),
        ("Set", "stale_seconds"),
        ("Set", "load_seconds"),
        ("Touch", "ttl_seconds"),
        ("Increment", "ttl_seconds"),
    )
    for given, got in (
        ("NaN", "nan"),
        (-1, "-1.0"),
        ("Infinity", "inf"),
        ("-Infinity", "-inf"),
        (315_360_000.5, "315360000.5"),
    )
]
BAD_FIELDS = [
    pytest.param(rpc, request, field, bound, got, id=f"{rpc}-{what}")
    for rpc, request, field, bound, got, what in (
        ("Set", {"key": "k", "if_version": 0}, "if_version", VERSION_BOUND, VERSION_GOT, "version 0"),
        ("Delete", {"key": "k", "if_version": 0}, "if_version", VERSION_BOUND, VERSION_GOT, "version 0"),
        (
            "Set",
            {"key": "k", "min_replicas": 9},
            "min_replicas",
            "at most the replication factor, 2",
            "9",
            "9 replicas",
        ),
        ("Set", {"key": "k", "tags": ["t"] * 17}, "tags", TAGS_BOUND, "17", "17 tags"),
        ("Set", {"key": "k", "tags": ["t", ""]}, "tags", TAG_BOUND, "'', 0 bytes", "empty tag"),
        (
            "Set",
            {"key": "k", "tags": ["t" * 129]},
            "tags",
            TAG_BOUND,
            f"'{'t' * 32}', 129 bytes",
            "long tag",
        ),
        (
            "Set",
            {"key": "k", "value": encoded(bytes(MAX_VALUE_BYTES + 1))},
            "value",
            f"at most {MAX_VALUE_BYTES} bytes",
            f"{MAX_VALUE_BYTES + 1}",
            "long value",
        ),
        ("BatchGet", {}, "keys", BATCH_BOUND, "0", "empty"),
        ("BatchSet", {}, "requests", BATCH_BOUND, "0", "empty"),
        ("BatchDelete", {}, "keys", BATCH_BOUND, "0", "empty"),
        ("BatchGet", {"keys": ["k"] * 10_001}, "keys", BATCH_BOUND, "10001", "10001 keys"),
        ("BatchSet", {"requests": [{"key": "k"}] * 10_001}, "requests", BATCH_BOUND, "10001", "10001"),
        ("BatchDelete", {"keys": ["k"] * 10_001}, "keys", BATCH_BOUND, "10001", "10001 keys"),
    )
]


@pytest.mark.parametrize(("rpc", "request_", "field", "bound", "got"), [*BAD_KEYS, *BAD_SECONDS, *BAD_FIELDS])
def test_a_field_out_of_bounds_is_named(
    grpcurl: Grpcurl, key: str, rpc: str, request_: Json, field: str, bound: str, got: str
) -> None:
    version = stored(grpcurl, key)
    assert grpcurl.refusal(f"CacheService/{rpc}", request_) == Refusal(
        INVALID_ARGUMENT,
        "InvalidArgument",
        f"{field} must be {bound}, got {got}",
        error_info("INVALID_ARGUMENT", field=field, bound=bound),
    )
    assert grpcurl.call("CacheService/Get", {"key": key})["version"] == version


@pytest.mark.parametrize(
    "rpc",
    [
        "AdminService/Snapshot",
    ],
)
def test_an_rpc_that_is_not_served_is_named(grpcurl: Grpcurl, key: str, rpc: str) -> None:
    version = stored(grpcurl, key)
    name = rpc.rpartition("/")[2]
    assert grpcurl.refusal(rpc, {}) == Refusal(
        UNIMPLEMENTED,
        "Unimplemented",
        f"{name} is part of the contract, but this version does not serve it yet",
        error_info("UNIMPLEMENTED", rpc=name),
    )
    assert grpcurl.call("CacheService/Get", {"key": key})["version"] == version
