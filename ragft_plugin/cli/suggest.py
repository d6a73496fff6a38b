"""``ragft suggest``: training rows for what is asked often and answered only by retrieval."""

from __future__ import annotations

import json
from pathlib import Path

import click

from ragft_plugin.cli.files import write_text
from ragft_plugin.cli.terminal import json_option, print_json


@click.command("suggest")
@click.argument("outcomes", type=click.Path(path_type=Path, dir_okay=False, exists=True))
@click.option(
    "--out", type=click.Path(path_type=Path, dir_okay=False), default=Path("suggested.jsonl"), show_default=True
)
@json_option
def command(outcomes: Path, out: Path, as_json: bool) -> None:
    """Find topics in OUTCOMES worth an adapter, and write rows for ragft train."""
    from ragft_plugin.evaluation.outcomes import read_outcomes
    from ragft_plugin.reporting import find_topics, group_topics, suggest_rows
    from ragft_plugin.reporting.advice import LEAST_LEAD, LEAST_SHARE, worth_tuning

    log = read_outcomes(outcomes)
    topics = worth_tuning(log, (*group_topics(log), *find_topics(log)))
    rows = suggest_rows(log, topics)
    if rows:
        write_text(out, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    if as_json:
        told = [{"name": t.name, "n": t.n, "share": t.share, "reward": dict(t.reward)} for t in topics]
        print_json({"topics": told, "rows": len(rows), "out": str(out) if rows else None})
        return
    if not rows:
        click.echo(
            f"nothing to suggest: no topic with at least {LEAST_SHARE:.0%} of the questions is answered by retrieval "
            f"better than closed-book by {LEAST_LEAD:g} or more"
        )
        return
    for topic in topics:
        click.echo(f"{topic.share:>5.0%}  {topic.name}")
    click.echo(f"wrote {out}: {len(rows)} rows; look at them, then: ragft train {out} --name NAME --dry-run")
