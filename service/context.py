"""What the routes need, made once by `create_app` and handed to each request."""

from dataclasses import dataclass
from typing import Annotated

import httpx
from fastapi import Depends, Header, Request, Security
from fastapi.security import HTTPBearer

from service.auth import Caller
from service.clock import Clock
from service.idempotency import Posts
from service.reconcile import Reconciler
from service.settings import Settings
from service.store import Store
from service.stream import Hub


@dataclass(frozen=True, kw_only=True)
class Context:
    """The parts of one application."""

    settings: Settings
    store: Store
    clock: Clock
    posts: Posts
    hub: Hub
    reconciler: Reconciler
    models: httpx.AsyncClient
    """To Ray Serve; knows neither our keys nor the caller's."""


def _context(request: Request) -> Context:
    context: Context = request.app.state.context
    return context


def _caller(request: Request) -> Caller:
    caller: Caller = request.state.caller  # set by service.gate, which lets nobody through without one
    return caller


bearer = Security(HTTPBearer(auto_error=False, description="A key of `simpo up`. The gate checks it, on every route."))
ContextDep = Annotated[Context, Depends(_context)]
CallerDep = Annotated[Caller, Depends(_caller)]
IdempotencyKey = Annotated[
    str | None, Header(description="1-255 characters, one per wish: a repeated POST is answered as the first was.")
]
