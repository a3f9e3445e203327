"""The process that turns schemas and grammars of clients into llguidance's form, one line of JSON for each. `python -m` this.

It may be killed at any time: what takes too long or too much memory ends here, and not in the worker. Ends when its input does.
"""

import json
import resource
import sys
from typing import Any

from llguidance import LLMatcher
from llguidance.gbnf_to_lark import GbnfToLarkError, any_to_lark

MAX_MEMORY = 2 * 1024**3


def main() -> None:
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY, hard))
    tell({"ready": True})
    for line in sys.stdin:
        asked = json.loads(line)
        try:
            answer = {"grammar": checked(grammar_of(**asked))}
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
        except GbnfToLarkError as exc:
            raise ValueError(str(exc)) from None
        except Exception as exc:  # noqa: BLE001 - the converter has no error of its own for undefined rules
            raise ValueError(str(exc)) from None
    return str(LLMatcher.grammar_from_lark(text))


def checked(grammar: str) -> str:
    """
    Raises:
        ValueError: what llguidance says of it.
    """
    wrong, words = LLMatcher.validate_grammar_with_warnings(grammar)
    if wrong:
        raise ValueError(words[0])
    return grammar


if __name__ == "__main__":
    main()
