"""Transport encryption: what a packet costs beside AES-GCM alone, and what strangers and replays cost."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable
from typing import Any

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from bench.results import OURS, Result, Settings
from voicegw.media.opener import PacketOpener
from voicegw.secret import Secret
from voicegw.wire.encryption import AES_256_GCM, TransportCipher
from voicegw.wire.rtp import kind_of, pack_header, parse_rtp, strip

PACKETS = 40_000
FRAME = bytes(240)
ALONE, UNGUARDED = "AES-GCM alone", "without windows"

_keys = itertools.count(1)


def seal(settings: Settings) -> Result:
    """Header in the clear, counter, AES-256-GCM, nonce at the end."""
    result = Result("seal", "Sealing a packet of 240 bytes", "µs", {})
    headers = [pack_header(number, number * 960, 7) for number in range(PACKETS)]
    values: dict[str, list[float]] = {OURS: [], ALONE: []}
    for _ in range(settings.rounds):
        ours = _cipher()
        gcm = AESGCM(bytes(32))
        nonces = [number.to_bytes(12, "little") for number in range(PACKETS)]
        values[OURS].append(_each(headers, lambda header, ours=ours: ours.seal(header, FRAME)))
        pairs = list(zip(nonces, headers, strict=True))
        values[ALONE].append(_each(pairs, lambda pair, gcm=gcm: gcm.encrypt(pair[0], FRAME, pair[1])))
    result.values = values
    result.compare(ALONE, 2.5, "less")
    return result


def open_packet(settings: Settings) -> Result:
    """Kind, header, AES-256-GCM, the windows over nonces and sequence numbers."""
    result = Result("open", "Opening a packet of 240 bytes", "µs", {})
    values: dict[str, list[float]] = {OURS: [], UNGUARDED: []}
    for _ in range(settings.rounds):
        key = Secret(next(_keys).to_bytes(32, "big"))
        server, ours = TransportCipher(AES_256_GCM, key, "server"), TransportCipher(AES_256_GCM, key)
        packets = [server.seal(pack_header(number, number * 960, 7), FRAME) for number in range(PACKETS)]
        opener = PacketOpener(time.monotonic)
        opener.use_key(ours)
        values[OURS].append(_each(packets, opener.open))
        assert opener.authentic == PACKETS, opener.counters
        values[UNGUARDED].append(_each(packets, lambda data, ours=ours: _unguarded(ours, data)))
    result.values = values
    result.compare(UNGUARDED, 1.75, "less")
    return result


def forged(settings: Settings) -> Result:
    """Datagrams of the right source, with the right look and another key."""
    result = Result("forged", "Share of a core that 10,000 forged packets a second take", "of 1", {})
    values: list[float] = []
    for _ in range(settings.rounds):
        opener = PacketOpener(time.monotonic)
        opener.use_key(_cipher())
        other = _cipher()
        packets = [other.seal(pack_header(number, number * 960, 7), FRAME) for number in range(PACKETS)]
        values.append(_each(packets, opener.open) * 10_000 / 1e6)
        assert opener.counters["rejected"] == PACKETS
    result.values = {OURS: values, "allowed": [0.05] * len(values)}
    result.compare("allowed", 1.0, "less")
    return result


def _cipher() -> TransportCipher:
    return TransportCipher(AES_256_GCM, Secret(next(_keys).to_bytes(32, "big")))


def _unguarded(cipher: TransportCipher, data: bytes) -> bytes | None:
    if kind_of(data) != "rtp":
        return None
    view = parse_rtp(data)
    return strip(cipher.open(data, view.aad_length), view)


def _each(things: Iterable[Any], work: Callable[[Any], object]) -> float:
    """Microseconds of processor time for one."""
    began = time.process_time()
    for thing in things:
        work(thing)
    return (time.process_time() - began) / PACKETS * 1e6


MEASURES = {"seal": seal, "open": open_packet, "forged": forged}
