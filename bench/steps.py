"""Where a packet's and a connect's time goes, step by step: what each adds to the step inside it, caches warm."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from bench.connect import connect_parts
from bench.drivers.common import pcm_frames
from bench.drivers.group import ready_session
from bench.drivers.receiving import AES, KEY, datagrams
from bench.machine import on_one_core
from bench.receive import cpu_us, heard, ours, packets_of_speech
from bench.results import OURS, Result, Settings
from voicegw.adapters.mls import MlsGroup
from voicegw.adapters.udp import VoiceUdp
from voicegw.media.jitter import Turn
from voicegw.media.lane import Lane
from voicegw.media.opener import PacketOpener
from voicegw.media.opus import MAX_FRAME_SAMPLES, OpusDecoder, OpusEncoder, _scratch
from voicegw.media.pacer import FRAME_S, Pacer
from voicegw.media.receiver import StreamReceiver
from voicegw.media.sender import READY_FRAMES, StreamSender
from voicegw.secret import Secret
from voicegw.wire.encryption import AES_256_GCM, TransportCipher

STREAMS, FRAMES = 100, 150
TASKS, EXTERNAL_SENDER = "the library's tasks", "external sender"  # as drivers/connects.py names them
PARTS_ROUNDS, WAKING_SLOTS = 2, 50
PACKETS = STREAMS * FRAMES
FRAME = b"\xfc" + bytes(239)


class _Ready:
    """Frames that are there."""

    marks = ()
    settled = True

    def __init__(self) -> None:
        self.frames = deque([FRAME] * (FRAMES + 2))
        self.low = 0
        self.busy, self.ended, self.error = True, False, None

    def passed(self) -> None:
        pass

    def refill(self) -> None:
        pass

    def relieve(self) -> None:
        pass


def profile_send(settings: Settings) -> Result:
    """A packet on its way out, 100 streams."""
    result = Result("profile-send", "Where the time of a sent packet goes", "µs", {})
    values: dict[str, list[float]] = {}
    for _ in range(settings.rounds):
        for step, value in on_one_core(lambda: asyncio.run(_send())).items():
            values.setdefault(step, []).append(value)
    result.values = values
    result.notes.append(
        "Warm: one slot after the other, without the rests between them; ten frames are sealed at once. "
        "[profile-paced](#profile-paced) shows the same in a process that rests. Each call has a socket of its own, "
        "for a voice server may tell sessions apart by where their datagrams come from; one for all calls would allow "
        "`sendmmsg`, and would not be right."
    )
    return result


async def _send() -> dict[str, float]:
    loop = asyncio.get_running_loop()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.bind(("127.0.0.1", 0))
        paths = [VoiceUdp(loop, other.getsockname(), lambda data: None) for _ in range(STREAMS)]
        ciphers = [TransportCipher(AES_256_GCM, Secret(os.urandom(32))) for _ in range(STREAMS)]
        gcms = [AESGCM(os.urandom(32)) for _ in range(STREAMS)]
        header, nonce, datagram = bytes(12), bytes(12), bytes(272)
        native = paths[0]._native
        sockets = [path._descriptor for path in paths]
        senders = [_sender(cipher, lambda data: True) for cipher in ciphers]
        kernel = _each(sockets, lambda fd: native(fd, datagram, 272, 0)) if native is not None else 0.0
        send = _each(paths, lambda path: path.send(datagram))
        gcm = _each(gcms, lambda one: one.encrypt(nonce, FRAME, header))
        seal = _each(ciphers, lambda cipher: cipher.seal_all([header] * READY_FRAMES, [FRAME] * READY_FRAMES))
        seal /= READY_FRAMES
        ready = _made_ready(senders)
        paced = _paced(senders)
        session = ready_session()
        group = MlsGroup(1, loop.time)
        group._session = session
        dave = _each(paths, lambda path: session.encrypt_opus(FRAME))
        encrypted = _each(paths, lambda path: group.encrypt(FRAME))
        for path in paths:
            path.close()
    return {
        "system call": kernel,
        "our socket": send - kernel,
        "AES-256-GCM": gcm,
        "nonce, joining": seal - gcm,
        "header, counting": ready - seal,
        "pacer, queue": paced - ready,
        "with DAVE: davey": dave,
        "with DAVE: ours": encrypted - dave,
    }


def _sender(cipher: TransportCipher, send: Callable[[bytes], bool]) -> StreamSender:
    sender = StreamSender(lambda: None)
    sender.configure(cipher, 7, send)
    sender.release(None)
    return sender


def _made_ready(senders: Sequence[StreamSender]) -> float:
    spent, frames = 0.0, [FRAME] * READY_FRAMES
    for sender in senders:
        sender.send(FRAME)
    for _ in range(FRAMES // READY_FRAMES):
        began = time.thread_time()
        for sender in senders:
            sender.make_ready(frames)
        spent += time.thread_time() - began
        for sender in senders:
            sender.forget()
    return spent / FRAMES / len(senders) * 1e6


def _paced(senders: Sequence[StreamSender]) -> float:
    clock = [0.0]
    pacer = Pacer(lambda: clock[0], lambda: None)
    for sender in senders:
        lane = Lane(sender, lambda feed: None, lambda: None, lambda feed: None)
        lane.play(_Ready())
        pacer.add(lane)
    before, began = sum(sender.packets for sender in senders), time.thread_time()
    while clock[0] < FRAMES * FRAME_S:
        clock[0] = pacer.run() or 0.0
    spent = time.thread_time() - began
    return spent / (sum(sender.packets for sender in senders) - before) * 1e6


def profile_receive(settings: Settings) -> Result:
    """A packet on its way in, 100 users."""
    result = Result("profile-receive", "Where the time of a received packet goes", "µs", {})
    encoder = OpusEncoder(64_000)
    packets = [encoder.encode(frame) for frame in pcm_frames()]
    rows = datagrams({"mode": AES, "packets": packets, "users": STREAMS, "seconds": FRAMES * FRAME_S})
    values: dict[str, list[float]] = {}
    with packets_of_speech() as file:
        for _ in range(settings.rounds):
            steps = on_one_core(lambda: _receive(packets, rows) | {"event loop, two wakings a slot": _wakings()})
            steps["threads, cold caches"] = cpu_us(heard(ours(file, 2 * settings.seconds))) - sum(steps.values())
            for step, value in steps.items():
                values.setdefault(step, []).append(value)
    result.values = values
    result.notes.append(
        "Together this is what [receive](#receive) measures. All but the last two are warm: one packet after the "
        "other, no rests. In the paced process a slot's packets come in one waking of the event loop, their turns are "
        "taken in another, and a thread decodes them; after each rest the caches have to be filled again: that is in "
        "the last row. The row before is an event loop that is woken as often and does nothing, shared by the packets "
        f"of {STREAMS} users. libopus is the same for everybody, so two receivers cannot be further apart than it lets "
        "them."
    )
    return result


def _wakings() -> float:
    """Microseconds a packet that an event loop takes which is woken at our pace, twice a slot, and does nothing."""

    async def rest() -> float:
        loop, done = asyncio.get_running_loop(), asyncio.Event()
        began, spent = loop.time(), time.process_time()

        def wake(number: int) -> None:
            if number == 2 * WAKING_SLOTS:
                done.set()
            else:
                loop.call_at(began + (number + 1) * FRAME_S / 2, wake, number + 1)

        wake(0)
        await done.wait()
        return time.process_time() - spent

    return asyncio.run(rest()) / WAKING_SLOTS / STREAMS * 1e6


def _receive(packets: Sequence[bytes], rows: Sequence[Sequence[bytes]]) -> dict[str, float]:
    flat = [data for row in rows for data in row]
    gcm = AESGCM(KEY)
    aes = _once(flat, lambda data: gcm.decrypt(data[-4:] + bytes(8), data[12:-4], data[:12]))
    opener = PacketOpener(time.monotonic)
    opener.use_key(TransportCipher(AES, Secret(KEY)))
    opened = _once(flat, opener.open)
    now, turns = [100.0], list[list[Turn]]()
    receiver = StreamReceiver(lambda: now[0], turns.append)
    receiver.use_key(TransportCipher(AES, Secret(KEY)))
    for user in range(1, STREAMS + 1):
        receiver.map_ssrc(user, user)
    began = time.thread_time()
    for row in rows:
        for data in row:
            receiver.datagram(data)
        now[0] += FRAME_S
        receiver.tick()
    buffered = (time.thread_time() - began) / PACKETS * 1e6
    played = [turn for slot in turns for turn in slot]
    framed = _once(played, lambda turn: turn.decoder.turn(turn, True))
    decoders = [OpusDecoder() for _ in range(STREAMS)]
    work = [(decoders[n % STREAMS], packets[(n // STREAMS + n) % len(packets)]) for n in range(PACKETS)]
    alone = _once(work, lambda pair: _libopus(*pair))
    return {
        "AES-256-GCM": aes,
        "header, windows, counting": opened - aes,
        "user, jitter buffer": buffered - opened,
        "libopus": alone,
        "PCM as a frame with its origin": framed - alone,
    }


def _libopus(decoder: OpusDecoder, packet: bytes) -> None:
    decoder._decode(decoder._state, packet, len(packet), _scratch.pcm[0], MAX_FRAME_SAMPLES, 0)


def profile_connect(settings: Settings) -> Result:
    """A connect of ours and one of discord.py's."""
    result = Result("profile-connect", "Where the processor time of a connect goes", "ms", {})
    result.values = connect_parts(Settings(min(PARTS_ROUNDS, settings.rounds), settings.seconds))
    result.notes.append(
        "Each part is without those within it, and watching it adds some µs a call. discord.py makes a group of itself "
        "alone as soon as it knows the external sender; here that waits for somebody to share it with."
    )
    medians = result.medians()
    theirs = {who.partition(", ")[2]: value for who, value in medians.items() if not who.startswith(OURS)}
    if theirs:
        common = theirs.keys() - {TASKS, EXTERNAL_SENDER}
        share = sum(medians[f"{OURS}, {part}"] for part in common) / sum(theirs.values())
        result.notes.append(
            "Key package, TLS, sockets, the upgrade and the event loop are the same libraries' work in both; "
            f"with all the rest of ours for nothing the ratio would be {share:.2f}."
        )
    return result


def _each(things: Sequence[Any], work: Callable[[Any], object]) -> float:
    """Microseconds of one thing's turn; the things in turn, as streams are served."""
    began = time.thread_time()
    for _ in range(FRAMES):
        for thing in things:
            work(thing)
    return (time.thread_time() - began) / FRAMES / len(things) * 1e6


def _once(things: Sequence[Any], work: Callable[[Any], object]) -> float:
    began = time.thread_time()
    for thing in things:
        work(thing)
    return (time.thread_time() - began) / len(things) * 1e6


MEASURES = {"profile-send": profile_send, "profile-receive": profile_receive, "profile-connect": profile_connect}
