"""The knowledge base as a user sees it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ragft_plugin.errors import ConfigError, StoreError
from ragft_plugin.retrieval import KnowledgeBase
from ragft_plugin.types import Passage, Retriever


def site(number: int, **metadata: object) -> Passage:
    return Passage(f"s{number}", f"The manager of site {number} is person {number * 7}.", metadata=metadata)


@pytest.fixture
def kb(tmp_path: Path) -> Iterator[KnowledgeBase]:
    with KnowledgeBase.create(tmp_path / "kb") as made:
        yield made


def test_it_is_a_retriever(kb: KnowledgeBase) -> None:
    assert isinstance(kb, Retriever)


@pytest.mark.parametrize("mode", ["hybrid", "dense", "bm25", "rrf", "mmr"])
def test_every_mode_finds_the_passage_that_answers(kb: KnowledgeBase, mode: str) -> None:
    kb.add([site(n, page=n) for n in range(40)])
    [found] = kb.retrieve(["Who is the manager of site 17?"], 3, mode=mode)  # type: ignore[arg-type]
    assert found[0].id == "s17"
    assert found[0].metadata["page"] == 17
    assert found[0].metadata["kb"]["version"] == 1
    assert len(found) == 3


def test_adding_the_same_again_changes_nothing(kb: KnowledgeBase) -> None:
    passages = [site(n) for n in range(5)]
    kb.add(passages)
    version, fingerprint = kb.version, kb.fingerprint
    again = kb.add(passages)
    assert (again.added, again.updated, again.unchanged) == (0, 0, 5)
    assert (kb.version, kb.fingerprint) == (version, fingerprint)


def test_a_retrieved_passage_can_be_added_back_unchanged(kb: KnowledgeBase) -> None:
    kb.add([site(1)])
    assert kb.add(kb.retrieve(["manager"], 1)[0]).unchanged == 1


def test_a_new_text_replaces_the_old_one_everywhere(kb: KnowledgeBase) -> None:
    kb.add([site(1), site(2)])
    kb.add([Passage("s1", "Zebras graze.")])
    assert len(kb) == 2
    assert [p.id for p in kb.retrieve(["zebras"], 1, mode="bm25")[0]] == ["s1"]
    assert [p.id for p in kb.retrieve(["site 1"], 5, mode="bm25")[0]] == ["s2"]
    assert kb.get(["s1"])[0].text == "Zebras graze."


def test_deleting_tolerates_unknown_ids(kb: KnowledgeBase) -> None:
    kb.add([site(1), site(2)])
    assert kb.delete(["s1", "s1", "nothing"]) == 1
    assert kb.ids() == ["s2"]


def test_what_was_added_is_there_after_reopening(tmp_path: Path) -> None:
    with KnowledgeBase.create(tmp_path / "kb") as kb:
        kb.add([site(n) for n in range(9)])
        before = kb.retrieve(["manager of site 3"], 5)
        fingerprint = kb.fingerprint
    with KnowledgeBase.open(tmp_path / "kb") as kb:
        assert kb.retrieve(["manager of site 3"], 5) == before
        assert kb.fingerprint == fingerprint
        assert kb.verify() == []


def test_a_required_filter_cannot_be_forgotten(tmp_path: Path) -> None:
    with KnowledgeBase.create(tmp_path / "kb", require_filter=True) as kb:
        kb.add([site(1, tenant="a"), site(2, tenant="b")])
        for forgotten in (None, {}):
            with pytest.raises(ConfigError, match="requires a filter"):
                kb.retrieve(["site"], 5, forgotten)
        assert [p.id for p in kb.retrieve(["site"], 5, {"tenant": "b"})[0]] == ["s2"]


def test_a_second_writer_is_told_who_is_first(tmp_path: Path) -> None:
    with KnowledgeBase.create(tmp_path / "kb") as first, KnowledgeBase.open(tmp_path / "kb") as second:
        first.add([site(1)])
        with pytest.raises(StoreError, match="is being changed by process"):
            second.add([site(2)])
        assert len(second) == 1
