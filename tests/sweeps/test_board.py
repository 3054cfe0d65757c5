"""What is known of a running sweep, and how it is drawn on a terminal."""

import io
from typing import Any

import pytest
from rich.console import Console

from sweeps.board import Board
from sweeps.board_view import Screen, draw, short

pytestmark = pytest.mark.quick


Record = tuple[str, str, dict[str, Any]]


def happened(kind: str, message: str = "", **data: Any) -> Record:
    return kind, message, data


def watch(made: Board, records: list[Record], console: Console) -> None:
    with Screen(made, console, clock=lambda: 1.0) as screen:
        for record in records:
            screen.take(*record)


def created(number: int) -> Record:
    params = {"learning_rate": 1.2e-4, "beta": 2.0 + number, "gamma_beta_ratio": 0.5}
    return happened("trial.created", trial_id=f"trl_{number}", number=number, params=params)


def board(*records: Record, total: int = 4) -> Board:
    made = Board(name="mine", total=total, metric="win_rate")
    for record in records:
        made.apply(*record)
    return made


def drawn(made: Board, *, height: int = 40, width: int = 120) -> str:
    console = Console(file=io.StringIO(), width=width, height=height, force_terminal=True, color_system=None)
    with console.capture() as capture:
        console.print(draw(made, seconds=12.3, height=height))
    return capture.get()


def test_a_trial_from_birth_to_end() -> None:
    made = board(
        created(0),
        happened("trial.progress", trial_id="trl_0", step=12, loss=0.5, margin=0.1),
        happened("trial.rung", trial_id="trl_0", number=0, step=30, metrics={"win_rate": {"estimate": 0.61}}),
    )
    row = made.trials["trl_0"]
    assert (row.state, row.step, row.metrics) == ("RUNNING", 30, {"loss": 0.5, "margin": 0.1, "win_rate": 0.61})
    made.apply(*happened("trial.pruned", trial_id="trl_0", step=30, value=0.61, reason="below 0.64"))
    assert (row.state, row.value, row.why, row.over) == ("PRUNED", 0.61, "below 0.64", True)
    assert made.finished == 1


def test_progress_never_runs_backwards_through_the_phases() -> None:
    made = board()
    shares = [made.overall]
    for event in (
        happened("job.phase", phase="preparing", progress=0.5),
        happened("job.phase", phase="searching", progress=0.0),
        created(0),
        happened("trial.completed", trial_id="trl_0", value=0.6),
        happened("job.phase", phase="finals", progress=0.5),
        happened("job.finished"),
    ):
        made.apply(*event)
        shares.append(made.overall)
    assert shares == sorted(shares)
    assert (shares[0], shares[-1]) == (0.0, 1.0)


def test_what_is_not_known_is_no_error() -> None:
    made = board(happened("trial.sang", trial_id="x"), happened("gate.passed"), happened("trial.rung"))
    assert list(made.trials) == ["x"]


def test_a_restart_runs_unfinished_trials_again() -> None:
    made = board(created(0), happened("job.restarted"), created(0))
    assert made.trials["trl_0"].state == "RUNNING" and len(made.trials) == 1


def test_drawn_with_all_columns() -> None:
    made = board(
        created(0),
        created(1),
        happened("trial.infeasible", trial_id="trl_1", step=30, value=0.2, reason="empty_rate 0.8 is above 0.1"),
        happened("trial.completed", trial_id="trl_0", step=120, value=0.66, reason="full budget"),
        happened("best.updated", trial_id="trl_0", value=0.66),
        happened("job.phase", phase="searching", progress=0.5),
    )
    text = drawn(made)
    for shown in ("mine", "searching", "2/4 trials", "12 s", "lr", "beta", "gamma/beta", "win rate", "why it ended"):
        assert shown in text
    assert "1.2e-04" in text and "INFEASIBLE" in text and "empty_rate 0.8 is above 0.1" in text
    assert "best so far: win rate 0.660 by trial 0 (lr 1.2e-04, beta 2, gamma/beta 0.500)" in text


def test_what_the_reference_took_is_shown() -> None:
    cost = {"seconds": 3.25, "cpu_seconds": 3.0, "tokens": 9000, "hits": 12, "misses": 88, "checked": 8}
    line = "reference log-probabilities: 88 computed, 12 known, 9000 tokens, 3.2 s (3.0 CPU-seconds)"
    assert line in drawn(board(happened("reference.ready", **cost)))
    none = dict.fromkeys(cost, 0)
    assert "reference log-probabilities: none needed, 0 s" in drawn(board(happened("reference.ready", **none)))
    assert "reference" not in drawn(board())
    console = Console(file=(log := io.StringIO()), width=120)
    watch(board(), [happened("reference.ready", line, **cost)], console)
    assert log.getvalue().splitlines()[0].endswith(line)


def test_many_trials_fit_the_screen() -> None:
    events = [created(number) for number in range(60)]
    events += [happened("trial.pruned", trial_id=f"trl_{number}", value=0.1) for number in range(58)]
    events += [happened("best.updated", trial_id="trl_3", value=0.7)]
    text = drawn(board(*events, total=60), height=20)
    assert len(text.splitlines()) <= 20
    assert "and 48 finished earlier" in text
    assert {"3", "58", "59"} <= {line.split()[0] for line in text.splitlines() if line.split()}, "best and running stay"


def test_live_on_a_terminal() -> None:
    console = Console(file=(screen := io.StringIO()), force_terminal=True, width=120, height=30, color_system=None)
    watch(made := board(), [created(0), happened("job.finished")], console)
    assert made.phase == "done"
    assert "RUNNING" in screen.getvalue()


def test_a_log_is_spared_the_small_steps_of_a_phase() -> None:
    console = Console(file=(log := io.StringIO()), width=120)
    steps = [happened("job.phase", f"step {n}", phase="preparing", progress=n / 100) for n in range(0, 100, 5)]
    watch(board(), [*steps, happened("job.phase", phase="searching", progress=0.0)], console)
    assert [line.split("] ")[1] for line in log.getvalue().splitlines()] == [
        "preparing: step 0",
        "preparing 20%: step 20",
        "preparing 40%: step 40",
        "preparing 60%: step 60",
        "preparing 80%: step 80",
        "searching",
    ]


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "-"), (3, "3"), (0.0, "0.000"), (1.5e-5, "1.5e-05"), (12.5, "12.5"), ("x", "x"), (True, "True")],
)
def test_short(value: Any, text: str) -> None:
    assert short(value) == text
