"""Alembic migrations, run by `service.store.Store.migrate`."""
