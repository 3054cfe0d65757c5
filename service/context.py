"""What the routes need, made once by `create_app` and handed to each request as far as its caller may see."""

from dataclasses import dataclass, field, replace
from typing import Annotated

from fastapi import Depends, Header, Request, Security
from fastapi.security import HTTPBearer
from pydantic import AfterValidator

from service.audit import Asked, Recorder
from service.auth import Caller
from service.clock import Clock
from service.drain import Drain
from service.idempotency import Posts, checked_key
from service.metrics import Metrics
from service.reconcile import Reconciler
from service.serving.arms import Arms
from service.serving.directory import Directory
from service.serving.meter import Meter
from service.serving.onward import Onward
from service.serving.waking import Waking
from service.settings import Settings
from service.shown import Shown
from service.store import Store
from service.stream import Hub

NOBODY = ""
"""Project of a request without a key: it sees no rows."""


@dataclass(frozen=True, kw_only=True)
class Gateway:
    """What passes completions on; none of it shows rows."""

    clock: Clock
    metrics: Metrics
    models: Onward
    """To Ray Serve; knows neither our keys nor the caller's."""
    directory: Directory
    meter: Meter
    arms: Arms
    waking: Waking


@dataclass(frozen=True, kw_only=True)
class Context:
    """The parts of one application."""

    settings: Settings
    store: Store
    """In a request: the database as the caller's project sees it."""
    everything: Store
    """The whole database. For what is about the installation, not about a project: keys, projects, health."""
    clock: Clock
    posts: Posts
    hub: Hub
    shown: Shown = field(default_factory=Shown)
    """What lists have said of rows that did not change since."""
    reconciler: Reconciler
    metrics: Metrics
    drain: Drain
    gateway: Gateway
    recorder: Recorder | None = None
    """In a request: who notes what it changes."""

    def within(self, project: str) -> "Context":
        """As another project sees it: for operators, who may look after all of them."""
        return self._narrowed(project, self.recorder)

    def _narrowed(self, project: str, recorder: Recorder | None) -> "Context":
        store = self.everything.within(project, recorder)
        return replace(self, store=store, posts=self.posts.over(store), recorder=recorder)


def gateway_of(request: Request) -> Gateway:
    """The application's, for endpoints that look at no row, as a rule."""
    context: Context = request.app.state.context
    return context.gateway


def narrowed(request: Request) -> Context:
    """The parts of the application as the caller may see them."""
    context: Context = request.app.state.context
    caller: Caller | None = getattr(request.state, "caller", None)
    if caller is None:
        return context.within(NOBODY)
    asked = Asked(
        caller=caller,
        scope=request.state.scope,
        action=f"{request.method} {request.scope['route'].path}",
        named=tuple(str(value) for value in request.path_params.values()),
        request_id=request.state.request_id,
    )
    return context._narrowed(caller.project, Recorder(asked, context.clock))


async def _context(request: Request) -> Context:
    return narrowed(request)


async def _caller(request: Request) -> Caller:
    caller: Caller = request.state.caller  # set by service.gate, which lets nobody through without one
    return caller


bearer = Security(HTTPBearer(auto_error=False, description="A key of `simpo up`. The gate checks it, on every route."))
ContextDep = Annotated[Context, Depends(_context)]
CallerDep = Annotated[Caller, Depends(_caller)]
IdempotencyKey = Annotated[
    str | None,
    Header(
        description="One per wish: a repeated POST is answered as the first was.",
        json_schema_extra={"pattern": "^[!-~]([ -~]{0,253}[!-~])?$"},
    ),
    AfterValidator(checked_key),
]
