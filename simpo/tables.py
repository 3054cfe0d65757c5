"""Tables that people hand in: CSV, TSV, JSON lines or a JSON array, gzipped or not.

What a file is, is read from its first bytes, never from its name. Every error names the file, the line and the remedy.
Extra columns are left alone.
"""

import csv
import gzip
import io
import json
import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from simpo.errors import DataError

FORMATS = "CSV with a header line, JSON lines, or a JSON array of objects; .gz of any of them"

_GZIP = b"\x1f\x8b"


@dataclass(frozen=True, kw_only=True)
class TableRow:
    """One row as it stands in the file."""

    source: str
    """The file, as the user named it."""
    line: int
    """1-based; the last line of a CSV row that spans several; in a JSON array, the number of the element."""
    values: Mapping[str, Any]
    """Text in a CSV, any JSON value otherwise."""

    def get(self, column: str) -> Any:
        """The value, or None where it is absent or blank."""
        value = self.values.get(column)
        return None if isinstance(value, str) and not value.strip() else value

    def text(self, column: str) -> str:
        """The value as text without surrounding space; 3, 3.0 and "3" are the same. Raises DataError: blank."""
        value = self.get(column)
        if value is None:
            raise self.error(f"{column} is blank: fill it in, or leave the row out")
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        return str(value).strip()

    def number(self, column: str) -> float:
        """The value as a finite number. Raises DataError: it is none."""
        value = self.number_or_none(column)
        if value is None:
            raise self.error(f"{column} must be a finite number, not {self.values.get(column)!r}")
        return value

    def number_or_none(self, column: str) -> float | None:
        """The value as a finite number, None for anything else: how missing figures are written differs."""
        value = self.get(column)
        try:
            number = math.nan if value is None or isinstance(value, bool) else float(value)
        except (TypeError, ValueError, OverflowError):
            return None
        return number if math.isfinite(number) else None

    def error(self, reason: str) -> DataError:
        """A DataError that points at this row."""
        return DataError(reason, self.source, self.line)


@dataclass(frozen=True, kw_only=True)
class Table:
    """The rows of one file; at least one."""

    source: str
    columns: tuple[str, ...]
    """Every name that occurs, in order of appearance."""
    rows: tuple[TableRow, ...]

    def require(self, *columns: str, meaning: str) -> None:
        """Raise DataError, with the meaning of the file, unless all columns are there."""
        lacking = [column for column in columns if column not in self.columns]
        if lacking:
            shown = ", ".join(self.columns[:12]) or "none"
            raise DataError(f"there is no column {', '.join(lacking)} (there are: {shown}). {meaning}", self.source)


def read_table(source: str | Path) -> Table:
    """All rows of a file. Raises DataError: no such file, empty, damaged, or no table."""
    name, path = str(source), Path(source).expanduser()
    if not path.is_file():
        raise DataError(f"there is no such file (looked for {path.absolute()}): give {FORMATS}", name)
    try:
        data = path.read_bytes()
        text = (gzip.decompress(data) if data.startswith(_GZIP) else data).decode("utf-8-sig")
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"the file cannot be read ({error}): copy or compress it again", name) from error
    except UnicodeDecodeError as error:
        raise DataError(f"the file is not UTF-8 text ({error}): give {FORMATS}", name) from error
    start = text.lstrip()[:1]
    if not start:
        raise DataError(f"the file is empty: give {FORMATS}", name)
    rows = _json_lines(text, name) if start == "{" else _json_array(text, name) if start == "[" else _csv(text, name)
    if not rows:
        raise DataError("there is a header but no row: nothing can be scored. Was the file cut off?", name)
    columns = tuple(dict.fromkeys(column for row in rows for column in row.values))
    return Table(source=name, columns=columns, rows=tuple(rows))


def _csv(text: str, source: str) -> list[TableRow]:
    header = text.lstrip().splitlines()[0]
    reader = csv.DictReader(
        io.StringIO(text, newline=""), delimiter="\t" if "\t" in header and "," not in header else ",", strict=True
    )
    rows = []
    try:
        for values in reader:
            if None in values:
                reason = f"the row has more values than the header's {len(reader.fieldnames or ())}: quote its commas"
                raise DataError(reason, source, reader.line_num)
            named = {column.strip(): value for column, value in values.items()}
            rows.append(TableRow(source=source, line=reader.line_num, values=named))
    except csv.Error as error:
        raise DataError(f"this is not valid CSV ({error}): give {FORMATS}", source, reader.line_num) from error
    return rows


def _json_lines(text: str, source: str) -> list[TableRow]:
    # Not splitlines(): JSON strings may hold U+2028 and its like unescaped.
    lines = enumerate(text.split("\n"), start=1)
    return [_json_row(_loads(line, source, number), source, number) for number, line in lines if line.strip()]


def _json_array(text: str, source: str) -> list[TableRow]:
    return [_json_row(value, source, number) for number, value in enumerate(_loads(text, source, 1), start=1)]


def _loads(text: str, source: str, line: int) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"this is not valid JSON ({error}): write one object a line", source, line) from error


def _json_row(value: Any, source: str, line: int) -> TableRow:
    if not isinstance(value, dict):
        raise DataError(f"a row must be a JSON object, not {type(value).__name__}", source, line)
    return TableRow(source=source, line=line, values=value)
