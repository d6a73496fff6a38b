"""Every format: what is read, where it stands, and what happens to a bad file."""

from __future__ import annotations

import csv
import io
import json
import logging
import random
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from ragft_plugin.errors import DataError
from ragft_plugin.retrieval import Chunker, Document, KnowledgeBase, ParentChunker, index_folder, read_document
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


def read(folder: Path, name: str, content: str | bytes) -> list[Document]:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return read_document(path)


@pytest.mark.parametrize(
    ("page", "text", "title"),
    [
        ("<!doctype html><html><head><title>T</title><p>Hello", "Hello", "T"),
        ("<html><head><meta charset=utf-8><title>T</title><style>p{}</style>Hello <b>you", "Hello you", "T"),
        ("<head><script>x()</script></head><p>Hello</p>", "Hello", None),
        ("<head><noscript><style>p{}</style></noscript><title>T</title><main>Hello</main>", "Hello", "T"),
        ("<head><title>T<body>Hello", "Hello", "T"),
        ("<title>Page</title><p>Go <svg><title>Icon</title><path/></svg> there", "Go there", "Page"),
        ("<svg><title>Icon</title></svg><title>Page</title><p>Go", "Go", "Page"),
        ("<title>One</title><p>Go<title>Two</title>", "Go", "One"),
        ("<title>a &amp; <b>b</b></title><p>Go", "Go", "a & b"),
        ("<p>It <ins>was</ins> <time>1911</time>, <label>they</label> <dfn>say</dfn>", "It was 1911, they say", None),
        ("<p>H<sub>2</sub>O<wbr> <math><mi>x</mi><mo>=</mo><mn>1</mn></math>", "H2O x=1", None),
        ("<p>Red<img src=x>lamps, <button>Buy</button><button>Sell</button>", "Red lamps, Buy Sell", None),
        ("<p>one\ntwo<br>three<my-box>four</my-box>five", "one two\nthree\nfour\nfive", None),
        ("<pre>one\ntwo</pre>three\nfour", "one\ntwo\nthree four", None),
        ("<ul><li>one<li>two</ul><table><tr><td>a<td>b</table>", "one\ntwo\na\nb", None),
        ("Hello <script>a < b</script>you", "Hello you", None),
    ],
)
def test_a_page_gives_what_a_browser_shows_whatever_tags_are_left_out(
    tmp_path: Path, page: str, text: str, title: str | None
) -> None:
    [document] = read(tmp_path, "a.html", page)
    assert (document.text, document.metadata.get("title")) == (text, title)


@pytest.mark.parametrize(
    ("text", "title"),
    [
        ("```sh\n# install\n```\n\n# Towns\n", "Towns"),
        ("~~~\n```\n# install\n~~~\n# Towns", "Towns"),
        ("````\n# a\n```\n# b\n````  \n# Towns", "Towns"),
        ("```not``` a block\n# Towns", "Towns"),
        ("  ```\n# install\n", None),
        ("## Second\n# Towns\n# Ports", "Towns"),
    ],
)
def test_the_title_of_markdown_is_no_comment_in_code(tmp_path: Path, text: str, title: str | None) -> None:
    [document] = read(tmp_path, "a.md", text)
    assert document.metadata.get("title") == title
    assert document.text == text


def test_a_row_of_several_lines_stands_where_it_begins(tmp_path: Path) -> None:
    rows = read(tmp_path, "a.csv", 'text,town\n"one\ntwo",A\n\n"three\r\n\nfour",B\nfive,C\n')
    assert [(d.text, d.metadata["line"]) for d in rows] == [("one\ntwo", 2), ("three\r\n\nfour", 5), ("five", 8)]
    with pytest.raises(DataError, match=r"a\.csv:3: is not CSV"):
        read(tmp_path, "a.csv", 'text,town\na,b\n"open,c\nd,e\n')
    with pytest.raises(DataError, match=r"a\.csv:2: row has another number of cells than the 2 of the header: 3"):
        read(tmp_path, "a.csv", 'text,town\n"one\ntwo",A,B\n')


def test_columns_of_plain_numbers_are_numbers_and_names_made_of_digits_stay_names(tmp_path: Path) -> None:
    content = (
        "text,year,price,zip,big,mixed,code,empty\n"
        "one,1999,-1.50,01067,1234567890123456,1,1e5,\n"
        "two,2001,0,10115,2,n/a,2,\n"
        "three,,2,20095,3,3,3,\n"
    )
    one, two, three = (d.metadata for d in read(tmp_path, "a.csv", content))
    place = {"source": "a.csv"}
    assert one == {
        "year": 1999, "price": -1.5, "zip": "01067", "big": "1234567890123456", "mixed": "1", "code": "1e5",
        **place, "line": 2,
    }  # fmt: skip
    assert two == {
        "year": 2001, "price": 0, "zip": "10115", "big": "2", "mixed": "n/a", "code": "2", **place, "line": 3,
    }  # fmt: skip
    assert three == {"price": 2, "zip": "20095", "big": "3", "mixed": "3", "code": "3", **place, "line": 4}
    assert type(one["year"]) is type(two["price"]) is int
    (tmp_path / "docs").mkdir()
    (tmp_path / "a.csv").rename(tmp_path / "docs" / "a.csv")
    with KnowledgeBase.create(tmp_path / "kb") as kb:
        index_folder(kb, tmp_path / "docs")
        found = kb.retrieve(["one two three"], 9, {"year": {"$gte": 2001}})[0]
        assert [p.text for p in found] == ["two"]


@pytest.mark.parametrize("mark", [",", ";", "\t", "|"])
def test_cells_are_separated_by_what_the_header_shows(tmp_path: Path, mark: str) -> None:
    others = "".join(other for other in ",;|\t" if other != mark)
    content = f'text{mark}town\n"a{mark}b"{mark}A\n{others} one{mark}B\n'
    rows = read(tmp_path, "a.csv", content)
    assert [(d.text, d.metadata["town"]) for d in rows] == [(f"a{mark}b", "A"), (f"{others} one", "B")]
    assert [d.text for d in read(tmp_path, "b.csv", f"name{mark}town\nOtto{mark}A\n")] == ["name: Otto\ntown: A"]
    # One bad row does not make another kind of file of it.
    with pytest.raises(DataError, match=rf"a\.csv:3: .*of the header: 1, separated by {re.escape(repr(mark))}"):
        read(tmp_path, "a.csv", f"text{mark}town\na{mark}b\nonly\n")


@pytest.mark.parametrize(
    ("content", "texts"),
    [
        ("text\nred; blue\ngreen | black\n", ["red; blue", "green | black"]),
        ('text;"town, or city"\na;b\n', ["a"]),  # a comma in the header as well: what every row agrees with
        ('"text";town\n"a ""b"" c";d\n', ['a "b" c']),
        ("\n\ntext,town\na,b\n", ["a"]),
    ],
)
def test_what_looks_like_another_separator_is_text(tmp_path: Path, content: str, texts: list[str]) -> None:
    assert [d.text for d in read(tmp_path, "a.csv", content)] == texts


def test_a_header_that_names_a_column_twice_is_refused_and_nameless_columns_are_numbered(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a\.csv:1: has the column 'town' more than once; rename one"):
        read(tmp_path, "a.csv", "town,year,town\nA,1,B\n")
    # As spreadsheets and data frames write them.
    [document] = read(tmp_path, "a.csv", ",text,town,,\n0,red,A,,\n")
    assert document.metadata == {"column 1": 0, "town": "A", "source": "a.csv", "line": 2}


def test_a_cell_may_be_longer_than_the_limit_of_csv_which_stays(tmp_path: Path) -> None:
    before = csv.field_size_limit()
    long = "word " * 40_000
    [document] = read(tmp_path, "a.csv", f"text,town\n{long},A\n")
    assert document.text == long
    with pytest.raises(DataError):
        read(tmp_path, "a.csv", f'text,town\n{long},A\n"open')
    assert csv.field_size_limit() == before


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", "text,source,line,start,end,kb,town\nred,Reuters,9,1999,2001,x,A\n"),
        (
            "a.jsonl",
            json.dumps(
                {
                    "text": "red",
                    "source": "Reuters",
                    "line": 9,
                    "town": "A",
                    "metadata": {"start": 1999, "end": 2001, "kb": "x"},
                }
            ),
        ),
    ],
)
def test_what_a_row_calls_as_its_place_is_called_is_kept_beside_it(tmp_path: Path, name: str, content: str) -> None:
    documents = read(tmp_path, name, content)
    [passage] = Chunker().split(documents)
    assert passage.metadata == {
        "row_source": "Reuters", "row_line": 9, "row_start": 1999, "row_end": 2001, "row_kb": "x", "town": "A",
        "source": name, "line": 2 if name == "a.csv" else 1, "start": 0, "end": 3,
    }  # fmt: skip
    with KnowledgeBase.create(tmp_path / "kb") as kb:
        kb.add([passage])
        assert kb.get(kb.ids()) == [passage]


def test_a_row_that_has_both_names_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r'a\.jsonl:1: has "source", which is kept as "row_source", and that as well'):
        read(tmp_path, "a.jsonl", '{"text": "red", "source": 1, "metadata": {"row_source": 2}}')


def test_pages_without_text_are_told_with_the_name_of_the_file(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pages = read(tmp_path, "a.pdf", pdf("", WORDS, "", WORDS))
    assert [d.metadata["page"] for d in pages if d.text.strip()] == [2, 4]
    [record] = caplog.records
    assert record.name == "ragft_plugin.retrieval.readers"
    assert record.getMessage() == f"{tmp_path / 'a.pdf'}: 2 of 4 pages hold no text (1, 3); scanned ones need OCR"
    caplog.clear()
    read(tmp_path, "b.pdf", pdf(WORDS))
    with pytest.raises(DataError, match="holds no text"):
        read(tmp_path, "c.pdf", pdf("", ""))
    assert not caplog.records
    read(tmp_path, "d.pdf", pdf(WORDS, *[""] * 30))
    assert "30 of 31 pages hold no text (2, 3, " in caplog.text
    assert ", 21, ...)" in caplog.text


def test_what_pypdf_remarks_is_told_with_the_name_of_the_file(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    speaker = logging.getLogger("pypdf")
    before = (speaker.propagate, list(speaker.handlers), speaker.level)
    shifted = pdf(WORDS).replace(b"startxref\n", b"startxref\n1")
    assert WORDS in read(tmp_path, "a.pdf", shifted)[0].text
    assert [(r.name, str(tmp_path / "a.pdf") in r.getMessage()) for r in caplog.records] == [
        ("ragft_plugin.retrieval.readers", True)
    ]
    assert "startxref" in caplog.text
    caplog.clear()
    with pytest.raises(DataError, match="cannot be read as PDF"):
        read(tmp_path, "b.pdf", b"%PDF-1.7\nnothing")  # "EOF marker not found", says pypdf as well
    assert not caplog.records
    assert (speaker.propagate, speaker.handlers, speaker.level) == before


def test_tables_in_tables_are_read_and_merged_cells_once(tmp_path: Path) -> None:
    import docx

    file = docx.Document()
    table = file.add_table(4, 3)
    wide = table.cell(0, 0).merge(table.cell(0, 1))
    wide.text = "A\nB"
    table.cell(0, 2).text = "C"
    tall = table.cell(1, 0).merge(table.cell(2, 0))
    tall.text = "North"
    table.cell(1, 1).text, table.cell(1, 2).text = "same", "same"
    table.cell(2, 1).text, table.cell(2, 2).text = "x", "y"
    inner = table.cell(3, 1).add_table(2, 2)
    for at, words in enumerate(["a", "b", "c", "d"]):
        inner.cell(*divmod(at, 2)).text = words
    table.cell(3, 1).paragraphs[0].text = "before"
    table.cell(3, 0).text = "z"
    file.add_paragraph("end")
    file.save(str(tmp_path / "a.docx"))
    [document] = read_document(tmp_path / "a.docx")
    assert document.text.split("\n") == [
        "A", "B | C",
        "North | same | same",
        " | x | y",
        "z | before", "a | b", "c | d | ",
        "end",
    ]  # fmt: skip
