"""The database: engine, transactions, migrations and the leader lease. One code path for SQLite and PostgreSQL.

Reading and writing are short transactions; none is held over a file or a network call.
"""

import json
import logging
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from pydantic_core import from_json, to_json
from sqlalchemy import Connection, create_engine, event, insert, text, update
from sqlalchemy.engine import URL, ExceptionContext, make_url
from sqlalchemy.exc import IntegrityError, OperationalError
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.orm import Session, sessionmaker
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement

from service.models import Lease
from service.tenancy import PROJECT, RECORDER, ProjectSession
from simpo.errors import ConfigError

log = logging.getLogger(__name__)

MIGRATIONS = Path(__file__).parent / "migrations"
_SQLITE_POOL = {"pool_size": 40, "max_overflow": 10}  # kept: as many as requests have threads
_SERVER_POOL = {"pool_size": 10, "max_overflow": 20, "pool_pre_ping": True, "pool_timeout": 10}
_PATIENCE = {"connect_timeout": 5, "keepalives_idle": 5, "keepalives_interval": 5, "keepalives_count": 3}
"""With a server that cannot be reached: seconds, and probes of a connection that is silent."""
_UNHEARD_MS = 15_000  # what was sent and not even received for so long ends its connection
_LIMITS = {"lock_timeout": "10s", "statement_timeout": "30s", "idle_in_transaction_session_timeout": "15s"}
"""So that a process that stands still in the middle of a transaction does not hold its locks for ever."""
_BUSY_TIMEOUT = "busy_timeout"  # option of a connection: seconds for this transaction's beginning, and else
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
        self._busy_timeout_s = busy_timeout_s
        self._turn = _Turn() if self.is_sqlite else None
        if self.is_sqlite:
            patience = {"timeout": busy_timeout_s, "check_same_thread": False}
            kind: dict[str, Any] = {"connect_args": patience, **_SQLITE_POOL}
        else:
            kind = {"connect_args": _patience(self.url), **_SERVER_POOL}
        # hide_parameters: what people store stays out of error texts and logs.
        self._engine = create_engine(
            self.url, hide_parameters=True, json_serializer=_written, json_deserializer=_parsed, **kind
        )
        if self.is_sqlite:
            _prepare_sqlite(self._engine, self.url)
        self._read: sessionmaker[Session] | _Within = sessionmaker(self._engine, expire_on_commit=False)
        # SQLite: a writer says so at BEGIN. A reader that turns into a writer cannot wait, it fails at once.
        self._write: sessionmaker[Session] | _Within
        self._write = sessionmaker(self._engine.execution_options(writes=True), expire_on_commit=False)
        self._committed: Callable[[dict[Any, Any]], None] = lambda info: None
        writing = self._engine.execution_options(writes=True)
        self._project_read = sessionmaker(self._engine, class_=ProjectSession, expire_on_commit=False)
        self._project_write = sessionmaker(writing, class_=ProjectSession, expire_on_commit=False)

    @contextmanager
    def read(self) -> Iterator[Session]:
        """A transaction that sees one moment. Rows stay usable after it."""
        with self._read() as session:
            yield session

    @contextmanager
    def write(self, *, patience_s: float | None = None) -> Iterator[Session]:
        """A transaction that commits at the end of the block and rolls back on an exception.

        `patience_s`: instead of the store's own, how long it waits to be the one that writes to SQLite; raises
        OperationalError after that. A server locks rows: what must not wait there says SKIP LOCKED.
        """
        patience = self._busy_timeout_s if patience_s is None else patience_s
        with self._turn.taken(patience) if self._turn else nullcontext(), self._write.begin() as session:
            if self._turn and patience_s is not None:
                session.connection(execution_options={_BUSY_TIMEOUT: (patience_s, self._busy_timeout_s)})
            yield session
        self._committed(session.info)

    def within(self, project: str, recorder: object | None = None) -> "Store":
        """The same database as one project sees and changes it (`service.tenancy`). `recorder` notes the changes."""
        narrowed = object.__new__(type(self))  # copy.copy does the same in four times as long, for each request
        narrowed.__dict__.update(self.__dict__)
        info = {PROJECT: project, RECORDER: recorder}
        narrowed._read = _Within(self._project_read, info)
        narrowed._write = _Within(self._project_write, info)
        return narrowed

    def watch(self, committed: Callable[[dict[Any, Any]], None], failed: Callable[[str], None]) -> None:
        """Tell of every committed write (the session's `info`), and of statements that failed (the error's name)."""
        self._committed = committed

        @event.listens_for(self._engine, "handle_error")
        def _on_error(context: ExceptionContext) -> None:
            failed(type(context.sqlalchemy_exception or context.original_exception).__name__)

    def migrate(self) -> None:
        """Bring the schema to the newest version. Processes that start together wait for each other.

        Raises:
            ConfigError: the database cannot be opened.
        """
        config = Config()
        config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
        try:
            if self._is_newest(config):
                return  # the usual start: it waits for no writer
            with self._engine.execution_options(writes=True).begin() as connection:
                if not self.is_sqlite:
                    for limit in _LIMITS:  # a migration takes as long as it takes
                        connection.execute(text(f"SET LOCAL {limit} = 0"))
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
        """Close the pooled connections, and each that a thread still has, when it gives it back."""
        # Else it would lie in a pool that nobody empties: a query whose asker was cancelled goes on in its thread.
        event.listen(self._engine, "checkin", lambda _, record: record.invalidate())
        self._engine.dispose()

    def _is_newest(self, config: Config) -> bool:
        with self._engine.connect() as connection:
            there = MigrationContext.configure(connection).get_current_heads()
        return set(there) == set(ScriptDirectory.from_config(config).get_heads())

    def _first_lease(self, name: str, holder: str, ttl_s: float) -> bool:
        try:
            with self.write() as session:
                session.execute(insert(Lease).values(name=name, holder=holder, until=DatabaseNow() + ttl_s))
        except IntegrityError:
            return False  # another process was first
        return True


class _Within:
    """A session maker whose sessions know for whom they are."""

    def __init__(self, make: sessionmaker[ProjectSession], info: dict[Any, Any]) -> None:
        self._make = make
        self._info = info

    def __call__(self) -> Session:
        return self._make(info=self._info)

    @contextmanager
    def begin(self) -> Iterator[Session]:
        with self() as session, session.begin():
            yield session


class _Turn:
    """Writers of one process, one after another. SQLite's own way to wait is to look again after ever longer pauses,
    up to 0.1 s, and whoever looks at the right moment goes first: with 16 writers the last waited for seconds.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()

    @contextmanager
    def taken(self, patience_s: float) -> Iterator[None]:
        if not self._lock.acquire(timeout=patience_s):
            raise OperationalError("BEGIN IMMEDIATE", None, sqlite3.OperationalError("database is locked"))
        try:
            yield
        finally:
            self._lock.release()


class DatabaseNow(FunctionElement[float]):
    """Seconds since 1970 by the database's clock: one clock for all processes."""

    inherit_cache = True
    name = "database_now"


def rows_changed(result: Any) -> int:
    """How many rows a conditional UPDATE or DELETE hit."""
    return int(result.rowcount)


def _written(value: Any) -> str:
    """A JSON column's text, in a quarter of json's time, which still takes lone surrogates."""
    try:
        return to_json(value, inf_nan_mode="constants").decode()
    except ValueError:
        return json.dumps(value)


def _parsed(text: str | bytes) -> Any:
    """A JSON column. Lone surrogates, which only the slow parser takes, may stand in what people sent."""
    try:
        return from_json(text)
    except ValueError:
        return json.loads(text)


def _patience(url: URL) -> dict[str, Any]:
    """What libpq is told; options of the URL come last, so that they win."""
    limits = " ".join(f"-c {name}={value}" for name, value in _LIMITS.items())
    return {**_PATIENCE, "tcp_user_timeout": _UNHEARD_MS, "options": f"{limits} {url.query.get('options', '')}"}


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
        options = connection.get_execution_options()
        begin = "BEGIN IMMEDIATE" if options.get("writes", False) else "BEGIN"
        if _BUSY_TIMEOUT not in options:
            connection.exec_driver_sql(begin)
            return
        for_now, usual = (f"PRAGMA busy_timeout={int(1000 * seconds)}" for seconds in options[_BUSY_TIMEOUT])
        connection.exec_driver_sql(for_now)
        try:
            connection.exec_driver_sql(begin)
        finally:
            connection.exec_driver_sql(usual)  # the connection goes back to the pool
