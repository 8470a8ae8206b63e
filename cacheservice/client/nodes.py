"""The nodes that a client can call, and which of them it calls next."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

import grpc

from cacheservice.address import endpoint
from cacheservice.certificates import Certificates
from cacheservice.client.channel import NodeStubs
from cacheservice.client.telemetry import sdk
from cacheservice.errors import (
    CacheServiceError,
    DeadlineExceeded,
    OutcomeUnknown,
    TooFewReplicas,
    Unavailable,
)
from cacheservice.v1.cluster_pb2 import DescribeRequest, Topology
from cacheservice.wire import from_rpc_error, was_cancelled_here

_SET_ASIDE_SECONDS = 1.0

_FINAL = (OutcomeUnknown, TooFewReplicas)
"""Answers of the owner itself: another node would have no other."""

Response = TypeVar("Response")


class Nodes:
    """Calls any node that answers, in turn; starts from `targets`, and learns the others with `learn`.

    A node that gives no answer is left out for a second. Safe for one event loop.
    """

    def __init__(
        self, targets: Sequence[str], timeout: float, certificates: Certificates | None = None
    ) -> None:
        if not targets:
            raise ValueError("a client needs the address of at least one node")
        self.targets = tuple(dict.fromkeys(map(_checked, targets)))
        self._timeout = timeout
        self._certificates = certificates
        self._stubs: dict[str, NodeStubs] = {}
        self._order = list(self.targets)
        self._aside_until: dict[str, float] = {}
        self._turn = 0
        self._closing: set[asyncio.Task[None]] = set()
        self._is_closed = False

    @property
    def addresses(self) -> Sequence[str]:
        """Of all nodes that are known."""
        return self._order

    def learn(self, members: Sequence[str]) -> None:
        """Takes over the members' addresses, and closes the channels to others.

        The targets stay: the members' own addresses may be of no use from here.
        """
        self._order = list(dict.fromkeys([*members, *self.targets]))
        wanted = set(self._order)
        self._aside_until = {a: until for a, until in self._aside_until.items() if a in wanted}
        for gone in [address for address in self._stubs if address not in wanted]:
            # Calls under way may finish; all have ended by their deadline.
            closing = asyncio.create_task(self._stubs.pop(gone).close(self._timeout))
            self._closing.add(closing)
            closing.add_done_callback(self._closing.discard)

    async def call(
        self,
        rpc: Callable[[NodeStubs, float], Awaitable[Response]],
        *,
        repeatable: bool,
        timeout: float | None = None,
        first: str | None = None,
    ) -> Response:
        """The response of `rpc`, given a node's stubs and a timeout in seconds, from any node; best the one
        at the address `first`.

        Raises the errors of cacheservice.errors. A call that is not `repeatable` is made again only when
        it was certainly not done; else OutcomeUnknown says that it may have been.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + (self._timeout if timeout is None else timeout)
        untried = self._in_turn(loop.time(), first)
        while True:
            address = untried.pop(0)
            left = deadline - loop.time()
            attempt = left / 2 if untried else left
            may_send = repeatable or await self.at(address).connects(attempt)
            error = self.explained(address, Unavailable(f"no connection to {address}"))
            try:
                if may_send:
                    return await rpc(self.at(address), attempt if repeatable else deadline - loop.time())
            except grpc.aio.AioRpcError as failure:
                error = from_rpc_error(failure)
            except asyncio.CancelledError:
                if was_cancelled_here():
                    raise
                raise OutcomeUnknown("the client was closed during the call") from None
            no_answer = type(error) in (Unavailable, DeadlineExceeded)
            if no_answer:
                self._aside_until[address] = loop.time() + _SET_ASIDE_SECONDS
                sdk.unanswered(address, 1, error)
            if no_answer and may_send and not repeatable:
                raise OutcomeUnknown(f"{address} gave no answer: {error.message}") from error
            is_final = not isinstance(error, Unavailable | DeadlineExceeded) or isinstance(error, _FINAL)
            if is_final or not untried or loop.time() >= deadline:
                raise error

    async def topology(self) -> Topology:
        """The cluster as some node sees it."""
        response = await self.call(
            lambda node, timeout: node.cluster.Describe(DescribeRequest(), timeout=timeout), repeatable=True
        )
        return response.topology

    def at(self, address: str) -> NodeStubs:
        """The stubs of the node at `address`."""
        node = self._stubs.get(address)
        if node is None:
            if self._is_closed:
                raise Unavailable("the client is closed")
            node = self._stubs[address] = NodeStubs(address, self._certificates)
        return node

    def explained(self, address: str, error: CacheServiceError) -> CacheServiceError:
        """The error, with why there is no connection to the node at `address`, if that is known."""
        node = self._stubs.get(address)
        if node is None or not node.trouble or type(error) is not Unavailable:
            return error
        return Unavailable(f"{error.message}: {node.trouble}")

    async def close(self) -> None:
        self._is_closed = True
        await asyncio.gather(*(node.close() for node in self._stubs.values()), *self._closing)
        self._stubs.clear()

    def _in_turn(self, now: float, first: str | None) -> list[str]:
        """All addresses, beginning with `first` and then the next in turn; those set aside last."""
        self._turn = (self._turn + 1) % len(self._order)
        rotated = self._order[self._turn :] + self._order[: self._turn]
        return sorted(
            rotated, key=lambda address: (self._aside_until.get(address, 0.0) > now, address != first)
        )


def _checked(target: str) -> str:
    """ValueError when the target is neither HOST:PORT nor a gRPC target with a scheme that is known here."""
    endpoint(target)
    return target
