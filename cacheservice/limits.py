"""Bounds of the contract that servers and clients check alike."""

from __future__ import annotations

from typing import Final

MAX_KEY_BYTES: Final = 1024
MAX_BATCH: Final = 10_000
"""Keys in one request."""
MAX_TTL_SECONDS: Final = 315_360_000.0
"""Ten years: the longest time to live."""
