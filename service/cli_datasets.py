"""`simpo dataset ...`: rows on the service, which specs then name by id."""

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from service.cli_session import (
    JsonFlag,
    UserError,
    WorkFailed,
    interruptible,
    out,
    plain,
    print_fields,
    print_json,
    print_table,
    session,
)
from service.client import Client

dataset_app = typer.Typer(no_args_is_help=True, help="Preference data on the service.")

Ref = Annotated[str, typer.Argument(help="Its name or id.", show_default=False)]
Json = dict[str, Any]
_SETTLED = ("SUCCEEDED", "FAILED", "NONE")
_CELL = 60


@dataset_app.command("upload")
def dataset_upload(
    ctx: typer.Context,
    file: Annotated[Path, typer.Argument(help="JSON lines: .jsonl or .jsonl.gz.", show_default=False)],
    name: Annotated[str | None, typer.Option(help="What to call it; without one, it is known by its id.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Upload preference data. The same bytes twice are one dataset.

    \b
    Examples:
      simpo dataset upload pairs.jsonl --name pairs
      simpo sweep create -f sweep.yaml --set dataset=dst_...
    """
    if not file.is_file():
        raise UserError(f"there is no file {file}: check the path")
    with session(ctx).connect() as client:
        body = client.datasets.upload(file, name=name)
    if as_json:
        print_json(body)
        return
    out().print(f"{body['id']}: {body['rows']} rows ({', '.join(body['columns'])})", markup=False, soft_wrap=True)


@dataset_app.command("list")
def dataset_list(ctx: typer.Context, as_json: JsonFlag = False) -> None:
    """All datasets, newest first."""
    with session(ctx).connect() as client:
        found = list(client.datasets.iterate())
    if as_json:
        print_json(found)
        return
    print_table(
        ["name", "id", "rows", "bytes", "validation", "file"],
        [[row["name"], row["id"], row["rows"], row["bytes"], _verdict(row), row["filename"]] for row in found],
        empty="There is no dataset: simpo dataset upload FILE.",
    )


@dataset_app.command("show")
def dataset_show(ctx: typer.Context, dataset: Ref, as_json: JsonFlag = False) -> None:
    """One dataset."""
    with session(ctx).connect() as client:
        body = client.datasets.find(dataset)
    if as_json:
        print_json(body)
        return
    print_fields({**body, "validation": _verdict(body)})


@dataset_app.command("preview")
def dataset_preview(
    ctx: typer.Context,
    dataset: Ref,
    limit: Annotated[int, typer.Option("--limit", "-n", help="Rows.", min=1)] = 5,
    as_json: JsonFlag = False,
) -> None:
    """Its first rows."""
    with session(ctx).connect() as client:
        body = client.datasets.find(dataset)
        rows = client.datasets.preview(body["id"], limit=limit)
    if as_json:
        print_json(rows)
        return
    columns = body["columns"]
    cells = [[row["line"], *(_short(row["values"].get(column)) for column in columns)] for row in rows]
    print_table(["line", *columns], cells, empty="It has no row.")


@dataset_app.command("validate")
def dataset_validate(
    ctx: typer.Context,
    dataset: Ref,
    eval: Annotated[str | None, typer.Option("--eval", help="Dataset to be measured on: name or id.")] = None,
    base_model: Annotated[
        str | None, typer.Option("--model", help="Directory of a model on the service's machine: look at its tokens.")
    ] = None,
    timeout_s: Annotated[float, typer.Option("--timeout", help="Seconds to wait at most.", min=1)] = 900.0,
    as_json: JsonFlag = False,
) -> None:
    """What is wrong with it, before any accelerator-hour is spent. Exit code 1 when a finding is an error."""
    with session(ctx).connect() as client:
        found = client.datasets.find(dataset)["id"]
        beside = None if eval is None else client.datasets.find(eval)["id"]
        client.datasets.validate(found, eval=beside, base_model=base_model)
        with interruptible(f"stopped waiting; the report will be in: simpo dataset show {found}"):
            body = _settled(client, found, timeout_s)
        if body["validation"]["state"] != "SUCCEEDED":
            raise WorkFailed(body["validation"]["message"] or f"the report on {found} is not there in time")
        report = client.datasets.report(found)["report"]
    if as_json:
        print_json(report)
    else:
        _tell(found, report)
    if not report["ok"]:
        raise typer.Exit(1)


@dataset_app.command("delete")
def dataset_delete(ctx: typer.Context, dataset: Ref, as_json: JsonFlag = False) -> None:
    """Delete it. Refused while a sweep reads it."""
    with session(ctx).connect() as client:
        body = client.datasets.delete(client.datasets.find(dataset)["id"])
    if as_json:
        print_json(body)
        return
    out().print(f"{body['id']} is deleted; its file goes at {body['expire_time']}", markup=False, soft_wrap=True)


def _settled(client: Client, dataset_id: str, timeout_s: float) -> Json:
    deadline = time.monotonic() + timeout_s
    while True:
        body = client.datasets.get(dataset_id)
        if body["validation"]["state"] in _SETTLED or time.monotonic() > deadline:
            return body
        time.sleep(0.5)


def _tell(dataset_id: str, report: Json) -> None:
    lines = [f"{dataset_id}: {report['rows']} rows, {report['pairs']} pairs"]
    for finding in report["findings"]:
        lines += ["", f"{finding['level']:8}{finding['code']}  {finding['message']}", f"        {finding['remedy']}"]
    lines += ["", "ready to train on" if report["ok"] else f"{report['counts']['error']} errors: mend the data first"]
    out().print(plain("\n".join(lines)), markup=False, soft_wrap=True)


def _verdict(body: Json) -> str:
    checked = body["validation"]
    if checked["state"] != "SUCCEEDED":
        return str(checked["state"])
    return "ok" if checked["ok"] else "errors"


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else str(value)
    return text if len(text) <= _CELL else f"{text[: _CELL - 3]}..."
