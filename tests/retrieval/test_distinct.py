"""One passage for equal texts, and no text lost when a file changes or goes."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ragft_plugin.errors import ConfigError
from ragft_plugin.retrieval import Chunker, KnowledgeBase, ParentChunker, index_folder
from ragft_plugin.types import Passage

TEXTS = ["Red lamps.", "red  LAMPS.", "Blue gears.", "Tax law.", "Deep harbour."]


def plain(text: str) -> str:
    return " ".join(text.casefold().split())


def rows(texts: list[str]) -> str:
    return "text\n" + "".join(f"{text}\n" for text in texts)


def test_the_first_file_keeps_a_text_and_the_next_takes_over_when_it_goes(tmp_path: Path) -> None:
    docs = tmp_path / "docs"
    docs.mkdir()
    (docs / "a.csv").write_text(rows(["Red lamps.", "Blue gears."]))
    (docs / "b.csv").write_text(rows(["red  lamps.", "Tax law."]))
    (docs / "c.csv").write_text(rows(["Red lamps."]))
    with KnowledgeBase.create(tmp_path / "kb") as kb:
        report = index_folder(kb, docs, distinct=True)
        assert (report.added, report.left_out) == (3, 2)
        again = index_folder(kb, docs, distinct=True)
        assert (again.added, again.unchanged, again.left_out) == (0, 3, 0)
        (docs / "a.csv").write_text(rows(["Blue gears."]))
        index_folder(kb, docs, distinct=True)
        held = {(p.metadata["source"], plain(p.text)) for p in kb.get(kb.ids())}
        assert held == {("a.csv", "blue gears."), ("b.csv", "red lamps."), ("b.csv", "tax law.")}
        # Asked for everything, it reads everything.
        assert index_folder(kb, docs).added + len(held) == len(kb) == 4


@settings(max_examples=12, deadline=None, derandomize=True)
@given(
    st.lists(
        st.dictionaries(st.sampled_from("abc"), st.lists(st.sampled_from(TEXTS), max_size=3), max_size=3),
        min_size=1,
        max_size=5,
    )
)
def test_whatever_happens_to_the_files_every_text_is_there_once(steps: list[dict[str, list[str]]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        docs = Path(folder) / "docs"
        docs.mkdir()
        (docs / "always.csv").write_text(rows(["Always there."]))
        with KnowledgeBase.create(Path(folder) / "kb", None) as kb:
            for step in steps:
                for name in "abc":
                    path = docs / f"{name}.csv"
                    if step.get(name):
                        path.write_text(rows(step[name]))
                    else:
                        path.unlink(missing_ok=True)
                index_folder(kb, docs, distinct=True)
                said = {plain(text) for texts in step.values() for text in texts} | {"always there."}
                assert sorted(plain(p.text) for p in kb.get(kb.ids())) == sorted(said)
                assert all(
                    plain(p.text) in {plain(t) for t in step.get(p.metadata["source"][0], [])}
                    for p in kb.get(kb.ids())
                    if p.metadata["source"] != "always.csv"
                )


def test_an_interrupted_run_loses_no_text(tmp_path: Path) -> None:
    docs = tmp_path / "docs"
    docs.mkdir()
    (docs / "a.csv").write_text(rows(["Red lamps."]))
    (docs / "b.csv").write_text(rows(["Red lamps.", "Tax law."]))
    with KnowledgeBase.create(tmp_path / "kb") as kb:
        index_folder(kb, docs, distinct=True)
        (docs / "a.csv").write_text(rows(["Blue gears."]))
        whole = kb.replace_sources

        def interrupted(sources, **_):  # type: ignore[no-untyped-def]
            whole({"a.csv": sources["a.csv"]})
            raise KeyboardInterrupt

        kb.replace_sources = interrupted  # type: ignore[method-assign]
        with pytest.raises(KeyboardInterrupt):
            index_folder(kb, docs, distinct=True)
        kb.replace_sources = whole  # type: ignore[method-assign]
        index_folder(kb, docs, distinct=True)
        assert sorted(p.text for p in kb.get(kb.ids())) == ["Blue gears.", "Red lamps.", "Tax law."]


def test_children_are_not_taken_from_their_parents(tmp_path: Path) -> None:
    with (
        KnowledgeBase.create(tmp_path / "kb") as kb,
        pytest.raises(ConfigError, match="take children from their parents"),
    ):
        index_folder(kb, tmp_path, chunker=ParentChunker(parents=Chunker(80, 0), size=30), distinct=True)


def test_a_text_is_kept_by_another_file_where_its_owner_is_refused(tmp_path: Path) -> None:
    docs = tmp_path / "docs"
    docs.mkdir()
    with KnowledgeBase.create(tmp_path / "kb") as kb:
        kb.add([Passage("7", "Somebody else's.")])
        (docs / "a.jsonl").write_text('{"id": "7", "text": "Red lamps."}\n{"id": "8", "text": "Tax law."}\n')
        (docs / "b.txt").write_text("Tax law.")
        assert [Path(s.path).name for s in index_folder(kb, docs, distinct=True).skipped] == ["a.jsonl"]
        (docs / "a.jsonl").unlink()
        index_folder(kb, docs, distinct=True)
        assert sorted(p.text for p in kb.get(kb.ids())) == ["Somebody else's.", "Tax law."]
