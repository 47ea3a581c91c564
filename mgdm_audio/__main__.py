"""``python -m mgdm_audio`` is ``mgdm-audio``."""

from mgdm_audio.cli import main

main()
