"""What a webhook gets: the form of standardwebhooks.com, so that people verify it with the libraries they have."""

import base64
import hashlib
import hmac
import json
from collections.abc import Sequence
from datetime import datetime
from secrets import token_bytes
from typing import Any

from service import events
from service.models import Event

PREFIX = "whsec_"
_SECRET_BYTES = 32


def new_secret() -> str:
    """256 random bits, as those libraries take them."""
    return PREFIX + base64.b64encode(token_bytes(_SECRET_BYTES)).decode()


def message_id(parent_id: str, seq: int) -> str:
    """Id of an event among all: the same in every attempt and for every webhook, so that receivers drop repetitions."""
    return f"{parent_id}-{events.event_id(seq)}"


def body_of(event: Event) -> bytes:
    """The message: always the same bytes for the same event."""
    told: dict[str, Any] = events.to_json(event)
    told |= {"parent": event.parent_id, "project": event.project}
    message = {"type": event.type, "timestamp": told["created_at"], "data": told}
    return json.dumps(message, separators=(",", ":")).encode()


def headers_of(secrets: Sequence[str], id: str, body: bytes, now: datetime) -> dict[str, str]:
    """Headers of one attempt, at `now`: receivers refuse what is older than a few minutes, against replays.

    A signature for each secret: whoever knows one of them finds his own.
    """
    seconds = int(now.timestamp())
    return {
        "content-type": "application/json",
        "user-agent": "simpo-webhooks/1",
        "accept-encoding": "identity",
        "webhook-id": id,
        "webhook-timestamp": str(seconds),
        "webhook-signature": " ".join(signature(secret, id, seconds, body) for secret in secrets),
    }


def signature(secret: str, id: str, seconds: int, body: bytes) -> str:
    """v1,BASE64(HMAC-SHA256(key, "id.seconds.body")); the key is the secret's base64 part."""
    key = base64.b64decode(secret.removeprefix(PREFIX))
    digest = hmac.new(key, f"{id}.{seconds}.".encode() + body, hashlib.sha256).digest()
    return "v1," + base64.b64encode(digest).decode()
