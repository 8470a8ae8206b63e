"""Values other than bytes: the codecs, and the clients that use them, against a real server."""

from __future__ import annotations

import asyncio
import sys
import zlib
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any, assert_type

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cacheservice import Client, Codec, JsonCodec, MsgspecCodec, PickleCodec, SyncClient
from cacheservice.client import Outcome
from cacheservice.client.compression import COMPRESSED, UNCHANGED
from cacheservice.client.values import Values
from cacheservice.errors import InvalidArgument, NotACounter, UndecodableValue

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(), inner, max_size=5),
    max_leaves=20,
)
limits = st.none() | st.integers(0, 100)
marked = st.builds(bytes.__add__, st.sampled_from([b"", COMPRESSED, UNCHANGED]), st.binary())


@dataclass(frozen=True)
class User:
    name: str
    tags: tuple[str, ...]


class Reversed:
    """A codec of the application's own."""

    def encode(self, value: str) -> bytes:
        return value[::-1].encode()

    def decode(self, data: bytes) -> str:
        return data.decode()[::-1]


class ToText:
    """One that is wrong."""

    def encode(self, value: Any) -> Any:
        return str(value)

    def decode(self, data: bytes) -> str:
        return data.decode()


@pytest.fixture
async def plain(address: str, stack: AsyncExitStack) -> Client:
    return await stack.enter_async_context(Client(address, timeout=10))


@pytest.fixture
async def cache(address: str, stack: AsyncExitStack) -> Client[Any]:
    return await stack.enter_async_context(
        Client(address, timeout=10, codec=JsonCodec(), compress_above=1_000)
    )


@given(value=json_values, above=limits)
def test_json_and_pickle_round_trips(value: Any, above: int | None) -> None:
    codecs: list[Codec[Any]] = [JsonCodec(), PickleCodec()]
    for codec in codecs:
        values = Values(codec, above)
        back = values.decode("k", values.encode("k", value))
        assert back == value
        assert type(back) is type(value)


@given(value=marked, above=limits)
def test_bytes_round_trips(value: bytes, above: int | None) -> None:
    values = Values(None, above)
    assert values.is_plain is (above is None)
    assert values.decode("k", values.encode("k", value)) == value


@given(found=st.dictionaries(st.text(), json_values, max_size=10), above=limits)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)
async def test_round_trips_by_a_node(address: str, found: dict[str, Any], above: int | None) -> None:
    values = {f"k{key[:100]}": value for key, value in found.items()}
    async with Client(address, timeout=10, codec=JsonCodec(), compress_above=above) as cache:
        await cache.set_many(values)
        assert await cache.get_many(values) == values
        assert {key: await cache.get(key) for key in values} == values
        await cache.delete_many(values)


def test_json_is_compact_and_utf_8() -> None:
    assert JsonCodec().encode({"a": [1, "ü"]}) == '{"a":[1,"ü"]}'.encode()


def test_pickle_takes_any_object() -> None:
    values = Values(PickleCodec(), None)
    user = User("Ada", ("a", "b"))
    assert values.decode("k", values.encode("k", user)) == user


async def test_every_call_that_has_values(cache: Client[Any]) -> None:
    user = {"name": "Ada", "langs": ["en", "fr"]}
    stored = await cache.set("user:1", user, ttl=60)
    assert await cache.get("user:1") == user
    assert await cache.get("user:1", read_preference="nearest") == user
    found = await cache.lookup("user:1")
    assert (found.outcome, found.value, found.version) == (Outcome.HIT, user, stored.version)
    assert await cache.set("user:1", 5, if_version=found.version, tags=["t"])
    await cache.set_many({"user:2": "text", "user:3": None})
    assert await cache.get_many(["user:1", "user:2", "user:3", "x"]) == {
        "user:1": 5,
        "user:2": "text",
        "user:3": None,
    }
    listed = {entry.key: (entry.size, entry.value) async for entry in cache.scan("user:", values=True)}
    assert listed == {"user:1": (1, 5), "user:2": (6, "text"), "user:3": (4, None)}
    assert [entry.value async for entry in cache.scan()] == [None] * 3


async def test_misses_are_not_decoded(cache: Client[Any]) -> None:
    assert await cache.get("a") is None
    assert await cache.get("a", "default") == "default"
    assert (await cache.lookup("a")).value is None
    assert await cache.get_many(["a"]) == {}
    await cache.set("a", None)
    assert await cache.get("a", "default") is None
    assert (await cache.lookup("a")).found


async def test_counters_are_json(cache: Client[Any]) -> None:
    assert await cache.incr("n", 5) == 5
    assert await cache.get("n") == 5
    await cache.set("n", 41)
    assert await cache.incr("n") == 42
    assert await cache.get_many(["n"]) == {"n": 42}
    await cache.set("n", "text")
    with pytest.raises(NotACounter):
        await cache.incr("n")


async def test_values_too_large_for_the_stream(address: str, stack: AsyncExitStack, plain: Client) -> None:
    cache = await stack.enter_async_context(Client(address, timeout=10, codec=JsonCodec()))
    large = "x" * (1024 * 1024)
    await cache.set("a", large)
    await cache.set_many({"b": large, "c": "small"})
    assert await cache.get_many("abc") == {"a": large, "b": large, "c": "small"}
    assert await plain.get("b") == b'"' + large.encode() + b'"'


async def test_what_others_see_of_compressed_values(cache: Client[Any], plain: Client) -> None:
    await cache.set_many({"short": "text", "long": ["text"] * 1_000})
    assert await plain.get("short") == b'"text"'
    seen = await plain.get("long") or b""
    assert seen.startswith(COMPRESSED)
    assert zlib.decompress(seen[len(COMPRESSED) :]) == JsonCodec().encode(["text"] * 1_000)
    assert (await plain.lookup("long")).value == seen
    [entry] = [each async for each in cache.scan("long", values=True)]
    assert (entry.size, entry.value) == (len(seen), ["text"] * 1_000)
    await plain.set("long", b'["not compressed"]')
    assert await cache.get("long") == ["not compressed"]


async def test_compression_without_a_codec(address: str, stack: AsyncExitStack, plain: Client) -> None:
    cache, other = [
        await stack.enter_async_context(Client(address, timeout=10, compress_above=above))
        for above in (100, 5_000)
    ]
    values = {"long": b"v" * 3_000, "short": b"v", "marked": COMPRESSED, "too": UNCHANGED}
    await cache.set_many(values)
    assert await other.get_many(values) == values
    assert len(await plain.get("long") or b"") < 100
    assert await plain.get("marked") == UNCHANGED + COMPRESSED
    wrong: Any = "text"
    with pytest.raises(TypeError, match="must be bytes"):
        await cache.set("k", wrong)


async def test_compression_makes_room_for_more_than_a_node_takes(cache: Client[Any]) -> None:
    values = {key: key * (9 * 1024 * 1024) for key in "ab"}
    await cache.set("a", values["a"])
    await cache.set_many(values)
    assert await cache.get_many("ab") == values


async def test_bytes_that_the_codec_cannot_decode(cache: Client[Any], plain: Client) -> None:
    await plain.set_many({"good": b"1", "bad": b'{"a":', "bomb": COMPRESSED + b"no zlib"})
    assert await cache.get("good") == 1
    for call in (cache.get("bad"), cache.get("bad", 5), cache.lookup("bad"), cache.get_many(["good", "bad"])):
        with pytest.raises(
            UndecodableValue, match="the value of 'bad' cannot be decoded by JsonCodec"
        ) as caught:
            await call
        assert caught.value.metadata == {"key": "bad"}
        assert isinstance(caught.value.__cause__, ValueError)
    with pytest.raises(UndecodableValue, match="'bomb'"):
        await cache.get("bomb")
    with pytest.raises(UndecodableValue):
        _ = [entry async for entry in cache.scan(values=True)]
    assert len([entry async for entry in cache.scan()]) == 3
    assert await cache.set("bad", 1)
    assert await cache.get("bad") == 1


async def test_values_that_the_codec_cannot_encode(cache: Client[Any]) -> None:
    circular: list[Any] = []
    circular.append(circular)
    for wrong in ({1, 2}, b"bytes", object(), float("nan"), "\ud800", circular):
        for call in (
            cache.set("a", wrong),
            cache.set("a", wrong, if_absent=True),
            cache.set_many({"b": 1, "a": wrong}),
        ):
            with pytest.raises(
                InvalidArgument, match=r"value must be what JsonCodec can encode, got .* for 'a'"
            ) as caught:
                await call
            assert caught.value.metadata["field"] == "value"
    assert await cache.get_many("ab") == {}


async def test_codecs_of_the_application(address: str) -> None:
    async with Client(address, timeout=10, codec=Reversed()) as cache:
        await cache.set("a", "Ada")
        assert await cache.get("a") == "Ada"
    async with Client(address, timeout=10, codec=ToText()) as cache:
        with pytest.raises(TypeError, match="ToText must encode to bytes, not to str"):
            await cache.set("a", "b")
        assert await cache.get("a") == "adA"


async def test_types_of_values(address: str) -> None:
    async with Client(address, timeout=10) as plain, Client(address, timeout=10, codec=Reversed()) as cache:
        assert_type(plain, Client[bytes])
        assert_type(await plain.get("k"), bytes | None)
        assert_type(await plain.get("k", 5), bytes | int)
        assert_type(await cache.get("k"), str | None)
        assert_type(await cache.get_many(["k"]), dict[str, str])
        assert_type((await cache.lookup("k")).value, str | None)
        assert_type([entry.value async for entry in cache.scan()], list[str | None])
    assert_type(SyncClient(address), SyncClient[bytes])
    assert_type(SyncClient(address, codec=JsonCodec()), SyncClient[Any])


async def test_the_same_for_threads(address: str) -> None:
    def work() -> None:
        with SyncClient(address, timeout=10, codec=JsonCodec(), compress_above=100) as cache:
            values = {"a": 1, "b": ["text"] * 100, "c": {"d": None}}
            cache.set_many(values)
            cache.set("a", 2)
            values["a"] = 2
            assert cache.get_many(values) == values
            assert cache.get("b") == cache.lookup("b").value == values["b"]
            assert {entry.key: entry.value for entry in cache.scan(values=True)} == values
            with pytest.raises(InvalidArgument, match="JsonCodec"):
                cache.set("a", {1})
        pickles = SyncClient(address, timeout=10, codec=PickleCodec())
        with pickles, pytest.raises(UndecodableValue, match="PickleCodec"):
            pickles.get("c")

    await asyncio.to_thread(work)


@pytest.mark.parametrize("new", [Client, SyncClient])
def test_compress_above_is_checked(new: Callable[..., Any]) -> None:
    with pytest.raises(InvalidArgument, match="compress_above must be"):
        new("127.0.0.1:1", compress_above=-1)
    with pytest.raises(TypeError, match="compress_above must be int"):
        new("127.0.0.1:1", compress_above="1000")


def test_msgspec_round_trips() -> None:
    pytest.importorskip("msgspec")
    values = Values(MsgspecCodec(), 100)
    samples: list[Any] = [None, 5, "text", b"bytes", [1, 2.5], {"a": {"b": []}}, "x" * 1_000]
    for value in samples:
        assert values.decode("k", values.encode("k", value)) == value
    users = Values(MsgspecCodec(User), None)
    assert_type(users.decode("k", users.encode("k", User("Ada", ("a",)))), User)
    assert users.decode("k", users.encode("k", User("Ada", ("a",)))) == User("Ada", ("a",))
    for wrong in (b"", b"\x01", values.encode("k", {"name": "Ada", "tags": 5})):
        with pytest.raises(UndecodableValue, match="MsgspecCodec"):
            users.decode("k", wrong)
    with pytest.raises(InvalidArgument, match="MsgspecCodec"):
        values.encode("k", object())


def test_msgspec_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "msgspec", None)
    with pytest.raises(ImportError, match=r"pip install 'cacheservice\[msgspec\]'"):
        MsgspecCodec()
