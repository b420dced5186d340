"""What can be seen of a DAVE frame from outside, and the digits people compare.

Source: DAVE protocol 1.1, "Frame Encryption".

ciphertext and clear ranges | 8-byte tag | ULEB128 nonce | ULEB128 ranges | u8 size of all after the ciphertext | FA FA
"""

from __future__ import annotations

from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

MARKER = b"\xfa\xfa"
TAG_BYTES = 8
MIN_SUPPLEMENTAL = TAG_BYTES + 1 + len(MARKER)
MAX_ULEB128 = 10
FINGERPRINT_SALT = bytes.fromhex("24cab17a7af8ec2b82b412b92dab192e")


def encode_uleb128(value: int) -> bytes:
    """Least significant group of seven bits first."""
    out = bytearray()
    while True:
        value, group = value >> 7, value & 0x7F
        out.append(group | (0x80 if value else 0))
        if not value:
            return bytes(out)


def decode_uleb128(data: bytes, offset: int = 0) -> tuple[int, int] | None:
    """(value, offset after it); None where it does not end."""
    value = 0
    for index in range(offset, min(len(data), offset + MAX_ULEB128)):
        value |= (data[index] & 0x7F) << (7 * (index - offset))
        if not data[index] & 0x80:
            return value, index + 1
    return None


def is_dave_frame(frame: bytes) -> bool:
    """Does it have the form of a frame that was encrypted end to end? Only the key can tell whether it is one."""
    if len(frame) < MIN_SUPPLEMENTAL or not frame.endswith(MARKER):
        return False
    size = frame[-3]
    if not MIN_SUPPLEMENTAL <= size <= len(frame):
        return False
    end = len(frame) - 3
    nonce = decode_uleb128(frame[:end], len(frame) - size + TAG_BYTES)
    if nonce is None:
        return False
    at, previous_end = nonce[1], 0
    while at < end:
        start = decode_uleb128(frame[:end], at)
        length = decode_uleb128(frame[:end], start[1]) if start else None
        if start is None or length is None or start[0] < previous_end:
            return False
        previous_end, at = start[0] + length[0], length[1]
        if previous_end > len(frame) - size:
            return False
    return at == end


def displayable_code(data: bytes, digits: int, group: int) -> str:
    """Digits for people to compare: each `group` bytes, big-endian, modulo ten to the `group`.

    Raises:
        ValueError: `data` is shorter than `digits`, which must be a multiple of `group`, which must be below 8.
    """
    if len(data) < digits or digits % group or group >= 8:
        raise ValueError("a code needs at least as many bytes as digits, in whole groups of less than 8")
    parts = (data[at : at + group] for at in range(0, digits, group))
    return "".join(str(int.from_bytes(part, "big") % 10**group).zfill(group) for part in parts)


def pairwise_fingerprint(key: bytes, user_id: int, other_key: bytes, other_user_id: int) -> bytes:
    """64 bytes from the identity keys of two users, the same from either's side. Takes tenths of a second and 16 MiB.

    Source: DAVE protocol 1.1, "Pairwise Fingerprints".
    """
    sides = sorted(
        bytes(2) + side + user.to_bytes(8, "big") for side, user in ((key, user_id), (other_key, other_user_id))
    )
    return Scrypt(salt=FINGERPRINT_SALT, length=64, n=16384, r=8, p=2).derive(b"".join(sides))
