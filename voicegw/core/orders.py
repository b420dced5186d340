"""What the machines of a fleet's worker have in common: each stands alone, and orders its owner about. Pure."""

from __future__ import annotations

from typing import Any, Generic, Protocol, TypeVar

from voicegw.core.shared import Shared
from voicegw.effects import Effect
from voicegw.events import DeadlinePassed

Order = TypeVar("Order")
S = TypeVar("S", bound="Ordering[Any]")


class Ordering(Protocol[Order]):
    """A machine's session whose effects put what they want into `orders`."""

    shared: Shared
    orders: list[Order]

    def fire(self, event: Any) -> Any:
        """Let the table decide."""


class Door(Generic[S, Order]):
    """The machine's door: `receive(event, now)` returns its orders, then timers, in the order of their carrying out."""

    def __init__(self, session: S) -> None:
        self.session = session
        self.shared = session.shared

    def receive(self, event: Any, now: float) -> tuple[list[Order], list[Effect]]:
        """Feed one event; a timer that was armed anew has no effect.

        Raises:
            EventNotAllowed: the table refuses it.
        """
        shared = self.shared
        shared.now = now
        shared.effects = []
        if isinstance(event, DeadlinePassed):
            if shared.timers.get(event.name) != event.at:
                return [], []
            del shared.timers[event.name]
        self.session.orders = []
        self.session.fire(event)
        return self.session.orders, shared.effects
