"""``ragft index``: documents into the knowledge base."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import click

from ragft_plugin.cli.terminal import ProgressCallback, config_option, json_option, print_json
from ragft_plugin.config import read_config


@click.command("index")
@click.argument("documents", type=click.Path(path_type=Path))
@config_option
@json_option
def command(documents: Path, config_path: Path, as_json: bool) -> None:
    """Put the files under DOCUMENTS into the knowledge base; only what changed is done again.

    After an interruption the same command goes on where it stopped. Files that cannot be read are named and skipped.
    """
    from ragft_plugin.assembly import Project
    from ragft_plugin.retrieval import KnowledgeBase, index_folder

    config = read_config(config_path)
    with ExitStack() as stack:
        if config.knowledge_base and not KnowledgeBase.exists(config.path(config.knowledge_base)):
            # A knowledge base made for nothing is taken away again.
            stack.callback(_remove_empty, config.path(config.knowledge_base))
        project = stack.enter_context(Project(config))
        knowledge_base = project.knowledge_base(create=True)
        try:
            with _bar(quiet=as_json) as advance:
                report = index_folder(knowledge_base, documents, progress=advance)
        except KeyboardInterrupt:
            click.echo("interrupted; what was read is kept, the same command goes on from there", err=True)
            raise
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


@contextmanager
def _bar(*, quiet: bool) -> Iterator[ProgressCallback]:
    """A bar with count, time left and files per second on standard error; silent unless that is a terminal."""
    if quiet or not sys.stderr.isatty():
        yield lambda done, total: None
        return
    started = time.monotonic()
    with click.progressbar(
        length=1, label="indexing", file=sys.stderr, show_eta=True, show_pos=True, item_show_func=lambda rate: rate
    ) as bar:

        def advance(done: int, total: int) -> None:
            bar.length = total
            bar.update(done - bar.pos, f"{done / max(time.monotonic() - started, 1e-9):.1f} files/s")

        yield advance


def _remove_empty(path: Path) -> None:
    from ragft_plugin.retrieval import KnowledgeBase

    with KnowledgeBase.open(path, read_only=True) as made:
        empty = len(made) == 0
    if empty:
        shutil.rmtree(path)
