"""The hands of a call: one effect of the core, one call of whoever carries it out."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import assert_never

from voicegw.adapters.mls import MlsGroup
from voicegw.adapters.timers import Timers
from voicegw.effects import (
    AbortSocket,
    ApplyCommit,
    ApplyProposals,
    ApplyWelcome,
    ArmTimer,
    CancelTimer,
    CloseSocket,
    CloseUdp,
    CreateGroup,
    DrainStream,
    DropGroup,
    DropKey,
    Effect,
    ForgetUser,
    HoldReason,
    HoldStream,
    MapSsrc,
    Notice,
    OpenSocket,
    OpenUdp,
    ReleaseStream,
    Report,
    SendCommitWelcome,
    SendDiscovery,
    SendHeartbeat,
    SendIdentify,
    SendInvalidCommit,
    SendKeepalive,
    SendKeyPackage,
    SendResume,
    SendSelectProtocol,
    SendSpeaking,
    SendTransitionReady,
    SendVoiceState,
    SetExternalSender,
    SetPassthrough,
    UseKey,
)
from voicegw.events import Event
from voicegw.gateway import DiscordGatewayVoice
from voicegw.media.player import Player
from voicegw.media.receiver import StreamReceiver
from voicegw.media.sender import StreamSender
from voicegw.path import MediaPath


class Hands:
    """Carries out effects in the order in which they come; `observer` is told of each before.

    `loop` and `timers` are the call's, `ask` sends op 4, `dialling` hears of each dial, `follow` takes the events that
    an effect brings, `report` tells the bot. While the stream is held for a reason in `real_time_while`, the time of
    what is played goes by.
    """

    def __init__(
        self,
        *,
        gateway: DiscordGatewayVoice,
        path: MediaPath,
        group: MlsGroup,
        sender: StreamSender,
        player: Player,
        receiver: StreamReceiver,
        real_time_while: frozenset[HoldReason],
        loop: Callable[[], asyncio.AbstractEventLoop],
        timers: Callable[[], Timers],
        ask: Callable[[int | None], object],
        dialling: Callable[[], None],
        follow: Callable[[Iterable[Event]], None],
        report: Callable[[Notice], None],
    ) -> None:
        self._gateway = gateway
        self._path = path
        self._group = group
        self._sender = sender
        self._player = player
        self._receiver = receiver
        self._real_time_while = real_time_while
        self._loop = loop
        self._timers = timers
        self._ask = ask
        self._dialling = dialling
        self._follow = follow
        self._report = report
        self.observer: Callable[[Effect], None] | None = None

    def carry_out(self, effect: Effect) -> None:
        """One effect."""
        if self.observer is not None:
            self.observer(effect)
        match effect:
            case (
                SendIdentify()
                | SendResume()
                | SendSelectProtocol()
                | SendHeartbeat()
                | SendSpeaking()
                | SendTransitionReady()
                | SendInvalidCommit()
                | SendKeyPackage()
                | SendCommitWelcome()
            ):
                self._gateway.send(effect)
            case ArmTimer():
                self._timers().arm(effect)
            case CancelTimer(name=name):
                self._timers().cancel(name)
            case SendVoiceState(channel_id=channel_id):
                self._ask(channel_id)
            case OpenSocket(generation=generation, in_turn=in_turn):
                self._gateway.open_socket(generation, in_turn)
                self._dialling()
            case CloseSocket(code=code):
                self._gateway.close_socket(code)
            case AbortSocket():
                self._gateway.abort_socket()
            case OpenUdp():
                self._path.open(effect, self._loop())
            case SendDiscovery(ssrc=ssrc):
                self._path.discover(ssrc)
            case SendKeepalive():
                self._path.keep_alive()
            case CloseUdp():
                self._path.close()
            case UseKey():
                self._path.use_key(effect)
            case DropKey():
                self._path.drop_key()
                self._gateway.forget()
            case ReleaseStream(encrypted=encrypted):
                self._sender.release(self._group.encrypt if encrypted else None)
                self._player.real_time = False
                self._player.wake()
            case HoldStream(reason=reason):
                self._sender.hold()
                self._player.real_time = reason in self._real_time_while
            case DrainStream():
                self._player.drain()
            case MapSsrc(ssrc=ssrc, user_id=user_id):
                self._receiver.map_ssrc(ssrc, user_id)
            case ForgetUser(user_id=user_id):
                self._receiver.forget_user(user_id)
            case CreateGroup():
                self._regrouped(self._group.create(effect))
            case SetExternalSender(data=data):
                self._group.set_external_sender(data)
            case ApplyProposals():
                self._follow(self._group.apply_proposals(effect))
            case ApplyCommit():
                self._regrouped(self._group.apply_commit(effect))
            case ApplyWelcome():
                self._regrouped(self._group.apply_welcome(effect))
            case SetPassthrough():
                self._group.set_passthrough(effect)
            case DropGroup():
                self._group.drop()
                self._sender.forget()
            case Report(notice=notice):
                self._report(notice)
            case _:
                assert_never(effect)

    def _regrouped(self, events: Iterable[Event]) -> None:
        """What was encrypted ahead for the group of before does not leave."""
        self._sender.forget()
        self._follow(events)
