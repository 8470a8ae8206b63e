"""Another process's moments by one's own clock, without trust that the two clocks show the same."""

from __future__ import annotations

MOST_DRIFT = 0.0002
"""By how much two clocks may differ in speed and still be followed."""


class RemoteClock:
    """Tells when, by the own clock, something happened that another process gives a moment of its own for.

    Never later than it was, unless messages have been late without a break for long: after an hour of that by
    0.7 seconds at most. All times in milliseconds.
    """

    def __init__(self, asked_at: float) -> None:
        """`asked_at`: a moment of the own clock before the first message was sent."""
        self._asked_at = asked_at
        self._offset: float | None = None
        self._heard_at = asked_at

    def here(self, moment: float, now: float) -> float:
        """When by the own clock it happened of which a message is received `now`."""
        if self._offset is None:
            self._offset = self._asked_at - moment
        else:
            drifted = self._offset + (now - self._heard_at) * MOST_DRIFT
            self._offset = min(drifted, now - moment)
        self._heard_at = now
        return moment + self._offset
