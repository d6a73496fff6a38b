"""A stranger's directory runs no code, leads nowhere outside, and never ends the process."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import sqlite3
import struct
import sys
import zlib
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest
from numpy.typing import NDArray

from ragft_plugin.errors import StoreError
from ragft_plugin.retrieval import HashingEncoder, KnowledgeBase, approximate, audit
from ragft_plugin.retrieval.drafts import draft_of
from ragft_plugin.retrieval.index_kinds import KINDS
from ragft_plugin.types import Passage

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="uses links of POSIX")

FAISS: Any = faiss
COUNT, DIM = 300, 8


@pytest.fixture
def closed(tmp_path: Path) -> Path:
    with KnowledgeBase.create(tmp_path / "kb", HashingEncoder(DIM)) as kb:
        kb.add([Passage(f"p{n}", f"common lamp {n}") for n in range(COUNT)])
    return tmp_path / "kb"


@pytest.fixture
def precious(tmp_path: Path) -> Path:
    path = tmp_path / "elsewhere" / "precious.txt"
    path.parent.mkdir()
    path.write_text("keep me")
    return path


def found(kb: KnowledgeBase) -> int:
    return len(kb.retrieve(["common"], 2 * COUNT, mode="bm25")[0])


@pytest.mark.parametrize("what", ["open", "add"])
@pytest.mark.parametrize("name", ["../../elsewhere/precious.txt", "{precious}", "..", 7])
def test_tantivy_deletes_nothing_outside(closed: Path, precious: Path, what: str, name: str | int) -> None:
    [folder] = closed.glob("bm25-*")
    managed = json.loads((folder / ".managed.json").read_text())
    managed.append(name.format(precious=precious) if isinstance(name, str) else name)
    (folder / ".managed.json").write_text(json.dumps(managed))
    if what == "open":  # as if a writer had died: to open is to repair
        stamp = json.loads((closed / "bm25.json").read_text())
        (closed / "bm25.json").write_text(json.dumps(stamp | {"version": 0, "next_row": 0, "opstamp": 0}))
    with KnowledgeBase.open(closed) as kb:
        if what == "add":
            kb.add([Passage("new", "common new")])
        assert found(kb) == COUNT + (what == "add")
        assert kb.verify() == []
    assert precious.read_text() == "keep me"
    assert not folder.exists()


def test_tantivy_makes_no_file_outside(closed: Path, precious: Path) -> None:
    [folder] = closed.glob("bm25-*")
    for name in (".tantivy-writer.lock", ".tantivy-meta.lock"):
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(precious.parent / name)
    with KnowledgeBase.open(closed) as kb:
        kb.add([Passage("new", "common new")])
        assert found(kb) == COUNT + 1
    assert list(precious.parent.iterdir()) == [precious]


def test_sqlite_deletes_no_file_that_a_journal_names(closed: Path, precious: Path) -> None:
    database = closed / "knowledge.db"
    page = struct.unpack(">H", database.read_bytes()[16:18])[0]
    magic, name = bytes.fromhex("d9d505f920a163d7"), str(precious).encode()
    head = magic + struct.pack(">IIIII", 0, 0, database.stat().st_size // page, 512, page)
    tail = struct.pack(">I", 0x40000000 // page + 1) + name + struct.pack(">II", len(name), sum(name)) + magic
    (closed / "knowledge.db-journal").write_bytes(head.ljust(512, b"\0") + tail)
    with pytest.raises(StoreError, match=r"knowledge\.db-journal is a journal"):
        KnowledgeBase.open(closed)
    assert precious.read_text() == "keep me"


@pytest.mark.parametrize(
    "name", ["indexes", "segments", "bm25.json", "bm25.json.tmp", "bm25-0123abcd", "write.lock", "knowledge.db-wal"]
)
def test_a_link_is_refused_whatever_it_is(closed: Path, tmp_path: Path, name: str) -> None:
    with KnowledgeBase.create(tmp_path / "other", HashingEncoder(DIM)) as other:
        other.add([Passage("a", "common a")])
    there = sorted((tmp_path / "other" / "segments").iterdir())
    if (closed / name).exists():
        (closed / name).rename(tmp_path / "aside")
    (closed / name).symlink_to(tmp_path / "other" / "segments")
    with pytest.raises(StoreError, match=rf"{name} is a link"):
        KnowledgeBase.open(closed)
    assert sorted((tmp_path / "other" / "segments").iterdir()) == there


def test_a_pipe_is_refused(closed: Path) -> None:
    os.mkfifo(closed / "bm25-0123abcd")
    with pytest.raises(StoreError, match="neither a file nor a folder"):
        KnowledgeBase.open(closed)


def test_a_draft_is_a_new_file_even_where_its_name_is_guessed(
    tmp_path: Path, precious: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ragft_plugin.retrieval.drafts.secrets.token_hex", lambda _: "00")
    (tmp_path / "bm25.json.00.tmp").symlink_to(precious)
    with pytest.raises(FileExistsError), draft_of(tmp_path / "bm25.json") as file:
        file.write(b"owned")
    assert precious.read_text() == "keep me"
    assert not (tmp_path / "bm25.json").exists()


def test_a_draft_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "some.json"
    path.write_text("old")

    def interrupted() -> None:
        with draft_of(path) as file:
            file.write(b"new")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("some.json", "old")]


@pytest.mark.parametrize("read_only", [False, True])
def test_a_view_in_the_place_of_a_table_is_not_asked(closed: Path, read_only: bool) -> None:
    with closing(sqlite3.connect(closed / "knowledge.db")) as database:
        database.execute("ALTER TABLE meta RENAME TO other")
        database.execute("CREATE VIEW meta AS SELECT key, '999' AS value FROM other")  # it could go on for ever
        database.commit()
    with pytest.raises(StoreError, match="tables are not those"):
        KnowledgeBase.open(closed, read_only=read_only)


def test_a_trigger_never_runs_however_large_the_database(closed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit, "LARGE", 0)
    with closing(sqlite3.connect(closed / "knowledge.db")) as database:
        database.execute("CREATE TRIGGER t AFTER INSERT ON passages BEGIN UPDATE passages SET text='x'; END")
        database.commit()
    with pytest.raises(StoreError, match="tables are not those"):
        KnowledgeBase.open(closed)


def vectors_of(kb: Path) -> tuple[str, NDArray[np.float32]]:
    [path] = (kb / "segments").glob("*.vectors.npy")
    return path.name.split(".")[0], np.load(path)


def forge(kb: Path, kind: str, content: bytes) -> Path:
    """Lay an index into a knowledge base, with the checksums that it should have."""
    name, _ = vectors_of(kb)
    (kb / "indexes").mkdir(exist_ok=True)
    path = kb / "indexes" / f"{name}.faiss"
    path.write_bytes(content)
    about = {"kind": kind, "effort": KINDS[kind].most, "recall": 1.0, "sha256": hashlib.sha256(content).hexdigest()}
    path.with_suffix(".json").write_text(noted(about))
    return path


def noted(about: dict[str, object]) -> str:
    return json.dumps({**about, "crc32": zlib.crc32(json.dumps(about, sort_keys=True).encode())})


def written(index: Any) -> bytes:
    return FAISS.serialize_index(index).tobytes()


def elsewhere(vectors: NDArray[np.float32], path: Path, wrap: Callable[[Any, Any], Any]) -> bytes:
    """Return the file of an index in which there is one whose lists stand in a file of their own, anywhere."""
    index = FAISS.IndexIVFScalarQuantizer(FAISS.IndexFlatIP(DIM), DIM, 4, 0, faiss.METRIC_INNER_PRODUCT)
    index.train(vectors)
    here = path.with_name("here")
    lists = FAISS.OnDiskInvertedLists(4, index.code_size, str(here))
    lists.this.disown()
    index.replace_invlists(lists, True)
    index.add(vectors)
    content = written(wrap(index, vectors))
    shutil.copy(here, path)
    moved = content.replace(
        struct.pack("<Q", len(str(here))) + str(here).encode(),
        len(str(path)).to_bytes(8, "little") + str(path).encode(),
    )
    assert moved != content
    return moved


def under_a_graph(inside: Any, vectors: NDArray[np.float32]) -> Any:
    graph = KINDS["hnsw"].build(vectors)
    graph.own_fields = False
    graph.storage = inside
    return graph


def renumbered(inside: Any, _: object) -> Any:
    index = FAISS.IndexIDMap(FAISS.IndexFlatIP(DIM))
    index.index = inside
    return index


FOREIGN: dict[str, Callable[[Any, Any], Any]] = {
    "as it is": lambda inside, _: inside,
    "behind an id map": renumbered,
    "behind a transform": lambda inside, _: FAISS.IndexPreTransform(FAISS.RandomRotationMatrix(DIM, DIM), inside),
    "under a graph": under_a_graph,
}


@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize("how", list(FOREIGN))
def test_an_index_maps_no_file_outside(
    closed: Path, precious: Path, kind: str, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = forge(closed, kind, elsewhere(vectors_of(closed)[1], precious, FOREIGN[how]))
    with KnowledgeBase.open(closed) as kb:
        assert kb.stats()["indexes"][0]["kind"] == "flat"
        assert str(precious) not in Path("/proc/self/maps").read_text()
        assert len(kb.retrieve(["common"], 5, mode="dense")[0]) == 5
    assert f"{path} is damaged (" in caplog.text


@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize("other", [*KINDS, "flat"])
def test_a_note_of_another_kind_is_damage(closed: Path, kind: str, other: str) -> None:
    name, vectors = vectors_of(closed)
    if other == "flat":
        index = FAISS.IndexFlatIP(DIM)
        index.add(vectors)
    else:
        index = KINDS[other].build(vectors)
    path = forge(closed, kind, written(index))
    bad = [] if kind == other else [str(path)]
    assert approximate.damaged(closed / "indexes", name, (COUNT, DIM)) == bad
    with KnowledgeBase.open(closed) as kb:
        assert kb.stats()["indexes"][0]["kind"] == (kind if kind == other else "flat")


@pytest.mark.parametrize("kind", list(KINDS))
def test_an_index_is_read_only_where_all_of_it_is_ours(tmp_path: Path, kind: str) -> None:
    vectors = np.random.default_rng(0).standard_normal((COUNT, DIM)).astype(np.float32)
    content = written(KINDS[kind].build(vectors))
    path = tmp_path / "index"

    def problem(raw: bytes, count: int = COUNT, dim: int = DIM) -> str:
        path.write_bytes(raw)
        try:
            with path.open("rb") as file:
                KINDS[kind].check(file, count, dim)
        except ValueError as error:
            return str(error)
        return ""

    assert problem(content) == ""
    assert problem(content, count=COUNT + 1) != ""
    assert problem(content, dim=DIM - 1) != ""
    assert problem(content + b"\0") == "1 bytes too many"
    for size in range(0, len(content), len(content) // 97):
        assert problem(content[:size]) != ""
    numbers = [at for at in range(4, min(len(content), 400)) if content[at] == 0]
    unnoticed = 0
    for at in numbers:  # the high bytes of sizes and kinds are zero; a graph's probabilities and efforts do not matter
        unnoticed += not problem(content[:at] + b"\x7f" + content[at + 1 :])
    assert unnoticed < len(numbers) // 4


def graph(vectors: NDArray[np.float32]) -> tuple[bytearray, dict[str, int]]:
    """Return the file of a graph, and where its parts begin."""
    index = KINDS["hnsw"].build(vectors)
    content = bytearray(written(index))
    top = index.hnsw.cum_nneighbor_per_level.size()
    at: dict[str, int] = {"levels": 37 + 8 + 8 * (top - 1) + 8 + 4 * top + 8}
    at["offsets"] = at["levels"] + 4 * COUNT + 8
    at["links"] = at["offsets"] + 8 * (COUNT + 1) + 8
    at["entry"] = len(content) - (4 + 33 + 8 + 4 * COUNT * DIM) - 20
    at["vectors"] = len(content) - 4 * COUNT * DIM
    return content, at


@pytest.mark.parametrize(
    ("part", "value", "reason"),
    [
        ("levels", struct.pack("<i", 99), "levels"),
        ("offsets", struct.pack("<q", 64), "offsets"),
        ("links", struct.pack("<i", COUNT), "links"),
        ("links", struct.pack("<i", -2), "links"),
        ("entry", struct.pack("<i", COUNT), "entry"),
        ("entry", struct.pack("<ii", 0, 6), "entry"),
        ("vectors", struct.pack("<f", float("nan")), "NaN"),
    ],
)
def test_a_graph_leads_nowhere_outside_itself(
    closed: Path, part: str, value: bytes, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    content, at = graph(vectors_of(closed)[1])
    content[at[part] : at[part] + len(value)] = value
    forge(closed, "hnsw", bytes(content))
    with KnowledgeBase.open(closed) as kb:
        assert kb.stats()["indexes"][0]["kind"] == "flat"
    assert reason in caplog.text


@pytest.mark.parametrize("id", [-1, COUNT, 2**40, 0])
def test_inverted_lists_hold_every_vector_once(closed: Path, id: int, caplog: pytest.LogCaptureFixture) -> None:
    content = bytearray(written(KINDS["ivf"].build(vectors_of(closed)[1])))
    first = struct.unpack("<q", content[-8:])[0]
    content[-8:] = struct.pack("<q", id if first else 1)
    forge(closed, "ivf", bytes(content))
    with KnowledgeBase.open(closed) as kb:
        assert kb.stats()["indexes"][0]["kind"] == "flat"
    assert "is damaged" in caplog.text


@pytest.mark.parametrize(
    "change", [{"effort": 2**70}, {"effort": True}, {"effort": 0}, {"recall": "1"}, {"kind": "flat"}, {"kind": []}]
)
def test_a_note_says_nothing_impossible(closed: Path, change: dict[str, object]) -> None:
    path = forge(closed, "pq", written(KINDS["pq"].build(vectors_of(closed)[1])))
    note = path.with_suffix(".json")
    about = json.loads(note.read_text()) | change
    about.pop("crc32")
    note.write_text(noted(about))
    assert approximate.damaged(path.parent, path.stem, (COUNT, DIM)) == [str(note)]
    with KnowledgeBase.open(closed) as kb:
        assert len(kb.retrieve(["common"], 5, mode="dense")[0]) == 5


@pytest.mark.parametrize("text", ["[]", "{}", "null", "[" * 100_000, "\x00"])
def test_a_note_that_is_none_is_damage(closed: Path, text: str, caplog: pytest.LogCaptureFixture) -> None:
    path = forge(closed, "pq", written(KINDS["pq"].build(vectors_of(closed)[1])))
    path.with_suffix(".json").write_text(text)
    with caplog.at_level(logging.WARNING), KnowledgeBase.open(closed):
        assert path.with_suffix(".json").name in caplog.text


def test_an_index_that_is_a_pipe_or_a_link_is_left_aside(closed: Path, precious: Path) -> None:
    path = forge(closed, "pq", written(KINDS["pq"].build(vectors_of(closed)[1])))
    copy = path.rename(precious.parent / "copy")
    path.symlink_to(copy)
    assert approximate.damaged(path.parent, path.stem, (COUNT, DIM)) == [str(path)]
    path.unlink()
    os.mkfifo(path)
    with KnowledgeBase.open(closed) as kb:
        assert kb.stats()["indexes"][0]["kind"] == "flat"
