"""``ragft ask``: one question, its answer, and why this arm gave it."""

from __future__ import annotations

from pathlib import Path

import click

from ragft_plugin.cli.terminal import config_option, json_option, print_json
from ragft_plugin.config import read_config
from ragft_plugin.decision_record import answer_to_dict
from ragft_plugin.errors import ConfigError
from ragft_plugin.prompts import check_question
from ragft_plugin.routing import Router


@click.command("ask")
@click.argument("question")
@config_option
@click.option("--arm", help="Force this arm.")
@click.option("-k", type=click.IntRange(min=1), help="Passages to read.")
@click.option("--cost-weight", type=click.FloatRange(min=0), help="Reward given up per unit of cost.")
@json_option
def command(
    question: str, config_path: Path, arm: str | None, k: int | None, cost_weight: float | None, as_json: bool
) -> None:
    """Ask QUESTION; shows the arm, its confidence, the reasons and the passages."""
    from ragft_plugin.assembly import Project

    check_question(question)
    config = read_config(config_path)
    if arm is not None:
        if arm not in config.arm_names():
            raise ConfigError(f"there is no arm named {arm!r}; the arms are: {', '.join(config.arm_names())}")
        # Only the parts of the arm that is asked for are opened, and no router is needed.
        config = config.model_copy(update={"arms": [arm]})
    with Project(config) as project:
        weight = config.cost_weight if cost_weight is None else cost_weight
        pipeline = project.pipeline(router=Router.cold([arm]) if arm else None)
        answer = pipeline.answer(question, arm=arm, k=k, cost_weight=weight)
    if as_json:
        print_json(answer_to_dict(answer))
        return
    click.echo(answer.text)
    decision = answer.decision
    assert decision is not None
    click.echo(f"\narm {answer.arm}, confidence {decision.confidence:.2f}, {answer.seconds:.2f} s", err=True)
    for reason in decision.reasons:
        click.echo(f"  {reason}", err=True)
    for i, passage in enumerate(answer.passages, 1):
        source = passage.metadata.get("source", passage.id)
        click.echo(f"  [{i}] {source} ({passage.score:.3f}) {' '.join(passage.text.split())[:160]}", err=True)
