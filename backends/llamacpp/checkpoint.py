"""A sentence-transformers checkpoint as it lies in a folder -> what the converter takes. Checks what a wrong answer would hide."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from backends.errors import ModelFileUnusable
from backends.llamacpp.convert import Checkpoint, lines_of

KNOWN_MODULES = ("Transformer", "Pooling", "Normalize")
"""Of sentence-transformers; vectors are made unit length here in any case."""


def read_checkpoint(folder: Path) -> Checkpoint:
    """
    Raises:
        ModelFileUnusable: something is missing, or it would not give the vectors that it gives elsewhere.
    """
    if not folder.is_dir():
        raise ModelFileUnusable(f"there is no folder {folder}")
    try:
        _check(folder)
        return Checkpoint(
            config=_json(folder / "config.json"),
            pooling=_json(_pooling(folder)),
            vocabulary=_vocabulary(folder),
            weights=dict(_weights(folder)),
        )
    except OSError as exc:
        raise ModelFileUnusable(f"{exc.filename or folder} cannot be read: {exc.strerror}") from exc
    except RecursionError:
        raise ModelFileUnusable(
            f"{folder} is no checkpoint that can be read: JSON that is nested without end"
        ) from None
    except (ValueError, KeyError, TypeError, AttributeError) as exc:
        raise ModelFileUnusable(f"{folder} is no checkpoint that can be read: {exc}") from exc


def _json(path: Path) -> dict[str, Any]:
    found = json.loads(path.read_text("utf-8"))
    if not isinstance(found, dict):
        raise ModelFileUnusable(f"{path} is no JSON object")
    return found


def _check(folder: Path) -> None:
    modules = folder / "modules.json"
    if modules.is_file():
        kinds = [str(module["type"]).rpartition(".")[2] for module in json.loads(modules.read_text("utf-8"))]
        if others := [kind for kind in kinds if kind not in KNOWN_MODULES]:
            raise ModelFileUnusable(f"{folder} has a module that llama.cpp does not compute: {', '.join(others)}")
    tokenizer = folder / "tokenizer_config.json"
    if tokenizer.is_file() and not _json(tokenizer).get("do_lower_case", True):
        raise ModelFileUnusable(f"{folder} keeps upper and lower case apart, which llama.cpp's WordPiece does not")


def _pooling(folder: Path) -> Path:
    found = sorted(folder.glob("*_Pooling/config.json"))
    if not found:
        raise ModelFileUnusable(f"{folder} has no 1_Pooling/config.json: it is no sentence-transformers checkpoint")
    return found[0]


def _vocabulary(folder: Path) -> list[str]:
    if (folder / "vocab.txt").is_file():
        return lines_of((folder / "vocab.txt").read_bytes())
    tokenizer = folder / "tokenizer.json"
    if not tokenizer.is_file():
        raise ModelFileUnusable(f"{folder} has neither vocab.txt nor tokenizer.json")
    model = _json(tokenizer)["model"]
    if model.get("type", "WordPiece") != "WordPiece" or model.get("continuing_subword_prefix", "##") != "##":
        raise ModelFileUnusable(f"{tokenizer} is of type {model.get('type')}; only WordPiece can be converted")
    words = sorted(model["vocab"].items(), key=lambda item: item[1])
    if [number for _, number in words] != list(range(len(words))):
        raise ModelFileUnusable(f"{tokenizer} has gaps in its vocabulary, which vectors could be mistaken in")
    return [word for word, _ in words]


def _weights(folder: Path) -> Iterator[tuple[str, NDArray[Any]]]:
    index = folder / "model.safetensors.index.json"
    files = sorted(set(_json(index)["weight_map"].values())) if index.is_file() else ["model.safetensors"]
    for name in files:
        if Path(name).name != name:
            raise ModelFileUnusable(f"{index} names a file outside of its folder: {name}")
        if not (folder / name).is_file():
            hint = (
                "; files of PyTorch (.bin) are not read, because they may run code"
                if (folder / "pytorch_model.bin").is_file()
                else ""
            )
            raise ModelFileUnusable(f"{folder} has no {name}{hint}")
        yield from _tensors(folder / name)


def _tensors(path: Path) -> Iterator[tuple[str, NDArray[Any]]]:
    """numpy knows no bfloat16: it is the upper half of a float32."""
    from safetensors import SafetensorError, deserialize

    types = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "I64": np.int64, "I32": np.int32}
    try:
        found = deserialize(path.read_bytes())  # type: ignore[no-untyped-call]
    except SafetensorError as exc:
        raise ModelFileUnusable(f"{path} is damaged: {exc}") from exc
    for name, tensor in found:
        kind, data = tensor["dtype"], tensor["data"]
        if kind == "BF16":
            values = (np.frombuffer(data, np.uint16).astype(np.uint32) << 16).view(np.float32)
        elif kind in types:
            values = np.frombuffer(data, types[kind])
        else:
            raise ModelFileUnusable(f"{path} holds a tensor of type {kind}: {name}")
        yield name, values.reshape(tensor["shape"])
