"""Tensors of the KServe v2 protocol: what their shapes and datatypes say is what is scored, or the request is refused."""

from __future__ import annotations

import pytest

from rewardserve.service.api.dialects.kserve import INFER
from rewardserve.service.errors import InvalidRequest


def ask(*tensors):
    form, body = INFER.read({"inputs": list(tensors)})
    return [(sample.text, sample.input_ids) for sample in form.to_samples(body, None)]


def sentences(shape=(2, 1), data=("a", "b"), **more):
    return {"name": "sentences", "shape": list(shape), "data": list(data), **more}


def tokens(shape=(2, 3), data=(1, 2, 3, 4, 5, 6), **more):
    return {"name": "tokens", "shape": list(shape), "data": list(data), **more}


def lengths(shape=(2, 1), data=(3, 2), **more):
    return {"name": "sequence_lengths", "shape": list(shape), "data": list(data), **more}


@pytest.mark.parametrize("shape", [(2,), (2, 1)])
def test_texts_are_scored_in_order(shape):
    assert ask(sentences(shape, datatype="BYTES")) == [("a", None), ("b", None)]


@pytest.mark.parametrize("data", [(1, 2, 3, 4, 5, 6), ([1, 2, 3], [4, 5, 6])])
@pytest.mark.parametrize("n", [(2,), (2, 1)])
def test_rows_of_ids_are_cut_at_their_lengths(data, n):
    found = ask(tokens(data=data, datatype="INT64"), lengths(n, datatype="INT32"))
    assert found == [(None, (1, 2, 3)), (None, (4, 5))]


@pytest.mark.parametrize(
    "tensors",
    [
        [tokens(), lengths((3,), (2, 2, 2))],  # two rows of three ids are not three rows of two
        [tokens((3, 2)), lengths()],
        [tokens((6,)), lengths()],
        [tokens((2, 4)), lengths()],
        [tokens(), lengths(data=(4, 1))],
        [tokens(), lengths(data=(-1, 1))],
        [tokens(), lengths((1, 2))],
        [tokens(datatype="BOOL"), lengths()],
        [tokens(), lengths(datatype="FP32")],
        [tokens(datatype="BYTES"), lengths()],
        [sentences((7, 1))],
        [sentences((1, 2))],
        [sentences(datatype="INT64")],
        [sentences(data=("a", 1))],
    ],
)
def test_a_tensor_that_is_not_as_it_says_is_refused(tensors):
    with pytest.raises(InvalidRequest):
        ask(*tensors)
