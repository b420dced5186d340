"""The pytest plugin of voicegw: a local voice server, clients on it, and calls in virtual time, as fixtures.

`voice_server` and `voice_client` need pytest-asyncio, all but `voice_world` the extra `demo`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from voicegw.client import VoiceClient
    from voicegw.server import VoiceServer
    from voicegw.testing.simulation import Simulation
    from voicegw.testing.world import World

try:
    import pytest_asyncio

    ASYNCHRONOUS = True
except ImportError:  # a bot without asyncio tests can still use the world
    ASYNCHRONOUS = False


@pytest.fixture
def voice_world() -> World:
    """A call's core with everybody it talks to, in virtual time."""
    from voicegw.testing.world import World

    return World()


@pytest.fixture
def voice_simulation(request: pytest.FixtureRequest) -> Simulation:
    """Whole clients and a voice server on a simulated network, in virtual time: `voice_simulation.run(story)`.

    The seed is 0; `@pytest.mark.parametrize("voice_simulation", range(20), indirect=True)` runs a test for twenty.
    """
    from voicegw.testing.simulation import Simulation

    return Simulation(seed=getattr(request, "param", 0))


if ASYNCHRONOUS:

    @pytest_asyncio.fixture
    async def voice_server(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[VoiceServer]:
        """A running local voice server; `voice_server.faults` and its methods make it misbehave.

        A test has the dials of a whole process to spend: 10 a second, 300 in ten minutes.
        """
        from voicegw.adapters.dials import DialBudget
        from voicegw.adapters.system import THIS_SYSTEM
        from voicegw.server import VoiceServer

        monkeypatch.setattr(THIS_SYSTEM, "dials", DialBudget(THIS_SYSTEM.random))
        async with VoiceServer() as server:
            yield server

    @pytest_asyncio.fixture
    async def voice_client(voice_server: VoiceServer) -> AsyncIterator[Callable[..., VoiceClient]]:
        """`voice_client(user_id, guild_id=1, **options)` makes a client of that server; all are closed in the end."""
        from voicegw.client import VoiceClient
        from voicegw.server import LocalSignalling

        made: list[VoiceClient] = []

        def make(user_id: int, guild_id: int = 1, **options: Any) -> VoiceClient:
            options.setdefault("signalling", LocalSignalling(voice_server, user_id))
            options.setdefault("ca_pem", voice_server.ca_pem)
            options.setdefault("allowed_hosts", (voice_server.host,))
            options.setdefault("allow_private_media", True)
            made.append(VoiceClient(user_id=user_id, guild_id=guild_id, **options))
            return made[-1]

        yield make
        for client in made:
            await client.close()
