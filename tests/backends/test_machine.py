"""What a machine has, as its files say."""

from pathlib import Path

from backends.gguf_head import Head
from backends.llamacpp.sizing import settings_for
from backends.machine import Machine, this_machine

GB = 1 << 30
CHAT = Head("llama", "m", 32_768, "chat", "Q4_K_M", 131_072, chat_template=True, licence="")


def test_memory_is_what_the_system_says(tmp_path: Path) -> None:
    (tmp_path / "meminfo").write_text(
        "MemTotal:  8388608 kB\nMemFree: 1 kB\nMemAvailable: 4194304 kB\nHugePages_Total: 0\n"
    )
    machine = this_machine(proc=tmp_path, cgroup=tmp_path, nvidia_smi="/nowhere")
    assert machine[:3] == (8 * GB, 4 * GB, 0)


def test_a_container_has_what_it_may_have(tmp_path: Path) -> None:
    (tmp_path / "meminfo").write_text("MemTotal:  8388608 kB\nMemAvailable: 8388608 kB\n")
    (tmp_path / "memory.max").write_text(f"{2 * GB}\n")
    (tmp_path / "memory.current").write_text(f"{GB}\n")
    assert this_machine(proc=tmp_path, cgroup=tmp_path, nvidia_smi="/nowhere")[:2] == (2 * GB, GB)
    (tmp_path / "memory.max").write_text("max\n")
    assert this_machine(proc=tmp_path, cgroup=tmp_path, nvidia_smi="/nowhere")[:2] == (8 * GB, 8 * GB)


def test_cards_are_added_up(tmp_path: Path) -> None:
    program = tmp_path / "smi"
    program.write_text("#!/bin/sh\necho 8192\necho 8192\n")
    program.chmod(0o755)
    assert this_machine(nvidia_smi=str(program)).card_bytes == 16 * GB
    program.write_text("#!/bin/sh\necho no cards; exit 9\n")
    assert this_machine(nvidia_smi=str(program)).card_bytes == 0


def test_this_one_has_memory() -> None:
    machine = this_machine()
    assert machine.memory_bytes >= machine.available_bytes > 0


def test_a_model_gets_the_context_that_memory_allows() -> None:
    options, notes = settings_for(CHAT, 2 * GB, Machine(64 * GB, 48 * GB))
    assert options == {"context_tokens": 32_768, "slots": 4, "threads": "auto"}
    assert notes == []
    tight, _ = settings_for(CHAT, 2 * GB, Machine(4 * GB, 4 * GB))
    assert 4096 <= tight["context_tokens"] < 10_000
    assert tight["slots"] == tight["context_tokens"] // 4096
    small, _ = settings_for(CHAT._replace(context_tokens=512), GB, Machine(64 * GB, 48 * GB))
    assert small["context_tokens"] == 2048, "four answers of its window"


def test_a_model_that_does_not_fit_is_said_and_gets_the_least() -> None:
    options, notes = settings_for(CHAT._replace(chat_template=False), 8 * GB, Machine(4 * GB, 2 * GB))
    assert (options["context_tokens"], options["slots"]) == (1024, 1)
    assert "needs about 8.8 GB of memory, and 2.1 GB are free" in notes[0]
    assert "no chat template" in notes[1]


def test_a_card_is_used_where_llama_cpp_can() -> None:
    machine = Machine(8 * GB, 4 * GB, card_bytes=24 * GB, computes_on_cards=True)
    assert settings_for(CHAT, 8 * GB, machine)[0]["gpu_layers"] == -1
    assert "gpu_layers" not in settings_for(CHAT, 8 * GB, machine._replace(computes_on_cards=False))[0]
    assert "gpu_layers" not in settings_for(CHAT, 40 * GB, machine)[0]


def test_embeddings_and_rerankers_take_one_text() -> None:
    for serves in ("embeddings", "rerank"):
        options, _ = settings_for(
            CHAT._replace(serves=serves, context_tokens=512, cell_bytes=0), GB, Machine(8 * GB, 8 * GB)
        )
        assert options == {"serves": serves, "context_tokens": 512, "threads": "auto"}
