"""Certificates that nobody has signed but their owner."""

import shutil
import subprocess
from pathlib import Path

import pytest


def self_signed(folder: Path, name: str) -> tuple[Path, Path]:
    """(certificate, key) for a name, like `DNS:a.example.com` or `IP:127.0.0.1`; skips where there is no openssl."""
    program = shutil.which("openssl")
    if program is None:
        pytest.skip("no openssl: a certificate cannot be made")
    certificate, key = folder / "self.crt", folder / "self.key"
    made = [program, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]
    made += ["-keyout", str(key), "-out", str(certificate), "-subj", "/CN=self", "-addext", f"subjectAltName={name}"]
    subprocess.run(made, check=True, capture_output=True)
    return certificate, key
