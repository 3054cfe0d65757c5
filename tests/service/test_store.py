"""The store's contract on SQLite and on a real PostgreSQL, and what is particular to SQLite."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from alembic import command
from alembic.config import Config
from sqlalchemy import create_engine, inspect

from service.store import MIGRATIONS, Store
from simpo.errors import ConfigError
from tests.contracts import StoreContract
from tests.service.postgres import fresh_database


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
        store = Store(fresh_database(postgres))
        yield store
        store.close()

    def test_two_processes_may_migrate_at_once(self, postgres: Path) -> None:
        url = fresh_database(postgres, template="template0")
        program = "import sys\nfrom service.store import Store\nStore(sys.argv[1]).migrate()"
        starts = [[sys.executable, "-c", program, url] for _ in range(2)]
        processes = [subprocess.Popen(start) for start in starts]
        assert [process.wait(240) for process in processes] == [0, 0]


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
