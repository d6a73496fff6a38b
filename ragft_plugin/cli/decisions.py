"""Logged decisions on the command line: read from a database or a file, and shown with what they tell."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ragft_plugin.errors import ConfigError

if TYPE_CHECKING:
    from ragft_plugin.evaluation.outcomes import Outcomes

SQLITE = b"SQLite format 3\x00"
NAMES = {
    "ips": "inverse propensity",
    "snips": "self-normalised",
    "direct_method": "direct method",
    "doubly_robust": "doubly robust",
}


def read_decisions(place: str, arms: Sequence[str] | None = None) -> Outcomes:
    """Decisions with their rewards: from an SQLAlchemy URL, an SQLite file, or outcomes as JSON Lines.

    Args:
        place: URL or path.
        arms: the arms there are; another one is an error. None accepts those of the log.

    Raises:
        ConfigError: if there is nothing at that place.
        DataError: if no decision has a reward, or the log holds no texts to learn from.
    """
    from ragft_plugin.evaluation.decision_log import DecisionLog
    from ragft_plugin.evaluation.outcomes import Outcomes, read_outcomes

    is_url = "://" in place
    path = Path(place.removeprefix("sqlite:///") if is_url else place)
    # Opening a database makes it; a misspelt name must not.
    if (not is_url or place.startswith("sqlite:///")) and not path.is_file():
        raise ConfigError(
            f"--log: there is no file {path}; give a decision log (SQLite file or SQLAlchemy URL) or JSONL"
        )
    if not is_url and not _is_database(path):
        return read_outcomes(path, arms)
    with DecisionLog(place) as log:
        found = log.outcomes()
    return found if arms is None else Outcomes.from_rows(found.rows, arms)


def show_off_policy(figures: dict[str, Any]) -> None:
    """Print what the new router would have earned on the log, beside what was earned."""
    n, complete = figures["n"], figures["complete"]
    rest = "" if complete == n else f", {complete} of them with all evidence"
    click.echo(f"{n} logged decisions{rest}; the new router, fitted on other rows than those it is judged on:")
    click.echo(f"  {'logging policy':<20} {_shown(figures['logged'])}   cost {figures['logged_cost']:.4g}")
    for name, found in figures["estimates"].items():
        click.echo(f"  {NAMES[name]:<20} {_shown(found)}")
    click.echo(f"  {'gain':<20} {_shown(figures['gain'], sign='+')}   cost {figures['mean_cost']:.4g}")


def _shown(found: dict[str, Any], sign: str = "") -> str:
    if "refused" in found:
        return f"not to be told: {found['refused']}"
    low, high = found["low"], found["high"]
    interval = "no interval" if low is None or high is None else f"95 % {low:{sign}.4f} to {high:{sign}.4f}"
    return f"{found['value']:{sign}.4f} ({interval}, {found['effective_sample_size']:.0f} effective rows)"


def _is_database(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(SQLITE)) == SQLITE
