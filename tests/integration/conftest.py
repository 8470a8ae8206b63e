from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.processes import ClusterProcesses


@pytest.fixture(scope="session")
def shared_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClusterProcesses]:
    """Three nodes for tests that leave them as they were."""
    cluster = ClusterProcesses(tmp_path_factory.mktemp("cluster"), 3)
    yield cluster
    codes = cluster.stop()
    assert codes == [0, 0, 0]


@pytest.fixture
def own_cluster(tmp_path: Path) -> Iterator[ClusterProcesses]:
    """Three nodes for a test that does them harm."""
    cluster = ClusterProcesses(tmp_path, 3)
    yield cluster
    cluster.stop()
