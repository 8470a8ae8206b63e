"""Generates the Python stubs of proto/ into a folder: `python generate_stubs.py cacheservice/v1`.

Runs in the environment of stub_tools.txt, which holds the oldest protobuf that the project supports:
generated code refuses a runtime older than itself.
"""

from __future__ import annotations

import sys
import tempfile
from importlib.resources import files
from pathlib import Path

from grpc_tools import protoc

PROTO = Path(__file__).resolve().parent.parent / "proto"
PLUGINS = Path(sys.prefix) / "bin"


def generate(target: Path) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        arguments = [
            "protoc",
            f"--proto_path={PROTO}",
            f"--proto_path={files('grpc_tools') / '_proto'}",
            f"--plugin={PLUGINS / 'protoc-gen-mypy'}",
            f"--plugin={PLUGINS / 'protoc-gen-mypy_grpc'}",
            *(f"--{kind}_out={scratch}" for kind in ("python", "grpc_python", "mypy", "mypy_grpc")),
            "--mypy_opt=quiet",
            "--mypy_grpc_opt=quiet",
            *sorted(str(path) for path in (PROTO / "cacheservice/v1").glob("*.proto")),
        ]
        if protoc.main(arguments):
            raise SystemExit("protoc failed")
        target.mkdir(parents=True, exist_ok=True)
        for path in sorted((Path(scratch) / "cacheservice/v1").iterdir()):
            (target / path.name).write_bytes(path.read_bytes())


if __name__ == "__main__":
    generate(Path(sys.argv[1]))
