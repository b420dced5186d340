"""For tests of bots and of this library: a call's core in virtual time, without a network."""

from voicegw.testing.invariants import Violation
from voicegw.testing.world import World

__all__ = ["Violation", "World"]
