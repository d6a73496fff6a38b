"""``ragft eval``: what a router earns on outcomes that it was not fitted on."""

from __future__ import annotations

from pathlib import Path

import click

from ragft_plugin.cli.fit import chosen_encoder, show_figures
from ragft_plugin.cli.terminal import json_option, print_json
from ragft_plugin.types import Encoder


@click.command("eval")
@click.argument("router", type=click.Path(path_type=Path, file_okay=False, exists=True))
@click.argument("outcomes", type=click.Path(path_type=Path, dir_okay=False, exists=True))
@click.option("--cost-weight", type=click.FloatRange(0.0), help="Reward per unit of cost; default: the router's own.")
@click.option("--frontier", is_flag=True, help="Add the points of cost and reward.")
@click.option(
    "--encoder",
    type=click.Choice(["tfidf", "minilm"]),
    default="tfidf",
    show_default=True,
    help="What it was fitted with.",
)
@json_option
def command(
    router: Path, outcomes: Path, cost_weight: float | None, frontier: bool, encoder: str, as_json: bool
) -> None:
    """Evaluate ROUTER (a directory) on OUTCOMES (JSON Lines)."""
    from ragft_plugin.evaluation.outcomes import read_outcomes
    from ragft_plugin.routing.crossval import evaluate
    from ragft_plugin.routing.router import Router

    vectors = chosen_encoder(encoder)
    given: Encoder | None = None if isinstance(vectors, str) else vectors
    loaded = Router.load(router, encoder=given)
    result = evaluate(loaded, read_outcomes(outcomes), cost_weight=cost_weight, frontier=frontier)
    if as_json:
        print_json(result)
    else:
        show_figures(result)
