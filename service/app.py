"""The control plane's HTTP application. `create_app(settings)`; `uvicorn --factory service.app:factory`."""

import asyncio
import gc
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import httpx
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import Match

from service.audit import note_refusal
from service.auth import Authenticator
from service.bearers import Bearers, TokenAuthenticator
from service.clock import Clock, SystemClock
from service.cluster import Jobs, RayJobs
from service.context import Context, Gateway
from service.drain import Drain
from service.errors import NotFound, ServiceError, invalid, pointer_of, render
from service.events import TOLD
from service.examine import Doctor
from service.gate import Gate
from service.gauges import Gauges
from service.hardening import check_production
from service.housekeeping import Housekeeping
from service.idempotency import Posts
from service.kube import cluster_api
from service.logs import configure
from service.metrics import Metrics
from service.models import Event
from service.observe import Observed
from service.oidc import Oidc, oidc_of
from service.outbox import PUT
from service.plain_types import schemas_of_bodies
from service.rayjobs import KubeRayJobs
from service.reconcile import Reconciler
from service.routes import (
    audit,
    canaries,
    comparisons,
    datasets,
    deployments,
    edits,
    evaluations,
    events,
    feedback,
    files,
    fine_tuning,
    health,
    inference,
    keys,
    projects,
    promotions,
    quotas,
    registry,
    sweeps,
    trials,
    try_page,
)
from service.routes import webhooks as webhooks_routes
from service.serving.arms import Arms
from service.serving.declared import Replicas
from service.serving.deployer import Deployer, ServeDeployer, listen_address
from service.serving.directory import Directory
from service.serving.meter import Meter
from service.serving.onward import Onward
from service.serving.rayservice import RayServiceDeployer
from service.serving.waking import Waking
from service.settings import Settings
from service.store import Store
from service.straight import LayeredAPI
from service.stream import Hub


def factory() -> FastAPI:
    """The application of this process's environment variables."""
    settings = Settings.from_env()
    configure(settings)
    app = create_app(settings)
    settle()
    return app


def create_app(
    settings: Settings,
    *,
    store: Store | None = None,
    jobs: Jobs | None = None,
    deployer: Deployer | None = None,
    clock: Clock | None = None,
    models: Onward | None = None,
    doctor: Doctor | None = None,
    webhooks: Callable[[], httpx.AsyncBaseTransport] | None = None,
    oidc: Oidc | None = None,
    failpoint: Callable[[str], None] = lambda name: None,
) -> FastAPI:
    """Wire the parts together; nothing is opened before the application starts.

    Args:
        settings: of this process.
        store: database; default: the one of the settings.
        jobs: cluster that trains; default: Ray's REST API.
        deployer: owner of Serve's configuration; default: Serve's REST API.
        clock: time.
        models: way to Serve's HTTP proxy.
        doctor: who looks at datasets; default: a process of its own.
        webhooks: how their deliveries travel; default: to public addresses alone.
        oidc: who looks at signed tokens; default: as the settings say.
        failpoint: called at named places of writes; tests end the process there.

    Raises:
        ConfigError: settings that cannot be honoured, or are weak in production.
    """
    check_production(settings)
    clock = clock or SystemClock()
    store = store or Store(settings.database_url)
    oidc = oidc or oidc_of(settings, clock)
    metrics = Metrics(clock)
    directory, arms = Directory(clock), Arms(store, clock)
    store.watch(
        lambda info: _committed(info, metrics, directory, arms, reconciler.wake),
        lambda kind: metrics.database_errors.labels(kind).inc(),
    )
    if settings.reconcile:
        metrics.add(Gauges(store, clock))
    posts = Posts(store, clock, failpoint)
    reconciler = Reconciler(
        store=store,
        jobs=jobs or _jobs(settings, clock),
        deployer=deployer or _deployer(settings),
        settings=settings,
        clock=clock,
        doctor=doctor,
        metrics=metrics,
        webhooks=webhooks,
        housekeeping=Housekeeping(store, settings, clock, posts),
        failpoint=failpoint,
    )
    models = models or Onward(settings.serve_url)
    context = Context(
        settings=settings,
        store=store,
        everything=store,
        clock=clock,
        posts=posts,
        hub=Hub(store),
        reconciler=reconciler,
        metrics=metrics,
        drain=Drain(settings.drain_s),
        gateway=Gateway(
            clock=clock,
            metrics=metrics,
            models=models,
            directory=directory,
            meter=Meter(store, clock),
            arms=arms,
            waking=Waking(models, clock, most=settings.max_waiting, wait_s=settings.wake_s),
        ),
    )
    authenticator = Bearers(
        Authenticator(store, clock), None if oidc is None else TokenAuthenticator(oidc, store, clock)
    )
    gate = partial(
        Gate,
        authenticator=authenticator,
        max_upload=settings.max_dataset_bytes,
        refused=lambda asked: note_refusal(store, asked, clock),
    )
    app = LayeredAPI(
        layers=(gate, partial(Observed, metrics=metrics)),
        straight=inference.STRAIGHT if settings.proxy_models else (),
        lifespan=_lifespan,
    )
    app.state.context = context
    app.add_exception_handler(RequestValidationError, _bad_request)
    app.add_exception_handler(HTTPException, _http_error)
    if settings.proxy_models:  # first, as they are asked most: routes are tried in order
        app.include_router(inference.router)
        app.include_router(try_page.router)
    for router in (health.router, sweeps.sweeps, sweeps.runs, trials.sweeps, edits.router, events.sweeps, events.runs):
        app.include_router(router)
    for router in (edits.runs, deployments.router, canaries.router, registry.router, evaluations.router):
        app.include_router(router)
    for router in (promotions.router, events.rest):
        app.include_router(router)
    app.include_router(webhooks_routes.router)
    for router in (keys.router, keys.me, projects.router, audit.router):
        app.include_router(router)
    for router in (feedback.router, feedback.export):
        app.include_router(router)
    for router in (comparisons.router, datasets.router, files.router, fine_tuning.router, quotas.router):
        app.include_router(router)
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    context: Context = app.state.context
    await run_in_threadpool(context.store.migrate)
    if context.settings.reconcile:
        context.reconciler.start()
    context.metrics.watchers.set_function(lambda: context.hub.watchers)
    sharing = asyncio.ensure_future(context.gateway.meter.keep_shared())
    try:
        with context.drain.on_signals(context.hub.drain):
            yield
    finally:
        sharing.cancel()
        await asyncio.gather(sharing, return_exceptions=True)
        await run_in_threadpool(context.gateway.meter.share)
        await context.hub.close()
        if context.settings.reconcile:
            await run_in_threadpool(context.reconciler.stop)
        await context.gateway.waking.close()
        await context.gateway.models.aclose()
        context.store.close()


def settle() -> None:
    """Make what the first requests would each make at once, and tell the garbage collector that what is there stays.

    Sixteen first POSTs made the schemas sixteen times, half a second in all; a walk through the heap took 0.1 s, and
    was every route's p99.
    """
    schemas_of_bodies()
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


def _committed(
    info: Mapping[Any, Any], metrics: Metrics, directory: Directory, arms: Arms, wake: Callable[[str], None]
) -> None:
    told: Sequence[Event] = info.get(TOLD, ())
    metrics.told(told)
    if any(event.type.startswith("deployment.") for event in told):
        directory.forget()
        arms.forget()
    if info.get(PUT):
        wake("webhooks")


def _jobs(settings: Settings, clock: Clock) -> Jobs:
    where = settings.driver_resource
    if settings.submit_by == "rayjob":
        return KubeRayJobs(cluster_api(settings), settings.rayjob_template, clock, driver_resource=where)
    return RayJobs(settings.ray_jobs_url, settings.ray_token, driver_resource=where)


def _deployer(settings: Settings) -> Deployer:
    host, port = listen_address(settings.serve_url)
    replicas = Replicas(
        max_adapters=max(1, settings.max_adapters),
        vllm_python=settings.vllm_python,
        cache_dir=settings.model_cache,
        cache_bytes=settings.model_cache_bytes,
    )
    if settings.deploy_by == "rayservice":
        return RayServiceDeployer(
            cluster_api(settings),
            settings.rayservice,
            http_host=host,
            http_port=port,
            replicas=replicas,
            force=settings.kube_force,
        )
    return ServeDeployer(
        settings.serve_dashboard_url, settings.ray_token, http_host=host, http_port=port, replicas=replicas
    )


_NO_OBJECT = ("missing", "model_type", "model_attributes_type", "dict_type")
"""Pydantic's words for a body that is something else; a rule between its members has words of its own."""


async def _bad_request(request: Request, error: Exception) -> Response:
    """FastAPI's own 422 in our words: pointers into the body; parameters and headers by name."""
    assert isinstance(error, RequestValidationError)
    faults = []
    for item in error.errors():
        place = item["loc"][1:] if item["loc"][0] in ("body", "query", "path", "header") else item["loc"]
        if item["type"] == "json_invalid":
            faults.append(("", f"the body is not JSON: {item['ctx']['error']}"))
            continue
        if item["loc"] == ("body",) and item["type"] in _NO_OBJECT:
            faults.append(("", "the body must be a JSON object, sent with Content-Type: application/json"))
            continue
        text = "unknown: not one that is understood here" if item["type"] == "extra_forbidden" else item["msg"]
        faults.append((pointer_of(place), text))
    return _answer(request, invalid(faults))


async def _http_error(request: Request, error: Exception) -> Response:
    """The framework's own 404 and 405 in our shapes."""
    assert isinstance(error, HTTPException)
    if error.status_code == 404:
        return _answer(request, NotFound(f"There is nothing at {request.url.path}."))
    if error.status_code == 400:  # the framework's word for a body whose bytes are no text
        return _answer(request, invalid([("", "the body is not JSON: it must be UTF-8, and not nested too deep")]))
    headers = {name.lower(): value for name, value in (error.headers or {}).items()}
    if error.status_code == 405:
        headers["allow"] = _allowed(request)
    answer = ServiceError(str(error.detail), code=f"http_{error.status_code}", headers=headers)
    answer.status = error.status_code
    return _answer(request, answer)


def _allowed(request: Request) -> str:
    """Every method of a path: the framework names those of the first route that it fits. A path that the document has
    word for word is no id of a neighbour's."""
    exact = request.app.openapi()["paths"].get(request.url.path)
    if exact is not None:
        return ", ".join(sorted(method.upper() for method in exact))
    known = ("DELETE", "GET", "HEAD", "PATCH", "POST", "PUT")
    scopes = {method: {**request.scope, "method": method} for method in known}
    routes = request.app.routes
    return ", ".join(m for m in known if any(route.matches(scopes[m])[0] == Match.FULL for route in routes))


def _answer(request: Request, error: ServiceError) -> Response:
    return render(error, request.url.path, request.state.request_id)
