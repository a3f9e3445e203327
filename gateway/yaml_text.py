"""A list in a YAML file gets one more item; every other character of the file, comments too, stays as it is."""

from typing import Any

import yaml


class NotAList(ValueError):
    """The file has something else under that name."""


def with_item(text: str, key: str, item: str) -> str:
    """
    Args:
        key: of the list, at the top of the file; it is made where there is none.
        item: in flow style, on one line: `{name: x}`.

    Raises:
        NotAList, yaml.YAMLError
    """
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    if root is not None and not isinstance(root, yaml.MappingNode):
        raise NotAList("the file is no mapping")
    for name, node in root.value if root is not None else []:
        if name.value == key:
            return _extended(text, key, node, item)
    start = text if not text or text.endswith("\n") else f"{text}\n"
    return f"{start}{key}:\n  - {item}\n"


def _extended(text: str, key: str, node: Any, item: str) -> str:
    if isinstance(node, yaml.ScalarNode) and node.tag == "tag:yaml.org,2002:null":
        end = node.end_mark.index
        return (
            f"{text[:end]} [{item}]{text[end:]}" if text[end - 1 : end] == ":" else f"{text[:end]}[{item}]{text[end:]}"
        )
    if not isinstance(node, yaml.SequenceNode):
        raise NotAList(f"`{key}` is no list")
    if node.flow_style:
        end = text.rindex("]", 0, node.end_mark.index)
        return f"{text[:end].rstrip()}{', ' if node.value else ''}{item}{text[end:]}"
    line = _last_line(node.value[-1]) + 1
    lines = text.splitlines(keepends=True)
    if not lines[line - 1].endswith("\n"):
        lines[line - 1] += "\n"
    lines.insert(line, f"{' ' * node.start_mark.column}- {item}\n")
    return "".join(lines)


def _last_line(node: Any) -> int:
    """Where it is written to its end. The mark of a block stands behind the comments that follow it, so its leaves are asked."""
    if isinstance(node, yaml.ScalarNode):
        ends_line = node.style in ("|", ">") and node.end_mark.column == 0
        return int(node.end_mark.line) - (1 if ends_line else 0)
    if node.flow_style or not node.value:
        return int(node.end_mark.line)
    last = node.value[-1]
    return _last_line(last[1] if isinstance(node, yaml.MappingNode) else last)
