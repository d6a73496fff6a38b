"""``ragft train``: a LoRA adapter from question-answer rows."""

from __future__ import annotations

from pathlib import Path

import click

from ragft_plugin.cli.terminal import config_option, json_option, load_config, print_json, progress


@click.command("train")
@click.argument("data", type=click.Path(path_type=Path))
@config_option
@click.option("--name", required=True, help="Name of the adapter.")
@click.option("--eval", "eval_path", type=click.Path(path_type=Path), help="Held-out rows, for loss and score.")
@click.option("--out", type=click.Path(path_type=Path), help="Registry folder.  [default: adapters beside ragft.yaml]")
@click.option("-r", "rank", type=click.IntRange(min=1), default=16, show_default=True, help="Rank of the update.")
@click.option("--epochs", type=float, default=3.0, show_default=True)
@click.option("--max-steps", type=click.IntRange(min=1), help="Optimiser steps, instead of epochs.")
@click.option("--batch-size", type=click.IntRange(min=1), default=8, show_default=True)
@click.option("--learning-rate", type=float, help="Highest rate.  [default: follows the base's width]")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--resume", is_flag=True, help="Go on from the last checkpoint of an interrupted training.")
@click.option("--dry-run", is_flag=True, help="Check the data, show three rows with what is learnt, and stop.")
@json_option
def command(
    data: Path,
    config_path: Path,
    name: str,
    eval_path: Path | None,
    out: Path | None,
    rank: int,
    epochs: float,
    max_steps: int | None,
    batch_size: int,
    learning_rate: float | None,
    seed: int,
    resume: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Fine-tune an adapter on DATA (JSON Lines with question and answer, among other shapes)."""
    from ragft_plugin.evaluation.answers import exact_match
    from ragft_plugin.lora import train_adapter

    config = load_config(config_path)
    local = config.path(config.base)
    base = str(local) if local.exists() else config.base
    if dry_run:
        _show(base, data, eval_path)
        return
    with progress(f"training {name}", quiet=as_json) as advance:
        report = train_adapter(
            base,
            data,
            out or config.folder / "adapters",
            name=name,
            eval_rows=eval_path,
            scorer=exact_match if eval_path else None,
            resume=resume,
            progress=advance,
            r=rank,
            epochs=epochs,
            max_steps=max_steps,
            batch_size=batch_size,
            learning_rate=learning_rate,
            seed=seed,
        )
    figures = {
        "name": report.name,
        "version": report.version,
        "folder": str(report.folder),
        "steps": report.steps,
        "stopped": report.stopped,
        "seconds": round(report.seconds, 1),
        "loss": report.losses[-1][1] if report.losses else None,
        "score_before": report.score_before,
        "score_after": report.score_after,
    }
    if as_json:
        print_json(figures)
        return
    for key, value in figures.items():
        if value is not None:
            click.echo(f"{key:<13} {value}")
    if name not in config.adapters:
        click.echo(f"To use it, add to ragft.yaml:\nadapters:\n  {name}: {report.folder.parent}")


def _show(base: str, data: Path, eval_path: Path | None) -> None:
    from ragft_plugin.lora import check_rows, preview, read_rows
    from ragft_plugin.lora.base import load_base

    loaded = load_base(base, device="cpu", dtype="float32")
    rows = read_rows(data)
    held = read_rows(eval_path) if eval_path else []
    _, summary = check_rows(rows, loaded.renderer, max_length=loaded.context, eval_rows=held)
    click.echo(str(summary))
    for text in preview(rows, loaded.renderer):
        click.echo(text)
