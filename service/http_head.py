"""The server's own limit on what comes before a body: `uvicorn --http service.http_head:BoundedHead`.

The application sees a request when its head is whole, so a head that never ends, or never comes, has to be met here.
uvicorn has a limit of bytes with h11 alone, which is slower, and none of time; with httptools it keeps whatever comes
for as long as its client likes (uvicorn 0.54, llhttp 9).
"""

import asyncio
import http
import logging

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from service.errors import ServiceError, TooSlow, render
from service.gate import MAX_HEAD, head_too_large, request_id_of
from service.joined_writes import joined_writes

log = logging.getLogger(__name__)


class BoundedHead(HttpToolsProtocol):
    """uvicorn's HTTP over httptools, which refuses a head or a trailer that goes on for more than MAX_HEAD bytes.

    What one read brings more (256 KiB at most) is held, and `service.gate` says no to it if it is whole. While nothing
    is being answered a whole head must come within `head_s` of the connection, or of the first byte after an answer.
    A head that one read brings whole, as nearly all are, starts no timer.
    """

    head_s = 30.0
    """Seconds. Without any byte after an answer it is uvicorn's keep-alive that ends the connection, in 5 s."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as in uvicorn
        """A new connection: nothing is pending, and its first head is waited for."""
        self._pending = 0
        self._got_on = False
        super().connection_made(joined_writes(transport))
        self._deadline: asyncio.TimerHandle | None = self.loop.call_later(self.head_s, self._too_late)

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing is waited for any more."""
        self._forget_deadline()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse; then count what came since the last whole head, piece of a body or end of a request."""
        self._got_on = False
        super().data_received(data)
        self._pending = 0 if self._got_on else self._pending + len(data)
        if self._pending > MAX_HEAD and not self.transport.is_closing():
            log.warning("a request was refused: more than %d bytes, and neither head nor body is whole", MAX_HEAD)
            self._refuse(head_too_large())
        # What comes now and makes no head: a piece of one, or the rest of a body that was answered without it.
        elif self._deadline is None and self._answers_nothing() and self.transport.get_protocol() is self:
            self._deadline = self.loop.call_later(self.head_s, self._too_late)

    def on_headers_complete(self) -> None:
        """The parser's word for a whole head."""
        self._got_on = True
        if self._deadline is not None:
            self._forget_deadline()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """A piece of a body, which the application limits."""
        self._got_on = True
        super().on_body(body)

    def on_message_complete(self) -> None:
        """The end of a request, trailers included."""
        self._got_on = True
        super().on_message_complete()

    def _answers_nothing(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _forget_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _too_late(self) -> None:
        self._deadline = None
        if self.transport.is_closing():
            return
        if self._pending:
            log.warning("a request was refused: its head was not whole after %g s", self.head_s)
            self._refuse(TooSlow(f"The head did not come within {self.head_s:g} s.", code="head_too_slow"))
        else:  # who asked nothing is told nothing: it might be taken for the answer to what is just being sent
            self.transport.close()

    def _refuse(self, error: ServiceError) -> None:
        if self._answers_nothing():  # else an answer is under way: the end must do
            answer = render(error, "/", request_id_of({"headers": ()}))
            status = http.HTTPStatus(error.status)
            lines = [f"HTTP/1.1 {status} {status.phrase}".encode()]
            lines += [name + b": " + value for name, value in answer.raw_headers]
            self.transport.write(b"\r\n".join([*lines, b"", bytes(answer.body)]))
        self.transport.close()
