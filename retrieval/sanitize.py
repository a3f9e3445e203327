"""Documents are data. What hides in them from people, or speaks to an engine in place of them, is taken out or made plain. Pure.

This makes an attack by a document harder; it does not make one impossible (OWASP LLM01), which is why no passage may call a tool
where `tools: false` stands, and why passages are fenced by words that no document can know.
"""

import re
from typing import NamedTuple

_HIDDEN = re.compile(
    "["
    "\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f\u3164\ufeff\uffa0"
    "\ufe00-\ufe0f\ufff9-\ufffb\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff"
    "\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f"
    "]"
)
"""Characters without a picture: joiners and marks of direction, variation selectors, tags, controls. Line ends and tabs stay."""

_CONTROL = re.compile(
    r"<\s*[|｜][^<>|｜\n]{1,64}[|｜]\s*>"  # <|im_start|>, <|eot_id|>, <|user|>, <｜Assistant｜>
    r"|</?\s*(?:s|bos|eos|pad|unk|sep|cls|mask|sop|start_of_turn|end_of_turn|start_of_image|end_of_image|tool_call|tool_calls|tool_response|tool_result|tools"
    r"|function_call|functions?|think|thinking|system|assistant|user|im_start|im_end|passages?|documents?|context"
    r"|instructions?)(?:[\s_-][^<>]{0,128})?\s*/?>"
    r"|<function=[^<>\n]{0,64}>"
    r"|\[/?\s*(?:INST|SYS|AVAILABLE_TOOLS|TOOL_CALLS|TOOL_RESULTS|TOOL_CONTENT|SYSTEM_PROMPT|ARGS|CALL_ID|THINK|IMG"
    r"|IMG_BREAK|IMG_END|PREFIX|SUFFIX|MIDDLE|gMASK)\s*\]"
    r"|<<\s*(?:/\s*)?SYS\s*>>",
    re.IGNORECASE,
)
"""What chat templates of the known families write around turns and tool calls, and what fences passages."""

_TURN = re.compile(
    r"^([ \t>*_#-]*)(system|assistant|user|human|developer|ai|bot|tool|instruction|response)([ \t*_]*:)",
    re.IGNORECASE | re.MULTILINE,
)
"""A line that plays a turn of the conversation."""


_LINE_END = re.compile("\r\n|[\r\x0b\x0c\x85\u2028\u2029]")

MAX_PASSES = 8
"""What was made plain may uncover another token, which is made plain, too; nesting deeper than this is cut off by brackets."""


class Clean(NamedTuple):
    text: str
    hits: int
    """Control tokens and played turns that were made plain."""


def without_hidden(text: str) -> str:
    """For documents as they come in: what nobody sees is not searched or shown either."""
    return _HIDDEN.sub("", _LINE_END.sub("\n", text))


def neutralised(text: str) -> Clean:
    """For passages as they are shown to an engine: the words stay readable, and are no control tokens any more."""
    hits = 0
    for _ in range(MAX_PASSES):
        text, tokens = _CONTROL.subn(_spelled, text)
        hits += tokens
        if not tokens:
            break
    text, turns = _TURN.subn(r"\1“\2”\3", text)
    return Clean(text, hits + turns)


def _spelled(match: re.Match[str]) -> str:
    """`<|im_end|>` becomes `‹im_end›`: what a person needs to recognise it, and no tokenizer."""
    inner = match.group().strip("<>[]|｜ /").strip()
    return f"‹{inner}›"
