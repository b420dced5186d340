"""Transport encryption: both modes against the known answers, and a counter that never repeats."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import VECTORS
from voicegw.errors import KeyExhausted, LeaseEnded, NoCommonMode, PacketRejected
from voicegw.secret import Secret
from voicegw.wire.dave_frames import is_dave_frame
from voicegw.wire.encryption import PREFERRED_MODES, KeyTable, NonceCounter, TransportCipher, choose_mode
from voicegw.wire.rtp import RTCP_AAD_BYTES, kind_of, pack_header, parse_rtp, strip

RTP = VECTORS["transport_rtp"]
RTCP = VECTORS["transport_rtcp"]


def cipher(mode: str, key: str = RTP["secret_key"]) -> TransportCipher:
    return TransportCipher(mode, Secret(bytes.fromhex(key)))


def case_name(case: dict[str, Any]) -> str:
    return f"{case['mode'].split('_')[1]} {case.get('name') or case.get('why')}"


@pytest.mark.parametrize("case", RTP["cases"], ids=case_name)
def test_known_rtp_packets_open(case: dict[str, Any]) -> None:
    data = bytes.fromhex(case["packet"])
    assert kind_of(data) == "rtp"
    view = parse_rtp(data)
    assert data[: view.aad_length].hex() == case["aad"]
    plain = cipher(case["mode"]).open(data, view.aad_length)
    assert plain.hex() == case["plaintext"]
    assert strip(plain, view).hex() == case["payload"]


@pytest.mark.parametrize("case", RTP["reject"], ids=case_name)
def test_packets_that_were_touched_are_rejected(case: dict[str, Any]) -> None:
    data = bytes.fromhex(case["packet"])
    with pytest.raises(PacketRejected):
        cipher(case["mode"]).open(data, parse_rtp(data).aad_length)


@pytest.mark.parametrize("case", RTCP["cases"], ids=case_name)
def test_known_rtcp_packets_open(case: dict[str, Any]) -> None:
    data = bytes.fromhex(case["packet"])
    assert kind_of(data) == "rtcp"
    plain = data[:RTCP_AAD_BYTES] + cipher(case["mode"]).open(data, RTCP_AAD_BYTES)
    assert plain.hex() == case["plain"]


def test_a_real_clients_rtcp_packet_opens() -> None:
    case = VECTORS["transport_rtcp_capture"]
    data = bytes.fromhex(case["packet"])
    plain = cipher(case["mode"], case["secret_key"]).open(data, RTCP_AAD_BYTES)
    assert (data[:RTCP_AAD_BYTES] + plain).hex() == case["plain"]


@pytest.mark.parametrize("case", VECTORS["full_stack"]["cases"], ids=case_name)
def test_the_layers_come_off_in_order(case: dict[str, Any]) -> None:
    data = bytes.fromhex(case["packet"])
    view = parse_rtp(data)
    frame = strip(cipher(case["mode"], case["secret_key"]).open(data, view.aad_length), view)
    assert frame.hex() == case["dave_frame"]
    assert is_dave_frame(frame)


@pytest.mark.parametrize("mode", PREFERRED_MODES)
@given(header=st.binary(min_size=12, max_size=12), plain=st.binary(max_size=1400), bit=st.integers(0))
def test_sealed_packets_open_and_touched_ones_do_not(mode: str, header: bytes, plain: bytes, bit: int) -> None:
    sealer = cipher(mode)
    data = sealer.seal(header, plain)
    assert len(data) == 12 + len(plain) + 16 + 4
    assert sealer.open(data, 12) == plain
    touched = bytearray(data)
    touched[(bit // 8) % len(data)] ^= 1 << (bit % 8)
    with pytest.raises(PacketRejected):
        sealer.open(bytes(touched), 12)


def suffix_of(data: bytes) -> int:
    return int.from_bytes(data[-4:], "little")


def test_client_and_server_count_apart() -> None:
    key = Secret(bytes([1]) * 32)
    client, server = TransportCipher(PREFERRED_MODES[0], key), TransportCipher(PREFERRED_MODES[0], key, "server")
    header = pack_header(0, 0, 1)
    assert [suffix_of(client.seal(header, b"")) for _ in range(3)] == [2**31, 2**31 + 1, 2**31 + 2]
    assert [suffix_of(server.seal(header, b"")) for _ in range(3)] == [0, 1, 2]


def test_the_count_belongs_to_the_key_whatever_is_built_anew() -> None:
    key = bytes([2]) * 32
    seen = [
        suffix_of(TransportCipher(mode, Secret(key)).seal(b"h" * 12, b""))
        for _ in range(10)
        for mode in PREFERRED_MODES
    ]
    assert len(set(seen)) == 20


def test_threads_never_share_a_nonce() -> None:
    shared = TransportCipher(PREFERRED_MODES[0], Secret(bytes([3]) * 32))
    seen: list[int] = []

    def work() -> None:
        seen.extend(suffix_of(shared.seal(b"h" * 12, b"")) for _ in range(2000))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(seen)) == len(seen) == 8000


def test_a_key_is_refused_when_it_is_spent() -> None:
    sealer = TransportCipher(PREFERRED_MODES[0], Secret(bytes([4]) * 32))
    sealer.counter.uses = 2**32 - 3
    seen = {suffix_of(sealer.seal(b"h" * 12, b"")) for _ in range(2)}
    assert seen == {2**31 - 3, 2**31 - 2}
    for _ in range(2):
        with pytest.raises(KeyExhausted):
            sealer.seal(b"h" * 12, b"")
    assert sealer.counter.uses == 2**32 - 1


@pytest.mark.parametrize("mode", PREFERRED_MODES)
def test_many_at_once_are_sealed_as_one_after_the_other(mode: str) -> None:
    key = bytes([5 + PREFERRED_MODES.index(mode)]) * 32
    sealer = TransportCipher(mode, Secret(key), keys=KeyTable())
    sealer.counter.uses = 2**31 - 2  # where the count comes round
    headers, plain = [pack_header(n, 960 * n, 7) for n in range(4)], [b"%d" % n for n in range(4)]
    together = sealer.seal_all(headers, plain)
    other = TransportCipher(mode, Secret(key), keys=KeyTable())
    other.counter.uses = 2**31 - 2
    assert together == [other.seal(*each) for each in zip(headers, plain, strict=True)]
    assert [suffix_of(data) for data in together] == [2**32 - 2, 2**32 - 1, 0, 1]
    assert sealer.counter.uses == 2**31 + 2


@pytest.mark.parametrize(("leased", "error"), [(None, KeyExhausted), (2**32 - 5, LeaseEnded)])
def test_where_not_all_may_be_sealed_none_is(leased: int | None, error: type[Exception]) -> None:
    sealer = TransportCipher(PREFERRED_MODES[0], Secret(bytes([7]) * 32), keys=KeyTable())
    sealer.counter.lease(leased)
    sealer.counter.uses = sealer.counter.limit - 2
    with pytest.raises(error):
        sealer.seal_all([b"h" * 12] * 3, [b""] * 3)
    assert len(sealer.seal_all([b"h" * 12] * 2, [b""] * 2)) == 2
    assert sealer.counter.uses == sealer.counter.limit


# -- the count of one key: where it may go, and what is told of a peer that comes near

FIRST, TOP = 2**31, 2**32
NEAR = 2**20 - 1  # a 4096th of all
LEAP = 2**28 - 1  # a 16th


def spent(uses: int) -> NonceCounter:
    counter = NonceCounter(FIRST)
    for _ in range(uses):
        counter.spend()
    return counter


@pytest.mark.parametrize(("ahead", "leaps"), [(0, True), (NEAR - 1, True), (NEAR, False), (2 * NEAR, False)])
def test_a_count_leaps_far_beyond_a_peer_that_is_near_ahead(ahead: int, leaps: bool) -> None:
    counter = spent(3)
    assert counter.keep_apart(FIRST + 3 + ahead)
    assert counter.uses == (3 + ahead + LEAP if leaps else 3)


def test_the_smallest_count_leaps_by_one_and_never_beyond_its_last() -> None:
    counter = NonceCounter(8, 4)
    assert counter.keep_apart(9)
    assert counter.uses == 0
    assert counter.keep_apart(8)
    assert counter.uses == 1
    counter.uses = 14
    assert counter.keep_apart(8 + 14 - 16)
    assert counter.uses == 15


def test_a_count_looks_out_from_wherever_it_began() -> None:
    counter = NonceCounter(3, 4)
    assert counter.keep_apart(13)
    assert counter.uses == 0
    assert counter.keep_apart(3)
    assert counter.uses == 1


@pytest.mark.parametrize(
    ("place", "fine"), [(-NEAR - 1, True), (-NEAR, False), (-1, False), (0, False), (2, False), (TOP // 2, True)]
)
def test_a_peer_that_comes_near_to_what_was_used_is_told(place: int, fine: bool) -> None:
    assert spent(3).keep_apart((FIRST + place) % TOP) == fine


@pytest.mark.parametrize(("place", "fine"), [(2, False), (3, True)])
def test_what_was_used_before_a_leap_is_remembered(place: int, fine: bool) -> None:
    counter = spent(3)
    counter.keep_apart(FIRST + 3)
    assert counter.keep_apart(FIRST + place) == fine


@pytest.mark.parametrize(
    ("theirs", "meets"),
    [
        (0, False),
        (FIRST - NEAR - 1, False),
        (FIRST - NEAR, True),
        (FIRST, True),
        (TOP - 1, True),
    ],
)
def test_a_peer_is_looked_at_in_our_half_and_near_it(theirs: int, meets: bool) -> None:
    assert NonceCounter(FIRST).may_meet(theirs) == meets


@pytest.mark.parametrize(("uses", "leaving"), [(0, False), (FIRST - NEAR, False), (FIRST - NEAR + 1, True)])
def test_a_count_leaves_its_half_where_the_peers_first_nonces_are_near(uses: int, leaving: bool) -> None:
    counter = NonceCounter(FIRST)
    counter.uses = uses
    assert counter.leaving == counter.may_meet(0) == leaving


def test_a_peer_is_looked_at_in_all_of_our_half() -> None:
    counter = NonceCounter(8, 4)
    assert [theirs for theirs in range(16) if counter.may_meet(theirs)] == [*range(7, 16)]
    assert counter.worn_at == 8


def test_a_lease_bounds_the_count_and_is_lifted_again() -> None:
    counter = NonceCounter(8, 4)
    counter.lease(2)
    assert [counter.spend() for _ in range(2)] == [8, 9]
    with pytest.raises(LeaseEnded):
        counter.spend()
    counter.lease(None)
    assert counter.spend() == 10
    counter.lease(100)
    assert [counter.spend() for _ in range(12)] == [*range(11, 16), *range(7)]
    with pytest.raises(KeyExhausted):
        counter.spend()


def test_a_count_that_was_retired_stays_so() -> None:
    counter = NonceCounter(8, 4)
    counter.retire()
    for uses in (5, None):
        with pytest.raises(LeaseEnded):
            counter.spend()
        counter.lease(uses)
    with pytest.raises(LeaseEnded):
        counter.spend()
    assert counter.uses == 0


def test_a_key_that_is_taken_over_goes_on_and_its_counter_of_before_does_not() -> None:
    keys, key = KeyTable(4), Secret(bytes([5]) * 32)
    before = keys.counter(key)
    before.spend()
    counter = keys.take_over(key.digest(), 3)
    assert counter is keys.counter(key)
    assert (counter.uses, counter.spend()) == (3, 11)
    with pytest.raises(LeaseEnded):
        before.spend()
    assert keys.take_over(key.digest(), 0).uses == 4  # more were used here
    assert keys.retire(key.digest()) == 4
    with pytest.raises(LeaseEnded):
        keys.counter(key).spend()


def test_the_keys_that_were_used_last_are_remembered() -> None:
    keys = KeyTable(remembered=2)
    first, second, third = (Secret(bytes([number]) * 32) for number in (6, 7, 8))
    known = keys.counter(first)
    keys.counter(second)
    assert len(keys) == 2
    assert keys.counter(first) is known
    keys.counter(third).spend()
    assert len(keys) == 2
    assert keys.counter(first) is known
    assert keys.counter(third).uses == 1


@pytest.mark.parametrize(("uses", "worn"), [(FIRST - 1, False), (FIRST, True), (FIRST + 1, True)])
def test_a_key_is_worn_from_half_its_uses_on(uses: int, worn: bool) -> None:
    made = TransportCipher(PREFERRED_MODES[0], Secret(bytes([9]) * 32))
    made.counter.uses = uses
    assert made.worn is worn


def test_aes_is_preferred_and_unknown_modes_are_not_chosen() -> None:
    aes, xchacha = PREFERRED_MODES
    assert choose_mode([xchacha, aes]) == aes
    assert choose_mode([xchacha, "xsalsa20_poly1305"]) == xchacha
    assert choose_mode([aes, xchacha], refused={aes}) == xchacha
    for offered in ([], ["xsalsa20_poly1305_lite_rtpsize"], ["plain"]):
        with pytest.raises(NoCommonMode):
            choose_mode(offered)
    with pytest.raises(NoCommonMode):
        TransportCipher("xsalsa20_poly1305", Secret(bytes(32)))


@pytest.mark.parametrize("mode", PREFERRED_MODES)
@given(data=st.binary(max_size=100), aad_length=st.integers(0, 40))
def test_any_bytes_are_rejected(mode: str, data: bytes, aad_length: int) -> None:
    with pytest.raises(PacketRejected):
        cipher(mode).open(data, aad_length)
