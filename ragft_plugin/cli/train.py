"""``ragft train``: an adapter, or a tuned base, from labelled rows; its data checked, its worth compared."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ragft_plugin.cli.terminal import config_option, json_option, print_json, progress
from ragft_plugin.config import read_config

if TYPE_CHECKING:
    from ragft_plugin.lora import TrainingReport, TrainingRow

HELD_OUT = 0.2  # share of the rows that a learning curve holds out when no held-out file is named


def _columns(_: click.Context, __: click.Parameter, values: Sequence[str]) -> dict[str, str]:
    pairs = [value.partition("=") for value in values]
    if bad := [value for value, (field, _sep, column) in zip(values, pairs, strict=True) if not field or not column]:
        raise click.BadParameter(f"{bad[0]!r}; expected FIELD=COLUMN, such as question=Frage")
    return {field: column for field, _sep, column in pairs}


@click.command("train")
@click.argument("data", type=click.Path(path_type=Path))
@config_option
@click.option("--name", help="Name of the adapter.")
@click.option("--out", type=click.Path(path_type=Path), help="Registry folder.  [default: adapters beside ragft.yaml]")
@click.option("--eval", "eval_path", type=click.Path(path_type=Path), help="Held-out rows, for loss and score.")
@click.option("--hold-out", type=click.FloatRange(0, 1, min_open=True, max_open=True), help="Hold out a share of DATA.")
@click.option("--column", "columns", multiple=True, callback=_columns, metavar="FIELD=COLUMN", help="Name in DATA.")
@click.option("--score", default="em", show_default=True, help="em, f1, contains, rouge or module:function.")
@click.option("--method", default="lora", show_default=True, help="lora, dora, rslora, qlora, pissa, olora or full.")
@click.option("--freeze", type=click.IntRange(min=0), default=0, help="Leave the first so many layers as they are.")
@click.option("-r", "rank", type=click.IntRange(min=1), default=16, show_default=True, help="Rank of the update.")
@click.option("--epochs", type=float, default=3.0, show_default=True)
@click.option("--max-steps", type=click.IntRange(min=1), help="Optimiser steps, instead of epochs.")
@click.option("--batch-size", type=click.IntRange(min=1), default=8, show_default=True)
@click.option("--learning-rate", type=float, help="Highest rate.  [default: follows the base's width]")
@click.option("--patience", type=click.IntRange(min=1), help="Looks without a better held-out loss before stopping.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--few-shot", type=click.IntRange(min=0), default=4, show_default=True, help="Examples of the baseline.")
@click.option("--keep-anyway", is_flag=True, help="Keep an adapter that does not beat base and examples.")
@click.option("--ability", "ability_path", type=click.Path(path_type=Path), help="Rows to see what is forgotten.")
@click.option("--licence", help="Of the adapter, for its card, such as apache-2.0.")
@click.option("--tensorboard", type=click.Path(path_type=Path), help="Folder for TensorBoard's event files.")
@click.option("--resume", is_flag=True, help="Go on from the last checkpoint of an interrupted training.")
@click.option("--dry-run", is_flag=True, help="Check the data, show three rows with what is learnt, and stop.")
@click.option("--learning-curve", is_flag=True, help="Reward and time against the number of rows; keeps no adapter.")
@click.option("--rows", default="1/8,1/4,1/2,1", show_default=True, help="Counts or shares for --learning-curve.")
@json_option
def command(
    data: Path,
    config_path: Path,
    name: str | None,
    out: Path | None,
    eval_path: Path | None,
    hold_out: float | None,
    columns: dict[str, str],
    score: str,
    method: str,
    freeze: int,
    rank: int,
    epochs: float,
    max_steps: int | None,
    batch_size: int,
    learning_rate: float | None,
    patience: int | None,
    seed: int,
    few_shot: int,
    keep_anyway: bool,
    ability_path: Path | None,
    licence: str | None,
    tensorboard: Path | None,
    resume: bool,
    dry_run: bool,
    learning_curve: bool,
    rows: str,
    as_json: bool,
) -> None:
    """Fine-tune on DATA: JSON Lines, .json, .csv, .tsv or .parquet, with question and answer or as conversations.

    With held-out rows (--eval or --hold-out) the adapter is compared with the base, and with the base given examples
    in its prompt; one that does not beat both is not kept.
    """
    from ragft_plugin import lora
    from ragft_plugin.evaluation.answers import load_scorer

    config = read_config(config_path)
    local = config.path(config.base)
    base = str(local) if local.exists() else config.base
    train, held = _read(data, eval_path, hold_out or (HELD_OUT if learning_curve else None), columns, seed)
    if dry_run:
        _show(base, train, held, as_json=as_json)
        return
    known = load_scorer(score)
    settings: dict[str, Any] = {
        "scorer": lambda given, wanted: known(given, [wanted]),
        "few_shot": few_shot,
        "method": method,
        "freeze": freeze,
        "r": rank,
        "epochs": epochs,
        "max_steps": max_steps,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "patience": patience,
        "seed": seed,
    }
    if learning_curve:
        with progress("learning curve", quiet=as_json) as advance:
            curve = lora.learning_curve(
                base, train, held, counts=[c.strip() for c in rows.split(",")], progress=advance, **settings
            )
        if as_json:
            print_json({"held_out": curve.held_out, "score": score, "points": [asdict(p) for p in curve.points]})
        else:
            click.echo(f"reward: mean {score}, with its 95 % interval\n{curve}")
        return
    if name is None:
        raise click.UsageError("Missing option '--name'.")
    settings |= {
        "eval_rows": held or None,
        "keep_anyway": keep_anyway,
        "ability_rows": None if ability_path is None else lora.read_rows(ability_path),
        "licence": licence,
        "tensorboard": tensorboard,
        "resume": resume,
    }
    way: Callable[..., TrainingReport] = lora.train_adapter
    if method == "full":
        way, target = lora.train_base, (out or config.folder / "models") / name
    else:
        target = out or config.folder / "adapters"
        settings["name"] = name
    with progress(f"training {name}", quiet=as_json) as advance:
        report = way(base, train, target, progress=advance, **settings)
    _tell(report, as_json=as_json)
    if not as_json and method == "full":
        click.echo(f"To use it, write in ragft.yaml:\nbase: {report.folder}")
    elif not as_json and name not in config.adapters:
        click.echo(f"To use it, add to ragft.yaml:\nadapters:\n  {name}: {report.folder.parent}")


def _read(
    data: Path, eval_path: Path | None, share: float | None, columns: dict[str, str], seed: int
) -> tuple[list[TrainingRow], list[TrainingRow]]:
    from ragft_plugin.lora import hold_out, read_rows

    rows = read_rows(data, columns=columns)
    if eval_path is not None:
        return rows, read_rows(eval_path, columns=columns)
    return hold_out(rows, share, seed=seed) if share is not None else (rows, [])


def _tell(report: TrainingReport, *, as_json: bool) -> None:
    figures: dict[str, Any] = {
        "name": report.name,
        "version": report.version or None,
        "folder": str(report.folder),
        "steps": report.steps,
        "best_step": report.best_step,
        "stopped": report.stopped,
        "seconds": round(report.seconds, 1),
        "loss": report.losses[-1][1] if report.losses else None,
        "score_before": report.score_before,
        "score_after": report.score_after,
        "comparison": None if report.comparison is None else report.comparison.metrics(),
        "ability": None if report.ability is None else report.ability.metrics(),
    }
    if as_json:
        print_json(figures)
        return
    for key in ("name", "version", "folder", "steps", "best_step", "stopped", "seconds", "loss"):
        if figures[key] is not None:
            click.echo(f"{key:<13} {figures[key]}")
    if report.comparison is None:
        click.echo("not compared with the base: there are no held-out rows (--eval or --hold-out)")
        return
    found = report.comparison.metrics()
    click.echo(f"\nmean score on {found['score_rows']:.0f} held-out rows")
    click.echo(f"  base         {found['score_before']:.3f}")
    if "score_few_shot" in found:
        click.echo(f"  {found['few_shot_examples']:.0f} examples   {found['score_few_shot']:.3f}")
    click.echo(f"  adapter      {found['score_after']:.3f}")
    click.echo(f"  gain over {report.comparison.baseline}: {report.comparison.gain}")
    if report.ability is not None:
        found = report.ability.metrics()
        click.echo(
            f"  what the base could do before ({found['ability_rows']:.0f} rows): {found['ability_before']:.3f}, "
            f"now {found['ability_after']:.3f}"
        )


def _show(base: str, rows: list[TrainingRow], held: list[TrainingRow], *, as_json: bool) -> None:
    from ragft_plugin.lora import check_rows, preview
    from ragft_plugin.lora.base import load_base

    loaded = load_base(base, device="cpu", dtype="float32")
    _, summary = check_rows(rows, loaded.renderer, max_length=loaded.context, eval_rows=held)
    shown = preview(rows, loaded.renderer, max_length=loaded.context)
    if as_json:
        print_json({"data": asdict(summary), "held_out": len(held), "preview": [asdict(p) for p in shown]})
        return
    click.echo(str(summary))
    grey = on_terminal()
    click.echo("\nwhat is read is grey, what is learnt is not" if grey else "\nwhat is learnt stands between ⟦ and ⟧")
    for each in shown:
        masked = click.style(each.masked, fg="bright_black") if grey else each.masked
        learnt = click.style(each.learnt, bold=True) if grey else f"⟦{each.learnt}⟧"
        click.echo(f"{each.place}\n{masked}{learnt}\n")


def on_terminal() -> bool:
    """Whether standard output can show colours."""
    return sys.stdout.isatty()
