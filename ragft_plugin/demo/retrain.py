"""Train the demo's two adapters anew, with the recipes that made those which come along."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

from ragft_plugin.demo.pocket import BASE
from ragft_plugin.demo.training import ROWS
from ragft_plugin.lora import Recipe, train_adapter

# The pocket model likes a high rate, but at 4e-3 what it reads with is lost.
RECIPES = {
    "facts": Recipe(r=32, learning_rate=2e-3, epochs=6, batch_size=64, bf16=True),
    "tickets": Recipe(r=16, learning_rate=2e-3, epochs=4, batch_size=32, bf16=True),
}


def retrain_adapters(
    root: Path,
    progress: Callable[[str], AbstractContextManager[Callable[[int, int], None]]],
    *,
    max_seconds: float | None = 480.0,
) -> dict[str, Path]:
    """Train both adapters into the registry ``root``.

    Args:
        root: registry folder; gets NAME/VERSION.
        progress: makes a progress callback for a step with a label.
        max_seconds: per adapter; training then stops with what it has.

    Returns:
        Name -> folder of the version that was trained.
    """
    folders: dict[str, Path] = {}
    for name, rows in ROWS.items():
        with progress(f"adapter {name}") as advance:
            report = train_adapter(
                BASE, rows(), root, name=name, recipe=RECIPES[name], max_seconds=max_seconds, progress=advance
            )
        folders[name] = report.folder
    return folders
