"""docs/faults.md from the catalogue: `.venv/bin/python -m tests.faults.table` plays every fault and writes what it saw."""

import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.conftest import ROOT
from tests.faults.catalog import CASES, FAULTS, Fault
from tests.faults.outcome import Outcome, told
from tests.faults.stage import staged

PAGE = ROOT / "docs" / "faults.md"

HEAD = """# What clients see when an upstream misbehaves

Observed through a running gateway and over real sockets; `.venv/bin/python -m tests.faults.table` observes it again, and the
test suite plays every row. In the last column another, healthy station stands behind the faulty one in the model's route:
before the first byte it answers, after the first byte it is never asked. Codes are explained in [errors](errors.md), the
deadlines, `retries` and the breaker in [relay to a provider](how-to/providers.md).

Where calls are counted or the upstream's words are kept, the model has `retries: 1`. A stream that ends in an error event has no
`[DONE]`. What is seen several times, or followed by "then", are requests one after the other. What is not played is a —.

| fault | what the upstream does | without streaming | with streaming | with a fallback behind it |
|---|---|---|---|---|
"""

NOTHING = "—"
SAME = "no difference"

Results = Mapping[str, Sequence[Outcome]]
"""What was seen, by the name of the case."""


def rows(results: Results) -> list[str]:
    return [row(fault, results) for fault in FAULTS]


def row(fault: Fault, results: Results) -> str:
    alone, fallback = (
        {case.stream: results[case.name] for case in CASES if case.fault is fault and case.fallback is behind}
        for behind in (False, True)
    )
    whole, stream = (told(alone[mode]) if mode in alone else NOTHING for mode in (False, True))
    return f"| {fault.name} | {fault.does} | {whole} | {stream} | {_with_fallback(alone, fallback)} |"


def _with_fallback(alone: Mapping[bool, Sequence[Outcome]], fallback: Mapping[bool, Sequence[Outcome]]) -> str:
    words = {mode: SAME if fallback[mode] == alone[mode] else told(fallback[mode]) for mode in fallback}
    if len(set(words.values())) == 1:
        return words.popitem()[1]
    return f"without streaming {words[False]}; with streaming {words[True]}"


def render(results: Results) -> str:
    return HEAD + "\n".join(rows(results)) + "\n"


def expected() -> Results:
    return {case.name: case.expected for case in CASES}


def observe() -> Results:
    with tempfile.TemporaryDirectory() as home, staged(Path(home)) as stage:
        return {case.name: stage.observe(case) for case in CASES}


def main() -> None:
    seen = observe()
    PAGE.write_text(render(seen), "utf-8")
    surprises = [
        f"{case}: {seen[case.name]} instead of {case.expected}" for case in CASES if seen[case.name] != case.expected
    ]
    if surprises:
        sys.exit("\n".join(surprises))


if __name__ == "__main__":
    main()
