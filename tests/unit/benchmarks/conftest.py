"""One tokenizer for all: training it takes a second."""

import pytest

from benchmarks.models import train_tokenizer


@pytest.fixture(scope="session")
def tokenizer():
    return train_tokenizer(vocabulary=2048)
