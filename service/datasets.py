"""Rows and files of uploaded datasets: made once, read by sweeps, deleted when nobody works with them."""

import re
import shutil
import unicodedata
from collections.abc import Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from sqlalchemy import select
from sqlalchemy.orm import Session

from service import events
from service.auth import Caller
from service.errors import Conflict, NotFound, Unavailable, invalid
from service.ids import new_id
from service.models import Sweep
from service.models_data import Dataset, DatasetUse
from service.settings import Settings
from service.states import LIVE, DatasetState, Validation
from service.uploads import Received

KEPT = timedelta(hours=24)
"""How long the file of a deleted dataset stays."""

_SLASHES = str.maketrans(dict.fromkeys("\u2044\u2215\u29f8\u2216\u29f5", "/"))
_FILENAME = re.compile(r"[^/\\\x00-\x1f\x7f]{1,200}")
_SUFFIXES = (".jsonl", ".jsonl.gz", ".gz", ".json", ".ndjson")


def checked_filename(filename: str) -> str:
    """A name for people. Raises Invalid (422) for one that could be meant as a path, or as another kind of file."""
    # Others may decode it once more, or in another alphabet: what then holds a slash is no plain name here either.
    read = unicodedata.normalize("NFKC", unquote(unquote(filename))).translate(_SLASHES)
    if not all(_FILENAME.fullmatch(name) for name in (filename, read)) or filename in (".", ".."):
        raise invalid([("/filename", "must be a plain file name: no slashes, backslashes or control characters")])
    if "." in filename and not filename.lower().endswith(_SUFFIXES):
        raise invalid([("/filename", f"{filename!r}: upload JSON lines, .jsonl or .jsonl.gz")])
    return filename


def create_dataset(
    session: Session,
    settings: Settings,
    received: Received,
    *,
    name: str | None,
    filename: str,
    caller: Caller,
    now: datetime,
) -> tuple[Dataset, bool]:
    """The dataset of these bytes, and whether it is new. The file goes to its place before the row is committed.

    Raises Conflict (409): the bytes are known under another name, or the name belongs to other bytes.
    """
    mine = _live().where(Dataset.project == caller.project)
    same = session.scalar(mine.where(Dataset.sha256 == received.sha256).with_for_update())
    if same is not None:
        if name is not None and same.name != name:
            raise _taken(f"These bytes are {same.id}, named {same.name!r}: use that one.", "dataset_exists", same.id)
        return same, False
    if name is not None and (other := session.scalar(mine.where(Dataset.name == name))) is not None:
        raise _taken(f"The name {name!r} belongs to {other.id}: choose another name.", "name_taken", other.id)
    row = Dataset(
        id=new_id("dst", now),
        project=caller.project,
        name=name,
        filename=filename,
        created_by=caller.key_id,
        sha256=received.sha256,
        format=received.format,
        bytes=received.bytes,
        unpacked_bytes=received.unpacked_bytes,
        rows=received.rows,
        columns=list(received.columns),
        state=DatasetState.READY,
        validation=Validation.NONE,
        validation_message="",
        event_seq=0,
        created_at=now,
    )
    session.add(row)
    facts = {"name": name, "sha256": row.sha256, "rows": row.rows}
    events.append(session, row, "dataset.created", f"{row.rows} rows.", facts, now=now, actor=caller.key_id)
    session.flush()
    try:
        place = file_of(settings, row)
        place.parent.mkdir()
        received.path.chmod(0o644)  # drivers may run as somebody else
        received.path.rename(place)
    except OSError as error:
        raise Unavailable(f"The store cannot be written ({error.strerror}).", code="store_unwritable") from error
    return row, True


def file_of(settings: Settings, row: Dataset) -> Path:
    """Its rows, as this process and the Ray nodes see them."""
    return settings.datasets_dir / row.id / f"rows.{row.format}"


def ready(session: Session, dataset_id: str) -> Dataset:
    """One that is there. Raises NotFound (404), for a deleted one too."""
    return _there(session.get(Dataset, dataset_id), dataset_id)


def lock_dataset(session: Session, dataset_id: str) -> Dataset:
    """The row, ours until the transaction ends. Raises NotFound (404), for a deleted one too."""
    return _there(session.scalar(select(Dataset).where(Dataset.id == dataset_id).with_for_update()), dataset_id)


def located(session: Session, settings: Settings, dataset_id: str) -> Path | None:
    """The file of a dataset that is there, or None."""
    row = session.get(Dataset, dataset_id)
    return None if row is None or row.state == DatasetState.DELETED else file_of(settings, row)


def want_validation(
    session: Session, dataset_id: str, request: Mapping[str, Any], caller: Caller, now: datetime
) -> Dataset:
    """Record the wish for a report; the reconciler has it made. One that waits or runs is replaced by this one."""
    row = lock_dataset(session, dataset_id)
    row.validation, row.validation_request = Validation.PENDING, dict(request)
    row.validation_message = "Waits for its turn."
    text = "Validation requested."
    events.append(session, row, "dataset.validation_requested", text, dict(request), now=now, actor=caller.key_id)
    return row


def delete_dataset(session: Session, row: Dataset, caller: Caller, now: datetime) -> None:
    """Mark a locked row. Raises Conflict (409) while something that is not over reads it."""
    if readers := live_readers(session, row.id):
        raise Conflict(
            f"{', '.join(readers[:3])} reads {row.id}: wait for its end, or cancel it first.",
            code="dataset_in_use",
            facts={"existing": readers[0]},
        )
    row.state, row.expire_time = DatasetState.DELETED, now + KEPT
    if row.validation in (Validation.PENDING, Validation.RUNNING):
        row.validation, row.validation_message = Validation.FAILED, "The dataset was deleted."
    facts = {"expire_time": row.expire_time.isoformat()}
    events.append(session, row, "dataset.deleted", "Deleted.", facts, now=now, actor=caller.key_id)


def live_readers(session: Session, dataset_id: str) -> list[str]:
    """Ids of the sweeps, runs and evaluations that are not over and read it."""
    joined = select(Sweep.id).join(DatasetUse, DatasetUse.sweep_id == Sweep.id).distinct().order_by(Sweep.id)
    return list(session.scalars(joined.where(DatasetUse.dataset_id == dataset_id, Sweep.state.in_(LIVE))))


def datasets_of(session: Session, sweep_id: str) -> dict[str, str]:
    """Role -> dataset, of one sweep."""
    found = session.scalars(select(DatasetUse).where(DatasetUse.sweep_id == sweep_id))
    return {use.role: use.dataset_id for use in found}


def forget_files(session: Session, settings: Settings, now: datetime) -> None:
    """Remove the files of deleted datasets past their time, and what a crash left behind an upload a day ago."""
    gone = select(Dataset.id).where(Dataset.state == DatasetState.DELETED, Dataset.expire_time < now)
    names = set(session.scalars(gone))
    known = set(session.scalars(select(Dataset.id)))
    if not settings.datasets_dir.is_dir():
        return
    for path in settings.datasets_dir.iterdir():
        old = path.stat().st_mtime < (now - KEPT).timestamp()
        if path.name in names or (old and path.name not in known):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


def _there(row: Dataset | None, dataset_id: str) -> Dataset:
    if row is None:
        raise NotFound(f"There is no dataset {dataset_id}.")
    if row.state == DatasetState.DELETED:
        raise NotFound(
            f"Dataset {dataset_id} was deleted. What read it still names it; GET /v1/datasets?state=DELETED lists it.",
            code="dataset_deleted",
        )
    return row


def _live() -> Any:
    return select(Dataset).where(Dataset.state != DatasetState.DELETED)


def _taken(detail: str, code: str, existing: str) -> Conflict:
    return Conflict(detail, code=code, errors=[("/name", f"taken by {existing}")], facts={"existing": existing})
