"""A private Ray head for the time of a test, a module or a package: starting it takes 15 s."""

import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from service.local_process import kill_all, members
from service.local_ray import RayHead

PATIENCE_S = 240.0


@contextmanager
def private_head(log: Path) -> Iterator[tuple[RayHead, str]]:
    """The head and its token, once it answers; at the end nothing of it is left. `log`: where Ray's words go."""
    head, token = RayHead.plan(secrets.token_hex(4)), secrets.token_hex(16)
    try:
        head.start(token, log)
        deadline = time.monotonic() + PATIENCE_S
        while not head.answers(token):
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)
        yield head, token
    finally:
        assert kill_all(head.stack_id) == []
        head.remove()
    assert members(head.stack_id) == [] and not head.temp_dir.exists()
