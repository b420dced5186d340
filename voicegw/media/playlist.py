"""What a player plays, as data: taken in one process, given to the player of another."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol

from voicegw.errors import AudioError, NotAudio, SourceFailed
from voicegw.media.live import ReconnectingSource
from voicegw.media.opening import open_source, open_url
from voicegw.media.pacer import FRAME_S, has_own_clock
from voicegw.media.playback import Playback
from voicegw.media.player import Player
from voicegw.media.sources import LimitedSource, Source, SourceDescription, ToneSource, description_of, seek_in

Opener = Callable[..., Source]


@dataclass(frozen=True, slots=True)
class PlaylistItem:
    """One source with how it is played; `source` is None where it cannot be opened again, `what` is its class's name.

    `position_s` is its place in the source. `ducks` is the level of the others, for what is played over them.
    """

    what: str
    source: SourceDescription | None = None
    position_s: float = 0.0
    volume: float = 1.0
    loudness: float | None = None
    loop: bool = False
    paused: bool = False
    ducks: float | None = None


@dataclass(frozen=True, slots=True)
class Playlist:
    """What plays, what comes after it, and what sounds over it."""

    playing: PlaylistItem | None = None
    queue: tuple[PlaylistItem, ...] = ()
    over: tuple[PlaylistItem, ...] = ()
    bitrate: int = 128_000
    ducked: float = 1.0

    @property
    def lost(self) -> tuple[str, ...]:
        """What of it no other process can play: one line each."""
        items = ((self.playing,) if self.playing is not None else ()) + (*self.queue, *self.over)
        return tuple(
            f"{item.what} at {item.position_s:.1f} s: only this process can read it; sources that go on elsewhere are "
            "files, URLs and tones, or have a `description`"
            for item in items
            if item.source is None
        )


class _Opened(Protocol):
    def __call__(self, source: Source, /) -> Playback: ...


def playlist_of(player: Player) -> Playlist:
    """What it plays now."""
    playing = player.playing
    return Playlist(
        playing=None if playing is None else _item(playing),
        queue=tuple(_item(playback) for playback in player.queued),
        over=tuple(_item(playback) for playback in player.over),
        bitrate=player.bitrate,
        ducked=player.ducked,
    )


def _item(playback: Playback) -> PlaylistItem:
    return PlaylistItem(
        what=type(playback.source).__name__,
        source=description_of(playback.source),
        position_s=round(playback.source_position_s, 3),
        volume=playback.volume,
        loudness=playback.loudness,
        loop=playback.loop,
        paused=playback.paused,
        ducks=playback.ducks,
    )


async def play_on(
    player: Player, playlist: Playlist, openers: Mapping[str, Opener], warn: Callable[[str], None]
) -> None:
    """Play it, each source from where it was; `warn(text)` hears of every one that cannot be had."""
    for text in playlist.lost:
        warn(f"not played on: {text}")
    player.bitrate = playlist.bitrate
    for item, begin in _beginnings(player, playlist):
        if item.source is None:
            continue
        try:
            source = await _off_the_loop(_open_at, item.source, item.position_s, {**OPENERS, **openers})
        except AudioError as error:
            warn(f"not played on: {item.what} at {item.position_s:.1f} s: {error}")
            continue
        playback = begin(source)
        if not item.source.live:
            playback.begun_at(item.position_s)
        if item.paused:
            playback.pause()
    if playlist.ducked != 1.0:
        player.duck(playlist.ducked)


def _beginnings(player: Player, playlist: Playlist) -> Iterator[tuple[PlaylistItem, _Opened]]:
    """What plays first, so that it is heard first."""
    playing = playlist.playing
    for item in ((playing,) if playing is not None else ()) + playlist.queue:
        yield (
            item,
            lambda source, item=item: player.queue(source, volume=item.volume, loudness=item.loudness, loop=item.loop),
        )
    for item in playlist.over:
        yield item, lambda source, item=item: player.play_over(source, volume=item.volume, duck=item.ducks)


async def _off_the_loop(work: Callable[..., Source], *arguments: Any) -> Source:
    if has_own_clock(asyncio.get_running_loop()):
        return work(*arguments)
    return await asyncio.to_thread(work, *arguments)


def _open_at(description: SourceDescription, position_s: float, openers: Mapping[str, Opener]) -> Source:
    """The source at its place; what cannot be sought is read to there."""
    source = open_described(description, openers)
    if description.live or position_s <= 0:
        return source
    try:
        try:
            seek_in(source, position_s)
        except SourceFailed:
            for _ in range(round(position_s / FRAME_S)):
                if not source.read():
                    break
    except BaseException:
        source.close()
        raise
    return source


def open_described(description: SourceDescription, openers: Mapping[str, Opener]) -> Source:
    """Open a source again; it blocks.

    Raises:
        NotAudio: nobody here knows how, or it is not audio any more.
        SourceFailed: it cannot be had.
    """
    opener = openers.get(description.kind)
    if opener is None:
        raise NotAudio(f"nothing opens a source of kind {description.kind!r} here; give an opener of that name")
    arguments = dict(description.arguments)
    inner = arguments.pop("source", None)
    if isinstance(inner, Mapping):
        again = SourceDescription(inner["kind"], inner["arguments"])
        if description.kind == "reconnecting":
            return opener(lambda: open_described(again, openers), **arguments)
        return opener(open_described(again, openers), **arguments)
    return opener(**arguments)


OPENERS: Final[Mapping[str, Opener]] = {
    "file": lambda path: open_source(path),
    "url": open_url,
    "tone": ToneSource,
    "limited": LimitedSource,
    "reconnecting": ReconnectingSource,
}
