"""Sources that a worker opens itself, named by the bot; each is guarded by what the worker's operator allows."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Callable, Mapping
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from voicegw.errors import NotAudio, SourceFailed, SourceRefused
from voicegw.media.opening import open_source, open_url
from voicegw.media.playlist import Opener, open_described
from voicegw.media.sources import LimitedSource, Source, SourceDescription, ToneSource

if TYPE_CHECKING:
    from voicegw.fleet.bus import Bus

FETCH_S: Final = 30.0
ASKED: Final = "asked for by a bot"  # the kind of what a worker plays, in a frozen call


@dataclass(frozen=True, slots=True)
class Named:
    """What a worker can open by itself: `client.play(voicegw.fleet.url("https://..."))`."""

    description: SourceDescription


def url(address: str, *, headers: Mapping[str, str] | None = None, live: bool = False) -> Named:
    """An http or https URL at a public address; a `live` one is not sought when another worker goes on with it."""
    return Named(SourceDescription("url", {"url": address, "headers": dict(headers or {})}, live))


def file(path: str | Path) -> Named:
    """A file on a path that the workers share; below a directory that their operator allows (`--files`)."""
    return Named(SourceDescription("file", {"path": str(path)}))


def stored(name: str, *, bucket: str = "voicegw_sounds") -> Named:
    """An object of a JetStream object store bucket that the workers' operator allows (`--bucket`)."""
    return Named(SourceDescription("stored", {"bucket": bucket, "name": name}))


class AskedSource:
    """A source with the name that the bot knows it by; everything else is the source's own."""

    def __init__(self, source: Source, playback_id: str, of: Mapping[str, Any]) -> None:
        self._source = source
        self.playback_id = playback_id
        self.is_opus: Final = source.is_opus
        self.description = SourceDescription(ASKED, {"playback_id": playback_id, "of": of}, bool(of.get("live")))

    def read(self) -> bytes | None:
        """As the source."""
        return self._source.read()

    def close(self) -> None:
        """As the source."""
        self._source.close()

    def __getattr__(self, name: str) -> Any:  # seek, abort, bind: where the source has them
        return getattr(self._source, name)


class Openers:
    """What this worker opens: URLs of public hosts, files below `files`, objects of `buckets`, tones, and what a bot
    streams. `streamed(arguments)` makes the last."""

    def __init__(
        self,
        bus: Bus,
        loop: asyncio.AbstractEventLoop,
        files: Path | None,
        buckets: tuple[str, ...],
        streamed: Callable[..., Source],
    ) -> None:
        self._bus = bus
        self._loop = loop
        self._files = files.resolve() if files is not None else None
        self._buckets = buckets
        self._inner: Mapping[str, Opener] = {
            "url": self._url,
            "file": self._file,
            "stored": self._stored,
            "tone": ToneSource,
            "limited": LimitedSource,
            "streamed": streamed,
        }

    @property
    def openers(self) -> Mapping[str, Opener]:
        """For `VoiceClient.thaw`."""
        return {ASKED: self.open}

    def open(self, playback_id: str, of: Mapping[str, Any]) -> AskedSource:
        """Open what a bot has asked for; it blocks.

        Raises:
            AudioError: it may not be opened here, cannot be had, or is no audio.
        """
        description = SourceDescription(str(of["kind"]), dict(of["arguments"]), bool(of.get("live")))
        if description.kind not in self._inner:
            raise NotAudio(f"this worker opens no source of kind {description.kind[:40]!r}")
        try:
            return AskedSource(open_described(description, self._inner), playback_id, of)
        except (TypeError, KeyError) as error:
            raise SourceRefused(f"a source of kind {description.kind!r} is not described like this") from error

    def _url(self, url: str, headers: Mapping[str, str] | None = None, **other: object) -> Source:
        return open_url(url, headers=headers)

    def _file(self, path: str) -> Source:
        if self._files is None:
            raise SourceRefused("this worker opens no files; its operator allows a directory with --files")
        try:
            place = (self._files / path).resolve()
        except (OSError, ValueError):
            raise SourceRefused("this is no path") from None
        if not place.is_relative_to(self._files):
            raise SourceRefused(f"{path[:80]!r} is not below the directory that this worker's operator allows")
        return open_source(place)

    def _stored(self, bucket: str, name: str) -> Source:
        if bucket not in self._buckets:
            raise SourceRefused(
                f"this worker opens no objects of {bucket[:40]!r}; its operator allows one with --bucket"
            )
        with tempfile.NamedTemporaryFile(prefix="voicegw-") as spool:
            fetched = asyncio.run_coroutine_threadsafe(self._bus.fetch_object(bucket, name, spool), self._loop)
            try:
                fetched.result(FETCH_S)
            except FutureTimeoutError:
                fetched.cancel()
                raise SourceFailed(f"{name[:80]!r} did not come within {FETCH_S:g} s") from None
            spool.flush()
            return open_source(spool.name)  # open files outlive their names


def described(source: Source | Named) -> SourceDescription | None:
    """How a worker opens it; None where only the bot can read it, which streams it then.

    A file that the bot has opened may be the bot's alone: it is streamed. `voicegw.fleet.file` names a shared one.
    """
    found = getattr(source, "description", None)
    if not isinstance(found, SourceDescription):
        return None
    if isinstance(source, Named):
        return found
    inner: Any = {"kind": found.kind, "arguments": found.arguments}
    while isinstance(inner, Mapping):
        if inner["kind"] not in ("url", "tone", "limited"):
            return None
        inner = inner["arguments"].get("source")
    return found


def as_data(description: SourceDescription) -> dict[str, Any]:
    """A description as JSON."""
    return {"kind": description.kind, "arguments": dict(description.arguments), "live": description.live}
