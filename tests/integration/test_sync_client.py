"""The client for threads against real nodes."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from cacheservice import SyncClient
from cacheservice.client import Outcome
from cacheservice.errors import InvalidArgument, NotACounter, Unavailable
from tests.integration.processes import ClusterProcesses, wait_until


@pytest.fixture
def cache(shared_cluster: ClusterProcesses) -> Iterator[SyncClient]:
    with SyncClient(shared_cluster.addresses, timeout=10) as client:
        yield client


def test_every_call(cache: SyncClient) -> None:
    assert cache.get("sync:a") is None
    assert cache.get("sync:a", b"default") == b"default"
    assert cache.set("sync:a", b"1", ttl=60).replicas == 2
    assert not cache.set("sync:a", b"2", if_absent=True)
    assert cache.get("sync:a") == b"1"
    assert cache.lookup("sync:a").outcome is Outcome.HIT
    cache.set_many({"sync:b": b"2", "sync:c": b"3"}, ttl=60)
    assert cache.get_many(["sync:a", "sync:b", "sync:x"]) == {"sync:a": b"1", "sync:b": b"2"}
    assert cache.get("sync:a", read_preference="nearest") == b"1"
    assert cache.get_many(["sync:b", "sync:x"], read_preference="nearest") == {"sync:b": b"2"}
    assert cache.lookup("sync:a", read_preference="nearest").value == b"1"
    assert cache.touch("sync:a", 600)
    assert cache.incr("sync:n", 5, initial=10) == 15
    assert cache.delete("sync:a")
    assert cache.delete_many(["sync:a", "sync:b", "sync:c", "sync:n"]) == 3


def test_errors_reach_the_caller(cache: SyncClient) -> None:
    with pytest.raises(InvalidArgument, match="key must be"):
        cache.get("")
    wrong: Any = "text"
    with pytest.raises(TypeError, match="must be bytes"):
        cache.set("sync:a", wrong)
    cache.set("sync:text", b"text")
    with pytest.raises(NotACounter):
        cache.incr("sync:text")
    assert cache.delete("sync:text")
    with pytest.raises(ValueError, match="HOST:PORT"):
        SyncClient("localhost")
    with SyncClient("127.0.0.1:1", timeout=0.3) as nobody, pytest.raises(Unavailable):
        nobody.get("a")


def test_threads_each_get_their_own(cache: SyncClient) -> None:
    def work(number: int) -> None:
        for turn in range(50):
            key, value = f"sync:{number}:{turn}", f"{number} {turn}".encode()
            assert cache.set(key, value)
            assert cache.get(key) == value
            assert cache.delete(key)

    with ThreadPoolExecutor(32) as pool:
        list(pool.map(work, range(64)))


def test_a_closed_client_connects_again(shared_cluster: ClusterProcesses) -> None:
    cache = SyncClient(shared_cluster.addresses, timeout=10)
    for _ in range(3):
        assert cache.set("sync:again", b"v")
        cache.close()
        cache.close()
    assert cache.delete("sync:again")
    cache.close()
    assert "cacheservice" not in {thread.name for thread in threading.enumerate()}


def test_closing_waits_for_calls_under_way(shared_cluster: ClusterProcesses) -> None:
    cache = SyncClient(shared_cluster.addresses, timeout=10)
    with ThreadPoolExecutor(16) as pool:
        calls = [pool.submit(cache.set, f"sync:{number}", b"v") for number in range(500)]
        for _ in range(5):
            cache.close()
        assert all(call.result() for call in calls)
    assert cache.delete_many(f"sync:{number}" for number in range(500)) == 500
    cache.close()


def test_a_node_that_is_killed_fails_no_thread(own_cluster: ClusterProcesses) -> None:
    with SyncClient(own_cluster.addresses, timeout=10) as cache:
        killed = threading.Event()

        def work(number: int) -> None:
            turns = 0
            while not killed.is_set() or turns < 20:
                key = f"k{number}-{turns}"
                assert cache.set(key, b"v")
                assert cache.get(key) == b"v"
                turns += 1

        with ThreadPoolExecutor(16) as pool:
            workers = [pool.submit(work, number) for number in range(16)]
            own_cluster.nodes[1].kill()
            killed.set()
            for worker in workers:
                worker.result()


FORKING = """
import os, sys, threading
from cacheservice import SyncClient

cache = SyncClient(sys.argv[1:], timeout=10)
cache.set("sync:fork", b"v", ttl=60)
stopped = threading.Event()

def work():
    while not stopped.is_set():
        assert cache.get("sync:fork") == b"v"

threads = [threading.Thread(target=work) for _ in range(4)]
for thread in threads:
    thread.start()
for turn in range(4):
    child = os.fork()
    if not child:
        ok = cache.get("sync:fork") == b"v" and bool(cache.set(f"sync:child{turn}", b"v", ttl=60))
        grandchild = os.fork()
        if not grandchild:
            os._exit(0 if cache.get(f"sync:child{turn}") == b"v" else 1)
        ok = ok and os.waitstatus_to_exitcode(os.waitpid(grandchild, 0)[1]) == 0
        os._exit(0 if ok else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert cache.get(f"sync:child{turn}") == b"v"
stopped.set()
for thread in threads:
    thread.join()
print("done")
"""

NEVER_CLOSED = """
import sys
from cacheservice import SyncClient

cache = SyncClient(sys.argv[1:], timeout=10)
print("done" if cache.get("sync:nothing") is None else "")
"""

PREFORK = """
import multiprocessing, sys
from cacheservice import SyncClient

cache = SyncClient(sys.argv[1:], timeout=10)

def work(number):
    cache.set(f"sync:pool{number}", b"v", ttl=60)
    return cache.get(f"sync:pool{number}")

work(0)
with multiprocessing.get_context("fork").Pool(3) as pool:
    assert pool.map(work, range(30)) == [b"v"] * 30
assert len(cache.get_many(f"sync:pool{number}" for number in range(30))) == 30
print("done")
"""


@pytest.mark.parametrize("script", [FORKING, NEVER_CLOSED, PREFORK], ids=["fork", "exit", "pool"])
def test_in_a_process_of_its_own(shared_cluster: ClusterProcesses, script: str) -> None:
    done = run(script, *shared_cluster.addresses)
    assert (done.stdout, done.returncode) == ("done\n", 0), done.stderr
    assert "Traceback" not in done.stderr


def run(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "error", "-W", "ignore::DeprecationWarning", "-c", script, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_iterables_are_read_in_the_callers_thread(cache: SyncClient) -> None:
    cache.set_many({"sync:a": b"sync:b", "sync:b": b"2"}, ttl=60)
    found = cache.get_many((cache.get(key) or b"").decode() for key in ["sync:a"])
    assert found == {"sync:b": b"2"}
    assert cache.delete_many(key for key in cache.get_many(["sync:a", "sync:b"])) == 2


def test_a_client_that_is_dropped_ends_its_thread(shared_cluster: ClusterProcesses) -> None:
    assert SyncClient(shared_cluster.addresses, timeout=10).get("sync:nothing") is None
    gc.collect()
    wait_until(
        lambda: "cacheservice" not in {thread.name for thread in threading.enumerate()}, "the thread to end"
    )
