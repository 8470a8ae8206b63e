"""Until when it is known what happens on the nodes, from what each was heard to say."""

from __future__ import annotations

from collections.abc import Collection

from cacheservice.client.near_cache import Copies

_UNHEARD = (0.0, 0)
_STEP_SECONDS = 0.1
"""Smaller progress changes nothing."""


class Sources:
    """The nodes that have to be heard, each until when and with which ring.

    Copies are served as long as all of them are heard and have the same ring. When one is not heard any
    longer, or has another ring, everything is dropped. Times in seconds.
    """

    def __init__(self, copies: Copies) -> None:
        self._copies = copies
        self._heard: dict[str, tuple[float, int]] = {}

    def expect(self, names: Collection[str], ring_epoch: int) -> None:
        """Takes these nodes, with this ring, for all there are."""
        if ring_epoch == self._copies.ring_epoch and self._heard.keys() == set(names):
            return
        self._heard = {name: self._heard.get(name, _UNHEARD) for name in names}
        self._copies.ring_epoch = ring_epoch
        self._doubt()

    def heard(self, name: str, until: float, ring_epoch: int) -> None:
        """Takes note that all is known which happened on the node so far that its silence until then is no
        reason for doubt; one that was not expected is from now on."""
        before, epoch_before = self._heard.get(name, _UNHEARD)
        if ring_epoch == epoch_before and until - before < _STEP_SECONDS:
            return
        self._heard[name] = max(before, until), ring_epoch
        if epoch_before and ring_epoch != epoch_before:
            self._doubt()
        else:
            self._reckon()

    def lost(self, name: str) -> None:
        """Takes note that something happened on the node that is not known; it is expected to be heard."""
        self._heard[name] = _UNHEARD
        self._doubt()

    def _doubt(self) -> None:
        self._copies.clear()
        self._reckon()

    def _reckon(self) -> None:
        epoch = self._copies.ring_epoch
        agrees = all(of_node == epoch for _, of_node in self._heard.values())
        heard = [until for until, _ in self._heard.values()]
        self._copies.live_until = min(heard, default=0.0) if agrees else 0.0
