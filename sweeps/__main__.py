"""A whole sweep without any service: `python -m sweeps run spec.yaml --out DIR`, then `show DIR`."""

import os
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from pydantic import BaseModel
from rich.console import Console

from simpo.errors import SimPOError
from sweeps.board import Board
from sweeps.board_view import Screen
from sweeps.budget import plan_budget
from sweeps.checkpoint_cache import CheckpointCache
from sweeps.comparison_command import compare as run_compare
from sweeps.comparison_command import is_comparison, read_comparison, show_comparison
from sweeps.comparison_spec import load_comparison
from sweeps.console import attempts_view, result_view
from sweeps.control_command import control_app
from sweeps.evaluation_spec import load_evaluation
from sweeps.plan_command import plan as plan_sweep
from sweeps.recorded import begun
from sweeps.report import read_story, report_json, write_report
from sweeps.run_dir import AttemptClaimed, Record, RunDir, last_result
from sweeps.spec import SweepSpec, load_spec, parse_spec, with_absolute_paths
from sweeps.stopping import Stopped
from sweeps.working_copy import check_judge_kept, check_supported, is_remote, open_run, refuse_remote, take_out

if TYPE_CHECKING:
    from sweeps.judges import JudgeAccess

app = typer.Typer(add_completion=False, no_args_is_help=True, help=__doc__, pretty_exceptions_enable=False)
app.add_typer(control_app, name="control")
app.command("plan")(plan_sweep)

RayAddress = Annotated[
    str | None,
    typer.Option(
        "--ray-address",
        envvar="RAY_ADDRESS",
        help="Ray cluster to run on. Inside a Ray job it is known already; without one a private Ray is started.",
    ),
]
PublicJudge = Annotated[
    bool,
    typer.Option(
        "--public-judge", help="Refuse a judge on a private network or on this machine: for specs that others wrote."
    ),
]
ReferenceStore = Annotated[
    Path | None,
    typer.Option(
        help="Where reference log-probabilities are kept, instead of `references` in the store of the run directory.",
        show_default=False,
    ),
]
Copies = Annotated[
    Path | None,
    typer.Option(
        help="Where working copies of run directories in an object store lie; by default in the temporary directory.",
        show_default=False,
    ),
]
Directory = Annotated[str, typer.Argument(help="A run directory, or s3://BUCKET/PREFIX.", show_default=False)]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")]


@app.command()
def run(
    spec: Annotated[str, typer.Argument(help="The sweep or run, YAML or JSON.", show_default=False)],
    out: Annotated[
        str,
        typer.Option("--out", help="The run directory, or s3://BUCKET/PREFIX; made when absent.", show_default=False),
    ],
    attempt: Annotated[
        int | None, typer.Option(min=1, help="Attempt number to claim; the next free one when left out.")
    ] = None,
    ray_address: RayAddress = None,
    public_judge: PublicJudge = False,
    reference_store: ReferenceStore = None,
    copies: Copies = None,
    quiet: Quiet = False,
) -> None:
    """Run a sweep. In a directory that holds earlier attempts it goes on where they ended."""
    run_dir = open_run(out, copies)
    source = _source(spec, run_dir)
    wanted = load_spec(source)
    made = not run_dir.root.exists()
    check_supported(wanted, run_dir.place)
    _place(run_dir, source, with_absolute_paths(wanted))
    try:
        _drive(run_dir, attempt, ray_address, public_judge, reference_store, quiet)
    except SimPOError as error:
        # Nothing half-made stays behind a refused spec, unless somebody else is at work there.
        if made and not begun(run_dir.root) and not isinstance(error, AttemptClaimed):
            run_dir.place.clear()
        raise


@app.command()
def compare(
    spec: Annotated[Path, typer.Argument(help="The comparison, YAML or JSON.", show_default=False)],
    out: Annotated[Path, typer.Option("--out", help="Its directory; made when absent.", show_default=False)],
    attempt: Annotated[
        int | None, typer.Option(min=1, help="Claim this number, and keep journal and heartbeat: for who watches it.")
    ] = None,
    ray_address: RayAddress = None,
    public_judge: PublicJudge = False,
    quiet: Quiet = False,
) -> None:
    """Tune several methods under one budget and say which is best. Started again with the same spec it goes on."""
    refuse_remote(out, "a comparison")
    wanted = load_comparison(spec)
    made = not out.exists()
    run_dir = _placed(out, spec, wanted)
    if attempt is not None:
        _let_waiting_threads_sleep()
        access = _access(wanted.judge, public_judge)
        _watched_comparison(run_dir.root, attempt, ray_address, access, Console(quiet=quiet))
        return
    try:
        _compare(run_dir.root, ray_address, public_judge, quiet)
    except SimPOError:
        if made and not begun(out):
            shutil.rmtree(out, ignore_errors=True)
        raise


@app.command()
def evaluate(
    spec: Annotated[str, typer.Argument(help="The evaluation, JSON.", show_default=False)],
    out: Annotated[
        str,
        typer.Option("--out", help="Its run directory, or s3://BUCKET/PREFIX; made when absent.", show_default=False),
    ],
    attempt: Annotated[
        int | None, typer.Option(min=1, help="Attempt number to claim; the next free one when left out.")
    ] = None,
    public_judge: PublicJudge = False,
    copies: Copies = None,
    quiet: Quiet = False,
) -> None:
    """Compare one checkpoint with another under a gate: more prompts while it is INCONCLUSIVE, up to its cap."""
    _let_waiting_threads_sleep()
    from sweeps.evaluate import run_evaluation  # noqa: PLC0415  # lazy: torch takes seconds, --help must not

    run_dir, console = open_run(out, copies), Console(quiet=quiet)
    source = _source(spec, run_dir)
    wanted = load_evaluation(source)
    if run_dir.place.remote:
        check_judge_kept(wanted.sweep.judge)
    _place(run_dir, source, wanted)
    access = _access(wanted.sweep.judge, public_judge)

    def show(record: Record) -> None:
        console.print(f"{record['type']}: {record['message']}", highlight=False, markup=False, soft_wrap=True)

    try:
        cache = CheckpointCache(copies and copies / "models")
        result = run_evaluation(run_dir, number=attempt, listeners=[show], access=access, cache=cache)
    except Stopped as stopped:
        Console(stderr=True).print(f"stopped: {stopped}")
        sys.exit(130)
    for each in result["decision"]["conditions"]:
        console.print(f"{each['state']:12} {each['message']}", highlight=False, markup=False, soft_wrap=True)
    for reason in result["evidence"]["reasons"]:
        console.print(f"INVALID      {reason}", highlight=False, markup=False, soft_wrap=True)


@app.command()
def resume(
    directory: Directory,
    ray_address: RayAddress = None,
    public_judge: PublicJudge = False,
    reference_store: ReferenceStore = None,
    copies: Copies = None,
    quiet: Quiet = False,
) -> None:
    """Go on with a sweep whose driver died: finished trials are replayed, the others start from their newest rung.

    A comparison goes on with its unfinished methods.
    """
    run_dir = open_run(directory, copies)
    if is_comparison(run_dir.read_spec()):  # read before a claim makes anything
        if reference_store is not None:
            raise SimPOError("a comparison keeps them in its own directory: leave it out", "--reference-store")
        _compare(run_dir.root, ray_address, public_judge, quiet)
        return
    _drive(run_dir, None, ray_address, public_judge, reference_store, quiet)


@app.command()
def show(directory: Directory, copies: Copies = None) -> None:
    """Print the leaderboard, or how far the sweep or comparison has come."""
    run_dir, console = open_run(directory, copies), Console()
    if is_comparison(run_dir.read_spec()):
        show_comparison(run_dir.root, console)
        return
    spec = parse_spec(run_dir.read_spec(), source=str(run_dir.spec_path))
    result = last_result(run_dir)
    console.print(attempts_view(run_dir, spec) if result is None else result_view(result))


@app.command()
def fetch(
    directory: Directory,
    to: Annotated[Path, typer.Option("--to", help="Where to; must not exist.", show_default=False)],
    checkpoint: Annotated[
        str | None, typer.Option(help="As `show` names it; the winner's when left out.", show_default=False)
    ] = None,
    copies: Copies = None,
) -> None:
    """Copy a checkpoint out of a run directory, wherever that is."""
    run_dir = open_run(directory, copies)
    if checkpoint is None:
        result = last_result(run_dir)
        if result is None:
            raise SimPOError("there is no result yet: name a checkpoint, or wait", "--checkpoint")
        checkpoint = str(result["best"]["checkpoint"])
    Console().print(str(take_out(run_dir, checkpoint, to)), highlight=False, markup=False, soft_wrap=True)


def _drive(
    run_dir: RunDir,
    number: int | None,
    ray_address: str | None,
    public_judge: bool,
    references: Path | None,
    quiet: bool,
) -> None:
    _let_waiting_threads_sleep()
    spec = parse_spec(run_dir.read_spec(), source=str(run_dir.spec_path))
    access = _access(spec.judge, public_judge)
    if number is None and last_result(run_dir) is not None:
        raise SimPOError("this sweep has its result already: see `python -m sweeps show`", run_dir.place.uri)
    console = Console(quiet=quiet)
    console.print(f"{spec.name}: {_plan(spec)}", highlight=False)
    try:
        from sweeps.ray_session import ray_ahead  # noqa: PLC0415  # lazy: Ray takes a second, --help must not

        with ray_ahead(ray_address, spec.parallel), Screen(Board.of(spec.model_dump(mode="json")), console) as screen:
            from sweeps.driver import run_attempt  # noqa: PLC0415  # lazy: torch takes seconds

            def show(record: Record) -> None:
                screen.take(record["type"], record["message"], record["data"])

            result = run_attempt(
                run_dir,
                number=number,
                ray_address=ray_address,
                listeners=[show],
                build_threads=len(os.sched_getaffinity(0)),
                access=access,
                references=references,
            )
    except Stopped as stopped:
        Console(stderr=True).print(f"stopped: {stopped}. Go on with: python -m sweeps resume {run_dir.place.uri}")
        sys.exit(130)
    console.print(result_view(result))
    story = read_story(run_dir.root)
    page, facts = write_report(story, report_json(story), run_dir.root)
    for path in (page, facts) if run_dir.place.remote else ():
        run_dir.publish(path, path.read_text(encoding="utf-8"))
    console.print(f"report: {page}", highlight=False, markup=False, soft_wrap=True)


def _compare(root: Path, ray_address: str | None, public_judge: bool, quiet: bool) -> None:
    _let_waiting_threads_sleep()
    access = _access(read_comparison(root).judge, public_judge)
    threads = len(os.sched_getaffinity(0))
    run_compare(root, ray_address=ray_address, threads=threads, access=access, quiet=quiet)


def _watched_comparison(
    root: Path, attempt: int, ray_address: str | None, access: "JudgeAccess", console: Console
) -> None:
    from sweeps.comparison_attempt import (  # noqa: PLC0415  # lazy: torch and ray take seconds, --help must not
        run_comparison_attempt,
    )

    def show(record: Record) -> None:
        console.print(f"{record['type']}: {record['message']}", highlight=False, markup=False, soft_wrap=True)

    threads = len(os.sched_getaffinity(0))
    try:
        run_comparison_attempt(
            root, number=attempt, ray_address=ray_address, listeners=[show], build_threads=threads, access=access
        )
    except Stopped as stopped:
        Console(stderr=True).print(f"stopped: {stopped}")
        sys.exit(130)


def _placed(out: Path, source: Path, wanted: BaseModel) -> RunDir:
    """The run directory with the spec in it."""
    run_dir = RunDir(out)
    _place(run_dir, source, wanted)
    return run_dir


def _source(spec: str, run_dir: RunDir) -> Path:
    """Where a spec is read; the one that lies in an object store already, in the working copy."""
    its_own = is_remote(spec) and spec == f"{run_dir.place.uri}/{run_dir.spec_path.name}"
    return run_dir.spec_path if its_own else Path(spec)


def _place(run_dir: RunDir, source: Path, wanted: BaseModel) -> None:
    """Write the spec; one that is read from its own place stays as it is."""
    if not run_dir.spec_path.exists() or run_dir.spec_path.resolve() != source.resolve():
        run_dir.write_spec(wanted.model_dump(mode="json"))


def _let_waiting_threads_sleep() -> None:
    """Before torch brings OpenMP in: threads that wait must sleep, not spin, or neighbours on the machine stall us."""
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"


def _access(judge: Any, public_judge: bool) -> "JudgeAccess":
    """The judge's keys, read here and handed on in memory: Ray and the trials, our children, do not inherit a key."""
    from sweeps.judges import JudgeAccess  # noqa: PLC0415  # lazy: torch takes seconds, --help must not

    access = JudgeAccess.of(judge, os.environ, public_only=public_judge)
    for name in access.keys:
        del os.environ[name]
    return access


def _plan(spec: SweepSpec) -> str:
    plan = plan_budget(spec)
    rungs = f", compared at steps {', '.join(map(str, plan.rung_steps))}" if plan.rung_steps else ""
    again = f", {plan.retrainings} retrainings of finalists" if plan.retrainings else ""
    trials = f"{plan.trials} trials of {plan.steps} steps{rungs}{again}"
    return f"{spec.method}, {trials}; about {plan.likely_steps} steps in all"


def main(arguments: list[str] | None = None) -> None:
    """Parse and run. A user's mistake is one sentence on stderr and exit status 2."""
    try:
        app(arguments)
    except SimPOError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
