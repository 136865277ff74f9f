"""Scores are kept by content and model; a half-written line is no score."""

from gym.streams.scores import Model, ScoreTable, key_of
from rewardserve.model.conversation import Message

PROMPT = (Message("user", "Why?"),)


def test_scores_are_found_again_by_another_process(tmp_path):
    model = Model.read()
    ScoreTable.open(model, tmp_path).add([(PROMPT, "So."), (PROMPT, "x" * 9)], [{"a": 1.5, "b": -2.0}, None])
    table = ScoreTable.open(model, tmp_path)
    assert table.of(PROMPT, "So.") == {"a": 1.5, "b": -2.0}
    assert table.of(PROMPT, "x" * 9) is None
    assert table.missing([(PROMPT, "So."), (PROMPT, "New."), (PROMPT, "New."), (PROMPT, "x" * 9)]) == [(PROMPT, "New.")]


def test_a_half_written_line_is_ignored(tmp_path):
    model = Model.read()
    table = ScoreTable.open(model, tmp_path)
    table.add([(PROMPT, "So.")], [{"a": 1.0}])
    with table.path.open("a") as out:
        out.write('["half')
    assert set(ScoreTable.open(model, tmp_path).heads) == {key_of(PROMPT, "So.")}


def test_turns_and_response_are_not_confused():
    assert key_of((Message("user", "a"),), "b") != key_of((Message("user", "ab"),), "")


def test_the_default_model_normalises_its_heads():
    model = Model.read()
    heads = {name: 0.0 for name, _ in model.contract.heads}
    assert model.normalised(heads) == -model.calibration.mean / model.calibration.std
