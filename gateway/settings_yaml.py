"""YAML with its line numbers, so that a problem can say where it is. A key given twice is a mistake, not a choice."""

from typing import Any

import yaml


class Lines:
    """Where each value of a file begins."""

    def __init__(self, file: str, lines: dict[tuple[Any, ...], int]) -> None:
        self._file = file
        self._lines = lines

    def say(self, where: tuple[Any, ...], what: str) -> str:
        """`file:line: backends[0].model: what`; the line of the nearest thing that the file has."""
        line = next((self._lines[where[:end]] for end in range(len(where), -1, -1) if where[:end] in self._lines), 1)
        return f"{self._file}:{line}: {_dotted(where)}: {what}" if where else f"{self._file}:{line}: {what}"


def _dotted(where: tuple[Any, ...]) -> str:
    text = ""
    for part in where:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text


def load_yaml(text: str, file: str) -> tuple[Any, Lines]:
    """
    Raises:
        yaml.YAMLError: also for a key that is given twice.
    """
    loader = yaml.SafeLoader(text)
    try:
        node = loader.get_single_node()
        lines: dict[tuple[Any, ...], int] = {}
        if node is not None:
            _collect(node, (), lines)
        return (loader.construct_document(node) if node is not None else None), Lines(file, lines)
    finally:
        loader.dispose()


def _collect(node: yaml.Node, where: tuple[Any, ...], lines: dict[tuple[Any, ...], int]) -> None:
    lines.setdefault(where, node.start_mark.line + 1)
    if isinstance(node, yaml.MappingNode):
        seen = set()
        for key, value in node.value:
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"'{key.value}' is given twice", key.start_mark)
            seen.add(key.value)
            lines[(*where, key.value)] = key.start_mark.line + 1
            _collect(value, (*where, key.value), lines)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            _collect(value, (*where, index), lines)
