"""Results that wait for other nodes, without a coroutine for each."""

from __future__ import annotations

from asyncio import Future
from collections.abc import Callable
from typing import Any, Generic, TypeAlias, TypeVar

Result_co = TypeVar("Result_co", covariant=True)
Result = TypeVar("Result")
Other = TypeVar("Other")


class Later(Generic[Result_co]):
    """What there is when `future` is done: its result, after some steps."""

    __slots__ = ("_steps", "future")

    def __init__(self, future: Future[Any], *steps: Callable[[Any], Any]) -> None:
        self.future = future
        self._steps = steps

    def then(self, step: Callable[[Result_co], Other]) -> Later[Other]:
        """What `step` makes of the result."""
        return Later(self.future, *self._steps, step)

    def result(self) -> Result_co:
        """To be called once, when `future` is done; raises what that or a step has raised."""
        result: Any = self.future.result()
        for step in self._steps:
            result = step(result)
        got: Result_co = result
        return got


Soon: TypeAlias = Result | Later[Result]
"""A result, or one that waits for other nodes."""


def then(soon: Soon[Result], step: Callable[[Result], Other]) -> Soon[Other]:
    """What `step` makes of the result, now or later."""
    if isinstance(soon, Later):
        return soon.then(step)
    return step(soon)
