"""The way of an upload through a request: stream -> checked file -> row, for native and OpenAI-shaped routes alike."""

from collections.abc import Callable
from datetime import datetime

from fastapi import Request
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from service.auth import Caller
from service.context import Context
from service.datasets import checked_filename, create_dataset
from service.forms import FileBody
from service.idempotency import Answer
from service.models_data import Dataset
from service.run_dirs import check_disk
from service.uploads import Incoming

Named = Callable[[FileBody], tuple[str | None, str]]
"""A file whose form is read -> (name of the dataset, file name). Raises what is wrong with the other fields."""
Shown = Callable[[Dataset, bool], Answer]
"""A dataset, and whether it is new -> what is answered."""


async def take_file(
    request: Request, file: FileBody, context: Context, caller: Caller, key: str | None, named: Named, shown: Shown
) -> Response:
    """Store the file of a request, once for an Idempotency-Key. Nothing of a refused one stays."""
    check_disk(context.settings, "Data cannot be uploaded")
    incoming = await run_in_threadpool(Incoming, context.settings.datasets_dir, context.settings.max_dataset_bytes)
    try:
        async for chunk in file.chunks():
            await run_in_threadpool(incoming.feed, chunk)
        name, filename = named(file)
        checked_filename(filename)
        received = await run_in_threadpool(incoming.finish)

        def effect(session: Session, now: datetime) -> Answer:
            row, new = create_dataset(
                session, context.settings, received, name=name, filename=filename, caller=caller, now=now
            )
            return shown(row, new)

        said = {"sha256": received.sha256, "name": name, "filename": filename}
        return await run_in_threadpool(context.posts.run, request.url.path, said, key, caller, effect)
    finally:
        await run_in_threadpool(incoming.discard)
