"""How far what a node holds has been handed over, and to whom."""

from __future__ import annotations

from itertools import pairwise

from cacheservice.node.view import View

END = 1 << 96
"""Behind the last position of any store."""
MAX_PARTS = 16

_Part = tuple[int, int, View | None]
"""Begin, end, and for whom it has been handed over."""


class Progress:
    """For each part of the store's positions the view whose owners have everything in it; None: nobody may.

    A change of the ring in the middle of a handoff leaves the part behind and the part before with
    different views. Of more than MAX_PARTS the two smallest neighbours count as not handed over at all.
    """

    def __init__(self) -> None:
        self._parts: list[tuple[int, View | None]] = [(0, None)]
        """Where each begins, in order."""

    def parts(self) -> list[_Part]:
        ends = [start for start, _ in self._parts[1:]] + [END]
        return [(start, end, view) for (start, view), end in zip(self._parts, ends, strict=True)]

    def remaining(self, view: View) -> list[_Part]:
        """The parts that are not handed over as `view` wants it."""
        return [part for part in self.parts() if part[2] is None or not part[2].places_as(view)]

    def advance(self, start: int, end: int, view: View) -> None:
        """Takes note that what is from `start` to before `end` has been handed over for `view`."""
        if start >= end:
            return
        cut: list[tuple[int, View | None]] = []
        for begin, stop, before in self.parts():
            if begin < start:
                cut.append((begin, before))
            if begin <= start < stop:
                cut.append((start, view))
            if stop > end:
                cut.append((max(begin, end), before))
        self._parts = _merged(cut)
        while len(self._parts) > MAX_PARTS:
            self._forget_two(view, start)

    def _forget_two(self, view: View, kept: int) -> None:
        """Forgets two neighbours, rather old ones, but not the part with position `kept`."""

        def loss(pair: tuple[_Part, _Part]) -> tuple[int, int]:
            known = [(end - begin, _is_same(each, view)) for begin, end, each in pair if each is not None]
            return sum(is_new for _, is_new in known), sum(size for size, _ in known)

        pairs = [pair for pair in pairwise(self.parts()) if not pair[0][0] <= kept < pair[1][1]]
        forgotten = {begin for begin, _, _ in min(pairs, key=loss)}
        self._parts = _merged([(begin, None if begin in forgotten else each) for begin, each in self._parts])


def _merged(parts: list[tuple[int, View | None]]) -> list[tuple[int, View | None]]:
    """Neighbours with the same view as one."""
    merged = parts[:1]
    for begin, view in parts[1:]:
        if not _is_same(merged[-1][1], view):
            merged.append((begin, view))
    return merged


def _is_same(one: View | None, other: View | None) -> bool:
    if one is None or other is None:
        return one is other
    return one.places_as(other)
