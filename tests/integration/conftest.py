from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from cacheservice.v1.cache_pb2 import BatchDeleteRequest, BatchSetRequest, SetRequest
from cacheservice.v1.cache_pb2_grpc import CacheServiceStub
from tests.integration.processes import DEADLINE_SECONDS, ClusterProcesses, wait_until


@pytest.fixture(scope="session")
def shared_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClusterProcesses]:
    """Three nodes for tests that leave them as they were."""
    cluster = ClusterProcesses(tmp_path_factory.mktemp("cluster"), 3)
    wait_until(lambda: all(map(_replicates, cluster.addresses)), "every node to reach every other")
    yield cluster
    codes = cluster.stop()
    assert codes == [0, 0, 0]


@pytest.fixture
def own_cluster(tmp_path: Path) -> Iterator[ClusterProcesses]:
    """Three nodes for a test that does them harm."""
    cluster = ClusterProcesses(tmp_path, 3)
    yield cluster
    cluster.stop()


def _replicates(address: str) -> bool:
    """Whether writes by way of the node are on two nodes at once.

    A node that has just joined may not be connected to for half a second, and is hinted until then.
    """
    keys = [f"warm-up:{number}" for number in range(50)]
    with grpc.insecure_channel(address) as channel:
        stub = CacheServiceStub(channel)
        requests = [SetRequest(key=key) for key in keys]
        written = stub.BatchSet(BatchSetRequest(requests=requests), timeout=DEADLINE_SECONDS)
        stub.BatchDelete(BatchDeleteRequest(keys=keys), timeout=DEADLINE_SECONDS)
    return all(result.response.replicas == 2 for result in written.results)
