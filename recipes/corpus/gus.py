"""Gravis patches (the Debian package freepats) through TiMidity++, mono float32 at 44.1 kHz."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path

import mido
import numpy as np
import soundfile
from numpy.typing import NDArray

from recipes.corpus.grooves import MissingProgram
from recipes.corpus.sfz import FULL, midi_file
from recipes.corpus.synth import RENDER_RATE

VOLUMES = (70, 25, 8)  # percent, tried until nothing clips


def render_gus(
    config: Path, notes: NDArray[np.float64], program: int, samples: int, cents: float = 0.0
) -> NDArray[np.float32]:
    """Render notes with one program of a TiMidity configuration.

    Args:
        config: Configuration that names the patches, such as /etc/timidity/freepats.cfg.
        notes: (n, 4): start and end in seconds, pitch, velocity.
        program: General MIDI program, counted from 0.
        samples: Length at 44.1 kHz.
        cents: Detuning, within 200.

    Returns:
        (samples,) float32.

    Raises:
        MissingProgram: timidity is not installed.
        ValueError: timidity failed, or clips even at its lowest volume.
    """
    program_path = shutil.which("timidity")
    if program_path is None:
        raise MissingProgram("timidity was not found: install the Debian package `timidity`")
    if len(notes) == 0:
        return np.zeros(samples, dtype=np.float32)
    midi = midi_file(notes, samples, cents, {})
    midi.tracks[0].insert(1, mido.Message("program_change", program=program))
    for volume in VOLUMES:
        with tempfile.TemporaryDirectory(prefix="gus") as folder:
            source, target = Path(folder, "in.mid"), Path(folder, "out.wav")
            midi.save(source)
            done = subprocess.run(
                [
                    program_path,
                    "-c",
                    str(config),
                    "-Ow2M",
                    "-s",
                    str(RENDER_RATE),
                    "-EFreverb=0",
                    "-EFchorus=0",
                    "-EFdelay=0",
                    "-EFns=0",
                    f"-A{volume}",
                    "-p",
                    "200",
                    "--no-polyphony-reduction",
                    "-o",
                    str(target),
                    str(source),
                ],
                capture_output=True,
                text=True,
                timeout=300,
            )
            if done.returncode != 0 or not target.exists():
                raise ValueError(f"timidity failed: {(done.stderr or done.stdout)[-300:]}")
            sound, _ = soundfile.read(target, dtype="float32")
        if np.abs(sound).max(initial=0) < FULL:
            break
    else:
        raise ValueError(f"program {program} of {config} clips: leave it out of sources.tsv")
    late = int(notes[:, 0].min() * RENDER_RATE)  # TiMidity skips the silence before the first note
    sound = np.concatenate([np.zeros(late, np.float32), sound])
    return np.pad(sound, (0, max(0, samples - len(sound))))[:samples].astype(np.float32)
