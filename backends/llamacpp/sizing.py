"""Settings for a model that nobody has set yet, from what its file and the machine say. Pure."""

from typing import Any

from backends.gguf_head import Head
from backends.machine import Machine

SPARE = 0.8
"""Of the memory that is available, how much a model may take: others want some, too."""
WORKER_BYTES = 200 << 20
"""A worker's own, with the buffers of a computation."""
MOST_TOKENS, LEAST_TOKENS, STEP_TOKENS = 32_768, 1024, 1024
PER_SLOT_TOKENS = 4096
"""That an answer with its prompt usually needs."""
MOST_SLOTS = 4


def settings_for(head: Head, size_bytes: int, machine: Machine) -> tuple[dict[str, Any], list[str]]:
    """
    Returns:
        Options of the backend beside name, engine and model; and what people should know.
    """
    on_card = machine.computes_on_cards and machine.card_bytes * SPARE > size_bytes + WORKER_BYTES
    room = int((machine.card_bytes if on_card else machine.available_bytes) * SPARE) - size_bytes - WORKER_BYTES
    options: dict[str, Any] = {} if head.serves == "chat" else {"serves": head.serves}
    notes = []
    if room < 0:
        have, need = machine.available_bytes / 1e9, (size_bytes + WORKER_BYTES) / 1e9
        notes.append(
            f"it needs about {need:.1f} GB of memory, and {have:.1f} GB are free now: it will be slow, or not start"
        )
    options["context_tokens"] = _context(head, room)
    if head.serves == "chat":
        options["slots"] = max(1, min(MOST_SLOTS, options["context_tokens"] // PER_SLOT_TOKENS))
        if not head.chat_template:
            notes.append("it has no chat template: contents are joined by newlines, so conversations may not work well")
    options["threads"] = "auto"
    if on_card:
        options["gpu_layers"] = -1
    return options, notes


def _context(head: Head, room: int) -> int:
    trained = head.context_tokens or 4096
    if head.serves != "chat":
        return max(16, min(trained, 8192))  # one text; what it takes is small beside the model
    wanted = min(MOST_TOKENS, trained * MOST_SLOTS)
    if head.cell_bytes:
        wanted = min(wanted, max(0, room) // head.cell_bytes)
    return max(LEAST_TOKENS, wanted // STEP_TOKENS * STEP_TOKENS)
