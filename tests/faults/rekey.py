"""Transport keys that change in a call, and every nonce that was used."""

from __future__ import annotations

import hashlib

from tests.faults.raw_server import CHANNEL
from voicegw.secret import Secret
from voicegw.testing.simulation import SimulatedClient, Simulation
from voicegw.wire.encryption import TransportCipher
from voicegw.wire.opcodes import Opcode


def a_key(number: int) -> bytes:
    """A transport key that no other test uses: a key's count outlives a test, as it must."""
    return hashlib.sha256(b"described again %d" % number).digest()


def describe_again(sim: Simulation, user_id: int, key: bytes) -> None:
    """The server sends op 4 with this key, and uses it."""
    session = sim.server.session(user_id)
    session.secret_key = Secret(key)
    session.cipher = TransportCipher(session.mode, session.secret_key, "server")
    session.send(
        Opcode.SESSION_DESCRIPTION,
        {"mode": session.mode, "secret_key": list(key), "dave_protocol_version": 1},
    )


async def pair(sim: Simulation) -> tuple[SimulatedClient, SimulatedClient]:
    """Two clients in one encrypted call."""
    alice, bob = sim.client(1), sim.client(2)
    await alice.connect(CHANNEL)
    await bob.connect(CHANNEL)
    await bob.wait_for(lambda: bob.privacy_code != "" and bob.privacy_code == alice.privacy_code)
    return alice, bob
