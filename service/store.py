"""The database: engine, transactions, migrations and the leader lease. One code path for SQLite and PostgreSQL.

Reading and writing are short transactions; none is held over a file or a network call.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, create_engine, event, insert, text, update
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import IntegrityError, OperationalError
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.orm import Session, sessionmaker
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement

from service.models import Lease
from simpo.errors import ConfigError

log = logging.getLogger(__name__)

MIGRATIONS = Path(__file__).parent / "migrations"
_ADVISORY_LOCK = 0x51A90  # any number, the same in every process of the service


class Store:
    """One database. Safe to use from many threads."""

    def __init__(self, url: str | URL, *, busy_timeout_s: float = 10.0) -> None:
        """`busy_timeout_s`: how long a SQLite writer waits for another one.

        Raises:
            ConfigError: the directory of a SQLite file cannot be made.
        """
        self.url = make_url(url)
        self.is_sqlite = self.url.get_backend_name() == "sqlite"
        if self.is_sqlite:
            patience = {"timeout": busy_timeout_s, "check_same_thread": False}
            self._engine = create_engine(self.url, connect_args=patience, hide_parameters=True)
            _prepare_sqlite(self._engine, self.url)
        else:
            self._engine = create_engine(
                self.url, pool_pre_ping=True, pool_size=10, max_overflow=20, hide_parameters=True
            )
        # hide_parameters: what people store stays out of error texts and logs.
        self._read = sessionmaker(self._engine, expire_on_commit=False)
        # SQLite: a writer says so at BEGIN. A reader that turns into a writer cannot wait, it fails at once.
        self._write = sessionmaker(self._engine.execution_options(writes=True), expire_on_commit=False)

    @contextmanager
    def read(self) -> Iterator[Session]:
        """A transaction that sees one moment. Rows stay usable after it."""
        with self._read() as session:
            yield session

    @contextmanager
    def write(self) -> Iterator[Session]:
        """A transaction that commits at the end of the block and rolls back on an exception."""
        with self._write.begin() as session:
            yield session

    def migrate(self) -> None:
        """Bring the schema to the newest version. Processes that start together wait for each other.

        Raises:
            ConfigError: the database cannot be opened.
        """
        config = Config()
        config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
        try:
            with self._engine.execution_options(writes=True).begin() as connection:
                if not self.is_sqlite:
                    connection.execute(text("SELECT pg_advisory_xact_lock(:n)"), {"n": _ADVISORY_LOCK})
                config.attributes["connection"] = connection
                command.upgrade(config, "head")
        except OperationalError as error:
            where = self.url.render_as_string(hide_password=True)
            raise ConfigError(f"cannot open {where} ({error.orig}): check SIMPO_DATABASE_URL") from error

    def ping(self) -> None:
        """Raises SQLAlchemy's OperationalError when the database does not answer."""
        with self._engine.connect() as connection:
            connection.execute(text("SELECT 1"))

    def take_lease(self, name: str, holder: str, ttl_s: float) -> bool:
        """True if `holder` has the lease for the next `ttl_s` seconds by the database's clock."""
        mine = (Lease.holder == holder) | (Lease.until < DatabaseNow())
        with self.write() as session:
            claimed = session.execute(
                update(Lease).where(Lease.name == name, mine).values(holder=holder, until=DatabaseNow() + ttl_s)
            )
            if rows_changed(claimed) == 1:
                return True
            known = session.get(Lease, name) is not None
        return not known and self._first_lease(name, holder, ttl_s)

    def release_lease(self, name: str, holder: str) -> None:
        """Give the lease back, if held: the next process need not wait for its end."""
        with self.write() as session:
            session.execute(update(Lease).where(Lease.name == name, Lease.holder == holder).values(until=0.0))

    def close(self) -> None:
        """Close the pooled connections."""
        self._engine.dispose()

    def _first_lease(self, name: str, holder: str, ttl_s: float) -> bool:
        try:
            with self.write() as session:
                session.execute(insert(Lease).values(name=name, holder=holder, until=DatabaseNow() + ttl_s))
        except IntegrityError:
            return False  # another process was first
        return True


class DatabaseNow(FunctionElement[float]):
    """Seconds since 1970 by the database's clock: one clock for all processes."""

    inherit_cache = True
    name = "database_now"


def rows_changed(result: Any) -> int:
    """How many rows a conditional UPDATE or DELETE hit."""
    return int(result.rowcount)


@compiles(DatabaseNow, "sqlite")
def _sqlite_now(element: DatabaseNow, compiler: SQLCompiler, **kw: Any) -> str:
    return "((julianday('now') - 2440587.5) * 86400.0)"


@compiles(DatabaseNow, "postgresql")
def _postgresql_now(element: DatabaseNow, compiler: SQLCompiler, **kw: Any) -> str:
    return "CAST(EXTRACT(EPOCH FROM clock_timestamp()) AS DOUBLE PRECISION)"


def _prepare_sqlite(engine: Any, url: URL) -> None:
    if url.database:
        folder = Path(url.database).parent
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"cannot make {folder} ({error.strerror}): check SIMPO_DATABASE_URL") from error

    @event.listens_for(engine, "connect")
    def _on_connect(dbapi_connection: Any, record: object) -> None:
        dbapi_connection.isolation_level = None  # we say BEGIN ourselves, below
        cursor = dbapi_connection.cursor()
        cursor.execute("PRAGMA journal_mode=WAL")
        cursor.execute("PRAGMA synchronous=FULL")  # what was acknowledged survives a power cut
        cursor.execute("PRAGMA foreign_keys=ON")
        cursor.close()

    @event.listens_for(engine, "begin")
    def _on_begin(connection: Connection) -> None:
        writes = connection.get_execution_options().get("writes", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
