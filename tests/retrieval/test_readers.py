"""Every format: what is read, where it stands, and what happens to a bad file."""

from __future__ import annotations

import io
import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from ragft_plugin.errors import DataError
from ragft_plugin.retrieval import Chunker, KnowledgeBase, ParentChunker, index_folder, read_document
from ragft_plugin.retrieval.readers import READERS

WORDS = "The harbour of Vendrin is deep."


def pdf(*pages: str) -> bytes:
    from pypdf import PdfWriter
    from pypdf.generic import DecodedStreamObject, DictionaryObject, NameObject

    writer = PdfWriter()
    for text in pages:
        page = writer.add_blank_page(400, 400)
        font = {"/Type": "/Font", "/Subtype": "/Type1", "/BaseFont": "/Helvetica"}
        made = DictionaryObject({NameObject(key): NameObject(value) for key, value in font.items()})
        fonts = DictionaryObject({NameObject("/F1"): made})
        page[NameObject("/Resources")] = DictionaryObject({NameObject("/Font"): fonts})
        stream = DecodedStreamObject()
        lines = " T* ".join(f"({line}) Tj" for line in text.split("\n"))
        stream.set_data(f"BT /F1 12 Tf 14 TL 20 300 Td {lines} ET".encode())
        page[NameObject("/Contents")] = stream
    file = io.BytesIO()
    writer.write(file)
    return file.getvalue()


def docx(text: str) -> bytes:
    import docx

    made = docx.Document()
    made.add_paragraph(text)
    file = io.BytesIO()
    made.save(file)
    return file.getvalue()


GOOD: dict[str, Callable[[], bytes]] = {
    "a.txt": lambda: WORDS.encode(),
    "b.md": lambda: f"# Towns\n\n{WORDS}".encode(),
    "c.markdown": lambda: WORDS.encode("utf-16"),
    "d.jsonl": lambda: json.dumps({"text": WORDS, "year": 1911}).encode(),
    "e.csv": lambda: f'text,town\n"{WORDS}",Vendrin\n'.encode(),
    "f.html": lambda: f"<title>Towns</title><p>{WORDS}</p>".encode(),
    "g.htm": lambda: f"<div>{WORDS}".encode(),
    "h.pdf": lambda: pdf(WORDS),
    "i.docx": lambda: docx(WORDS),
}
BAD: dict[str, tuple[bytes, str]] = {
    "a.txt": (b"caf\xe9", "is not UTF-8"),
    "b.md": (b"a\0b", "binary"),
    "c.markdown": (b" \n", "holds no text"),
    "d.jsonl": (b'{"text": "fine"}\n{broken', "is not JSON"),
    "e.csv": (b"text,town\nfine,one\nonly\n", "another number of cells"),
    "f.html": (b"<script>x</script>", "holds no text"),
    "g.htm": (b"\xff\xff", "is not UTF-8"),
    "h.pdf": (b"%PDF-1.7\nnothing", "cannot be read as PDF"),
    "i.docx": (b"PK\3\4 nothing", "cannot be read as DOCX"),
}


def test_there_is_a_good_and_a_bad_file_for_every_reader() -> None:
    assert {Path(name).suffix for name in GOOD} == {Path(name).suffix for name in BAD} == set(READERS)


@pytest.mark.parametrize("name", GOOD)
def test_every_format_gives_its_words_and_a_place_to_cite(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(GOOD[name]())
    documents = read_document(tmp_path / name)
    [passage] = [p for p in Chunker().split(documents) if WORDS in p.text]
    place = passage.metadata
    assert place["source"] == name
    assert documents[place.get("page", 1) - 1].text[place["start"] : place["end"]] == passage.text


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_of_every_format_is_reported_and_the_rest_indexed(tmp_path: Path, name: str) -> None:
    docs = tmp_path / "docs"
    docs.mkdir()
    content, reason = BAD[name]
    (docs / f"bad-{name}").write_bytes(content)
    (docs / "good.txt").write_text(WORDS)
    with KnowledgeBase.create(tmp_path / "kb") as kb:
        report = index_folder(kb, docs, malformed="skip")
        assert [(Path(s.path).name, reason in s.reason) for s in report.skipped] == [(f"bad-{name}", True)]
        assert [p.text for p in kb.get(kb.ids())] == [WORDS]
        # Mended, it is read; and what it said stays when it breaks again.
        (docs / f"bad-{name}").write_bytes(GOOD[name]())
        assert index_folder(kb, docs, malformed="skip").added == 1
        (docs / f"bad-{name}").write_bytes(content)
        assert len(index_folder(kb, docs, malformed="skip").skipped) == 1
        assert len(kb) == 2


@pytest.mark.parametrize("name", ["h.pdf", "i.docx", "d.jsonl", "e.csv", "f.html"])
def test_a_damaged_file_is_read_or_refused_and_never_more_than_that(tmp_path: Path, name: str) -> None:
    chance = random.Random(name)
    whole = GOOD[name]()
    path = tmp_path / name
    for _ in range(60):
        content = bytearray(whole)
        for _ in range(chance.randint(1, 8)):
            content[chance.randrange(len(content))] = chance.randrange(256)
        path.write_bytes(content[: chance.choice([len(content), chance.randrange(len(content))])])
        try:
            documents = read_document(path)
        except DataError as error:
            assert str(path) in str(error)  # noqa: PT017 - either outcome will do
        else:
            assert all(isinstance(document.text, str) for document in documents)


def test_a_passage_of_a_pdf_tells_page_and_characters(tmp_path: Path) -> None:
    (tmp_path / "a.pdf").write_bytes(
        pdf("Brelkon stands in Tarmora.\nIt is old.", f"{WORDS}\nShips bring timber there.")
    )
    pages = read_document(tmp_path / "a.pdf")
    for cut in (Chunker(30, 0), ParentChunker(parents=Chunker(60, 0), size=30)):
        with KnowledgeBase.create(tmp_path / cut.fingerprint) as kb:
            kb.add(cut.split(pages))
            place = kb.retrieve(["Which ships bring timber?"], 1)[0][0]
            assert place.metadata["page"] == 2
            assert "Ships bring timber" in place.text
            text = pages[place.metadata["page"] - 1].text
            assert text[place.metadata["start"] : place.metadata["end"]] == place.text


def test_a_locked_pdf_is_reported(tmp_path: Path) -> None:
    from pypdf import PdfReader, PdfWriter

    writer = PdfWriter(clone_from=PdfReader(io.BytesIO(pdf(WORDS))))
    writer.encrypt("secret", algorithm="RC4-128")
    writer.write(tmp_path / "a.pdf")
    with pytest.raises(DataError, match="cannot be read as PDF"):
        read_document(tmp_path / "a.pdf")
