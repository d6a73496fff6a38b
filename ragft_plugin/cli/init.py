"""``ragft init``: a ragft.yaml to start from."""

from __future__ import annotations

from pathlib import Path

import click

from ragft_plugin.config import FILE_NAME
from ragft_plugin.errors import ConfigError

TEMPLATE = """\
# Settings of this project. Paths are relative to this file.
version: 1

# Any Hugging Face causal language model: a folder, or a name on the hub such as Qwen/Qwen3-0.6B.
# "pocket" is the small model that comes with the package; it knows the demo's world and little else.
base: {base}

# Filled by: ragft index DOCUMENTS
knowledge_base: knowledge_base
encoder: {encoder}          # hashing (no model) | minilm (extra "embedded") | none (BM25 alone) | folder of a saved one
# chunks: {{size: 1000, overlap: 100}}    # how documents are cut, in characters

# Made by: ragft train ROWS.jsonl --name NAME
adapters: {{}}
# known_until:             # only where the training data are older than the training: NAME: 2026-01-31

# What to choose among; empty: every arm that the above allows (base, rag, adapter:NAME, rag+adapter:NAME).
arms: []

# Made by: ragft run-arms QUESTIONS.jsonl, then: ragft fit outcomes.jsonl
router: router

# Decisions are recorded here (a SQLite file or an SQLAlchemy URL) to learn from: ragft fit --log decisions.sqlite
# log: decisions.sqlite
exploration: 0.0           # share of queries left to chance, so that a log can be learnt from; try 0.05

k: 3
cost_weight: 0.0           # reward given up per unit of cost
costs:
  retrieval: 1.0           # your unit: retrievals, tokens, milliseconds, money
  generation: 0.0
generation:
  max_new_tokens: 128
"""


@click.command("init")
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False), default=Path())
@click.option("--base", default="pocket", show_default=True, help="Base model: folder or hub name.")
@click.option(
    "--encoder",
    type=click.Choice(["hashing", "minilm", "none"]),
    default="hashing",
    help="Text encoder of the knowledge base.",
)
def command(folder: Path, base: str, encoder: str) -> None:
    """Write a ragft.yaml to start from into FOLDER."""
    path = folder / FILE_NAME
    if path.exists():
        raise ConfigError(f"{path} is already there; edit it, or remove it first")
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(TEMPLATE.format(base=base, encoder=encoder), encoding="utf-8")
    click.echo(f"wrote {path}. Next: ragft index DOCUMENTS")
