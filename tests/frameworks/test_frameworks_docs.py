"""The how-to pages on migration: every Python block runs, in order, offline."""

from __future__ import annotations

import gc
import re
from pathlib import Path
from typing import Any

import pytest

PAGES = Path(__file__).parents[2] / "docs" / "how-to"
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


# LlamaIndex' own chat engine keeps its memory in an SQLite database that nobody closes.
@pytest.mark.filterwarnings(
    "ignore:Exception ignored in. .function Connection.__del__:pytest.PytestUnraisableExceptionWarning"
)
@pytest.mark.parametrize("page", ["migrate-langchain.md", "migrate-llamaindex.md"])
def test_every_block_of_a_how_to_page_runs(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("langchain.agents", "langchain_classic"):
        pytest.importorskip(package)
    text = (PAGES / page).read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "__main__"}
    blocks = list(BLOCK.finditer(text))
    assert len(blocks) > 8
    for block in blocks:
        # Line numbers of an error are then those of the page.
        lines = "\n" * text.count("\n", 0, block.start(1))
        exec(compile(lines + block[1], page, "exec"), names)
    assert "decision" in text
    names.clear()
    gc.collect()  # here, not in a later test, LlamaIndex' connection complains
