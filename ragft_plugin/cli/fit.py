"""``ragft fit``: learn a router from outcomes, or cross-validate one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ragft_plugin.cli.decisions import read_decisions, show_off_policy
from ragft_plugin.cli.terminal import config_option, json_option, print_json, progress
from ragft_plugin.config import FILE_NAME, read_config
from ragft_plugin.errors import ConfigError, MissingExtraError
from ragft_plugin.types import STAGES, Encoder

if TYPE_CHECKING:
    from ragft_plugin.evaluation.outcomes import Outcomes

FIGURES = (
    ("reward", "reward (nested, gated)"),
    ("reward_ungated", "reward without the gate"),
    ("best_arm_reward", "best single arm"),
    ("oracle_reward", "oracle"),
    ("headroom_captured", "headroom captured"),
    ("mean_cost", "mean cost"),
    ("ece", "calibration error"),
    ("brier", "Brier score"),
)


def chosen_encoder(name: str) -> str | Encoder:
    """The encoder of a name: "tfidf", or "minilm" (extra ``embedded``)."""
    if name == "minilm":
        from ragft_plugin.retrieval import MiniLMEncoder

        return MiniLMEncoder()
    return name


def chosen_stages(text: str | None) -> list[Any] | None:
    """Stages named on the command line, separated by commas."""
    if text is None:
        return None
    names = [part.strip() for part in text.split(",") if part.strip()]
    for name in names:
        if name not in STAGES:
            raise ConfigError(f"--stages: unknown stage {name!r}, expected some of {','.join(STAGES)}")
    return names


def show_figures(figures: dict[str, Any]) -> None:
    """Print figures for people."""
    n, arms = figures["n"], ", ".join(figures["arms"])
    click.echo(f"{n} queries, arms {arms}; encoder {figures['encoder']}; stages {', '.join(figures['stages'])}")
    for arm, fixed in figures["fixed"].items():
        click.echo(f"  always {arm:<22} reward {fixed['reward']:.4f}   cost {fixed['cost']:.4g}")
    for key, label in FIGURES:
        click.echo(f"  {label:<29} {figures[key]:.4f}")
    low, high = figures["gain_ci95"]
    click.echo(
        f"  gate {figures['gate']}: gain {figures['gain']:+.4f} (95 % {low:+.4f} to {high:+.4f}) "
        f"over the best single arm {figures['best_arm']}"
    )
    for name, value in figures.get("baselines", {}).items():
        click.echo(f"  baseline {name:<20} {value:.4f}")
    for point in figures.get("frontier", ()):
        click.echo(f"  weight {point['cost_weight']:<10.4g} cost {point['cost']:<10.4g} reward {point['reward']:.4f}")


@click.command("fit")
@click.argument("outcomes", required=False, type=click.Path(path_type=Path, dir_okay=False, exists=True))
@click.option("--out", type=click.Path(path_type=Path), help="Save the router to this directory.")
@click.option("--cv", type=click.IntRange(2), help="Cross-validate with so many folds.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of folds and resampling.")
@click.option("--stages", help="Stages that may be used, e.g. question,passages. Default: all that the log has.")
@click.option(
    "--encoder", type=click.Choice(["tfidf", "minilm"]), default="tfidf", show_default=True, help="Vectors of texts."
)
@click.option("--model", default="linear", show_default=True, help="Reward model.")
@click.option(
    "--cost-weight", type=click.FloatRange(0.0), default=0.0, show_default=True, help="Reward per unit of cost."
)
@click.option("--frontier", is_flag=True, help="Add the points of cost and reward.")
@click.option("--baselines", is_flag=True, help="Add plain methods on the same features.")
@click.option("--no-gate", is_flag=True, help="Save a router that decides even where it gains nothing.")
@click.option(
    "--log",
    metavar="PATH_OR_URL",
    help="Decision log to learn from too, or alone: an SQLite file, an SQLAlchemy URL, or JSON Lines.",
)
@config_option
@json_option
def command(
    outcomes: Path | None,
    out: Path | None,
    cv: int | None,
    seed: int,
    stages: str | None,
    encoder: str,
    model: str,
    cost_weight: float,
    frontier: bool,
    baselines: bool,
    no_gate: bool,
    log: str | None,
    config_path: Path,
    as_json: bool,
) -> None:
    """Learn a router from OUTCOMES (JSON Lines), logged decisions (--log) or both; --cv cross-validates one.

    With --log it also tells what the new router would have earned on the logged queries, and whether that is more than
    was earned.
    """
    from ragft_plugin.routing.crossval import cross_validate
    from ragft_plugin.routing.router import Router

    if outcomes is None and log is None:
        raise ConfigError("nothing to learn from: give OUTCOMES (JSON Lines), --log PATH_OR_URL, or both")
    if cv is None and out is None and log is None:
        raise ConfigError("nothing to do: give --out DIRECTORY to save a router, --cv 5 to cross-validate, or both")
    rows, logged, more = _rows(outcomes, log)
    options: dict[str, Any] = {
        "stages": chosen_stages(stages),
        "encoder": chosen_encoder(encoder),
        "model": model,
        "seed": seed,
    }
    result: dict[str, Any] = {}
    if logged is not None and not logged.full_feedback:
        from ragft_plugin.routing.off_policy import off_policy_figures

        with progress("estimating what it would have earned", quiet=as_json) as tell:
            told = off_policy_figures(
                logged, more=more, cost_weight=cost_weight, gated=not no_gate, progress=tell, **options
            )
        result["off_policy"] = told
        if not as_json:
            show_off_policy(told)
    if cv is not None:
        with progress("cross-validating", quiet=as_json) as tell:
            result |= cross_validate(
                rows, cv, cost_weight=cost_weight, frontier=frontier, baselines=baselines, progress=tell, **options
            )
    if out is not None:
        with progress("fitting", quiet=as_json) as tell:
            fingerprints = _fingerprints(config_path, rows.arms)
            router = Router(cost_weight=cost_weight).fit(
                rows, gate=not no_gate, fingerprints=fingerprints, progress=tell, **options
            )
        router.save(out)
        setting = router.gate()
        result = {
            "n": len(rows),
            "arms": list(router.arms),
            "encoder": router.encoder_fingerprint,
            "stages": list(router.stages),
            "gate": "open" if setting.is_open else "closed",
            "gate_gain": setting.gain,
            "gate_lower": setting.lower,
            **result,
            "saved": str(out),
        }
    if as_json:
        print_json(result)
        return
    if cv is not None:
        show_figures(result)
    if out is not None:
        click.echo(
            f"saved {out}: gate {result['gate']}, gain {result['gate_gain']:+.4f}, "
            f"lower bound {result['gate_lower']:+.4f}"
        )


def _rows(outcomes: Path | None, log: str | None) -> tuple[Outcomes, Outcomes | None, Outcomes | None]:
    """All rows to learn from, the logged ones among them, and the rest."""
    from ragft_plugin.evaluation.outcomes import Outcomes, read_outcomes

    more = None if outcomes is None else read_outcomes(outcomes)
    if log is None:
        assert more is not None
        return more, None, None
    logged = read_decisions(log, None if more is None else more.arms)
    if more is None:
        return logged, logged, None
    return Outcomes.from_rows([*more.rows, *logged.rows], more.arms), logged, more


def _fingerprints(config: Path, arms: Sequence[str]) -> dict[str, str]:
    """Fingerprints of the project at hand, if the outcomes are of its arms; none without a project."""
    from ragft_plugin.assembly import Project

    if not (config / FILE_NAME if config.is_dir() else config).is_file():
        return {}
    settings = read_config(config)
    if not set(arms) <= set(settings.arm_names()):
        return {}
    try:
        with Project(settings) as project:
            return project.fingerprints()
    except MissingExtraError:  # fitting needs no model and no index
        return {}
