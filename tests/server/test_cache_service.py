"""The public contract over a real connection to one node."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2
from google.rpc.status_pb2 import Status

from cacheservice.errors import (
    AnswerTooLarge,
    CacheServiceError,
    InvalidArgument,
    ResourceExhausted,
    Unimplemented,
)
from cacheservice.limits import MAX_BATCH, MAX_KEY_BYTES
from cacheservice.v1 import admin_pb2, cluster_pb2, peer_pb2
from cacheservice.v1 import cache_pb2 as pb
from cacheservice.v1.admin_pb2_grpc import AdminServiceStub
from cacheservice.v1.cache_pb2_grpc import CacheServiceStub
from cacheservice.v1.peer_pb2_grpc import PeerServiceStub
from cacheservice.wire import from_rpc_error, from_status
from tests.server.conftest import StartNode

UNKNOWN: Any = 3
"""A value that the enum does not have."""


@pytest.fixture
async def channel(start_node: StartNode) -> grpc.aio.Channel:
    return await start_node()


@pytest.fixture
def cache(channel: grpc.aio.Channel) -> Any:
    return CacheServiceStub(channel)


async def error_of(call: Any) -> CacheServiceError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    assert caught.value.code() not in (grpc.StatusCode.UNKNOWN, grpc.StatusCode.INTERNAL)
    return from_rpc_error(caught.value)


async def test_set_get_touch_delete(cache: Any) -> None:
    stored = await cache.Set(pb.SetRequest(key="a", value=b"v", ttl_seconds=60))
    assert stored.outcome == pb.SET_OUTCOME_STORED
    assert (stored.replicas, stored.ring_epoch > 0) == (1, True)
    found = await cache.Get(pb.GetRequest(key="a"))
    assert (found.outcome, found.value, found.version) == (pb.GET_OUTCOME_HIT, b"v", stored.version)
    assert 30 < found.ttl_seconds <= 60
    assert 0 <= found.age_seconds < 30
    assert (found.served_by, found.hops, found.ring_epoch) == ("n1", 0, stored.ring_epoch)
    touched = await cache.Touch(pb.TouchRequest(key="a", ttl_seconds=600))
    assert touched.outcome == pb.TOUCH_OUTCOME_TOUCHED
    assert (await cache.Get(pb.GetRequest(key="a"))).ttl_seconds > 500
    deleted = await cache.Delete(pb.DeleteRequest(key="a"))
    assert deleted.outcome == pb.DELETE_OUTCOME_DELETED
    missing = await cache.Get(pb.GetRequest(key="a"))
    assert missing == pb.GetResponse(
        outcome=pb.GET_OUTCOME_MISS, served_by="n1", ring_epoch=stored.ring_epoch
    )
    assert (await cache.Touch(pb.TouchRequest(key="a"))).outcome == pb.TOUCH_OUTCOME_NOT_FOUND


async def test_increment(cache: Any) -> None:
    first = await cache.Increment(pb.IncrementRequest(key="c", delta=3, initial=10))
    second = await cache.Increment(pb.IncrementRequest(key="c", delta=-20))
    assert (first.value, second.value) == (13, -7)
    assert second.version > first.version


async def test_batches_answer_in_order_each_with_its_own_result(cache: Any) -> None:
    stored = await cache.BatchSet(
        pb.BatchSetRequest(
            requests=[
                pb.SetRequest(key="a", value=b"1"),
                pb.SetRequest(key="", value=b"2"),
                pb.SetRequest(key="b", value=b"3", ttl_seconds=-1),
                pb.SetRequest(key="c", value=b"4", if_present=True),
                pb.SetRequest(key="d", value=b"5"),
            ]
        )
    )
    kinds = [result.WhichOneof("result") for result in stored.results]
    assert kinds == ["response", "error", "error", "response", "response"]
    outcomes = [result.response.outcome for result in stored.results]
    assert (outcomes[0], outcomes[3]) == (pb.SET_OUTCOME_STORED, pb.SET_OUTCOME_NOT_STORED)
    error = from_status(stored.results[2].error)
    assert isinstance(error, InvalidArgument)
    assert error.message.startswith("requests[2]: ttl_seconds")
    assert error.metadata["index"] == "2"
    found = await cache.BatchGet(pb.BatchGetRequest(keys=["d", "zz", "a", "d"]))
    assert [result.response.value for result in found.results] == [b"5", b"", b"1", b"5"]
    assert found.results[1].response.outcome == pb.GET_OUTCOME_MISS
    assert found.ring_epoch == stored.ring_epoch > 0
    deleted = await cache.BatchDelete(pb.BatchDeleteRequest(keys=["a", "zz"]))
    assert [result.response.outcome for result in deleted.results] == [
        pb.DELETE_OUTCOME_DELETED,
        pb.DELETE_OUTCOME_NOT_FOUND,
    ]


@pytest.mark.parametrize(
    ("rpc", "request_", "field"),
    [
        ("Get", pb.GetRequest(), "key"),
        ("Get", pb.GetRequest(lease=pb.LeaseOptions()), "key"),
        ("Get", pb.GetRequest(key="k", lease=pb.LeaseOptions(wait_ms=60_001)), "lease.wait_ms"),
        ("Get", pb.GetRequest(key="k" * (MAX_KEY_BYTES + 1)), "key"),
        ("Get", pb.GetRequest(key="ж" * (MAX_KEY_BYTES // 2 + 1)), "key"),
        ("Get", pb.GetRequest(key="k", read_preference=UNKNOWN), "read_preference"),
        ("Set", pb.SetRequest(key="k" * 2048), "key"),
        ("Set", pb.SetRequest(key="k", value=bytes(8 * 1024 * 1024 + 1)), "value"),
        ("Set", pb.SetRequest(key="k", ttl_seconds=float("nan")), "ttl_seconds"),
        ("Set", pb.SetRequest(key="k", ttl_seconds=-0.001), "ttl_seconds"),
        ("Set", pb.SetRequest(key="k", ttl_seconds=float("inf")), "ttl_seconds"),
        ("Set", pb.SetRequest(key="k", ttl_seconds=315_360_001), "ttl_seconds"),
        ("Set", pb.SetRequest(key="k", stale_seconds=float("nan")), "stale_seconds"),
        ("Set", pb.SetRequest(key="k", load_seconds=-1), "load_seconds"),
        ("Set", pb.SetRequest(key="k", tags=["t"] * 17), "tags"),
        ("Set", pb.SetRequest(key="k", tags=[""]), "tags"),
        ("Set", pb.SetRequest(key="k", tags=["t" * 129]), "tags"),
        ("Set", pb.SetRequest(key="k", tags=["a\0b"]), "tags"),
        ("Set", pb.SetRequest(key="k", if_version=0), "if_version"),
        ("Set", pb.SetRequest(key="k", min_replicas=3), "min_replicas"),
        ("Delete", pb.DeleteRequest(key="k", if_version=0), "if_version"),
        ("Touch", pb.TouchRequest(key="k", ttl_seconds=float("-inf")), "ttl_seconds"),
        ("Increment", pb.IncrementRequest(key="", delta=1), "key"),
        ("Increment", pb.IncrementRequest(key="k", ttl_seconds=float("nan")), "ttl_seconds"),
        ("BatchGet", pb.BatchGetRequest(), "keys"),
        ("BatchGet", pb.BatchGetRequest(keys=["k"] * (MAX_BATCH + 1)), "keys"),
        ("BatchGet", pb.BatchGetRequest(keys=["k"], read_preference=UNKNOWN), "read_preference"),
        ("BatchSet", pb.BatchSetRequest(requests=[pb.SetRequest(key="k")] * (MAX_BATCH + 1)), "requests"),
        ("BatchDelete", pb.BatchDeleteRequest(keys=["k"] * (MAX_BATCH + 1)), "keys"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_what_is_out_of_bounds_is_refused_by_field(
    cache: Any, rpc: str, request_: Any, field: str
) -> None:
    error = await error_of(getattr(cache, rpc)(request_))
    assert isinstance(error, InvalidArgument)
    assert error.metadata["field"] == field
    assert error.metadata["bound"]
    assert field in error.message
    assert (await cache.Get(pb.GetRequest(key="alive"))).outcome == pb.GET_OUTCOME_MISS


@pytest.mark.parametrize(
    "key", ["k", "k" * MAX_KEY_BYTES, "ж" * (MAX_KEY_BYTES // 2), "𝄞" * (MAX_KEY_BYTES // 4)]
)
async def test_keys_up_to_the_bound(cache: Any, key: str) -> None:
    await cache.Set(pb.SetRequest(key=key, value=b"v"))
    assert (await cache.Get(pb.GetRequest(key=key))).value == b"v"


@pytest.mark.parametrize("size", [0, 1, 8 * 1024 * 1024])
async def test_values_up_to_the_bound(cache: Any, size: int) -> None:
    await cache.Set(pb.SetRequest(key="k", value=b"x" * size))
    assert len((await cache.Get(pb.GetRequest(key="k"))).value) == size


async def test_a_full_batch_is_taken(cache: Any) -> None:
    keys = [str(number) for number in range(MAX_BATCH)]
    stored = await cache.BatchSet(
        pb.BatchSetRequest(requests=[pb.SetRequest(key=key, value=key.encode()) for key in keys])
    )
    assert len(stored.results) == MAX_BATCH
    found = await cache.BatchGet(pb.BatchGetRequest(keys=keys))
    assert [result.response.value.decode() for result in found.results] == keys


async def test_a_value_larger_than_the_store_is_refused_and_evicts_nothing(start_node: StartNode) -> None:
    cache: Any = CacheServiceStub(await start_node(max_memory="2MiB"))
    await cache.Set(pb.SetRequest(key="small", value=b"v"))
    error = await error_of(cache.Set(pb.SetRequest(key="large", value=bytes(3 * 1024 * 1024))))
    assert isinstance(error, ResourceExhausted)
    assert error.reason == "ENTRY_TOO_LARGE"
    assert (await cache.Get(pb.GetRequest(key="small"))).value == b"v"


async def test_a_batch_answer_is_cut_at_the_bound_of_a_message(start_node: StartNode) -> None:
    size = 1024 * 1024
    cache: Any = CacheServiceStub(await start_node(max_message_bytes="2MiB", max_value_bytes=size))
    for key in "abcd":
        await cache.Set(pb.SetRequest(key=key, value=bytes(size)))
    found = await cache.BatchGet(pb.BatchGetRequest(keys=list("abcd")))
    kinds = [result.WhichOneof("result") for result in found.results]
    assert kinds == ["response", "error", "error", "error"]
    assert isinstance(from_status(found.results[1].error), AnswerTooLarge)


async def test_a_message_beyond_the_bound_ends_that_call_alone(start_node: StartNode) -> None:
    cache: Any = CacheServiceStub(await start_node(max_message_bytes="1MiB", max_value_bytes="64KiB"))
    error = await error_of(cache.Set(pb.SetRequest(key="k", value=bytes(5 * 1024 * 1024))))
    assert isinstance(error, ResourceExhausted)
    assert (await cache.Set(pb.SetRequest(key="k"))).outcome == pb.SET_OUTCOME_STORED


async def test_a_batch_beyond_the_bound_is_refused_with_the_bound(start_node: StartNode) -> None:
    cache: Any = CacheServiceStub(await start_node(max_message_bytes="1MiB", max_value_bytes="64KiB"))
    requests = [pb.SetRequest(key=str(number), value=bytes(60_000)) for number in range(20)]
    error = await error_of(cache.BatchSet(pb.BatchSetRequest(requests=requests)))
    assert isinstance(error, InvalidArgument)
    assert error.metadata["bound"] == "at most 1048576 bytes"
    assert (await cache.Get(pb.GetRequest(key="0"))).outcome == pb.GET_OUTCOME_MISS


async def test_bytes_that_are_no_message_are_refused(channel: grpc.aio.Channel) -> None:
    raw: Any = channel.unary_unary("/cacheservice.v1.CacheService/Get")
    error = await error_of(raw(b"\xff\xff\xff"))
    assert isinstance(error, InvalidArgument)
    assert error.metadata["field"] == "request"


async def test_a_client_that_gives_up_in_mid_batch_leaves_nothing_behind(channel: grpc.aio.Channel) -> None:
    cache: Any = CacheServiceStub(channel)
    admin: Any = AdminServiceStub(channel)
    request = pb.BatchSetRequest(requests=[pb.SetRequest(key=str(n)) for n in range(10_000)])
    for _ in range(5):
        call = cache.BatchSet(request)
        await asyncio.sleep(0)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
    assert (await cache.Get(pb.GetRequest(key="alive"))).outcome == pb.GET_OUTCOME_MISS
    assert (await admin.Stats(admin_pb2.StatsRequest())).refused == 0


NOT_YET = [
    (AdminServiceStub, "Snapshot", admin_pb2.SnapshotRequest()),
]


@pytest.mark.parametrize(("stub", "rpc", "request_"), NOT_YET)
async def test_what_is_not_served_yet_says_so(channel: Any, stub: Any, rpc: str, request_: Any) -> None:
    error = await error_of(getattr(stub(channel), rpc)(request_))
    assert isinstance(error, Unimplemented)
    assert error.metadata == {"rpc": rpc}


async def test_stats(channel: grpc.aio.Channel) -> None:
    cache: Any = CacheServiceStub(channel)
    admin: Any = AdminServiceStub(channel)
    await cache.Set(pb.SetRequest(key="a", value=b"v"))
    await cache.Get(pb.GetRequest(key="a"))
    await cache.Get(pb.GetRequest(key="b"))
    await cache.Delete(pb.DeleteRequest(key="a"))
    stats = await admin.Stats(admin_pb2.StatsRequest())
    assert (stats.node_id, stats.policy, stats.max_bytes) == ("n1", "lru", 256 * 1024 * 1024)
    assert (stats.sets, stats.hits, stats.misses, stats.deletes) == (1, 1, 1, 1)
    assert (stats.entries, stats.bytes, stats.tombstones) == (0, 0, 1)


async def test_expired_entries_are_collected_without_being_asked_for(channel: grpc.aio.Channel) -> None:
    cache: Any = CacheServiceStub(channel)
    admin: Any = AdminServiceStub(channel)
    for number in range(2_000):
        await cache.Set(pb.SetRequest(key=str(number), value=b"v", ttl_seconds=0.05))
    async with asyncio.timeout(20):
        while (await admin.Stats(admin_pb2.StatsRequest())).expirations < 2_000:
            await asyncio.sleep(0.05)
    stats = await admin.Stats(admin_pb2.StatsRequest())
    assert (stats.entries, stats.bytes) == (0, 0)


async def asked(
    peer: Any, request: peer_pb2.PeerServiceExchangeRequest
) -> peer_pb2.PeerServiceExchangeResponse:
    call = peer.Exchange()
    await call.write(request)
    response: peer_pb2.PeerServiceExchangeResponse = await call.read()
    await call.done_writing()
    return response


async def test_a_request_of_a_peer_that_makes_no_sense_is_refused(channel: grpc.aio.Channel) -> None:
    peer: Any = PeerServiceStub(channel)
    header = peer_pb2.PeerHeader(cluster_id="cacheservice", to_node="n1")
    for request in (
        peer_pb2.PeerServiceExchangeRequest(),
        peer_pb2.PeerServiceExchangeRequest(forward=peer_pb2.ForwardRequest(header=header)),
        peer_pb2.PeerServiceExchangeRequest(replicate=peer_pb2.ReplicateRequest(header=header)),
        peer_pb2.PeerServiceExchangeRequest(fetch=peer_pb2.FetchRequest(header=header)),
        *(
            peer_pb2.PeerServiceExchangeRequest(owned=peer_pb2.OwnedRequest(header=header, batch=batch))
            for batch in (
                pb.ExchangeRequest(),
                pb.ExchangeRequest(delete=pb.DeleteColumns(keys=["k"])),
                pb.ExchangeRequest(get=pb.GetColumns(keys=["k", ""])),
                pb.ExchangeRequest(set=pb.SetColumns(keys=["k", ""], values=[b"v", b"v"])),
            )
        ),
    ):
        assert isinstance(from_status((await asked(peer, request)).error), InvalidArgument)


async def test_peers_that_mean_somebody_else_are_refused(channel: grpc.aio.Channel) -> None:
    peer: Any = PeerServiceStub(channel)
    operations = [peer_pb2.Operation(get=pb.GetRequest(key="k"))]
    for header, reason in [
        (peer_pb2.PeerHeader(cluster_id="other", to_node="n1"), "CLUSTER_ID_MISMATCH"),
        (peer_pb2.PeerHeader(cluster_id="cacheservice", to_node="n2"), "NODE_ID_MISMATCH"),
    ]:
        copies = peer_pb2.Copies(keys=["k"], versions=[1], values=[b"v"])
        for request in (
            peer_pb2.PeerServiceExchangeRequest(
                forward=peer_pb2.ForwardRequest(header=header, operations=operations)
            ),
            peer_pb2.PeerServiceExchangeRequest(
                replicate=peer_pb2.ReplicateRequest(header=header, copies=copies)
            ),
            peer_pb2.PeerServiceExchangeRequest(fetch=peer_pb2.FetchRequest(header=header, keys=["k"])),
            peer_pb2.PeerServiceExchangeRequest(
                owned=peer_pb2.OwnedRequest(
                    header=header, batch=pb.ExchangeRequest(get=pb.GetColumns(keys=["k"]))
                )
            ),
        ):
            assert from_status((await asked(peer, request)).error).reason == reason
    member = cluster_pb2.Member(
        node_id="x",
        address="127.0.0.1:1",
        state=cluster_pb2.MEMBER_STATE_ALIVE,
        phase=cluster_pb2.MEMBER_PHASE_SERVING,
    )
    message = peer_pb2.GossipMessage(ping=peer_pb2.Ping(sequence=1))
    gossip = peer_pb2.GossipRequest(cluster_id="other", sender=member, messages=[message])
    assert (await error_of(peer.Gossip(gossip))).reason == "CLUSTER_ID_MISMATCH"
    own: Any = {"virtual_nodes": 256, "replication_factor": 2}
    nonsense = peer_pb2.GossipRequest(cluster_id="cacheservice", messages=[message], **own)
    assert isinstance(await error_of(peer.Gossip(nonsense)), InvalidArgument)


async def test_one_bad_operation_of_a_peer_does_not_spoil_the_others(channel: grpc.aio.Channel) -> None:
    peer: Any = PeerServiceStub(channel)
    header = peer_pb2.PeerHeader(cluster_id="cacheservice", to_node="n1")
    operations = [
        peer_pb2.Operation(set=pb.SetRequest(key="k", value=b"v")),
        peer_pb2.Operation(get=pb.GetRequest()),
        peer_pb2.Operation(),
        peer_pb2.Operation(get=pb.GetRequest(key="k")),
    ]
    forward = peer_pb2.ForwardRequest(header=header, operations=operations)
    response = await asked(peer, peer_pb2.PeerServiceExchangeRequest(request_id=7, forward=forward))
    assert (response.request_id, response.ring_epoch > 0) == (7, True)
    answer = response.forward
    assert [result.WhichOneof("result") for result in answer.results] == ["set", "error", "error", "get"]
    assert answer.results[3].get.value == b"v"


async def test_an_error_carries_its_details_in_the_standard_place(cache: Any) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await cache.Get(pb.GetRequest())
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    packed = dict(caught.value.trailing_metadata() or ())["grpc-status-details-bin"]
    assert isinstance(packed, bytes)
    status = Status.FromString(packed)
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    assert (status.code, status.message) == (3, caught.value.details())
    assert (info.reason, info.domain) == ("INVALID_ARGUMENT", "cacheservice")
