"""The knowledge base as a user sees it."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from ragft_plugin.errors import ConfigError, DataError, StoreError
from ragft_plugin.retrieval import HashingEncoder, KnowledgeBase
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


def test_metadata_where_retrieval_puts_its_own_is_refused(tmp_path: Path) -> None:
    with KnowledgeBase.create(tmp_path / "kb") as kb:
        with pytest.raises(DataError, match="metadata 'kb', where retrieval puts its scores; rename it"):
            kb.add([Passage("a", "Red lamps.", metadata={"kb": "support"})])
        kb.add([Passage("a", "Red lamps.", metadata={"tags": ["red"]})])
        [[found]] = kb.retrieve(["lamps"], 1)
        found.metadata["tags"].append("mine")
        assert kb.retrieve(["lamps"], 1)[0][0].metadata["tags"] == ["red"]
        kb.add([found])  # what was retrieved may come back
        assert kb.get(["a"])[0].metadata == {"tags": ["red", "mine"]}


def test_a_required_filter_must_say_something(tmp_path: Path) -> None:
    with KnowledgeBase.create(tmp_path / "kb", require_filter=True) as kb:
        kb.add([Passage("a", "Red lamps.", metadata={"team": 1})])
        for empty in (None, {}, {"$and": []}, {"$and": [{"team": 1}, {}]}, {"$or": []}, {"$not": {"$or": []}}):
            with pytest.raises(ConfigError, match="requires a filter"):
                kb.retrieve(["lamps"], 1, empty)
        assert kb.retrieve(["lamps"], 1, {"team": {"$in": []}}) == [[]]
        assert len(kb.retrieve(["lamps"], 1, {"$and": [{"team": 1}]})[0]) == 1


def test_questions_ids_and_filters_of_a_wrong_kind_are_named(tmp_path: Path) -> None:
    deep: dict[str, object] = {"a": 1}
    for _ in range(2000):
        deep = {"$not": deep}
    with KnowledgeBase.create(tmp_path / "kb", HashingEncoder(32)) as kb:
        kb.add([Passage("1", "Red lamps."), Passage("2", "Blue gears.")])
        with pytest.raises(ConfigError, match="queries must be texts, got NoneType"):
            kb.retrieve([None], 1)  # type: ignore[list-item]
        with pytest.raises(ConfigError, match=r"ids must be a list of ids, got one: '12'"):
            kb.delete("12")
        with pytest.raises(ConfigError, match="got one"):
            kb.get("12")
        with pytest.raises(ConfigError, match="nested deeper than 50"):
            kb.retrieve(["lamps"], 1, deep)
        with pytest.raises(ConfigError, match=r"shape \(1, 32\), one row per query; got \(2, 32\)"):
            kb.retrieve(["lamps"], 1, vectors=np.ones((2, 32)))
        assert len(kb) == 2
    with (
        KnowledgeBase.create(tmp_path / "other", HashingEncoder(32)) as kb,
        pytest.raises(DataError, match="have 5 dimensions, those of hashing-1-32 have 32"),
    ):
        kb.add([Passage("1", "Red lamps.")], vectors=np.ones((1, 5)))


def test_a_relative_path_stands_when_the_working_directory_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    with KnowledgeBase.create("kb") as kb:
        monkeypatch.chdir(tmp_path / "elsewhere")
        kb.add([Passage("1", "Red lamps.")])
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(kb.retrieve, ["lamps"], 1).result()[0][0].id == "1"
