"""The guide to signals: its code runs as printed, and its table names every signal there is."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ragft_plugin.routing.signals import SIGNALS

GUIDE = Path(__file__).parents[2] / "docs" / "how-to" / "signals.md"


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", GUIDE.read_text(), re.S)


def test_the_code_prints_what_the_guide_shows(capsys: pytest.CaptureFixture[str]) -> None:
    try:
        exec(compile("\n".join(blocks("python")), str(GUIDE), "exec"), {"__name__": "guide"})
    finally:
        SIGNALS.pop("newest_year", None)
    assert capsys.readouterr().out == blocks("text")[0]


def test_the_table_names_every_signal_at_its_stage() -> None:
    named = set(re.findall(r"^\| (\w+) \| `(\w+)` \|", GUIDE.read_text(), re.M))
    assert named == {(s.stage, name) for name, s in SIGNALS.items()}


def test_a_signal_of_ones_own_takes_ten_lines_at_most() -> None:
    assert len(blocks("python")[0].strip().splitlines()) <= 10
