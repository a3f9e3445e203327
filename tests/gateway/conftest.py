"""One gateway with every kind of model, shared by the tests that only ask it things."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import SHARED
from tests.running import Gateway, running

HANDBOOK = {
    "relay.md": "# Relay runners\n\nA chasqui carried messages along the Inca roads.\n\n## Distance\n\nEach runner ran about two "
    "kilometres before the next one took over.\n\n## Shelter\n\nThe station where runners waited was called a chaskiwasi.\n",
    "quipu.md": "# Quipu\n\nA quipu is a device of knotted cords. It recorded numbers for the census and for taxes.\n",
    "bread.txt": "Bread is baked from flour, water, salt and yeast. The oven should be at 230 degrees.\n",
}

PROMPT = """
name: pirate
version: 2
stage: prod
variables: [{name: tone, default: rough}]
messages:
  - {role: system, content: "Answer like a {{ tone }} pirate."}
  - {role: user, content: "Say this: {{ text }}"}
params: {temperature: 0.0}
"""


def full_config(folder: Path, chat: Path, embedder: Path) -> dict[str, Any]:
    documents = folder / "documents"
    documents.mkdir()
    for name, text in HANDBOOK.items():
        (documents / name).write_text(text)
    (folder / "prompts").mkdir()
    (folder / "prompts" / "pirate.yaml").write_text(PROMPT)
    return {
        "server": {"failed_keys_per_minute": False},  # one test tries many, and all of them come from one address
        "backends": [
            {"name": "chat", "engine": "llama_cpp", "model": str(chat), "context_tokens": 2048},
            {"name": "minilm", "engine": "llama_cpp", "model": str(embedder), "serves": "embeddings"},
            {"name": "quote", "engine": "quote"},
        ],
        "models": [
            {"name": "guide", "route": ["chat"]},
            {"name": "text-embedding-3-small", "route": ["minilm"]},
            {"name": "minilm", "route": ["minilm"]},
            {"name": "handbook", "collections": ["handbook"], "route": ["quote"]},
            {"name": "handbook-chat", "collections": ["handbook"], "route": ["chat"]},
            {"name": "pirate", "prompt": "pirate", "route": ["guide"]},
            {"name": "org/team:model-1", "route": ["guide"]},
        ],
        "collections": [{"name": "handbook", "embed": "minilm", "paths": [f"{documents}/*"]}],
        "prompts": {"paths": [f"{folder}/prompts/*.yaml"]},
        "roles": [
            {"name": "default", "collections": ["*"], "limits": [{"concurrent": 16}]},
            {"name": "readers", "collections": ["*"]},
            {"name": "no-documents", "collections": []},
            {"name": "only-guide", "models": ["guide"]},
            {"name": "embeddings-only", "paths": ["/v1/embeddings", "/v1/models*"]},
            {"name": "key-keeper", "paths": ["/admin/keys*"]},
        ],
    }


@pytest.fixture(scope="session")
def gateway(tmp_path_factory: pytest.TempPathFactory, synthetic_gguf: Path, minilm_gguf: Path) -> Iterator[Gateway]:
    home = tmp_path_factory.mktemp("gateway")
    with running(home, full_config(home, synthetic_gguf, minilm_gguf), tiktoken_environment()) as gateway:
        wait_for_collection(gateway)
        yield gateway


def tiktoken_environment() -> dict[str, str]:
    """Where the encodings lie, if they do."""
    folder = os.environ.get("TIKTOKEN_CACHE_DIR") or str(SHARED / "tiktoken")
    return {"TIKTOKEN_CACHE_DIR": folder} if Path(folder).is_dir() else {}


def wait_for_collection(gateway: Gateway) -> None:
    """Asks until the collection is searchable; bounded by the test's own timeout."""
    with gateway.http as http:
        while http.get("/health/ready").json()["status"] != "ready":
            pass
