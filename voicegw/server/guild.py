"""The one guild of the local main gateway, its members and channels, as Discord's JSON shows them.

Source: Discord docs, "Guild", "Channel", "User" and "Voice" resources.
"""

from __future__ import annotations

from collections.abc import Container
from typing import Any

from voicegw.server.commands import ALL_PERMISSIONS

GUILD_ID = 41771983423143937
CHANNEL_IDS = (127121515262115840, 127121515262115841)


def user(user_id: int) -> dict[str, Any]:
    """A bot user, as REST and gateway show it."""
    return {
        "id": str(user_id),
        "username": f"bot-{user_id}",
        "discriminator": "0",
        "global_name": None,
        "avatar": None,
        "bot": True,
        "mfa_enabled": False,
        "verified": True,
        "email": None,
        "flags": 0,
        "public_flags": 0,
    }


def member(user_id: int) -> dict[str, Any]:
    """A guild member."""
    joined = "2026-01-01T00:00:00.000000+00:00"
    return {
        "user": user(user_id),
        "nick": None,
        "roles": [],
        "joined_at": joined,
        "deaf": False,
        "mute": False,
        "flags": 0,
    }


def voice_state(user_id: int, channel_id: int | None, session_id: str) -> dict[str, Any]:
    """A voice state of the guild."""
    return {
        "guild_id": str(GUILD_ID),
        "channel_id": str(channel_id) if channel_id else None,
        "user_id": str(user_id),
        "member": member(user_id),
        "session_id": session_id,
        "deaf": False,
        "mute": False,
        "self_deaf": False,
        "self_mute": False,
        "self_video": False,
        "suppress": False,
        "request_to_speak_timestamp": None,
    }


def guild(user_id: int, voice_states: list[dict[str, Any]], full: Container[int] = ()) -> dict[str, Any]:
    """The guild, as a bot that logs in gets it."""
    everyone = {
        "id": str(GUILD_ID),
        "name": "@everyone",
        "permissions": ALL_PERMISSIONS,
        "position": 0,
        "color": 0,
        "colors": {"primary_color": 0, "secondary_color": None, "tertiary_color": None},
        "hoist": False,
        "managed": False,
        "mentionable": False,
        "flags": 0,
    }
    members = sorted({user_id, *(int(state["user_id"]) for state in voice_states)})
    lists = (
        "emojis",
        "stickers",
        "threads",
        "soundboard_sounds",
        "presences",
        "stage_instances",
        "guild_scheduled_events",
        "features",
    )
    nothing = ("afk_channel_id", "system_channel_id", "rules_channel_id", "public_updates_channel_id", "icon", "splash")
    return {
        **{name: [] for name in lists},
        **dict.fromkeys((*nothing, "application_id", "banner", "description", "discovery_splash", "vanity_url_code")),
        "id": str(GUILD_ID),
        "name": "local",
        "owner_id": str(user_id),
        "member_count": len(members),
        "large": False,
        "unavailable": False,
        "joined_at": "2026-01-01T00:00:00.000000+00:00",
        "afk_timeout": 300,
        "verification_level": 0,
        "default_message_notifications": 0,
        "explicit_content_filter": 0,
        "mfa_level": 0,
        "system_channel_flags": 0,
        "premium_tier": 0,
        "premium_progress_bar_enabled": False,
        "nsfw_level": 0,
        "preferred_locale": "en-US",
        "roles": [everyone],
        "channels": channels(full),
        "members": [member(present) for present in members],
        "voice_states": voice_states,
    }


def channels(full: Container[int] = ()) -> list[dict[str, Any]]:
    """The guild's voice channels; those that are `full` have a limit of one user."""
    return [
        {
            "id": str(channel_id),
            "type": 2,
            "guild_id": str(GUILD_ID),
            "name": f"voice-{number}",
            "position": number,
            "permission_overwrites": [],
            "bitrate": 64_000,
            "user_limit": int(channel_id in full),
            "parent_id": None,
            "nsfw": False,
            "rtc_region": None,
        }
        for number, channel_id in enumerate(CHANNEL_IDS, 1)
    ]
