"""Results that may wait for other nodes."""

from __future__ import annotations

from typing import TypeVar

from cacheservice.node.later import Later, Soon

Result = TypeVar("Result")


async def there(soon: Soon[Result]) -> Result:
    """The result, when it is there."""
    if isinstance(soon, Later):
        await soon.future
        return soon.result()
    return soon
