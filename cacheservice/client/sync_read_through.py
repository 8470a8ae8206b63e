"""Reading and writing through the cache from threads, in which their loaders and writers run."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping
from typing import Any

from cacheservice.client.loads import Load, Terms
from cacheservice.client.read_through import Begun, ReadThrough

Run = Callable[[Callable[[ReadThrough], Coroutine[Any, Any, Any]]], Any]
"""Has a step done, and waits for it."""


def get(
    run: Run,
    keys: list[str],
    loader: Callable[[list[str]], Mapping[str, Any]],
    terms: Terms,
    wait: float,
) -> dict[str, Any]:
    """As ReadThrough.get. What is to be loaded anew is loaded by the caller who is told so, the others go
    on."""
    begun: Begun = run(lambda steps: steps.begin(keys))
    _load(run, begun, [*begun.due, *begun.refreshes], loader, terms)
    if begun.awaited:
        _load(run, begun, run(lambda steps: steps.wait(begun, wait)), loader, terms)
    return begun.result()


def _load(
    run: Run,
    begun: Begun,
    loads: list[Load],
    loader: Callable[[list[str]], Mapping[str, Any]],
    terms: Terms,
) -> None:
    if not loads:
        return
    try:
        values = loader([load.key for load in loads])
    except Exception as error:
        failure = error
        fallback = run(lambda steps: steps.give_up(loads, failure))
        if fallback is None and any(load.current is None for load in loads):
            begun.errors.append(error)
        begun.found |= fallback or {}
    except BaseException:
        run(lambda steps: steps.give_up(loads, None))
        raise
    else:
        begun.found |= run(lambda steps: steps.settle(loads, values, terms))
