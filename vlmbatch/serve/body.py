"""The body of a request, read within a limit."""

from __future__ import annotations

import asyncio

from starlette.requests import ClientDisconnect, Request

from vlmbatch.serve.errors import ApiError

READ_SECONDS = 60.0
"""Longest time between two pieces of a body."""


async def read_body(request: Request, max_bytes: int) -> bytes:
    """Read the body of a request.

    A body that states that it is too large is not read.

    Raises:
        ApiError: It has more bytes, comes too slowly, or breaks off.
    """
    stated = request.headers.get("content-length", "")
    if stated.isdigit() and int(stated) > max_bytes:
        raise _too_large(max_bytes)
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise ApiError(400, "the body is compressed; send it as it is", param="content-encoding")
    pieces: list[bytes] = []
    total = 0
    stream = request.stream()
    try:
        while True:
            async with asyncio.timeout(READ_SECONDS):
                piece = await anext(stream)
            total += len(piece)
            if total > max_bytes:
                raise _too_large(max_bytes)
            pieces.append(piece)
    except StopAsyncIteration:
        return b"".join(pieces)
    except TimeoutError as error:
        raise ApiError(408, f"no more of the body came within {READ_SECONDS:g} s") from error
    except ClientDisconnect as error:
        raise ApiError(400, "the body breaks off") from error


def _too_large(max_bytes: int) -> ApiError:
    return ApiError(
        413,
        f"the request has more than {max_bytes:,} bytes (--max-body-size)",
        code="request_too_large",
        headers={"connection": "close"},
    )
