"""Where a scan goes on, as text for the client to hand back.

Positions are those of hashes that this process alone computes so, hence the mark of the process.
"""

from __future__ import annotations

import re

from cacheservice.errors import InvalidArgument

_MARK = f"{hash('mark of this process') & 0xFFFF_FFFF:08x}"
_TOKEN = re.compile(rf"{_MARK}-([0-9a-f]{{1,24}})")


def to_token(position: int | None) -> str:
    return "" if position is None else f"{_MARK}-{position:x}"


def from_token(token: str) -> int:
    """The position; InvalidArgument when the token is none that this process has given."""
    if not token:
        return 0
    match = _TOKEN.fullmatch(token)
    if not match:
        bound = "empty or a next_page_token of this node since it started; begin again without"
        raise InvalidArgument.of("page_token", bound, repr(token[:64]))
    return int(match[1], 16)
