"""Which index a collection has, and where one that took long to make is kept: files that may be deleted at any time.

A saved index is two files of a generation (the graph, and whose keys are whose) and a manifest that names them with their
digests. The manifest is written last, so that it never names what is not whole.
"""

import hashlib
import json
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from backends.durable import sync_folder
from retrieval.index import EXACT_UPTO, Keys, VectorIndex
from retrieval.index_exact import ExactIndex
from retrieval.index_usearch import UsearchIndex
from retrieval.tables import DocumentId

log = logging.getLogger("chasqui.collections")

FORMAT = 2


def make_index(expected: int) -> VectorIndex:
    return ExactIndex() if expected <= EXACT_UPTO else UsearchIndex()


@dataclass(frozen=True, slots=True)
class Saved:
    index: UsearchIndex
    keys: dict[DocumentId, Keys]
    prints: dict[DocumentId, int]
    """What each said when it was saved, see `documents.Live`."""


class IndexFiles:
    """Of one collection.

    Args:
        folder: made where it is missing.
        name: of the collection, as a part of file names.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self._folder = folder
        self.name = self._name = name
        self._manifest = folder / f"{name}.json"

    def save(
        self,
        index: UsearchIndex,
        keys: Mapping[DocumentId, Keys],
        prints: Mapping[DocumentId, int],
        *,
        embedding: str,
        dimensions: int,
    ) -> None:
        """
        Raises:
            OSError: nothing has changed then.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        generation = self._generation() + 1
        graph, owners = (self._folder / f"{self._name}.{generation}.{kind}" for kind in ("usearch", "npz"))
        about: dict[str, Any] = {
            "format": FORMAT, "generation": generation, "embedding": embedding, "dimensions": dimensions,
            "count": len(index), "files": {},
        }  # fmt: skip
        documents = np.repeat(
            np.fromiter(keys, np.int64, len(keys)), np.fromiter(map(len, keys.values()), np.int64, len(keys))
        )
        of_them = np.concatenate(list(keys.values())) if keys else np.zeros(0, np.uint64)
        about["files"][graph.name] = _written(graph, index.save)
        said = np.fromiter((prints[id_] for id_ in keys), np.int64, len(keys))
        arrays = {"documents": documents, "keys": of_them, "prints": said}
        about["files"][owners.name] = _written(owners, lambda path: _save_arrays(path, arrays))
        _written(self._manifest, lambda path: path.write_text(json.dumps(about)))
        sync_folder(self._folder)
        self._clean(but=about["files"])

    def load(self, *, embedding: str) -> Saved | None:
        """None: there is none, or none that can be used; why is in the log."""
        try:
            about = json.loads(self._manifest.read_text())
            if about["format"] != FORMAT or about["embedding"] != embedding:
                return None
            paths = [self._folder / name for name in about["files"]]
            for path, digest in zip(paths, about["files"].values(), strict=True):
                if _digest(path) != digest:
                    raise ValueError(f"{path.name} is not what was written")
            graph, owners = paths
            index = UsearchIndex.load(graph, about["dimensions"])
            with np.load(owners) as arrays:
                documents, keys, prints = arrays["documents"], arrays["keys"], arrays["prints"]
            if len(index) != about["count"] or len(keys) != about["count"]:
                raise ValueError("it does not hold what it says")
            return _joined(index, documents, keys.astype(np.uint64), prints)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, RuntimeError, LookupError, TypeError, AttributeError) as exc:
            log.warning("the saved index %s cannot be used, it is made anew: %s", self._manifest, exc)
            return None

    def delete(self) -> None:
        self._manifest.unlink(missing_ok=True)
        self._clean(but={})

    def _generation(self) -> int:
        """The newest there is any sign of: the name of a file that is in use is never written again."""
        numbers = [path.name.split(".")[-2] for path in self._folder.glob(f"{self._name}.*.usearch*")]
        return max((int(number) for number in numbers if number.isdigit()), default=0)

    def _clean(self, *, but: Mapping[str, str]) -> None:
        for path in self._folder.glob(f"{self._name}.*"):
            if path.name not in but and path != self._manifest:
                path.unlink(missing_ok=True)


def _joined(index: UsearchIndex, documents: Any, keys: Keys, prints: Any) -> Saved:
    """
    Raises:
        ValueError: the arrays do not belong together.
    """
    borders = np.flatnonzero(np.diff(documents)) + 1
    groups = np.split(keys, borders) if len(keys) else []
    firsts = documents[np.concatenate([[0], borders])].tolist() if len(keys) else []
    own = dict(zip(firsts, groups, strict=True))
    return Saved(index, own, dict(zip(firsts, prints.tolist(), strict=True)))


def _written(path: Path, write: Any) -> str:
    """Whole and on the disk, or not there at all; its digest."""
    part = path.with_name(f"{path.name}.tmp")
    try:
        try:
            write(part)
        except RuntimeError as exc:  # as usearch calls a full disk
            raise OSError(str(exc)) from exc
        with part.open("rb") as file:
            os.fsync(file.fileno())
        digest = _digest(part)
        part.replace(path)
        return digest
    finally:
        part.unlink(missing_ok=True)


def _save_arrays(path: Path, arrays: Mapping[str, Any]) -> None:
    with path.open("wb") as file:  # by name, numpy would add an extension
        np.savez(file, **arrays)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
