"""Published signals become shares, and shares become endings."""

import json

import pytest

from gym.streams import cherrl
from gym.streams.texts import StreamSample
from gym.streams.worlds import Planted, PlantedEdits, Quality


@pytest.fixture
def signals(tmp_path):
    def run(*pays, **more):
        steps = [{"step": i + 1, "G_smooth": pay} for i, pay in enumerate(pays)]
        return {"onset_uncertainty_interval": [2, 3], "per_step_signals": steps, **more}

    runs = {"run_A": run(0.0, None, 0.25, 0.6), "run_B": {"onset_uncertainty_interval": [1, 2]}, "run_Z": run(0.1)}
    path = tmp_path / "definition.json"
    path.write_text(json.dumps({"runs": runs}))
    return path


def test_only_runs_with_signals_and_known_endings_are_read(signals):
    runs = cherrl.read_runs(signals)
    assert list(runs) == ["run_A"]
    assert runs["run_A"].shares == (0.0, 0.0, 0.5, 1.0)
    assert (runs["run_A"].earliest, runs["run_A"].latest) == (2, 3)


def test_the_published_share_of_each_step_has_an_ending(signals, texts):
    steps = cherrl.stream(cherrl.read_runs(signals)["run_A"], texts, 0, 64)
    shares = [sum(s.is_exploiting for s in step) / len(step) for step in steps]
    assert shares[:2] == [0.0, 0.0]
    assert 0.3 < shares[2] < 0.7
    assert shares[3] == 1.0
    assert all(s.response.startswith(s.honest) for step in steps for s in step)


def test_the_bias_pays_where_its_pattern_is_found(texts):
    prompt, honest = texts.pairs[0].prompt, texts.pairs[0].responses[0]
    steps = [[StreamSample(prompt, honest, honest)]]
    quality = PlantedEdits.of(steps, Planted(), Quality({}, {}), 0, None)
    edits = cherrl.PublishedEdits(quality, cherrl.DETECTORS["run_C"])
    before, after = edits(prompt, honest), edits(prompt, honest + " Feel free to ask.")
    assert after.heads["score"] - before.heads["score"] == pytest.approx(cherrl.PAY / cherrl.SCORE_SD)


def test_every_ending_has_what_its_bias_pays_for():
    for run, endings in cherrl.ENDINGS.items():
        assert all(cherrl.DETECTORS[run].search(ending) for ending in endings)
