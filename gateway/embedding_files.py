"""The story of a file whose every sentence becomes a vector: read, cut, embedded, packed into a zip that can be fetched again."""

import asyncio
import hashlib
import io
import time
import zipfile
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from backends import sse
from backends.base import Backend
from backends.errors import BackendError, InvalidRequest
from backends.wire import Body
from gateway.bookkeeping import Bookkeeping
from gateway.embeddings import Embeddings, shared_by
from gateway.errors import GatewayStopping, StoreUnavailable, explain
from gateway.exchange import Exchange
from gateway.file_shelf import FileShelf
from gateway.outlet import Outlet
from gateway.upload import Upload
from policies.errors import NotThere, PolicyError
from policies.roles import Caller
from policies.routing import Station
from retrieval.embedding import Embedded
from retrieval.errors import RetrievalError
from retrieval.frames import ORIENTATIONS
from retrieval.parsers import Parsers
from retrieval.sentences import sentences

MAX_SENTENCES = 50_000
MAX_NUMBERS = 20_000_000
"""Of all vectors of a file."""

PATH = "/v1/embeddings/files"
COLUMNS = ("sentence", "tokens", "embedding")
PARQUET = "parquet"

FAILURES = (BackendError, PolicyError, RetrievalError, StoreUnavailable)


class EmbeddingFiles:
    def __init__(
        self,
        embeddings: Embeddings,
        backends: Mapping[str, Backend],
        shelf: FileShelf,
        books: Bookkeeping,
        parsers: Parsers,
        *,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._embeddings = embeddings
        self._backends = backends
        self.shelf = shelf
        self._books = books
        self._parsers = parsers
        self._clock = clock
        self._packing = asyncio.Semaphore(1)
        """The memory of one of them at a time."""

    async def answer(self, exchange: Exchange, upload: Upload, outlet: Outlet, *, events: bool) -> None:
        """
        Args:
            events: the client wants to see how far it is, and fetches the zip afterwards.

        Raises:
            PolicyError, BackendError, RetrievalError, GatewayError: before the first byte.
        """
        assert exchange.caller is not None
        exchange.model, form = read_fields(upload)
        use = self._embeddings.use_of(exchange)
        if events and not use.write:
            raise InvalidRequest("with no-store there is nothing to fetch afterwards.", param="cache-control")
        owner = self._owner(exchange.caller)
        with self._books.of(exchange, outlet, b""):
            target = await self._embeddings.admit(exchange)
            first = target.stations[0]
            id_ = await self._known_as(upload, exchange.model, form, first) if use.read else ""
            made = await asyncio.to_thread(self.shelf.get, owner, id_) if id_ else None
            if made is not None:
                exchange.cache = "hit"
                await self._deliver(exchange, id_, made, outlet, events=events)
            elif events:
                await self._show(exchange, upload, form, owner, outlet)
            else:
                id_, made = await self._make(exchange, upload, form, owner, lambda done, of: None)
                await self._deliver(exchange, id_, made, outlet, events=False)

    async def _known_as(self, upload: Upload, model: str, form: str, station: Station) -> str:
        """Empty where nobody can tell: another station may answer."""
        try:
            return id_of(upload, model, form, station, await self._backends[station.backend].identity())
        except BackendError:
            return ""

    def fetch(self, caller: Caller, id_: str) -> bytes:
        """
        Raises:
            NotThere: nobody of this caller's has made it, or it has gone since.
        """
        made = self.shelf.get(self._owner(caller), id_)
        if made is None:
            raise NotThere("file of embeddings", id_)
        return made

    def _owner(self, caller: Caller) -> str:
        return shared_by(self._embeddings.settings.sharing, caller)

    async def _make(
        self, exchange: Exchange, upload: Upload, form: str, owner: str, told: Callable[[int, int], None]
    ) -> tuple[str, bytes]:
        """Its id and itself."""
        text = await self._parsers.text(upload.name, upload.data)
        texts = await asyncio.to_thread(sentences, text)
        if not 1 <= len(texts) <= MAX_SENTENCES:
            raise InvalidRequest(
                f"the file has {len(texts)} sentences; 1 to {MAX_SENTENCES} can be embedded.", param="file"
            )
        body = Body(msgspec.json.encode({"model": exchange.model}))
        embedded = await self._embeddings.made(
            exchange, body, texts, admitted=True, progress=lambda done: told(min(done, len(texts)), len(texts))
        )
        if (numbers := len(texts) * len(embedded.vectors[0])) > MAX_NUMBERS:
            raise InvalidRequest(f"{numbers} numbers are too many for one file; {MAX_NUMBERS} at most.", param="file")
        # Under the name of the model that has made it, which need not be the one that was asked first.
        station = Station(exchange.backend or "", exchange.backend_model or "")
        id_ = id_of(upload, exchange.model, form, station, await self._backends[station.backend].identity())
        async with self._packing:
            made = await asyncio.to_thread(packed, texts, embedded, form, exchange.model)
        if self._embeddings.use_of(exchange).write:
            await asyncio.to_thread(self.shelf.put, owner, id_, made)
        return id_, made

    async def _deliver(self, exchange: Exchange, id_: str, made: bytes, outlet: Outlet, *, events: bool) -> None:
        exchange.outcome = "complete"
        self._books.close(exchange)
        self._books.first_byte(exchange, self._clock())
        if events:
            await outlet.start({"content-type": "text/event-stream", "cache-control": "no-store"})
            await outlet.piece(ended(id_, made) + sse.DONE, last=True)
            return
        name = f'attachment; filename="{id_}.zip"'
        await outlet.whole(made, {"content-type": "application/zip", "content-disposition": name})

    async def _show(self, exchange: Exchange, upload: Upload, form: str, owner: str, outlet: Outlet) -> None:
        """Progress as events. What goes wrong before the first of them is a status, as everywhere."""
        steps: asyncio.Queue[tuple[int, int] | None] = asyncio.Queue()
        work = asyncio.create_task(
            self._make(exchange, upload, form, owner, lambda done, of: steps.put_nowait((done, of)))
        )
        work.add_done_callback(lambda _: steps.put_nowait(None))
        try:
            while (step := await steps.get()) is not None:
                await self._open(exchange, outlet)
                told = {"object": "embedding.file.progress", "done": step[0], "total": step[1]}
                await outlet.piece(sse.encode(msgspec.json.encode(told)), last=False)
            id_, made = await work
            exchange.outcome = "complete"
            self._books.close(exchange)
            await self._open(exchange, outlet)
            await outlet.piece(ended(id_, made) + sse.DONE, last=True)
        except FAILURES as failure:
            if not exchange.head_sent:
                raise
            await self._broken(exchange, failure, outlet)
        except asyncio.CancelledError:
            if exchange.head_sent and not outlet.gone:
                await self._broken(exchange, GatewayStopping(), outlet)
            raise
        finally:
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)

    async def _open(self, exchange: Exchange, outlet: Outlet) -> None:
        """The head of a stream, once."""
        if not exchange.head_sent:
            self._books.first_byte(exchange, self._clock())
            await outlet.start({"content-type": "text/event-stream", "cache-control": "no-store"})

    async def _broken(self, exchange: Exchange, failure: Exception, outlet: Outlet) -> None:
        told = explain(failure)
        exchange.outcome, exchange.error = "broken", told.meaning.code
        self._books.close(exchange)
        await outlet.piece(sse.encode(msgspec.json.encode(told.body)), last=True)


def read_fields(upload: Upload) -> tuple[str, str]:
    """The model and the form of the result.

    Raises:
        InvalidRequest
    """
    for name in upload.fields.keys() - {"model", "json_format", "user"}:
        raise InvalidRequest(f"'{name[:40]}' is no field of this form.", param=name[:40])
    model, form = upload.fields.get("model", ""), upload.fields.get("json_format", "records")
    if not model:
        raise InvalidRequest("Missing required parameter: 'model'.", param="model", code="missing_required_parameter")
    if form not in (*ORIENTATIONS, PARQUET):
        raise InvalidRequest(f"'json_format' is one of {', '.join((*ORIENTATIONS, PARQUET))}.", param="json_format")
    if form == PARQUET:
        try:
            import pyarrow  # noqa: F401
        except ImportError:
            raise InvalidRequest(
                "parquet needs an extra that is not installed here: pip install 'chasqui[parquet]'.",
                param="json_format",
            ) from None
    return model, form


def id_of(upload: Upload, model: str, form: str, station: Station, identity: str) -> str:
    """The same for the same file, form, and model behind the name."""
    digest = hashlib.sha256(hashlib.sha256(upload.data).digest())
    for part in (upload.name.rpartition(".")[2], model, form, station.backend, station.model, identity):
        digest.update(part.encode() + b"\0")
    return f"emf_{digest.hexdigest()[:32]}"


def packed(texts: list[str], embedded: Embedded, form: str, model: str) -> bytes:
    """A zip of the vectors and of a word about them. The file's name is the client's own affair."""
    plain = form == PARQUET
    rows = [
        [text, tokens, vector.tolist() if plain else msgspec.Raw(msgspec.json.encode(vector.tolist()))]
        for text, tokens, vector in zip(texts, embedded.tokens, embedded.vectors, strict=True)
    ]
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED, compresslevel=3) as archive:
        if form == PARQUET:
            archive.writestr("embeddings.parquet", _parquet(rows))
        else:
            archive.writestr("embeddings.json", msgspec.json.encode(ORIENTATIONS[form](COLUMNS, rows)))
        dimensions = len(embedded.vectors[0])
        about = {"model": model, "json_format": form, "sentences": len(texts), "dimensions": dimensions}
        archive.writestr("about.json", msgspec.json.encode(about))
    return out.getvalue()


def _parquet(rows: list[list[Any]]) -> bytes:
    import pyarrow
    from pyarrow import parquet

    columns = {name: [row[place] for row in rows] for place, name in enumerate(COLUMNS)}
    out = io.BytesIO()
    parquet.write_table(pyarrow.table(columns), out)
    return out.getvalue()


def ended(id_: str, made: bytes) -> bytes:
    told = {"object": "embedding.file", "id": id_, "url": f"{PATH}/{id_}", "bytes": len(made)}
    return sse.encode(msgspec.json.encode(told))
