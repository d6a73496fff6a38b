"""Folders, files and their passages."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ragft_plugin.errors import ConfigError, DataError
from ragft_plugin.retrieval import Chunker, Document, KnowledgeBase, deduplicated, index_folder, read_document
from ragft_plugin.types import Passage


@pytest.fixture
def docs(tmp_path: Path) -> Path:
    folder = tmp_path / "docs"
    (folder / "deep").mkdir(parents=True)
    (folder / "a.md").write_text("# Sites\n\nBrelkon stands in Tarmora.\n\n# People\n\nAda Clee leads it.")
    (folder / "b.txt").write_text("Vendrin makes red lamps.")
    rows = [{"id": 7, "text": "Glask opened in 1911.", "year": 1911}, {"text": "Plomar sells wheels."}]
    (folder / "deep" / "c.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    return folder


def test_a_folder_is_mirrored_and_only_changes_are_read_again(docs: Path, tmp_path: Path) -> None:
    with KnowledgeBase.create(tmp_path / "kb") as kb:
        first = index_folder(kb, docs)
        assert (first.added, first.updated, first.unchanged, first.deleted) == (4, 0, 0, 0)
        version = kb.version
        again = index_folder(kb, docs)
        assert (again.added, again.updated, again.unchanged, again.deleted) == (0, 0, 4, 0)
        assert kb.version == version
        (docs / "b.txt").write_text("Vendrin makes blue lamps.")
        (docs / "a.md").unlink()
        (docs / "d.csv").write_text("site,city\nQuarnox,Melburg\n")
        third = index_folder(kb, docs)
        assert (third.added, third.updated, third.unchanged, third.deleted) == (2, 0, 2, 2)
        assert sorted(p.text for p in kb.get(kb.ids())) == [
            "Glask opened in 1911.",
            "Plomar sells wheels.",
            "Vendrin makes blue lamps.",
            "site: Quarnox\ncity: Melburg",
        ]
        assert kb.get(["7"])[0].metadata["year"] == 1911


def test_passages_say_where_they_stand(docs: Path) -> None:
    text = (docs / "a.md").read_text()
    passages = Chunker(size=40, overlap=0).split(read_document(docs / "a.md", source="deep/a.md"))
    assert [p.text for p in passages] == ["# Sites\n\nBrelkon stands in Tarmora.", "# People\n\nAda Clee leads it."]
    for passage in passages:
        meta = passage.metadata
        assert text[meta["start"] : meta["end"]] == passage.text
        assert (meta["source"], meta["title"]) == ("deep/a.md", "Sites")


def test_ids_do_not_depend_on_what_stands_before(docs: Path) -> None:
    cut = Chunker(size=40, overlap=0)
    before = cut.split(read_document(docs / "a.md"))
    (docs / "a.md").write_text("# News\n\nA new first section here.\n\n" + (docs / "a.md").read_text())
    after = cut.split(read_document(docs / "a.md"))
    assert [p.id for p in before] == [p.id for p in after][1:]


def test_equal_texts_of_one_source_have_different_ids() -> None:
    ids = [p.id for p in Chunker().split([Document("Same.", {"source": "s"})] * 3)]
    assert len(set(ids)) == 3


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("x.txt", b"caf\xe9", "is not UTF-8"),
        ("x.md", b"a\0b", "binary"),
        ("x.txt", b" \n ", "holds no text"),
        ("x.bin", b"\x7fELF", "no reader for .bin"),
        ("x.pdf", b"%PDF-1.4 nonsense", "cannot be read as PDF"),
        ("x.docx", b"PK nonsense", "cannot be read as DOCX"),
        ("x.csv", b"a,b\n1\n", "another number of cells"),
    ],
)
def test_a_bad_file_is_refused_with_its_reason(tmp_path: Path, name: str, content: bytes, reason: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=reason):
        read_document(tmp_path / name)


def test_a_bad_file_in_a_folder_is_reported_and_the_rest_indexed(docs: Path, tmp_path: Path) -> None:
    (docs / "bad.txt").write_bytes(b"caf\xe9")
    (docs / "logo.png").write_bytes(b"\x89PNG")
    with KnowledgeBase.create(tmp_path / "kb") as kb:
        report = index_folder(kb, docs)
        assert report.added == 4
        assert sorted(Path(s.path).name for s in report.skipped) == ["bad.txt", "logo.png"]
        assert all(s.reason for s in report.skipped)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"text": ', "is not JSON"),
        ('{"txt": "a"}', 'string "text"'),
        ("[1]", 'string "text"'),
        ('{"text": "a", "score": NaN}', "NaN"),
        ('{"text": "a", "id": "one"}', "line 1 already"),
        ('{"text": "a", "id": {}}', '"id" must be'),
    ],
)
def test_malformed_json_lines_name_file_and_line(tmp_path: Path, line: str, reason: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "fine", "id": "one"}\n\n' + line + "\n")
    with pytest.raises(DataError, match=r"rows\.jsonl:3: .*") as caught:
        read_document(path)
    assert reason in str(caught.value)
    assert caught.value.line == 3


def test_malformed_json_lines_stop_indexing_with_nothing_half_written(docs: Path, tmp_path: Path) -> None:
    (docs / "z.jsonl").write_text('{"text": "kept?"}\n{broken\n')
    with KnowledgeBase.create(tmp_path / "kb") as kb:
        with pytest.raises(DataError, match=r"z\.jsonl:2"):
            index_folder(kb, docs, malformed="stop")
        assert len(kb) == 4
        assert "z.jsonl" not in kb.sources()
        assert [Path(s.path).name for s in index_folder(kb, docs).skipped] == ["z.jsonl"]


@pytest.mark.parametrize("make", [None, "empty", "only_bad"])
def test_a_folder_without_documents_is_an_error(tmp_path: Path, make: str | None) -> None:
    folder = tmp_path / "docs"
    if make:
        folder.mkdir()
    if make == "only_bad":
        (folder / "a.txt").write_bytes(b"\xff\xff\xff")
    with KnowledgeBase.create(tmp_path / "kb") as kb, pytest.raises(DataError, match="docs"):
        index_folder(kb, folder)


class Counting:
    """An encoder that counts the texts it has encoded."""

    fingerprint = "counting"
    texts = 0

    def encode(self, texts: Sequence[str]) -> Any:
        self.texts += len(texts)
        return np.ones((len(texts), 4))


class Interrupt(Exception):
    pass


def rows(texts: Iterable[str]) -> str:
    return "".join(json.dumps({"text": text}) + "\n" for text in texts)


def test_an_interrupted_run_goes_on_where_it_stopped(docs: Path, tmp_path: Path) -> None:
    for n in range(6):
        (docs / f"n{n}.jsonl").write_text(rows(f"row {n} {i}" for i in range(300)))
    encoder = Counting()

    def stop(done: int, total: int) -> None:
        if done > total / 2:
            raise Interrupt

    with KnowledgeBase.create(tmp_path / "kb", encoder) as kb:
        with pytest.raises(Interrupt):
            index_folder(kb, docs, stop)
        assert 900 <= len(kb) < 1804
        held = len(kb)
        calls: list[tuple[int, int]] = []
        report = index_folder(kb, docs, lambda done, total: calls.append((done, total)))
        assert (report.added, report.unchanged) == (1804 - held, held)
        assert encoder.texts == 1804
        left = sum(path.stat().st_size for path in docs.glob("n*.jsonl"))
        assert calls[0][0] == 0
        assert calls[-1] == (calls[0][1], calls[0][1])
        assert 0 < calls[-1][1] < left  # what is done already does not count


def test_a_large_file_is_taken_bit_by_bit_and_goes_on_where_it_stopped(tmp_path: Path) -> None:
    docs = tmp_path / "docs"
    docs.mkdir()
    (docs / "large.jsonl").write_text(rows(f"row {i}" for i in range(5000)))
    encoder, seen = Counting(), []

    def stop(done: int, total: int) -> None:
        seen.append(done / total)
        if done > total / 2:
            raise Interrupt

    with KnowledgeBase.create(tmp_path / "kb", encoder) as kb:
        with pytest.raises(Interrupt):
            index_folder(kb, docs, stop)
        assert len(seen) >= 3
        held = len(kb)
        assert 2500 < held < 5000
        assert "large.jsonl" not in kb.sources()
        report = index_folder(kb, docs)
        assert (report.added, report.unchanged) == (5000 - held, held)
        assert encoder.texts == len(kb) == 5000
        (docs / "large.jsonl").write_text(rows(f"row {i}" for i in range(2000, 5000)))
        assert index_folder(kb, docs).deleted == 2000
        assert encoder.texts == 5000


def test_a_large_file_that_is_refused_leaves_nothing(tmp_path: Path) -> None:
    docs = tmp_path / "docs"
    docs.mkdir()
    (docs / "good.txt").write_text("Red lamps.")
    (docs / "large.jsonl").write_text("".join(json.dumps({"id": i, "text": f"row {i}"}) + "\n" for i in range(3000)))
    with KnowledgeBase.create(tmp_path / "kb") as kb:
        kb.add([Passage("2999", "Somebody else's.")])
        [skipped] = index_folder(kb, docs).skipped
        assert "'2999'" in skipped.reason
        assert sorted(p.text for p in kb.get(kb.ids())) == ["Red lamps.", "Somebody else's."]


def test_a_file_with_another_name_is_not_encoded_again(docs: Path, tmp_path: Path) -> None:
    encoder = Counting()
    with KnowledgeBase.create(tmp_path / "kb", encoder) as kb:
        index_folder(kb, docs)
        before = encoder.texts
        (docs / "deep").rename(docs / "deeper")
        (docs / "a.md").rename(docs / "z.md")
        report = index_folder(kb, docs)
        assert encoder.texts == before
        assert sorted(kb.sources()) == ["b.txt", "deeper/c.jsonl", "z.md"]
        assert len(kb) == report.unchanged + report.added + report.updated == 4


BAD: dict[str, tuple[bytes, str]] = {
    "same-id.jsonl": (b'{"id": 7, "text": "Another seven."}\n', "the id '7' stands in"),
    "twice.jsonl": (json.dumps({"id": "x", "text": "word " * 300}).encode() + b'\n{"id": "x#1", "text": "b"}\n', "x#1"),
    "surrogate-in-metadata.jsonl": (b'{"text": "ok", "t": "\\ud83d"}\n', "not valid Unicode"),
    "surrogate-in-text.jsonl": (b'{"text": "ok \\ud83d"}\n', "Unicode"),
    "infinite.jsonl": (b'{"text": "ok", "n": 1e400}\n', "JSON"),
    os.fsdecode(b"caf\xe9.txt"): (b"Coffee.", "its name is not UTF-8"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_costs_itself_alone(docs: Path, tmp_path: Path, name: str) -> None:
    content, reason = BAD[name]
    for n in range(300):  # more than one commit
        (docs / f"good{n}.txt").write_text(f"Lamp {n}.")
    with KnowledgeBase.create(tmp_path / "kb") as kb:
        index_folder(kb, docs)
        (docs / "deep" / name).write_bytes(content)
        (docs / "new.txt").write_text("A new lamp.")
        report = index_folder(kb, docs)
        assert [reason in skipped.reason for skipped in report.skipped] == [True], report.skipped
        assert (report.added, len(kb)) == (1, 305)
    with KnowledgeBase.create(tmp_path / "kb2") as kb:
        assert len(index_folder(kb, docs).skipped) == 1
        assert len(kb) >= 303


def test_files_may_exchange_their_ids(docs: Path, tmp_path: Path) -> None:
    first, second = docs / "deep" / "c.jsonl", docs / "d.jsonl"
    second.write_text('{"id": 8, "text": "Eight."}\n' + rows(f"row {i}" for i in range(400)))
    with KnowledgeBase.create(tmp_path / "kb") as kb:
        index_folder(kb, docs)
        first.write_text('{"id": 8, "text": "Eight."}\n' + rows(f"line {i}" for i in range(400)))
        second.write_text('{"id": 7, "text": "Seven."}\n')
        assert index_folder(kb, docs).skipped == ()
        assert [p.metadata["source"] for p in kb.get(["7", "8"])] == ["d.jsonl", "deep/c.jsonl"]


def test_what_cannot_be_seen_is_not_gone(docs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with KnowledgeBase.create(tmp_path / "kb") as kb:
        index_folder(kb, docs)

        def walk(top: Path, onerror: Any) -> Any:  # permissions do not stop the administrator, as whom tests may run
            yield str(top), ["deep"], ["a.md", "b.txt"]
            onerror(PermissionError(13, "Permission denied", str(docs / "deep")))

        monkeypatch.setattr("ragft_plugin.retrieval.survey.os.walk", walk)
        report = index_folder(kb, docs)
        assert report.deleted == 0
        assert [(Path(s.path).name, s.reason) for s in report.skipped] == [
            ("deep", "cannot be read: Permission denied")
        ]
        assert len(kb) == 4


@pytest.mark.skipif(sys.platform == "win32", reason="links and pipes of POSIX")
def test_links_and_pipes_are_reported_and_not_followed(docs: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "x.md").write_text("Secret.")
    (docs / "away").symlink_to(outside)
    (docs / "away.md").symlink_to(outside / "x.md")
    (docs / "loop.md").symlink_to(docs / "loop.md")
    os.mkfifo(docs / "pipe.txt")
    with KnowledgeBase.create(docs / "kb") as kb:
        report = index_folder(kb, docs)
        assert {Path(s.path).name: s.reason for s in report.skipped} == {
            "away": "is a link to a folder; links to folders are not followed",
            "away.md": "is a link that leads out of the folder",
            "loop.md": "cannot be read: Too many levels of symbolic links",
            "pipe.txt": "is not a regular file",
        }
        assert len(kb) == 4  # and nothing of the knowledge base itself


def test_a_second_folder_does_not_take_the_place_of_the_first(docs: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "a.md").write_text("Something else.")
    with KnowledgeBase.create(tmp_path / "kb") as kb:
        index_folder(kb, docs)
        for wrong in (other, docs / "deep"):
            with pytest.raises(ConfigError, match=r"mirrors .*docs.*--collection NAME"):
                index_folder(kb, wrong)
        assert len(kb) == 4
        index_folder(kb, other, collection="other")
        assert len(kb) == 5
        with pytest.raises(ConfigError, match=r"collection 'other' of .* mirrors"):
            index_folder(kb, docs, collection="other")
        with pytest.raises(ConfigError, match=r"holds no \|"):
            index_folder(kb, other, collection="a|b")
    together = tmp_path / "elsewhere"
    together.mkdir()
    for name in ("kb", "docs", "other"):
        (tmp_path / name).rename(together / name)
    with KnowledgeBase.open(together / "kb") as kb:
        assert index_folder(kb, together / "docs").unchanged == 4
        (together / "docs").rename(together / "papers")
        with pytest.raises(ConfigError, match="moved=True"):
            index_folder(kb, together / "papers")
        assert index_folder(kb, together / "papers", moved=True).unchanged == 4
        assert index_folder(kb, together / "papers").unchanged == 4


def test_a_line_without_end_is_cut_in_time_and_in_place() -> None:
    text = "word " * 100_000 + "x" * 60_000
    started = time.process_time()
    passages = Chunker(size=1000, overlap=0).split([Document(text, {"source": "s"})])
    assert time.process_time() - started < 20  # quadratic time would be minutes
    assert all(text[p.metadata["start"] : p.metadata["end"]] == p.text for p in passages)
    assert "".join(p.text for p in passages).replace(" ", "") == text.replace(" ", "")


def test_html_loses_scripts_and_keeps_title_and_words(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    path.write_text(
        "<html><head><title>A &amp; B</title><style>p{}</style></head><body><script>evil()</script>"
        "<p>Red <b>lamps</b>.</p><p>Blue&nbsp;gears.</p></body></html>"
    )
    [document] = read_document(path)
    assert document.text == "Red lamps.\nBlue gears."
    assert document.metadata["title"] == "A & B"


def test_docx_and_its_tables_are_read(tmp_path: Path) -> None:
    import docx

    file = docx.Document()
    file.add_paragraph("Red lamps.")
    table = file.add_table(1, 2)
    table.cell(0, 0).text, table.cell(0, 1).text = "city", "Melburg"
    file.save(str(tmp_path / "a.docx"))
    assert read_document(tmp_path / "a.docx")[0].text == "Red lamps.\ncity | Melburg"


def test_pages_of_a_pdf_are_numbered(tmp_path: Path) -> None:
    from pypdf import PdfWriter
    from pypdf.generic import DecodedStreamObject, DictionaryObject, NameObject

    writer = PdfWriter()
    for words in ("Red lamps", "Blue gears"):
        page = writer.add_blank_page(200, 200)
        font = DictionaryObject(
            {
                NameObject("/Type"): NameObject("/Font"),
                NameObject("/Subtype"): NameObject("/Type1"),
                NameObject("/BaseFont"): NameObject("/Helvetica"),
            }
        )
        fonts = DictionaryObject({NameObject("/F1"): font})
        page[NameObject("/Resources")] = DictionaryObject({NameObject("/Font"): fonts})
        stream = DecodedStreamObject()
        stream.set_data(f"BT /F1 12 Tf 20 100 Td ({words}) Tj ET".encode())
        page[NameObject("/Contents")] = stream
    writer.write(tmp_path / "a.pdf")
    documents = read_document(tmp_path / "a.pdf")
    assert [(d.text, d.metadata["page"]) for d in documents] == [("Red lamps", 1), ("Blue gears", 2)]


def test_collections_do_not_delete_each_other(docs: Path, tmp_path: Path) -> None:
    with KnowledgeBase.create(tmp_path / "kb") as kb:
        index_folder(kb, docs / "deep", collection="one")
        with pytest.raises(DataError, match="ids must differ"):
            index_folder(kb, docs / "deep", collection="two")
        assert sorted(kb.sources()) == ["one/c.jsonl"]
        (docs / "deep" / "c.jsonl").write_text('{"text": "no id"}\n')
        index_folder(kb, docs / "deep", collection="two")
        assert sorted(kb.sources()) == ["one/c.jsonl", "two/c.jsonl"]


def test_duplicates_differ_in_space_and_case_only() -> None:
    texts = ["Red  lamps", "red lamps", "blue lamps"]
    kept = deduplicated(Passage(str(i), text) for i, text in enumerate(texts))
    assert [p.id for p in kept] == ["0", "2"]
