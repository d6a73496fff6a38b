"""``ragft index``: documents into the knowledge base."""

from __future__ import annotations

import shutil
from contextlib import ExitStack
from pathlib import Path

import click

from ragft_plugin.cli.terminal import config_option, json_option, load_config, print_json, progress


@click.command("index")
@click.argument("documents", type=click.Path(path_type=Path))
@config_option
@json_option
def command(documents: Path, config_path: Path, as_json: bool) -> None:
    """Put the files under DOCUMENTS into the knowledge base; only what changed is done again."""
    from ragft_plugin.assembly import Project
    from ragft_plugin.retrieval import KnowledgeBase, index_folder

    config = load_config(config_path)
    with ExitStack() as stack:
        if config.knowledge_base and not KnowledgeBase.exists(config.path(config.knowledge_base)):
            # A knowledge base made for nothing is taken away again.
            stack.callback(_remove_empty, config.path(config.knowledge_base))
        project = stack.enter_context(Project(config))
        knowledge_base = project.knowledge_base(create=True)
        with progress("indexing", quiet=as_json) as advance:
            report = index_folder(knowledge_base, documents, progress=advance)
        total = len(knowledge_base)
    counts = {
        "added": report.added,
        "updated": report.updated,
        "unchanged": report.unchanged,
        "deleted": report.deleted,
        "passages": total,
        "seconds": round(report.seconds, 3),
    }
    skipped = [{"path": str(s.path), "reason": s.reason} for s in report.skipped]
    if as_json:
        print_json({**counts, "skipped": skipped})
        return
    click.echo(", ".join(f"{name} {value}" for name, value in counts.items()))
    for item in skipped:
        click.echo(f"skipped {item['path']}: {item['reason']}", err=True)


def _remove_empty(path: Path) -> None:
    from ragft_plugin.retrieval import KnowledgeBase

    with KnowledgeBase.open(path, read_only=True) as made:
        empty = len(made) == 0
    if empty:
        shutil.rmtree(path)
