"""Native code comes from where packages are installed, never from the working directory.

Where Python runs a module or the prompt it looks into the working directory before anywhere else: whoever can put a
file there would be asked to encrypt for us.
"""

from __future__ import annotations

import ctypes.util
import functools
import importlib
import importlib.metadata
import importlib.util
import os
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

from voicegw.errors import DaveNotFound

OLDEST_DAVEY = (0, 1, 7)
PROTOCOL_VERSION = 1


def is_trusted(path: str | Path) -> bool:
    """Is it outside of the working directory, or part of this Python's installation (which may lie below it)?"""
    place = Path(path).resolve()
    try:
        below = place.is_relative_to(Path.cwd())
    except OSError:  # the working directory was deleted: nothing is in it
        return True
    return not below or any(place.is_relative_to(Path(root).resolve()) for root in (sys.prefix, sys.base_prefix))


def find_package(name: str) -> ModuleSpec | None:
    """Where `name` would be imported from, nothing loaded; None where it is not installed, or not to be trusted."""
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        return None
    if spec is None:
        return None
    places = [*(spec.submodule_search_locations or ()), *([spec.origin] if spec.has_location and spec.origin else [])]
    return spec if places and all(is_trusted(place) for place in places) else None


def find_library(name: str) -> str | None:
    """The system's library of that name, as the loader wants it; None where the loader would take another one."""
    found = ctypes.util.find_library(name)
    if found is None or os.path.dirname(found):
        return found if found is None or is_trusted(found) else None
    searched = os.environ.get("LD_LIBRARY_PATH")
    for place in searched.split(":") if searched is not None else ():
        if not is_trusted(os.path.join(place or ".", found)) and os.path.exists(os.path.join(place or ".", found)):
            return None
    return found


@functools.cache
def load_davey() -> ModuleType:
    """The MLS library.

    Raises:
        DaveNotFound: it is missing, broken, too old, or in the working directory; the message says what to do.
    """
    if find_package("davey") is None:
        raise DaveNotFound("end-to-end encryption needs davey, which is not installed; pip install 'davey>=0.1.7'")
    try:
        davey = importlib.import_module("davey")
        newest = int(davey.DAVE_PROTOCOL_VERSION)
    except Exception as error:  # whatever a broken native library does when it is loaded
        raise DaveNotFound(f"davey cannot be loaded ({type(error).__name__}: {error}); install it again") from error
    version = installed_version("davey")
    if newest < PROTOCOL_VERSION or (version is not None and version < OLDEST_DAVEY):
        raise DaveNotFound("the installed davey is too old for DAVE version 1; pip install --upgrade davey")
    return davey


def installed_version(distribution: str) -> tuple[int, ...] | None:
    """The numbers of an installed version; None where there is no record of it, as in a frozen program."""
    try:
        text = importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None
    numbers: list[int] = []
    for part in text.split("."):
        if not part.isdecimal():
            break
        numbers.append(int(part))
    return tuple(numbers)
