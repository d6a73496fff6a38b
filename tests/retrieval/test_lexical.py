"""BM25 on disk and approximate indexes: what is derived is whole, readable, of one state, or made again."""

from __future__ import annotations

import json
import logging
import os
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tantivy

from ragft_plugin.errors import StoreError
from ragft_plugin.retrieval import HashingEncoder, KnowledgeBase, approximate, lexical, snapshots
from ragft_plugin.retrieval.bm25 import Lexicon, analyzer, schema
from ragft_plugin.retrieval.bm25_files import find_damage
from ragft_plugin.retrieval.catalogue import Catalogue
from ragft_plugin.retrieval.lexical import LexicalIndex
from ragft_plugin.types import Passage

posix = pytest.mark.skipif(sys.platform == "win32", reason="permissions of POSIX")
LOGGER = "ragft_plugin.retrieval.lexical"


def passages(first: int, last: int) -> list[Passage]:
    return [Passage(f"p{n}", f"common lamp{n}") for n in range(first, last)]


def ids(kb: KnowledgeBase) -> list[str]:
    return sorted(p.id for p in kb.retrieve(["common"], 1000, mode="bm25")[0])


@pytest.fixture
def closed(tmp_path: Path) -> Path:
    with KnowledgeBase.create(tmp_path / "kb", HashingEncoder(8)) as kb:
        kb.add(passages(0, 20))
        kb.delete(["p3"])
    return tmp_path / "kb"


def folder_of(kb: Path) -> Path:
    [folder] = kb.glob("bm25-*")
    return folder


@pytest.mark.parametrize("mode", ["bm25", "hybrid", "rrf", "dense", "mmr"])
@pytest.mark.parametrize("k", [2**62, 2**64])
def test_k_may_be_as_large_as_it_likes(closed: Path, mode: Any, k: int) -> None:
    with KnowledgeBase.open(closed) as kb:
        assert len(kb.retrieve(["common"], k, mode=mode)[0]) == 19


@pytest.mark.parametrize("mode", ["bm25", "hybrid"])
def test_a_lone_surrogate_in_a_query_is_no_word(closed: Path, mode: Any) -> None:
    with KnowledgeBase.open(closed) as kb:
        [broken], [whole] = (kb.retrieve([query], 1, mode=mode) for query in ("lamp7\ud800", "lamp7"))
        assert [p.id for p in broken] == [p.id for p in whole] == ["p7"]
        assert kb.retrieve(["\udfff"], 1, mode="bm25") == [[]]


class PanicException(BaseException):
    """What pyo3 raises where Rust panics."""


class Panicking:
    """A searcher over an index that contradicts itself."""

    num_docs = 3

    def search(self, *_: object, **__: object) -> None:
        raise PanicException("11 >= 20")


def test_a_panic_of_tantivy_is_an_error_of_ours() -> None:
    with pytest.raises(StoreError, match=r"BM25 index is damaged: .*11 >= 20"):
        Lexicon(Panicking(), schema(), analyzer("english")).search("common", 3)


def test_an_index_in_memory_is_of_its_state(closed: Path) -> None:
    catalogue = Catalogue(closed / "knowledge.db")
    state = catalogue.state()
    with KnowledgeBase.open(closed) as kb:
        kb.delete(["p7"])
        kb.add([Passage("p8", "common other"), *passages(20, 30)])
    _, rows = LexicalIndex(closed, "english").in_memory(catalogue, state).search("common", 100)
    assert sorted(rows.tolist()) == [row for row in range(20) if row != 3]
    catalogue.close()


@pytest.fixture
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


@posix
@pytest.mark.parametrize("umask", [0o022, 0o027, 0o077], indirect=True)
def test_whoever_may_read_the_folder_may_read_all_of_it(tmp_path: Path, umask: int) -> None:
    def modes() -> set[int]:
        return {path.stat().st_mode & 0o777 for path in folder_of(tmp_path / "kb").iterdir()}

    with KnowledgeBase.create(tmp_path / "kb", None) as kb:
        for n in range(20):
            kb.add(passages(n, n + 1))  # tantivy merges in the background, and is ready when it likes
        deadline = time.monotonic() + 30
        while modes() != {0o666 & ~umask} and time.monotonic() < deadline:
            time.sleep(0.05)
        assert modes() == {0o666 & ~umask}
        assert (tmp_path / "kb" / "bm25.json").stat().st_mode & 0o777 == 0o666 & ~umask
    assert modes() == {0o666 & ~umask}


def damage_managed(folder: Path) -> None:
    managed = folder / ".managed.json"
    managed.write_text(managed.read_text()[:-4])


def forget_a_file(folder: Path) -> None:
    managed = json.loads((folder / ".managed.json").read_text())
    (folder / ".managed.json").write_text(json.dumps([name for name in managed if not name.endswith(".idx")]))


def miscount(folder: Path) -> None:
    meta = folder / "meta.json"
    assert '"max_doc": 20' in meta.read_text()
    meta.write_text(meta.read_text().replace('"max_doc": 20', '"max_doc": 30'))


def miscount_deleted(folder: Path) -> None:
    meta = folder / "meta.json"
    meta.write_text(meta.read_text().replace('"num_deleted_docs": 1', '"num_deleted_docs": 3'))


def change_the_schema(folder: Path) -> None:
    meta = folder / "meta.json"
    meta.write_text(meta.read_text().replace('"tokenizer": "ragft"', '"tokenizer": "raget"'))


def lose_deletions(folder: Path) -> None:
    [path] = folder.glob("*.del")
    path.unlink()


DAMAGE = {
    damage_managed: ".managed.json",
    forget_a_file: ".managed.json",
    miscount: "meta.json",
    miscount_deleted: "meta.json",
    change_the_schema: "meta.json",
    lose_deletions: ".del",
}


@pytest.mark.parametrize("damage", list(DAMAGE), ids=lambda damage: damage.__name__)
def test_damage_is_named_and_mended(
    closed: Path, damage: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(snapshots, "PATIENCE", 0.2)
    folder = folder_of(closed)
    assert find_damage(folder) == []
    damage(folder)
    with KnowledgeBase.open(closed, read_only=True) as kb:
        assert len(ids(kb)) == 19
        assert [DAMAGE[damage] in problem for problem in kb.verify()] == [True]
        assert [r.name for r in caplog.records].count(LOGGER) == 1  # not with every look at it
    caplog.clear()
    with KnowledgeBase.open(closed) as kb:
        assert len(ids(kb)) == 19
        assert kb.verify() == []
        assert [str(folder) in r.message for r in caplog.records if r.name == LOGGER] == [True]
    assert folder_of(closed) != folder


def test_a_stamp_that_is_none_is_named(closed: Path) -> None:
    lexicon = LexicalIndex(closed, "english")
    for text in ("{", "[]", '{"folder": 1, "version": 1, "next_row": 1, "opstamp": 1}', "[" * 100_000):
        (closed / "bm25.json").write_text(text)
        assert lexicon.damaged() == [str(closed / "bm25.json")]
    (closed / "bm25.json").unlink()
    assert lexicon.damaged() == []


def test_what_is_unreadable_is_told_apart_from_what_is_behind(
    closed: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    catalogue = Catalogue(closed / "knowledge.db")
    state = catalogue.state()
    lexicon = LexicalIndex(closed, "english")
    meta = str(folder_of(closed) / "meta.json")

    def refused(folder: Path) -> list[str]:
        raise PermissionError(13, "Permission denied", meta)

    with monkeypatch.context() as patch:
        patch.setattr(lexical, "find_damage", refused)
        for _ in range(3):
            assert lexicon.pinned(state) is None
            assert "Permission denied" in str(lexicon.problem)
            assert meta in str(lexicon.problem)
        assert lexicon.damaged() == [meta]
    assert [r.name for r in caplog.records] == [LOGGER]
    assert lexicon.pinned(state) is not None
    assert lexicon.problem is None
    with KnowledgeBase.open(closed) as kb:
        kb.add(passages(20, 21))
    assert lexicon.pinned(state) is None  # it is ahead of this state
    assert lexicon.problem is None
    lexicon.close()
    catalogue.close()


def test_an_index_that_another_holds_is_written_anew(closed: Path) -> None:
    folder = folder_of(closed)
    held = tantivy.Index(schema(), path=str(folder), reuse=True).writer(15_000_000, 1)
    with KnowledgeBase.open(closed) as kb:
        kb.add(passages(20, 25))
        assert len(ids(kb)) == 24
        assert folder_of(closed) != folder
    del held


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_what_an_interrupted_change_has_added_is_not_added_twice(
    closed: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, error: BaseException
) -> None:
    add = LexicalIndex._add

    def interrupted(self: LexicalIndex, writer: Any, texts: Any) -> None:
        add(self, writer, list(texts)[:2])
        raise error

    with KnowledgeBase.open(closed) as kb:
        kb.add(passages(20, 21))
        with monkeypatch.context() as patch:
            patch.setattr(LexicalIndex, "_add", interrupted)
            try:
                kb.add(passages(21, 30))
            except KeyboardInterrupt as kept:
                error = kept  # and in its traceback all that the frames hold
        caplog.clear()
        folder = folder_of(closed)
        kb.add(passages(30, 31))
        assert ids(kb) == sorted(f"p{n}" for n in range(31) if n != 3)
        assert folder_of(closed) == folder
        assert kb.verify() == []
    assert caplog.records == []


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_a_rebuilding_that_fails_leaves_nothing(
    closed: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    def full(self: LexicalIndex, writer: object) -> int:
        raise error

    monkeypatch.setattr(LexicalIndex, "_commit", full)
    folder = folder_of(closed)
    with KnowledgeBase.open(closed) as kb:
        for _ in range(2):
            with pytest.raises((KeyboardInterrupt, StoreError)):
                kb.compact()
        assert folder_of(closed) == folder
        monkeypatch.undo()
        kb.compact()
        assert len(ids(kb)) == 19
    assert sorted(p.name for p in closed.iterdir() if p.name.startswith("bm25")) == [
        folder_of(closed).name,
        "bm25.json",
    ]


def test_drafts_of_a_killed_process_are_removed(closed: Path) -> None:
    (closed / "bm25.json.0123abcd.tmp").touch()
    with KnowledgeBase.open(closed) as kb:
        kb.compact()
    assert not (closed / "bm25.json.0123abcd.tmp").exists()


def saved(folder: Path) -> tuple[Path, Path]:
    vectors = np.random.default_rng(0).standard_normal((200, 8)).astype(np.float32)
    index = approximate.build(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), "pq")
    assert index is not None
    approximate.save(index, folder, "000000000000-01234567")
    return folder / "000000000000-01234567.faiss", folder / "000000000000-01234567.json"


@pytest.mark.parametrize("writes", [0, 1])
def test_an_index_that_cannot_be_saved_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writes: int
) -> None:
    left = writes

    def full(descriptor: int) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr("ragft_plugin.retrieval.drafts.os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        saved(tmp_path / "indexes")
    assert list((tmp_path / "indexes").iterdir()) == []


def test_a_damaged_file_of_an_index_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path, note = saved(tmp_path)

    def damaged() -> list[str]:
        return approximate.damaged(tmp_path, path.stem, (200, 8))

    assert damaged() == []
    assert approximate.damaged(tmp_path, "000000000000-76543210", (200, 8)) == []
    about = json.loads(note.read_text())
    for victim, other in ((path, note), (note, path)):
        raw = victim.read_bytes()
        for at in range(0, len(raw), max(1, len(raw) // 200)):
            for changed in (raw[:at], raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :]):
                victim.write_bytes(changed)
                same = victim == note and _means(changed) == about  # a space more, or such
                assert damaged() == ([] if same else [str(victim)])
        victim.unlink()
        assert damaged() == [str(victim)]
        victim.write_bytes(raw)
        assert other.exists()
    with caplog.at_level(logging.WARNING):
        path.write_bytes(b"")
        assert approximate.load(tmp_path, path.stem, (200, 8)) is None
    assert path.name in caplog.text


def _means(text: bytes) -> object:
    try:
        return json.loads(text)
    except ValueError:
        return None


def test_a_disk_that_is_full_in_the_middle_of_an_index_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full:
        def __init__(self, file: Any) -> None:
            self.file = file

        def __enter__(self) -> Any:
            return self

        def __exit__(self, *error: object) -> None:
            self.file.close()

        def write(self, block: bytes) -> int:
            raise OSError(28, "No space left on device")

    opened = Path.open
    monkeypatch.setattr(Path, "open", lambda self, mode: Full(opened(self, mode)))
    with pytest.raises(OSError, match="No space left"):
        saved(tmp_path / "indexes")
    assert list((tmp_path / "indexes").iterdir()) == []


def test_a_copy_is_as_good(closed: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(closed, tmp_path / "copy"))
    with KnowledgeBase.open(copy) as kb:
        assert len(ids(kb)) == 19
    assert folder_of(copy).name == folder_of(closed).name
