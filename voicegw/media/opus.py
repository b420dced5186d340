"""Opus through libopus.

`opuslib` owns the library and makes the coders' states. It looks for the library once, while `opuslib.api` is
imported, and only where `ctypes.util.find_library` looks; so that one import is answered here, with a library
out of an installed package where there is one. Frames go through prototypes of our own on the same handle.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import functools
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Final, Literal

from voicegw.errors import NotAudio, OpusNotFound
from voicegw.media.opus_packets import FRAME_SAMPLES, MAX_FRAME_BYTES, MAX_FRAME_SAMPLES
from voicegw.native import find_library, find_package

SAMPLE_RATE: Final = 48_000
FRAME_BYTES: Final = 3840
LEAST_BITRATE: Final = 6_000
MOST_BITRATE: Final = 510_000

_BYTES_PER_SAMPLE: Final = 4
_MAX_PACKET: Final = 48 * 1277
_SET_BITRATE: Final = 4002
_SET_INBAND_FEC: Final = 4012
_SET_PACKET_LOSS_PERC: Final = 4014
_LIBRARY_SUFFIXES: Final = (".so", ".dylib", ".dll")
_loading: Final = threading.Lock()


@dataclass(frozen=True, slots=True)
class OpusLibrary:
    """A loaded libopus: `path` as given to the loader, `version` in its own words, the ctypes `handle`."""

    path: str
    version: str
    handle: ctypes.CDLL


class _ApiLoader(importlib.abc.Loader):
    """Gives `opuslib.api` the names its submodules use, with a handle that is already open."""

    def __init__(self, path: str, handle: ctypes.CDLL) -> None:
        self._path = path
        self._handle = handle

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        vars(module).update(
            lib_location=self._path,
            libopus=self._handle,
            c_int_pointer=ctypes.POINTER(ctypes.c_int),
            c_int16_pointer=ctypes.POINTER(ctypes.c_int16),
            c_float_pointer=ctypes.POINTER(ctypes.c_float),
        )


class _ApiFinder(importlib.abc.MetaPathFinder):
    """A meta-path finder for `opuslib.api` and nothing else."""

    def __init__(self, loader: _ApiLoader) -> None:
        self._loader = loader

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name != "opuslib.api":
            return None
        found = importlib.machinery.PathFinder.find_spec(name, path)
        if found is None:
            return None
        spec = importlib.machinery.ModuleSpec(name, self._loader, origin=found.origin, is_package=True)
        spec.submodule_search_locations = found.submodule_search_locations
        return spec


def _package_folder(package: str) -> Path | None:
    spec = find_package(package)
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(next(iter(spec.submodule_search_locations))).resolve()


def _candidates() -> Iterator[str]:
    """Libraries to try, best first: packaged, the system's, the copy that PyAV brings."""
    folder = _package_folder("opuslib_next")
    if folder is not None:
        for file in sorted((folder / "_native").glob("*opus*")):
            if file.suffix in _LIBRARY_SUFFIXES:
                yield str(file)
    system = find_library("opus")
    if system is not None:
        yield system
    folder = _package_folder("av")
    if folder is not None:
        for place in (folder.parent / "av.libs", folder / ".dylibs"):
            yield from (str(file) for file in sorted(place.glob("*opus*")))


def _open() -> tuple[str, ctypes.CDLL]:
    refused = []
    for path in _candidates():
        try:
            handle = ctypes.CDLL(path)
            handle["opus_decode"]
        except (OSError, AttributeError) as error:
            refused.append(f"{path}: {error}")
        else:
            return path, handle
    tried = f" Tried and refused: {'; '.join(refused)}." if refused else ""
    raise OpusNotFound(
        "no libopus found. Install one: pip install opuslib-next-bundled, or the system's "
        f"(apt install libopus0, dnf install opus, apk add opus, brew install opus).{tried}"
    )


def _import_opuslib(path: str, handle: ctypes.CDLL) -> None:
    finder = _ApiFinder(_ApiLoader(path, handle))
    sys.meta_path.insert(0, finder)
    try:
        # opuslib compares with "is not 0", which compilers of Python warn of.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)
            importlib.import_module("opuslib")
    except ImportError as error:
        raise OpusNotFound(f"opuslib cannot be imported ({error}); pip install opuslib") from error
    finally:
        sys.meta_path.remove(finder)


def load_opus() -> OpusLibrary:
    """Load libopus and opuslib, once; several threads may ask at the same time.

    The library of `opuslib-next-bundled` comes first, then the system's, then PyAV's copy. Where opuslib has
    been imported before, its library is used. Raises OpusNotFound, which says what to install.
    """
    with _loading:  # else another thread finds opuslib half imported
        return _load_opus()


@functools.cache
def _load_opus() -> OpusLibrary:
    api = sys.modules.get("opuslib.api")
    if api is None:
        path, handle = _open()
        _import_opuslib(path, handle)
    else:
        path, handle = str(api.lib_location), api.libopus
    version = handle["opus_get_version_string"]
    version.argtypes = ()
    version.restype = ctypes.c_char_p
    return OpusLibrary(path, version().decode("ascii", "replace"), handle)


def _function(library: OpusLibrary, name: str, *argtypes: Any) -> Any:
    # Indexing makes a function object of our own; attribute access would share opuslib's, with its argtypes.
    function = library.handle[name]
    function.argtypes = argtypes
    function.restype = ctypes.c_int
    return function


def check_bitrate(bitrate: int) -> None:
    """Raises ValueError where libopus would not take it."""
    if not LEAST_BITRATE <= bitrate <= MOST_BITRATE:
        raise ValueError(f"an Opus bitrate is {LEAST_BITRATE} to {MOST_BITRATE} bit/s, not {bitrate}")


class OpusEncoder:
    """48 kHz stereo PCM to Opus packets of 20 ms.

    `bitrate` is in bit/s, 6000 to 510000 (ValueError otherwise). In-band FEC is off until `adapt` is told of a loss:
    on music it does nothing, and together with an expected loss it makes libopus several times slower. Not for two
    threads at once.
    """

    def __init__(
        self, bitrate: int = 128_000, application: Literal["audio", "voip", "restricted_lowdelay"] = "audio"
    ) -> None:
        check_bitrate(bitrate)
        library = load_opus()
        self._owner = sys.modules["opuslib"].Encoder(SAMPLE_RATE, 2, application)
        self._state = ctypes.cast(self._owner.encoder_state, ctypes.c_void_p)
        self._encode = _function(
            library,
            "opus_encode",
            ctypes.c_void_p,
            ctypes.c_char_p,
            ctypes.c_int,
            ctypes.c_void_p,
            ctypes.c_int32,
        )
        self._packet = ctypes.create_string_buffer(MAX_FRAME_BYTES)
        # Only the fixed arguments have types: variadic ones travel another way on some platforms.
        self._control = _function(library, "opus_encoder_ctl", ctypes.c_void_p, ctypes.c_int)
        self._settings: dict[int, int] = {}
        self.adapt(bitrate, 0.0)

    def adapt(self, bitrate: int, loss: float) -> None:
        """Go on with this bitrate, for receivers that lose so much (0 to 1); from 1 % on frames carry a copy of the
        one before."""
        percent = min(100, round(loss * 100))
        wanted = {_SET_BITRATE: bitrate, _SET_INBAND_FEC: int(percent > 0), _SET_PACKET_LOSS_PERC: percent}
        for request, value in wanted.items():
            if self._settings.get(request) != value:
                result = self._control(self._state, request, ctypes.c_int32(value))
                if result < 0:
                    raise OpusNotFound(f"libopus refuses encoder setting {request}: error {result}")
                self._settings[request] = value

    def encode(self, pcm: bytes) -> bytes:
        """One packet from exactly 3840 bytes of PCM (20 ms); another length raises NotAudio."""
        if len(pcm) != FRAME_BYTES:
            raise NotAudio(f"a frame of PCM is {FRAME_BYTES} bytes, not {len(pcm)}")
        length = self._encode(self._state, bytes(pcm), FRAME_SAMPLES, self._packet, MAX_FRAME_BYTES)
        if length < 0:
            raise NotAudio(f"libopus cannot encode this frame: error {length}")
        return ctypes.string_at(self._packet, length)


class _Scratch(threading.local):
    """Where libopus puts PCM, once a thread: it stays in the processor's cache, whoever is decoded."""

    def __init__(self) -> None:
        pcm = (ctypes.c_int16 * (MAX_FRAME_SAMPLES * 2))()
        view = memoryview(pcm).cast("B")  # keeps it alive
        self.pcm = ctypes.c_void_p(ctypes.addressof(pcm)), view, view[:FRAME_BYTES]


_scratch: Final = _Scratch()


class OpusDecoder:
    """Opus packets to 48 kHz stereo PCM; mono comes out on both channels. Not for two threads at once."""

    __slots__ = ("_decode", "_owner", "_state")

    def __init__(self) -> None:
        library = load_opus()
        self._owner = sys.modules["opuslib"].Decoder(SAMPLE_RATE, 2)
        self._state = ctypes.cast(self._owner.decoder_state, ctypes.c_void_p)
        # Without argtypes: every argument is of its C type as it is, or a C int, and none is converted anew each time.
        self._decode = library.handle["opus_decode"]

    def _run(self, frame: bytes, samples: int, fec: int) -> bytes:
        address, pcm, slot = _scratch.pcm
        count: int = self._decode(self._state, frame, len(frame), address, samples, fec)
        if count == FRAME_SAMPLES:
            return slot.tobytes()
        if count < 0:
            raise NotAudio(f"not an Opus packet: libopus error {count}")
        return pcm[: count * _BYTES_PER_SAMPLE].tobytes()

    def decode(self, frame: bytes) -> bytes:
        """PCM of one packet, 2.5 to 120 ms long as the packet says. Raises NotAudio."""
        if not 0 < len(frame) <= _MAX_PACKET or type(frame) is not bytes:
            frame = _checked(frame)
        return self._run(frame, MAX_FRAME_SAMPLES, 0)

    def conceal(self, samples: int = FRAME_SAMPLES) -> bytes:
        """PCM for a lost packet, guessed from what came before.

        `samples` at 48 kHz is a multiple of 120 up to 5760; another number raises NotAudio.
        """
        return self._run(b"", _checked_samples(samples), 0)

    def decode_fec(self, frame: bytes, samples: int = FRAME_SAMPLES) -> bytes:
        """PCM for the lost packet before `frame`, from the copy that `frame` carries of it, or else a guess.

        `samples` is the length of what was lost, as for `conceal`. `frame` itself still needs `decode`.
        Raises NotAudio.
        """
        return self._run(_checked(frame), _checked_samples(samples), 1)


def _checked(frame: bytes) -> bytes:
    if not frame:
        raise NotAudio("an Opus packet has at least one byte")
    if len(frame) > _MAX_PACKET:
        raise NotAudio(f"an Opus packet of {len(frame)} bytes is longer than any can be")
    return bytes(frame)


def _checked_samples(samples: int) -> int:
    if samples % 120 or not 120 <= samples <= MAX_FRAME_SAMPLES:
        raise NotAudio(f"a lost packet has a multiple of 120 samples up to {MAX_FRAME_SAMPLES}, not {samples}")
    return samples
