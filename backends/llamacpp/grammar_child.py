"""The process that turns schemas and grammars of clients into llguidance's form, one line of JSON for each. `python -m` this.

It may be killed at any time: what takes too long, too much memory or too deep a recursion ends here, and not in the worker. It has a
sixteenth of the stack that a worker has for the same work. Ends when its input does.
"""

import json
import resource
import sys
import threading
import time
from typing import Any

from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper
from llguidance.gbnf_to_lark import any_to_lark

MAX_MEMORY = 2 * 1024**3
STACK_BYTES = 1024 * 1024
TRIAL_S = 0.2
TRIAL_STEPS = 64


class Bytes:
    """The smallest vocabulary that can say everything."""

    bos_token_id = eos_token_id = 256
    special_token_ids = (256,)

    def __init__(self) -> None:
        self.tokens = [bytes([value]) for value in range(256)] + [b"<end>"]

    def __call__(self, text: bytes | str) -> list[int]:
        return list(text.encode() if isinstance(text, str) else text)


def main() -> None:
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY, hard))
    threading.stack_size(STACK_BYTES)
    worker = threading.Thread(target=answer_all)
    worker.start()
    worker.join()


def answer_all() -> None:
    tokenizer = LLTokenizer(TokenizerWrapper(Bytes()))
    tell({"ready": True})
    for line in sys.stdin:
        asked = json.loads(line)
        try:
            answer = {"grammar": checked(grammar_of(**asked), tokenizer, trial=asked["kind"] != "lark")}
        except (ValueError, RecursionError) as exc:
            answer = {"error": str(exc) or "nested too deeply"}
        tell(answer)


def tell(answer: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


def grammar_of(kind: str, text: str, whitespace: str) -> str:
    """
    Raises:
        ValueError: in words for the client.
    """
    if kind == "schema":
        options: Any = {"lenient": False, "whitespace_flexible": True, "whitespace_pattern": whitespace}
        return str(LLMatcher.grammar_from_json_schema(text, overrides=options))
    if kind == "gbnf":
        try:
            text = any_to_lark(text)
        except Exception as exc:  # noqa: BLE001 - the converter has errors of its own for some faults, and plain ones for others
            raise ValueError(str(exc)) from None
    return str(LLMatcher.grammar_from_lark(text))


def checked(grammar: str, tokenizer: LLTokenizer, *, trial: bool) -> str:
    """
    Args:
        trial: say something in it. Not where it speaks of tokens that only the model's own vocabulary has.

    Raises:
        ValueError: what llguidance says of it.
    """
    wrong, words = LLMatcher.validate_grammar_with_warnings(grammar)
    if wrong:
        raise ValueError(words[0])
    if trial:
        try_out(LLMatcher(tokenizer, grammar, log_level=0))
    return grammar


def try_out(matcher: LLMatcher) -> None:
    """A few bytes of an answer, some here and some there: what is too complex shows itself now, and a grammar of nothing, too."""
    ends_s = time.perf_counter() + TRIAL_S
    for step in range(TRIAL_STEPS):
        allowed = [byte for byte, bits in enumerate(matcher.compute_logit_bias()[:256]) if bits]
        if matcher.is_error():
            raise ValueError(matcher.get_error().splitlines()[0])
        if not allowed or matcher.is_stopped() or time.perf_counter() > ends_s:
            return
        matcher.consume_token(allowed[step * 7 % len(allowed)])


if __name__ == "__main__":
    main()
