"""The store's structures once more, without a thought for speed: models to compare the real ones with."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator
from copy import deepcopy

from xxhash import xxh64_intdigest

from cacheservice.store import lfu
from cacheservice.store.ghosts import FINGERPRINT, Ghosts

ROOMY_PLACES = 1 << 16


class Key(str):
    """A key whose hash is the same in every process, and may be chosen.

    Where a key stands in the store follows from its hash, and Python's own differs from run to run.
    """

    __slots__ = ("position",)

    position: int

    def __new__(cls, text: str, position: int | None = None) -> Key:
        key = super().__new__(cls, text)
        key.position = xxh64_intdigest(text.encode()) if position is None else position
        return key

    def __hash__(self) -> int:
        return self.position - (1 << 64) if self.position >> 63 else self.position


class ExactGhosts:
    """Ghosts that loses nothing and mistakes nothing."""

    def __init__(self) -> None:
        self.noted: dict[str, int] = {}
        self.number = 0
        self.count = 0

    def __len__(self) -> int:
        return self.count

    def add(self, key: str, horizon: int) -> None:
        self.number += 1
        self.noted[key] = self.number
        if self.count < horizon:
            self.count += 1

    def take(self, key: str, horizon: int) -> bool:
        if key not in self.noted or self.number - self.noted[key] >= horizon:
            return False
        del self.noted[key]
        self.count = max(0, self.count - 1)
        return True


def make_room(ghosts: Ghosts) -> None:
    """Gives the memory places enough for keys that do not collide, so that it is exact with them."""
    ghosts._table = array("I", [0]) * ROOMY_PLACES
    ghosts._mask = ROOMY_PLACES - 1


def keys_that_do_not_collide(count: int) -> list[str]:
    """Keys that each have a place of their own in a roomy memory, and cannot be taken for one another."""
    keys: dict[int, str] = {}
    number = 0
    while len(keys) < count:
        key = f"key{number}"
        ghost = hash(key) & FINGERPRINT
        if ghost >= ROOMY_PLACES:
            keys.setdefault(ghost & ROOMY_PLACES - 1, key)
        number += 1
    return list(keys.values())


class NaivePolicy:
    """The entries of a policy, and what all policies have in common."""

    def __init__(self) -> None:
        self.entries: dict[str, bytes] = {}

    def get(self, key: str) -> bytes | None:
        if key in self.entries:
            self.used(key)
        return self.entries.get(key)

    def peek(self, key: str) -> bytes | None:
        return self.entries.get(key)

    def add(self, key: str, packed: bytes) -> None:
        self.entries[key] = packed
        self.came(key)

    def replace(self, key: str, packed: bytes) -> None:
        self.entries[key] = packed
        self.used(key)

    def pop(self, key: str) -> bytes | None:
        if key in self.entries:
            self.left(key)
        return self.entries.pop(key, None)

    def evict(self) -> tuple[str, bytes]:
        key = self.victim()
        packed = self.entries[key]
        self.pop(key)
        return key, packed

    def split(self, goes: Callable[[str], bool]) -> NaivePolicy:
        other = deepcopy(self)
        for key in list(self.entries):
            (self if goes(key) else other).pop(key)
        return other

    def items(self) -> Iterator[tuple[str, bytes]]:
        return iter(self.entries.items())

    def __len__(self) -> int:
        return len(self.entries)

    def came(self, key: str) -> None:
        raise NotImplementedError

    def used(self, key: str) -> None:
        raise NotImplementedError

    def left(self, key: str) -> None:
        """The key is removed; by whom, or why, is not known."""
        raise NotImplementedError

    def victim(self) -> str:
        """Whose turn it is, noting what must be remembered about it."""
        raise NotImplementedError


class NaiveFIFO(NaivePolicy):
    def __init__(self) -> None:
        super().__init__()
        self.order: list[str] = []

    def came(self, key: str) -> None:
        self.order.append(key)

    def used(self, key: str) -> None:
        pass

    def left(self, key: str) -> None:
        self.order.remove(key)

    def victim(self) -> str:
        return self.order[0]


class NaiveLRU(NaiveFIFO):
    def used(self, key: str) -> None:
        self.order.remove(key)
        self.order.append(key)


class NaiveLFU(NaivePolicy):
    """Counts go up to four. When something is to go and no count is 1, all are less by what is too much; and
    after so many uses for each entry all are halved, rounding down but not below 1.

    Of entries with equal counts goes the one longest unused, but what counts became equal only by halving
    keeps the order of the greater counts before.
    """

    def __init__(self) -> None:
        super().__init__()
        self.order: list[str] = []
        self.counts: dict[str, int] = {}
        self.since_halving = 0

    def came(self, key: str) -> None:
        self.counts[key] = 1
        self.order.append(key)
        self.since_halving += 1

    def used(self, key: str) -> None:
        self.order.remove(key)
        self.order.append(key)
        self.counts[key] = min(4, self.counts[key] + 1)
        self.since_halving += 1

    def left(self, key: str) -> None:
        self.order.remove(key)
        del self.counts[key]

    def victim(self) -> str:
        if self.since_halving > lfu.USES_PER_AGE * len(self.order):
            self.since_halving = 0
            self.order.sort(key=self.counts.__getitem__)
            self.counts = {key: max(1, count // 2) for key, count in self.counts.items()}
        least = min(self.counts.values())
        self.counts = {key: count - least + 1 for key, count in self.counts.items()}
        return min(self.order, key=self.counts.__getitem__)

    def split(self, goes: Callable[[str], bool]) -> NaivePolicy:
        other = super().split(goes)
        assert isinstance(other, NaiveLFU)
        self.since_halving //= 2
        other.since_halving = self.since_halving
        return other


class NaiveS3FIFO(NaivePolicy):
    def __init__(self) -> None:
        super().__init__()
        self.small: list[str] = []
        self.uses: dict[str, int] = {}
        self.main: list[str] = []
        self.turns: dict[str, int] = {}
        self.ghosts = ExactGhosts()
        self.share = 0.1

    def came(self, key: str) -> None:
        if self.comes_again(key):
            self.goes_on(key)
        else:
            self.small.append(key)
            self.uses[key] = 0

    def goes_on(self, key: str) -> None:
        self.main.append(key)
        self.turns[key] = 1

    def used(self, key: str) -> None:
        if key in self.main:
            if self.turns[key] < 3:
                self.turns[key] += 1
                self.main.remove(key)
                self.main.append(key)
        else:
            self.uses[key] += 1

    def left(self, key: str) -> None:
        if key in self.main:
            self.main.remove(key)
            del self.turns[key]
        else:
            self.small.remove(key)
            del self.uses[key]

    def victim(self) -> str:
        while self.small and (not self.main or len(self.small) >= self.share * len(self)):
            key = self.small[0]
            if self.uses[key] < 2:
                self.ghosts.add(key, len(self.main))
                return key
            self.left(key)
            self.goes_on(key)
        least = min(self.turns.values())
        self.turns = {key: turns - least for key, turns in self.turns.items()}
        key = min(self.main, key=self.turns.__getitem__)
        self.left_main(key)
        return key

    def comes_again(self, key: str) -> bool:
        return self.ghosts.take(key, len(self.main))

    def left_main(self, key: str) -> None:
        pass


class NaiveAdaptive(NaiveS3FIFO):
    def __init__(self) -> None:
        super().__init__()
        self.main_ghosts = ExactGhosts()

    def comes_again(self, key: str) -> bool:
        # The policy asks before it adds the key, here it is among the entries already.
        others = len(self) - 1 or 1
        if self.ghosts.take(key, len(self.main)):
            step = min(2.0, max(1.0, len(self.main_ghosts) / (len(self.ghosts) + 1)))
            self.share = min(0.9, self.share + step / others)
            return True
        if self.main_ghosts.take(key, len(self.small)):
            step = min(2.0, max(1.0, len(self.ghosts) / (len(self.main_ghosts) + 1)))
            self.share = max(0.05, self.share - step / others)
            return True
        return False

    def left_main(self, key: str) -> None:
        self.main_ghosts.add(key, len(self.small))


NAIVE: dict[str, Callable[[], NaivePolicy]] = {
    "lru": NaiveLRU,
    "lfu": NaiveLFU,
    "fifo": NaiveFIFO,
    "s3fifo": NaiveS3FIFO,
    "adaptive": NaiveAdaptive,
}
