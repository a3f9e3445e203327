from pathlib import Path
from typing import Any

import pytest

from policies.errors import PromptInvalid
from policies.prompts import Prompt, apply, load_prompts

GOOD = """
name: summarize
version: {version}
variables:
  - {{name: sentences, default: 3}}
  - {{name: tone}}
messages:
  - role: system
    content: "At most {{{{ sentences }}}} sentences, {{{{ tone }}}}. v{version}"
  - role: user
    content: "Summarize:\\n\\n{{{{ text }}}}"
params: {{temperature: 0.2}}
"""


def prompt(content: str, *variables: dict[str, Any]) -> Prompt:
    return Prompt.model_validate(
        {"name": "one", "variables": list(variables), "messages": [{"role": "user", "content": content}]}
    )


def write(folder: Path, **files: str) -> Path:
    for name, text in files.items():
        (folder / f"{name}.yaml").write_text(text, "utf-8")
    return folder


def test_a_prompt_is_loaded_and_rendered(tmp_path: Path) -> None:
    loaded = load_prompts(["*.yaml"], root=write(tmp_path, one=GOOD.format(version=1)))
    assert list(loaded) == ["summarize"]
    assert loaded["summarize"].params == {"temperature": 0.2}
    assert loaded["summarize"].render("It rained.", {"tone": "dry"}) == [
        {"role": "system", "content": "At most 3 sentences, dry. v1"},
        {"role": "user", "content": "Summarize:\n\nIt rained."},
    ]


def test_the_prompt_that_ships_can_be_loaded() -> None:
    root = Path(__file__).resolve().parents[2]
    rendered = load_prompts(["config/prompts/*.yaml"], root=root)["summarize"].render("x", {"sentences": 1})
    assert "at most 1 sentences" in rendered[0]["content"]


@pytest.mark.parametrize("order", ["ab", "ba"])
def test_of_two_versions_the_higher_is_served(tmp_path: Path, order: str) -> None:
    write(tmp_path, **dict(zip(order, (GOOD.format(version=1), GOOD.format(version=2)), strict=True)))
    assert load_prompts(["*.yaml"], root=tmp_path)["summarize"].version == 2


def test_no_globs_are_no_prompts(tmp_path: Path) -> None:
    assert load_prompts([], root=write(tmp_path, one=GOOD.format(version=1))) == {}


def test_all_bad_files_are_listed_at_once(tmp_path: Path) -> None:
    message = "messages: [{role: user, content: 'x'}]"
    write(
        tmp_path,
        good=GOOD.format(version=1),
        twice=GOOD.format(version=1),
        torn="name: [",
        empty="",
        nameless=message,
        extra=f"name: a\n{message}\nstate: prod",
        stage=f"name: a\n{message}\nstage: dev",
        silent="name: a\nmessages: []",
        syntax="name: a\nmessages: [{role: user, content: '{% if %}'}]",
        unnamed="name: a\nmessages: [{role: user, content: '{{ tone }}'}]",
        last="name: a\nmessages: [{role: system, content: 'x'}]",
        spaced=f"name: a b\n{message}",
    )
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(PromptInvalid) as caught:
        load_prompts(["*.yaml"], root=tmp_path)
    words = str(caught.value)
    bad = {path.name for path in tmp_path.iterdir()} - {"good.yaml"}
    assert {name for name in bad if f"{tmp_path / name}: " in words} == bad
    assert "good.yaml:" not in words
    for fact in ("version 1 exists twice", "uses tone", "mistake in line 1", "last message is the user's"):
        assert fact in words


@pytest.mark.parametrize("content", ["{{ text | shout }}", "{{ text is loud }}"])
def test_an_unknown_filter_or_test_is_found_when_the_file_is_loaded(tmp_path: Path, content: str) -> None:
    write(tmp_path, bad=f"name: a\nmessages: [{{role: user, content: '{content}'}}]", torn="name: [")
    with pytest.raises(PromptInvalid, match=r"bad\.yaml(.|\n)*torn\.yaml"):
        load_prompts(["*.yaml"], root=tmp_path)


def test_missing_and_unknown_variables_are_named() -> None:
    one = prompt("{{ a }}{{ b }}{{ c }}", {"name": "a"}, {"name": "b"}, {"name": "c", "default": ""})
    with pytest.raises(PromptInvalid, match="'one' needs the variable a, b$"):
        one.render("", {})
    with pytest.raises(PromptInvalid, match="'one' has no variable x, y$"):
        one.render("", {"a": 1, "b": 2, "y": 3, "x": 4})
    assert one.render("", {"a": 1, "b": 2}) == [{"role": "user", "content": "12"}]


def test_the_text_is_no_variable_that_a_client_may_give() -> None:
    with pytest.raises(PromptInvalid, match="no variable text"):
        prompt("{{ text }}").render("mine", {"text": "theirs"})


@pytest.mark.parametrize("template", ["{{ 7 * 7 }}", "{% raw %}", "{{ tone.__class__ }}", "{# x #}"])
def test_what_users_write_is_text_and_no_template(template: str) -> None:
    rendered = prompt("{{ text }}|{{ tone }}", {"name": "tone"}).render(template, {"tone": template})
    assert rendered[0]["content"] == f"{template}|{template}"


@pytest.mark.parametrize(
    "content",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ text.__class__.__base__.__subclasses__() }}",
        "{{ text | attr('__class__') | attr('__mro__') }}",
        "{{ text['__class__']['__mro__'] }}",
        "{{ '{0.__class__.__mro__}'.format(text) }}",
        "{{ list.append(1) }}",
        "{{ list.__init__.__globals__ }}",
        "{{ self.__init__.__globals__ }}",
        "{% for x in range(999999999) %}{% endfor %}",
    ],
)
def test_the_sandbox_holds(content: str) -> None:
    with pytest.raises(PromptInvalid, match="'one'"):
        prompt(content, {"name": "list"}).render("a", {"list": [1]})


@pytest.mark.parametrize(
    ("content", "value"),
    [("{{ a + 1 }}", "x"), ("{{ 1 / a }}", 0), ("{{ a.b.c }}", "x"), ("{{ a[0] }}", None), ("{{ '%d' % a }}", "x")],
)
def test_a_value_that_breaks_the_template_is_the_callers_mistake(content: str, value: object) -> None:
    with pytest.raises(PromptInvalid, match="'one' cannot be rendered"):
        prompt(content, {"name": "a"}).render("", {"a": value})


@pytest.mark.parametrize(
    ("content", "value"), [("{{ a.format(b=1) }}", "{x}"), ("{{ a.format() }}", "{}"), ("{{ text.encode(a) }}", "x")]
)
def test_a_value_that_is_looked_up_in_vain_is_the_callers_mistake(content: str, value: str) -> None:
    with pytest.raises(PromptInvalid, match="'one' cannot be rendered"):
        prompt(content, {"name": "a"}).render("", {"a": value})


SYSTEM, DEVELOPER = {"role": "system", "content": "theirs"}, {"role": "developer", "content": "theirs"}
USER_1, ASSISTANT_1 = {"role": "user", "content": "q1"}, {"role": "assistant", "content": "a1"}
USER_2, TOOL = {"role": "user", "content": "q2"}, {"role": "tool", "content": "42", "tool_call_id": "t"}
HEAD, LAST = {"role": "system", "content": "ours"}, {"role": "user", "content": "Summarize: q2"}


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        ([USER_2], [HEAD, LAST]),
        ([SYSTEM, USER_2], [HEAD, LAST]),
        ([SYSTEM, USER_1, ASSISTANT_1, DEVELOPER, USER_2], [HEAD, USER_1, ASSISTANT_1, LAST]),
        ([USER_1, ASSISTANT_1, USER_2, TOOL], [HEAD, USER_1, ASSISTANT_1, LAST, TOOL]),
        ([ASSISTANT_1], [HEAD, ASSISTANT_1, LAST]),
        ([], [HEAD, LAST]),
    ],
)
def test_a_conversation_keeps_its_earlier_turns(messages: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    before = list(messages)
    assert apply(messages, [HEAD, LAST]) == expected
    assert messages == before


@pytest.mark.parametrize(
    ("contents", "fixed"),
    [
        (["Be brief.", "{{ text }}"], 1),
        (["Be {{ tone }}.", "{{ text }}"], 0),
        (["Be brief.", "{% if tone %}x{% endif %}", "And kind.", "{{ text }}"], 1),
        (["Be brief.", "And kind.", "the same for all"], 2),
        (["the same for all"], 0),
    ],
)
def test_leading_messages_without_anything_to_fill_in_are_the_same_for_everybody(
    contents: list[str], fixed: int
) -> None:
    messages = [{"role": "system", "content": content} for content in contents]
    messages[-1]["role"] = "user"
    variables = [{"name": "tone", "default": "kind"}]
    made = Prompt.model_validate({"name": "one", "variables": variables, "messages": messages})
    assert made.fixed_messages == fixed
