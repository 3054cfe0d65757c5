"""What every command shares: where the service is, how results and errors are shown, which exit code they mean."""

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import httpx
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text
from typer.core import TyperGroup

from service.client import Client
from service.client_errors import ApiError, ClientError
from simpo.errors import SimPOError

EXIT_FAILED = 1
EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130
DEFAULT_HOME = Path(".simpo")

JsonFlag = Annotated[bool, typer.Option("--json", help="Print JSON for programs instead of a table.")]


class WorkFailed(Exception):
    """The service did its part, and the work it was asked for failed. One sentence. Exit code 1."""


class UserError(Exception):
    """A mistake of the person at the keyboard. One sentence with the remedy. Exit code 2."""


@dataclass(frozen=True, kw_only=True)
class Session:
    """The options that stand before the command."""

    home: Path
    """Directory of the embedded stack."""
    url: str | None
    """Origin of the service; None: the one in `home`."""
    key: str | None
    """API key; None: the one in `home`."""
    transport: httpx.BaseTransport | None = None
    """How calls travel; None: over the network. Tests answer them here."""

    def connect(self) -> Client:
        """A client for the chosen service. Raises `UserError` when none is known."""
        if self.url and self.key:
            return Client(self.url, self.key, transport=self.transport)
        stack_url = _url_of_stack(self.home)
        if self.url and self.url.rstrip("/") != stack_url:
            # The stack's key is nobody else's business.
            raise UserError(f"no API key for {self.url}: set SIMPO_API_KEY")
        return Client(stack_url, self.key or _key_of_stack(self.home), transport=self.transport)


class OneSentence(TyperGroup):
    """A command group that turns errors into one sentence on stderr and an exit code; --debug shows the traceback."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            err().print("interrupted", style="yellow")
            raise typer.Exit(EXIT_INTERRUPTED) from None
        except Exception as error:
            # Exit, Abort and usage errors are typer's own: it knows how to show them.
            if ctx.params.get("debug") or hasattr(error, "exit_code") or isinstance(error, typer.Abort):
                raise
            code, sentence = exit_code(error), str(error)
            if code is None:
                code, sentence = EXIT_FAILED, f"unexpected {type(error).__name__}: {error} (simpo --debug shows where)"
            err().print(Text.assemble(("error: ", "bold red"), plain(sentence)), soft_wrap=True)
            raise typer.Exit(code) from error


def exit_code(error: Exception) -> int | None:
    """2 for the user's mistakes, 1 for failed work, None for what nobody foresaw."""
    if isinstance(error, ApiError):
        return EXIT_USER_ERROR if error.users_mistake else EXIT_FAILED
    if isinstance(error, UserError | SimPOError):
        return EXIT_USER_ERROR
    if isinstance(error, WorkFailed | ClientError):
        return EXIT_FAILED
    return None


def session(ctx: typer.Context) -> Session:
    """The session that the root command made."""
    found = ctx.find_object(Session)
    assert found is not None, "the root callback makes it"
    return found


def out() -> Console:
    """Standard output, as it is now: tests and pipes exchange it."""
    return Console(highlight=False)


def err() -> Console:
    """Standard error."""
    return Console(stderr=True, highlight=False)


def print_json(value: Any) -> None:
    """Machine-readable output: plain, one document."""
    typer.echo(json.dumps(value, indent=2))


def print_fields(body: Mapping[str, Any]) -> None:
    """One resource, a line a field."""
    shown = {key: ", ".join(value) if isinstance(value, list) else value for key, value in body.items()}
    print_table(["", ""], [[key, value] for key, value in shown.items() if key != "object"], empty="")


def print_table(columns: list[str], rows: Iterator[list[Any]] | list[list[Any]], *, empty: str) -> None:
    """Rows as a table; `empty` says what it means that there is none, and what to do."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold", no_wrap=column in ("name", "id", "state"))
    for row in rows:
        table.add_row(*(plain("-" if cell in (None, "") else str(cell)) for cell in row))
    out().print(table if table.row_count else Text(empty, style="dim"))


def plain(text: str) -> str:
    """Text from elsewhere, without the control characters that could drive a terminal."""
    return re.sub(r"[^\n\t\x20-\x7e\xa0-\U0010ffff]", "", text)


@contextmanager
def interruptible(hint: str) -> Iterator[None]:
    """Ctrl-C ends the watching, not the work: say so."""
    try:
        yield
    except KeyboardInterrupt:
        err().print(hint, style="yellow", markup=False)
        raise typer.Exit(EXIT_INTERRUPTED) from None


def _url_of_stack(home: Path) -> str:
    path = home / "stack.json"
    try:
        return str(json.loads(path.read_text(encoding="utf-8"))["url"])
    except FileNotFoundError:
        raise UserError(
            f"no service is known here ({path} does not exist): "
            "start one with `simpo up`, or set SIMPO_URL and SIMPO_API_KEY"
        ) from None
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{path} cannot be read ({error}): start again with `simpo up`, or set SIMPO_URL") from error


def _key_of_stack(home: Path) -> str:
    path = home / "key"
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        raise UserError(f"no API key: set SIMPO_API_KEY, or start the embedded stack, which writes {path}") from None
