"""Checkpoints of sentence-transformers, converted and run by llama.cpp, give the vectors that numpy gives for the same weights."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import save_file

from backends.errors import ModelFileUnusable
from backends.llamacpp.checkpoint import read_checkpoint
from backends.llamacpp.convert import SPECIAL, write_bert
from tests.backends.llamacpp.local import embedding, running

pytestmark = pytest.mark.anyio

WORDS = [
    *SPECIAL,
    *"the road runs over high bridge and stone mountain river wind carries message".split(),
    "##ing",
    "##s",
]
DIM, FEED, HEADS, LAYERS = 64, 128, 4, 3
TEXTS = ["the road runs over the high bridge", "wind carries the message", "stones", "river " * 40]


def weights(seed: int = 3) -> dict[str, NDArray[np.float32]]:
    """Random, but with layers that matter: a converter that swaps two of them is seen."""
    rng = np.random.default_rng(seed)

    def matrix(*shape: int, scale: float = 0.15) -> NDArray[np.float32]:
        return (rng.standard_normal(shape) * scale).astype(np.float32)

    found = {
        "embeddings.word_embeddings.weight": matrix(len(WORDS), DIM, scale=1.0),
        "embeddings.position_embeddings.weight": matrix(64, DIM, scale=0.3),
        "embeddings.token_type_embeddings.weight": matrix(2, DIM, scale=0.3),
        "embeddings.LayerNorm.weight": 1 + matrix(DIM),
        "embeddings.LayerNorm.bias": matrix(DIM),
    }
    shapes = {
        "attention.self.query": (DIM, DIM), "attention.self.key": (DIM, DIM), "attention.self.value": (DIM, DIM),
        "attention.output.dense": (DIM, DIM), "intermediate.dense": (FEED, DIM), "output.dense": (DIM, FEED),
    }  # fmt: skip
    for layer in range(LAYERS):
        for name, shape in shapes.items():
            found[f"encoder.layer.{layer}.{name}.weight"] = matrix(*shape)
            found[f"encoder.layer.{layer}.{name}.bias"] = matrix(shape[0])
        for name in ("attention.output.LayerNorm", "output.LayerNorm"):
            found[f"encoder.layer.{layer}.{name}.weight"] = 1 + matrix(DIM)
            found[f"encoder.layer.{layer}.{name}.bias"] = matrix(DIM)
    return found


def write(folder: Path, *, cls: bool = False, tokenizer_json: bool = False, **changes: Any) -> Path:
    (folder / "1_Pooling").mkdir(parents=True)
    config = {
        "model_type": "bert", "max_position_embeddings": 64, "hidden_size": DIM, "num_hidden_layers": LAYERS, "intermediate_size": FEED,
        "num_attention_heads": HEADS, "layer_norm_eps": 1e-12, "type_vocab_size": 2, "vocab_size": len(WORDS), "hidden_act": "gelu",
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config | changes))
    pooling = {"word_embedding_dimension": DIM, "pooling_mode_cls_token": cls, "pooling_mode_mean_tokens": not cls}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    if tokenizer_json:
        model = {"type": "WordPiece", "vocab": {word: number for number, word in reversed(list(enumerate(WORDS)))}}
        (folder / "tokenizer.json").write_text(json.dumps({"model": model}))
    else:
        (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    save_file(weights(), folder / "model.safetensors")
    return folder


def reference(text: str, *, cls: bool = False) -> NDArray[np.float64]:
    """BERT as its paper has it (Devlin et al., 2019), in float64; post-norm, exact GELU."""
    from math import erf

    w = {name: values.astype(np.float64) for name, values in weights().items()}
    pieces = [part for word in text.split() for part in ((word,) if word in WORDS else (word[:-1], "##s"))]
    tokens = [WORDS.index(piece) for piece in ("[CLS]", *pieces, "[SEP]")]

    def norm(x: NDArray[np.float64], name: str) -> NDArray[np.float64]:
        centred = x - x.mean(-1, keepdims=True)
        return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-12) * w[f"{name}.weight"] + w[f"{name}.bias"]

    def dense(x: NDArray[np.float64], name: str) -> NDArray[np.float64]:
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    length = len(tokens)
    x = w["embeddings.word_embeddings.weight"][tokens] + w["embeddings.position_embeddings.weight"][:length]
    x = norm(x + w["embeddings.token_type_embeddings.weight"][0], "embeddings.LayerNorm")
    gelu = np.vectorize(lambda value: value * 0.5 * (1 + erf(value / 2**0.5)))
    for layer in range(LAYERS):
        name = f"encoder.layer.{layer}"
        q, k, v = (
            dense(x, f"{name}.attention.self.{part}").reshape(length, HEADS, -1).swapaxes(0, 1)
            for part in ("query", "key", "value")
        )
        scores = q @ k.swapaxes(1, 2) / (DIM // HEADS) ** 0.5
        shares = np.exp(scores - scores.max(-1, keepdims=True))
        shares /= shares.sum(-1, keepdims=True)
        heard = (shares @ v).swapaxes(0, 1).reshape(length, DIM)
        x = norm(x + dense(heard, f"{name}.attention.output.dense"), f"{name}.attention.output.LayerNorm")
        x = norm(
            x + dense(gelu(dense(x, f"{name}.intermediate.dense")), f"{name}.output.dense"), f"{name}.output.LayerNorm"
        )
    pooled: NDArray[np.float64] = x[0] if cls else x.mean(0)
    return pooled / np.linalg.norm(pooled)


@pytest.mark.parametrize(
    ("kind", "least", "options"),
    [
        ("f32", 0.9999, {}),
        ("f32", 0.9999, {"cls": True, "tokenizer_json": True}),
        ("f16", 0.9995, {}),
        ("q8_0", 0.99, {}),
    ],
)
async def test_the_vectors_are_those_of_the_weights(
    tmp_path: Path, kind: str, least: float, options: dict[str, bool]
) -> None:
    checkpoint = read_checkpoint(write(tmp_path / "tiny", **options))  # type: ignore[arg-type]
    path = write_bert(checkpoint, tmp_path / "tiny.gguf", name="tiny", kind=kind)
    async with running(path, serves="embeddings", context_tokens=64) as backend:
        data = json.loads((await backend.complete(embedding(TEXTS))).body)["data"]
    for text, item in zip(TEXTS, data, strict=True):
        assert float(np.dot(item["embedding"], reference(text, cls=options.get("cls", False)))) >= least, text


def test_smaller_kinds_are_smaller(tmp_path: Path) -> None:
    checkpoint = read_checkpoint(write(tmp_path / "tiny"))
    sizes = [
        write_bert(checkpoint, tmp_path / kind, name="tiny", kind=kind).stat().st_size
        for kind in ("f32", "f16", "q8_0")
    ]
    assert sizes == sorted(sizes, reverse=True)


def test_weights_in_bfloat16_and_in_several_files_are_read(tmp_path: Path) -> None:
    folder = write(tmp_path / "tiny")
    whole = read_checkpoint(folder).weights
    (folder / "model.safetensors").unlink()
    names = sorted(whole)
    for number, part in enumerate((names[::2], names[1::2])):
        _save_bfloat16({name: whole[name] for name in part}, folder / f"model-{number}.safetensors")
    index = {name: f"model-{place % 2}.safetensors" for place, name in enumerate(names)}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    halved = read_checkpoint(folder).weights
    assert set(halved) == set(whole)
    for name, values in halved.items():
        assert values.shape == whole[name].shape
        assert np.allclose(values, whole[name], rtol=2**-7)


def _save_bfloat16(tensors: dict[str, Any], path: Path) -> None:
    """The format by hand: numpy knows no bfloat16, which is the upper half of a float32."""
    head, data = {}, b""
    for name, values in tensors.items():
        upper = (values.view(np.uint32) >> 16).astype(np.uint16).tobytes()
        head[name] = {"dtype": "BF16", "shape": values.shape, "data_offsets": [len(data), len(data) + len(upper)]}
        data += upper
    told = json.dumps(head).encode()
    path.write_bytes(len(told).to_bytes(8, "little") + told + data)


def _with_gap() -> bytes:
    vocab = {word: number for number, word in enumerate(WORDS)} | {WORDS[-1]: len(WORDS) + 7}
    return json.dumps({"model": {"type": "WordPiece", "vocab": vocab}}).encode()


def test_weights_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    folder = write(tmp_path / "tiny")
    broken = weights()
    broken["encoder.layer.1.output.dense.weight"][3, 4] = np.nan
    save_file(broken, folder / "model.safetensors")
    with pytest.raises(ValueError, match=r"blk\.1\.ffn_down\.weight holds numbers that are not finite"):
        write_bert(read_checkpoint(folder), tmp_path / "x.gguf", name="x")


def test_what_would_give_other_vectors_is_refused(tmp_path: Path) -> None:
    def refused(name: str, words: str, **changes: Any) -> None:
        folder = write(tmp_path / name, **{key: value for key, value in changes.items() if "." not in key})
        for file, content in changes.items():
            if "." in file:
                (folder / file).write_bytes(content) if content is not None else (folder / file).unlink()
        with pytest.raises((ModelFileUnusable, ValueError), match=words):
            write_bert(read_checkpoint(folder), tmp_path / "x.gguf", name="x")

    refused("kind", "type 'roberta'", model_type="roberta")
    refused("positions", "other positions", position_embedding_type="relative_key")
    refused("activation", "activations", hidden_act="relu")
    refused("short", r"token_embd\.weight has the shape", vocab_size=3)
    refused("eps", "layer_norm_eps: None", layer_norm_eps=None)
    refused("words", "hidden_size: '64'", hidden_size="64")
    refused("negative", "hidden_size: -1", hidden_size=-1)
    refused("endless", "vocab_size: 1000000000", vocab_size=10**9)
    refused("heads", "5 heads cannot share", num_attention_heads=5)
    refused("more-layers", "lacks 16 of its tensors", num_hidden_layers=LAYERS + 1)
    refused("fewer-layers", "16 tensors that its config.json does not know", num_hidden_layers=LAYERS - 1)
    refused("window", r"position_embd\.weight has the shape \(64, 64\)", max_position_embeddings=512)
    refused("deep", "nested without end", **{"config.json": b"[" * 100_000})
    refused("no-files", "lacks 53 of its tensors", **{"model.safetensors.index.json": b'{"weight_map": {}}'})
    refused("twice", "a line twice", **{"vocab.txt": "\n".join([*WORDS[:-1], "road"]).encode()})
    refused("gaps", "has gaps", **{"vocab.txt": None, "tokenizer.json": _with_gap()})
    refused("cased", "upper and lower case", **{"tokenizer_config.json": b'{"do_lower_case": false}'})
    refused("dense", "does not compute: Dense", **{"modules.json": b'[{"type": "sentence_transformers.models.Dense"}]'})
    refused("lists", "no JSON object", **{"config.json": b"[]"})
    refused("torn", "no checkpoint that can be read", **{"config.json": b"{"})
    refused("damaged", "damaged", **{"model.safetensors": b"x" * 100})
    refused("pickled", "may run code", **{"model.safetensors": None, "pytorch_model.bin": b""})
    refused("bpe", "only WordPiece", **{"vocab.txt": None, "tokenizer.json": b'{"model": {"type": "BPE"}}'})
    refused("no-words", "neither vocab.txt", **{"vocab.txt": None})
    refused("outside", "outside", **{"model.safetensors.index.json": b'{"weight_map": {"a": "../a.safetensors"}}'})
    with pytest.raises(ModelFileUnusable, match="no folder"):
        read_checkpoint(tmp_path / "gone")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelFileUnusable, match=r"config\.json"):
        read_checkpoint(tmp_path / "empty")
