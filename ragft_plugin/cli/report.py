"""``ragft report``: one page that shows what a router earns, why, and what to do next."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from ragft_plugin.cli.files import write_text
from ragft_plugin.cli.terminal import config_option, json_option, print_json
from ragft_plugin.config import Config, read_config

if TYPE_CHECKING:
    from ragft_plugin.reporting import ComparisonRow, RouterReport
    from ragft_plugin.routing import AdapterRecord


@click.command("report")
@click.argument("outcomes", type=click.Path(path_type=Path, dir_okay=False, exists=True))
@click.option("--router", type=click.Path(path_type=Path, file_okay=False, exists=True), help="Default: the project's.")
@config_option
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), default=Path("report.html"), show_default=True)
@click.option("--cost-weight", type=click.FloatRange(0.0), help="Reward per unit of cost; default: the router's own.")
@click.option("--title", default="Router report", show_default=True)
@json_option
def command(
    outcomes: Path,
    router: Path | None,
    config_path: Path,
    out: Path,
    cost_weight: float | None,
    title: str,
    as_json: bool,
) -> None:
    """Measure a router on OUTCOMES that it was not fitted on, and write one HTML page.

    With a ragft.yaml at hand the page also tells which adapter is stale, and compares retrieval with fine-tuning.
    """
    from ragft_plugin.evaluation.outcomes import read_outcomes
    from ragft_plugin.reporting import report_router
    from ragft_plugin.routing.router import Router

    config = read_config(config_path) if router is None or config_path.exists() else None
    place = router if router is not None or config is None else config.path(config.router)
    assert place is not None
    report = report_router(
        Router.load(place),
        read_outcomes(outcomes),
        cost_weight=cost_weight,
        adapters=None if config is None else adapter_records(config),
        facts=[] if config is None else measured_facts(config),
        title=title,
    )
    if as_json:
        print_json(report.to_dict())
        return
    write_text(out, report.to_html())
    _show(report)
    click.echo(f"\nwrote {out}")


def adapter_records(config: Config) -> dict[str, AdapterRecord]:
    """Adapter -> what its manifest tells; adapters that came without one are left out."""
    from ragft_plugin.adapter_records import AdapterRecords

    arms = {f"adapter:{name}": name for name in config.adapters}
    return {arms[arm]: record for arm, record in AdapterRecords(config).by_arm(list(arms)).items()}


def measured_facts(config: Config) -> list[ComparisonRow]:
    """What the project's own files say of the two ways: how much data each needed, and how long it took."""
    from ragft_plugin.lora.manifest import Manifest
    from ragft_plugin.reporting import ComparisonRow

    passages = ""
    if config.knowledge_base is not None:
        from ragft_plugin.retrieval import KnowledgeBase

        place = config.path(config.knowledge_base)
        if KnowledgeBase.exists(place):
            with KnowledgeBase.open(place, read_only=True) as knowledge_base:
                passages = f"{len(knowledge_base):,} passages"
    read = {name: Manifest.read(config.path(folder)) for name, folder in config.adapters.items()}
    manifests = {name: manifest for name, manifest in read.items() if manifest is not None}
    if not manifests or not passages:
        return []
    rows = ", ".join(f"{name}: {manifest.data.rows:,} rows" for name, manifest in manifests.items())
    facts = [ComparisonRow("data", passages, rows, "the knowledge base, the manifests")]
    seconds = {
        name: manifest.metrics["seconds"] for name, manifest in manifests.items() if "seconds" in manifest.metrics
    }
    if seconds:
        took = ", ".join(f"{name}: {value / 60:.1f} min" for name, value in seconds.items())
        facts.append(ComparisonRow("training", "none", took, "the manifests"))
    return facts


def _show(report: RouterReport) -> None:
    click.echo(report.report.to_table())
    for row in report.comparison:
        click.echo(f"{row.criterion:<26} {row.retrieval:<26} {row.adapter:<26} {row.measured}")
    click.echo()
    for advice in report.advice:
        click.echo(f"{advice.kind} {advice.subject}: {advice.text}")
