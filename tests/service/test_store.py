"""The store's contract on SQLite and on a real PostgreSQL, and what is particular to SQLite."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from alembic import command
from alembic.config import Config
from sqlalchemy import create_engine, inspect, text

from service.store import MIGRATIONS, Store
from simpo.errors import ConfigError
from tests.contracts import StoreContract


@pytest.mark.quick
class TestSqlite(StoreContract):
    @pytest.fixture
    def store(self, tmp_path: Path, migrated: Path) -> Iterator[Store]:
        (tmp_path / "simpo.db").write_bytes(migrated.read_bytes())
        store = Store(f"sqlite:///{tmp_path / 'simpo.db'}")
        yield store
        store.close()

    def test_it_keeps_what_it_acknowledged(self, store: Store) -> None:
        with store.read() as session:
            pragma = session.connection().exec_driver_sql
            assert pragma("PRAGMA journal_mode").scalar() == "wal"
            assert pragma("PRAGMA synchronous").scalar() == 2  # FULL
            assert pragma("PRAGMA foreign_keys").scalar() == 1


class TestPostgres(StoreContract):
    @pytest.fixture
    def store(self, postgres: Path) -> Iterator[Store]:
        """A database of its own, copied from a migrated one."""
        admin = create_engine(_url(postgres, "postgres"), isolation_level="AUTOCOMMIT")
        with admin.connect() as connection:
            connection.execute(text("DROP DATABASE IF EXISTS simpo"))
            connection.execute(text("CREATE DATABASE simpo TEMPLATE migrated"))
        admin.dispose()
        store = Store(_url(postgres, "simpo"))
        yield store
        store.close()

    def test_two_processes_may_migrate_at_once(self, postgres: Path) -> None:
        admin = create_engine(_url(postgres, "postgres"), isolation_level="AUTOCOMMIT")
        with admin.connect() as connection:
            connection.execute(text("DROP DATABASE IF EXISTS fresh"))
            connection.execute(text("CREATE DATABASE fresh"))
        admin.dispose()
        program = "import sys\nfrom service.store import Store\nStore(sys.argv[1]).migrate()"
        starts = [[sys.executable, "-c", program, _url(postgres, "fresh")] for _ in range(2)]
        processes = [subprocess.Popen(start) for start in starts]
        assert [process.wait(60) for process in processes] == [0, 0]


@pytest.fixture(scope="module")
def postgres() -> Iterator[Path]:
    """A private PostgreSQL without a network, by its socket's directory; its database `migrated` is at the head."""
    initdb, pg_ctl = shutil.which("initdb"), shutil.which("pg_ctl")
    if initdb is None or pg_ctl is None:
        pytest.skip("needs PostgreSQL's initdb and pg_ctl in the PATH (Debian: postgresql)")
    # Its socket's path may have 107 characters at most, and root may not run it.
    home = Path(tempfile.mkdtemp(prefix="pg"))
    user = "nobody" if os.geteuid() == 0 else None
    if user:
        shutil.chown(home, user)
    data = home / "data"
    start = [pg_ctl, "-D", str(data), "-w", "-l", str(home / "log"), "start"]
    options = f"-c listen_addresses= -c unix_socket_directories={home} -c fsync=off"

    def run(*arguments: str) -> None:
        # Output into a file: a server that inherits a pipe keeps it open.
        with (home / "out").open("ab") as out:
            subprocess.run(arguments, check=True, user=user, cwd=home, stdout=out, stderr=out, timeout=60)

    try:
        run(initdb, "-D", str(data), "-U", "postgres", "--auth=trust", "--no-sync", "--encoding=UTF8", "--locale=C")
        run(*start, "-o", options)
        try:
            admin = create_engine(_url(home, "postgres"), isolation_level="AUTOCOMMIT")
            with admin.connect() as connection:
                connection.execute(text("CREATE DATABASE migrated"))
            admin.dispose()
            template = Store(_url(home, "migrated"))
            template.migrate()
            template.close()
            yield home
        finally:
            run(pg_ctl, "-D", str(data), "-m", "immediate", "stop")
    finally:
        shutil.rmtree(home)


def _url(socket_directory: Path, database: str) -> str:
    return f"postgresql+psycopg://postgres@/{database}?host={socket_directory}"


# -- migrations


@pytest.mark.quick
def test_migrations_go_down_and_up_again(tmp_path: Path) -> None:
    store = Store(f"sqlite:///{tmp_path / 'simpo.db'}")
    store.migrate()
    engine = create_engine(store.url)
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.downgrade(config, "base")
    assert inspect(engine).get_table_names() == ["alembic_version"]
    engine.dispose()
    store.migrate()
    store.close()


@pytest.mark.quick
def test_a_database_that_cannot_be_opened_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"cannot make .*check SIMPO_DATABASE_URL"):
        Store(f"sqlite:///{tmp_path}/file/simpo.db")
    store = Store("postgresql+psycopg://simpo:secret@/simpo?host=/nowhere")
    with pytest.raises(ConfigError, match="SIMPO_DATABASE_URL") as caught:
        store.migrate()
    assert "secret" not in str(caught.value)
