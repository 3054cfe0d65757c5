"""Reading server-sent events (WHATWG HTML, 9.2) from the lines of an HTTP answer."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class ServerSentEvent:
    """One event as it came over the wire."""

    id: str
    """Value for Last-Event-ID; empty when the event had none."""
    event: str
    """Type; `message` when the event named none."""
    data: str
    """The data lines, joined by newlines."""

    def json(self) -> dict[str, Any]:
        """The data as a JSON object. Raises ValueError when it is none."""
        value = json.loads(self.data)
        if not isinstance(value, dict):
            raise ValueError(f"the data of event {self.id or self.event!r} is no JSON object")
        return value


def read_sse(lines: Iterable[str]) -> Iterator[ServerSentEvent]:
    """Events in order. Comments (heartbeats) are skipped; an event cut off before its blank line is dropped."""
    id, event, data = "", "", list[str]()
    for line in lines:
        if not line:
            if data or event:
                yield ServerSentEvent(id=id, event=event or "message", data="\n".join(data))
            id, event, data = "", "", []
            continue
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if field == "id":
            id = value
        elif field == "event":
            event = value
        elif field == "data":
            data.append(value)
