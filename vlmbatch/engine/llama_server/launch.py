"""Run a llama.cpp server that ends with the process that started it. Run as a script, in the
server's process: it needs nothing of the package.

    python launch.py PARENT program [argument …]
    python launch.py PARENT xllamacpp '{"settings": …}'

On Linux the kernel ends this process when the starting thread has ended. Elsewhere a thread reads
standard input, a pipe that the starting process holds open, and ends it with the pipe.
"""

from __future__ import annotations

import ctypes
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time

PR_SET_PDEATHSIG = 1


def main() -> None:
    """Run the server."""
    parent, program, *arguments = sys.argv[1:]
    end_with_parent(int(parent))
    if program == "xllamacpp":
        serve(json.loads(arguments[0]))
    elif sys.platform == "linux":
        os.execv(program, [program, *arguments])
    else:
        server = subprocess.Popen([program, *arguments], stdin=subprocess.DEVNULL)
        threading.Thread(target=end_with_pipe, args=(server,), daemon=True).start()
        signal.signal(signal.SIGTERM, lambda *_: server.terminate())
        sys.exit(server.wait())


def end_with_parent(parent: int) -> None:
    """Have the kernel kill this process when its parent ends, where it can."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it has ended already
        os._exit(1)


def end_with_pipe(server: subprocess.Popen[bytes] | None = None) -> None:
    """Wait until the starting process closes the pipe, and end."""
    while os.read(0, 1):
        pass
    if server is not None:
        server.kill()
    os._exit(1)


def serve(settings: dict[str, object]) -> None:
    """Run the server of the package xllamacpp in this process.

    Args:
        settings: Attributes of ``CommonParams`` by name; a dot leads into an attribute.
    """
    import xllamacpp

    logging.basicConfig(level=logging.INFO)
    threading.Thread(target=end_with_pipe, daemon=True).start()
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    params = xllamacpp.CommonParams()
    for name, value in settings.items():
        owner = params
        *path, last = name.split(".")
        for part in path:
            owner = getattr(owner, part)
        if isinstance(value, str) and hasattr(kind := type(getattr(owner, last)), value):
            value = getattr(kind, value)
        setattr(owner, last, value)
    server = xllamacpp.Server(params)
    logging.info("listening on %s", server.listening_address)
    while True:
        time.sleep(3600)


if __name__ == "__main__":
    main()
