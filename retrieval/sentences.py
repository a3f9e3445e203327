"""Text -> sentences. Pure."""

import re

LOOK_BACK = 16
"""Characters before a full stop that say whether it ends a sentence. More would be read again and again in a long line."""

_PARAGRAPH = re.compile(r"\n\s*\n")
_END = re.compile(r"(?<=[.!?…。！？])[\"'”’»)\]]*(?:\s+|(?<=[。！？]))(?=\S)")
_NO_END = re.compile(
    r"(?:\b(?:[A-Z]|Dr|Mr|Mrs|Ms|Prof|St|No|Nr|vs|etc|e\.g|i\.e|z\.B|d\.h|bzw|ca|Fig|Eq|cf|al)|\d)\.$", re.IGNORECASE
)
"""What a full stop behind ends no sentence: titles, abbreviations, initials, numbers in lists."""


def sentences(text: str) -> list[str]:
    """In their order, without white space around; headings and items of lists, which have no full stop, by lines of their own."""
    found: list[str] = []
    for paragraph in _PARAGRAPH.split(text):
        for line in _joined_lines(paragraph):
            found += _of_line(line)
    return found


def _joined_lines(paragraph: str) -> list[str]:
    """Lines that were broken for their length become one; headings, items and rows of tables stay by themselves."""
    lines: list[list[str]] = []
    for raw in paragraph.splitlines():
        line = raw.strip()
        if not line:
            continue
        alone = line.startswith(("#", "- ", "* ", "+ ", "|", ">")) or re.match(r"\d+[.)] ", line)
        if lines and not alone and not lines[-1][0].startswith(("#", "|")):
            lines[-1].append(line)
        else:
            lines.append([line])
    return [" ".join(parts) for parts in lines]


def _of_line(line: str) -> list[str]:
    parts: list[str] = []
    start = 0
    for match in _END.finditer(line):
        before = line[max(start, match.start() - LOOK_BACK) : match.start()]
        if _NO_END.search(before) and not before.endswith(("!", "?")):
            continue
        parts.append(line[start : match.end()].strip())
        start = match.end()
    parts.append(line[start:].strip())
    return [part for part in parts if any(char.isalnum() for char in part)]
