"""Where and how exactly a model is computed. The numbers are llama.cpp's and ggml's own, the same in every version."""

from collections.abc import Iterator
from typing import NamedTuple

SPLIT_MODES = {"none": 0, "layer": 1, "row": 2}
FLASH_ATTENTION = {"auto": -1, "off": 0, "on": 1}
CACHE_TYPES = {"f32": 0, "f16": 1, "bf16": 30, "q8_0": 8, "q5_1": 7, "q5_0": 6, "q4_1": 3, "q4_0": 2}


class Hardware(NamedTuple):
    gpu_layers: int = 0
    """-1: all."""
    split_mode: str = "layer"
    flash_attention: str = "auto"
    cache_type_k: str = "f16"
    cache_type_v: str = "f16"

    def suspects(self) -> str:
        """What a context may have failed for, beside its size."""
        types = {self.cache_type_k, self.cache_type_v} - {"f32", "f16", "bf16"}
        return f", or cache_type_k and cache_type_v other than {' and '.join(sorted(types))}" if types else ""

    def ignored(self, *, gpu: bool) -> Iterator[str]:
        """What means nothing here, in words.

        Args:
            gpu: this build of llama.cpp has found one.
        """
        if gpu:
            return
        if self.gpu_layers:
            yield f"gpu_layers: {self.gpu_layers} is ignored: this build of llama.cpp has no GPU, so the CPU computes all layers"
        if self.split_mode != "layer":
            yield f"split_mode: {self.split_mode} is ignored: there is no GPU to share the model"
