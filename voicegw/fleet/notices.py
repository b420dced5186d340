"""Notices and errors of a call as JSON: a worker has them, its bot hears of them."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any, Final, get_args

from voicegw import errors
from voicegw.effects import Notice
from voicegw.errors import VoiceError
from voicegw.signalling import VoiceFlags

_NOTICES: Final = {kind.__name__: kind for kind in get_args(Notice)}
_ERRORS: Final = {
    name: kind for name, kind in vars(errors).items() if inspect.isclass(kind) and issubclass(kind, VoiceError)
}


def notice_to(notice: Notice) -> dict[str, Any]:
    """A notice as JSON."""
    fields = {each.name: _to(getattr(notice, each.name)) for each in dataclasses.fields(notice)}
    return {"kind": type(notice).__name__, **fields}


def notice_from(data: dict[str, Any]) -> Notice | None:
    """The notice again; None for one that only a newer version knows."""
    kind = _NOTICES.get(data.get("kind", ""))
    if kind is None:
        return None
    fields = {}
    for each in dataclasses.fields(kind):
        value = data.get(each.name)
        if each.name == "error":
            value = error_from(value)
        elif each.name == "flags":
            value = VoiceFlags(**(value or {}))
        elif isinstance(value, list):
            value = tuple(value)
        fields[each.name] = value
    made: Notice = kind(**fields)
    return made


def error_to(error: VoiceError | None) -> dict[str, Any] | None:
    """An error as JSON: its class's name, its words, and what it carries."""
    if error is None:
        return None
    carried = {name: value for name, value in vars(error).items() if isinstance(value, int | str)}
    return {"kind": type(error).__name__, "text": str(error), "carried": carried}


def error_from(data: dict[str, Any] | None) -> VoiceError | None:
    """The error again, of the class that it had where this version knows that."""
    if data is None:
        return None
    kind = _ERRORS.get(data.get("kind", ""), VoiceError)
    error = kind.__new__(kind, data.get("text", ""))
    Exception.__init__(error, data.get("text", ""))
    vars(error).update(data.get("carried", {}))
    return error


def _to(value: Any) -> Any:
    if isinstance(value, VoiceError):
        return error_to(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    return list(value) if isinstance(value, tuple | frozenset) else value
