"""`chasqui collections`: stores of a running gateway, over the same API that any client has."""

import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import rich_click as click

from gateway.cli.common import stop

if TYPE_CHECKING:
    import openai

MODES = ("dense", "lexical", "hybrid")
AT_ONCE = 100
"""Files in one batch."""


def options(function: Callable[..., Any]) -> Callable[..., Any]:
    function = click.option(
        "--base-url",
        envvar="CHASQUI_BASE_URL",
        help="[default: http://127.0.0.1:8000/v1, with CHASQUI_PORT if that is set]",
    )(function)
    return click.option(
        "--key", envvar=["CHASQUI_API_KEY", "OPENAI_API_KEY"], help="Your key; better through CHASQUI_API_KEY."
    )(function)


@click.group("collections")
def command() -> None:
    """Collections of a running gateway: fill, list, search, read anew, evaluate."""


@command.command("list")
@click.option("--json", "as_json", is_flag=True)
@options
def list_collections(as_json: bool, base_url: str | None, key: str | None) -> None:
    """The collections that the key may read."""
    from rich.console import Console
    from rich.table import Column, Table

    if as_json:
        with connected(base_url, key) as client:
            click.echo(json.dumps([store.to_dict() for store in client.vector_stores.list(limit=100)], indent=2))
        return
    table = Table("name", Column("id", no_wrap=True, min_width=27), "files", "in progress", "failed", "MB", "kept by")
    with connected(base_url, key) as client:
        for store in client.vector_stores.list(limit=100):
            counts = store.file_counts
            kept = "configuration" if getattr(store, "declared", False) else "API"
            table.add_row(
                store.name, store.id, str(counts.total), str(counts.in_progress), str(counts.failed),
                f"{store.usage_bytes / 2**20:.1f}", kept,
            )  # fmt: skip
    Console().print(table)


@command.command("add")
@click.argument("name")
@click.argument("paths", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True))
@click.option("--max-tokens", type=click.IntRange(100, 4096), help="Of a chunk.")
@click.option("--overlap-tokens", type=click.IntRange(0), default=32, show_default=True, help="With --max-tokens.")
@options
def add(
    name: str,
    paths: tuple[Path, ...],
    max_tokens: int | None,
    overlap_tokens: int,
    base_url: str | None,
    key: str | None,
) -> None:
    """Upload files, and folders with all that is in them, into the store NAME (or its id), which is made if it is not there."""
    if not name.strip():
        stop("the store needs a name")
    files = [file for path in paths for file in _files(path)]
    if not files:
        stop("there are no files in it")
    strategy: Any = {"type": "auto"}
    if max_tokens is not None:
        static = {"max_chunk_size_tokens": max_tokens, "chunk_overlap_tokens": overlap_tokens}
        strategy = {"type": "static", "static": static}
    with connected(base_url, key) as client:
        store = _named(client, name) or client.vector_stores.create(name=name)
        failed = _add_all(client, store.id, files, strategy)
    click.echo(f"{store.id}: {len(files) - failed} files are found from now on, {failed} failed")
    if failed:
        sys.exit(1)


def _add_all(client: "openai.OpenAI", store: str, files: Sequence[Path], strategy: Any) -> int:
    """With a bar for both steps; how many failed, each said with its reason."""
    from rich.progress import Progress

    failed = 0
    with Progress(disable=not sys.stderr.isatty()) as progress:
        sending = progress.add_task("uploading", total=len(files))
        reading = progress.add_task("reading", total=len(files))
        for start in range(0, len(files), AT_ONCE):
            ids = []
            for path in files[start : start + AT_ONCE]:
                with path.open("rb") as file:
                    ids.append(client.files.create(file=(path.name, file), purpose="assistants").id)
                progress.advance(sending)
            batch = client.vector_stores.file_batches.create(store, file_ids=ids, chunking_strategy=strategy)
            failed += _followed(client, store, batch.id, lambda done: progress.update(reading, completed=done), start)
    return failed


def _followed(client: "openai.OpenAI", store: str, batch: str, told: Callable[[int], None], before: int) -> int:
    """Until a batch has ended; how many of it failed."""
    while True:
        answer = client.vector_stores.file_batches.with_raw_response.retrieve(batch, vector_store_id=store)
        state = answer.parse()
        told(before + state.file_counts.total - state.file_counts.in_progress)
        if state.status != "in_progress":
            break
        _wait(int(answer.headers.get("openai-poll-after-ms") or 500) / 1000)
    if state.file_counts.failed:
        for one in client.vector_stores.file_batches.list_files(batch, vector_store_id=store, filter="failed"):
            click.echo(one.last_error.message if one.last_error else f"{one.id} failed", err=True)
    return state.file_counts.failed


def _wait(seconds: float) -> None:
    import threading

    threading.Event().wait(seconds)


@command.command("search")
@click.argument("name")
@click.argument("query")
@click.option("-k", "count", type=click.IntRange(1, 50), default=5, show_default=True)
@click.option("--mode", type=click.Choice(MODES), default="hybrid", show_default=True)
@click.option("--rerank", help="A backend that serves rerank.")
@click.option("--json", "as_json", is_flag=True)
@options
def search(
    name: str,
    query: str,
    count: int,
    mode: str,
    rerank: str | None,
    as_json: bool,
    base_url: str | None,
    key: str | None,
) -> None:
    """The passages of the store NAME (or its id) that are nearest to QUERY."""
    with connected(base_url, key) as client:
        found = _searched(client, _id(client, name), query, count, mode, rerank)
    if as_json:
        click.echo(json.dumps([one.to_dict() for one in found], indent=2))
        return
    for one in found:
        page = f", page {one.page}" if getattr(one, "page", None) else ""
        click.echo(click.style(f"{one.score:.3f}  {one.filename}{page} — {getattr(one, 'heading', '')}", bold=True))
        click.echo(f"{one.content[0].text}\n")


@command.command("reindex")
@click.argument("name")
@options
def reindex(name: str, base_url: str | None, key: str | None) -> None:
    """Read everything in the store NAME (or its id) anew; what can be found stays until each file is done."""
    from rich.progress import Progress

    with connected(base_url, key) as client, Progress(disable=not sys.stderr.isatty()) as progress:
        store = _id(client, name)
        client.post(f"/vector_stores/{store}/reindex", cast_to=object)
        bar = progress.add_task("reading", total=None)
        while (counts := client.vector_stores.retrieve(store).file_counts).in_progress:
            progress.update(bar, total=counts.total, completed=counts.total - counts.in_progress)
            _wait(0.3)
    click.echo(f"{counts.completed} files are found, {counts.failed} failed")


@command.command("eval")
@click.argument("questions", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--collection", required=True, help="The store's name or id.")
@click.option("--mode", "modes", type=click.Choice(MODES), multiple=True, help="[default: all of them]")
@click.option("--rerank", help="A backend that serves rerank: a row more, of hybrid search with it.")
@click.option("--model", "models", multiple=True, help="Compare the answers of these models, too; name two.")
@click.option("--json", "as_json", is_flag=True)
@options
def evaluate(
    questions: Path,
    collection: str,
    modes: tuple[str, ...],
    rerank: str | None,
    models: tuple[str, ...],
    as_json: bool,
    base_url: str | None,
    key: str | None,
) -> None:
    """Judge searches by QUESTIONS: JSON lines of {"question", "answers": [{"source", "quote"}]}.

    A question is answered by a passage that holds one of its quotations. Answers of models are judged by the words of the quotation
    that they repeat, and by whether they cite a passage that holds it."""
    from retrieval.evaluation import read_questions

    try:
        asked = read_questions(questions.read_text())
    except ValueError as exc:
        stop(f"{questions}: {exc}")
    rows: dict[str, dict[str, Any]] = {}
    with connected(base_url, key) as client:
        store = _id(client, collection)
        for mode in modes or MODES:
            rows[mode] = _scores(client, store, asked, mode, None)
        if rerank:
            rows[f"hybrid + {rerank}"] = _scores(client, store, asked, "hybrid", rerank)
        compared = {model: _answers(client, model, asked) for model in models}
    if as_json:
        click.echo(json.dumps({"search": rows, "models": compared}, indent=2))
        return
    _print(rows, "search")
    if compared:
        _print(compared, "model")


def _scores(client: "openai.OpenAI", store: str, asked: Sequence[Any], mode: str, rerank: str | None) -> dict[str, Any]:
    from retrieval.evaluation import RECALL_AT, Hit, rank_of, score

    ranks, latencies_s = [], []
    for one in asked:
        began = time.perf_counter()
        found = _searched(client, store, one.question, max(RECALL_AT), mode, rerank)
        latencies_s.append(time.perf_counter() - began)
        ranks.append(rank_of(one, [Hit(match.filename, match.content[0].text) for match in found]))
    return score(ranks, latencies_s).as_json()


def _answers(client: "openai.OpenAI", model: str, asked: Sequence[Any]) -> dict[str, Any]:
    """How a model answers; a question that it refuses counts as nothing said."""
    import openai

    from retrieval.evaluation import Hit, answers, coverage, quantile

    covered, cited, latencies_s, failed = 0.0, 0, [], 0
    for one in asked:
        began = time.perf_counter()
        try:
            answer = client.chat.completions.create(
                model=model, messages=[{"role": "user", "content": one.question}], temperature=0, max_tokens=400,
                extra_body={"include": ["retrieval"]},
            )  # fmt: skip
        except openai.APIStatusError:
            failed += 1
            continue
        latencies_s.append(time.perf_counter() - began)
        message = answer.choices[0].message
        covered += coverage(one, message.content or "")
        passages = {p["number"]: p for p in (getattr(answer, "retrieval", None) or {}).get("passages", ())}
        numbers = _cited(message.content or "", passages)
        cited += any(answers(one, Hit(passages[n]["filename"], passages[n]["text"])) for n in numbers)
    count = len(asked)
    return {
        "questions": count, "words of the quotation": round(covered / count, 4), "cites it": round(cited / count, 4),
        "failed": failed, "p50_ms": round(quantile(latencies_s, 0.5) * 1000, 1),
    }  # fmt: skip


def _cited(text: str, passages: dict[int, Any]) -> set[int]:
    from retrieval.citations import markers

    return {marker.number for marker in markers(text, passages.keys())}


def _print(rows: dict[str, dict[str, Any]], first: str) -> None:
    from rich.console import Console
    from rich.table import Table

    columns = list(dict.fromkeys(name for row in rows.values() for name in row))
    table = Table(first, *columns)
    for name, row in rows.items():
        table.add_row(name, *(str(row.get(column, "")) for column in columns))
    Console(width=None if sys.stdout.isatty() else 160).print(table)


def _searched(client: "openai.OpenAI", store: str, query: str, count: int, mode: str, rerank: str | None) -> list[Any]:
    ranking: Any = {"ranker": rerank} if rerank else {}
    return client.vector_stores.search(
        store, query=query, max_num_results=count, ranking_options=ranking, extra_body={"retrieval": {"mode": mode}}
    ).data


def _files(path: Path) -> Iterator[Path]:
    if path.is_file():
        yield path
    else:
        inside = (one for one in sorted(path.rglob("*")) if one.is_file())
        yield from (one for one in inside if not any(part.startswith(".") for part in one.relative_to(path).parts))


def _named(client: "openai.OpenAI", name: str) -> Any:
    """A store by name or id; of several with a name, the newest."""
    return next((one for one in client.vector_stores.list(limit=100) if name in (one.name, one.id)), None)


def _id(client: "openai.OpenAI", name: str) -> str:
    store = _named(client, name)
    if store is None:
        stop(f"there is no collection '{name}' that this key may read; `chasqui collections list` shows them")
    return str(store.id)


@contextmanager
def connected(base_url: str | None, key: str | None) -> Iterator["openai.OpenAI"]:
    """What goes wrong ends the program with words."""
    if not key:
        stop("no key: set CHASQUI_API_KEY, or create one with `chasqui keys create --name me`")
    import openai

    base_url = base_url or f"http://127.0.0.1:{os.environ.get('CHASQUI_PORT') or 8000}/v1"
    with openai.OpenAI(base_url=base_url, api_key=key) as client:
        try:
            yield client
        except openai.APIConnectionError:
            stop(f"nothing answers at {base_url}; start it with `make run` or `chasqui serve`")
        except openai.APIError as exc:
            stop(str(getattr(exc, "message", None) or exc))
