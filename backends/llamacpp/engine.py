"""One GGUF in llama.cpp, through the low-level binding. Everything here may end the process; only workers import it.

Not safe for two threads: one thread owns an `Engine`'s context (`engine_thread.py`). Vocabulary calls (`tokenise`, `piece`)
only read the model and may come from any thread. The rules behind each check are llama.cpp's own asserts: a batch never
exceeds `n_batch`, logits are sampled only where they were asked for, NULL is tested by truth, never by `is None`.
"""

import ctypes
import os
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from gguf import GGUFReader
from numpy.typing import NDArray

from backends.errors import ModelFileUnusable
from backends.llamacpp.batch import Batch
from backends.llamacpp.constrained import Constraint, new_matcher
from backends.llamacpp.guidance import CONTROL, special_attributes, tokenizer_of
from backends.llamacpp.hardware import CACHE_TYPES, FLASH_ATTENTION, SPLIT_MODES, Hardware
from backends.llamacpp.pairs import Pairs
from backends.llamacpp.sampling import Sampling, build_chain

os.environ.setdefault("GGML_NO_BACKTRACE", "1")  # on abort ggml would start gdb, a slow and heavy death
from llama_cpp import llama_cpp as lib

MAX_BATCH = 512
"""Rows of one step."""

_LOG_LEVEL_WARN = 3
_LOG_LEVEL_CONT = 5


class _Log:
    """llama.cpp's log, warnings and errors only. A continuation line belongs to the line before it."""

    def __init__(self) -> None:
        self._shown = False

        @lib.llama_log_callback  # type: ignore[untyped-decorator]
        def on_line(level: int, text: bytes, _: Any) -> None:
            self._shown = self._shown if level == _LOG_LEVEL_CONT else level >= _LOG_LEVEL_WARN
            if self._shown:
                sys.stderr.write(text.decode("utf-8", "replace"))

        self.callback = on_line  # must outlive the library: a collected callback crashes at the next line


_log = _Log()


class ModelInfo(NamedTuple):
    """What the file says of itself and what the context was made with (values read back, not asked for)."""

    description: str
    context_tokens: int
    trained_tokens: int
    vocabulary: int
    dimensions: int
    pooling: int
    chat_template: str | None
    control_tokens: tuple[str, ...]
    special_tokens: dict[str, int]
    """Texts that are one token with a meaning of its own: control tokens, and what looks like one."""
    architecture: str
    bos: str
    eos: str
    ends: tuple[int, ...]
    """Tokens that end the model's turn."""


class Engine:
    """
    Args:
        context_tokens: the pool of cells that all sequences share. For embeddings: the longest input.
        sequences: that may be in the cells at the same time.
        threads: compute threads.
        embeddings: texts become vectors, or scores; nothing is generated.
        ranks: those vectors are scores of pairs.

    Raises:
        ModelFileUnusable: missing, not a GGUF, or nothing llama.cpp can load.
    """

    def __init__(
        self,
        path: Path,
        *,
        context_tokens: int,
        threads: int,
        sequences: int = 1,
        hardware: Hardware = Hardware(),  # noqa: B008 - frozen
        embeddings: bool = False,
        ranks: bool = False,
    ) -> None:
        lib.llama_log_set(_log.callback, ctypes.c_void_p(0))
        lib.llama_backend_init()
        _check_file(path)
        self._embeddings = embeddings
        self._ranks = ranks
        self._hardware = hardware
        self.notes = list(hardware.ignored(gpu=bool(lib.llama_supports_gpu_offload())))
        """What was asked for and cannot be had on this machine."""
        self._context: Any = None
        self.batch: Any = None
        self._model = _load_model(path, hardware)
        try:
            self._open(path, context_tokens, threads, sequences)
            self._warm_up()
        except BaseException:  # a worker that tries one model after the other must not keep the bad ones
            self.close()
            raise

    def _open(self, path: Path, context_tokens: int, threads: int, sequences: int) -> None:
        self._vocab = lib.llama_model_get_vocab(self._model)
        trained = int(lib.llama_model_n_ctx_train(self._model))
        if self._embeddings:
            context_tokens = min(context_tokens, trained)
            sequences = min(sequences, context_tokens)  # each has a token at least
        self._context = self._new_context(context_tokens, threads, sequences)
        if not self._context:
            raise ModelFileUnusable(
                f"llama.cpp could not make a context of {context_tokens} tokens for {path.name}; try a smaller one"
                + self._hardware.suspects()
            )
        self._memory = lib.llama_get_memory(self._context)
        self.batch_tokens = int(lib.llama_n_batch(self._context))
        self.batch = Batch(self.batch_tokens)
        self._piece_buffer = ctypes.create_string_buffer(512)
        self.sequences = int(lib.llama_n_seq_max(self._context))
        self.recurrent = bool(lib.llama_model_is_recurrent(self._model) or lib.llama_model_is_hybrid(self._model))
        """Its state cannot be shared up to a token."""
        self.info = self._read_info(path, trained)
        if not self._embeddings and not self._memory:
            raise ModelFileUnusable(f"{path.name} makes vectors and no text; set `serves: embeddings`, or rerank")
        if self._ranks and not self._has_a_head(path):
            raise ModelFileUnusable(f"{path.name} has no output for scores, so it cannot rank; take it for embeddings")
        self.pairs = Pairs(self._model, self._vocab, self.tokenise, architecture=self.info.architecture)
        """For rerankers."""
        self._ends = frozenset(self.info.ends)
        self._tokenizer: Any = None
        self._tokenizer_lock = threading.Lock()

    def _new_context(self, context_tokens: int, threads: int, sequences: int) -> Any:
        params = lib.llama_context_default_params()
        params.n_ctx = context_tokens
        params.n_seq_max = sequences
        params.kv_unified = True  # any sequence may use all cells, and a common beginning is shared for nothing
        params.n_batch = context_tokens if self._embeddings else min(context_tokens, MAX_BATCH)
        # A pooled input that spans micro-batches gives a silently wrong vector, hence one micro-batch for embeddings.
        params.n_ubatch = params.n_batch
        params.n_threads = params.n_threads_batch = threads
        params.embeddings = self._embeddings
        if self._ranks:
            params.pooling_type = lib.LLAMA_POOLING_TYPE_RANK
        params.no_perf = True
        params.flash_attn_type = FLASH_ATTENTION[self._hardware.flash_attention]
        params.type_k = CACHE_TYPES[self._hardware.cache_type_k]
        params.type_v = CACHE_TYPES[self._hardware.cache_type_v]
        return lib.llama_init_from_model(self._model, params)

    def _read_info(self, path: Path, trained: int) -> ModelInfo:
        size = int(lib.llama_vocab_n_tokens(self._vocab))
        template = lib.llama_model_chat_template(self._model, None)
        special = {token: attributes for token in range(size) if (attributes := special_attributes(self._vocab, token))}
        texts = {token: text for token in special if (text := self._text(token))}
        buffer = ctypes.create_string_buffer(256)
        lib.llama_model_desc(self._model, buffer, len(buffer))
        return ModelInfo(
            description=buffer.value.decode("utf-8", "replace"),
            context_tokens=int(lib.llama_n_ctx(self._context)),
            trained_tokens=trained,
            vocabulary=size,
            dimensions=int(lib.llama_model_n_embd(self._model)),
            pooling=int(lib.llama_pooling_type(self._context)),
            chat_template=template.decode("utf-8", "replace") if template else None,
            control_tokens=tuple(text for token, text in texts.items() if special[token] & CONTROL),
            special_tokens={
                text: token
                for token, text in texts.items()
                if special[token] & CONTROL or (text.startswith("<") and text.endswith(">"))
            },
            architecture=self._meta("general.architecture"),
            bos=self._text(lib.llama_vocab_bos(self._vocab)),
            eos=self._text(lib.llama_vocab_eos(self._vocab)),
            ends=tuple(token for token in range(size) if lib.llama_vocab_is_eog(self._vocab, token)),
        )

    def _warm_up(self) -> None:
        """One decode before anybody is told that we are ready: a bad weight type kills the process here, not later."""
        token = max(0, int(lib.llama_vocab_bos(self._vocab)))
        if self._embeddings:
            self.embed([[token]])
            return
        self.batch.clear()
        row = self.batch.add([token], position=0, sequence=0, logits="last")
        if (code := self.decode()) != 0:
            raise ModelFileUnusable(f"llama.cpp cannot run this model: the first step gave {code}")
        chain = self.new_chain(Sampling(temperature=0.0))
        self.sample(chain, row)
        self.free_chain(chain)
        self.forget_all()

    def _has_a_head(self, path: Path) -> bool:
        """llama.cpp would take the first number of any vector for a score."""
        if self._meta(f"{self.info.architecture}.pooling_type") == str(int(lib.LLAMA_POOLING_TYPE_RANK)):
            return True
        return any(tensor.name.startswith("cls.") for tensor in GGUFReader(path).tensors)

    def _meta(self, key: str) -> str:
        buffer = ctypes.create_string_buffer(256)
        length = lib.llama_model_meta_val_str(self._model, key.encode(), buffer, len(buffer))
        return buffer.value.decode("utf-8", "replace") if length > 0 else ""

    def _text(self, token: int) -> str:
        if token < 0:
            return ""
        return (lib.llama_vocab_get_text(self._vocab, token) or b"").decode("utf-8", "replace")

    def tokenise(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        """Token ids of `text`. `add_special`: BOS and EOS as the model wants them. `parse_special`: control tokens
        written in the text count as such; only for text we wrote ourselves.
        """
        data = text.encode("utf-8", "replace")
        room = len(data) + 8
        tokens = (lib.llama_token * room)()
        count = lib.llama_tokenize(self._vocab, data, len(data), tokens, room, add_special, parse_special)
        if count < 0:
            tokens = (lib.llama_token * -count)()
            count = lib.llama_tokenize(self._vocab, data, len(data), tokens, -count, add_special, parse_special)
        return list(tokens[:count])

    def piece(self, token: int, special: bool = False) -> bytes:
        """The bytes of one token; control tokens have none, unless `special`. May be part of a character. One thread only."""
        length = lib.llama_token_to_piece(self._vocab, token, self._piece_buffer, len(self._piece_buffer), 0, special)
        if length < 0:
            self._piece_buffer = ctypes.create_string_buffer(-length)
            length = lib.llama_token_to_piece(self._vocab, token, self._piece_buffer, -length, 0, special)
        return self._piece_buffer.raw[:length]

    def new_chain(self, sampling: Sampling) -> Any:
        """To be freed with `free_chain`. Any thread.

        Raises:
            MemoryError
        """
        return build_chain(sampling, self.info.vocabulary, self.info.ends)

    @staticmethod
    def free_chain(chain: Any) -> None:
        lib.llama_sampler_free(chain)

    def new_constraint(self, grammar: str) -> Constraint:
        """Any thread. The first one takes up to a second for a large vocabulary.

        Raises:
            InvalidRequest: llguidance does not take the grammar, or the model has no token that ends an answer.
        """
        with self._tokenizer_lock:
            if self._tokenizer is None:
                self._tokenizer = tokenizer_of(self._vocab, self.info.ends)
        return Constraint(new_matcher(self._tokenizer, grammar), self.info.vocabulary)

    def logits(self, row: int) -> NDArray[np.float32]:
        """Of a row of the last batch that asked for them, float32 [vocabulary], to be read and changed until the next `decode`."""
        pointer = lib.llama_get_logits_ith(self._context, row)
        if not pointer:
            raise RuntimeError(f"row {row} has no logits")
        return np.ctypeslib.as_array(pointer, shape=(self.info.vocabulary,))

    def decode(self) -> int:
        """Everything in `batch`. 0: done; 1: the cells are too few, and nothing has changed; others: see `generation.py`."""
        return int(lib.llama_decode(self._context, self.batch.filled()))

    def sample(self, chain: Any, row: int) -> int:
        """The next token behind a row of the last batch that asked for logits; the chain has seen it then."""
        return int(lib.llama_sampler_sample(chain, self._context, row))

    def ends(self, token: int) -> bool:
        """It ends the model's turn."""
        return token in self._ends

    def forget(self, sequence: int) -> None:
        """Free the cells of a sequence."""
        lib.llama_memory_seq_rm(self._memory, sequence, -1, -1)

    def share(self, source: int, target: int, tokens: int) -> None:
        """The first `tokens` of `source` are the beginning of `target`, too, which has to be empty. Costs nothing."""
        lib.llama_memory_seq_cp(self._memory, source, target, 0, tokens)

    def forget_all(self) -> None:
        lib.llama_memory_clear(self._memory, True)

    def embed(self, texts: Sequence[Sequence[int]]) -> list[NDArray[np.float32]]:
        """The pooled vectors of some texts in one call, float32 [dimensions], unit length. At most `batch_tokens` tokens together, and
        `sequences` texts.
        """
        size = sum(map(len, texts))
        if not all(texts) or size > self.batch_tokens or len(texts) > self.sequences:
            raise ValueError(
                f"{size} tokens of {len(texts)} texts; between 1 and {self.batch_tokens} can be embedded at once"
            )
        if self._memory:  # encoder-only models have none
            lib.llama_memory_clear(self._memory, True)
        self.batch.clear()
        for sequence, tokens in enumerate(texts):
            self.batch.add(tokens, position=0, sequence=sequence, logits="all")
        code = self.decode()
        if code != 0:
            raise RuntimeError(f"llama_decode gave {code} for {size} tokens of {len(texts)} texts")
        return [self._vector(sequence) for sequence in range(len(texts))]

    def _vector(self, sequence: int) -> NDArray[np.float32]:
        pointer = lib.llama_get_embeddings_seq(self._context, sequence)
        if not pointer:
            raise ModelFileUnusable("the model gives no pooled embedding; it needs pooling mean, cls or last")
        if self._ranks:
            outputs = max(1, int(lib.llama_model_n_cls_out(self._model)))
            return np.ctypeslib.as_array(pointer, shape=(outputs,)).astype(np.float32, copy=True)
        vector = np.ctypeslib.as_array(pointer, shape=(self.info.dimensions,)).astype(np.float32, copy=True)
        length = float(np.linalg.norm(vector))
        return vector / length if length > 0 else vector

    def ending(self, text: str) -> list[int]:
        """The tokens that the model wants behind a text."""
        with_special = self.tokenise(text[:64], add_special=True, parse_special=False)
        without = self.tokenise(text[:64], add_special=False, parse_special=False)
        behind = 0
        while behind < len(with_special) and with_special[: len(with_special) - behind][-len(without) :] != without:
            behind += 1
        return with_special[len(with_special) - behind :] if without and behind < len(with_special) else []

    def close(self) -> None:
        if self.batch is not None:
            self.batch.free()
        if self._context:
            lib.llama_free(self._context)
        lib.llama_model_free(self._model)
        self.batch = self._context = None


def _check_file(path: Path) -> None:
    try:
        with path.open("rb") as file:
            magic = file.read(4)
    except OSError as exc:
        raise ModelFileUnusable(f"cannot read the model file {path.name}: {exc.strerror}") from None
    if magic != b"GGUF":
        raise ModelFileUnusable(f"{path.name} is not a GGUF file")


def _load_model(path: Path, hardware: Hardware) -> Any:
    params = lib.llama_model_default_params()
    params.n_gpu_layers = hardware.gpu_layers
    params.split_mode = SPLIT_MODES[hardware.split_mode]
    model = lib.llama_model_load_from_file(str(path).encode(), params)
    if not model:
        raise ModelFileUnusable(f"llama.cpp cannot load {path.name}: damaged, or of a kind this version does not know")
    return model
