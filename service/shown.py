"""What rows look like in lists: JSON made once per version of a row, then remembered.

A row's version rises with every change (it is the ETag), so a remembered body is never stale: a page asks for ids and
versions, and reads only the rows that it does not know.
"""

import threading
from collections import OrderedDict
from collections.abc import Hashable, Iterable

_MOST_BYTES = 32 * 2**20  # about 15,000 sweeps


class Shown:
    """Bodies by everything that they are made of; the least used go first. Safe from many threads."""

    def __init__(self, most_bytes: int = _MOST_BYTES) -> None:
        """`most_bytes`: of the bodies together."""
        self._most_bytes = most_bytes
        self._bytes = 0
        self._known: OrderedDict[Hashable, bytes] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, keys: Iterable[Hashable]) -> dict[Hashable, bytes]:
        """The bodies that are remembered."""
        with self._lock:
            found = {key: self._known[key] for key in keys if key in self._known}
            for key in found:
                self._known.move_to_end(key)
        return found

    def put(self, key: Hashable, text: bytes) -> None:
        """Remember a body."""
        with self._lock:
            self._bytes += len(text) - len(self._known.pop(key, b""))
            self._known[key] = text
            while self._bytes > self._most_bytes:
                self._bytes -= len(self._known.popitem(last=False)[1])
