"""Folders, files and their passages."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ragft_plugin.errors import DataError
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
            index_folder(kb, docs)
        assert len(kb) == 4
        assert "z.jsonl" not in kb.sources()


@pytest.mark.parametrize("make", [None, "empty", "only_bad"])
def test_a_folder_without_documents_is_an_error(tmp_path: Path, make: str | None) -> None:
    folder = tmp_path / "docs"
    if make:
        folder.mkdir()
    if make == "only_bad":
        (folder / "a.txt").write_bytes(b"\xff\xff\xff")
    with KnowledgeBase.create(tmp_path / "kb") as kb, pytest.raises(DataError, match="docs"):
        index_folder(kb, folder)


def test_an_interrupted_run_goes_on_where_it_stopped(docs: Path, tmp_path: Path) -> None:
    class Interrupt(Exception):
        pass

    class Costly:
        fingerprint = "costly"
        texts = 0

        def encode(self, texts):  # type: ignore[no-untyped-def]
            import numpy as np

            self.texts += len(texts)
            return np.ones((len(texts), 4))

    for n in range(6):
        (docs / f"n{n}.jsonl").write_text("".join(json.dumps({"text": f"row {n} {i}"}) + "\n" for i in range(300)))
    encoder = Costly()

    def stop(done: int, total: int) -> None:
        if done == 6:
            raise Interrupt

    with KnowledgeBase.create(tmp_path / "kb", encoder) as kb:
        with pytest.raises(Interrupt):
            index_folder(kb, docs, stop)
        assert 900 <= len(kb) < 1804
        calls: list[tuple[int, int]] = []
        report = index_folder(kb, docs, lambda done, total: calls.append((done, total)))
        assert report.added + report.unchanged == 1804
        assert report.unchanged >= 900
        assert encoder.texts == 1804
        assert calls[-1] == (9, 9)


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
        (docs / "deep" / "c.jsonl").write_text('{"text": "no id"}\n')
        index_folder(kb, docs / "deep", collection="two")
        assert sorted(kb.sources()) == ["one/c.jsonl", "two/c.jsonl"]


def test_duplicates_differ_in_space_and_case_only() -> None:
    texts = ["Red  lamps", "red lamps", "blue lamps"]
    kept = deduplicated(Passage(str(i), text) for i, text in enumerate(texts))
    assert [p.id for p in kept] == ["0", "2"]
