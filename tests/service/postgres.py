"""A private PostgreSQL for tests: own directory, own socket, no network; gone afterwards."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text

from service.store import Store


def fresh_database(socket_directory: Path, *, template: str = "migrated") -> str:
    """URL of the database `simpo`, made anew from the template."""
    admin = create_engine(socket_url(socket_directory, "postgres"), isolation_level="AUTOCOMMIT")
    with admin.connect() as connection:
        connection.execute(text("DROP DATABASE IF EXISTS simpo WITH (FORCE)"))
        connection.execute(text(f"CREATE DATABASE simpo TEMPLATE {template}"))
    admin.dispose()
    return socket_url(socket_directory, "simpo")


@contextmanager
def private_postgres(*, durable: bool = False, host: str = "") -> Iterator[Path]:
    """A private PostgreSQL without a network, by its socket's directory; its database `migrated` is at the head.

    `durable`: it waits for the disk, as outside of tests. `host`: an address at which its /24 may ask it too.
    """
    if shutil.which("initdb") is None or shutil.which("pg_ctl") is None:
        pytest.skip("needs PostgreSQL's initdb and pg_ctl in the PATH (Debian: postgresql)")
    # Its socket's path may have 107 characters at most, and root may not run it.
    home = Path(tempfile.mkdtemp(prefix="pg"))
    if _user():
        shutil.chown(home, _user())
    data = str(home / "data")
    try:
        _run(home, "initdb", "-D", data, "-U", "postgres", "--auth=trust", "--no-sync", "--encoding=UTF8", "--locale=C")
        if host:
            with (home / "data" / "pg_hba.conf").open("a") as rules:
                rules.write(f"host all all {host}/24 trust\n")
        start(home, durable=durable, host=host)
        try:
            admin = create_engine(socket_url(home, "postgres"), isolation_level="AUTOCOMMIT")
            with admin.connect() as connection:
                connection.execute(text("CREATE DATABASE migrated"))
            admin.dispose()
            template = Store(socket_url(home, "migrated"))
            template.migrate()
            template.close()
            yield home
        finally:
            stop(home)
    finally:
        shutil.rmtree(home)


def start(socket_directory: Path, *, durable: bool = False, host: str = "") -> None:
    """Start the server of that socket; returns when it answers."""
    fsync = "on" if durable else "off"
    options = f"-c listen_addresses={host} -c unix_socket_directories={socket_directory} -c fsync={fsync}"
    log = str(socket_directory / "log")
    _run(socket_directory, "pg_ctl", "-D", str(socket_directory / "data"), "-w", "-l", log, "start", "-o", options)


def stop(socket_directory: Path) -> None:
    """As a crash: no connection is waited for, nothing is tidied up."""
    _run(socket_directory, "pg_ctl", "-D", str(socket_directory / "data"), "-m", "immediate", "stop")


def socket_url(socket_directory: Path, database: str) -> str:
    """SQLAlchemy URL of a database behind that socket."""
    return f"postgresql+psycopg://postgres@/{database}?host={socket_directory}"


def _run(home: Path, program: str, *arguments: str) -> None:
    # Output into a file: a server that inherits a pipe keeps it open.
    with (home / "out").open("ab") as out:
        command = [str(shutil.which(program)), *arguments]
        patient = {**os.environ, "PGCTLTIMEOUT": "200"}
        subprocess.run(command, check=True, user=_user(), cwd=home, env=patient, stdout=out, stderr=out, timeout=240)


def _user() -> str | None:
    return "nobody" if os.geteuid() == 0 else None
