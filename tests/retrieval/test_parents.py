"""Children are searched, parents are returned."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ragft_plugin.errors import ConfigError
from ragft_plugin.retrieval import Chunker, Document, KnowledgeBase, ParentChunker, ParentRetriever, index_folder
from ragft_plugin.types import Passage, Retriever

TEXT = (
    "Brelkon stands in Tarmora. It was built in 1911. Its lamps are red.\n\n"
    "Vendrin lies by the sea. The harbour is deep. Ships bring timber there.\n\n"
    "Glask has no school. Its children walk to Plomar. The road is long."
)
CUT = ParentChunker(parents=Chunker(80, 0), size=30)


@settings(max_examples=80, deadline=None, derandomize=True)
@given(st.text(alphabet="ab .\n#é😀\t", max_size=120), st.integers(1, 12), st.integers(12, 40), st.booleans())
def test_children_cover_their_parent_without_a_gap(text: str, size: int, parent: int, markdown: bool) -> None:
    document = Document(text, {"source": "s"}, markdown=markdown)
    chunker = Chunker(parent, 0)
    parents = {p.id: p for p in chunker.split([document])}
    children: dict[str, list[Passage]] = {}
    for child in ParentChunker(parents=chunker, size=size).split([document]):
        place = child.metadata["parent"]
        children.setdefault(place["id"], []).append(child)
        assert text[child.metadata["start"] : child.metadata["end"]] == child.text
        assert child.text.strip()
        assert len(child.text.strip()) <= size
    assert list(children) == list(parents)
    for id, found in children.items():
        assert "".join(child.text for child in found) == parents[id].text
        assert [child.id for child in found] == [f"{id}/{n}" for n in range(1, len(found) + 1)]
        place = found[0].metadata["parent"]
        assert (place["start"], place["end"]) == (parents[id].metadata["start"], parents[id].metadata["end"])
        assert place["children"] == len(found)


@pytest.fixture
def kb(tmp_path: Path):  # type: ignore[no-untyped-def]
    with KnowledgeBase.create(tmp_path / "kb") as made:
        made.add(CUT.split([Document(TEXT, {"source": "towns.txt", "page": 3, "team": 1})]))
        yield made


def test_the_parent_of_the_best_child_comes_with_the_lines_that_matter(kb: KnowledgeBase) -> None:
    retriever = ParentRetriever(kb)
    assert isinstance(retriever, Retriever)
    [[first, *rest]] = retriever.retrieve(["Which harbour is deep?"], 3)
    assert first.text == "Vendrin lies by the sea. The harbour is deep. Ships bring timber there."
    assert TEXT[first.metadata["start"] : first.metadata["end"]] == first.text
    assert (first.metadata["source"], first.metadata["page"]) == ("towns.txt", 3)
    best = first.metadata["children"][0]
    assert "harbour is deep" in TEXT[best["start"] : best["end"]]
    assert best["score"] == first.score
    assert "parent" not in first.metadata
    assert len({p.id for p in (first, *rest)}) == 1 + len(rest)
    assert [p.score for p in (first, *rest)] == sorted((p.score for p in (first, *rest)), reverse=True)


def test_parents_are_counted_not_children(kb: KnowledgeBase) -> None:
    # Every child of the first parent is found before any other: more must be asked for.
    kb.add(
        CUT.split([Document("harbour deep. " * 5, {"source": "loud.txt"}), Document("A harbour.", {"source": "x.txt"})])
    )
    found = ParentRetriever(kb, breadth=1).retrieve(["harbour deep", "Glask school"], 2, mode="dense")
    assert [len(one) for one in found] == [2, 2]
    assert found[1][0].text.startswith("Glask has no school.")
    alone = ParentRetriever(kb, breadth=1).retrieve(["Glask school"], 2, mode="dense")
    assert [p.id for p in alone[0]] == [p.id for p in found[1]]


def test_more_parents_than_there_are_is_all_of_them(kb: KnowledgeBase) -> None:
    [found] = ParentRetriever(kb).retrieve(["Tarmora"], 50, mode="dense")
    assert sorted(p.metadata["start"] for p in found) == [0, 69, 142]
    assert ParentRetriever(kb).retrieve(["Tarmora", ""], 0) == [[], []]
    assert ParentRetriever(kb).retrieve([], 3) == []


def test_a_filter_holds_for_every_line_that_is_shown(kb: KnowledgeBase) -> None:
    hidden = kb.get(kb.ids())[0]
    assert hidden.text.startswith("Brelkon")
    kb.add([Passage(hidden.id, hidden.text, metadata={**hidden.metadata, "team": 2})])
    [[found]] = ParentRetriever(kb).retrieve(["red lamps"], 1, {"team": 1})
    assert "lamps are red" in found.text
    assert "Brelkon" not in found.text
    assert TEXT[found.metadata["start"] : found.metadata["end"]] == found.text


def test_a_child_without_its_siblings_and_a_passage_without_parent_stand_for_themselves(kb: KnowledgeBase) -> None:
    kb.add([Passage("plain", "Harbours are built of stone.")])
    first = next(p for p in kb.get(kb.ids()) if "harbour" in p.text)
    kb.delete([id for id in kb.ids() if id not in (first.id, "plain")])
    [found] = ParentRetriever(kb).retrieve(["harbours of stone"], 5)
    assert {p.id for p in found} == {first.id, "plain"}


async def test_waiting_gives_the_same(kb: KnowledgeBase) -> None:
    retriever = ParentRetriever(kb)
    assert await retriever.aretrieve(["Glask"], 2) == retriever.retrieve(["Glask"], 2)
    assert retriever.fingerprint == kb.fingerprint


def test_a_folder_is_indexed_in_children_and_again_when_the_cut_changes(tmp_path: Path) -> None:
    folder = tmp_path / "docs"
    folder.mkdir()
    (folder / "a.txt").write_text(TEXT)
    with KnowledgeBase.create(tmp_path / "kb") as kb:
        first = index_folder(kb, folder, chunker=CUT)
        assert first.added == len(kb) > 3
        assert index_folder(kb, folder, chunker=CUT).unchanged == first.added
        [[found]] = ParentRetriever(kb).retrieve(["Who walks to Plomar?"], 1)
        assert found.text == TEXT[142:]
        assert index_folder(kb, folder).deleted == first.added


def test_sizes_and_names_that_do_not_fit_are_refused(kb: KnowledgeBase) -> None:
    with pytest.raises(ConfigError, match="1 <= size <= 80"):
        ParentChunker(parents=Chunker(80, 0), size=81)
    with pytest.raises(ConfigError, match="breadth"):
        ParentRetriever(kb, breadth=0)
    with pytest.raises(ConfigError, match='cannot have metadata "parent"'):
        CUT.split([Document("x", {"source": "s", "parent": 1})])
