"""Starts a gateway in this environment, and the tests of this folder in another one: `python -m tests.sdk.run PYTHON`."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from backends.llamacpp.synthetic import write_synthetic
from tests.conftest import ROOT
from tests.gateway.conftest import tiktoken_environment
from tests.processes import Serving
from tests.running import ADMIN_KEY

MINILM = "all-MiniLM-L6-v2.gguf"


def main() -> None:
    python = Path(sys.argv[1]).absolute()
    models = ROOT / os.environ.get("CHASQUI_HOME", "var") / "models"
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        chat = write_synthetic(home / "chat.gguf")
        (home / "quipu.md").write_text(
            "# Quipu\n\nA quipu is a device of knotted cords. It recorded numbers for the census."
        )
        local = {"engine": "llama_cpp"}
        config = {
            "backends": [
                {"name": "chat", "model": str(chat), "context_tokens": 8192, **local},
                {"name": "minilm", "model": str(models / MINILM), "serves": "embeddings", **local},
                {"name": "quote", "engine": "quote"},
            ],
            "models": [
                {"name": "guide", "route": ["chat"]},
                {"name": "text-embedding-3-small", "route": ["minilm"]},
                {"name": "handbook", "collections": ["handbook"], "route": ["quote"]},
            ],
            "collections": [{"name": "handbook", "embed": "minilm", "paths": [f"{home}/*.md"]}],
            "roles": [{"name": "default"}],
        }
        gateway = Serving(home, config, tiktoken_environment())
        gateway.start()
        try:
            environment = os.environ | {"GATEWAY_URL": gateway.url, "GATEWAY_KEY": ADMIN_KEY} | tiktoken_environment()
            arguments = ["-q", "--noconftest", "-c", "/dev/null", "-p", "no:cacheprovider", "--timeout=120"]
            tests = ROOT / "tests" / "sdk"
            done = subprocess.run(
                [str(python), "-m", "pytest", *arguments, str(tests)], env=environment, cwd=home, check=False
            )
        finally:
            gateway.stop()
    sys.exit(done.returncode)


if __name__ == "__main__":
    main()
