"""docs/faults.md says what the catalogue of faults expects, and tests/faults/test_catalog.py that it is so."""

import pytest

from tests.faults.catalog import CASES, FAULTS, Fault
from tests.faults.table import PAGE, expected, render, row


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_the_page_has_the_row_that_the_catalogue_expects_of(fault: Fault) -> None:
    assert row(fault, expected()) in PAGE.read_text("utf-8").splitlines(), "run: .venv/bin/python -m tests.faults.table"


def test_the_page_has_nothing_else() -> None:
    assert PAGE.read_text("utf-8") == render(expected()), "run: .venv/bin/python -m tests.faults.table"


def test_every_case_has_a_name_of_its_own() -> None:
    assert len({case.name for case in CASES}) == len(CASES)
