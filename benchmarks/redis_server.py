"""A real redis-server whose clock is the log's, for measurements beside our own store.

Redis tells how long an entry was not used by a clock that moves once a second. A log that took hours is
replayed in seconds, in which all entries would have been used at the same moment, and Redis would
evict at random: four to six points more misses than it has to have. So the server runs with a clock that the
replay sets, and entries expire by it too, whether they are asked for or not.
"""

from __future__ import annotations

import mmap
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from statistics import median
from struct import Struct
from tempfile import TemporaryDirectory

import redis

from benchmarks.impossible import BenchmarkImpossible
from benchmarks.workloads import Row, Workload

HERTZ = 500
"""How often in a second the server looks at the clock and for expired entries; the most that Redis allows."""
REQUESTS_AT_A_TIME = 128
"""Requests in a round trip: they fit the 16 KiB in which a server reads."""
START_SECONDS = 10.0
_FIRST_MS = 1_700_000_000_000
_PRIMING_ROUNDS = 20
_CLOCK = Struct("=Q")

_CLOCK_SOURCE = """
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/time.h>

static volatile uint64_t *microseconds;

__attribute__((constructor)) static void open_clock(void) {
    int file = open(getenv("BENCHMARK_CLOCK"), O_RDONLY);
    microseconds = mmap(0, sizeof *microseconds, PROT_READ, MAP_SHARED, file, 0);
    if (microseconds == MAP_FAILED) abort();
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    uint64_t time = *microseconds;
    (void)zone;
    now->tv_sec = time / 1000000;
    now->tv_usec = time % 1000000;
    return 0;
}
"""

_REQUEST_SCRIPT = """
if ARGV[3] == '0' and redis.call('TOUCH', KEYS[1]) == 1 then return 1 end
local size = tonumber(ARGV[1])
local value = string.rep(string.rep('x', 256), math.floor(size / 256)) .. string.rep('x', size % 256)
if ARGV[2] == '0' then redis.call('SET', KEYS[1], value)
else redis.call('SET', KEYS[1], value, 'PXAT', ARGV[2]) end
return 0
"""
"""One request: key, bytes of the value, moment of expiry or 0, and 1 for a set. Returns 1 for a hit.

TOUCH is to the server's policy and to expiry what GET is, without the value's way through Lua. Each call is a
command of its own to the server, which evicts before a command and never during one.
"""


class RedisCache:
    """What the benchmark does with a server: a bound for its entries, and a log."""

    def __init__(self, client: redis.Redis, set_clock: Callable[[int], None]) -> None:
        self.client = client
        self._set_clock = set_clock
        self._now = _FIRST_MS
        self._script = client.script_load(_REQUEST_SCRIPT)
        self._empty_bytes = self._measure_empty()

    def limit(self, extra_bytes: int) -> None:
        """Bounds the server's memory at that of the empty one plus `extra_bytes`."""
        self.client.config_set("maxmemory", self._empty_bytes + extra_bytes)

    def miss_ratio(self, workload: Workload, *, ms_per_request: int) -> float:
        """Replays the log, with so much time between its requests; only gets count."""
        hits = 0
        rows = workload.rows()
        while part := list(islice(rows, REQUESTS_AT_A_TIME)):
            hits += sum(self._pipeline(part, ms_per_request).execute())
        return 1 - hits / (len(workload) - sum(workload.writes))

    def _pipeline(self, part: Iterable[Row], ms_per_request: int) -> redis.client.Pipeline:
        pipeline = self.client.pipeline(transaction=False)
        now = self._now
        for key, size, ttl, write in part:
            now += ms_per_request
            pipeline.evalsha(self._script, 1, key, size, now + ttl if ttl else 0, write)
        self._now = now
        self._set_clock(now)
        return pipeline

    def _measure_empty(self) -> int:
        """The server's memory without entries, with the buffers of a client amid a replay."""
        found = []
        for _ in range(_PRIMING_ROUNDS):
            part = [(str(number), 100, 0, 0) for number in range(REQUESTS_AT_A_TIME)]
            pipeline = self._pipeline(part, 1_000)
            pipeline.flushall()
            pipeline.info("memory")
            found.append(int(pipeline.execute()[-1]["used_memory"]))
            time.sleep(1 / HERTZ)
        return round(median(found[_PRIMING_ROUNDS // 2 :]))


@contextmanager
def redis_server(policy: str) -> Iterator[RedisCache]:
    """A server of its own with that maxmemory-policy, which ends with the block; it stores nothing on disk.

    BenchmarkImpossible when there is no redis-server or no C compiler here.
    """
    for program in ("redis-server", "cc"):
        if shutil.which(program) is None:
            raise BenchmarkImpossible(f"{program} is not installed")
    with TemporaryDirectory() as name:
        directory = Path(name)
        socket = directory / "socket"
        clock_path = directory / "clock"
        clock_path.write_bytes(_CLOCK.pack(_FIRST_MS * 1_000))
        command = ["redis-server", "--port", "0", "--unixsocket", str(socket), "--dir", name]
        command += ["--save", "", "--appendonly", "no", "--maxmemory-policy", policy, "--hz", str(HERTZ)]
        # Its histograms, 37 KB for each command in use, would come out of the entries' memory.
        command += ["--latency-tracking", "no"]
        own_clock = {"LD_PRELOAD": str(_build_clock(directory)), "BENCHMARK_CLOCK": str(clock_path)}
        with clock_path.open("r+b") as file, mmap.mmap(file.fileno(), _CLOCK.size) as clock:
            server = subprocess.Popen(command, env=os.environ | own_clock, stdout=subprocess.DEVNULL)
            try:
                client = redis.Redis(unix_socket_path=str(socket))
                _wait_until_ready(client, server)
                yield RedisCache(client, lambda now: _CLOCK.pack_into(clock, 0, now * 1_000))
                client.close()
            finally:
                server.terminate()
                server.wait()


def _build_clock(directory: Path) -> Path:
    source, library = directory / "clock.c", directory / "clock.so"
    source.write_text(_CLOCK_SOURCE)
    subprocess.run(["cc", "-O2", "-shared", "-fPIC", "-o", str(library), str(source)], check=True)
    return library


def _wait_until_ready(client: redis.Redis, server: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            client.ping()
            return
        except redis.ConnectionError:
            if server.poll() is not None or time.monotonic() > deadline:
                raise BenchmarkImpossible("redis-server does not start") from None
            time.sleep(0.02)
