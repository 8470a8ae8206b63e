"""The proto files, what is generated from them, and what the README says of them."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from cacheservice.v1 import admin_pb2, cache_pb2, cluster_pb2, peer_pb2

ROOT = Path(__file__).resolve().parents[1]
STUBS = ROOT / "cacheservice" / "v1"
GENERATOR = ROOT / ".venv-proto" / "bin" / "python"


def test_the_stubs_are_fresh(tmp_path: Path) -> None:
    if not GENERATOR.exists():
        pytest.fail("the generator is missing: run `make proto`")
    subprocess.run([GENERATOR, ROOT / "tests" / "generate_stubs.py", tmp_path], check=True)
    generated = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    committed = {path.name: path.read_bytes() for path in STUBS.glob("*_pb2*")}
    assert generated.keys() == committed.keys()
    stale = [name for name in generated if generated[name] != committed[name]]
    assert stale == [], "run `make proto`"


def test_every_response_carries_the_ring_epoch() -> None:
    for file in (cache_pb2, cluster_pb2, admin_pb2, peer_pb2):
        for service in file.DESCRIPTOR.services_by_name.values():
            for method in service.methods:
                field = method.output_type.fields_by_name["ring_epoch"]
                assert field.type == field.TYPE_FIXED64, method.full_name


def test_the_readme_says_which_rpcs_are_served() -> None:
    """Each rpc stands in the README's table with "yes" or "not yet", as the servicers have it."""
    rows = dict(
        re.findall(r"^\| `(\w+/\w+)` \| (yes|not yet) \|", (ROOT / "README.md").read_text(), re.MULTILINE)
    )
    source = "".join(path.read_text() for path in (ROOT / "cacheservice" / "server").glob("*_service.py"))
    not_yet = set(re.findall(r"not_yet\(\"(\w+)\"\)", source))
    expected = {
        f"{service.name}/{method.name}": "not yet" if method.name in not_yet else "yes"
        for file in (cache_pb2, cluster_pb2, admin_pb2)
        for service in file.DESCRIPTOR.services_by_name.values()
        for method in service.methods
    }
    assert rows == expected
