"""Codes the sounds of the corpus recipe small enough to travel: what bundle.py sends of them.

Of a set of samples only the files that its patches reach are taken, of a soundfont only the samples
of its patches. Each becomes mono at half its rate (the corpus has 22.05 kHz) and is laid, at full
level, behind the others of its set on reels, sound files of a few minutes in Ogg Vorbis: a file
for each sample would spend more on headers than on sound. `unpack.py` gives every sample its old
name, rate, length, loops and number of channels again, so that the recipe plays it as it is.
"""

from __future__ import annotations

import io
import itertools
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from os.path import normpath
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from numpy.typing import NDArray
from scipy import signal

from recipes.corpus.kits import SFZ_KEYS, Kit
from recipes.corpus.patches import Patch
from recipes.corpus.sfz import SAMPLE, flatten, only_keys

Sound = NDArray[np.float64]

QUALITY = 0.3
"""Of Ogg Vorbis, from 0 to 1: 4 kB for a second of a sample that had 44.1 kHz."""

REEL_RATE = 22050
MINUTES = 3.0
"""Of a reel: short ones, so that many cores share the work."""

BLOCK = 65536
"""Frames of one call of the encoder, which overflows the stack when it is given minutes."""

LOW_RATE = 33000
"""Samples of this rate and below are not halved."""

TAIL, FADE = 6.0, 0.5
"""Seconds that are kept of a sample, and of its fade-out if it was longer."""

BORDER, GAP = 512, 1024
"""Frames behind a sample that fade out what it ended with, and silence before the next."""

LOSSLESS = 4_000_000
"""Soundfonts with fewer frames than this are not coded: their loops are single periods."""

APART = 46
"""Zeros that a soundfont has behind each sample."""


def mono(sound: Sound) -> Sound:
    """The mean of the channels, which is all that the recipe takes of a sound."""
    return np.asarray(sound.mean(1) if sound.ndim == 2 else sound)


def write_blocks(path: Path, sound: Sound, **options: Any) -> None:
    """Writes a sound file of one channel at REEL_RATE in short calls."""
    with soundfile.SoundFile(path, "w", REEL_RATE, 1, **options) as stream:
        for at in range(0, len(sound), BLOCK):
            stream.write(sound[at : at + BLOCK])


@dataclass
class Reels:
    """The reels of one set, and what lies on them.

    Arguments:
        folder: where they are written.
        name: of the set; the reels have it with a number.
        lossless: whether sounds are kept to the bit (at any rate), for samples that have 16 bits.
    """

    folder: Path
    name: str
    lossless: bool = False
    contents: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    _sounds: list[Sound] = field(default_factory=list)
    _pieces: list[dict[str, Any]] = field(default_factory=list)
    _length: int = 0

    def add(self, sound: Sound, rate: int, /, **told: Any) -> None:
        """Lays a sound (n,) behind the others; `told` says where unpack.py is to write it."""
        halved = not self.lossless and rate > LOW_RATE
        gain = 1.0
        if not self.lossless:
            gain = max(float(np.abs(sound).max(initial=0)) / 0.9, 1e-9)
            sound = np.pad(sound / gain, (0, 2 * BORDER), "reflect" if len(sound) > 1 else "edge")
            sound[-2 * BORDER :] *= np.linspace(1, 0, 2 * BORDER)
        coded = signal.resample_poly(sound, 1, 2) if halved else sound
        piece = {"at": self._length, "coded": len(coded), "halved": halved, "gain": gain, **told}
        self._pieces.append(piece)
        self._sounds += [coded, np.zeros(GAP)]
        self._length += len(coded) + GAP
        if self._length > MINUTES * 60 * REEL_RATE:
            self.close()

    def close(self) -> None:
        """Writes what has not been written yet."""
        if not self._pieces:
            return
        kind = "flac" if self.lossless else "ogg"
        path = self.folder / f"{self.name}-{len(self.contents):02d}.{kind}"
        options: dict[str, Any] = {"format": "OGG", "subtype": "VORBIS"}
        options["compression_level"] = 1 - QUALITY
        if self.lossless:
            options = {"format": "FLAC", "subtype": "PCM_16", "compression_level": 1.0}
        write_blocks(path, np.concatenate(self._sounds), **options)
        self.contents[path.name] = self._pieces
        self._sounds, self._pieces, self._length = [], [], 0


# -- files of samples --------------------


def riff_chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """The name, place and size of each chunk of a RIFF file (from byte 12) or of a list."""
    at = 12
    while at + 8 <= len(data):
        (size,) = struct.unpack_from("<I", data, at + 4)
        yield data[at : at + 4], at + 8, size
        at += 8 + size + size % 2


def loop_chunk(data: bytes) -> bytes:
    """The body of the `smpl` chunk of a WAV file or among a FLAC file's foreign data, if any."""
    if data[:4] == b"RIFF":
        return next((data[a : a + n] for name, a, n in riff_chunks(data) if name == b"smpl"), b"")
    at = 4
    while data[:4] == b"fLaC" and at + 4 <= len(data):
        kind, size = data[at], int.from_bytes(data[at + 1 : at + 4], "big")
        body = data[at + 4 : at + 4 + size]
        if kind & 127 == 2 and body[:8] == b"riffsmpl":
            return body[12:]
        if kind & 128:
            break
        at += 4 + size
    return b""


def loops(chunk: bytes) -> bool:
    """Whether a `smpl` chunk has a loop."""
    return len(chunk) >= 36 and struct.unpack_from("<I", chunk, 28)[0] > 0


def add_file(reels: Reels, path: Path, target: str, tail: float | None) -> None:
    """Lays a file on the reels, without what comes after `tail` seconds if it has no loop."""
    data = path.read_bytes()
    stored, rate = soundfile.read(io.BytesIO(data), always_2d=True)
    chunk = loop_chunk(data)
    peak = float(np.abs(stored).max(initial=0))
    sound = mono(stored)
    if tail is not None and not loops(chunk) and len(sound) > tail * rate:
        sound = sound[: int(tail * rate)].copy()
        fade = int(FADE * rate)
        sound[-fade:] *= np.linspace(1, 0, fade)
    reels.add(
        sound,
        rate,
        file=target,
        rate=rate,
        frames=len(stored),
        kept=len(sound),
        channels=stored.shape[1],
        # 16 bits are too coarse for the softest layers, and clip what is beyond full scale.
        float=not 0.05 < peak < 1,
        loop=chunk.hex(),
    )


def reached_keys(patch: Patch) -> set[int]:
    """The keys that the recipe plays an SFZ instrument with."""
    if patch.stem != "drums":
        low, high = patch.low + patch.transpose, patch.high + patch.transpose
        return set(range(max(low, 0), min(high, 127) + 1))
    if patch.package in SFZ_KEYS:
        return {key for keys in SFZ_KEYS[patch.package].values() for key in keys}
    return set(range(128))


def instrument(path: Path, keys: set[int]) -> tuple[str, list[Path]]:
    """An SFZ instrument as one text with what some keys reach, and the samples that it names.

    In the text all samples are WAV files.
    """
    folder = path if path.is_dir() else path.parent
    text = only_keys(flatten(path), keys)
    samples: list[Path] = []
    lines: list[str] = []
    prefix = ""

    def renamed(match: re.Match[str]) -> str:
        name = match[1].strip()
        if name.startswith("*"):
            return match[0]
        samples.append(Path(normpath(folder / (prefix + name).replace("\\", "/"))))
        return f"sample={name[: len(name) - len(samples[-1].suffix)]}.wav"

    for line in text.splitlines():
        if start := re.search(r"\bdefault_path=(\S.*?)\s*$", line):
            prefix = start[1]
        lines.append(SAMPLE.sub(renamed, line))
    return "\n".join(lines) + "\n", sorted(set(samples))


def sample_files(
    patches: list[Patch], there: dict[Path, str]
) -> Iterator[tuple[Path, str, float | None]]:
    """The samples of the patches of a set, what each is called there and the tail that it needs.

    Arguments:
        patches: SFZ instruments and kits.
        there: takes the texts of the instruments, by their paths here.
    """
    named: dict[Path, tuple[str, float | None]] = {}
    keys: dict[Path, set[int]] = {}
    for patch in patches:
        if patch.kind == "kit":
            for options in Kit(patch.path).instruments.values():
                for _, path, _ in (layer for layers in options for layer in layers):
                    named[path] = (path.suffix, TAIL)
        else:
            keys.setdefault(patch.path, set()).update(reached_keys(patch))
    for path, reached in keys.items():
        text, samples = instrument(path, reached)
        if path.is_file():
            there[path] = text
        # Loops and starts far into a file are the instrument's own: such files stay whole.
        whole = re.search(r"loop_?(?:mode|start)|\boffset=\d{5}", text) is not None
        for sample in samples:
            named[sample] = (
                ".wav",
                None if whole or named.get(sample, ("", TAIL))[1] is None else TAIL,
            )
    for path, (suffix, tail) in sorted(named.items()):
        yield path, str(path.with_suffix(suffix)), tail


# -- soundfonts --------------------

HEADERS = {b"phdr": 38, b"pbag": 4, b"pgen": 4, b"inst": 22, b"ibag": 4, b"igen": 4, b"shdr": 46}
"""Bytes of a record of the tables of a soundfont."""


class Font:
    """A soundfont, of which some samples are kept: SF2, or SF3 with its samples in Ogg Vorbis."""

    INSTRUMENT, SAMPLE = 41, 53  # generators
    COMPRESSED = 0x10  # among the types of a sample
    RIGHT, LEFT = 2, 4

    def __init__(self, path: Path) -> None:
        self.data = path.read_bytes()
        self.chunks: dict[bytes, tuple[int, int]] = {}
        for name, at, size in riff_chunks(self.data):
            if name == b"LIST":
                inner = self.data[at - 8 : at + size]
                for key, start, length in riff_chunks(inner):
                    self.chunks[key] = (at - 8 + start, length)
        self.samples = [struct.unpack("<20s5IBbHH", record) for record in self._records(b"shdr")]

    def _records(self, name: bytes) -> list[bytes]:
        at, size = self.chunks[name]
        step = HEADERS[name]
        return [self.data[k : k + step] for k in range(at, at + size, step)]

    def _generators(self, bags: bytes, generators: bytes) -> list[list[tuple[int, int]]]:
        """The generators of every zone."""
        ends = [struct.unpack("<HH", record)[0] for record in self._records(bags)]
        pairs = [struct.unpack("<HH", record) for record in self._records(generators)]
        return [pairs[a:b] for a, b in itertools.pairwise(ends)]

    def used(self, presets: set[tuple[int, int]]) -> list[int]:
        """The numbers of the samples that presets, (bank, program), sound with."""
        heads = [struct.unpack("<20sHHH12x", record) for record in self._records(b"phdr")]
        starts = [struct.unpack("<20sH", record)[1] for record in self._records(b"inst")]
        zones = self._generators(b"pbag", b"pgen")
        inner = self._generators(b"ibag", b"igen")
        instruments = {
            value
            for head, after in itertools.pairwise(heads)
            if (head[2], head[1]) in presets
            for zone in zones[head[3] : after[3]]
            for generator, value in zone
            if generator == self.INSTRUMENT
        }
        return sorted(
            {
                value
                for number in instruments
                for zone in inner[starts[number] : starts[number + 1]]
                for generator, value in zone
                if generator == self.SAMPLE
            }
        )

    def sound(self, number: int) -> Sound:
        """A sample of the font, (n,)."""
        at, size = self.chunks[b"smpl"]
        start, end, kind = (self.samples[number][k] for k in (1, 2, 9))
        if kind & self.COMPRESSED:
            return mono(soundfile.read(io.BytesIO(self.data[at + start : at + end]))[0])
        return np.frombuffer(self.data, "<i2", size // 2, at)[start:end] / 32768.0

    def frames(self, presets: set[tuple[int, int]]) -> int:
        """How long the samples of presets are in all (of SF3, how many bytes)."""
        return sum(
            self.samples[number][2] - self.samples[number][1] for number in self.used(presets)
        )

    def add(
        self, reels: Reels, presets: set[tuple[int, int]], target: str
    ) -> tuple[bytes, dict[str, int]]:
        """Lays the samples of presets on reels; both sides of a stereo sample become their mean.

        Returns:
            The font without samples, as SF2, and the byte `head` from which their `frames` go in.
        """
        heads = [list(sample) for sample in self.samples]
        sounds = {number: self.sound(number) for number in self.used(presets)}
        end = 2 * APART  # of what stays here only silence is left, at the start
        for number, head in enumerate(heads[:-1]):
            base = 0 if head[9] & self.COMPRESSED else head[1]
            if number in sounds:
                loop = (head[3] - base + end, head[4] - base + end)
                head[1:5] = [end, end + len(sounds[number]), *loop]
                end = head[2] + APART
            else:
                head[1:5] = [0, APART, 8, APART - 8]
            head[9] &= ~self.COMPRESSED
        for number, sound in sounds.items():
            head, places = heads[number], [heads[number][1]]
            other = head[8] if head[9] in (self.LEFT, self.RIGHT) else number
            if other != number and other in sounds and heads[other][8] == number:
                if len(sounds[other]) == len(sound):
                    if other < number:
                        continue  # laid with the other one
                    sound, places = (sound + sounds[other]) / 2, [*places, heads[other][1]]
            reels.add(sound, head[5], font=target, places=places, kept=len(sound))
        return self._skeleton(heads, end)

    def _skeleton(self, heads: list[list[Any]], frames: int) -> tuple[bytes, dict[str, int]]:
        """The font with other heads of samples and without its samples."""

        def chunk(name: bytes, body: bytes) -> bytes:
            return name + struct.pack("<I", len(body)) + body + bytes(len(body) % 2)

        about, presets = bytearray(), bytearray()
        for name, (at, size) in self.chunks.items():
            body = self.data[at : at + size]
            if name == b"shdr":
                body = b"".join(struct.pack("<20s5IBbHH", *head) for head in heads)
            if name == b"ifil":
                body = struct.pack("<HH", 2, 1)
            if name not in (b"smpl", b"sm24"):
                known = name in HEADERS or name in (b"pmod", b"imod")
                (presets if known else about).extend(chunk(name, body))
        info, pdta = (chunk(b"LIST", b"INFO" + about), chunk(b"LIST", b"pdta" + presets))
        smpl = struct.pack("<4sI4s4sI", b"LIST", 12 + 2 * frames, b"sdta", b"smpl", 2 * frames)
        size = 4 + len(info) + len(smpl) + 2 * frames + len(pdta)
        head = struct.pack("<4sI4s", b"RIFF", size, b"sfbk") + info + smpl
        return head + pdta, {"head": len(head), "frames": frames}
