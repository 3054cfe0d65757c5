"""Installations for the fault matrix, and one sweep that nothing disturbed."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.service.faults import world
from tests.service.faults.world import World
from tests.service.postgres import fresh_database

Make = Callable[..., World]


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run directory of the toy sweep, driven once without any fault."""
    return world.undisturbed(tmp_path_factory.mktemp("undisturbed"))


@pytest.fixture
def installation(tmp_path: Path, migrated: Path) -> Iterator[Make]:
    """Makes an installation on SQLite; `settings` may be changed."""
    (tmp_path / "simpo.db").write_bytes(migrated.read_bytes())
    with ExitStack() as stack:
        yield lambda **changes: stack.enter_context(
            world.world(tmp_path, f"sqlite:///{tmp_path / 'simpo.db'}", **changes)
        )


@pytest.fixture
def on_postgres(tmp_path: Path, postgres: Path) -> Iterator[Make]:
    """The same on PostgreSQL."""
    with ExitStack() as stack:
        yield lambda **changes: stack.enter_context(world.world(tmp_path, fresh_database(postgres), **changes))


@pytest.fixture(params=["sqlite", "postgresql"])
def on_both(request: pytest.FixtureRequest) -> Make:
    """On each database in turn."""
    make: Make = request.getfixturevalue("installation" if request.param == "sqlite" else "on_postgres")
    return make
