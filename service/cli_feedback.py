"""`simpo feedback ...`: what people said of models' answers, and the dataset that it makes."""

from typing import Annotated, Any

import typer

from service.cli_datasets import dataset_validate
from service.cli_session import JsonFlag, err, out, print_json, print_table, session

feedback_app = typer.Typer(no_args_is_help=True, help="What people said of models' answers.")

Model = Annotated[str | None, typer.Option("--model", help="Of this deployment alone.", show_default=False)]
FeedbackId = Annotated[str, typer.Argument(help="Its id: fbk_...", show_default=False)]
_CELL = 40


@feedback_app.command("list")
def feedback_list(
    ctx: typer.Context,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="Rows at most.")] = 50,
    model: Model = None,
    as_json: JsonFlag = False,
) -> None:
    """Feedback of the project, newest first."""
    with session(ctx).connect() as client:
        rows = client.feedback.iterate(**({} if model is None else {"model": model}))
        found = [row for row, _ in zip(rows, range(limit), strict=False)]
    if as_json:
        print_json(found)
        return
    print_table(
        ["id", "time", "model", "said", "of"],
        [[r["id"], r["created_at"], r["answer"]["model"], _said(r), _short(r["messages"])] for r in found],
        empty="Nobody said anything yet: /try has buttons for it.",
    )


@feedback_app.command("withdraw")
def feedback_withdraw(ctx: typer.Context, feedback: FeedbackId, as_json: JsonFlag = False) -> None:
    """Take your own back: the service forgets it, with its messages and answers."""
    with session(ctx).connect() as client:
        body = client.feedback.withdraw(feedback)
    if as_json:
        print_json(body)
        return
    out().print(f"{body['id']} is forgotten.", markup=False)


@feedback_app.command("export")
def feedback_export(
    ctx: typer.Context,
    dataset: Annotated[str | None, typer.Option(help="What to call the dataset.", show_default=False)] = None,
    model: Model = None,
    since: Annotated[str | None, typer.Option(help="RFC 3339 time with a zone.", show_default=False)] = None,
    wait: Annotated[bool, typer.Option(help="Wait for the doctor's report, and show it.")] = True,
    as_json: JsonFlag = False,
) -> None:
    """Make a dataset of preferences of it, for the next sweep. Exit code 1 when the doctor finds an error.

    \b
    Examples:
      simpo feedback export --dataset colleagues
      simpo sweep create -f sweep.yaml --set dataset=dst_...
    """
    with session(ctx).connect() as client:
        body = client.feedback.dataset(dataset, model=model, since=since)
    if not wait:
        print_json(body) if as_json else out().print(f"{body['id']}: {body['rows']} pairs", markup=False)
        return
    err().print(f"{body['id']}: {body['rows']} pairs; the doctor looks at them", markup=False)
    dataset_validate(ctx, body["id"], as_json=as_json)


def _said(row: dict[str, Any]) -> str:
    return row["rating"] or f"better than {row['rejected']['model']}"


def _short(messages: list[dict[str, Any]]) -> str:
    text = " ".join(messages[-1]["content"].split())
    return text if len(text) <= _CELL else f"{text[: _CELL - 3]}..."
