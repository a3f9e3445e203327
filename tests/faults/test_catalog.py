"""Every fault of the catalogue, through a real gateway and over real sockets."""

from collections.abc import Iterator

import pytest

from tests.faults.catalog import CASES, Case
from tests.faults.stage import Stage, staged


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    with staged(tmp_path_factory.mktemp("catalog")) as stage:
        yield stage


@pytest.mark.parametrize("case", [case for case in CASES if not case.fallback], ids=str)
def test_a_client_sees_what_the_catalogue_says_of(case: Case, stage: Stage) -> None:
    assert stage.observe(case) == case.expected


@pytest.mark.parametrize("case", [case for case in CASES if case.fallback], ids=str)
def test_a_fallback_answers_before_the_first_byte_and_never_after_it_for(case: Case, stage: Stage) -> None:
    assert stage.observe(case) == case.expected
