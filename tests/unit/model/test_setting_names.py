"""The model layer serves several programs, so its messages name no variable of one of them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

MODEL = Path(__file__).parents[3] / "model"
TEXTS = sorted(
    p for p in MODEL.rglob("*") if p.suffix in (".py", ".md", ".json", ".c") and "__pycache__" not in p.parts
)


@pytest.mark.parametrize("path", TEXTS, ids=lambda p: str(p.relative_to(MODEL)))
def test_no_file_of_the_model_layer_names_a_variable_of_the_server(path):
    assert re.findall(r"REWARD_[A-Z]\w*", path.read_text(encoding="utf-8")) == []
