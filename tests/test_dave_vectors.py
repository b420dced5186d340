"""The end-to-end layer as the recorded calls have it: what we rely on davey for is what the vectors say."""

from __future__ import annotations

import hashlib
import hmac
from typing import Any

import davey
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from tests.conftest import VECTORS
from voicegw.tables.load import load_table
from voicegw.wire.dave_frames import MARKER, TAG_BYTES, decode_uleb128, displayable_code
from voicegw.wire.mls import parse_key_package, vector

FRAMES = VECTORS["dave_frames"]
FINGERPRINTS = VECTORS["pairwise_fingerprint"]
SENDER = VECTORS["mls_external_sender"]


def expand_with_label(secret: bytes, label: str, context: bytes, length: int) -> bytes:
    """RFC 9420, section 8: at most one block of HKDF is needed here."""
    info = length.to_bytes(2, "big") + vector(b"MLS 1.0 " + label.encode()) + vector(context)
    return hmac.digest(secret, info + b"\1", hashlib.sha256)[:length]


def key_of(base_secret: bytes, generation: int) -> bytes:
    secret = base_secret
    for passed in range(generation):
        secret = expand_with_label(secret, "secret", passed.to_bytes(4, "big"), 32)
    return expand_with_label(secret, "key", generation.to_bytes(4, "big"), 16)


def decrypt(frame: bytes, base_secret: bytes) -> bytes:
    """Take a frame apart by its own supplemental data."""
    assert frame.endswith(MARKER)
    body, supplemental = frame[: -frame[-3]], frame[-frame[-3] : -3]
    tag, at = supplemental[:TAG_BYTES], TAG_BYTES
    numbers = []
    while at < len(supplemental):
        read = decode_uleb128(supplemental, at)
        assert read is not None
        number, at = read
        numbers.append(number)
    nonce, ranges = numbers[0], list(zip(numbers[1::2], numbers[2::2], strict=True))
    clear = {index for start, length in ranges for index in range(start, start + length)}
    aad = bytes(octet for index, octet in enumerate(body) if index in clear)
    ciphertext = bytes(octet for index, octet in enumerate(body) if index not in clear)
    gcm = modes.GCM(bytes(8) + nonce.to_bytes(4, "little"), tag, min_tag_length=TAG_BYTES)
    opened = Cipher(algorithms.AES(key_of(base_secret, nonce >> 24)), gcm).decryptor()
    opened.authenticate_additional_data(aad)
    hidden = iter(opened.update(ciphertext) + opened.finalize())
    return bytes(octet if index in clear else next(hidden) for index, octet in enumerate(body))


def test_ratchet_keys() -> None:
    ratchet = VECTORS["dave_ratchet"]
    for case in ratchet["generations"]:
        assert key_of(bytes.fromhex(ratchet["base_secret"]), case["generation"]).hex() == case["key"]


@pytest.mark.parametrize("case", FRAMES["cases"], ids=lambda case: f"nonce {case['nonce']}")
def test_frames_open_by_the_layout(case: dict[str, Any]) -> None:
    assert decrypt(bytes.fromhex(case["frame"]), bytes.fromhex(FRAMES["base_secret"])).hex() == case["plaintext"]


@pytest.mark.parametrize("case", VECTORS["full_stack"]["cases"], ids=lambda case: case["mode"])
def test_the_full_stack_ends_in_opus(case: dict[str, Any]) -> None:
    frame = bytes.fromhex(case["dave_frame"])
    assert decrypt(frame, bytes.fromhex(case["dave_base_secret"])).hex() == case["opus"]


def test_frames_of_the_recorded_call() -> None:
    transcript = VECTORS["mls_transcript"]
    secrets = transcript["secrets"]["sender_base_secret"]
    for recorded in transcript["frames"]:
        plain = decrypt(bytes.fromhex(recorded["frame"]), bytes.fromhex(secrets[recorded["sender"]]))
        assert plain.hex() == recorded["plaintext"]


def test_the_privacy_code_comes_from_the_epoch_authenticator() -> None:
    secrets = VECTORS["mls_transcript"]["secrets"]
    authenticator = bytes.fromhex(secrets["epoch_authenticator"])
    assert displayable_code(authenticator, 30, 5) == secrets["voice_privacy_code"]
    assert davey.generate_displayable_code(authenticator, 30, 5) == secrets["voice_privacy_code"]


@pytest.mark.parametrize("case", FINGERPRINTS["cases"], ids=lambda case: case["user1"])
def test_pairwise_fingerprints(case: dict[str, Any]) -> None:
    fingerprint = davey.generate_pairwise_fingerprint(
        0, bytes.fromhex(case["key1"]), int(case["user1"]), bytes.fromhex(case["key2"]), int(case["user2"])
    )
    assert fingerprint.hex() == case["fingerprint"]
    assert displayable_code(fingerprint, 45, 5) == case["code_45"]


def test_key_fingerprints() -> None:
    for case in FINGERPRINTS["key_fingerprint"]:
        key = bytes.fromhex(case["key"])
        assert davey.generate_key_fingerprint(case["version"], key, int(case["user"])).hex() == case["fingerprint"]


def test_the_external_senders_layout() -> None:
    built = vector(bytes.fromhex(SENDER["public_point"])) + b"\0\1" + vector(bytes.fromhex(SENDER["identity"]))
    assert built.hex() == SENDER["external_sender"]


def test_the_deterministic_members_key_package() -> None:
    case = VECTORS["mls_key_package"]
    package = parse_key_package(bytes.fromhex(case["key_package"]))
    assert package.signature_key.hex() == case["signature_public"]
    assert package.user_id.to_bytes(8, "big").hex() == case["identity"]
    assert package.ref.hex() == case["key_package_ref"]


ACTIONS = {
    "resume": {"closed_resumable", "closed_resumable_later"},
    "rejoin": {"closed_new_pair", "closed_forgiven_once", "closed_await_server"},
    "await_update": {"closed_await"},
    "stop": {"closed_e2ee_required", "closed_rate_limited", "closed_defect", "closed_other_mode"},
}


@pytest.mark.parametrize("case", VECTORS["close_codes"]["codes"], ids=lambda case: str(case["code"]))
def test_close_codes_lead_where_they_are_known_to_lead(case: dict[str, Any]) -> None:
    decided = load_table("gateway").close_event(case["code"])
    if case["code"] == 4000:  # a session after an unknown error is not trusted: a new pair
        assert decided.event == "closed_unknown"
    else:
        assert decided.event in ACTIONS[case["action"]]
