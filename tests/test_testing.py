"""What the library gives to tests of bots: fixtures, a world in virtual time, rules for hypothesis."""

from __future__ import annotations

import pytest
from hypothesis import settings

from voicegw.effects import Connected, Effect, SendHeartbeat
from voicegw.testing import Violation, World
from voicegw.testing.rules import CallRules

pytest_plugins = ["pytester"]


class CountingRules(CallRules):
    """An adapter that counts what it is told."""

    effects = 0

    def carry_out(self, effect: Effect) -> None:
        CountingRules.effects += 1


TestCall = CountingRules.TestCase
TestCall.settings = settings(max_examples=30, stateful_step_count=30)


def test_the_rules_carried_effects_out() -> None:
    assert CountingRules.effects > 100


class BrokenRules(CallRules):
    """An adapter that fails at the first heartbeat."""

    def carry_out(self, effect: Effect) -> None:
        assert not isinstance(effect, SendHeartbeat)


def test_an_adapter_that_fails_is_found() -> None:
    case = BrokenRules.TestCase
    case.settings = settings(max_examples=50, stateful_step_count=20, database=None)
    with pytest.raises(AssertionError):
        case().runTest()


def test_the_world_is_a_fixture(voice_world: World) -> None:
    voice_world.join()
    assert any(isinstance(notice, Connected) for notice in voice_world.notices)
    voice_world.unanswered.add("SendResume")
    with pytest.raises(Violation, match="not reached in 1 s"):
        voice_world.until(lambda: voice_world.states["call"] == "closed", 1)


BOT_TEST = """
import asyncio

import pytest

from voicegw import ToneSource

pytest_plugins = []


async def test_a_bot_that_says_something(voice_server, voice_client):
    alice, bob = voice_client(1), voice_client(2)
    await alice.connect(channel_id=9)
    await bob.connect(channel_id=9)
    await bob.wait_for(lambda: bob.privacy_code != "")
    voice_server.drop_socket(1)
    await alice.play(ToneSource(440, seconds=0.1)).wait()
    await bob.wait_for(lambda: bob.stats.users[1].packets >= 5)


def test_a_call_in_virtual_time(voice_world):
    voice_world.join()
    voice_world.advance(3600)
    assert voice_world.states["call"] == "connected"


@pytest.mark.parametrize("voice_simulation", range(2), indirect=True)
def test_a_whole_call_in_virtual_time(voice_simulation):
    async def story(sim):
        alice = sim.client(1)
        await alice.connect(channel_id=9)
        alice.system.suspend(3600)
        await asyncio.sleep(3700)
        assert alice.states["gateway"] == "ready"

    voice_simulation.run(story)
"""


@pytest.mark.loopback
def test_a_bots_tests_find_the_fixtures_by_themselves(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(BOT_TEST)
    pytester.makeini("[pytest]\nasyncio_mode = auto\nasyncio_default_fixture_loop_scope = function\n")
    pytester.runpytest_subprocess().assert_outcomes(passed=4)


MANY_TESTS = """
import pytest

from voicegw.adapters.system import THIS_SYSTEM

pytestmark = pytest.mark.asyncio


@pytest.mark.parametrize("number", range(2))
async def test_a_bot_that_dials_much(voice_server, number):
    waits = [THIS_SYSTEM.dials.reserve(n / 9, 60.0) for n in range(290)]
    assert max(waits) < 1
"""


def test_each_test_of_a_bot_has_the_dials_of_a_process(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(MANY_TESTS)
    pytester.makeini("[pytest]\nasyncio_default_fixture_loop_scope = function\n")
    pytester.runpytest("-p", "no:cacheprovider").assert_outcomes(passed=2)
