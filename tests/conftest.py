"""What every package's tests share. One Ray for the whole session: starting it costs seconds, each time."""

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import hypothesis
import pytest

if TYPE_CHECKING:
    from tests.sweeps.s3_double import S3Double

# A process without the bytecode of these three packages and their tests compiles them: the suite starts hundreds.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# Tests never time things: an example that takes long, or long to make, only tells that the machine had other work.
hypothesis.settings.register_profile("untimed", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("untimed")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """`-m quick` imports no module without a quick test: what Ray and its like cost would be a tenth of its minute."""
    modules = collection_path.name.startswith("test_") and collection_path.suffix == ".py"
    quick = config.getoption("markexpr") == "quick"
    return True if quick and modules and "mark.quick" not in collection_path.read_text(encoding="utf-8") else None


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


@pytest.fixture(scope="session")
def s3_servers() -> Iterator["S3Double"]:
    """The S3 double of the session: moto takes a second to import."""
    from tests.sweeps.s3_double import s3_double  # noqa: PLC0415  # lazy: the quick tests must not pay for it

    with s3_double() as double:
        yield double


@pytest.fixture
def s3(s3_servers: "S3Double", monkeypatch: pytest.MonkeyPatch) -> Iterator["S3Double"]:
    """The double without faults; boto3 finds it in this process and in those it starts."""
    for name, value in s3_servers.environment().items():
        monkeypatch.setenv(name, value)
    yield s3_servers
    s3_servers.faults.clear()
