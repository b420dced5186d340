"""The little of Discord's REST API that a voice tool needs: GET, with the bot's token, over verified TLS."""

from __future__ import annotations

import json
import ssl
from typing import Any

import aiohttp
import yarl

from voicegw.adapters.failures import translate
from voicegw.secret import Secret

TIMEOUT = aiohttp.ClientTimeout(total=10.0)


async def get_json(url: yarl.URL, token: Secret[str], tls: ssl.SSLContext) -> tuple[int, Any]:
    """HTTP status and the decoded body, None where it is no JSON; redirects are not followed.

    Raises:
        ConnectionFailed: no answer, or none within 10 s.
    """
    try:
        async with (
            aiohttp.ClientSession(trust_env=False, timeout=TIMEOUT) as session,
            session.get(
                url, headers={"Authorization": f"Bot {token.reveal()}"}, ssl=tls, allow_redirects=False
            ) as answer,
        ):
            body = await answer.read()
    except (aiohttp.ClientError, OSError) as error:
        translate(error, str(url.host))
    try:
        return answer.status, json.loads(body)
    except (ValueError, RecursionError):
        return answer.status, None
