"""What the commands share on the terminal: JSON out, progress bars, the project at hand."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

ProgressCallback = Callable[[int, int], None]

config_option = click.option(
    "--config",
    "-c",
    "config_path",
    type=click.Path(path_type=Path),
    default=Path("ragft.yaml"),
    show_default=True,
    help="Settings of the project.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON on standard output and nothing else.")


def print_json(value: Any) -> None:
    """Print one JSON document on standard output."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False))


@contextmanager
def progress(label: str, *, quiet: bool = False) -> Iterator[ProgressCallback]:
    """A progress bar on standard error, as a callback ``(done, total)``; silent unless it is a terminal."""
    if quiet or not sys.stderr.isatty():
        yield lambda done, total: None
        return
    with click.progressbar(length=1, label=label, file=sys.stderr, show_eta=True) as bar:

        def advance(done: int, total: int) -> None:
            bar.length = total
            bar.update(done - bar.pos)

        yield advance
