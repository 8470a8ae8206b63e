"""Code in the documents is the code that is tested."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def test_the_function_in_go_is_the_one_that_is_tested() -> None:
    document = (ROOT / "docs" / "leases-in-other-languages.md").read_text()
    code = (ROOT / "tests" / "integration" / "go_client" / "get_or_load.go").read_text()
    assert document.count("```go\n") == 1
    assert f"```go\n{code}```\n" in document
