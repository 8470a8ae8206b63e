"""Listing entries, page by page as they are asked for."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Generic

from cacheservice.client.arguments import checked_text
from cacheservice.client.codecs import Value
from cacheservice.client.results import EntryInfo
from cacheservice.client.values import Values
from cacheservice.v1 import cache_pb2 as pb

PAGE_SIZE = 1_000


class _Pages(Generic[Value]):
    """The pages of one scan: what to ask for next, and what has come."""

    def __init__(self, prefix: str, include_values: bool, values: Values[Value]) -> None:
        self._values = values
        self._request = pb.ScanRequest(
            prefix=checked_text("prefix", prefix), page_size=PAGE_SIZE, include_values=include_values
        )
        self._token: str | None = ""
        self.unreachable: tuple[str, ...] = ()
        """Nodes that gave no answer so far, whose entries may be missing."""

    @property
    def next(self) -> pb.ScanRequest | None:
        """The request for the next page; None at the end."""
        if self._token is None:
            return None
        request = pb.ScanRequest()
        request.CopyFrom(self._request)
        request.page_token = self._token
        return request

    def take(self, page: pb.ScanResponse) -> Iterator[EntryInfo[Value]]:
        """The entries of the page; each is decoded when its turn comes."""
        self._token = page.next_page_token or None
        self.unreachable = tuple(page.unreachable)
        return map(self._entry_info, page.entries)

    def _entry_info(self, entry: pb.EntryInfo) -> EntryInfo[Value]:
        has_value = entry.HasField("value") and not entry.absent
        return EntryInfo(
            entry.key,
            entry.value_bytes,
            entry.version,
            entry.ttl_seconds,
            entry.age_seconds,
            entry.stale_seconds,
            entry.load_seconds,
            tuple(entry.tags),
            entry.absent,
            self._values.decode(entry.key, entry.value) if has_value else None,
        )


class Scan(_Pages[Value]):
    """Entries of the cluster, to be gone through once with `async for`."""

    def __init__(
        self,
        ask: Callable[[pb.ScanRequest], Awaitable[pb.ScanResponse]],
        prefix: str,
        include_values: bool,
        values: Values[Value],
    ) -> None:
        super().__init__(prefix, include_values, values)
        self._ask = ask

    async def __aiter__(self) -> AsyncIterator[EntryInfo[Value]]:
        while (request := self.next) is not None:
            for entry in self.take(await self._ask(request)):
                yield entry


class SyncScan(_Pages[Value]):
    """Entries of the cluster, to be gone through once with `for`."""

    def __init__(
        self,
        ask: Callable[[pb.ScanRequest], pb.ScanResponse],
        prefix: str,
        include_values: bool,
        values: Values[Value],
    ) -> None:
        super().__init__(prefix, include_values, values)
        self._ask = ask

    def __iter__(self) -> Iterator[EntryInfo[Value]]:
        while (request := self.next) is not None:
            yield from self.take(self._ask(request))
