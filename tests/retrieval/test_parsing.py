import io
import json
import re
import zipfile
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import retrieval.parsing as parsing_module
from retrieval.errors import DocumentUnreadable
from retrieval.parsing import DOCUMENTS, KNOWN, LONG_WORD_CHARS, Page, Parsed, parse, table
from tests.retrieval import samples


def text_of(name: str, data: bytes) -> str:
    return parse(name, data).text


def unreadable(name: str, data: bytes) -> str:
    with pytest.raises(DocumentUnreadable) as caught:
        parse(name, data)
    assert str(caught.value).startswith(name), "whoever uploaded it reads which one it is"
    return str(caught.value)


@pytest.mark.parametrize(
    ("name", "data", "title", "text", "markdown"),
    [
        ("a.md", b"# T\n\ntext", "T", "# T\n\ntext", True),
        ("A.MARKDOWN", b"# T", "T", "# T", True),
        ("a.md", b"text\n\n## Second ##\n", "Second", "text\n\n## Second ##\n", True),
        ("notes.md", b"#hashtag", "notes", "#hashtag", True),
        ("a.txt", b"# no heading", "a", "# no heading", False),
        ("dir.md/a.log", b"line", "a", "line", False),
        ("https://example.org/x?b=1.txt", b"line", "x?b=1", "line", False),
        ("a.txt", b"one\r\ntwo\rthree\n", "a", "one\ntwo\nthree\n", False),
        ("a.txt", "la\u200bma \u202esecret\u202c".encode(), "a", "lama secret", False),
        ("a.py", b"def f():\n\treturn 1\n", "a", "def f():\n\treturn 1\n", False),
        ("a.xml", b"<a>&amp;</a>", "a", "<a>&amp;</a>", False),
        ("x.env", b"A=1", "x", "A=1", False),
    ],
)
def test_text_is_read_as_it_is(name: str, data: bytes, title: str, text: str, markdown: bool) -> None:
    assert parse(name, data) == Parsed(title, (Page(None, text),), markdown)


@pytest.mark.parametrize(
    ("data", "text"),
    [
        ("años 日本 🦙".encode(), "años 日本 🦙"),
        (b"\xef\xbb\xbfwith a mark", "with a mark"),
        ("años 日本".encode("utf-16"), "años 日本"),
        (b"\xfe\xff" + "años".encode("utf-16-be"), "años"),
        ("años – “quoted” €".encode("cp1252"), "años – “quoted” €"),
        (b"undefined \x81 byte", "undefined \ufffd byte"),
        (b"\xef\xbb\xbfbroken \xff byte", "broken \ufffd byte"),
        (b"\x1b[31mred\x1b[0m\tline", "[31mred[0m\tline"),
    ],
)
def test_text_is_read_in_the_encodings_that_people_have(data: bytes, text: str) -> None:
    assert text_of("a.txt", data) == text


@given(st.text(alphabet=st.characters(codec="utf-8", categories=["L", "N", "P", "S", "Zs"]), min_size=1))
def test_text_comes_back_whatever_the_alphabet(text: str) -> None:
    if text.strip() and not any(
        ord(character) >= 0xE0000 or character in "\u3164\u115f\u1160\uffa0" for character in text
    ):
        assert text_of("a.txt", text.encode()) == text
        assert text_of("a.txt", text.encode("utf-16")) == text


@pytest.mark.parametrize(
    ("text", "title", "body"),
    [
        ('---\ntitle: "Wool"\ntags: [a]\n---\n# Other\n', "Wool", "# Other\n"),
        ("---\ntitle:   Wool care  \n---\nx", "Wool care", "x"),
        ("---\r\ntitle: 'Wool'\r\n---\r\nx", "Wool", "x"),
        ("---\nauthor: Ana\n...\n# Hay\n", "Hay", "# Hay\n"),
        ("---\nauthor: Ana\nsubtitle: no\n---   \nx", "a", "x"),
        ("---\ntitle: Wool\n---\n\n---\n\nx", "Wool", "\n---\n\nx"),
        ("text\n\n---\ntitle: no\n---\n", "a", "text\n\n---\ntitle: no\n---\n"),
        ("one <!-- hidden\nremark --> two", "a", "one  two"),
        ("<!-- # No -->\n# Yes", "Yes", "\n# Yes"),
        ("# A <!-- x --> B", "A B", "# A  B"),
        ("#   Wide \t heading   ##", "Wide heading", "#   Wide \t heading   ##"),
        ("# " + "long " * 100, ("long " * 100)[:200], "# " + "long " * 100),
    ],
)
def test_markdown_has_a_title_and_neither_front_matter_nor_remarks(text: str, title: str, body: str) -> None:
    assert parse("a.md", text.encode()) == Parsed(title, (Page(None, body),), True)


HOSTILE: dict[str, str] = {
    "remarks that do not end": "x<!--" * 200_000,
    "remarks": "x<!-- -->" * 120_000,
    "front matter that does not end": "---\n" + "a: b\n" * 200_000,
    "front matter with almost ends": "---\n" + "\n---  x" * 120_000,
    "front matter with wide ends": "---\n" + ("\n---" + " " * 1000 + "x") * 1000,
    "titles without words": "---\n" + "title: \n" * 120_000 + "---\nx",
    "hashes": "#" * 10**6,
    "headings": "# x " * 250_000,
    "headings without words": "# \n" * 330_000 + "x",
    "blanks": "x" + " " * 10**6,
    "lines": "x" + "\n" * 10**6,
    "marks": "x[<|" * 250_000,
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_megabyte_of_markdown_takes_as_long_as_it_is(text: str) -> None:
    """Minutes for a square of its length; the suite's limit ends the test."""
    parse("a.md", text.encode())


@pytest.mark.parametrize("name", ["a.txt", "a.md", "a.csv"])
@pytest.mark.parametrize("letters", ["x", "日本語", "QUJDREVGR0g+/"])
def test_what_has_no_space_for_long_is_broken_and_no_letter_is_lost(name: str, letters: str) -> None:
    text = letters * 10_000
    broken = text_of(name, text.encode())
    assert re.sub(r"[\s|-]", "", broken) == text, "but for the marks of a table"
    assert max(map(len, broken.split())) <= LONG_WORD_CHARS


def test_what_is_no_longer_than_a_word_may_be_is_left_whole() -> None:
    text = f"{'x' * (LONG_WORD_CHARS - 1)} {'y' * (LONG_WORD_CHARS - 1)}"
    assert text_of("a.txt", text.encode()) == text


@pytest.mark.parametrize(
    ("name", "text", "rows"),
    [
        ("a.csv", "a,b\r\n1,2\r\n", ["a|b", "1|2"]),
        ("a.csv", "a;b\n1,5;2\n", ["a|b", "1,5|2"]),
        ("a.csv", "a\tb\n1\t2\n", ["a|b", "1|2"]),
        ("a.csv", "a|b\n1|2\n", ["a|b", "1|2"]),
        ("a.tsv", "a\tb,c\n1\t2\n", ["a|b,c", "1|2"]),
        ("a.csv", "one\ntwo\nthree\n", ["one", "two", "three"]),
        ("a.csv", 'a,b\n"x, y","said ""hay"""\n', ["a|b", 'x, y|said "hay"']),
        ("a.csv", 'a,b\n"two\nlines",2\n', ["a|b", "two lines|2"]),
        ("a.csv", "a,b,c\n1\n1,2,3,4\n", ["a|b|c|", "1|||", "1|2|3|4"]),
        ("a.csv", "\n , \na,b\n,,\n1,2\n\n", ["a|b", "1|2"]),
        ("a.csv", "name,text\nann,hello; well\nbob,bye; bye\n", ["name|text", "ann|hello; well", "bob|bye; bye"]),
        ("a.csv", 'name;note\nx;"a, b"\n', ["name|note", "x|a, b"]),
    ],
)
def test_a_table_of_values_keeps_its_rows_and_cells(name: str, text: str, rows: list[str]) -> None:
    parsed = parse(name, text.encode())
    lines = parsed.text.split("\n")
    assert [re.sub(r" *\| *", "|", line[1:-1]).strip() for line in (lines[0], *lines[2:])] == rows
    assert set(lines[1]) == {"|", " ", "-"}
    assert parsed.markdown


def test_a_table_in_an_old_alphabet_is_read() -> None:
    assert text_of("a.csv", "año;€\nuno;2\n".encode("cp1252")).startswith("| año | € |")


def test_a_quotation_that_does_not_end_loses_no_words() -> None:
    text = text_of("a.csv", b'a,b\n"open,1\n2,3\n')
    assert all(word in text for word in ("open", "1", "2", "3"))


CELLS = st.text(alphabet="ab1 ,;|\"'\n-é", max_size=6)


@given(st.lists(st.lists(CELLS, min_size=1, max_size=4), min_size=1, max_size=5))
def test_each_row_of_a_table_is_one_line_with_as_many_cells(rows: list[list[str]]) -> None:
    lines = table(rows).split("\n")
    width = max(map(len, rows))
    assert len(lines) == len(rows) + 1
    for line, row in zip((lines[0], *lines[2:]), rows, strict=True):
        cells = re.split(r"(?<!\\)\|", line)[1:-1]
        assert [cell.strip().replace("\\|", "|") for cell in cells] == [
            *(" ".join(cell.split()) for cell in row),
            *[""] * (width - len(row)),
        ]


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("a.csv", b",".join([b"x"] * 1001), "1001 columns"),
        ("a.csv", b'a,b\n"' + b"x" * 1_000_001 + b'",1\n', "no table of values"),
        ("a.csv", b"\n,,\n ,\n", "holds no rows"),
        ("a.txt", b"", "is empty"),
        ("a.docx", b"", "is empty"),
        ("a.txt", b" \n\t\r\n", "holds no text"),
        ("a.txt", "\u200b\ufeff\u2060".encode(), "holds no text"),
        ("a.md", b"---\ntitle: T\n---\n<!-- x -->", "holds no text"),
        ("a.html", b"<html><head><title>T</title></head><body></body></html>", "holds no text"),
        ("a.ipynb", b"{}", "holds no text"),
        ("a.txt", b"\x7fELF\x02\x01\x01\x00\x00", "give it its right extension"),
        ("a.csv", b"PK\x03\x04\x14", "give it its right extension"),
        ("a.md", b"%PDF-1.7\n", "give it its right extension"),
        ("a.json", b"\x89PNG\r\n\x1a\n", "give it its right extension"),
        ("a.txt", b"\x1f\x8b\x08", "give it its right extension"),
        ("a.txt", b"{\\rtf1 x}", "give it its right extension"),
        ("a.txt", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "give it its right extension"),
        ("a.txt", b"one\0two", "binary data"),
        ("a.txt", "hello".encode("utf-16-le"), "binary data"),
        ("a.log", bytes(range(1, 9)) * 40, "binary data"),
        ("a.docx", b"PK\x03\x04 torn", "no .docx file"),
        ("a.docx", b"hello", "no .docx file"),
        ("a.epub", b"\xd0\xcf\x11\xe0" * 100, "no .epub file"),
        ("a.docx", samples.xlsx(), "cannot be read"),
        ("a.epub", samples.docx(), "cannot be read"),
        ("a.pdf", b"%PDF-1.7 torn", "cannot be read"),
        ("a.pdf", samples.pdf([""]), "holds no text; pictures of text are not read"),
        ("a.pdf", samples.encrypted_pdf(), "cannot be read: it is protected by a password"),
        ("a.doc", b"\xd0\xcf\x11\xe0" * 200, "cannot be read"),
        ("a.xls", b"x", "cannot be read"),
        ("a.msg", b"x", "cannot be read"),
    ],
    ids=lambda value: value[:24] if isinstance(value, str) else "",
)  # fmt: skip
def test_what_cannot_be_read_is_named_with_its_reason(name: str, data: bytes, words: str) -> None:
    said = unreadable(name, data)
    assert words in said
    assert len(said) < 300
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("name", "words"),
    [("a.png", ""), ("a.exe", ""), ("a.tar.gz", ""), ("a.mp3", ""), ("README", "no extension"), ("a.", "no extension")],
)
def test_what_is_not_read_at_all_is_of_another_kind(name: str, words: str) -> None:
    with pytest.raises(DocumentUnreadable, match=f"not read here.*{words}") as caught:
        parse(name, b"text")
    assert caught.value.kind


def test_a_document_with_too_many_characters_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parsing_module, "MAX_CHARS", 10)
    assert text_of("a.txt", b"x" * 10) == "x" * 10
    assert "11 characters" in unreadable("a.txt", b"x" * 11)


@pytest.mark.parametrize("bomb", [samples.zip_bomb_docx, samples.zip_bomb_xlsx])
def test_a_document_that_unpacks_to_too_much_is_refused_before_it_is_unpacked(
    bomb: Callable[[int], bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parsing_module, "MAX_INFLATED_BYTES", 4 << 20)
    name = "bomb.docx" if bomb is samples.zip_bomb_docx else "bomb.xlsx"
    assert "4 are read at most" in unreadable(name, bomb(6 << 20))
    assert "lama lama" in text_of(name, bomb(2 << 20))


def test_a_document_with_very_many_parts_is_refused_for_what_they_unpack_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parsing_module, "MAX_INFLATED_BYTES", 1 << 20)
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for number in range(40):
            archive.writestr(f"part{number}", bytes(100_000))
    assert "unpacks to 3 MB" in unreadable("a.odt", file.getvalue())


def test_a_word_document_keeps_headings_paragraphs_and_tables() -> None:
    parsed = parse("a.docx", samples.docx(title="Care of lamas"))
    assert parsed.title == "Care of lamas"
    assert parsed.markdown
    assert [page.number for page in parsed.pages] == [None]
    for line in (
        "# Care",
        "## Feeding",
        "Lamas eat hay.",
        "| Animal | Weight |",
        "| Lama | 150 kg |",
        "| Alpaca | 65 kg |",
    ):
        assert line in parsed.text.split("\n")


def test_a_document_without_a_title_is_called_by_its_first_heading_or_its_name() -> None:
    assert parse("a.docx", samples.docx(title="")).title == "Care"
    assert parse("dir/a b.docx", samples.docx(title="", chapters={"": {"": ["Only text."]}}, table=())).title == "a b"


def test_a_workbook_keeps_each_sheet_and_each_row() -> None:
    rows = [(f"lama{number}", str(number)) for number in range(300)]
    parsed = parse("a.xlsx", samples.xlsx({"Herd": (("Name", "Number"), *rows), "Loads": (("Day",), ("Monday",))}))
    lines = parsed.text.split("\n")
    assert "## Herd" in lines
    assert "## Loads" in lines
    assert [line for line in lines if line.startswith("| lama")] == [f"| {name} | {number} |" for name, number in rows]
    assert lines.index("| Monday |") > lines.index("## Loads") > lines.index("| lama299 | 299 |")
    assert parsed.title == "Herd register"


def test_each_slide_is_a_page_with_its_title_over_its_points() -> None:
    slides = [(f"Title {number}", (f"point {number}a", f"point {number}b")) for number in range(1, 13)]
    parsed = parse("a.pptx", samples.pptx(slides))
    assert parsed.title == "Lama pitch"
    assert [page.number for page in parsed.pages] == list(range(1, 13))
    for page in parsed.pages:
        number = page.number
        assert page.text == f"## Title {number}\n\n- point {number}a\n\n- point {number}b"


@given(
    texts=st.lists(st.sampled_from(["", "one lama", "two lamas\nin a row", "(three) \\ lamas"]), min_size=1, max_size=8)
)
@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_each_page_keeps_its_number_and_pages_without_text_are_left_out(texts: list[str]) -> None:
    data = samples.pdf(texts)
    if not any(texts):
        assert "holds no text" in unreadable("a.pdf", data)
        return
    parsed = parse("a.pdf", data)
    assert parsed.title == "Lama leaflet"
    found = {page.number: page.text.split() for page in parsed.pages if page.text}
    assert found == {number: text.split() for number, text in enumerate(texts, 1) if text}


def test_a_word_that_is_divided_at_the_end_of_a_line_is_whole_again() -> None:
    assert text_of("a.pdf", samples.pdf(["The alpa-\nca eats hay"])) == "The alpaca eats hay"


@pytest.mark.parametrize("html_body", ["<html><body><p>Two <b>lamas</b> arrive on Monday.</p></body></html>", ""])
def test_a_mail_keeps_its_head_and_its_words(html_body: str) -> None:
    parsed = parse("a.eml", samples.eml(html_body=html_body))
    assert parsed.title == "Lama delivery"
    for words in ("ana@example.org", "tom@example.org", "Two lamas arrive on Monday."):
        assert words in parsed.text


@pytest.mark.parametrize("suffix", [".html", ".HTM", ".xhtml"])
def test_a_page_keeps_what_a_reader_sees_and_nothing_else(suffix: str) -> None:
    parsed = parse(f"a{suffix}", samples.html())
    assert parsed.title == "Lama page"
    assert parsed.text.startswith("# Lamas\n\n## Wool\n\nLama wool is warm.")
    assert re.search(r"\| *Lama *\| *150 kg *\|", parsed.text)
    for hidden in ("secretOfTheScript", "cannot see", "a remark", "color", "title:", "<"):
        assert hidden not in parsed.text


def test_a_page_keeps_lists_code_and_links() -> None:
    text = text_of("a.html", b"<ul><li>hay<li>salt</ul><pre>a\n  b</pre><p><a href='http://x.org/'>more</a></p>")
    assert "- hay\n- salt" in text
    assert "```\na\n  b\n```" in text
    assert "[more](http://x.org/)" in text


def test_a_page_in_other_alphabets_is_read() -> None:
    page = "<html><head><meta charset='utf-8'></head><body><p>Лама ест сено 美洲驼 اللاما</p></body></html>"
    assert "Лама ест сено 美洲驼 اللاما" in text_of("a.html", page.encode())


def test_a_notebook_keeps_words_and_code() -> None:
    cells = [
        {"cell_type": "markdown", "metadata": {}, "source": ["# Herd\n", "text"]},
        {"cell_type": "code", "metadata": {}, "source": ["print(1)"], "outputs": [], "execution_count": None},
    ]
    notebook = {"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
    parsed = parse("a.ipynb", json.dumps(notebook).encode())
    assert parsed.title == "Herd"
    assert "```\nprint(1)\n```" in parsed.text


def test_rich_text_is_read() -> None:
    assert "Hello **World**" in text_of("a.rtf", rb"{\rtf1\ansi Hello \b World\b0 .}")


def test_what_hides_in_a_document_is_taken_out() -> None:
    hidden = "Lamas\u200b eat\u202e hay.\U000e0041"
    data = samples.docx(title="La\u200bma\u202e", chapters={"Ca\u2060re": {"": [hidden]}}, table=())
    parsed = parse("a.docx", data)
    assert parsed.title == "Lama"
    assert "Lamas eat hay." in parsed.text
    assert "# Care" in parsed.text


def test_every_kind_that_is_named_is_read_or_refused_in_words() -> None:
    for suffix in sorted(KNOWN):
        try:
            assert "lama" in text_of(f"a{suffix}", b"lama,hay\n1,2\n")
        except DocumentUnreadable as exc:
            assert suffix in DOCUMENTS
            assert not exc.kind


GENUINE = {
    "a.docx": samples.docx(),
    "a.xlsx": samples.xlsx(),
    "a.pptx": samples.pptx(),
    "a.pdf": samples.pdf(["one", "two"]),
    "a.eml": samples.eml(),
    "a.html": samples.html(),
}


@given(st.data())
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_a_damaged_document_is_read_or_refused_and_never_fails_otherwise(data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(GENUINE)))
    damaged = bytearray(GENUINE[name])
    for place, byte in data.draw(
        st.lists(st.tuples(st.integers(0, len(damaged) - 1), st.integers(0, 255)), max_size=6)
    ):
        damaged[place] = byte
    end = data.draw(st.just(len(damaged)) | st.integers(1, len(damaged)))
    try:
        assert parse(name, bytes(damaged[:end])).text.strip()
    except DocumentUnreadable as exc:
        assert str(exc).startswith(name)


@given(
    name=st.sampled_from(sorted(f"a{suffix}" for suffix in KNOWN - {".doc", ".xls", ".ppt"})),
    data=st.binary(max_size=300),
)
@settings(max_examples=200, deadline=None)
def test_whatever_bytes_come_they_are_read_or_refused(name: str, data: bytes) -> None:
    try:
        parsed = parse(name, data)
    except DocumentUnreadable as exc:
        assert str(exc).startswith(name)
    else:
        assert parsed.text.strip()
        assert parsed.title
