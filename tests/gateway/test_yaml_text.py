"""Lists in YAML files get longer, and nothing else changes."""

import pytest
import yaml

from gateway.yaml_text import NotAList, with_item

ITEM = "{name: new}"


@pytest.mark.parametrize(
    ("text", "whole"),
    [
        ("", "a:\n  - {name: new}\n"),
        ("b: 1", "b: 1\na:\n  - {name: new}\n"),
        ("a:\n", "a: [{name: new}]\n"),
        ("a:   # nothing\nb: 1\n", None),
        ("a: []\n", "a: [{name: new}]\n"),
        ("a: [{name: x}]  # why\nb: 1\n", "a: [{name: x}, {name: new}]  # why\nb: 1\n"),
        ("a: [\n  {name: x},\n  {name: y}\n]\n", None),
        ("a:\n  - {name: x}\n\n# of b\nb: 1\n", "a:\n  - {name: x}\n  - {name: new}\n\n# of b\nb: 1\n"),
        ("a:\n- {name: x}", "a:\n- {name: x}\n- {name: new}\n"),
        ("a:\n  - name: x\n    route: [y]\n    # of x\nb: 1\n", "a:\n  - name: x\n    route: [y]\n  - {name: new}\n    # of x\nb: 1\n"),
        ("a:\n  - name: x\n    route:\n      - y\n      - z\nb: 1\n", "a:\n  - name: x\n    route:\n      - y\n      - z\n  - {name: new}\nb: 1\n"),
        ("a:\n  - name: |\n      x\n      y\nb: 1\n", "a:\n  - name: |\n      x\n      y\n  - {name: new}\nb: 1\n"),
        ("a:\n  - {name: x,\n     route: [y]}   # two lines\nb: 1\n", "a:\n  - {name: x,\n     route: [y]}   # two lines\n  - {name: new}\nb: 1\n"),
        ("a:\n  - 'é 日本'\nb: 1\n", "a:\n  - 'é 日本'\n  - {name: new}\nb: 1\n"),
        ("a:\r\n  - x\r\nb: 1\r\n", None),
    ],
)  # fmt: skip
def test_an_item_is_added_behind_the_last(text: str, whole: str | None) -> None:
    after = with_item(text, "a", ITEM)
    before = yaml.safe_load(text) or {}
    assert yaml.safe_load(after) == before | {"a": [*(before.get("a") or []), {"name": "new"}]}
    if whole is not None:
        assert after == whole


@pytest.mark.parametrize("text", ["a: 1\n", "a: {b: 1}\n", "[1]\n"])
def test_what_is_no_list_is_left_alone(text: str) -> None:
    with pytest.raises(NotAList):
        with_item(text, "a", ITEM)
