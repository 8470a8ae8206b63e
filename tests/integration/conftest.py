from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.integration.processes import ClusterProcesses

ROOT = Path(__file__).resolve().parents[2]


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


@pytest.fixture(scope="session")
def tool() -> Callable[[str], str]:
    """Finds a tool that the Makefile installs in .tools; skips only where no Go toolchain exists."""

    def find(name: str) -> str:
        path = ROOT / ".tools" / name
        if path.exists():
            return str(path)
        if shutil.which("go") is None:
            pytest.skip(f"{name} is built with Go, which is not installed")
        pytest.fail(f"{name} is missing: run `make tools`")

    return find
