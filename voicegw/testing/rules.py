"""A hypothesis rule machine over a call: everything that can happen to it, in an order that hypothesis chooses.

    class PanelRules(CallRules):
        def __init__(self) -> None:
            super().__init__()
            self.panel = Panel()                       # the part of a bot that is under test

        def carry_out(self, effect: Effect) -> None:   # gets every effect, in order
            if isinstance(effect, Report):
                self.panel.tell(effect.notice)

        @invariant()
        def the_panel_is_right(self) -> None:          # asked after every step
            assert (self.panel.channel_id is None) == (self.world.states["call"] in ("idle", "closed"))

    TestPanel = PanelRules.TestCase                    # pytest and unittest find it

What `carry_out` or an invariant raises or asserts fails the run, which hypothesis then makes short. `self.world` is the
call with everybody it talks to: `states`, `notices`, `sent(kind)`, `unanswered`; see `voicegw.testing.world`. The world
has carried each effect out before `carry_out` sees it, and has held the library's own invariants. In the end everybody
answers again, and the call must come to ready or to its end. Needs hypothesis.
"""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from voicegw.effects import Effect
from voicegw.testing.chaos import HAPPENINGS, Chaos

IN_ONE_PROCESS = sorted(HAPPENINGS.keys() - {"hand_over"})  # a bot's part ends with its client


class CallRules(RuleBasedStateMachine):
    """Everything that can happen to a call, in an order that hypothesis chooses."""

    def __init__(self) -> None:
        super().__init__()
        self.chaos = Chaos(0)
        self.world = self.chaos.world
        self._carried_out = 0

    def carry_out(self, effect: Effect) -> None:
        """One effect of the core; the base class's world has carried it out already."""

    @rule(seconds=st.sampled_from((0.0, 0.05, 0.5, 2.0, 6.0, 31.0)))
    def time_passes(self, seconds: float) -> None:
        """Timers fire, answers arrive."""
        self.world.advance(seconds)

    @rule(name=st.sampled_from(IN_ONE_PROCESS), draw=st.integers(0, 1 << 16))
    def something_happens(self, name: str, draw: int) -> None:
        """One of the things that `voicegw simulate` does, too."""
        self.chaos.happen(name, draw)

    @rule()
    def all_is_well_again(self) -> None:
        """Everybody answers."""
        self.world.unanswered.clear()
        self.world.instead.clear()

    @invariant()
    def effects_are_carried_out(self) -> None:
        """Hands what is new to `carry_out`; the world has held its own invariants after each event."""
        new = self.world.effects[self._carried_out :]
        self._carried_out += len(new)
        for _, effect in new:
            self.carry_out(effect)

    def teardown(self) -> None:
        """Whatever happened: the call comes to ready or to its end."""
        self.chaos.heal()
