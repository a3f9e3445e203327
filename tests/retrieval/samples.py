"""Small files of the formats that people upload, made from nothing but the standard library, and hostile ones."""

import hashlib
import io
import zipfile
from collections.abc import Mapping, Sequence
from email.message import EmailMessage
from html import escape

GIB = 1 << 30
PDF_PASSWORD = "correct horse"

_RELATIONS = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
_PACKAGE = "http://schemas.openxmlformats.org/package/2006"
_WORD = "http://schemas.openxmlformats.org/wordprocessingml/2006/main"
_SHEET = "http://schemas.openxmlformats.org/spreadsheetml/2006/main"
_SLIDE = "http://schemas.openxmlformats.org/presentationml/2006/main"
_DRAWING = "http://schemas.openxmlformats.org/drawingml/2006/main"
_TYPE = "application/vnd.openxmlformats-officedocument"
_HEAD = '<?xml version="1.0" encoding="UTF-8" standalone="yes"?>\n'
_EPOCH = (1980, 1, 1, 0, 0, 0)

Rows = Sequence[Sequence[str]]


def docx(
    title: str = "Lama handbook",
    author: str = "Ana Quispe",
    chapters: Mapping[str, Mapping[str, Sequence[str]]] | None = None,
    table: Rows = (("Animal", "Weight"), ("Lama", "150 kg"), ("Alpaca", "65 kg")),
) -> bytes:
    """
    Args:
        chapters: heading -> second heading -> paragraphs; the second "" puts them right under the first.
        table: the first row is its header; it stands at the end. Empty: none.
    """
    if chapters is None:
        chapters = {
            "Care": {"": ["Lamas live in herds."], "Feeding": ["Lamas eat hay.", "They drink little."]},
            "Travel": {"Loads": ["A lama carries thirty kilograms."]},
        }
    body = []
    for heading, sections in chapters.items():
        body.append(_word_paragraph(heading, "Heading1"))
        for section, paragraphs in sections.items():
            body += [_word_paragraph(section, "Heading2")] * bool(section)
            body += [_word_paragraph(paragraph) for paragraph in paragraphs]
    if table:
        body.append(_word_table(table))
    document = f'{_HEAD}<w:document xmlns:w="{_WORD}"><w:body>{"".join(body)}<w:sectPr/></w:body></w:document>'
    return _package(
        {
            **_office("word/document.xml", "wordprocessingml.document.main", title, author),
            "word/document.xml": document,
            "word/styles.xml": _WORD_STYLES,
            "word/_rels/document.xml.rels": _relations([("styles", "styles.xml")]),
        },
        {"word/styles.xml": "wordprocessingml.styles"},
    )


def xlsx(sheets: Mapping[str, Rows] | None = None, title: str = "Herd register", author: str = "Ana Quispe") -> bytes:
    """
    Args:
        sheets: name -> rows, the first is a header; what looks like a whole number is stored as one.
    """
    if sheets is None:
        sheets = {
            "Animals": (("Name", "Weight"), ("Inti", "148"), ("Killa", "131")),
            "Loads": (("Day", "Cargo"), ("Monday", "Salt"), ("Tuesday", "Maize")),
        }
    names = list(sheets)
    listed = "".join(f'<sheet name="{escape(n)}" sheetId="{i}" r:id="rId{i}"/>' for i, n in enumerate(names, 1))
    parts = {
        **_office("xl/workbook.xml", "spreadsheetml.sheet.main", title, author),
        "xl/workbook.xml": (
            f'{_HEAD}<workbook xmlns="{_SHEET}" xmlns:r="{_RELATIONS}"><sheets>{listed}</sheets></workbook>'
        ),
        "xl/_rels/workbook.xml.rels": _relations(
            [("worksheet", f"worksheets/sheet{i}.xml") for i in range(1, len(names) + 1)]
        ),
    }
    types = {}
    for number, rows in enumerate(sheets.values(), 1):
        part = f"xl/worksheets/sheet{number}.xml"
        filled = "".join(_sheet_row(i, row) for i, row in enumerate(rows, 1))
        parts[part] = f'{_HEAD}<worksheet xmlns="{_SHEET}"><sheetData>{filled}</sheetData></worksheet>'
        types[part] = "spreadsheetml.worksheet"
    return _package(parts, types)


def pptx(
    slides: Sequence[tuple[str, Sequence[str]]] = (
        ("Why lamas", ("They are calm", "They climb well")),
        ("What they cost", ("Hay is cheap", "Fences are not")),
    ),
    title: str = "Lama pitch",
    author: str = "Ana Quispe",
) -> bytes:
    """
    Args:
        slides: title and bullet points of each.
    """
    count = range(1, len(slides) + 1)
    listed = "".join(f'<p:sldId id="{255 + i}" r:id="rId{i}"/>' for i in count)
    parts = {
        **_office("ppt/presentation.xml", "presentationml.presentation.main", title, author),
        "ppt/presentation.xml": (
            f'{_HEAD}<p:presentation xmlns:p="{_SLIDE}" xmlns:r="{_RELATIONS}" xmlns:a="{_DRAWING}">'
            f'<p:sldIdLst>{listed}</p:sldIdLst><p:sldSz cx="9144000" cy="6858000"/></p:presentation>'
        ),
        "ppt/_rels/presentation.xml.rels": _relations([("slide", f"slides/slide{i}.xml") for i in count]),
    }
    types = {}
    for number, (heading, bullets) in enumerate(slides, 1):
        part = f"ppt/slides/slide{number}.xml"
        shapes = _slide_shape(2, "title", [heading]) + _slide_shape(3, "body", bullets)
        parts[part] = (
            f'{_HEAD}<p:sld xmlns:p="{_SLIDE}" xmlns:r="{_RELATIONS}" xmlns:a="{_DRAWING}"><p:cSld><p:spTree>'
            '<p:nvGrpSpPr><p:cNvPr id="1" name=""/><p:cNvGrpSpPr/><p:nvPr/></p:nvGrpSpPr><p:grpSpPr/>'
            f"{shapes}</p:spTree></p:cSld></p:sld>"
        )
        types[part] = "presentationml.slide"
    return _package(parts, types)


def eml(
    subject: str = "Lama delivery",
    sender: str = "Ana Quispe <ana@example.org>",
    to: str = "Tom Hill <tom@example.org>",
    text: str = "Two lamas arrive on Monday.",
    html_body: str = "<html><body><p>Two <b>lamas</b> arrive on Monday.</p></body></html>",
) -> bytes:
    """Both bodies; `html_body` "" leaves the plain one alone."""
    message = EmailMessage()
    message["Subject"], message["From"], message["To"] = subject, sender, to
    message["Date"] = "Mon, 03 Mar 2025 10:00:00 +0000"
    message["Message-ID"] = "<lama-1@example.org>"
    message.set_content(text)
    if html_body:
        message.add_alternative(html_body, subtype="html")
        message.set_boundary("=-lama-=")
    return message.as_bytes()


def html(
    title: str = "Lama page",
    heading: str = "Lamas",
    section: str = "Wool",
    paragraph: str = "Lama wool is warm.",
    table: Rows = (("Animal", "Weight"), ("Lama", "150 kg")),
    hidden: str = "You cannot see this sentence.",
    script: str = "var secretOfTheScript = 1;",
    comment: str = "a remark of the author",
) -> bytes:
    """`hidden`, `script` and `comment` are in the file, and a reader of the page sees none of them."""
    head, *rows = [[escape(cell) for cell in row] for row in table]
    filled = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f"<style>p {{ color: red }}</style><script>{script}</script></head><body>\n"
        f"<h1>{escape(heading)}</h1>\n<!-- {comment} -->\n<h2>{escape(section)}</h2>\n<p>{escape(paragraph)}</p>\n"
        f'<p style="display:none">{escape(hidden)}</p>\n'
        f"<table><thead><tr>{''.join(f'<th>{cell}</th>' for cell in head)}</tr></thead>"
        f"<tbody>{filled}</tbody></table>\n</body></html>\n"
    ).encode()


def pdf(pages: Sequence[str], title: str = "Lama leaflet", author: str = "Ana Quispe") -> bytes:
    """One page per text, its lines as they are, in Helvetica; latin-1 alone can be written."""
    return _pdf_file(_pdf_objects(pages, title, author), b"")


def encrypted_pdf(pages: Sequence[str] = ("The password is not in here.",), password: str = PDF_PASSWORD) -> bytes:
    """Standard security handler, RC4 with 128 bits: nobody reads it without `password`."""
    identity = hashlib.md5(b"lama", usedforsecurity=False).digest()
    permissions = (-44 & 0xFFFFFFFF).to_bytes(4, "little")
    owner = _pdf_owner_entry(b"owner " + password.encode("latin-1"), password.encode("latin-1"))
    key = _md5_rounds(_pdf_padded(password.encode("latin-1")) + owner + permissions + identity)
    user = _rc4_rounds(key, hashlib.md5(_PDF_PADDING + identity, usedforsecurity=False).digest()) + bytes(16)
    trailer = (
        f"/Encrypt << /Filter /Standard /V 2 /R 3 /Length 128 /P -44 /O <{owner.hex()}> /U <{user.hex()}> >> "
        f"/ID [<{identity.hex()}> <{identity.hex()}>]"
    )
    return _pdf_file(_pdf_objects(pages, "", "", key), trailer.encode())


def zip_bomb_docx(inflated: int = 2 * GIB) -> bytes:
    """A valid document of a few MB whose text inflates to `inflated` bytes; takes seconds to make, and no memory."""
    paragraph = _word_paragraph("lama " * 4000).encode()
    return _bomb(
        docx(table=()),
        "word/document.xml",
        f'{_HEAD}<w:document xmlns:w="{_WORD}"><w:body>'.encode(),
        paragraph,
        b"<w:sectPr/></w:body></w:document>",
        inflated,
    )


def zip_bomb_xlsx(inflated: int = 2 * GIB) -> bytes:
    """The same as a workbook, with rows without number."""
    row = f'<row><c t="inlineStr"><is><t>{"lama " * 4000}</t></is></c></row>'.encode()
    return _bomb(
        xlsx(),
        "xl/worksheets/sheet1.xml",
        f'{_HEAD}<worksheet xmlns="{_SHEET}"><sheetData>'.encode(),
        row,
        b"</sheetData></worksheet>",
        inflated,
    )


# Office packages


def _office(main: str, kind: str, title: str, author: str) -> dict[str, str]:
    """What every package has; `[Content_Types].xml` is completed by `_package`."""
    relations = (
        f'<Relationship Id="rId1" Type="{_RELATIONS}/officeDocument" Target="{main}"/>'
        f'<Relationship Id="rId2" Type="{_PACKAGE}/relationships/metadata/core-properties" Target="docProps/core.xml"/>'
    )
    return {
        "[Content_Types].xml": f'<Override PartName="/{main}" ContentType="{_TYPE}.{kind}+xml"/>',
        "_rels/.rels": f'{_HEAD}<Relationships xmlns="{_PACKAGE}/relationships">{relations}</Relationships>',
        "docProps/core.xml": (
            f'{_HEAD}<cp:coreProperties xmlns:cp="{_PACKAGE}/metadata/core-properties"'
            ' xmlns:dc="http://purl.org/dc/elements/1.1/">'
            f"<dc:title>{escape(title)}</dc:title><dc:creator>{escape(author)}</dc:creator></cp:coreProperties>"
        ),
    }


def _package(parts: Mapping[str, str], types: Mapping[str, str]) -> bytes:
    """
    Args:
        types: part -> the end of its content type.
    """
    overrides = "".join(
        f'<Override PartName="/{part}" ContentType="{_TYPE}.{kind}+xml"/>' for part, kind in types.items()
    )
    content_types = (
        f'{_HEAD}<Types xmlns="{_PACKAGE}/content-types">'
        '<Default Extension="rels" ContentType="application/vnd.openxmlformats-package.relationships+xml"/>'
        '<Default Extension="xml" ContentType="application/xml"/>'
        '<Override PartName="/docProps/core.xml"'
        ' ContentType="application/vnd.openxmlformats-package.core-properties+xml"/>'
        f"{parts['[Content_Types].xml']}{overrides}</Types>"
    )
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as package:
        for name, text in {**parts, "[Content_Types].xml": content_types}.items():
            package.writestr(_entry(name), text)
    return file.getvalue()


def _entry(name: str) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(name, _EPOCH)  # the clock stays out: the same bytes each time
    entry.compress_type = zipfile.ZIP_DEFLATED
    return entry


def _relations(targets: Sequence[tuple[str, str]]) -> str:
    listed = "".join(
        f'<Relationship Id="rId{i}" Type="{_RELATIONS}/{kind}" Target="{target}"/>'
        for i, (kind, target) in enumerate(targets, 1)
    )
    return f'{_HEAD}<Relationships xmlns="{_PACKAGE}/relationships">{listed}</Relationships>'


_WORD_STYLES = (
    f'{_HEAD}<w:styles xmlns:w="{_WORD}">'
    + "".join(
        f'<w:style w:type="paragraph" w:styleId="Heading{level}"><w:name w:val="heading {level}"/>'
        f'<w:pPr><w:outlineLvl w:val="{level - 1}"/></w:pPr></w:style>'
        for level in (1, 2)
    )
    + "</w:styles>"
)


def _word_paragraph(text: str, style: str = "") -> str:
    properties = f'<w:pPr><w:pStyle w:val="{style}"/></w:pPr>' if style else ""
    return f'<w:p>{properties}<w:r><w:t xml:space="preserve">{escape(text)}</w:t></w:r></w:p>'


def _word_table(rows: Rows) -> str:
    filled = []
    for number, row in enumerate(rows):
        cells = "".join(f"<w:tc><w:tcPr/>{_word_paragraph(cell)}</w:tc>" for cell in row)
        filled.append(f"<w:tr>{'<w:trPr><w:tblHeader/></w:trPr>' if number == 0 else ''}{cells}</w:tr>")
    return f"<w:tbl><w:tblPr/><w:tblGrid>{'<w:gridCol/>' * len(rows[0])}</w:tblGrid>{''.join(filled)}</w:tbl>"


def _sheet_row(number: int, row: Sequence[str]) -> str:
    cells = []
    for column, text in zip("ABCDEFGHIJKLMNOPQRSTUVWXYZ", row, strict=False):
        where = f'r="{column}{number}"'
        if text.isdecimal():
            cells.append(f"<c {where}><v>{text}</v></c>")
        else:
            cells.append(f'<c {where} t="inlineStr"><is><t>{escape(text)}</t></is></c>')
    return f'<row r="{number}">{"".join(cells)}</row>'


def _slide_shape(number: int, kind: str, lines: Sequence[str]) -> str:
    bullet = '<a:pPr><a:buChar char="&#8226;"/></a:pPr>' if kind == "body" else ""
    text = "".join(f"<a:p>{bullet}<a:r><a:t>{escape(line)}</a:t></a:r></a:p>" for line in lines)
    top = 500000 if kind == "title" else 2000000
    return (
        f'<p:sp><p:nvSpPr><p:cNvPr id="{number}" name="{kind} {number}"/><p:cNvSpPr/>'
        f'<p:nvPr><p:ph type="{kind}" idx="{number - 2}"/></p:nvPr></p:nvSpPr>'
        f'<p:spPr><a:xfrm><a:off x="500000" y="{top}"/><a:ext cx="8000000" cy="1200000"/></a:xfrm></p:spPr>'
        f"<p:txBody><a:bodyPr/>{text}</p:txBody></p:sp>"
    )


def _bomb(package: bytes, part: str, head: bytes, unit: bytes, tail: bytes, inflated: int) -> bytes:
    """`package` with `part` replaced by `head`, `unit` so often that it makes `inflated` bytes, and `tail`."""
    block = unit * max(1, (1 << 20) // len(unit))
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(package)) as source, zipfile.ZipFile(file, "w") as target:
        for entry in source.infolist():
            if entry.filename != part:
                target.writestr(_entry(entry.filename), source.read(entry))
        with target.open(_entry(part), "w", force_zip64=inflated >= 2 * GIB) as stream:
            stream.write(head)
            for _ in range(-(-inflated // len(block))):
                stream.write(block)
            stream.write(tail)
    return file.getvalue()


# PDF

_PDF_PADDING = bytes.fromhex("28BF4E5E4E758A4164004E56FFFA01082E2E00B6D0683E802F0CA9FE6453697A")


def _pdf_objects(pages: Sequence[str], title: str, author: str, key: bytes = b"") -> list[bytes]:
    """
    Args:
        key: with one, streams are encrypted with it; strings are not, so let there be none.
    """
    kids = " ".join(f"{5 + 2 * i} 0 R" for i in range(len(pages)))
    strings = f"/Title ({_pdf_escaped(title)}) /Author ({_pdf_escaped(author)})" if title or author else ""
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        f"<< /Type /Pages /Kids [{kids}] /Count {len(pages)} >>".encode(),
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica /Encoding /WinAnsiEncoding >>",
        f"<< {strings} >>".encode("latin-1"),
    ]
    for text in pages:
        lines = "".join(f"({_pdf_escaped(line)}) Tj T* " for line in text.split("\n"))
        stream = f"BT /F1 12 Tf 14 TL 72 720 Td {lines}ET".encode("latin-1")
        number = len(objects) + 2
        if key:
            salt = number.to_bytes(3, "little") + bytes(2)
            stream = _rc4(hashlib.md5(key + salt, usedforsecurity=False).digest(), stream)
        objects += [
            f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents {number} 0 R "
            "/Resources << /Font << /F1 3 0 R >> >> >>".encode(),
            f"<< /Length {len(stream)} >>\nstream\n".encode() + stream + b"\nendstream",
        ]
    return objects


def _pdf_file(objects: Sequence[bytes], trailer: bytes) -> bytes:
    file = bytearray(b"%PDF-1.4\n%\xe2\xe3\xcf\xd3\n")
    places = []
    for number, body in enumerate(objects, 1):
        places.append(len(file))
        file += b"%d 0 obj\n%b\nendobj\n" % (number, body)
    start = len(file)
    file += b"xref\n0 %d\n0000000000 65535 f \n" % (len(objects) + 1)
    file += b"".join(b"%010d 00000 n \n" % place for place in places)
    file += b"trailer\n<< /Size %d /Root 1 0 R /Info 4 0 R %b >>\n" % (len(objects) + 1, trailer)
    file += b"startxref\n%d\n%%%%EOF\n" % start
    return bytes(file)


def _pdf_escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace("(", "\\(").replace(")", "\\)")


def _pdf_padded(password: bytes) -> bytes:
    return (password + _PDF_PADDING)[:32]


def _pdf_owner_entry(owner: bytes, user: bytes) -> bytes:
    return _rc4_rounds(_md5_rounds(_pdf_padded(owner)), _pdf_padded(user))


def _md5_rounds(data: bytes) -> bytes:
    for _ in range(51):
        data = hashlib.md5(data, usedforsecurity=False).digest()
    return data


def _rc4_rounds(key: bytes, data: bytes) -> bytes:
    for number in range(20):
        data = _rc4(bytes(byte ^ number for byte in key), data)
    return data


def _rc4(key: bytes, data: bytes) -> bytes:
    state, j = list(range(256)), 0
    for i in range(256):
        j = (j + state[i] + key[i % len(key)]) & 255
        state[i], state[j] = state[j], state[i]
    result, i, j = bytearray(), 0, 0
    for byte in data:
        i = (i + 1) & 255
        j = (j + state[i]) & 255
        state[i], state[j] = state[j], state[i]
        result.append(byte ^ state[(state[i] + state[j]) & 255])
    return bytes(result)
