"""Where run directories are: under SIMPO_STORE, a directory, or an object store of which there are working copies.

What is refused where the store is an object store, by name: sweeps that need a file system (`sweeps.working_copy`),
comparisons and uploads.
"""

from functools import lru_cache
from typing import TYPE_CHECKING

from service.errors import Conflict, invalid, pointer_of
from service.models import COMPARISON
from service.rows import Order
from service.settings import Settings
from simpo.errors import ConfigError
from sweeps.remote import Remote
from sweeps.run_dir import RunDir
from sweeps.spec import SweepSpec
from sweeps.store import checked_key, s3_store
from sweeps.working_copy import check_kept_remotely

if TYPE_CHECKING:
    from sweeps.store_s3 import S3Store

TRIES = 3
"""Of one request to an object store: a pass of the reconciler must not wait long for one sweep."""
READ_S = 5.0


def run_of(settings: Settings, sweep_id: str) -> RunDir:
    """A sweep's run directory; of one in an object store a working copy, as old as its last refresh."""
    root = settings.run_dir(sweep_id)
    if settings.bucket is None:
        return RunDir(root)
    return RunDir(root, Remote(_bucket(settings.bucket).under(f"sweeps/{sweep_id}"), root))


def name_of(settings: Settings, sweep_id: str) -> str:
    """How its driver is told of it: a path, or s3://..."""
    return str(settings.run_dir(sweep_id)) if settings.bucket is None else f"{settings.bucket}/sweeps/{sweep_id}"


def place_in_bucket(settings: Settings, sweep_id: str, checkpoint: str) -> str | None:
    """URI of a checkpoint that an attempt of a sweep in a bucket has made; None for any other.

    Nothing is asked: that the driver published it is the word for it, and who fetches it finds out.
    """
    if settings.bucket is None or not checkpoint.startswith("attempts/"):
        return None
    try:
        return f"{name_of(settings, sweep_id)}/{checked_key(checkpoint)}"
    except ConfigError:
        return None


def check_kept(settings: Settings, order: Order) -> None:
    """Raises Invalid (422) for what an object store cannot keep."""
    if settings.bucket is None:
        return
    if order.kind == COMPARISON:
        raise invalid([("", "a comparison cannot be kept in an object store yet: ask for one sweep a method")])
    try:
        check_kept_remotely(SweepSpec.model_validate(order.plan))
    except ConfigError as error:
        raise invalid([(pointer_of((error.field or "").split(".")), error.message)]) from error


def check_disk(settings: Settings, what: str) -> None:
    """Raises Conflict (409) for what needs a directory that all machines see."""
    if settings.bucket is not None:
        raise Conflict(
            f"{what} here: SIMPO_STORE is an object store, and this needs a directory that all machines see.",
            code="needs_file_system",
        )


@lru_cache(maxsize=4)
def _bucket(uri: str) -> "S3Store":
    """One client for the process: making one takes tenths of a second."""
    return s3_store(uri, tries=TRIES, read_s=READ_S)
