"""Production mode: a service that strangers ask does not start with a setting that is weak there.

The defaults are those of one person on one machine. SIMPO_PRODUCTION=1 says that it is another place.
"""

from collections.abc import Iterator
from urllib.parse import urlsplit

from service.settings import Settings, variable_of
from simpo.errors import ConfigError


def check_production(settings: Settings) -> None:
    """Raises ConfigError that names every weak setting, with what is wrong and what to do."""
    weak = list(_weaknesses(settings)) if settings.production else []
    if weak:
        told = "; ".join(f"{variable_of(name)} {why}" for name, why in weak)
        raise ConfigError(f"refuses to start: {told}", variable_of("production"))


def _weaknesses(settings: Settings) -> Iterator[tuple[str, str]]:
    """(setting, what is wrong with it)."""
    if settings.reconcile and settings.ray_token is None:  # an API without a reconciler does not speak to Ray
        yield "ray_token", "is unset: whoever reaches Ray runs code there; give its token"
    if settings.source_roots is None:
        yield "source_roots", "is unset: a request may name any file of the machine; name the directories of data"
    if not settings.public_judges:
        yield "public_judges", "is off: a request may have inner addresses called; set it to 1"
    if settings.webhook_loopback:
        yield "webhook_loopback", "is on: a webhook may call this machine; unset it"
    if settings.log_level == "DEBUG":
        yield "log_level", "is DEBUG: libraries then log what they send; use INFO"
    for name in ("ray_jobs_url", "ray_serve_url", "serve_url"):
        if urlsplit(getattr(settings, name) or "").password is not None:
            yield name, "holds a password, and addresses are logged: take it out"
