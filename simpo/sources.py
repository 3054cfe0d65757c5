"""Where preference rows come from: files, directories saved by `datasets`, and the hub.

Rows leave here as plain dictionaries with their 1-based number in the source (for JSON lines: the line number). What
they mean is decided in `simpo.records`. Only a name that cannot be a local path ever reaches the network.
"""

import gzip
import json
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow
import pyarrow.parquet

from simpo.errors import DataError

COLUMNS = ("id", "prompt", "chosen", "rejected", "input", "preferred_output", "non_preferred_output")
"""The columns that are read; every other one is left alone."""

FORMATS = ".jsonl, .jsonl.gz, .parquet, a directory saved by datasets' save_to_disk, or a hub id org/name[:split]"

_REQUIRED = ("chosen", "rejected")
_OPENAI_REQUIRED = ("input", "preferred_output", "non_preferred_output")
_LOCAL_SUFFIX = re.compile(r"\.(jsonl?|csv|tsv|txt|parquet|arrow|gz|zip|zst|ya?ml)$", re.IGNORECASE)
_HUB_ID = re.compile(r"(?P<name>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(:(?P<split>\S+))?")


class Row(NamedTuple):
    """One row as it stands in the source."""

    number: int
    values: Mapping[str, Any]


def read_rows(source: str) -> Iterator[Row]:
    """The rows of a source in order, read as they are asked for.

    source: a file (.jsonl, .jsonl.gz, .parquet), a directory made by `datasets.save_to_disk` (with `:split` after it
    where it holds several), or a hub id `org/name[:split]` (split `train` when none is given).
    Raises DataError: nothing there, an unknown format, a line that is not a JSON object, a required column missing.
    """
    path = Path(source).expanduser()
    if path.is_file():
        return _file_rows(path, source)
    if path.is_dir():
        return _directory_rows(path, None, source)
    stem, colon, split = source.rpartition(":")
    if colon and Path(stem).expanduser().is_dir():
        return _directory_rows(Path(stem).expanduser(), split, source)
    hub = hub_id(source)
    if hub is None:
        raise DataError(f"there is no such file or directory (looked for {path.absolute()}): give {FORMATS}", source)
    return hub_rows(*hub)


def hub_rows(
    name: str, split: str, load: Callable[..., Any] | None = None, *, preferences: bool = True
) -> Iterator[Row]:
    """The rows of a data set on the hub; `load` stands in for `datasets.load_dataset` where given.

    preferences: read `COLUMNS` and ask for them. Otherwise all columns are read, whatever they are.
    """
    if load is None:
        from datasets import load_dataset  # noqa: PLC0415  # lazy: datasets takes a second to import

        load = load_dataset
    try:
        dataset = load(name, split=split)
    except Exception as error:  # the hub client raises some thirty kinds; each means that these rows cannot be had
        raise DataError(
            f"split {split!r} of this hub data set could not be loaded ({_first_line(error)}): check the name, the "
            "split and the network, or download it and give a local path",
            name,
        ) from error
    if not preferences:
        return (Row(number, values) for number, values in enumerate(dataset, start=1))
    return _dataset_rows(dataset, f"{name}:{split}")


def hub_id(source: str) -> tuple[str, str] | None:
    """(name, split) if the source cannot be meant as a local path, else None."""
    match = _HUB_ID.fullmatch(source)
    if match is None or _LOCAL_SUFFIX.search(source) or Path(source.split("/", 1)[0]).exists():
        return None
    return match["name"], match["split"] or "train"


def _file_rows(path: Path, source: str) -> Iterator[Row]:
    if path.name.endswith((".jsonl", ".jsonl.gz")):
        return _json_rows(path, source)
    if path.suffix == ".parquet":
        return _parquet_rows(path, source)
    raise DataError(f"this kind of file is not known: give {FORMATS}", source)


def _json_rows(path: Path, source: str) -> Iterator[Row]:
    for number, line in _lines(path, source):
        text = line.strip()
        if not text:
            continue  # a blank line is no row
        try:
            values = json.loads(text)
        except (ValueError, RecursionError) as error:  # UnicodeDecodeError is a ValueError too
            raise DataError(
                f"this line is not valid JSON ({_first_line(error)}): write one JSON object a line, in UTF-8",
                source,
                number,
            ) from error
        if not isinstance(values, dict):
            kind = type(values).__name__
            raise DataError(f"a row must be a JSON object, not {kind}: write one object a line", source, number)
        _check_columns(values, source, number)
        yield Row(number, values)


def _lines(path: Path, source: str) -> Iterator[tuple[int, bytes]]:
    number = 0
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as stream:
            for number, line in enumerate(stream, start=1):
                # A byte order mark is an editor's doing, not the user's: not worth a refusal.
                yield number, line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
    except (OSError, EOFError, zlib.error) as error:
        reason = f"the file breaks off here ({_first_line(error)}): copy or compress it again"
        raise DataError(reason, source, number + 1) from error


def _parquet_rows(path: Path, source: str) -> Iterator[Row]:
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            _check_columns(names, source)
            number = 0
            for batch in file.iter_batches(columns=[name for name in COLUMNS if name in names]):
                for values in batch.to_pylist():
                    number += 1
                    yield Row(number, values)
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"this parquet file cannot be read ({_first_line(error)}): write it again", source) from error


def _directory_rows(path: Path, split: str | None, source: str) -> Iterator[Row]:
    if not any((path / name).is_file() for name in ("state.json", "dataset_dict.json")):
        raise DataError(
            "this directory was not saved by datasets (looked for state.json and dataset_dict.json in it): give a "
            "file in it, or save the data set with save_to_disk",
            source,
        )
    from datasets import DatasetDict, load_from_disk  # noqa: PLC0415  # lazy: datasets takes a second to import

    try:
        dataset = load_from_disk(str(path))
    except Exception as error:  # pyarrow's, json's and datasets' own kinds; each means the directory is damaged
        raise DataError(f"this directory cannot be read ({_first_line(error)}): save it again", source) from error
    if isinstance(dataset, DatasetDict):
        splits = sorted(dataset)
        wanted = split or ("train" if "train" in dataset or len(splits) != 1 else splits[0])
        if wanted not in dataset:
            raise DataError(f"there is no split {wanted!r} in it: write {path}:SPLIT, one of {splits}", source)
        return _dataset_rows(dataset[wanted], source)
    if split is not None:
        raise DataError(f"this directory holds one data set without splits: leave {':' + split!r} out", source)
    return _dataset_rows(dataset, source)


def _dataset_rows(dataset: Any, source: str) -> Iterator[Row]:
    """Rows of a `datasets.Dataset` (map style, so columns are known before the first row)."""
    names = list(dataset.column_names)
    _check_columns(names, source)
    for number, values in enumerate(dataset.select_columns([name for name in COLUMNS if name in names]), start=1):
        yield Row(number, values)


def _check_columns(names: Iterable[str], source: str, line: int | None = None) -> None:
    present = list(names)
    # Whoever has one of OpenAI's two names for an answer means its format, unless ours are there.
    theirs = not set(_REQUIRED) & set(present) and bool(set(_OPENAI_REQUIRED[1:]) & set(present))
    for column in _OPENAI_REQUIRED if theirs else _REQUIRED:
        if column not in present:
            shown = ", ".join(map(str, present[:8])) or "none"
            reason = (
                f"there is no column {column!r} (there are: {shown}): preference rows have chosen, rejected and, "
                "unless the two share it, prompt; or OpenAI's input, preferred_output and non_preferred_output"
            )
            raise DataError(reason, source, line)


def _first_line(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:200]
