"""``ragft run-arms``: what every arm earns on labelled questions, as outcomes to learn from."""

from __future__ import annotations

import sys
from pathlib import Path

import click
import numpy as np

from ragft_plugin.cli.terminal import config_option, json_option, print_json, progress
from ragft_plugin.config import read_config


@click.command("run-arms")
@click.argument("questions", type=click.Path(path_type=Path))
@config_option
@click.option("--score", "scorer", default="em", show_default=True, help="em, f1, contains, rouge or module:function.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("outcomes.jsonl"), show_default=True)
@click.option("--arm", "only", multiple=True, help="Only this arm (may be repeated).")
@json_option
def command(questions: Path, config_path: Path, scorer: str, out: Path, only: tuple[str, ...], as_json: bool) -> None:
    """Answer QUESTIONS (JSON Lines with query and answer) with every arm and score the answers."""
    from ragft_plugin.assembly import Project
    from ragft_plugin.errors import ConfigError
    from ragft_plugin.evaluation.answers import load_scorer
    from ragft_plugin.evaluation.outcomes import write_outcomes
    from ragft_plugin.trial import read_questions, run_arms

    config = read_config(config_path)
    asked = read_questions(questions)
    if ":" in scorer:
        sys.path.insert(0, str(Path.cwd()))  # the user named a module of their own
    score = load_scorer(scorer)
    for name in only:
        if name not in config.arm_names():
            raise ConfigError(f"there is no arm named {name!r}; the arms are: {', '.join(config.arm_names())}")
    with Project(config) as project:
        arms = [arm for arm in project.arms() if not only or arm.name in only]
        with progress("running the arms", quiet=as_json) as advance:
            trial = run_arms(arms, asked, score, k=config.k, retrieval_cost=config.costs.retrieval, progress=advance)
    write_outcomes(out, trial.outcomes)
    means = {arm.name: float(np.mean([o.reward[arm.name] for o in trial.outcomes])) for arm in arms}
    if as_json:
        print_json({"n": len(asked), "arms": means, "outcomes": str(out)})
        return
    for name, mean in means.items():
        click.echo(f"{name:<24} {mean:.3f}")
    click.echo(f"wrote {out} ({len(asked)} questions). Next: ragft fit {out} --out {config.router}")
