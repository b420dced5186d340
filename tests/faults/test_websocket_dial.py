"""Faults of the dial: names, TCP, TLS, the HTTP upgrade, and a server that says nothing (faults F24 to F27)."""

from __future__ import annotations

import asyncio
import datetime
import errno
import itertools
import socket
import ssl
from pathlib import Path

import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from tests.faults.cells import covers
from tests.faults.raw_server import dialled, home_again, scripted
from tests.faults.worlds import in_phase
from voicegw.effects import OpenSocket, SendHeartbeat, SendIdentify, SendResume
from voicegw.errors import CertificateRefused, ConnectionFailed, InvalidHandshake
from voicegw.events import SocketFailed, SocketOpened
from voicegw.testing.simulation import SERVER_ADDRESS, SERVER_NAME, Simulation
from voicegw.wire.opcodes import Opcode

DEAD = "66.22.196.99"  # an address where no host is
SOON_S = 120.0


def moved_on(phase: str) -> str:
    """Where the gateway's machine is while the dial of this phase is under way."""
    return {"D": "connecting.dialling", "U": "resuming.dialling"}[phase]


# -- F24: no name, no connection


@covers("F24")
@pytest.mark.parametrize("how", ["no name", "refused", "unreachable", "black hole"])
def test_a_dial_that_fails_is_repeated_with_growing_waits_until_the_cap(phase: str, how: str) -> None:
    async def story(sim: Simulation) -> None:
        client, connecting = await dialled(sim, phase, DEAD, max_attempts=4)
        sim.network.black_holes.add(DEAD)
        sim.network.host(DEAD)
        if how == "no name":
            client.system.fail("resolve", socket.EAI_AGAIN)
        elif how != "black hole":
            client.system.fail("connect", errno.ECONNREFUSED if how == "refused" else errno.ENETUNREACH)
        await client.wait_closed()
        assert isinstance(client.error, ConnectionFailed)
        assert not isinstance(client.error, InvalidHandshake)
        if phase == "D":
            assert connecting.exception() is client.error
        dials = [step.at for step in client.history if step.after.endswith(".dialling") and step.machine == "gateway"]
        waits = [step for step in client.history if step.before == "waiting.backoff"]
        assert len(dials) == (4 if phase == "D" else 5)  # the resume comes on top
        # what a wait may be at most: base 0.5 s, factor 2, one attempt spent before the first of them
        begins = [step.at for step in client.history if step.after == "waiting.backoff"]
        for number, (begin, end) in enumerate(zip(begins, waits, strict=True), 4 - len(waits)):
            assert 0.0 <= end.at - begin <= min(30.0, 0.5 * 2**number) + 0.01

    Simulation(seed=2).run(story)


@covers("F24", "DU")
def test_attempts_follow_the_schedule_to_the_end(phase: str) -> None:
    """In the core each wait takes all of its bound, so the schedule can be read off."""
    world = in_phase(phase)
    world.unanswered.add("OpenSocket")
    before = len(world.sent(OpenSocket))
    while world.states["call"] != "closed":
        if world.states["gateway"].endswith(".dialling"):
            world.server(SocketFailed(ConnectionFailed("refused")), numbered=False)
        else:
            world.until(lambda: world.states["gateway"].endswith(".dialling") or world.states["call"] == "closed", 60)
    times = world.times(OpenSocket)[before - 1 :]
    gaps = [round(later - earlier, 3) for earlier, later in itertools.pairwise(times)]
    bounds = [min(30.0, 0.5 * 2**attempt) for attempt in range(1, 12)]
    assert gaps == (bounds if phase == "D" else [0.0, *bounds[1:]])
    assert world.sent(SendResume) == []


@covers("F24", "DU")
@pytest.mark.parametrize("first", ["black hole", "refused"])
def test_a_second_address_of_the_name_is_tried(phase: str, first: str) -> None:
    async def story(sim: Simulation) -> None:
        if first == "black hole":
            sim.network.black_holes.add(DEAD)
        sim.network.host(DEAD)
        client, _ = await dialled(sim, phase, DEAD, SERVER_ADDRESS)
        begin = sim.loop.time()
        await client.wait_for(lambda: client.states["gateway"] == "ready")
        assert sim.loop.time() - begin < 3.0  # far below the 10 s of a dial: both were tried in one
        assert client.session.call.attempts == 0
        assert len(sim.server.records(1, Opcode.RESUMED, "out")) == (phase == "U")

    Simulation(seed=1).run(story)


# -- F25: TLS


def context_of(case: str, tmp_path: Path) -> ssl.SSLContext:
    """What a server shows that must not be trusted."""
    from voicegw.testing.simulation import _authority

    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    if case == "self-signed":
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, SERVER_NAME)])
        now = datetime.datetime.now(datetime.UTC)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(key.public_key())
            .serial_number(1)
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(x509.SubjectAlternativeName([x509.DNSName(SERVER_NAME)]), critical=False)
            .sign(key, hashes.SHA256())
        )
        pem = tmp_path / "self-signed.pem"
        pem.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
            + certificate.public_bytes(serialization.Encoding.PEM)
        )
        context.load_cert_chain(pem)
    elif case == "expired":
        past = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=1)
        _authority().issue_cert(SERVER_NAME, not_after=past).configure_cert(context)
    elif case == "wrong name":
        _authority().issue_cert("c-ams02-sim.discord.media").configure_cert(context)
    else:
        trustme.CA().issue_cert(SERVER_NAME).configure_cert(context)  # somebody in the middle with a CA of his own
    return context


CERTIFICATES = {
    "expired": "certificate has expired",
    "wrong name": "Hostname mismatch",
    "self-signed": "self-signed certificate",
    "man in the middle": "unable to get local issuer certificate",
}


@covers("F25")
@pytest.mark.parametrize("case", CERTIFICATES)
def test_no_byte_of_ours_leaves_before_the_certificate_is_right(phase: str, case: str, tmp_path: Path) -> None:
    async def story(sim: Simulation) -> None:
        async with scripted(sim, context=context_of(case, tmp_path)) as server:
            client, _ = await dialled(sim, phase)
            token = client.credentials.token.reveal() if phase == "U" else ""
            if phase == "D":
                await client.wait_closed()  # a first join says at once what is wrong
                error = client.error
            else:
                await client.wait_for(lambda: client.states["call"] == "waiting.backoff")
                error = client.session.call.error
            assert isinstance(error, CertificateRefused)
            assert CERTIFICATES[case] in str(error)
            assert phase == "D" or token not in f"{error} {error!r} {error.__cause__!r}"
            assert server.dials == []  # TLS was never done, so nothing was ever said inside of it
            if phase == "U":  # whoever stood in between goes away; the call comes back with another pair
                home_again(sim)
                await client.wait_for(lambda: client.states["gateway"] == "ready", SOON_S)
                assert client.credentials.token.reveal() != token
                assert sim.server.records(None, Opcode.RESUME, "in") == []
            assert len([step for step in client.history if step.event == "socket_refused"]) == 1

    Simulation(seed=1, tls=True).run(story)


@covers("F25", "DU")
def test_a_handshake_that_is_cut_is_a_failed_dial_and_nothing_falls_back(phase: str) -> None:
    async def story(sim: Simulation) -> None:
        async with scripted(sim) as server:  # no TLS: it sees what is really on the wire
            client, _ = await dialled(sim, phase, max_attempts=2)
            for _ in range(2):
                peer = await server.accept()
                hello = await peer.reader.read(1 << 16)
                assert hello[:2] == b"\x16\x03"  # a TLS handshake record, each time
                peer.writer.write(b"\x16\x03\x03\x40\x00\x02\x00\x00\x4d\x03\x03")  # the begin of a ServerHello
                peer.writer.close()
                assert await peer.reader.read() == b""
                if phase == "U":
                    break
            home_again(sim)
            if phase == "D":
                await client.wait_closed()
                assert isinstance(client.error, ConnectionFailed)
                assert not isinstance(client.error, CertificateRefused)
            else:
                await client.wait_for(lambda: client.states["gateway"] == "ready", SOON_S)
                assert len(sim.server.records(None, Opcode.IDENTIFY, "in")) == 2

    Simulation(seed=1, tls=True).run(story)


# -- F26: the upgrade is refused

# What the call waits for after the answer: status to state of the call's machine.
STATUSES = {
    200: "new pair",
    400: "new pair",
    401: "new pair",
    403: "new pair",
    404: "new pair",
    426: "new pair",
    500: "waits",
    502: "waits",
    503: "waits",
    429: "over",
}


@covers("F26")
@pytest.mark.parametrize("status", STATUSES)
def test_a_refused_upgrade_is_decided_by_its_status(phase: str, status: int) -> None:
    async def story(sim: Simulation) -> None:
        async with scripted(sim) as server:
            client, _ = await dialled(sim, phase)
            peer = await server.accept()
            await peer.request()
            peer.answer(status, b"Content-Type: text/html\r\n", b"<html>" + b"no" * 5000 + b"</html>")
            await client.wait_for(lambda: client.states["gateway"] == "closed.down", SOON_S)
            call = client.states["call"]
            if STATUSES[status] == "over":
                await client.wait_closed()
                assert isinstance(client.error, InvalidHandshake)
                assert client.error.status == 429
                await asyncio.sleep(120)
                assert len(server.dials) == 1
                return
            assert call == ("joining.asking" if STATUSES[status] == "new pair" and phase == "U" else "waiting.backoff")
            old = client.credentials.session_id
            home_again(sim)
            await client.wait_for(lambda: client.states["gateway"] == "ready", SOON_S)
            assert client.credentials.session_id != old  # refused values are not shown again
            assert sim.server.records(1, Opcode.RESUME, "in") == []

    Simulation(seed=1).run(story)


@covers("F26", "DU")
@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_not_followed(phase: str, status: int) -> None:
    async def story(sim: Simulation) -> None:
        async with scripted(sim) as server, scripted(sim, "66.22.196.77") as elsewhere:
            sim.network.names["c-ams77-sim.discord.media"] = ["66.22.196.77"]
            client, _ = await dialled(sim, phase)
            peer = await server.accept()
            await peer.request()
            peer.answer(status, b"Location: https://c-ams77-sim.discord.media/?v=8\r\n")
            await client.wait_for(lambda: client.states["gateway"] == "closed.down", SOON_S)
            home_again(sim)
            await client.wait_for(lambda: client.states["gateway"] == "ready", SOON_S)
            assert elsewhere.dials == []
            assert len(server.dials) == 1

    Simulation(seed=1).run(story)


@covers("F26", "DU")
@pytest.mark.parametrize("endless", [False, True])
def test_an_answer_that_drips_or_never_ends_is_bounded(phase: str, endless: bool) -> None:
    async def story(sim: Simulation) -> None:
        async with scripted(sim) as server:
            client, _ = await dialled(sim, phase)
            peer = await server.accept()
            begin = sim.loop.time()
            await peer.request()
            peer.writer.write(b"HTTP/1.1 101 Switching Protocols\r\n")
            sent = 0
            while not peer.reader.at_eof() and client.states["gateway"] == moved_on(phase):
                peer.writer.write(b"X-Header-%d: %s\r\n" % (sent, b"a" * 4000) if endless else b"X")
                sent += 1
                await asyncio.sleep(0.01 if endless else 1.0)
            elapsed = sim.loop.time() - begin
            assert client.states["gateway"] == "closed.down"
            if endless:
                assert sent < 500  # headers are bounded, whatever the time
            assert elapsed <= 10.5
            home_again(sim)
            await client.wait_for(lambda: client.states["gateway"] == "ready", SOON_S)

    Simulation(seed=1).run(story)


# -- F27: open, and silent


@covers("F27")
def test_a_server_without_hello_is_left_at_the_deadline(phase: str) -> None:
    async def story(sim: Simulation) -> None:
        async with scripted(sim) as server:
            client, _ = await dialled(sim, phase)
            peer = await server.accept()
            await peer.upgrade()
            begin = sim.loop.time()
            assert await peer.close_code() is None if phase == "D" else (await peer.heard(7))["seq_ack"] >= 0
            if phase == "U":
                assert await peer.close_code() is None
            assert sim.loop.time() - begin == pytest.approx(5.0, abs=0.2)  # 5 s and the way there
            assert client.states["gateway"] == "closed.down"
            home_again(sim)
            await client.wait_for(lambda: client.states["gateway"] == "ready", SOON_S)

    Simulation(seed=1).run(story)


@covers("F27", "U")
def test_a_server_that_resumes_without_hello_gets_heartbeats_all_the_same() -> None:
    world = in_phase("U")
    world.server(SocketOpened(), numbered=False)
    world.settle()
    assert world.states["gateway"] == "ready"  # the world answers Resume with Resumed; no Hello came
    before = len(world.sent(SendHeartbeat))
    world.advance(5.0)
    assert len(world.sent(SendHeartbeat)) == before + 1
    assert world.sent(SendIdentify) == [SendIdentify(1)]
