"""The pocket model: where its files lie. Its card (``pocket/README.md``) tells how it was made and what it can do."""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).with_name("pocket")
BASE = FOLDER / "base"
ADAPTERS = {name: FOLDER / "adapters" / name for name in ("facts", "tickets")}
