"""`chasqui models suggest`."""

import json
from pathlib import Path
from typing import Annotated, Any, Literal

import rich_click as click
from pydantic import Field

from backends.machine import Machine
from backends.settings import Settings
from gateway.cli.common import stop

LIST = Path(__file__).with_name("suggested.yaml")
WORKER_BYTES = 700 << 20
"""Beside the file: a worker's own, and a context to talk in."""
SPARE = 0.85
"""Of this machine's memory: others want some, too."""
QUICK_BYTES = 3_000_000_000
"""What a processor without a card reads for each token, some times a second."""


class Suggestion(Settings):
    source: str
    serves: Literal["chat", "embeddings", "rerank"]
    size_bytes: Annotated[int, Field(gt=0)]
    licence: str
    words: str
    """What it is good for."""

    def fits(self, machine: Machine) -> str:
        """`card`, `memory` or nothing."""
        need = self.size_bytes + WORKER_BYTES
        if machine.computes_on_cards and need < machine.card_bytes * SPARE:
            return "card"
        return "memory" if need < machine.memory_bytes * SPARE else ""


@click.command("suggest")
@click.option("--all", "everything", is_flag=True, help="Those, too, that do not fit.")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def suggest(everything: bool, as_json: bool) -> None:
    """Which models fit this machine: chat, embeddings and rerank, with size and licence. Nothing is asked of the network."""
    from backends.machine import this_machine

    machine = this_machine()
    chosen = [one for one in suggestions() if everything or one.fits(machine)]
    if as_json:
        click.echo(json.dumps([told(one, machine) for one in chosen], indent=2))
        return
    from rich.table import Table

    from gateway.cli.models.common import wide_console

    console = wide_console()
    card = f", {machine.card_bytes / 1e9:.0f} GB on NVIDIA cards" if machine.card_bytes else ""
    if card and not machine.computes_on_cards:
        card += " (llama.cpp was not compiled for them: docs/how-to/models.md)"
    console.print(f"This machine: {machine.memory_bytes / 1e9:.0f} GB of memory{card}.")
    if not chosen:
        stop("None of the models on the list fits; `guide` and MiniLM are in the box. --all shows the list.")
    table = Table("serves", "source", "size", "licence", "", *(("fits",) if everything else ()))
    for one in chosen:
        row = [one.serves, one.source, f"{one.size_bytes / 1e9:.2f} GB", one.licence, one.words]
        table.add_row(*row, *((one.fits(machine) or "no",) if everything else ()))
    console.print(table)
    if (best := example(chosen, machine)) is not None:
        name = best.source.rpartition("/")[2]
        console.print(f"For example:\n  chasqui models pull {best.source}\n  chasqui models add {name}", soft_wrap=True)


def example(chosen: list[Suggestion], machine: Machine) -> Suggestion | None:
    """The best that answers at the pace of a reader; where nothing is so small, the smallest."""
    chats = sorted((one for one in chosen if one.serves == "chat"), key=lambda one: one.size_bytes)
    quick = [one for one in chats if one.fits(machine) == "card" or one.size_bytes <= QUICK_BYTES]
    return quick[-1] if quick else next(iter(chats), None)


def suggestions() -> list[Suggestion]:
    import yaml

    return [Suggestion.model_validate(one) for one in yaml.safe_load(LIST.read_text("utf-8"))]


def told(one: Suggestion, machine: Machine) -> dict[str, Any]:
    return one.model_dump() | {"fits": one.fits(machine) or None}
