"""Which operations come one after the other, without end and the same for the same seed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import accumulate, islice, repeat
from random import Random

from cacheservice.loadgen.plan import DELETE, GET, SET, Plan, Share
from cacheservice.loadgen.trace import UNKNOWN
from cacheservice.loadgen.zipf import zipf

Operation = tuple[str, list[str], int, float]
"""Kind, keys, bytes of a value and its seconds to live."""
_BLOCK = 200
"""Keys that are drawn at a time, which takes some 0.1 ms."""


def operations(share: Share) -> Iterator[Operation]:
    """Those of one process."""
    plan = share.plan
    rng = Random(f"{plan.seed}/{share.index}")
    return _drawn(plan, rng) if plan.trace is None else _recorded(share, rng)


def entries(share: Share) -> Iterator[tuple[str, int]]:
    """Keys and sizes of the values that this process writes before the load: a part of all."""
    plan = share.plan
    size = _sizes(plan, Random(f"{plan.seed}/fill/{share.index}"))
    if plan.trace is None:
        for number in range(share.index, plan.keys, plan.processes):
            yield f"{plan.prefix}{number}", size()
        return
    first = dict(zip(reversed(plan.trace.keys), reversed(plan.trace.sizes), strict=True))
    for key in islice(first, share.index, None, plan.processes):
        yield plan.prefix + key, size() if first[key] == UNKNOWN else first[key]


def entry_count(plan: Plan) -> int:
    return plan.keys if plan.trace is None else len(set(plan.trace.keys))


def _drawn(plan: Plan, rng: Random) -> Iterator[Operation]:
    prefix, batch = plan.prefix, plan.batch
    number, size = _numbers(plan, rng), _sizes(plan, rng)
    count = max(1, _BLOCK // batch)
    weights = list(accumulate(plan.mix))
    while True:
        kinds = rng.choices((GET, SET, DELETE), cum_weights=weights, k=count)
        names = [f"{prefix}{number()}" for _ in range(count * batch)]
        keys = [names[first : first + batch] for first in range(0, len(names), batch)]
        sizes = [size() for _ in kinds]
        yield from zip(kinds, keys, sizes, repeat(plan.ttl))


def _recorded(share: Share, rng: Random) -> Iterator[Operation]:
    """Every so-and-so-many request of the log, from its beginning again after its end."""
    plan, trace = share.plan, share.plan.trace
    assert trace is not None
    size = _sizes(plan, rng)
    # Where there are more processes than requests, some do what others do too.
    own = range(share.index % len(trace), len(trace), plan.processes)
    while True:
        for row in own:
            told = trace.sizes[row]
            bytes_of_value = size() if told == UNKNOWN else told
            yield (
                trace.kinds[row],
                [plan.prefix + trace.keys[row]],
                bytes_of_value,
                trace.ttls[row] or plan.ttl,
            )


def _numbers(plan: Plan, rng: Random) -> Callable[[], int]:
    if plan.alpha is not None:
        return zipf(plan.keys, plan.alpha, rng)
    random, count = rng.random, plan.keys
    return lambda: int(random() * count)


def _sizes(plan: Plan, rng: Random) -> Callable[[], int]:
    least, most = plan.sizes
    if least == most:
        return lambda: least
    random, count = rng.random, most - least + 1
    return lambda: least + int(random() * count)
