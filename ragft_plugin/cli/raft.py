"""``ragft raft``: training rows that hold what retrieval really returns."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Literal

import click

from ragft_plugin.cli.terminal import config_option, json_option, print_json
from ragft_plugin.config import read_config


@click.command("raft")
@click.argument("questions", type=click.Path(path_type=Path))
@config_option
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Training rows, JSON Lines.")
@click.option("--eval-out", type=click.Path(path_type=Path), help="Rows of held-out documents.")
@click.option("--distractors", type=click.IntRange(min=0), default=3, show_default=True, help="Wrong passages per row.")
@click.option(
    "--gold-share", type=click.FloatRange(0, 1), default=0.8, show_default=True, help="Rows with the passage."
)
@click.option(
    "--without-gold",
    type=click.Choice(["abstain", "memory"]),
    default="abstain",
    show_default=True,
    help="What the other rows answer.",
)
@click.option("--eval-share", type=click.FloatRange(0, 1, max_open=True), default=0.2, show_default=True)
@click.option("--seed", type=int, default=0, show_default=True)
@json_option
def command(
    questions: Path,
    config_path: Path,
    out: Path,
    eval_out: Path | None,
    distractors: int,
    gold_share: float,
    without_gold: Literal["abstain", "memory"],
    eval_share: float,
    seed: int,
    as_json: bool,
) -> None:
    """Make training rows of QUESTIONS (JSON Lines: question, answer, perhaps passage_id) and the knowledge base.

    Train on them with: ragft train OUT --eval EVAL_OUT --name NAME
    """
    from ragft_plugin.assembly import Project
    from ragft_plugin.lora.gold_questions import read_gold_questions, write_rows
    from ragft_plugin.lora.retrieval_aware import retrieval_aware_rows

    with Project(read_config(config_path)) as project:
        knowledge_base = project.knowledge_base()
        made = retrieval_aware_rows(
            read_gold_questions(questions, knowledge_base.get),
            knowledge_base,
            distractors=distractors,
            gold_share=gold_share,
            without_gold=without_gold,
            eval_share=eval_share if eval_out is not None else 0.0,
            seed=seed,
        )
    write_rows(out, made.train)
    if eval_out is not None:
        write_rows(eval_out, made.evaluation)
    if as_json:
        print_json(asdict(made.counts))
        return
    click.echo(str(made.counts))
