"""The API in a process of its own that ends itself, kill -9, at a named place."""

import multiprocessing
import os
import signal
from multiprocessing.process import BaseProcess

import uvicorn

from service.app import create_app
from service.settings import Settings

NOWHERE = "-"


def start(settings: Settings, place: str = NOWHERE) -> BaseProcess:
    """A fresh process of the API. It is forked from one that has imported everything: a start costs no import."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    process = context.Process(target=serve, args=(settings, place), daemon=True)
    process.start()
    return process


def serve(settings: Settings, place: str) -> None:
    """Serve until killed."""

    def failpoint(name: str) -> None:
        if name == place:
            os.kill(os.getpid(), signal.SIGKILL)

    app = create_app(settings, failpoint=failpoint)
    where = {"host": settings.bind_host, "port": settings.bind_port}
    uvicorn.run(app, **where, log_level="warning", timeout_graceful_shutdown=2)  # type: ignore[arg-type]
