"""The embedded default reward model: two linear heads over a base model that a package ships."""

from pathlib import Path

FOLDER = Path(__file__).parent / "checkpoint"
