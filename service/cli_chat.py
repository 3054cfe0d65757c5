"""`simpo chat`: talk with a deployed model, or with several side by side, as their answers come."""

import queue
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Protocol

import typer
from rich.console import Console
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from service.cli_session import UserError, interruptible, out, plain, session

Message = dict[str, str]

_FRAMES_PER_S = 12
_NARROWEST = 24  # columns of an answer beside another; below that they stand one after the other


class Talker(Protocol):
    """Of the client, what a talk needs."""

    def chat(self, model: str, messages: Sequence[Message], **options: Any) -> Iterator[str]:
        """The answer, piece by piece."""


def chat(
    ctx: typer.Context,
    model: Annotated[
        str | None,
        typer.Argument(help="Name of a deployment; the prompt, where --compare names two.", show_default=False),
    ] = None,
    prompt: Annotated[
        str | None, typer.Argument(help="Ask this and leave; without it, talk.", show_default=False)
    ] = None,
    compare: Annotated[
        str | None, typer.Option(help="Deployments that answer beside it: base, or base,winner.", show_default=False)
    ] = None,
    system: Annotated[str | None, typer.Option(help="System message.")] = None,
    max_tokens: Annotated[int | None, typer.Option(help="Most tokens of an answer.", min=1)] = None,
    temperature: Annotated[float, typer.Option(help="0: always the likeliest token.", min=0, max=2)] = 0.7,
    top_p: Annotated[float | None, typer.Option(help="Sample from the likeliest tokens alone.", min=0, max=1)] = None,
    seed: Annotated[int | None, typer.Option(help="Same seed, same answer.")] = None,
) -> None:
    """Talk with a deployed model; the answer streams.

    \b
    Examples:
      simpo chat winner "Add 3 and 4."
      simpo chat winner --compare base
      simpo chat --compare base,winner "Add 3 and 4."
      echo "Add 3 and 4." | simpo chat winner
    """
    models, prompt = _who_and_what(model, prompt, compare)
    wanted = {"max_tokens": max_tokens, "temperature": temperature, "top_p": top_p, "seed": seed}
    options = {key: value for key, value in wanted.items() if value is not None}
    start = [{"role": "system", "content": system}] if system else []
    with session(ctx).connect() as client:
        known = client.models()
        for name in models:
            if name not in known:
                raise UserError(f"no deployment {name!r} answers now: use one of {', '.join(known) or '(none)'}")
        if prompt is not None or not sys.stdin.isatty():
            text = prompt if prompt is not None else typer.get_text_stream("stdin").read().strip()
            if not text:
                raise UserError("the prompt is empty: give one as an argument or on standard input")
            answer_all(out(), client, {name: [*start, _user(text)] for name in models}, options)
            return
        histories: dict[str, list[Message]] = {name: [*start] for name in models}
        out().print("An empty line or Ctrl-D ends the talk.", style="dim")
        with interruptible("bye"):
            while text := _ask():
                for history in histories.values():
                    history.append(_user(text))
                for name, answer in answer_all(out(), client, histories, options).items():
                    histories[name].append({"role": "assistant", "content": answer})


def answer_all(
    console: Console, client: Talker, histories: dict[str, list[Message]], options: dict[str, Any]
) -> dict[str, str]:
    """Print every model's answer: side by side on a terminal that is wide enough, else one after the other."""
    if len(histories) > 1 and console.is_terminal and console.width // len(histories) >= _NARROWEST:
        return _side_by_side(console, client, histories, options)
    answers = {}
    for name, messages in histories.items():
        if len(histories) > 1:
            console.print(f"{name}:", style="bold", markup=False)
        pieces = []
        for piece in client.chat(name, messages, **options):
            pieces.append(piece)
            console.print(plain(piece), end="", markup=False, soft_wrap=True)
        console.print()
        answers[name] = "".join(pieces)
    return answers


def _who_and_what(model: str | None, prompt: str | None, compare: str | None) -> tuple[list[str], str | None]:
    """(deployments, prompt). With two names in `compare`, a single argument is the prompt."""
    others = [name.strip() for name in (compare or "").split(",") if name.strip()]
    if len(others) > 1 and prompt is None:
        model, prompt = None, model
    names = [*([] if model is None else [model]), *others]
    if not names:
        raise UserError("name a deployment, or two with --compare base,winner")
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UserError(f"{', '.join(twice)} is named twice: compare it with another deployment")
    return names, prompt


class _Answer:
    """One model's answer as it grows."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.text = ""
        self.error: Exception | None = None
        self.over = False
        self._began = time.monotonic()
        self._took_s = 0.0

    def take(self, piece: str | Exception | None) -> None:
        """New text, what ended it early, or None: it is whole."""
        if isinstance(piece, str):
            self.text += piece
        else:
            self.error, self.over = piece, True
        self._took_s = time.monotonic() - self._began

    def panel(self) -> Panel:
        """As it is shown."""
        body = Text(plain(self.text) or ("(nothing)" if self.over else "..."))
        if self.error is not None:
            body.append(f"\n{plain(str(self.error))}", style="red")
        border = "red" if self.error is not None else "green" if self.over else "dim"
        title, subtitle = Text(plain(self.name), style="bold"), f"{len(self.text)} characters, {self._took_s:.1f} s"
        return Panel(body, title=title, subtitle=subtitle, border_style=border)


def _side_by_side(
    console: Console, client: Talker, histories: dict[str, list[Message]], options: dict[str, Any]
) -> dict[str, str]:
    """All at once, a column each. Raises the first error, after the others have finished."""
    news: queue.SimpleQueue[tuple[str, str | Exception | None]] = queue.SimpleQueue()

    def ask(name: str, messages: list[Message]) -> None:
        try:
            for piece in client.chat(name, messages, **options):
                news.put((name, piece))
            news.put((name, None))
        except Exception as error:  # shown in its column, raised when all is done
            news.put((name, error))

    answers = {name: _Answer(name) for name in histories}
    for name, messages in histories.items():
        threading.Thread(target=ask, args=(name, list(messages)), daemon=True).start()
    with Live(_columns(answers), console=console, refresh_per_second=_FRAMES_PER_S) as live:
        while not all(answer.over for answer in answers.values()):
            name, piece = news.get()
            answers[name].take(piece)
            live.update(_columns(answers))
    for answer in answers.values():
        if answer.error is not None:
            raise answer.error
    return {name: answer.text for name, answer in answers.items()}


def _columns(answers: dict[str, _Answer]) -> Table:
    grid = Table.grid(expand=True)
    for _ in answers:
        grid.add_column(ratio=1)
    grid.add_row(*(answer.panel() for answer in answers.values()))
    return grid


def _user(text: str) -> Message:
    return {"role": "user", "content": text}


def _ask() -> str:
    try:
        return input("> ").strip()
    except EOFError:
        return ""
