"""``ragft tune``: beyond question and answer - documents, preferences, a reward function, the encoder."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click

from ragft_plugin.cli.terminal import config_option, json_option, print_json, progress
from ragft_plugin.config import Config, read_config

_name = click.option("--name", required=True, help="Name of the adapter.")
_eval = click.option("--eval", "eval_path", type=click.Path(path_type=Path), help="Held-out rows.")
_out = click.option("--out", type=click.Path(path_type=Path), help="Registry.  [default: adapters beside ragft.yaml]")
_start = click.option("--start", type=click.Path(path_type=Path), help="Adapter to start from.  [default: a new one]")


def _recipe_options(function: Callable[..., None]) -> Callable[..., None]:
    for option in (
        click.option("-r", "r", type=click.IntRange(min=1), default=16, show_default=True, help="Rank of the update."),
        click.option("--epochs", type=float, default=1.0, show_default=True),
        click.option("--max-steps", type=click.IntRange(min=1), help="Optimiser steps, instead of epochs."),
        click.option("--batch-size", type=click.IntRange(min=1), default=8, show_default=True),
        click.option("--learning-rate", type=float, help="Highest rate.  [default: follows the base's width]"),
        click.option("--seed", type=int, default=0, show_default=True),
    ):
        function = option(function)
    return function


@click.group("tune")
def command() -> None:
    """Tune by documents, preferences, rewards, or tune the encoder."""


@command.command("documents")
@config_option
@_name
@_out
@click.option("--eval-share", type=click.FloatRange(0, 1, max_open=True), default=0.1, show_default=True)
@_recipe_options
@json_option
def documents(
    config_path: Path, name: str, out: Path | None, eval_share: float, as_json: bool, **settings: Any
) -> None:
    """Continue pretraining on the documents of the knowledge base; shows their perplexity before and after."""
    import random

    from ragft_plugin.assembly import Project
    from ragft_plugin.lora import Recipe, train_on_documents
    from ragft_plugin.lora.retrieval_aware import source_of

    config = read_config(config_path)
    with Project(config) as project:
        knowledge_base = project.knowledge_base()
        passages = knowledge_base.get(knowledge_base.ids())
    names = sorted({source_of(p) for p in passages})
    held = set(random.Random(settings["seed"]).sample(names, round(eval_share * len(names))))
    with progress(f"reading: {name}", quiet=as_json) as advance:
        report = train_on_documents(
            _base(config),
            [p for p in passages if source_of(p) not in held],
            out or config.folder / "adapters",
            name=name,
            eval_documents=[p for p in passages if source_of(p) in held],
            recipe=Recipe(**settings),
            progress=advance,
        )
    _show(
        as_json,
        {
            "folder": str(report.folder),
            "steps": report.steps,
            "tokens": report.tokens,
            "perplexity_before": report.perplexity_before,
            "perplexity_after": report.perplexity_after,
        },
    )


@command.command("preference")
@click.argument("data", type=click.Path(path_type=Path))
@config_option
@_name
@_eval
@_out
@_start
@click.option("--beta", type=float, default=0.1, show_default=True, help="How close it stays to where it starts.")
@_recipe_options
@json_option
def preference(
    data: Path,
    config_path: Path,
    name: str,
    eval_path: Path | None,
    out: Path | None,
    start: Path | None,
    beta: float,
    as_json: bool,
    **settings: Any,
) -> None:
    """Tune by preference (DPO) on DATA: JSON Lines with prompt, chosen and rejected."""
    from ragft_plugin.lora import Recipe, train_preference

    config = read_config(config_path)
    with progress(f"preference: {name}", quiet=as_json) as advance:
        report = train_preference(
            _base(config),
            data,
            out or config.folder / "adapters",
            name=name,
            eval_rows=eval_path,
            start=start,
            beta=beta,
            recipe=Recipe(**settings),
            progress=advance,
        )
    _show(as_json, _policy_figures(report))


@command.command("reward")
@click.argument("data", type=click.Path(path_type=Path))
@config_option
@_name
@click.option("--reward", required=True, help="MODULE:FUNCTION that takes an answer and its row, returns a number.")
@_eval
@_out
@_start
@click.option("--group", type=click.IntRange(min=2), default=8, show_default=True, help="Answers drawn per prompt.")
@click.option("--max-new-tokens", type=click.IntRange(min=1), default=64, show_default=True)
@_recipe_options
@json_option
def reward(
    data: Path,
    config_path: Path,
    name: str,
    reward: str,
    eval_path: Path | None,
    out: Path | None,
    start: Path | None,
    group: int,
    max_new_tokens: int,
    as_json: bool,
    **settings: Any,
) -> None:
    """Tune by a reward function (GRPO) on DATA, rows as for ragft train."""
    from ragft_plugin.lora import Recipe, train_with_reward

    config = read_config(config_path)
    with progress(f"reward: {name}", quiet=as_json) as advance:
        report = train_with_reward(
            _base(config),
            data,
            _function(reward),
            out or config.folder / "adapters",
            name=name,
            eval_rows=eval_path,
            start=start,
            group=group,
            max_new_tokens=max_new_tokens,
            recipe=Recipe(**settings),
            progress=advance,
        )
    _show(as_json, _policy_figures(report))


@command.command("encoder")
@click.argument("outcomes", type=click.Path(path_type=Path))
@config_option
@click.option("--model", required=True, help="sentence-transformers model: a folder, or a name on the hub.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder for the tuned model.")
@click.option("--new-knowledge-base", type=click.Path(path_type=Path), help="Encode the passages anew, into this.")
@click.option("--epochs", type=float, default=1.0, show_default=True)
@click.option("--seed", type=int, default=0, show_default=True)
@json_option
def encoder(
    outcomes: Path,
    config_path: Path,
    model: str,
    out: Path,
    new_knowledge_base: Path | None,
    epochs: float,
    seed: int,
    as_json: bool,
) -> None:
    """Tune the encoder on OUTCOMES of ragft run-arms; kept only if held-out retrieval improves."""
    from ragft_plugin.assembly import Project
    from ragft_plugin.evaluation import read_outcomes
    from ragft_plugin.retrieval import positives_from_log, reencode, tune_encoder

    positives = positives_from_log(read_outcomes(outcomes).rows)
    with Project(read_config(config_path)) as project:
        knowledge_base = project.knowledge_base()
        with progress("tuning the encoder", quiet=as_json) as advance:
            report = tune_encoder(knowledge_base, positives, model, out, epochs=epochs, seed=seed, progress=advance)
        if new_knowledge_base is not None and report.kept:
            reencode(knowledge_base, report, new_knowledge_base).close()
    _show(
        as_json,
        {
            "kept": report.kept,
            "pairs": report.pairs,
            "held_out": report.held_out,
            "hit_before": report.hit_before,
            "hit_after": report.hit_after,
            "mrr_before": report.mrr_before,
            "mrr_after": report.mrr_after,
            "gain_low": report.gain.low,
            "fingerprint": report.fingerprint,
        },
    )


def _base(config: Config) -> str:
    local = config.path(config.base)
    return str(local) if local.exists() else config.base


def _policy_figures(report: Any) -> dict[str, Any]:
    figures: dict[str, Any] = {"folder": str(report.folder), "steps": report.steps, "seconds": round(report.seconds, 1)}
    for key, value in report.before.items():
        figures |= {f"{key}_before": value, f"{key}_after": report.after[key]}
    return figures


def _show(as_json: bool, figures: Mapping[str, Any]) -> None:
    if as_json:
        print_json(json.loads(json.dumps(figures)))
        return
    for key, value in figures.items():
        if value is not None:
            click.echo(f"{key:<18} {value}")


def _function(name: str) -> Any:
    from ragft_plugin.errors import ConfigError

    module, _, attribute = name.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"--reward {name!r}: {error}; expected MODULE:FUNCTION on PYTHONPATH") from error
