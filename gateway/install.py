"""Builds `.venv` for `make`: needs Python and a C compiler, nothing else, so it imports nothing but the standard library.

Everything comes from lock files with hashes. llama-cpp-python is the one package that is compiled here; its compiler
steps and the downloads are shown as one line that moves. The full output is kept in `.venv/install.log`.
"""

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
LOG = VENV / "install.log"

COMPILE_STEP = re.compile(r"^\s*\[(\d+)/(\d+)\]")
FETCH_STEP = re.compile(r"^\s*(?:Downloading|Using cached|Collecting|Installing collected packages)\s*:?\s*(\S+)")

# What we do not load is not compiled: about a minute on two cores instead of six.
CMAKE_ARGS = " ".join([
    f"-DCMAKE_PROJECT_llama_cpp_INCLUDE={ROOT / 'backends' / 'llamacpp' / 'build.cmake'}",
    "-DLLAVA_BUILD=OFF -DLLAMA_BUILD_TOOLS=OFF -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF",
    "-DLLAMA_BUILD_SERVER=OFF -DLLAMA_BUILD_APP=OFF -DLLAMA_ALL_WARNINGS=OFF -DGGML_ALL_WARNINGS=OFF",
])  # fmt: skip


def main(lock_files: list[str]) -> None:
    check_tools()
    started = time.monotonic()
    if not (VENV / "bin" / "python").exists():
        say("creating .venv")
        run([sys.executable, "-m", "venv", str(VENV)], hint="Debian and Ubuntu: apt-get install python3-venv")
    pip = [str(VENV / "bin" / "python"), "-m", "pip", "--disable-pip-version-check", "install", "-v"]
    hashed = [*pip, "--require-hashes", "--only-binary=:all:"]
    run([*hashed, "-r", "requirements-build.lock"])
    for lock_file in lock_files:
        run([*hashed, "--no-binary=llama-cpp-python", "--no-build-isolation", "-r", lock_file])
    run([*pip, "--no-deps", "--no-build-isolation", "-e", "."])
    say(f"installed in {time.monotonic() - started:.0f} s")
    sys.stderr.write("\n")


def check_tools() -> None:
    if sys.version_info < (3, 11):  # noqa: UP036 - this file runs before anything has checked
        sys.exit(
            f"chasqui needs Python 3.11 or newer; this is {sys.version.split()[0]}. Try: make PYTHON=python3.12 run"
        )
    for tool, names in {"C": ("cc", "gcc", "clang"), "C++": ("c++", "g++", "clang++")}.items():
        if not any(map(shutil.which, names)):
            sys.exit(
                f"no {tool} compiler found; llama.cpp is compiled here. Debian and Ubuntu: apt-get install build-essential"
            )


def run(command: list[str], *, hint: str = "") -> None:
    """Run one step with its output in the log and its progress on one line; on failure, show the tail and stop."""
    environment = os.environ | {"CMAKE_ARGS": f"{CMAKE_ARGS} {os.environ.get('CMAKE_ARGS', '')}", "PIP_NO_INPUT": "1"}
    environment["PATH"] = f"{VENV / 'bin'}{os.pathsep}{environment['PATH']}"
    tail: list[str] = []
    VENV.mkdir(exist_ok=True)
    with LOG.open("a", encoding="utf-8") as log:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment,
            text=True,
            errors="replace",
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        assert process.stdout is not None
        for line in process.stdout:
            log.write(line)
            tail = [*tail[-19:], line[:300]]
            for message in progress(line):
                say(message)
    if process.wait() != 0:
        sys.exit(f"\n{''.join(tail)}\ninstallation stopped; the whole output is in {LOG}. {hint}".rstrip())


def progress(line: str) -> Iterator[str]:
    if step := COMPILE_STEP.match(line):
        done, total = int(step[1]), int(step[2])
        bar = "#" * (24 * done // total)
        yield f"compiling llama.cpp [{bar:<24}] {done}/{total}"
    elif step := FETCH_STEP.match(line):
        yield f"installing {step[1].rstrip(',').rsplit('/', 1)[-1][:60]}"


def say(message: str) -> None:
    """One moving line on a terminal; without one (CI, a log file) only what is worth keeping, a line each."""
    if sys.stderr.isatty():
        sys.stderr.write(f"\r\x1b[2K{message}")
    elif not message.startswith("installing ") and not re.search(r"\b\d*[1-9]/\d+$", message):
        sys.stderr.write(f"{message}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    main(sys.argv[1:])
