"""ZynAddSubFX instruments (.xiz files of the Debian packages yoshimi-data and zynaddsubfx-data)
through LMMS, which has the synthesiser and renders without an audio device; mono float32 at
44.1 kHz.

LMMS takes no MIDI on its command line: the notes go into a project of one track. Its clock has 48
ticks a beat, so the project runs at the highest tempo there is, which makes a tick of 1.25 ms; the
synthesiser starts notes on a grid of 256 samples. Every rendering is a process of its own, whose
random phases begin with the same seed.
"""

from __future__ import annotations

import gzip
import math
import os
import shutil
import subprocess
import tempfile
import xml.etree.ElementTree as ET
from functools import lru_cache
from pathlib import Path

import numpy as np
import soundfile
from numpy.typing import NDArray

from recipes.corpus.grooves import MissingProgram
from recipes.corpus.synth import RENDER_RATE

TEMPO = 999  # beats a minute, the most that LMMS takes
TICK = 60 / TEMPO / 48  # seconds
BAR = 192  # ticks
LIMIT = 60  # voices
HIGHEST = 107  # MIDI key; LMMS is silent above
PART = {
    "volume": 96,
    "panning": 64,
    "min_key": 0,
    "max_key": 127,
    "key_shift": 64,
    "rcv_chn": 0,
    "velocity_sensing": 64,
    "velocity_offset": 64,
    "legato_mode": 0,
    "key_limit": LIMIT,
}


@lru_cache(maxsize=64)
def instrument(path: Path) -> ET.Element:
    """Read the instrument of an .xiz file, gzipped or not.

    Raises:
        MissingProgram: The file is absent.
        ValueError: It holds no instrument.
    """
    if not path.is_file():
        raise MissingProgram(f"{path} was not found: install yoshimi-data and zynaddsubfx-data")
    raw = path.read_bytes()
    text = (gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw).decode("latin-1")
    try:  # some files declare XML versions that there are none of
        root = ET.fromstring(text[text.index("<ZynAddSubFX-data") :])
    except (ValueError, ET.ParseError) as error:
        raise ValueError(f"{path} is no instrument of ZynAddSubFX ({error})") from error
    if root.find("INSTRUMENT") is None:
        raise ValueError(f"{path} holds no instrument")
    return root


def project(
    path: Path, notes: NDArray[np.float64], samples: int, cents: float = 0.0
) -> ET.ElementTree[ET.Element]:
    """An LMMS project (.mmp) that plays notes with an instrument; see `render_zyn`."""
    source = instrument(path)
    root = ET.Element("lmms-project", version="1.0", creator="LMMS", creatorversion="1.2.2")
    root.set("type", "song")
    ET.SubElement(root, "head", bpm=str(TEMPO), mastervol="100", masterpitch="0")
    song = ET.SubElement(root, "song")
    tracks = ET.SubElement(song, "trackcontainer", type="song")
    track = ET.SubElement(tracks, "track", type="0", muted="0", solo="0")
    settings = ET.SubElement(
        track, "instrumenttrack", pan="0", vol="100", pitch=f"{cents:.4f}", pitchrange="1",
        basenote="57", fxch="0", usemasterpitch="1",
    )  # fmt: skip
    plugin = ET.SubElement(
        ET.SubElement(settings, "instrument", name="zynaddsubfx"), "zynaddsubfx",
        portamento="0", filterfreq="64", filterq="64", bandwidth="64", fmgain="127",
        rescenterfreq="64", resbandwidth="64", modifiedcontrollers="", forwardmidicc="1",
    )  # fmt: skip
    data = ET.SubElement(plugin, "ZynAddSubFX-data", source.attrib)
    if (base := source.find("BASE_PARAMETERS")) is not None:
        data.append(base)
    master = ET.SubElement(data, "MASTER")
    ET.SubElement(master, "par", name="volume", value="80")
    ET.SubElement(master, "par", name="key_shift", value="64")
    part = ET.SubElement(master, "PART", id="0")
    for name in ("enabled", "note_on", "poly_mode"):
        ET.SubElement(part, "par_bool", name=name, value="yes")
    for name, value in PART.items():
        ET.SubElement(part, "par", name=name, value=str(value))
    part.extend(source.findall("INSTRUMENT"))
    ET.SubElement(settings, "midiport", basevelocity="127", fixedoutputnote="-1")
    bars = math.ceil(samples / RENDER_RATE / TICK / BAR) + 1
    pattern = ET.SubElement(track, "pattern", type="1", pos="0", muted="0", steps="16")
    for start, end, pitch, velocity in notes:
        first = round(start / TICK)
        ET.SubElement(
            pattern, "note", key=str(int(pitch)), vol=str(max(1, round(velocity / 1.27))),
            pan="0", pos=str(first), len=str(max(1, round(end / TICK) - first)),
        )  # fmt: skip
    # LMMS ends with the last pattern: an empty one holds the end open for what still sounds.
    last = str((bars - 1) * BAR)
    ET.SubElement(track, "pattern", type="1", pos=last, muted="0", steps="16", len=str(BAR))
    return ET.ElementTree(root)


def render_zyn(
    path: Path, notes: NDArray[np.float64], samples: int, cents: float = 0.0
) -> NDArray[np.float32]:
    """Render notes with an instrument.

    Args:
        path: An .xiz file.
        notes: (n, 4): start and end in seconds, pitch, velocity.
        samples: Length at 44.1 kHz.
        cents: Detuning, within 100.

    Returns:
        (samples,) float32, mean of both channels.

    Raises:
        MissingProgram: LMMS or the file is absent.
        ValueError: LMMS failed, or gave values that are not finite.
    """
    program = shutil.which("lmms")
    if program is None:
        raise MissingProgram("lmms was not found: install the Debian package `lmms`")
    if len(notes) == 0:
        return np.zeros(samples, dtype=np.float32)
    with tempfile.TemporaryDirectory(prefix="zyn") as folder:
        source, target = Path(folder, "in.mmp"), Path(folder, "out.wav")
        project(path, notes, samples, cents).write(source, "utf-8", xml_declaration=True)
        # Without a home of its own it reads the user's settings, and writes there.
        own = {"QT_QPA_PLATFORM": "offscreen", "HOME": folder, "XDG_RUNTIME_DIR": folder}
        command = [program, "--allowroot", "render", str(source), "-o", str(target)]
        command += ["--format", "wav", "--samplerate", str(RENDER_RATE), "--float"]
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=600,
            env=os.environ | own,
        )
        if done.returncode != 0 or not target.exists():
            raise ValueError(f"lmms failed with {path}: {(done.stderr or done.stdout)[-300:]}")
        sound, _ = soundfile.read(target, dtype="float32", always_2d=True)
    if not np.isfinite(sound).all():
        raise ValueError(f"{path} gives values that are not finite: leave it out of sources.tsv")
    mono = sound.mean(1)
    return np.pad(mono, (0, max(0, samples - len(mono))))[:samples].astype(np.float32)
