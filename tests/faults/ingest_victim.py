"""A process that keeps a collection in step with files that change, until it is killed: `python -m tests.faults.ingest_victim
FOLDER SEED`. It changes the files itself: each is version A or B, whole, or not there.
"""

import asyncio
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

from gateway.database import open_database
from retrieval import view
from retrieval.leases import Leases
from retrieval.settings import ChunkSettings, CollectionSettings
from retrieval.sources import Declared
from tests.retrieval.shelf import Shelf

DOCUMENTS = 4
PARAGRAPHS = 25


def settings() -> CollectionSettings:
    chunk = ChunkSettings(max_tokens=64, overlap_tokens=0)
    return CollectionSettings(name="docs", embed="words", paths=["library/*.md"], chunk=chunk)


def text_of(document: int, version: str) -> str:
    lines = [f"# Document {document}"]
    for number in range(PARAGRAPHS):
        lines.append(f"Paragraph {number} of version{version} in document{document} " + "and more " * 24)
    return "\n\n".join(lines)


def write(folder: Path, document: int, version: str) -> None:
    part = folder / f"{document}.part"
    part.write_text(text_of(document, version))
    part.replace(folder / f"{document}.md")


async def opened(folder: Path, *, clock: Callable[[], float] | None = None) -> tuple[Shelf, Declared]:
    view.EXACT_UPTO = 40  # a graph, so that there is something to save
    shelf = Shelf(await open_database(f"sqlite:///{folder}/chasqui.db"), folder, declared=[settings()])
    leases = Leases(shelf.database)
    return shelf, Declared(settings(), shelf.catalog, leases, root=folder, wake=shelf.library.wanted.set)


async def main(folder: Path, seed: int) -> None:
    random = np.random.default_rng(seed)
    shelf, declared = await opened(folder)
    building = asyncio.create_task(shelf.builder.run())
    await declared.scan()
    print("ready", flush=True)
    while not building.done():
        document = int(random.integers(DOCUMENTS))
        match int(random.integers(8)):
            case 0:
                (folder / "library" / f"{document}.md").unlink(missing_ok=True)
            case 1:
                stored = await shelf.catalog.declare("docs", "words")
                await shelf.library.view(stored, shelf.embedder)
                await shelf.library.save()
            case _:
                write(folder / "library", document, "AB"[int(random.integers(2))])
        await declared.scan()
        await asyncio.sleep(float(random.random()) * 0.1)


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), int(sys.argv[2])))
