"""Tokens, session ids and keys never print."""

from __future__ import annotations

import copy
import json
import logging
import pickle
import traceback

import pytest

from tests.conftest import ALICE, CHANNEL, MakeClient, pair
from voicegw.effects import UseKey
from voicegw.secret import Secret
from voicegw.server import VoiceServer
from voicegw.wire.opcodes import Opcode


def test_a_secret_shows_nothing_in_any_form() -> None:
    secret, key = Secret("canary-token"), Secret(b"canary-key")
    shown = [
        repr(secret),
        str(secret),
        f"{secret}",
        f"{secret:>30}",
        repr([secret, {"t": key}]),
        repr(key),
    ]
    assert all("canary" not in text for text in shown)
    for copied in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError):
            copied(secret)
    with pytest.raises(TypeError):
        json.dumps({"token": secret})
    assert secret.reveal() == "canary-token"
    assert key.reveal() == b"canary-key"
    assert bool(secret)
    assert not bool(Secret(""))


def test_secrets_compare_with_secrets_only() -> None:
    assert Secret("a") == Secret("a")
    assert Secret("a") != Secret("b")
    assert Secret("a") != Secret(b"a")
    assert Secret("a") != "a"
    assert len({Secret("a"), Secret("a"), Secret("b")}) == 2


def test_a_traceback_shows_nothing() -> None:
    effect = UseKey("mode", Secret(b"canary-key"), 1)
    try:
        raise ValueError(effect)
    except ValueError:
        assert "canary" not in traceback.format_exc()


@pytest.mark.loopback
async def test_a_call_logs_and_shows_no_secret(
    server: VoiceServer, make_client: MakeClient, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG):
        alice, bob = await pair(make_client, server)
        server.drop_socket(ALICE)
        await alice.wait_for(lambda: alice.states["gateway"] != "ready")
        await alice.wait_for(lambda: alice.states["gateway"] == "ready")
        await server.close_socket(ALICE, 4021)
        await alice.wait_closed()
    session = server.session(ALICE)
    key = session.secret_key.reveal()
    secrets = [session.credentials.token.reveal(), session.credentials.session_id.reveal(), key.hex(), repr(key)[2:-1]]
    shown = [caplog.text, repr(alice), repr(alice.gateway), repr(alice.error), repr(list(alice.history))]
    shown += [repr(server.records()), repr(alice.session.shared.credentials), repr(session), str(alice.error)]
    shown.append(repr(vars(bob)))
    for text in shown:
        for secret in secrets:
            assert secret not in text
    assert "voicegw" in caplog.text
    assert server.records(ALICE, Opcode.SESSION_DESCRIPTION, "out")
    assert server.members(CHANNEL) != []
