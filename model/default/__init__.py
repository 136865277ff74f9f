"""The embedded default reward model: two linear heads over a base model that a package ships."""

from pathlib import Path

DEFAULT_MODEL = "default"
"""Name of this model where an empty name may be an unset shell variable."""

FOLDER = Path(__file__).parent / "checkpoint"
