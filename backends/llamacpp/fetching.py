"""A model file that is to come from elsewhere before its first worker can start: fetched once, for all who wait for it."""

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path

from backends.errors import ModelFileWrong
from backends.pulling.pull import Pull
from backends.pulling.shelf import Shelf
from backends.pulling.source import parse_source

log = logging.getLogger("chasqui.fleet")

SAID_EACH = 0.1
"""Of a download, in the log."""


class Fetching:
    """
    Args:
        model: the source, as the configuration has it.
    """

    def __init__(self, model: str, shelf: Shelf, *, pull: Callable[..., Pull] = Pull) -> None:
        self._model = model
        self._shelf = shelf
        self._pull = pull
        self.shown = parse_source(model).shown
        self._here, self._total = 0, 0
        self._said = 0.0
        self._wrong = ""
        self.under_way = False

    async def run(self) -> Path:
        """
        Returns:
            Where it is. It is not fetched again while it is there.

        Raises:
            ModelFileUnusable: it cannot be had; what has arrived is kept for the next time. A source that has something else than
                its digest says is not asked again, until the configuration names another one or somebody has pulled it.
        """
        source = parse_source(self._model)
        if (found := await asyncio.to_thread(self._shelf.find, source)) is not None:
            return found
        if self._wrong:
            raise ModelFileWrong(self._wrong)
        self.under_way = True
        try:
            return await self._fetched()
        except ModelFileWrong as exc:
            self._wrong = str(exc)
            raise
        finally:
            self.under_way = False

    async def _fetched(self) -> Path:
        self._here, self._total, self._said = 0, 0, 0.0
        log.info("fetching %s into %s", self.shown, self._shelf.folder)
        pull = self._pull(self._shelf, progress=lambda name: self._told, say=log.info)
        path = await pull.run(self._model, beside=True)
        log.info("%s is here: %s", self.shown, path)
        return path

    def _told(self, here: int, total: int | None) -> None:
        self._here, self._total = here, total or 0
        if total and here / total >= self._said + SAID_EACH:
            self._said = here / total
            log.info("%s", self)

    def __str__(self) -> str:
        if not self._total:
            return f"{self.shown} is being downloaded"
        return f"{self.shown} is being downloaded: {self._here / self._total:.0%} of {self._total / 1e9:.2f} GB"
