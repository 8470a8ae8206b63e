"""The demonstration of a stampede, made small: it counts what an origin is asked when a key expires."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.stampede_run import VARIANTS, Load, Variant, run

pytestmark = pytest.mark.slow

LOAD = Load(rate=1_000.0, processes=2, seconds=4.0, ttl=1.5)


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.name)
async def test_only_naive_readers_ask_the_origin_more_than_once_for_an_expiry(
    variant: Variant, tmp_path: Path
) -> None:
    result = await run(variant, LOAD, tmp_path)

    assert result.reads == LOAD.rate * LOAD.seconds
    assert not result.failed
    by_expiry = result.by_expiry(LOAD.ttl)
    assert (len(by_expiry) > 1) is variant.expires
    if variant.is_naive:
        assert max(by_expiry) > 1
    else:
        assert max(by_expiry) == 1
