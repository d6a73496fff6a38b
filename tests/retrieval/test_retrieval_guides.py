"""The guides to stores and encoders: their blocks run, and print what stands below them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

GUIDES = Path(__file__).parents[2] / "docs" / "how-to"
BLOCK = re.compile(r"```python\n(.*?)```\n(?:\n((?:    [^\n]*\n)+))?", re.DOTALL)


@pytest.mark.parametrize("name", ["bring-your-own-store.md", "encoders.md"])
def test_the_blocks_of_a_guide_print_what_it_says(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("langchain_core")
    names: dict[str, Any] = {}
    blocks = BLOCK.findall((GUIDES / name).read_text(encoding="utf-8"))
    assert len(blocks) >= 2
    for code, printed in blocks:
        exec(compile(code, name, "exec"), names)
        expected = "".join(line.removeprefix("    ") for line in printed.splitlines(keepends=True))
        assert capsys.readouterr().out == expected
