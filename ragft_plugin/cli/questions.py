"""``ragft questions``: training rows written from the documents of the knowledge base."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import click

from ragft_plugin.cli.files import write_text
from ragft_plugin.cli.terminal import config_option, json_option, print_json, progress
from ragft_plugin.config import read_config


@click.command("questions")
@config_option
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Rows with passage ids, JSON Lines.")
@click.option("--writer", help="Your model as MODULE:NAME: a function from prompt to text, or a model of a framework.")
@click.option(
    "--patterns", type=click.Path(path_type=Path), help='JSON: [{"statement": "{x} is in {v}.", "questions": [...]}]'
)
@click.option("--per-passage", type=click.IntRange(min=1), default=3, show_default=True, help="Questions per passage.")
@json_option
def command(
    config_path: Path,
    out: Path,
    writer: str | None,
    patterns: Path | None,
    per_passage: int,
    as_json: bool,
) -> None:
    """Write questions with answers about every passage of the knowledge base.

    The base of ragft.yaml writes them, unless --writer or --patterns is given. Answers that do not stand in their
    passage are left out. Go on with: ragft train OUT, or ragft raft OUT for rows with passages.
    """
    from ragft_plugin.assembly import Project
    from ragft_plugin.lora.question_generation import LLMWriter, Patterns, generate_questions

    if writer and patterns:
        raise click.UsageError("--writer and --patterns exclude each other; give one of them")
    config = read_config(config_path)
    with Project(config) as project:
        knowledge_base = project.knowledge_base()
        passages = knowledge_base.get(knowledge_base.ids())
        with progress("questions", quiet=as_json) as advance:
            if patterns is not None:
                made = generate_questions(
                    passages, Patterns(_patterns(patterns), per_passage), per_passage=per_passage * 8, progress=advance
                )
            else:
                model = _object(writer) if writer else project.generator(None)
                made = generate_questions(
                    passages, LLMWriter(model, per_passage), per_passage=per_passage, progress=advance
                )
    write_text(out, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in made.records()))
    if as_json:
        print_json({"questions": len(made.questions), "rejected": dict(made.rejected), "silent": len(made.silent)})
        return
    click.echo(str(made))


def _patterns(path: Path) -> list[Any]:
    from ragft_plugin.errors import DataError
    from ragft_plugin.lora.question_generation import Pattern

    try:
        records = json.loads(path.read_text(encoding="utf-8"))
        return [Pattern(str(r["statement"]), tuple(map(str, r["questions"]))) for r in records]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f'expected [{{"statement": ..., "questions": [...]}}]: {error}', path=str(path)) from None


def _object(name: str) -> Any:
    from ragft_plugin.errors import ConfigError

    module, _, attribute = name.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"--writer {name!r}: {error}; expected MODULE:NAME of something on PYTHONPATH") from error
