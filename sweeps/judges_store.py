"""What a judge was paid for: every answer on record, every request counted before it is sent.

One SQLite file, whole after any kill. A request is reserved before it leaves and settled together with its answer, in
one transaction; so an answer on record is never bought again, a cap is never exceeded, not even by several processes,
and what a killed process had in flight stays counted as spent: that is the only loss. No key comes here.
"""

import contextlib
import json
import sqlite3
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from simpo.errors import SimPOError

_SCHEMA = """
CREATE TABLE answers (key TEXT PRIMARY KEY, judge TEXT NOT NULL, output TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE requests (id INTEGER PRIMARY KEY, judge TEXT NOT NULL, cost REAL NOT NULL, settled INTEGER NOT NULL);
CREATE INDEX requests_by_judge ON requests (judge, cost);
"""
_VERSION = 1


class JudgeStoreError(SimPOError):
    """A record of judgements that cannot be read or written."""


@dataclass(frozen=True, kw_only=True)
class Spent:
    """What one judge has cost so far, over all processes and attempts."""

    requests: int
    """Sent, or about to be."""
    cost: float
    """Settled costs, and the most that the others can come to."""

    def as_dict(self) -> dict[str, float | int]:
        """Plain JSON values."""
        return dict(vars(self))


class JudgeStore:
    """The record in one file, which is made when absent. Close it, or use it as a context."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        with self._explained():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            # Autocommit, so that each transaction below is on disk before the next request leaves. A rollback journal:
            # it is slower than a write-ahead log (20 to 40 ms a request), but two hosts may share it over NFS.
            self._db = sqlite3.connect(self.path, timeout=60, isolation_level=None)
        try:
            with self._explained(), self._transaction():
                version = self._db.execute("PRAGMA user_version").fetchone()[0]
                if version == 0:
                    for statement in _SCHEMA.strip().split("\n"):
                        self._db.execute(statement)
                    self._db.execute(f"PRAGMA user_version = {_VERSION}")
            if version not in (0, _VERSION):
                raise JudgeStoreError(f"was written by another version ({version}): move it away", str(self.path))
        except JudgeStoreError:
            self.close()
            raise

    def answer(self, key: str) -> dict[str, Any] | None:
        """The recorded output of this judge for this very question."""
        with self._explained():
            row = self._db.execute("SELECT output FROM answers WHERE key = ?", (key,)).fetchone()
        return None if row is None else dict(json.loads(row[0]))

    def reserve(self, judge: str, cost: float, *, max_requests: int, max_cost: float | None) -> int | None:
        """Count one request of at most this cost as spent, and return its number; None if it would break a cap."""
        with self._explained(), self._transaction():
            spent = self._spent(judge)
            if spent.requests >= max_requests or (max_cost is not None and spent.cost + cost > max_cost):
                return None
            row = self._db.execute("INSERT INTO requests (judge, cost, settled) VALUES (?, ?, 0)", (judge, cost))
            return row.lastrowid

    def settle(
        self, request: int, cost: float | None, *, key: str | None = None, output: Mapping[str, Any] | None = None
    ) -> None:
        """What a reserved request came to (None: unknown, so the most it can be), and its answer if there was one."""
        with self._explained(), self._transaction():
            if cost is None:
                self._db.execute("UPDATE requests SET settled = 1 WHERE id = ?", (request,))
            else:
                self._db.execute("UPDATE requests SET settled = 1, cost = ? WHERE id = ?", (cost, request))
            if key is not None and output is not None:
                self._db.execute(
                    "INSERT OR REPLACE INTO answers SELECT ?, judge, ? FROM requests WHERE id = ?",
                    (key, json.dumps(output), request),
                )

    def spent(self, judge: str) -> Spent:
        """So far, reservations included."""
        with self._explained():
            return self._spent(judge)

    def close(self) -> None:
        """Release the file."""
        self._db.close()

    def __enter__(self) -> "JudgeStore":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _spent(self, judge: str) -> Spent:
        query = "SELECT count(*), coalesce(sum(cost), 0) FROM requests WHERE judge = ?"
        requests, cost = self._db.execute(query, (judge,)).fetchone()
        return Spent(requests=requests, cost=cost)

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        """Takes the write lock at once: what is read inside cannot change before it is written."""
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            raise JudgeStoreError(f"cannot be used as a record of judgements: {error}", str(self.path)) from error
