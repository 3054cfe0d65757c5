"""One suite per protocol, run on every implementation: a new one adds a fixture."""

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from sqlalchemy import func, select, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session
from sqlalchemy.orm.exc import StaleDataError

from service import datasets, events, quotas, rows
from service.auth import Caller
from service.cluster import Jobs, JobsError
from service.errors import Conflict, Invalid, NotFound
from service.idempotency import Answer, Posts
from service.models import Attempt, Base, Event, Sweep
from service.models_data import Dataset, FineTuningJob
from service.models_people import Project
from service.models_quotas import Quota, Usage
from service.models_registry import ModelVersion, RegistryModel
from service.settings import Settings
from service.states import AttemptState, State
from service.store import MIGRATIONS, Store
from tests.fakes import FakeClock

NOW = datetime(2026, 9, 1, 9, 30, 0, 123000, tzinfo=UTC)
CALLER = Caller(key_id="key_1", name="tests")


def order(name: str = "a") -> rows.Order:
    """A wish, its spec a stand-in: stores do not read specs."""
    return rows.Order(kind="sweep", name=name, spec={"name": name}, plan={"name": name}, spec_hash="0" * 64)


class StoreContract:
    """What the rest of the service relies on, on every database. Subclasses give the fixture `store`, migrated."""

    def test_migrating_again_changes_nothing_and_equals_the_models(self, store: Store) -> None:
        store.migrate()
        with store.read() as session:
            context = MigrationContext.configure(session.connection())
            assert compare_metadata(context, Base.metadata) == []

    def test_a_connection_that_a_thread_still_has_is_closed_when_it_comes_back(self, store: Store) -> None:
        with store.read() as session:
            connection = session.connection().connection.dbapi_connection
            assert connection is not None
            store.close()
            assert session.scalar(text("SELECT 1")) == 1, "who has it works on"
        with pytest.raises(Exception, match="closed"):
            connection.cursor().execute("SELECT 1")

    def test_what_was_there_before_projects_is_in_the_default_one(self, store: Store) -> None:
        old = "INSERT INTO registry_models (id, name, created_by, versions, version, event_seq, created_at) "
        with store.write() as session:
            sweep = rows.create_sweep(session, order(), CALLER, NOW)
        _to_revision(store, "0004")
        with store.write() as session:
            session.execute(text(old + "VALUES ('mdl_1', 'chat', 'key_1', 1, 1, 0, '2026-09-01 09:30:00')"))
            child = "INSERT INTO model_versions (model_id, n, sweep_id, checkpoint, model_path, created_by, created_at)"
            values = f"VALUES ('mdl_1', 1, '{sweep.id}', 'base', '/m', 'key_1', '2026-09-01 09:30:00')"
            session.execute(text(f"{child} {values}"))
        store.migrate()
        with store.read() as session:
            assert session.get_one(Project, "default").name == "default"
            assert session.get_one(RegistryModel, "mdl_1").project == "default"
            assert session.get_one(ModelVersion, ("mdl_1", 1)).sweep_id == sweep.id
            assert session.get_one(Sweep, sweep.id).project == "default"

    def test_a_line_is_told_by_project_and_by_priority(self, store: Store) -> None:
        wishes = (("a", "default", 0), ("b", "default", 1), ("c", "default", 0), ("d", "prj_2", -1))
        with store.write() as session:
            ids = {
                name: rows.create_sweep(
                    session, replace(order(name), priority=priority), replace(CALLER, project=project), NOW
                ).id
                for name, project, priority in wishes
            }
            session.add(Quota(project="default", accelerator_hours=1.0, updated_by="key_1", updated_at=NOW))
            session.add(Usage(sweep_id=ids["d"], month="2026-09", project="default", seconds=3600.0))
        with store.read() as session:
            live = rows.live_sweeps(session)
            decision = quotas.admission(session, Settings(max_running_sweeps=2), live, NOW)
        assert decision.admitted == [ids["d"]]
        with store.write() as session:
            quotas.tell_why(session, live, decision)
        with store.read() as session:
            line = quotas.lines_of(session, Sweep.project == "default")
        assert [(each["name"], each["place"], each["of"], each["after"]) for each in line] == [
            ("b", 1, 3, None),
            ("a", 2, 3, ids["b"]),
            ("c", 3, 3, ids["a"]),
        ]
        assert {each["reason"] for each in line} == {"QUOTA"}

    def test_names_and_bytes_are_unique_within_a_project(self, store: Store) -> None:
        for project in ("default", "prj_2"):
            with store.write() as session:
                rows.create_sweep(session, order(), replace(CALLER, project=project), NOW)
                session.add(_dataset(f"dst_{project}", project=project))
                session.add(_model(f"mdl_{project}", project=project))
        assert _number_of(store, Sweep) == 2
        with pytest.raises(IntegrityError), store.write() as session:
            session.add(_model("mdl_3", project="prj_2"))

    def test_times_come_back_aware_and_in_utc(self, store: Store) -> None:
        local = NOW.astimezone(timezone(timedelta(hours=5)))
        with store.write() as session:
            sweep_id = rows.create_sweep(session, order(), CALLER, local).id
        with store.read() as session:
            created = session.get_one(Sweep, sweep_id).created_at
        assert created == NOW and created.utcoffset() == timedelta(0)

    def test_an_exception_leaves_nothing(self, store: Store) -> None:
        with pytest.raises(RuntimeError), store.write() as session:
            rows.create_sweep(session, order(), CALLER, NOW)
            session.flush()
            raise RuntimeError
        assert _number_of(store, Sweep) == 0

    def test_a_live_name_is_taken_and_a_failed_ones_is_free(self, store: Store) -> None:
        with store.write() as session:
            first = rows.create_sweep(session, order(), CALLER, NOW)
        with pytest.raises(Conflict), store.write() as session:
            rows.create_sweep(session, order(), CALLER, NOW)
        with store.write() as session:
            rows.move(session, session.get_one(Sweep, first.id), State.FAILED, "USER_ERROR", "bad", NOW)
            session.flush()
            rows.create_sweep(session, order(), CALLER, NOW)
        assert _number_of(store, Sweep) == 2

    def test_only_one_attempt_is_open(self, store: Store) -> None:
        with store.write() as session:
            sweep = rows.create_sweep(session, order(), CALLER, NOW)
            rows.open_attempt(session, sweep, NOW)
        with pytest.raises(IntegrityError), store.write() as session:
            rows.open_attempt(session, session.get_one(Sweep, sweep.id), NOW)
        with store.write() as session:
            current = rows.lock_current(session, sweep.id, 1)
            assert current is not None
            rows.end_attempt(session, current[1], AttemptState.LOST, "", NOW)
            rows.open_attempt(session, current[0], NOW)
        with store.write() as session:
            assert rows.lock_current(session, sweep.id, 1) is None, "the fence"
            assert rows.lock_current(session, sweep.id, 2) is not None

    def test_a_write_over_an_unseen_change_is_refused(self, store: Store) -> None:
        with store.write() as session:
            sweep_id = rows.create_sweep(session, order(), CALLER, NOW).id
        with store.read() as session:
            old = session.get_one(Sweep, sweep_id)
        with store.write() as session:
            session.get_one(Sweep, sweep_id).reason = "NEWER"
        old.reason = "STALE"
        with pytest.raises(StaleDataError), store.write() as session:
            session.add(old)
            session.flush()

    def test_events_of_many_writers_have_no_gaps(self, store: Store) -> None:
        with store.write() as session:
            sweep_id = rows.create_sweep(session, order(), CALLER, NOW).id

        def add(_: int) -> None:
            with store.write() as session:
                sweep = rows.lock_sweep(session, sweep_id)
                assert sweep is not None
                events.append(session, sweep, "judge.budget", "", now=NOW)

        _in_threads(add, 12)
        with store.read() as session:
            numbers = [event.seq for event in events.read(session, sweep_id, after=0, limit=100)]
        assert numbers == list(range(1, 14))

    def test_a_journal_record_becomes_one_event(self, store: Store) -> None:
        with store.write() as session:
            sweep_id = rows.create_sweep(session, order(), CALLER, NOW).id
        for expectation in (None, IntegrityError):
            try:
                with store.write() as session:
                    sweep = rows.lock_sweep(session, sweep_id)
                    assert sweep is not None
                    events.append(session, sweep, "job.started", "", now=NOW, attempt=1, journal_seq=1)
                assert expectation is None
            except IntegrityError:
                assert expectation is IntegrityError
        assert _number_of(store, Event) == 2

    def test_fifty_posts_of_one_key_have_one_effect(self, store: Store) -> None:
        processes = [Posts(store, FakeClock(), lambda name: None) for _ in range(50)]  # in-flight is known per process
        answers: list[tuple[int, bytes]] = []

        def effect(session: Session, now: datetime) -> Answer:
            row = rows.create_sweep(session, order(), CALLER, now)
            return Answer(status=202, body={"id": row.id})

        def post(number: int) -> None:
            answer = processes[number].run("/v1/sweeps", {"name": "a"}, "key", CALLER, effect)
            answers.append((answer.status_code, bytes(answer.body)))

        _in_threads(post, 50)
        assert len(answers) == 50 and len(set(answers)) == 1
        assert _number_of(store, Sweep) == 1

    def test_the_lease_has_one_holder(self, store: Store) -> None:
        assert store.take_lease("reconciler", "a", 60.0)
        assert store.take_lease("reconciler", "a", 60.0)
        assert not store.take_lease("reconciler", "b", 60.0)
        store.release_lease("reconciler", "b")
        assert not store.take_lease("reconciler", "b", 60.0)
        store.release_lease("reconciler", "a")
        assert store.take_lease("reconciler", "b", 0.01)
        time.sleep(0.02)
        assert store.take_lease("reconciler", "a", 60.0), "it runs out by itself"

    def test_readers_are_not_blocked_by_a_writer(self, store: Store) -> None:
        with store.write() as session:
            rows.create_sweep(session, order(), CALLER, NOW)
            session.flush()
            assert _number_of(store, Sweep) == 0
        assert _number_of(store, Sweep) == 1

    def test_live_sweeps_come_with_their_open_attempt_in_order(self, store: Store) -> None:
        with store.write() as session:
            first = rows.create_sweep(session, order("a"), CALLER, NOW)
            second = rows.create_sweep(session, order("b"), CALLER, NOW)
            over = rows.create_sweep(session, order("c"), CALLER, NOW)
            rows.open_attempt(session, second, NOW)
            rows.move(session, over, State.CANCELLED, "CANCELLED", "", NOW)
        with store.read() as session:
            live = rows.live_sweeps(session)
            assert session.scalar(select(func.count()).select_from(Attempt)) == 1
        assert [(s.id, a.n if a else None) for s, a in live] == [(first.id, None), (second.id, 1)]

    def test_the_same_bytes_are_one_live_dataset(self, store: Store) -> None:
        with store.write() as session:
            session.add(_dataset("dst_1"))
        with pytest.raises(IntegrityError), store.write() as session:
            session.add(_dataset("dst_2"))
        with store.write() as session:
            session.get_one(Dataset, "dst_1").state = "DELETED"
            session.flush()
            session.add(_dataset("dst_2"))
        assert _number_of(store, Dataset) == 2
        with store.read() as session:
            assert session.get_one(Dataset, "dst_1").bytes == 1 << 40, "more than 32 bits"

    def test_a_sweep_does_not_begin_on_a_dataset_that_is_deleted_meanwhile(self, store: Store) -> None:
        with store.write() as session:
            session.add(_dataset("dst_1"))
        outcomes: list[str] = []

        def contend(number: int) -> None:
            try:
                with store.write() as session:
                    if number % 2:
                        reads = replace(order(f"s{number}"), datasets={"train": "dst_1"})
                        rows.create_sweep(session, reads, CALLER, NOW)
                    else:
                        datasets.delete_dataset(session, datasets.lock_dataset(session, "dst_1"), CALLER, NOW)
                outcomes.append("sweep" if number % 2 else "deleted")
            except (Conflict, Invalid, NotFound) as error:
                outcomes.append(type(error).__name__)

        _in_threads(contend, 8)
        assert ("sweep" in outcomes) != ("deleted" in outcomes), outcomes

    def test_fine_tuning_jobs_are_found_by_their_metadata(self, store: Store) -> None:
        with store.write() as session:
            session.add(_dataset("dst_1"))
            session.flush()
            for name in ("a", "b"):
                sweep = rows.create_sweep(session, order(name), CALLER, NOW)
                session.add(_job(name, sweep.id, {"team": name, "odd.key": "1"}))
        with store.read() as session:
            for key, value, found in (("team", "b", ["b"]), ("odd.key", "1", ["a", "b"]), ("none", "1", [])):
                wanted = select(FineTuningJob.id).where(FineTuningJob.labels[key].as_string() == value)
                assert sorted(session.scalars(wanted)) == found

    def test_ping(self, store: Store) -> None:
        store.ping()
        with store.read() as session:
            assert session.scalar(text("SELECT 1")) == 1


class JobsContract:
    """What the reconciler relies on. Subclasses give the fixture `jobs` and `sleeper`, an entrypoint that goes on.

    The methods run in the order of the file against one cluster: a real job takes seconds.
    """

    wait_s = 240.0

    def wait(self, what: Callable[[], bool]) -> None:
        deadline = time.monotonic() + self.wait_s
        while not what():
            assert time.monotonic() < deadline, f"not reached in {self.wait_s:.0f} s"
            time.sleep(0.2)

    def test_an_unknown_job_is_none_and_may_be_stopped(self, jobs: Jobs) -> None:
        assert jobs.get("swp-unknown-a1") is None
        assert "swp-unknown-a1" not in jobs.list()
        jobs.stop("swp-unknown-a1")
        assert jobs.logs("swp-unknown-a1") == ""

    def test_a_submitted_job_is_found_by_its_id(self, jobs: Jobs, sleeper: str) -> None:
        jobs.submit("swp-contract-a1", sleeper, {"PYTHONUNBUFFERED": "1"})
        info = jobs.get("swp-contract-a1")
        assert info is not None and info.submission_id == "swp-contract-a1" and not info.terminal
        assert "swp-contract-a1" in jobs.list()

    def test_a_second_submit_of_an_id_is_an_error_and_changes_nothing(self, jobs: Jobs, sleeper: str) -> None:
        with pytest.raises(JobsError, match="already exists") as caught:
            jobs.submit("swp-contract-a1", sleeper, {})
        assert not caught.value.unreachable
        assert list(jobs.list()).count("swp-contract-a1") == 1

    def test_a_stopped_job_becomes_terminal_and_is_still_known(self, jobs: Jobs) -> None:
        jobs.stop("swp-contract-a1")
        self.wait(lambda: (info := jobs.get("swp-contract-a1")) is not None and info.terminal)
        jobs.stop("swp-contract-a1")
        info = jobs.list()["swp-contract-a1"]
        assert info.status == "STOPPED"


def _to_revision(store: Store, revision: str) -> None:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    with store.write() as session:
        config.attributes["connection"] = session.connection()
        command.downgrade(config, revision)


def _model(id: str, *, project: str) -> RegistryModel:
    first = {"created_by": "key_1", "versions": 0, "event_seq": 0, "created_at": NOW}
    return RegistryModel(id=id, project=project, name="chat", **first)


def _dataset(id: str, *, project: str = "default") -> Dataset:
    return Dataset(
        id=id,
        project=project,
        filename="rows.jsonl",
        created_by="key_1",
        sha256="0" * 64,
        format="jsonl",
        bytes=1 << 40,
        unpacked_bytes=1 << 40,
        rows=1,
        columns=["prompt"],
        state="READY",
        validation="NONE",
        validation_message="",
        event_seq=0,
        created_at=NOW,
    )


def _job(id: str, sweep_id: str, metadata: dict[str, str]) -> FineTuningJob:
    return FineTuningJob(
        id=id,
        sweep_id=sweep_id,
        created_by="key_1",
        model="practice",
        training_file="dst_1",
        method="simpo",
        hyperparameters={},
        seed=0,
        labels=metadata,
        fine_tuned_model=f"ft-{id}",
        state="TRAINING",
        created_at=NOW,
    )


def _number_of(store: Store, table: type[Base]) -> int:
    with store.read() as session:
        return session.scalar(select(func.count()).select_from(table)) or 0


def _in_threads(what: Callable[[int], None], number: int) -> None:
    failures: list[BaseException] = []

    def guarded(n: int) -> None:
        try:
            what(n)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=guarded, args=(n,)) for n in range(number)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures, failures
