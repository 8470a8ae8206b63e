"""The batches of an Exchange: out of their messages, every bound checked, and their results into messages."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import compress
from typing import Final, TypeVar, cast

from cacheservice.errors import AnswerTooLarge, CacheServiceError, InvalidArgument
from cacheservice.limits import MAX_KEY_BYTES, MAX_TTL_SECONDS
from cacheservice.node.columns import Errors, Reads, Removals, Writes
from cacheservice.server import decode, encode
from cacheservice.server.decode import Bounds
from cacheservice.v1 import cache_pb2 as pb
from cacheservice.v1.peer_pb2 import PeerServiceExchangeResponse
from cacheservice.wire import from_status, to_status

Cell = TypeVar("Cell")
ReadRow = tuple[int, bytes, int, int, int, CacheServiceError | None]
WrittenRow = tuple[int, int, CacheServiceError | None]

_MAX_TTL_MS: Final = round(MAX_TTL_SECONDS * 1_000)
_MAX_PLAIN_LENGTH: Final = MAX_KEY_BYTES // 4
_FRAMING_BYTES: Final = 64
"""What one key's row of an answer takes at most beside its value."""


class Keys:
    """Keys within bounds, and the errors of the others by their positions in the whole."""

    def __init__(self, keys: list[str], refused: Errors) -> None:
        self.keys = keys
        self.refused = refused


class Entries:
    """Entries within bounds to write, and the errors of the others by their positions in the whole."""

    def __init__(
        self,
        keys: list[str],
        values: list[bytes],
        ttl_ms: list[int],
        stale_ms: list[int],
        refused: Errors,
    ) -> None:
        self.keys = keys
        self.values = values
        self.ttl_ms = ttl_ms
        self.stale_ms = stale_ms
        self.refused = refused


def keys(column: Sequence[str]) -> Keys:
    """InvalidArgument when the batch as a whole is out of bounds."""
    decode.batch_size("keys", column)
    found = listed(column)
    if are_plain(found):
        return Keys(found, {})
    refused = _refused(found, (), (), (), None)
    return Keys(_without(found, refused), refused)


def entries(columns: pb.SetColumns, bounds: Bounds) -> Entries:
    """InvalidArgument when the batch as a whole is out of bounds, or the columns' lengths do not agree."""
    decode.batch_size("keys", columns.keys)
    found = listed(columns.keys)
    values = listed(columns.values)
    ttl_ms = listed(columns.ttl_ms)
    stale_ms = listed(columns.stale_ms)
    size = len(found)
    if len(values) != size:
        raise InvalidArgument.of("values", f"as many as keys, {size}", str(len(values)))
    for field, column in (("ttl_ms", ttl_ms), ("stale_ms", stale_ms)):
        if len(column) not in (0, 1, size):
            raise InvalidArgument.of(field, f"none, one, or as many as keys, {size}", str(len(column)))
    if (
        are_plain(found)
        and max(map(len, values)) <= bounds.max_value_bytes
        and max(ttl_ms, default=0) <= _MAX_TTL_MS
        and max(stale_ms, default=0) <= _MAX_TTL_MS
    ):
        return Entries(found, values, ttl_ms, stale_ms, {})
    refused = _refused(found, values, ttl_ms, stale_ms, bounds)
    return Entries(
        _without(found, refused),
        _without(values, refused),
        _without(ttl_ms, refused) if len(ttl_ms) == size else ttl_ms,
        _without(stale_ms, refused) if len(stale_ms) == size else stale_ms,
        refused,
    )


def reads(result: Reads, max_bytes: int, *, is_whole: bool = True) -> pb.ExchangeResponse:
    """The reads, of which values beyond `max_bytes` in all are replaced by an error; never the first.

    That is so for `result`, too. `is_whole`: or else the caller appends outcomes and values.
    """
    size = _FRAMING_BYTES * len(result.values)
    for value in result.values:
        size += len(value)
    if size > max_bytes:
        _cut(result, max_bytes)
    # Only what there is: to give protobuf ten empty columns takes as long as to look up five keys.
    response = pb.ExchangeResponse()
    columns = response.get
    if is_whole:
        columns.outcomes.extend(result.outcomes)  # type: ignore[arg-type]
        columns.values.extend(result.values)
    if result.versions:
        columns.versions.extend(result.versions)
    if result.ttl_ms:
        columns.ttl_ms.extend(result.ttl_ms)
    if result.from_replica:
        columns.from_replica.extend(result.from_replica)
    for row, lease in result.leases.items():
        columns.leases.add(index=row, token=lease.token, lease_ms=lease.lease_ms)
    for row, failure in result.load_failures.items():
        columns.load_failures.add(index=row, failure=encode.load_failure(failure))
    if result.hot:
        columns.hot.extend(result.hot)
        columns.hot_ms = result.hot_ms
    if result.errors:
        response.errors.extend(_errors(result.errors))
    return response


def writes(result: Writes) -> pb.ExchangeResponse:
    columns = pb.SetResultColumns(versions=result.versions, replicas=result.replicas)
    return pb.ExchangeResponse(set=columns, errors=_errors(result.errors))


def removals(result: Removals) -> pb.ExchangeResponse:
    columns = pb.DeleteResultColumns(outcomes=result.outcomes, versions=result.versions)  # type: ignore[arg-type]
    return pb.ExchangeResponse(delete=columns, errors=_errors(result.errors))


def read_rows(response: PeerServiceExchangeResponse) -> list[ReadRow]:
    """Outcome, value, version, time to live, for how long it is hot, and the error of each key, of the answer
    to a peer's read; empty when it was refused."""
    columns = response.owned.get
    size = len(columns.outcomes)
    errors: list[CacheServiceError | None] = [None] * size
    for error in response.owned.errors:
        errors[error.index] = from_status(error.status)
    hot_ms = [0] * size
    for row in columns.hot:
        hot_ms[row] = columns.hot_ms
    versions, ttl_ms = columns.versions or [0] * size, columns.ttl_ms or [0] * size
    return list(zip(columns.outcomes, columns.values, versions, ttl_ms, hot_ms, errors, strict=True))


def reads_of(rows: Sequence[ReadRow], *, values_only: bool) -> Reads:
    outcomes, values, versions, ttl_ms, hot_ms, errors = map(list, zip(*rows, strict=True))
    reads = Reads(outcomes, values, errors=_by_row(errors))
    if not values_only:
        reads.versions, reads.ttl_ms = versions, ttl_ms
    if any(hot_ms):
        reads.hot = tuple(row for row, for_ms in enumerate(hot_ms) if for_ms)
        reads.hot_ms = max(hot_ms)
    return reads


def written_rows(response: PeerServiceExchangeResponse) -> list[WrittenRow]:
    """Version, replicas, and the error of each key, of the answer to a peer's write; empty when it was
    refused."""
    columns = response.owned.set
    errors: list[CacheServiceError | None] = [None] * len(columns.versions)
    for error in response.owned.errors:
        errors[error.index] = from_status(error.status)
    return list(zip(columns.versions, columns.replicas, errors, strict=True))


def writes_of(rows: Sequence[WrittenRow]) -> Writes:
    versions, replicas, errors = map(list, zip(*rows, strict=True))
    return Writes(versions, replicas, _by_row(errors))


def listed(column: Sequence[Cell]) -> list[Cell]:
    """As list() of a message's column, in three quarters of the time."""
    return cast("list[Cell]", column[:])


def are_plain(keys: list[str]) -> bool:
    """Whether all keys are so short that they are within bounds whatever their characters are."""
    return all(0 < len(key) <= _MAX_PLAIN_LENGTH for key in keys)


def _by_row(errors: Iterable[CacheServiceError | None]) -> Errors:
    return {row: error for row, error in enumerate(errors) if error is not None}


def _refused(
    keys: Iterable[str],
    values: Sequence[bytes],
    ttl_ms: Sequence[int],
    stale_ms: Sequence[int],
    bounds: Bounds | None,
) -> Errors:
    refused: Errors = {}
    for row, key in enumerate(keys):
        try:
            decode.key_(key)
            if bounds is not None:
                decode.check_value(values[row], bounds)
            for field, column in (("ttl_ms", ttl_ms), ("stale_ms", stale_ms)):
                if column and column[row % len(column)] > _MAX_TTL_MS:
                    got = str(column[row % len(column)])
                    raise InvalidArgument.of(field, f"at most {_MAX_TTL_MS}", got)
        except CacheServiceError as error:
            refused[row] = error
    return refused


def _without(column: list[Cell], refused: Errors) -> list[Cell]:
    return list(compress(column, (row not in refused for row in range(len(column)))))


def _cut(result: Reads, max_bytes: int) -> None:
    left = max_bytes - _FRAMING_BYTES * len(result.values)
    spent = False
    for row, value in enumerate(result.values):
        if len(value) > left and spent:
            result.outcomes[row] = 0
            result.values[row] = b""
            for column in (result.versions, result.ttl_ms):
                if column is not None:
                    column[row] = 0
            if result.from_replica is not None:
                result.from_replica[row] = False
            result.errors[row] = AnswerTooLarge("the values exceed one message; ask for this key again")
        else:
            left -= len(value)
            spent = spent or bool(value)


def _errors(errors: Errors) -> list[pb.ExchangeError]:
    return [pb.ExchangeError(index=row, status=to_status(error)) for row, error in sorted(errors.items())]
