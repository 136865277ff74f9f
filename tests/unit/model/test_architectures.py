"""A sample of `make test-architectures`: the engine that is chosen at load gives the scores of rows alone."""

from __future__ import annotations

import pytest

from tests.architectures.build import VARIANTS, cases
from tests.architectures.sweep import TOLERANCE, outcome

SAMPLE = {
    # name: (engine, whether padding is right)
    "bloom": ("padded", "right"),
    "falcon, ALiBi": ("padded", "right"),
    "gemma3_text, dynamic NTK in full layers": ("packed", "right"),
    "llama4_text": ("padded", "right"),
    "jamba": ("padded", "right"),
    "rwkv": ("one_by_one", "wrong"),
    "opt, word_embed_proj_dim": ("packed", "right"),
    "smollm3": ("packed", "right"),
    "longcat_flash": ("packed", "right"),
}
BY_NAME = {case.name: case for case in cases()}


@pytest.mark.parametrize("name", SAMPLE)
def test_the_engine_that_is_chosen_scores_as_a_plain_forward_of_each_row_alone(name: str):
    found = outcome(BY_NAME[name])
    assert found.difference <= TOLERANCE
    assert (found.engine, found.padding) == SAMPLE[name]


def test_the_sweep_knows_more_than_a_hundred_architectures_and_the_variants():
    assert len(BY_NAME) > 100
    assert {case.name for case in VARIANTS} <= set(BY_NAME)
