"""How values become bytes and back."""

from __future__ import annotations

import json
import pickle
from typing import Any, Generic, Protocol

from typing_extensions import TypeVar

Value = TypeVar("Value", default=bytes)
Decoded = TypeVar("Decoded", default=Any)


class Codec(Protocol[Value]):
    """What a client is given to write other values than bytes. It may raise whatever it likes.

    A SyncClient uses it in several threads. Everyone who reads a key needs the codec of who wrote it.
    """

    def encode(self, value: Value, /) -> bytes: ...

    def decode(self, data: bytes, /) -> Value: ...


class JsonCodec:
    """JSON, in UTF-8 and without spaces, for readers in any language.

    A value comes back as JSON has it: a tuple as a list, the keys of a dict as str. NaN and the infinities
    are refused, because JSON has none. Counters are JSON too: `get` reads what `incr` made as an int.
    """

    def __init__(self) -> None:
        self._encoder = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"))

    def encode(self, value: Any) -> bytes:
        return self._encoder.encode(value).encode()

    def decode(self, data: bytes) -> Any:
        return json.loads(data.decode())


class PickleCodec:
    """Pickle, for any Python object. Whoever can write to the cache can run code in all that read from it.

    So only where every service and every person that reaches the cache may do that anyway. Reading a value
    also needs its classes as they were when it was written, or compatible ones.
    """

    def encode(self, value: Any) -> bytes:
        return pickle.dumps(value, protocol=5)

    def decode(self, data: bytes) -> Any:
        return pickle.loads(data)


class MsgspecCodec(Generic[Decoded]):
    """MessagePack by way of msgspec: smaller and faster than JSON, and readable in any language.

    With `type`, for instance a msgspec.Struct, a dataclass or list[int], values are read as that type, and
    what does not fit is an error; without, as dict, list, str and the like. Needs the extra:
    cacheservice[msgspec]. It misreads counters, which are decimal text: read them with `incr(key, 0)`.
    """

    def __init__(self, type: type[Decoded] | None = None) -> None:  # noqa: A002
        try:
            from msgspec import msgpack
        except ImportError as error:
            raise ImportError("MsgspecCodec needs msgspec: pip install 'cacheservice[msgspec]'") from error
        self._encoder = msgpack.Encoder()
        self._decoder: Any = msgpack.Decoder(Any if type is None else type)

    def encode(self, value: Decoded) -> bytes:
        data: bytes = self._encoder.encode(value)
        return data

    def decode(self, data: bytes) -> Decoded:
        value: Decoded = self._decoder.decode(data)
        return value
