"""Soundfont rendering through libfluidsynth, with each soundfont kept loaded.

FluidSynth's interpolation has no low-pass, so samples played at a rate below their own alias: notes
are rendered at 44.1 kHz and the caller decimates.
"""

from __future__ import annotations

import ctypes
import ctypes.util
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recipes.corpus.grooves import MissingProgram

RENDER_RATE = 44100
CHANNELS = 256  # of the synthesiser that holds patches: a patch each
BLOCK = 64  # FluidSynth's internal block; events sit on its grid so that runs repeat exactly


@cache
def _library() -> Any:
    found = ctypes.util.find_library("fluidsynth")
    if found is None:
        raise MissingProgram("libfluidsynth was not found: install the Debian package `fluidsynth`")
    library = ctypes.CDLL(found)
    pointer, text, number = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int
    signatures: dict[str, tuple[Any, list[Any]]] = {
        "new_fluid_settings": (pointer, []),
        "fluid_settings_setnum": (number, [pointer, text, ctypes.c_double]),
        "fluid_settings_setint": (number, [pointer, text, number]),
        "new_fluid_synth": (pointer, [pointer]),
        "delete_fluid_synth": (None, [pointer]),
        "delete_fluid_settings": (None, [pointer]),
        "fluid_synth_sfload": (number, [pointer, text, number]),
        "fluid_synth_program_select": (number, [pointer, number, number, number, number]),
        "fluid_synth_noteon": (number, [pointer, number, number, number]),
        "fluid_synth_noteoff": (number, [pointer, number, number]),
        "fluid_synth_pitch_bend": (number, [pointer, number, number]),
        "fluid_synth_get_sfont_by_id": (pointer, [pointer, number]),
        "fluid_synth_add_sfont": (number, [pointer, pointer]),
        "fluid_synth_remove_sfont": (number, [pointer, pointer]),
        "fluid_synth_set_interp_method": (number, [pointer, number, number]),
        "fluid_synth_write_float": (
            number,
            [pointer, number, pointer, number, number, pointer, number, number],
        ),
        "fluid_set_log_function": (pointer, [number, pointer, pointer]),
    }
    for name, (result, arguments) in signatures.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    for level in range(5):
        library.fluid_set_log_function(level, None, None)
    return library


class Soundfont:
    """A loaded soundfont; renders one patch at a time, mono at 44.1 kHz.

    Every rendering has a synthesiser of its own: a used one, even after FluidSynth's reset, still
    sounds the voices of the rendering before. The soundfont is shared, and another synthesiser that
    plays nothing holds the patches used so far, so that their samples stay in memory.
    """

    def __init__(self, path: str) -> None:
        library = _library()
        self._settings = library.new_fluid_settings()
        numbers = {"synth.sample-rate": float(RENDER_RATE), "synth.gain": 0.4}
        switches = {
            "synth.reverb.active": 0,
            "synth.chorus.active": 0,
            "synth.polyphony": 192,
            "synth.dynamic-sample-loading": 1,
            "synth.cpu-cores": 1,
            "synth.midi-channels": CHANNELS,
        }
        for key, value in numbers.items():
            library.fluid_settings_setnum(self._settings, key.encode(), value)
        for key, switch in switches.items():
            library.fluid_settings_setint(self._settings, key.encode(), switch)
        self._holder = library.new_fluid_synth(self._settings)
        self._held: list[tuple[int, int]] = []
        identity = library.fluid_synth_sfload(self._holder, path.encode(), 0)
        if identity < 0:
            raise MissingProgram(f"fluidsynth could not load the soundfont {path}")
        self._font = library.fluid_synth_get_sfont_by_id(self._holder, identity)

    def _hold(self, bank: int, program: int) -> None:
        """Keep a patch's samples loaded: select it on a channel of the silent synthesiser."""
        if (bank, program) not in self._held and len(self._held) < CHANNELS:
            library, channel = _library(), len(self._held)
            library.fluid_synth_program_select(self._holder, channel, 1, bank, program)
            self._held.append((bank, program))

    def render(
        self, notes: NDArray[np.float64], bank: int, program: int, samples: int, cents: float = 0.0
    ) -> NDArray[np.float32]:
        """Render notes with one patch.

        Args:
            notes: (n, 4): start and end in seconds, pitch, velocity.
            bank: Bank of the patch; 128 is the drum bank.
            program: Program of the patch.
            samples: Length at 44.1 kHz.
            cents: Detuning.

        Returns:
            (samples,) float32, mean of both channels.

        Raises:
            ValueError: The soundfont has no such patch.
        """
        library = _library()
        self._hold(bank, program)
        synth = library.new_fluid_synth(self._settings)
        library.fluid_synth_add_sfont(synth, self._font)
        try:
            return self._play(synth, notes, bank, program, samples, cents)
        finally:
            library.fluid_synth_remove_sfont(synth, self._font)
            library.delete_fluid_synth(synth)

    def _play(
        self,
        synth: int,
        notes: NDArray[np.float64],
        bank: int,
        program: int,
        samples: int,
        cents: float,
    ) -> NDArray[np.float32]:
        library = _library()
        library.fluid_synth_set_interp_method(synth, -1, 4)
        channel = 9 if bank == 128 else 0
        if library.fluid_synth_program_select(synth, channel, 1, bank, program) != 0:
            raise ValueError(f"the soundfont has no patch {bank}:{program}")
        bend = int(np.clip(8192 + cents / 200 * 8192, 0, 16383))
        library.fluid_synth_pitch_bend(synth, channel, bend)
        blocks = -(-samples // BLOCK)
        events: list[tuple[int, int, int, int]] = []
        for start, end, pitch, velocity in notes:
            first = int(start * RENDER_RATE / BLOCK)
            last = max(first + 1, int(end * RENDER_RATE / BLOCK))
            loud = int(np.clip(round(velocity), 1, 127))
            events.append((first, 1, int(pitch), loud))
            events.append((last, 0, int(pitch), 0))
        events.sort()
        out = np.zeros((2, blocks * BLOCK), dtype=np.float32)
        at = 0
        for block, kind, pitch, velocity in [*events, (blocks, 2, 0, 0)]:
            block = min(block, blocks)
            if block > at:
                left = out[0, at * BLOCK :].ctypes.data
                right = out[1, at * BLOCK :].ctypes.data
                count = (block - at) * BLOCK
                library.fluid_synth_write_float(synth, count, left, 0, 1, right, 0, 1)
                at = block
            if kind == 1:
                library.fluid_synth_noteon(synth, channel, pitch, velocity)
            elif kind == 0:
                library.fluid_synth_noteoff(synth, channel, pitch)
        return out.mean(0)[:samples]


@lru_cache(maxsize=16)
def soundfont(path: str) -> Soundfont:
    """Return the loaded synthesiser of a soundfont file; loads it on the first call.

    Raises:
        MissingProgram: libfluidsynth or the file is absent.
    """
    if not Path(path).exists():
        raise MissingProgram(f"soundfont {path} was not found")
    return Soundfont(path)
