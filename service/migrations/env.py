"""Alembic's entry: runs on the connection that `service.store` hands over, inside its transaction."""

from alembic import context

from service.models import Base


def run() -> None:
    """Bring the schema to the revision that was asked for."""
    context.configure(
        connection=context.config.attributes["connection"],
        target_metadata=Base.metadata,
        transactional_ddl=True,  # SQLite too: half a migration is none
    )
    with context.begin_transaction():
        context.run_migrations()


if __name__ == "env_py":  # the name that Alembic runs this file under
    run()
