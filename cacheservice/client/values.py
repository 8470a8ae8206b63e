"""Values of the application as bytes of the cache, and back."""

from __future__ import annotations

from typing import Any, Generic

from cacheservice.client.arguments import checked_uint64
from cacheservice.client.codecs import Codec, Value
from cacheservice.client.compression import compress, decompress
from cacheservice.errors import InvalidArgument, UndecodableValue, shown

_SHOWN_CHARACTERS = 200


class Values(Generic[Value]):
    """Encodes by the codec, then compresses what is longer than `compress_above` bytes; decodes likewise.

    Without a codec values are bytes. Without `compress_above` nothing is compressed, and no marker known.
    """

    def __init__(self, codec: Codec[Value] | None, compress_above: int | None) -> None:
        self.is_plain = codec is None and compress_above is None
        """Whether the bytes are the values, so that there is no need to `decode`."""
        self._codec = codec
        self._compress_above = (
            None if compress_above is None else checked_uint64("compress_above", compress_above)
        )

    def encode(self, key: str, value: Value) -> bytes:
        """TypeError without a codec if it is no bytes; InvalidArgument if the codec does not take it."""
        if self._codec is not None:
            data = self._encode_by(self._codec, key, value)
        elif isinstance(value, bytes):
            data = value
        else:
            raise TypeError(f"a value must be bytes, not {type(value).__name__}")
        return data if self._compress_above is None else compress(data, self._compress_above)

    def decode(self, key: str, data: bytes) -> Value:
        """UndecodableValue if nobody with the same codec can have written it."""
        value: Any
        try:
            value = data if self._compress_above is None else decompress(data)
            if self._codec is not None:
                value = self._codec.decode(value)
        except Exception as error:
            by = "decompression" if self._codec is None else type(self._codec).__name__
            raise UndecodableValue(
                f"the value of {shown(key)} cannot be decoded by {by}: {_described(error)}", key=key
            ) from error
        decoded: Value = value
        return decoded

    def decode_many(self, found: dict[str, bytes]) -> dict[str, Value]:
        values: Any = found
        return values if self.is_plain else {key: self.decode(key, data) for key, data in found.items()}

    def _encode_by(self, codec: Codec[Value], key: str, value: Value) -> bytes:
        name = type(codec).__name__
        try:
            data = codec.encode(value)
        except Exception as error:
            got = f"{type(value).__name__} for {shown(key)}: {_described(error)}"
            raise InvalidArgument.of("value", f"what {name} can encode", got) from error
        if not isinstance(data, bytes):
            raise TypeError(f"{name} must encode to bytes, not to {type(data).__name__}")
        return data


def _described(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:_SHOWN_CHARACTERS]
