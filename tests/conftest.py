"""What every package's tests share. One Ray for the whole session: starting it costs seconds, each time."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[str]:
    """A private Ray with four logical CPUs in this process; the value is its address for another process.

    The dashboard is on: worker groups need its State API to give their resources back. Nothing outside of this process
    tree is touched.
    """
    import ray  # noqa: PLC0415  # lazy: the quick tests must not pay for it

    from sweeps.ray_session import quiet_tune, start_private  # noqa: PLC0415  # lazy: imports ray

    temporary = Path(tempfile.mkdtemp(prefix="rt", dir="/tmp"))  # short: sockets' paths have 107 characters at most
    quiet_tune()
    try:
        start_private(temporary, num_cpus=4, dashboard=True)
        yield str(ray.get_runtime_context().gcs_address)
    finally:
        ray.shutdown()
        shutil.rmtree(temporary, ignore_errors=True)
