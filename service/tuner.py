"""Fine-tuning jobs, moved: file looked at -> sweep -> winner deployed under the job's name -> succeeded.

Level-triggered like all that the reconciler does: each step starts from the rows alone and is one transaction.
"""

import logging
from collections.abc import Mapping
from typing import Any

from sqlalchemy import select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from service import events, rows
from service.clock import Clock
from service.errors import ServiceError
from service.models import Deployment, Sweep
from service.models_data import Dataset, FineTuningJob
from service.settings import Settings
from service.states import DeploymentState, State, TuningState, Validation
from service.store import Store
from service.winners import WINNER, model_path, shared_base
from simpo.errors import SimPOError

log = logging.getLogger(__name__)

_LIVE = (TuningState.TRAINING, TuningState.DEPLOYING)


class Tuner:
    """One pass over the jobs that are not over. Used by one thread."""

    def __init__(self, store: Store, settings: Settings, clock: Clock) -> None:
        self._store = store
        self._settings = settings
        self._clock = clock

    def step(self) -> bool:
        """Look at each once. True when something moved, so that another look at once is worth it."""
        joined = (
            select(FineTuningJob, Sweep, Dataset.validation, Deployment.state)
            .join(Sweep, Sweep.id == FineTuningJob.sweep_id)
            .join(Dataset, Dataset.id == FineTuningJob.training_file)
            .outerjoin(Deployment, Deployment.id == FineTuningJob.deployment_id)
            .where(FineTuningJob.state.in_(_LIVE))
            .order_by(FineTuningJob.id)
        )
        with self._store.read() as session:
            found = session.execute(joined)
            due = [job.id for job, sweep, checked, served in found if _due(job, sweep, checked, served)]
        moved = False
        for job_id in due:
            try:
                with self._store.write() as session:
                    self._move(session, job_id)
                moved = True
            except (SimPOError, ServiceError, IntegrityError, OSError):
                log.exception("%s: skipped in this pass", job_id)  # one job must not stop the others
        return moved

    def _move(self, session: Session, job_id: str) -> None:
        job = session.scalar(select(FineTuningJob).where(FineTuningJob.id == job_id).with_for_update())
        assert job is not None
        sweep = rows.lock_sweep(session, job.sweep_id)
        assert sweep is not None
        if job.state == TuningState.DEPLOYING:
            self._look_at_deployment(session, job, sweep)
        elif sweep.state == State.VALIDATING:
            self._look_at_file(session, job, sweep)
        elif sweep.state == State.SUCCEEDED:
            self._deploy(session, job, sweep)
        elif sweep.state == State.FAILED:
            error: Mapping[str, Any] = sweep.error or {}
            self._fail(job, str(error.get("code", "failed")), str(error.get("message", "")), error.get("param"))
        elif sweep.state == State.CANCELLED:
            job.state, job.ended_at = TuningState.CANCELLED, self._clock.now()

    def _look_at_file(self, session: Session, job: FineTuningJob, sweep: Sweep) -> None:
        """What the doctor says of the training file decides; where it says nothing, the training does."""
        now = self._clock.now()
        data = session.get_one(Dataset, job.training_file)
        if sweep.desired != "RUN":
            return  # the supervisor ends it
        wrong = _wrong(data)
        if wrong is not None:
            error = {"class": "USER_ERROR", "code": "invalid_training_file", "message": wrong, "param": "training_file"}
            sweep.error = error
            rows.move(session, sweep, State.FAILED, "USER_ERROR", wrong, now)
            events.append(session, sweep, "job.failed", wrong, error, now=now, level="error")
            return
        if data.report is None:
            text = f"The training file could not be looked at ({data.validation_message}): training goes on."
            events.append(session, sweep, "job.not_validated", text, now=now, level="warn")
        else:
            text = f"The training file is good: {data.report['pairs']} pairs of {data.report['rows']} rows."
            events.append(session, sweep, "job.validated", text, {"counts": data.report["counts"]}, now=now)
        rows.move(session, sweep, State.PENDING, "QUEUED", "Waits for its turn.", now)
        events.append(session, sweep, "job.queued", "Accepted.", {"name": sweep.name}, now=now)

    def _deploy(self, session: Session, job: FineTuningJob, sweep: Sweep) -> None:
        now = self._clock.now()
        try:
            path = model_path(session, self._settings, sweep.id, WINNER)
        except ServiceError as error:
            self._fail(job, error.code, error.detail, None)
            return
        base = shared_base(self._settings, path)
        source = {"sweep_id": sweep.id, "checkpoint": WINNER, "model_path": path, "base_path": base}
        deployment = rows.new_deployment(job.fine_tuned_model, source, job.created_by, now, project=job.project)
        session.add(deployment)
        facts = {"name": deployment.name, "sweep": sweep.id, "checkpoint": WINNER, "model": None}
        events.append(session, deployment, "deployment.requested", "Accepted.", facts, now=now, actor=job.created_by)
        text = f"The winner is deployed as {deployment.name}."
        events.append(session, sweep, "job.deploying", text, {"deployment": deployment.id}, now=now)
        session.flush()
        job.deployment_id, job.state = deployment.id, TuningState.DEPLOYING

    def _look_at_deployment(self, session: Session, job: FineTuningJob, sweep: Sweep) -> None:
        now = self._clock.now()
        found = session.get_one(Deployment, job.deployment_id)
        if found.desired == "DELETE":
            self._fail(job, "deployment_deleted", f"{found.name} was deleted before it answered.", None)
        elif found.state == DeploymentState.FAILED:
            text = f"The model is trained, and could not be deployed: {found.message}"
            self._fail(job, "deployment_failed", text, None)
            events.append(session, sweep, "job.not_deployed", text, now=now, level="error")
        elif found.state == DeploymentState.READY:
            job.state, job.ended_at = TuningState.SUCCEEDED, now
            text = f"The model answers as {found.name}."
            events.append(session, sweep, "job.deployed", text, {"model": found.name}, now=now)

    def _fail(self, job: FineTuningJob, code: str, message: str, param: Any) -> None:
        job.state, job.ended_at = TuningState.FAILED, self._clock.now()
        job.error = {"code": code, "message": message, "param": param}


def _due(job: FineTuningJob, sweep: Sweep, validation: str, deployment: str | None) -> bool:
    if job.state == TuningState.DEPLOYING:
        return deployment not in (None, DeploymentState.PENDING)
    if sweep.state == State.VALIDATING:
        return sweep.desired == "RUN" and validation not in (Validation.PENDING, Validation.RUNNING)
    return sweep.state in (State.SUCCEEDED, State.FAILED, State.CANCELLED)


def _wrong(data: Dataset) -> str | None:
    """The first finding that would spoil the training, with its remedy."""
    if data.validation != Validation.SUCCEEDED or data.report is None or data.report["ok"]:
        return None
    found = next((each for each in data.report["findings"] if each["level"] == "error"), None)
    return "The training file is not good." if found is None else f"{found['message']}: {found['remedy']}"
