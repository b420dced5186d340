"""`serve_view`: the live view of this process, served from the bot's own event loop."""

from __future__ import annotations

import asyncio
import importlib.resources
import json
import re
import secrets
from pathlib import Path
from typing import Any, Final, Self
from urllib.parse import quote

from aiohttp import web

from voicegw.adapters.system import THIS_SYSTEM, System
from voicegw.errors import TableError
from voicegw.flight import NotARecord
from voicegw.secret import Secret
from voicegw.tables.load import map_of
from voicegw.view.guard import HEADERS, Guard, is_local
from voicegw.view.machines import MACHINES, described
from voicegw.view.metrics import CONTENT_TYPE, exposition
from voicegw.view.record import played
from voicegw.view.watch import Watch

PAGE: Final = {
    "index.html": "text/html",
    "style.css": "text/css",
    "icon.svg": "image/svg+xml",
    **dict.fromkeys(
        ("page.js", "calls.js", "call.js", "player.js", "maps.js", "rows.js", "trend.js", "dom.js"), "text/javascript"
    ),
}
RECORD_BYTES: Final = 32 << 20
STREAMS: Final = 32
KEEPALIVE_LOOKS: Final = 50
TOKEN_BYTES: Final = 24
NUMBER: Final = re.compile("[0-9]{1,9}")


async def serve_view(
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    token: str | None = None,
    record: str | Path | None = None,
    system: System = THIS_SYSTEM,
) -> View:
    """Show the calls of this process on a page, `url`, until `close`; metrics for Prometheus are at `/metrics`.

    Without a token the view answers only who asks for it as localhost, and it can only be served there. On another
    address a token is needed; where none is given one is made, and `url` has it. `record` is a flight record that the
    page begins with. `system` is the host whose calls are shown, where a test has another.

    Raises:
        OSError: nothing can listen there.
        NotARecord: `record` is none.
    """
    view = View(host, token, system)
    if record is not None:
        text = await asyncio.to_thread(Path(record).read_text, "utf-8", "replace")
        view.record = await asyncio.to_thread(played, text, Path(record).name)
    await view.start(port)
    return view


class View:
    """A view that is served; `serve_view` makes one. `url` is where, with the token where it wants one."""

    def __init__(self, host: str, token: str | None, system: System) -> None:
        self.host = host
        self.url = ""
        self.record: dict[str, Any] | None = None
        self._calls = system.calls
        made = token or (None if is_local(host) else secrets.token_urlsafe(TOKEN_BYTES))
        self._token = None if made is None else Secret(made)
        self._watch: Watch | None = None
        self._runner: web.AppRunner | None = None
        self._streams: set[asyncio.Task[Any]] = set()

    async def start(self, port: int) -> None:
        """Listen.

        Raises:
            OSError: nothing can listen there.
        """
        guard = Guard(self.host, self._token)
        app = web.Application(middlewares=[guard.check], client_max_size=RECORD_BYTES)
        app.on_response_prepare.append(_harden)
        app.add_routes(
            [
                web.get("/", self._page),
                web.get("/machines", self._machines),
                web.get("/maps/{machine}.svg", self._map),
                web.get("/events", self._events),
                web.get("/calls", self._list),
                web.get("/calls/{number:[0-9]{1,9}}", self._call),
                web.get("/calls/{number:[0-9]{1,9}}/record", self._flight_record),
                web.get("/calls/{number:[0-9]{1,9}}/play", self._play_call),
                web.get("/play", self._play_given),
                web.post("/play", self._play_posted),
                web.get("/metrics", self._metrics),
                web.get("/{name}", self._page),
            ]
        )
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
        await self._runner.setup()
        try:
            await web.TCPSite(self._runner, self.host, port).start()
        except BaseException:
            await self._runner.cleanup()
            raise
        self._watch = Watch(self._calls)
        address, bound = self._runner.addresses[0][:2]
        name = f"[{address}]" if ":" in address else address
        guard.cookie = f"voicegw-view-{bound}"
        token = "" if self._token is None else f"?token={quote(self._token.reveal(), safe='')}"
        self.url = f"http://{name}:{bound}/{token}"

    async def close(self) -> None:
        """Serve no longer; harmless when closed."""
        runner, self._runner = self._runner, None
        if runner is None:
            return
        for stream in tuple(self._streams):
            stream.cancel()
        await runner.cleanup()
        self._watching.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.close()

    def __repr__(self) -> str:
        return f"<View {self.url.partition('?')[0] or 'closed'}>"

    @property
    def _watching(self) -> Watch:
        assert self._watch is not None, "nothing is watched before start"
        return self._watch

    # -- the page

    async def _page(self, request: web.Request) -> web.Response:
        name = request.match_info.get("name", "index.html")
        if name not in PAGE:
            raise web.HTTPNotFound
        content = (importlib.resources.files("voicegw.view") / "page" / name).read_bytes()
        return web.Response(body=content, content_type=PAGE[name], charset="utf-8")

    async def _machines(self, request: web.Request) -> web.Response:
        return web.json_response(described())

    async def _map(self, request: web.Request) -> web.Response:
        name = request.match_info["machine"]
        if name not in MACHINES:
            raise web.HTTPNotFound
        try:
            return web.Response(text=map_of(name), content_type="image/svg+xml")
        except (OSError, TableError) as error:
            raise web.HTTPNotFound(text=f"{error}\n") from error

    # -- calls

    async def _events(self, request: web.Request) -> web.StreamResponse:
        """Server-sent events: each has what has changed (`Watch.changes`) as JSON."""
        if len(self._streams) >= STREAMS:
            raise web.HTTPServiceUnavailable(text="too many pages are open\n")
        shown = request.query.get("call", "")
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "X-Accel-Buffering": "no"})
        task = asyncio.current_task()
        assert task is not None
        self._streams.add(task)
        try:
            await response.prepare(request)
            quiet = 0
            async for change in self._watching.changes(int(shown) if NUMBER.fullmatch(shown) else None):
                quiet = 0 if change else quiet + 1
                if change:
                    await response.write(f"data: {json.dumps(change)}\n\n".encode())
                elif quiet % KEEPALIVE_LOOKS == 0:
                    await response.write(b":\n\n")
        except ConnectionError:
            pass  # the page is gone
        except asyncio.CancelledError:
            if self._runner is not None:  # not by `close`
                raise
        finally:
            self._streams.discard(task)
        return response

    async def _list(self, request: web.Request) -> web.Response:
        return web.json_response(list(self._watching.lines().values()))

    async def _call(self, request: web.Request) -> web.Response:
        number = int(request.match_info["number"])
        line, whole = self._watching.lines().get(number), self._watching.whole(number)
        if line is None or whole is None:
            raise web.HTTPNotFound(text="there is no such call\n")
        return web.json_response(line | whole)

    # -- flight records

    async def _flight_record(self, request: web.Request) -> web.Response:
        number = request.match_info["number"]
        headers = {"Content-Disposition": f'attachment; filename="call-{number}.jsonl"'}
        return web.Response(text=self._recorded(request), content_type="application/x-ndjson", headers=headers)

    async def _play_call(self, request: web.Request) -> web.Response:
        return await self._played(self._recorded(request), f"call {request.match_info['number']}")

    async def _play_given(self, request: web.Request) -> web.Response:
        return web.json_response(self.record)

    async def _play_posted(self, request: web.Request) -> web.Response:
        text = (await request.read()).decode(errors="replace")
        return await self._played(text, request.query.get("name", "this file")[:100])

    async def _played(self, text: str, name: str) -> web.Response:
        """In a thread: a long record must not hold up the bot."""
        try:
            body = await asyncio.to_thread(lambda: json.dumps(played(text, name)))
        except NotARecord as error:
            raise web.HTTPBadRequest(text=f"{error}\n") from error
        return web.Response(text=body, content_type="application/json")

    def _recorded(self, request: web.Request) -> str:
        text = self._watching.record(int(request.match_info["number"]))
        if text is None:
            raise web.HTTPNotFound(text="this call keeps no flight record; VoiceClient(keep_flight_record=True) does\n")
        return text

    # -- metrics

    async def _metrics(self, request: web.Request) -> web.Response:
        return web.Response(body=exposition(self._calls).encode(), headers={"Content-Type": CONTENT_TYPE})


async def _harden(request: web.Request, response: web.StreamResponse) -> None:
    for name, value in HEADERS.items():
        response.headers.setdefault(name, value)
