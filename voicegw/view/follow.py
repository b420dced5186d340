"""Follows another process's view, for terminals."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import parse_qs, urlsplit

import aiohttp

from voicegw.adapters.failures import translate
from voicegw.errors import ConnectionFailed
from voicegw.secret import Secret

LONGEST_SILENCE_S = 60.0
LONGEST_LINE = 1 << 24


async def follow(url: str) -> AsyncIterator[dict[str, Any]]:
    """What the view at `url` says of its calls, as `Watch.changes` has it; ends when that process ends its view.

    Raises:
        ConnectionFailed: there is no view, it wants another token, or it is gone.
    """
    parts = urlsplit(url)
    token = Secret(parse_qs(parts.query).get("token", [""])[0])
    headers = {"Authorization": f"Bearer {token.reveal()}"} if token else {}
    timeout = aiohttp.ClientTimeout(total=None, connect=10.0, sock_read=LONGEST_SILENCE_S)
    where = f"{parts.scheme}://{parts.netloc}"
    try:
        async with (
            aiohttp.ClientSession(headers=headers, timeout=timeout, read_bufsize=LONGEST_LINE) as session,
            session.get(f"{where}/events") as response,
        ):
            if response.status == 401:
                raise ConnectionFailed(f"{where} wants a token: use the URL that serve_view gave, with ?token=")
            if response.content_type != "text/event-stream":
                raise ConnectionFailed(f"{where} is no live view (status {response.status})")
            async for line in response.content:
                if line.startswith(b"data: "):
                    yield json.loads(line[6:])
    except (aiohttp.ClientError, TimeoutError) as error:
        translate(error, f"the live view at {where}")
    except ValueError as error:
        raise ConnectionFailed(f"{where} does not speak as a live view") from error
