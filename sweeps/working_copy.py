"""Run directories by their names: a directory, or s3://BUCKET/PREFIX with a working copy on this node. Light.

The copy lies where nobody else writes, under a name that follows from the store's, so that a sweep that goes on where
it began finds what it had. Trials on other nodes have theirs under the same path: what a driver tells them by path is
right there too, once it has been fetched.
"""

import hashlib
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from simpo.errors import ConfigError, StorageError
from sweeps.judges_spec import endpoints_of
from sweeps.place import Here, Place
from sweeps.remote import Remote
from sweeps.run_dir import RunDir
from sweeps.spec import SweepSpec
from sweeps.store import S3, open_store


def is_remote(where: str | Path) -> bool:
    """Whether a name is that of an object store."""
    return str(where).startswith(S3)


def open_run(where: str | Path, copies: Path | None = None) -> RunDir:
    """The run directory of that name; of one in an object store a working copy that is up to date.

    copies: directory of working copies, by default one of this user's under the temporary directory.
    Raises ConfigError for a name that cannot be honoured, StorageError where store or disk fail.
    """
    if not is_remote(where):
        return RunDir(where)
    store = open_store(where)
    root = _copies(copies) / hashlib.sha256(store.uri.encode()).hexdigest()[:16]
    run = RunDir(root, Remote(store, root))
    run.refresh()
    return run


def place_of(uri: str | None, root: Path) -> Place:
    """What lies behind a working copy of another node's; None: the directory itself, which all nodes see."""
    return Here(root) if uri is None else Remote(open_store(uri), root)


def check_supported(spec: SweepSpec, place: Place) -> None:
    """Raises ConfigError by name for what an object store cannot keep, where that is the place."""
    if place.remote:
        check_kept_remotely(spec)


def check_kept_remotely(spec: SweepSpec) -> None:
    """Raises ConfigError by name for what an object store cannot keep."""
    check_judge_kept(spec.judge)
    if spec.warm_start:
        raise ConfigError("earlier sweeps cannot be read from an object store yet: leave it out", "warm_start")
    if spec.parallel.workers_per_trial > 1:
        raise ConfigError(
            "several workers of a trial need a directory that all nodes see: set it to 1, or use a file system",
            "parallel.workers_per_trial",
        )


def check_judge_kept(judge: Any) -> None:
    """Raises ConfigError by name for a judge whose answers an object store cannot keep."""
    if any(True for _ in endpoints_of(judge)):
        raise ConfigError(
            "an endpoint's answers are kept in a database file, which an object store cannot hold: "
            "use a run directory on a file system, or judge by practice or reward_model",
            "judge",
        )


def take_out(run: RunDir, checkpoint: str, to: Path) -> Path:
    """Copy a checkpoint of a run directory to `to`; returns that. Raises ConfigError, CheckpointError, StorageError."""
    source = (run.root / checkpoint).resolve()
    if not source.is_relative_to(run.root.resolve()) or not run.place.pull(run.root / checkpoint):
        raise ConfigError(f"there is no checkpoint {checkpoint!r} in {run.place.uri}", "--checkpoint")
    if to.exists():
        raise ConfigError(f"{to} exists already: choose another place", "--to")
    try:
        shutil.copytree(source, to)
    except OSError as error:
        raise StorageError(f"cannot be written ({error.strerror}): check space and permissions", str(to)) from error
    return to


def refuse_remote(where: str | Path, what: str) -> None:
    """Raises ConfigError where `what` was to be done in an object store."""
    # A path type has made one slash of two.
    if str(where).startswith((S3, "s3:/")):
        raise ConfigError(f"{what} cannot be kept in an object store yet: give a directory", "--out")


def own_folder(wanted: Path | None, name: str, what: str) -> Path:
    """A directory that nobody else writes, made where it is not there; None: by its name, under the temporary one.

    Raises StorageError where it cannot be made, ConfigError where it belongs to somebody else; `what` it is to be.
    """
    folder = wanted or Path(tempfile.gettempdir()) / f"{name}-{os.getuid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise StorageError(f"cannot be made ({error.strerror}): choose another for {what}", str(folder)) from error
    if wanted is None and (folder.is_symlink() or folder.stat().st_uid != os.getuid()):
        raise ConfigError(f"{folder} belongs to somebody else: choose another for {what}", what)
    return folder.absolute()


def _copies(wanted: Path | None) -> Path:
    return own_folder(wanted, "simpo-runs", "--copies")
