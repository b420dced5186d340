"""What a local main gateway is told to do to bots, in words: one line an order, ids in decimal."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from voicegw.errors import VoiceError

if TYPE_CHECKING:
    from voicegw.server.main_gateway import MainGateway


@dataclass(frozen=True, slots=True)
class Order:
    """`arguments` are the names of the ids that follow the word."""

    arguments: tuple[str, ...]
    text: str
    do: Callable[..., Any]


USER, CHANNEL = ("USER",), ("CHANNEL",)
ORDERS = {
    "move": Order(
        ("USER", "CHANNEL"),
        "a moderator moves the bot",
        lambda gateway, user, channel: gateway.signalling(user).move(channel),
    ),
    "kick": Order(USER, "and takes it out", lambda gateway, user: gateway.signalling(user).kick()),
    "region": Order(
        USER, "another voice server for the same channel", lambda gateway, user: gateway.signalling(user).hand_over()
    ),
    "null": Order(
        USER,
        "its voice server goes away (a null endpoint); region brings the next",
        lambda gateway, user: gateway.signalling(user).remove_server(),
    ),
    "cut": Order(USER, "its voice websocket breaks", lambda gateway, user: gateway.server.drop_socket(user)),
    "drop": Order(
        USER, "its main gateway's websocket breaks; it may resume", lambda gateway, user: gateway.bot(user).drop()
    ),
    "reconnect": Order(
        USER, "the main gateway asks it to come back (op 7)", lambda gateway, user: gateway.bot(user).reconnect()
    ),
    "invalidate": Order(
        USER,
        "the main gateway ends its session (op 9), and so its voice session",
        lambda gateway, user: gateway.bot(user).invalidate(),
    ),
    "full": Order(CHANNEL, "joins are answered with silence", lambda gateway, channel: gateway.full.add(channel)),
    "hide": Order(
        CHANNEL, "and REST says 403, for want of permission", lambda gateway, channel: gateway.forbidden.add(channel)
    ),
    "free": Order(
        CHANNEL,
        "neither full nor hidden any more",
        lambda gateway, channel: (gateway.full.discard(channel), gateway.forbidden.discard(channel)),
    ),
    "server-first": Order(
        (), "the voice server comes before the voice state", lambda gateway: setattr(gateway, "server_first", True)
    ),
    "state-first": Order(
        (), "and after it, as at the beginning", lambda gateway: setattr(gateway, "server_first", False)
    ),
    "refuse-tokens": Order(
        (), "no token is known any more (401, 4004)", lambda gateway: setattr(gateway, "refuse_tokens", True)
    ),
    "refuse-intents": Order(
        (), "bots may not have their intents (4014)", lambda gateway: setattr(gateway, "refuse_intents", True)
    ),
    "take-all": Order((), "all bots may log in, as at the beginning", lambda gateway: gateway.take_all()),
}


def usage() -> str:
    """All orders, one a line."""
    lines = [(" ".join((word, *order.arguments)), order.text) for word, order in ORDERS.items()]
    width = max(len(form) for form, _ in lines)
    return "\n".join(f"  {form:{width}}  {text}" for form, text in lines)


async def obey(gateway: MainGateway, line: str) -> None:
    """Carry one order out.

    Raises:
        VoiceError: there is no such order, or it cannot be carried out now.
    """
    word, *arguments = line.split() or [""]
    order = ORDERS.get(word)
    if order is None:
        raise VoiceError(f"there is no order {word!r}; there are {', '.join(ORDERS)}")
    if len(arguments) != len(order.arguments) or not all(argument.isdecimal() for argument in arguments):
        raise VoiceError(f"{word} is followed by {' and '.join(order.arguments) or 'nothing'}, as numbers")
    done = order.do(gateway, *(int(argument) for argument in arguments))
    if inspect.isawaitable(done):
        await done
