"""One GGUF in llama.cpp, through the low-level binding. Everything here may end the process; only workers import it.

Not safe for two threads: one thread owns an `Engine`'s context (`scheduler.py`). Vocabulary calls (`tokenise`, `piece`)
only read the model and may come from any thread. The rules behind each check are llama.cpp's own asserts: a batch never
exceeds `n_batch`, logits are sampled only where they were asked for, NULL is tested by truth, never by `is None`.
"""

import ctypes
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from backends.errors import ModelFileUnusable
from backends.llamacpp.sampling import Sampling, build_chain

os.environ.setdefault("GGML_NO_BACKTRACE", "1")  # on abort ggml would start gdb, a slow and heavy death
from llama_cpp import llama_cpp as lib

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
    bos: str
    eos: str


class Engine:
    """
    Args:
        context_tokens: prompt and answer together. For embeddings: the longest input.
        threads: compute threads.

    Raises:
        ModelFileUnusable: missing, not a GGUF, or nothing llama.cpp can load.
    """

    def __init__(
        self, path: Path, *, context_tokens: int, threads: int, gpu_layers: int = 0, embeddings: bool = False
    ) -> None:
        lib.llama_log_set(_log.callback, ctypes.c_void_p(0))
        lib.llama_backend_init()
        _check_file(path)
        self._embeddings = embeddings
        self._model = _load_model(path, gpu_layers)
        self._vocab = lib.llama_model_get_vocab(self._model)
        trained = int(lib.llama_model_n_ctx_train(self._model))
        if embeddings:
            context_tokens = min(context_tokens, trained)
        self._context = self._new_context(context_tokens, threads)
        if not self._context:
            raise ModelFileUnusable(
                f"llama.cpp could not make a context of {context_tokens} tokens for {path.name}; try a smaller one"
            )
        self._memory = lib.llama_get_memory(self._context)
        self.batch_tokens = int(lib.llama_n_batch(self._context))
        self._batch = _Batch(self.batch_tokens)
        self._piece_buffer = ctypes.create_string_buffer(512)
        self.info = self._read_info(path, trained)
        self._warm_up()

    def _new_context(self, context_tokens: int, threads: int) -> Any:
        params = lib.llama_context_default_params()
        params.n_ctx = context_tokens
        params.n_seq_max = 1
        params.n_batch = context_tokens if self._embeddings else min(context_tokens, 512)
        # A pooled input that spans micro-batches gives a silently wrong vector, hence one micro-batch for embeddings.
        params.n_ubatch = params.n_batch
        params.n_threads = params.n_threads_batch = threads
        params.embeddings = self._embeddings
        params.no_perf = True
        return lib.llama_init_from_model(self._model, params)

    def _read_info(self, path: Path, trained: int) -> ModelInfo:
        size = int(lib.llama_vocab_n_tokens(self._vocab))
        template = lib.llama_model_chat_template(self._model, None)
        control = (token for token in range(size) if lib.llama_vocab_is_control(self._vocab, token))
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
            control_tokens=tuple(text for token in control if (text := self._text(token))),
            bos=self._text(lib.llama_vocab_bos(self._vocab)),
            eos=self._text(lib.llama_vocab_eos(self._vocab)),
        )

    def _warm_up(self) -> None:
        """One decode before anybody is told that we are ready: a bad weight type kills the process here, not later."""
        token = max(0, int(lib.llama_vocab_bos(self._vocab)))
        if self._embeddings:
            self.embed([token])
            return
        for _ in self.generate([token], Sampling(temperature=0.0), max_tokens=1):
            pass

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

    def piece(self, token: int) -> bytes:
        """The bytes of one token; control tokens have none. May be part of a character."""
        length = lib.llama_token_to_piece(self._vocab, token, self._piece_buffer, len(self._piece_buffer), 0, False)
        if length < 0:
            self._piece_buffer = ctypes.create_string_buffer(-length)
            length = lib.llama_token_to_piece(self._vocab, token, self._piece_buffer, -length, 0, False)
        return self._piece_buffer.raw[:length]

    def generate(
        self,
        prompt: Sequence[int],
        sampling: Sampling,
        *,
        max_tokens: int,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> Iterator[int]:
        """Yield token ids until the model ends its turn, `max_tokens` are out or `cancelled()` says so.

        The prompt must not be empty and, with `max_tokens`, must fit into the context; ids must be in the vocabulary.
        The token that ends the turn is not yielded. Checked between steps, so a cancellation waits for one step at most.
        """
        if not 0 < len(prompt) <= self.info.context_tokens - max_tokens:
            raise ValueError(f"{len(prompt)} prompt tokens and {max_tokens} for the answer do not fit")
        chain = build_chain(sampling, self.info.vocabulary)
        try:
            position = 0
            while position < len(prompt):
                if cancelled():
                    return
                tokens = prompt[position : position + self.batch_tokens]
                position += len(tokens)
                self._decode(tokens, position - len(tokens), logits_last=position == len(prompt))
            for produced in range(1, max_tokens + 1):
                token = int(lib.llama_sampler_sample(chain, self._context, -1))
                if lib.llama_vocab_is_eog(self._vocab, token):
                    return
                yield token
                if produced == max_tokens or cancelled():
                    return
                self._decode([token], position, logits_last=True)
                position += 1
        finally:
            lib.llama_sampler_free(chain)
            lib.llama_memory_seq_rm(self._memory, -1, -1, -1)

    def embed(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """The pooled vector of one text, float32 [dimensions], unit length. At most `batch_tokens` tokens."""
        if not 0 < len(tokens) <= self.batch_tokens:
            raise ValueError(f"{len(tokens)} tokens; between 1 and {self.batch_tokens} can be embedded at once")
        if self._memory:  # encoder-only models have none
            lib.llama_memory_clear(self._memory, True)
        code = lib.llama_decode(self._context, self._batch.fill(tokens, 0, logits="all"))
        if code != 0:
            raise RuntimeError(f"llama_decode gave {code} for {len(tokens)} tokens")
        pointer = lib.llama_get_embeddings_seq(self._context, 0)
        if not pointer:
            raise ModelFileUnusable("the model gives no pooled embedding; it needs pooling mean, cls or last")
        vector = np.ctypeslib.as_array(pointer, shape=(self.info.dimensions,)).astype(np.float32, copy=True)
        length = float(np.linalg.norm(vector))
        return vector / length if length > 0 else vector

    def _decode(self, tokens: Sequence[int], position: int, *, logits_last: bool) -> None:
        code = lib.llama_decode(
            self._context, self._batch.fill(tokens, position, logits="last" if logits_last else "none")
        )
        if code != 0:
            raise RuntimeError(f"llama_decode gave {code} at position {position}")

    def close(self) -> None:
        self._batch.free()
        lib.llama_free(self._context)
        lib.llama_model_free(self._model)


class _Batch:
    """llama_batch with its arrays seen as numpy, filled by slices. Sequence 0 only."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._batch = lib.llama_batch_init(size, 0, 1)
        self._token = np.ctypeslib.as_array(self._batch.token, shape=(size,))
        self._pos = np.ctypeslib.as_array(self._batch.pos, shape=(size,))
        self._logits = np.ctypeslib.as_array(self._batch.logits, shape=(size,))
        np.ctypeslib.as_array(self._batch.n_seq_id, shape=(size,))[:] = 1
        for row in range(size):
            self._batch.seq_id[row][0] = 0

    def fill(self, tokens: Sequence[int], position: int, *, logits: str) -> Any:
        count = len(tokens)
        if count > self._size:  # llama.cpp would end the process
            raise ValueError(f"a batch of {count} tokens is larger than {self._size}")
        self._token[:count] = tokens
        self._pos[:count] = np.arange(position, position + count)
        self._logits[:count] = logits == "all"
        if logits == "last":
            self._logits[count - 1] = True
        self._batch.n_tokens = count
        return self._batch

    def free(self) -> None:
        lib.llama_batch_free(self._batch)


def _check_file(path: Path) -> None:
    try:
        with path.open("rb") as file:
            magic = file.read(4)
    except OSError as exc:
        raise ModelFileUnusable(f"cannot read the model file {path.name}: {exc.strerror}") from None
    if magic != b"GGUF":
        raise ModelFileUnusable(f"{path.name} is not a GGUF file")


def _load_model(path: Path, gpu_layers: int) -> Any:
    params = lib.llama_model_default_params()
    params.n_gpu_layers = gpu_layers
    model = lib.llama_model_load_from_file(str(path).encode(), params)
    if not model:
        raise ModelFileUnusable(f"llama.cpp cannot load {path.name}: damaged, or of a kind this version does not know")
    return model
