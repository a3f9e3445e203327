"""BERT checkpoints become GGUF files; the real MiniLM knows what is near to what."""

import base64
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import save

from backends.errors import UpstreamRefused
from backends.llamacpp.backend import LocalBackend
from backends.llamacpp.convert import LAYER_PARTS, SPECIAL, Checkpoint, write_bert
from tests.backends.llamacpp.local import chat, embedding, running

pytestmark = pytest.mark.anyio

WORDS = [*SPECIAL, "[unused1]", "road", "##s", "##"]
CONFIG = {
    "model_type": "bert",
    "max_position_embeddings": 64,
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "intermediate_size": 64,
    "num_attention_heads": 2,
    "layer_norm_eps": 1e-12,
    "type_vocab_size": 2,
    "vocab_size": len(WORDS),
}
MEAN = {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}


def tensors() -> dict[str, NDArray[Any]]:
    def zeros(*shape: int) -> NDArray[np.float16]:
        return np.zeros(shape, np.float16)

    found: dict[str, NDArray[Any]] = {
        "embeddings.word_embeddings.weight": zeros(len(WORDS), 32),
        "embeddings.position_embeddings.weight": zeros(64, 32),
        "embeddings.token_type_embeddings.weight": zeros(2, 32),
        "embeddings.LayerNorm.weight": zeros(32),
        "embeddings.LayerNorm.bias": zeros(32),
        "embeddings.position_ids": np.arange(64)[None],
        "pooler.dense.weight": zeros(32, 32),
    }
    for part, shape in (
        *((f"attention.{name}", (32, 32)) for name in ("self.query", "self.key", "self.value", "output.dense")),
        ("intermediate.dense", (64, 32)),
        ("output.dense", (32, 64)),
    ):
        found[f"encoder.layer.0.{part}.weight"] = zeros(*shape)
        found[f"encoder.layer.0.{part}.bias"] = zeros(shape[0])
    for part in ("attention.output.LayerNorm", "output.LayerNorm"):
        found |= {f"encoder.layer.0.{part}.{kind}": zeros(32) for kind in ("weight", "bias")}
    return found


def checkpoint(**changes: Any) -> Checkpoint:
    files = {
        "config.json": json.dumps(changes.get("config", CONFIG)).encode(),
        "1_Pooling/config.json": json.dumps(changes.get("pooling", MEAN)).encode(),
        "vocab.txt": ("\n".join(changes.get("words", WORDS)) + "\n").encode(),
        "model.safetensors": save(changes.get("weights", tensors())),
    }
    return Checkpoint.read(files)


def written(path: Path, **changes: Any) -> tuple[dict[str, Any], dict[str, str]]:
    """Metadata and the types of the tensors of what is written."""
    reader = gguf.GGUFReader(write_bert(checkpoint(**changes), path, name="tiny"))
    fields = {name: field.contents() for name, field in reader.fields.items()}
    kinds = {tensor.name: tensor.tensor_type.name for tensor in reader.tensors}
    reader.data._mmap.close()
    return fields, kinds


def test_metadata_and_vocabulary_are_written_as_llama_cpp_wants_them(tmp_path: Path) -> None:
    fields, _ = written(tmp_path / "m.gguf")
    assert (fields["general.architecture"], fields["general.name"]) == ("bert", "tiny")
    assert (fields["bert.context_length"], fields["bert.embedding_length"], fields["bert.block_count"]) == (64, 32, 1)
    assert (fields["bert.attention.causal"], fields["bert.pooling_type"]) == (False, int(gguf.PoolingType.MEAN))
    assert fields["tokenizer.ggml.tokens"] == [*SPECIAL, "[unused1]", "▁road", "s", ""]
    control, normal = int(gguf.TokenType.CONTROL), int(gguf.TokenType.NORMAL)
    assert fields["tokenizer.ggml.token_type"] == [control] * 6 + [normal] * 3
    assert [fields[f"tokenizer.ggml.{name}_token_id"] for name in ("padding", "unknown", "bos", "eos", "mask")] == [
        0,
        1,
        2,
        3,
        4,
    ]


def test_matrices_become_q8_and_vectors_and_positions_stay_floats(tmp_path: Path) -> None:
    prefixed = {f"bert.{name}": values for name, values in tensors().items()}
    for number, weights in enumerate((tensors(), prefixed)):
        _, kinds = written(tmp_path / f"{number}.gguf", weights=weights)
        assert kinds == {
            "token_embd.weight": "Q8_0",
            "position_embd.weight": "F32",
            "token_types.weight": "F32",
            "token_embd_norm.weight": "F32",
            "token_embd_norm.bias": "F32",
            **{
                f"blk.0.{part}.{kind}": "Q8_0" if kind == "weight" and not part.endswith("norm") else "F32"
                for part in LAYER_PARTS.values()
                for kind in ("weight", "bias")
            },
        }


def test_pooling_by_the_first_token_is_known_too(tmp_path: Path) -> None:
    fields, _ = written(tmp_path / "m.gguf", pooling={"pooling_mode_cls_token": True})
    assert fields["bert.pooling_type"] == int(gguf.PoolingType.CLS)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"config": CONFIG | {"model_type": "t5"}}, "type 't5'"),
        ({"pooling": {"pooling_mode_max_tokens": True}}, "pools in a way"),
        ({"words": ["a"]}, "PAD"),
        ({"weights": tensors() | {"lstm.weight": np.zeros(2)}}, "does not have: lstm.weight"),
        (
            {"weights": tensors() | {"encoder.layer.0.attention.self.distance_embedding.weight": np.zeros(2)}},
            "distance_embedding",
        ),
    ],
)
def test_what_is_no_known_bert_is_refused(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        write_bert(checkpoint(**changes), tmp_path / "m.gguf", name="x")


def test_a_word_is_a_line_whatever_else_it_holds() -> None:
    words = [*SPECIAL, "a\u2028b", "\x85", "c"]
    assert checkpoint(words=words).vocabulary == words


# The real model


@pytest.fixture(scope="module")
async def minilm(anyio_backend: str, minilm_gguf: Path) -> AsyncIterator[LocalBackend]:
    async with running(minilm_gguf, serves="embeddings", context_tokens=4096) as backend:
        yield backend


async def vectors(backend: LocalBackend, inputs: object, **fields: Any) -> NDArray[np.float32]:
    data = json.loads((await backend.complete(embedding(inputs, **fields))).body)["data"]
    assert [item["index"] for item in data] == list(range(len(data)))
    return np.array([item["embedding"] for item in data], np.float32)


async def test_the_same_matter_in_other_words_is_nearer_than_another_matter(minilm: LocalBackend) -> None:
    asked = ["How do I reset my password?", "password reset instructions", "The weather is sunny today"]
    reset, instructions, weather = await vectors(minilm, asked)
    assert reset @ instructions > 0.6
    assert max(reset @ weather, instructions @ weather) < 0.3


async def test_vectors_have_unit_length_and_do_not_depend_on_their_neighbours(minilm: LocalBackend) -> None:
    together = await vectors(minilm, ["one road", "", "another, much longer road over the bridge"])
    assert together.shape == (3, 384)
    assert np.allclose(np.linalg.norm(together, axis=1), 1, atol=1e-5)
    assert np.allclose(together[0], (await vectors(minilm, "one road"))[0], atol=1e-6)


async def test_base64_holds_the_same_numbers(minilm: LocalBackend) -> None:
    body = json.loads((await minilm.complete(embedding("road", encoding_format="base64"))).body)
    numbers = np.frombuffer(base64.b64decode(body["data"][0]["embedding"]), "<f4")
    assert np.allclose(numbers, (await vectors(minilm, "road"))[0])


async def test_usage_counts_every_input_with_its_special_tokens(minilm: LocalBackend) -> None:
    asked = embedding(["road", "the long road"])
    answer = await minilm.complete(asked)
    usage = json.loads(answer.body)["usage"]
    assert usage == {"prompt_tokens": 8, "total_tokens": 8, "prompt_tokens_by_input": [3, 5]}
    size = await minilm.count(asked)
    assert (size.prompt_tokens, size.context_tokens) == (8, 512)
    assert await minilm.count_texts(["road", "the long road"]) == [1, 3]


async def test_token_ids_are_embedded_as_they_are(minilm: LocalBackend) -> None:
    assert np.allclose(await vectors(minilm, [101, 2346, 102]), await vectors(minilm, "road"), atol=1e-6)


@pytest.mark.parametrize(
    ("inputs", "fields", "param", "code"),
    [
        ("road " * 511, {}, "input", "context_length_exceeded"),
        (["fits", "road " * 600], {}, "input", "context_length_exceeded"),
        ([101] * 513, {}, "input", "context_length_exceeded"),
        ("road", {"dimensions": 128}, "dimensions", "invalid_value"),
        ("road", {"encoding_format": "hex"}, "encoding_format", "invalid_value"),
        ([], {}, "input", "invalid_value"),
        ([10**6], {}, "input", "invalid_value"),
    ],
)
async def test_inputs_over_the_window_and_other_wishes_are_refused(
    minilm: LocalBackend, inputs: object, fields: dict[str, Any], param: str, code: str
) -> None:
    with pytest.raises(UpstreamRefused) as caught:
        await minilm.complete(embedding(inputs, **fields))
    assert (caught.value.status, caught.value.param, caught.value.code) == (400, param, code)


async def test_an_input_that_just_fits_is_embedded(minilm: LocalBackend) -> None:
    assert (await vectors(minilm, "road " * 510, dimensions=384)).shape == (1, 384)


async def test_an_embedding_model_does_not_chat(minilm: LocalBackend) -> None:
    with pytest.raises(UpstreamRefused, match="serves embeddings, not chat"):
        await minilm.complete(chat())
