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
@click.option("--collection", default="", metavar="NAME", help="Keep several folders apart in one knowledge base.")
@click.option("--moved", is_flag=True, help="DOCUMENTS takes the place of the folder that was indexed before.")
def command(documents: Path, config_path: Path, as_json: bool, collection: str, moved: bool) -> int:
    """Make the knowledge base hold what the files under DOCUMENTS say; only what changed is done again.

    Files that are gone lose their passages. Files that cannot be read are named and skipped; the exit status is 2 if
    one of them is a data set with a malformed row. After an interruption the same command goes on where it stopped. A
    second folder needs a name of its own: --collection NAME.
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
        with _bar(quiet=as_json) as advance:
            report = index_folder(
                knowledge_base,
                documents,
                progress=advance,
                chunker=project.chunker(),
                collection=collection,
                moved=moved,
            )
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
    else:
        click.echo(", ".join(f"{name} {value}" for name, value in counts.items()))
        for item in skipped:
            click.echo(f"skipped {item['path']}: {item['reason']}", err=True)
    return 2 if any(s.line is not None for s in report.skipped) else 0


@contextmanager
def _bar(*, quiet: bool) -> Iterator[ProgressCallback]:
    """A bar with share, time left, amount and rate on standard error; silent unless that is a terminal."""
    if quiet or not sys.stderr.isatty():
        yield lambda done, total: None
        return
    started = time.monotonic()
    with click.progressbar(
        length=1, label="indexing", file=sys.stderr, show_eta=True, show_percent=True, item_show_func=lambda told: told
    ) as bar:

        def advance(done: int, total: int) -> None:
            bar.length = max(total, 1)  # nothing to do is all done
            rate = done / max(time.monotonic() - started, 1e-9)
            bar.update((done if total else 1) - bar.pos, f"{_amount(done)} of {_amount(total)}, {_amount(rate)}/s")

        yield advance


def _amount(size: float) -> str:
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"


def _remove_empty(path: Path) -> None:
    from ragft_plugin.retrieval import KnowledgeBase

    if not KnowledgeBase.exists(path):
        return
    with KnowledgeBase.open(path, read_only=True) as made:
        empty = len(made) == 0
    if empty:
        shutil.rmtree(path)
