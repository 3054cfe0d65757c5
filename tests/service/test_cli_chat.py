"""Answers side by side on a terminal, one after the other elsewhere; what the arguments mean."""

import io
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from rich.console import Console

from service.cli_chat import answer_all
from tests.service.test_cli import Api, simpo

pytestmark = pytest.mark.quick


class Models:
    """`left` and `right` answer in turns: neither could finish if they were asked one after the other."""

    def __init__(self) -> None:
        self.turn = threading.Barrier(2, timeout=300)

    def chat(self, model: str, messages: Sequence[dict[str, str]], **options: Any) -> Iterator[str]:
        assert messages[-1]["content"] == "hi" and options == {"seed": 1}
        for word in ("says", " \x1b[31mred", "."):
            self.turn.wait()
            yield f"{model} {word}" if word == "says" else word
        if model == "broken":
            raise OSError("the connection broke")


def shown(models: Any, names: Sequence[str], *, terminal: bool, width: int = 80) -> tuple[str, dict[str, str]]:
    file = io.StringIO()
    console = Console(file=file, force_terminal=terminal, width=width, legacy_windows=False, no_color=True)
    histories = {name: [{"role": "user", "content": "hi"}] for name in names}
    answers = answer_all(console, models, histories, {"seed": 1})
    return file.getvalue(), answers


def test_two_models_answer_at_once_side_by_side() -> None:
    text, answers = shown(Models(), ["left", "right"], terminal=True)
    assert answers == {name: f"{name} says \x1b[31mred." for name in ("left", "right")}
    last = next(line for line in reversed(text.splitlines()) if "says" in line)
    assert last.index("left says") < last.index("right says"), "in one line"
    assert "\x1b[31mred" not in text, "a model does not drive the terminal"


def test_an_error_shows_in_its_column_and_is_raised_after_the_other_is_whole() -> None:
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, width=80)
    histories = {name: [{"role": "user", "content": "hi"}] for name in ("left", "broken")}
    with pytest.raises(OSError, match="broke"):
        answer_all(console, Models(), histories, {"seed": 1})
    assert "left says" in file.getvalue() and "the connection broke" in file.getvalue()


class Quick:
    def chat(self, model: str, messages: Sequence[dict[str, str]], **options: Any) -> Iterator[str]:
        yield model


@pytest.mark.parametrize(("terminal", "width"), [(False, 80), (True, 40)], ids=["a pipe", "a narrow terminal"])
def test_elsewhere_one_after_the_other(terminal: bool, width: int) -> None:
    text, answers = shown(Quick(), ["a", "b"], terminal=terminal, width=width)
    assert [line.strip("\x1b[0m1;") for line in text.split()] == ["a:", "a", "b:", "b"]
    assert answers == {"a": "a", "b": "b"}


@pytest.mark.parametrize(
    ("arguments", "asked"),
    [
        (["winner", "hi"], ["winner"]),
        (["winner", "hi", "--compare", "base"], ["winner", "base"]),
        (["--compare", "base,winner", "hi"], ["base", "winner"]),
        (["--compare", "base, winner"], ["base", "winner"]),
    ],
)
def test_who_is_asked(arguments: list[str], asked: list[str]) -> None:
    api = Api()
    result = simpo(api, "chat", *arguments, stdin=None if "hi" in arguments else "hi\n")
    assert result.exit_code == 0, result.output
    posts = [call for call in api.calls if call.method == "POST"]
    assert [b'"content":"hi"' in call.content for call in posts] == [True] * len(asked)
    assert [f'"model":"{name}"'.encode() in call.content for name, call in zip(asked, posts, strict=True)] == [
        True
    ] * len(asked)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "name a deployment, or two with --compare base,winner"),
        (["winner", "hi", "--compare", "winner"], "winner is named twice"),
        (["--compare", "base,base", "hi"], "base is named twice"),
    ],
)
def test_nobody_or_one_twice_is_refused(arguments: list[str], says: str) -> None:
    result = simpo(Api(), "chat", *arguments)
    assert result.exit_code == 2 and says in result.stderr
