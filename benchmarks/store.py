"""The store beside its peers, all figures in one run: `python -m benchmarks.store [part...]`.

Needs a redis-server on the PATH and the packages of the extra `benchmark`. The parts: speed, memory, hits
(half an hour), stalls, churn. Nothing else should run on the machine meanwhile.
"""

from __future__ import annotations

import sys

from benchmarks import store_churn, store_hits, store_memory, store_speed, store_stalls

PARTS = {
    "speed": store_speed.main,
    "memory": store_memory.main,
    "hits": store_hits.main,
    "stalls": store_stalls.main,
    "churn": store_churn.main,
}


def main() -> None:
    chosen = sys.argv[1:] or list(PARTS)
    unknown = sorted(set(chosen) - set(PARTS))
    if unknown:
        sys.exit(f"no such part: {', '.join(unknown)}; there are {', '.join(PARTS)}")
    sys.argv[1:] = []
    for name in chosen:
        print(f"== {name}", flush=True)
        PARTS[name]()
        print(flush=True)


if __name__ == "__main__":
    main()
