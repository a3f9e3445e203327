"""Messages become prompt text; what a user wrote never becomes a control token."""

import sys
from datetime import datetime
from typing import Any

import pytest

from backends.errors import InvalidRequest
from backends.llamacpp.chat_template import ChatTemplate, Piece
from backends.llamacpp.synthetic import CHAT_TEMPLATE, CONTROL


def user(content: str, **more: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": content, **more}]


def render(source: str | None, messages: list[dict[str, Any]], **options: Any) -> list[Piece]:
    return ChatTemplate(source, **({"control_tokens": CONTROL, "bos": "<s>", "eos": "</s>"} | options)).render(messages)


def text(pieces: list[Piece]) -> str:
    return "".join(piece.text for piece in pieces)


def test_the_template_gets_the_messages_and_the_tokens_and_opens_the_answer() -> None:
    assert render(CHAT_TEMPLATE, user("hi")) == [Piece("<s><|user|>\nhi<|end|>\n<|assistant|>\n", trusted=True)]
    assert text(render("{{ eos_token }}|{{ add_generation_prompt }}", user(""))) == "</s>|True"


@pytest.mark.parametrize("token", CONTROL)
def test_control_tokens_in_content_stay_text(token: str) -> None:
    pieces = render(CHAT_TEMPLATE, user(f"a{token}b{token}"))
    assert [piece.text for piece in pieces if not piece.trusted] == [token, token]
    assert text(pieces) == f"<s><|user|>\na{token}b{token}<|end|>\n<|assistant|>\n"


def test_a_control_token_left_over_when_another_is_taken_out_stays_text() -> None:
    pieces = render(CHAT_TEMPLATE, user("<|e<|end|>nd|>"))
    assert [piece for piece in pieces if "end|>" in piece.text and piece.trusted] == [pieces[-1]]
    assert pieces[-1].text == "nd|><|end|>\n<|assistant|>\n"


def test_the_longest_control_token_is_taken_first() -> None:
    pieces = render("{{ messages[0].content }}", user("<a>b"), control_tokens=["<a", "<a>b", ">b"])
    assert pieces == [Piece("<a>b", trusted=False)]


@pytest.mark.parametrize("more", [{"name": "<|end|>"}, {"calls": [{"arguments": "<|end|>"}]}])
def test_control_tokens_elsewhere_in_a_message_stay_text_too(more: dict[str, Any]) -> None:
    pieces = render("{{ messages[0] | tojson }}", user("x", **more))
    assert [piece.text for piece in pieces if not piece.trusted] == ["<|end|>"]


def test_control_tokens_in_the_keys_of_a_message_stay_text_too() -> None:
    pieces = render("{{ messages[0] | tojson }}", user("x", arguments={"<|end|>": 1}))
    assert not any("<|end|>" in piece.text for piece in pieces if piece.trusted)


def test_without_a_template_contents_are_joined_and_their_control_tokens_stay_text() -> None:
    pieces = render(None, [*user("a<s>"), {"role": "assistant", "content": None}, *user("b")])
    assert pieces == [Piece("a", trusted=True), Piece("<s>", trusted=False), Piece("\n\nb", trusted=True)]


@pytest.mark.parametrize(
    "source",
    [
        "{{ raise_exception('only users may speak') }}",
        "{{ messages[0].absent.deeper }}",
        "{{ 'a' + 1 }}",
        "{{ [].__class__.__base__.__subclasses__() }}",
        "{{ messages.append(1) }}",
    ],
)
def test_a_template_that_fails_refuses_the_messages(source: str) -> None:
    with pytest.raises(InvalidRequest, match="chat template refuses") as caught:
        render(source, user("x"))
    assert caught.value.param == "messages"


def test_the_templates_own_words_reach_the_client() -> None:
    with pytest.raises(InvalidRequest, match="only users may speak"):
        render("{{ raise_exception('only users may speak') }}", user("x"))


def test_a_template_that_cuts_content_gives_a_prompt_or_refuses() -> None:
    try:
        pieces = render("{{ messages[0].content[:17] }} and more", user("<|end|>"))
    except InvalidRequest:
        return
    assert text(pieces).endswith(" and more")


def test_a_message_nested_too_deeply_is_refused() -> None:
    deep: list[Any] = []
    for _ in range(3 * sys.getrecursionlimit()):
        deep = [deep]
    with pytest.raises(InvalidRequest):
        render(CHAT_TEMPLATE, user("x", extra=deep))


def test_templates_may_print_dates_write_json_and_leave_loops() -> None:
    source = (
        "{{ strftime_now('%d %b %Y') }}\n  {% for m in messages %}\n"
        "{{ m.content | tojson(indent=4) }}{% break %}\n  {% endfor %}\n"
    )
    pieces = render(source, [*user("ñ"), *user("b")], now=lambda: datetime(2026, 2, 3))
    assert text(pieces) == '03 Feb 2026\n"ñ"'
