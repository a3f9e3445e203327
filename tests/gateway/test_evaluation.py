"""The repository's own questions, over its docs, a table and a PDF: what searches are worth, held to a level."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from gateway.cli import cli
from retrieval.evaluation import Answer, Hit, Question, coverage, plain, rank_of, read_questions, score
from tests.conftest import ROOT
from tests.gateway.conftest import wait_for_collection
from tests.retrieval.library import write_library
from tests.running import Gateway, running

QUESTIONS = ROOT / "tests" / "retrieval" / "data" / "questions.jsonl"


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory, minilm_gguf: Path) -> Iterator[Gateway]:
    home = tmp_path_factory.mktemp("library")
    made = home / "made"
    made.mkdir()
    write_library(made)
    config = {
        "backends": [
            {"name": "minilm", "engine": "llama_cpp", "model": str(minilm_gguf), "serves": "embeddings"},
            {"name": "quote", "engine": "quote"},
        ],
        "models": [
            {"name": "library", "collections": ["library"], "route": ["quote"]},
            {"name": "by-words", "collections": ["library"], "retrieval": {"mode": "lexical"}, "route": ["quote"]},
        ],
        "collections": [{"name": "library", "embed": "minilm", "paths": [f"{ROOT}/docs/**/*.md", f"{made}/*"]}],
    }
    with running(home, config) as gateway:
        wait_for_collection(gateway)
        yield gateway


def evaluated(gateway: Gateway, *arguments: str) -> dict[str, Any]:
    command = ["collections", "eval", str(QUESTIONS), "--collection", "library", "--json", *arguments]
    environment = {"CHASQUI_API_KEY": gateway.key, "CHASQUI_BASE_URL": f"{gateway.url}/v1"}
    ran = CliRunner().invoke(cli, command, env={**os.environ, **environment}, catch_exceptions=False)
    assert ran.exit_code == 0, ran.output
    result: dict[str, Any] = json.loads(ran.output)
    return result


def test_hybrid_search_finds_nine_of_ten_and_is_no_worse_than_either_leg(library: Gateway) -> None:
    rows = evaluated(library)["search"]
    assert rows["hybrid"]["questions"] >= 60
    assert rows["hybrid"]["recall@5"] >= 0.9, rows
    for leg in ("dense", "lexical"):
        for measure in ("recall@5", "recall@10", "mrr", "ndcg@10"):
            assert rows["hybrid"][measure] >= rows[leg][measure], (leg, measure, rows)


def test_answers_of_two_configurations_are_compared(library: Gateway, tmp_path: Path) -> None:
    compared = evaluated(library, "--mode", "lexical", "--model", "library", "--model", "by-words")["models"]
    assert compared["library"]["failed"] == 0
    assert compared["library"]["words of the quotation"] > compared["by-words"]["words of the quotation"] > 0.2
    assert compared["library"]["cites it"] > 0.4


def test_every_quotation_is_in_its_source_once() -> None:
    questions = read_questions(QUESTIONS.read_text())
    assert len({one.question for one in questions}) == len(questions) >= 60
    for one in questions:
        for answer in one.answers:
            if answer.source.startswith("docs/"):
                text = plain((ROOT / answer.source).read_text())
                assert text.count(plain(answer.quote)) == 1, (one.question, answer)


ASKED = Question("Who?", [Answer("a.md", "the  runner waits"), Answer("b.md", "nobody")])


def test_a_rank_is_that_of_the_first_passage_with_a_quotation_from_its_source() -> None:
    hits = [Hit("x/b.md", "the runner waits"), Hit("x/a.md", "here the runner\nwaits long"), Hit("b.md", "nobody")]
    assert rank_of(ASKED, hits) == 2
    assert rank_of(ASKED, hits[:1]) is None


def test_scores_by_hand() -> None:
    scores = score([1, 2, None, 20], [0.001, 0.002, 0.003, 0.004])
    assert scores.recall == {1: 0.25, 5: 0.5, 10: 0.5}
    assert scores.mrr == pytest.approx((1 + 0.5 + 0.05) / 4)
    assert scores.ndcg == pytest.approx((1 + 1 / 1.5849625) / 4)
    assert scores.p95_ms == pytest.approx(4)


def test_an_answer_is_judged_by_the_words_of_the_nearest_quotation() -> None:
    assert coverage(ASKED, "The runner slept.") == pytest.approx(2 / 3)
    assert coverage(ASKED, "Nobody!") == 1.0
    assert coverage(ASKED, "") == 0.0


@pytest.mark.parametrize(
    "text", ["", "{}", '{"question": "a", "answers": []}', "nonsense", '{"question": 1, "answers": []}']
)
def test_questions_that_cannot_be_read_are_named(text: str) -> None:
    with pytest.raises(ValueError, match=r"line 1|no questions"):
        read_questions(text)
