import pytest

from retrieval.errors import DocumentUnreadable
from retrieval.parsing import Parsed, parse

pytestmark = pytest.mark.anyio

HTML = b"<html><body><h1>Quotas</h1><p>Holds <b>expire</b>.</p><script>var hidden = 1</script></body></html>"


@pytest.mark.parametrize(
    ("name", "data", "parsed"),
    [
        ("a.md", b"# T\n\ntext", Parsed("# T\n\ntext", True)),
        ("A.MARKDOWN", b"# T", Parsed("# T", True)),
        ("a.txt", b"# no heading", Parsed("# no heading", False)),
        ("dir.md/a.log", b"line", Parsed("line", False)),
        ("a.txt", b"\xef\xbb\xbfwith a mark", Parsed("with a mark", False)),
        ("a.txt", b"one\r\ntwo\r\n", Parsed("one\ntwo\n", False)),
        ("a.txt", "años 日本".encode(), Parsed("años 日本", False)),
        ("a.txt", b"broken \xff byte", Parsed("broken \ufffd byte", False)),
        ("a.txt", b"x" * 5000 + b"\0end", Parsed("x" * 5000 + " end", False)),
    ],
)
async def test_text_is_read_as_it_is(name: str, data: bytes, parsed: Parsed) -> None:
    assert await parse(name, data) == parsed


async def test_html_becomes_text_without_tags_and_scripts() -> None:
    parsed = await parse("page.html", HTML)
    assert "Quotas" in parsed.text
    assert "Holds **expire**." in parsed.text
    assert "<" not in parsed.text
    assert "hidden" not in parsed.text


async def test_headings_of_html_become_headings() -> None:
    assert "# Quotas\n" in (await parse("page.html", HTML)).text


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("a.txt", b"\x7fELF\x02\x01\x01\x00\x00", "named like text but holds binary"),
        ("a.md", "utf-16".encode("utf-16"), "named like text but holds binary"),
        ("a.unheardof", b"text", "of a kind that nothing here can read"),
        ("README", b"text", "of a kind that nothing here can read"),
        ("a.pdf", b"%PDF-1.7 torn", "cannot be read"),
        ("a.docx", b"PK\x03\x04 torn", "cannot be read"),
        ("a.txt", b"", "holds no text"),
        ("a.md", b" \n\t\n", "holds no text"),
        ("a.html", b"<html><body></body></html>", "holds no text"),
    ],
)
async def test_what_cannot_be_read_is_named_with_its_reason(name: str, data: bytes, words: str) -> None:
    with pytest.raises(DocumentUnreadable, match=words) as caught:
        await parse(name, data)
    assert str(caught.value).startswith(name)
