"""Damage is detected whichever file it hits; large files are checked while searches go on."""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import sqlite3
import sys
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ragft_plugin.errors import ConfigError, DataError, RagftError, StoreError
from ragft_plugin.retrieval import HashingEncoder, KnowledgeBase, audit, segments
from ragft_plugin.types import Passage

WORDS = "lamp gear wheel hinge bolt lens pipe cable".split()


def passages(count: int) -> list[Passage]:
    return [
        Passage(f"p{i}", f"common {WORDS[i % 8]} {i}", metadata={"n": i % 5, "source": f"s{i % 4}"})
        for i in range(count)
    ]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("whole") / "kb"
    with KnowledgeBase.create(path, HashingEncoder(32)) as kb:
        kb.add(passages(150))
        kb.compact(index="hnsw")
        kb.add(passages(200))
        kb.delete(["p7"])
    return path


def answers(path: Path) -> list[Any]:
    with KnowledgeBase.open(path) as kb:
        found: list[Any] = [sorted((p.id, p.text, p.metadata["n"]) for p in kb.get(kb.ids())), len(kb)]
        for mode in ("bm25", "dense", "hybrid"):
            [hits] = kb.retrieve(["common gear 9"], 300, mode=mode)  # type: ignore[arg-type]
            # A BM25 index made anew no longer counts deleted passages, so its scores differ a little.
            found.append([(p.id, round(p.score, 4)) for p in hits] if mode == "dense" else sorted(p.id for p in hits))
        found.append(sorted(p.id for p in kb.retrieve(["common"], 300, {"n": 3}, mode="bm25")[0]))
        return [*found, sorted(kb.source_sizes().items())]


def answers_or_error(path: Path) -> tuple[list[Any] | None, str]:
    try:
        return answers(path), ""
    except RagftError as error:
        return None, str(error)


KINDS = [
    "knowledge.db",
    "segments/*.rows.npy",
    "segments/*.vectors.npy",
    "indexes/*.faiss",
    "indexes/*.json",
    "bm25.json",
    "bm25-*/meta.json",
    "bm25-*/*.idx",
    "bm25-*/*.term",
    "bm25-*/*.fast",
    "bm25-*/*.fieldnorm",
    "bm25-*/*.store",
    "bm25-*/*.pos",
    "bm25-*/*.del",
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("how", ["flip", "truncate"])
def test_a_damaged_file_gives_the_right_answers_or_an_error_that_names_it(
    whole: Path, tmp_path: Path, kind: str, how: str
) -> None:
    files = sorted(whole.glob(kind))
    assert files, kind
    truth = answers(shutil.copytree(whole, tmp_path / "copy"))
    for number, at in enumerate((0.02, 0.5, 0.97)):
        path = Path(shutil.copytree(whole, tmp_path / f"damaged{number}"))
        victim = path / files[0].relative_to(whole)
        raw = bytearray(victim.read_bytes())
        if how == "flip":
            raw[int(len(raw) * at)] ^= 0x04
        else:
            raw = raw[: int(len(raw) * at)]
        victim.unlink()  # not in place: a file that is mapped may not shrink under its reader
        victim.write_bytes(bytes(raw))
        found, error = answers_or_error(path)
        if found is None:
            assert victim.name in error or str(victim.parent) in error
            assert kind.split("/")[0] in ("knowledge.db", "segments")  # what is derived is made again instead
        else:
            assert found == truth


def test_a_bit_flipped_anywhere_in_the_database_hides_no_passage(whole: Path, tmp_path: Path) -> None:
    truth = answers(shutil.copytree(whole, tmp_path / "copy"))
    size = (whole / "knowledge.db").stat().st_size
    draw = np.random.default_rng(3)
    errors = 0
    for number in range(40):
        path = Path(shutil.copytree(whole, tmp_path / f"{number}"))
        raw = bytearray((path / "knowledge.db").read_bytes())
        raw[int(draw.integers(size))] ^= 1 << int(draw.integers(8))
        (path / "knowledge.db").unlink()
        (path / "knowledge.db").write_bytes(bytes(raw))
        found, error = answers_or_error(path)
        assert found == truth or str(path) in error, error
        errors += found is None
    assert errors > 0


def test_a_database_that_brings_a_trigger_of_its_own_is_refused(whole: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(whole, tmp_path / "kb"))
    with closing(sqlite3.connect(path / "knowledge.db")) as database:
        database.execute("CREATE TRIGGER trap AFTER INSERT ON passages BEGIN DELETE FROM passages; END")
        database.commit()
    with pytest.raises(StoreError, match=r"knowledge\.db.*tables are not those"):
        KnowledgeBase.open(path)


@pytest.fixture
def at_once_large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every file counts as large, and is checked in the background."""
    monkeypatch.setattr(segments, "LARGE", 0)
    monkeypatch.setattr(audit, "LARGE", 0)


def search_for_a_minute(kb: KnowledgeBase) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        kb.retrieve(["gear"], 3, mode="dense")


@pytest.mark.usefixtures("at_once_large")
def test_damage_in_a_large_file_is_an_error_as_soon_as_it_is_found(
    whole: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = Path(shutil.copytree(whole, tmp_path / "kb"))
    victim = max((path / "segments").glob("*.vectors.npy"), key=lambda file: file.stat().st_size)
    raw = bytearray(victim.read_bytes())
    raw[-3] ^= 1
    victim.unlink()
    victim.write_bytes(bytes(raw))
    with caplog.at_level(logging.ERROR), KnowledgeBase.open(path) as kb:
        with pytest.raises(StoreError, match=victim.name.replace(".", r"\.")):
            search_for_a_minute(kb)
        with pytest.raises(StoreError, match="is damaged"):
            kb.compact()  # would copy the damage under a new checksum
        assert any(victim.name in problem for problem in kb.verify())
    assert victim.name in caplog.text


@pytest.mark.usefixtures("at_once_large")
def test_whole_large_files_are_as_good_as_small_ones(whole: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(whole, tmp_path / "kb"))
    with KnowledgeBase.open(path) as kb:
        assert len(kb) == 199
        kb.compact()
        assert kb.verify() == []
        assert len(kb.retrieve(["common"], 300, mode="dense")[0]) == 199


def test_a_lock_file_that_is_a_link_is_not_followed(whole: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(whole, tmp_path / "kb"))
    precious = tmp_path / "precious.txt"
    precious.write_text("keep me")
    (path / "write.lock").unlink(missing_ok=True)
    (path / "write.lock").symlink_to(precious)
    with pytest.raises(StoreError, match=r"write\.lock is a link"):
        KnowledgeBase.open(path)
    assert precious.read_text() == "keep me"


@pytest.mark.skipif(sys.platform == "win32" or not hasattr(os, "geteuid"), reason="permissions of POSIX")
def test_an_index_that_may_not_be_written_leaves_the_old_state(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = Path(shutil.copytree(whole, tmp_path / "kb"))

    def refused(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("ragft_plugin.retrieval.writing.save", refused)
    with KnowledgeBase.open(path) as kb:
        before = kb.fingerprint
        with pytest.raises(StoreError, match=r"Permission denied.*last complete state is kept"):
            kb.compact(index="ivf")
        assert kb.fingerprint == before
        assert len(kb.retrieve(["common"], 300, mode="dense")[0]) == 199


class NeverEncodes:
    """An encoder that must not be asked."""

    fingerprint = "never"

    def encode(self, texts: Sequence[str]) -> Any:
        raise AssertionError("known vectors must not be encoded again")


def test_known_vectors_are_taken_as_they_are(tmp_path: Path) -> None:
    vectors = np.array([[3.0, 0.0], [0.0, 0.5], [1.0, 1.0]])
    with KnowledgeBase.create(tmp_path / "kb", NeverEncodes()) as kb:
        kb.add([Passage("x", "one"), Passage("y", "two"), Passage("z", "three")], vectors=vectors)
        [found] = kb.retrieve(["q"], 3, mode="dense", vectors=np.array([[0.0, 2.0]]))
        assert [(p.id, round(p.score, 4)) for p in found] == [("y", 1.0), ("z", 0.7071), ("x", 0.0)]
        with pytest.raises(DataError, match=r"shape \(1, dim\)"):
            kb.add([Passage("w", "four")], vectors=vectors)
        with pytest.raises(DataError, match="'w' holds NaN"):
            kb.add([Passage("w", "four")], vectors=[[np.nan, 1.0]])
        with pytest.raises(DataError, match="3 dimensions"):
            kb.add([Passage("w", "four")], vectors=np.ones((1, 3)))
        with pytest.raises(ConfigError, match="finite"):
            kb.retrieve(["q"], 3, mode="dense", vectors=np.array([[np.nan, 2.0]]))
        assert kb.ids() == ["x", "y", "z"]
    with KnowledgeBase.create(tmp_path / "words", None) as words, pytest.raises(StoreError, match="without an encoder"):
        words.add([Passage("x", "one")], vectors=[[1.0]])


class Slow(HashingEncoder):
    """Takes its time, as a model does."""

    def encode(self, texts: Sequence[str]) -> Any:
        time.sleep(0.5)
        return super().encode(texts)


async def test_the_event_loop_goes_on_while_a_retrieval_computes(tmp_path: Path) -> None:
    with KnowledgeBase.create(tmp_path / "kb", Slow(32)) as kb:
        kb.add(passages(5))
        task = asyncio.create_task(kb.aretrieve(["gear"], 2))
        beats = 0
        while not task.done():
            await asyncio.sleep(0.01)
            beats += 1
        assert beats > 3
        assert await task == kb.retrieve(["gear"], 2)


def test_stats_state_memory_and_measured_recall(whole: Path, tmp_path: Path) -> None:
    with KnowledgeBase.open(Path(shutil.copytree(whole, tmp_path / "kb"))) as kb:
        stats = kb.stats()
    assert stats["bytes_of_vectors"] == 4 * 32 * 200  # the replaced ones, too, until compact()
    hnsw = next(index for index in stats["indexes"] if index["kind"] == "hnsw")
    assert 0.9 <= hnsw["recall@10"] <= 1.0
    assert stats["memory"]["resident"] == hnsw["bytes"] > 4 * 32 * 150  # the graph holds its vectors
    assert stats["memory"]["mapped"] > stats["bytes_of_vectors"]
