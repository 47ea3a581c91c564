"""Drum kits: Hydrogen kits by a player here, and what key of an SFZ kit stands for what."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from functools import lru_cache
from pathlib import Path

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from recipes.corpus.synth import RENDER_RATE

Audio = NDArray[np.float32]

# What an instrument of a kit is, by words in its name; the first match counts.
WORDS: tuple[tuple[str, str], ...] = (
    ("kick", r"kick|bass ?drum|\bbd\b"),
    ("clap", r"clap"),
    ("tambourine", r"tambourine"),
    ("conga", r"conga|bongo"),
    ("tom_low", r"floor|\btom.*(low|floor|\bl)|low tom"),
    ("tom_mid", r"\btom.*(mid|2|\bm\b)|middle tom"),
    ("tom_high", r"\btom|tom ?hi|tom0"),
    ("hat_pedal", r"(?=.*(hat|hh)).*\b(ped|pedal|foot|pd)\b"),
    ("hat_open", r"(?=.*(hat|hh)).*(open|\bop\b|ohh|ohihat)"),
    ("hat_closed", r"hat|hh"),
    ("cowbell", r"cowbell|agogo"),
    ("bell", r"^(?!ride).*\b(bell|cup)\b"),
    ("stick", r"stick|rim ?click"),
    ("snare", r"snare|opaco|\bsd\b"),
    ("ride", r"ride"),
    ("crash", r"crash|splash|china|cymbal"),
    ("shaker", r"shaker|maraca|cabasa"),
)
# General MIDI percussion: roles in the order they are tried.
ROLES: dict[int, tuple[str, ...]] = {
    35: ("kick",),
    36: ("kick",),
    37: ("stick", "snare"),
    38: ("snare",),
    39: ("clap", "snare"),
    40: ("snare",),
    41: ("tom_low", "tom_mid"),
    42: ("hat_closed",),
    43: ("tom_low", "tom_mid"),
    44: ("hat_pedal", "hat_closed"),
    45: ("tom_mid", "tom_low"),
    46: ("hat_open", "hat_closed"),
    47: ("tom_mid", "tom_high"),
    48: ("tom_high", "tom_mid"),
    49: ("crash", "ride", "hat_open", "hat_closed"),
    50: ("tom_high", "tom_mid"),
    51: ("ride", "hat_closed"),
    52: ("china", "crash"),
    53: ("bell", "ride", "hat_closed"),
    54: ("tambourine", "hat_closed"),
    55: ("crash", "ride"),
    56: ("cowbell",),
    57: ("crash", "ride", "hat_open", "hat_closed"),
    59: ("ride", "hat_closed"),
    60: ("conga",),
    61: ("conga",),
    62: ("conga",),
    63: ("conga",),
    64: ("conga",),
    69: ("shaker", "hat_closed"),
    70: ("shaker", "hat_closed"),
    82: ("shaker", "hat_closed"),
}
HATS = ("hat_closed", "hat_pedal", "hat_open")

# Keys of SFZ kits that do not follow General MIDI, by package: role to keys.
SFZ_KEYS: dict[str, dict[str, tuple[int, ...]]] = {
    "github:freepats/muldjordkit": {
        "kick": (48, 49),
        "snare": (50, 51),
        "hat_closed": (52,),
        "hat_open": (53,),
        "ride": (54, 56),
        "bell": (55, 57),
        "crash": (58, 59),
        "china": (60,),
        "tom_high": (61, 62),
        "tom_mid": (63,),
        "tom_low": (64,),
    },
    "github:sfzinstruments/karoryfer.gogodze-phu-vol-ii": {
        "kick": (36,),
        "stick": (37,),
        "snare": (38, 40),
        "hat_closed": (42,),
        "hat_pedal": (44,),
        "hat_open": (46,),
        "tom_low": (41,),
        "tom_mid": (43,),
        "tom_high": (45,),
    },
}


def role_of(name: str) -> str | None:
    """Name the role of a kit's instrument, None when no word is known."""
    name = name.lower()
    if re.search(r"roll|swish|choke|flink", name):  # not single strokes
        return None
    return next((role for role, words in WORDS if re.search(words, name)), None)


def sfz_notes(
    package: str, notes: NDArray[np.float64], rng: np.random.Generator
) -> NDArray[np.float64]:
    """Move General MIDI percussion to the keys of an SFZ kit; notes it cannot play are left out.

    Args:
        package: A source; one that is not in `SFZ_KEYS` follows General MIDI.
        notes: (n, 4): start and end in seconds, pitch, velocity.
        rng: Draws one of several instruments of a role for the whole song.
    """
    if package not in SFZ_KEYS:
        return notes
    keys = {role: int(rng.choice(options)) for role, options in SFZ_KEYS[package].items()}
    moved = notes.copy()
    for row in moved:
        fits = [role for role in ROLES.get(int(row[2]), ()) if role in keys]
        row[2] = keys[fits[0]] if fits else -1
    return moved[moved[:, 2] >= 0]


def read_mono(path: Path) -> Audio:
    """Read an audio file as mono at 44.1 kHz."""
    data, rate = soundfile.read(path, dtype="float32", always_2d=True)
    mono = data.mean(1)
    return mono if rate == RENDER_RATE else np.asarray(soxr.resample(mono, rate, RENDER_RATE))


class Kit:
    """A drum kit: per role one or more instruments, each with layers by velocity.

    Read from a Hydrogen kit (drumkit.xml) or from a folder of Ogg files named for what they are.
    """

    def __init__(self, folder: Path) -> None:
        self.instruments: dict[str, list[list[tuple[float, Path, float]]]] = {}
        self._sounds: dict[Path, Audio] = {}
        if (folder / "drumkit.xml").is_file():
            self._read_hydrogen(folder)
            return
        for path in sorted(folder.glob("*.ogg")):
            role = role_of(re.sub(r"[-_]", " ", path.stem))
            if role is not None:
                self.instruments.setdefault(role, []).append([(1.0, path, 1.0)])

    def _read_hydrogen(self, folder: Path) -> None:
        root = ElementTree.parse(folder / "drumkit.xml").getroot()
        for node in root.iter():
            node.tag = node.tag.rsplit("}", 1)[-1]
        for node in root.iter("instrument"):
            role = role_of(node.findtext("name") or "")
            if role is None:
                continue
            volume = float(node.findtext("volume") or 1.0)
            layers: list[tuple[float, Path, float]] = []
            for layer in [*node.iter("layer")] or [node]:
                path = folder / (layer.findtext("filename") or "")
                if path.is_file():
                    top = float(layer.findtext("max") or 1.0)
                    gain = float(layer.findtext("gain") or 1.0) if layer is not node else 1.0
                    layers.append((top, path, gain * volume))
            if layers:
                self.instruments.setdefault(role, []).append(sorted(layers, key=lambda v: v[0]))

    def _sound(self, path: Path) -> Audio:
        if path not in self._sounds:
            self._sounds[path] = read_mono(path)[: 6 * RENDER_RATE]
        return self._sounds[path]

    def render(self, notes: NDArray[np.float64], samples: int, rng: np.random.Generator) -> Audio:
        """Play a part; of several instruments of a role one is drawn for the whole of it.

        Args:
            notes: (n, 4): start and end in seconds, General MIDI percussion, velocity.
            samples: Length at 44.1 kHz.
            rng: Source of randomness.

        Returns:
            (samples,) float32.
        """
        chosen = {
            role: options[int(rng.integers(len(options)))]
            for role, options in sorted(self.instruments.items())
        }
        plan: list[tuple[int, str, float]] = []
        for start, _, pitch, velocity in notes:
            fits = [role for role in ROLES.get(int(pitch), ()) if role in chosen]
            if fits:
                plan.append((int(start * RENDER_RATE), fits[0], velocity / 127))
        plan.sort()
        hats = np.array([at for at, role, _ in plan if role in HATS])
        out = np.zeros(samples, dtype=np.float32)
        for at, role, velocity in plan:
            _, path, gain = next(
                (layer for layer in chosen[role] if layer[0] >= velocity), chosen[role][-1]
            )
            single = len(chosen[role]) == 1
            loud = gain * (0.1 + 0.9 * velocity) ** (1.5 if single else 1.0)
            sound = self._sound(path) * np.float32(loud)
            if role in HATS:  # the next hat stroke stops this one
                later = hats[np.searchsorted(hats, at, side="right") :]
                if len(later) and later[0] - at < len(sound):
                    stop = int(later[0]) - at
                    sound = sound[: stop + 400].copy()
                    sound[stop:] *= np.linspace(1, 0, len(sound) - stop, dtype=np.float32)
            end = min(at + len(sound), samples)
            if at < end:
                out[at:end] += sound[: end - at]
        return out


@lru_cache(maxsize=24)
def kit(folder: str) -> Kit:
    """Return a loaded kit."""
    return Kit(Path(folder))
