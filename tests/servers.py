"""Servers of Python's own library on a thread of the test."""

from __future__ import annotations

import contextlib
import socketserver
import threading
from collections.abc import Iterator


@contextlib.contextmanager
def serving_on_a_thread(server: socketserver.BaseServer) -> Iterator[None]:
    """Serve while the block runs, and close the server after it."""
    with server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
            thread.join()
