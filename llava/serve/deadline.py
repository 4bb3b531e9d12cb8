"""Reading from a socket within a time in all, however few bytes come at once."""

from __future__ import annotations

import io
import math
import socket
from time import monotonic


class DeadlineReader(io.RawIOBase):
    """What a socket receives, until a point in time; to be wrapped in `io.BufferedReader`.

    A socket's own timeout counts anew with every byte. Here each read gets the time that is left.

    until:   when reading ends, by `time.monotonic`; may be moved
    silence: seconds that a read may wait for a byte

    Raises TimeoutError at either end.
    """

    def __init__(
        self, connection: socket.socket, until: float = math.inf, silence: float = math.inf
    ) -> None:
        self._connection, self._silence = connection, silence
        self.until = until

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:
        """Receive into `buffer`; the number of bytes, 0 at the end."""
        self._connection.settimeout(seconds_left(self.until, self._silence))
        return self._connection.recv_into(buffer)


def seconds_left(until: float, most: float) -> float | None:
    """Seconds to the point `until`, at most `most`, as a socket's timeout; None without an end.

    Raises:
        TimeoutError: the point has passed.
    """
    left = min(until - monotonic(), most)
    if left <= 0:
        raise TimeoutError("timed out")
    return None if left == math.inf else left
