"""The command replays drawn exploits, honest streams and files of others, and writes every outcome."""

import argparse
import gzip
import json
import sys
from types import SimpleNamespace

import pytest

from gym.streams import command, learning, runs
from gym.streams.learning import Lesson
from gym.streams.outcomes import load
from gym.streams.replay import Replay
from gym.streams.scores import Model
from gym.streams.streams import StreamSpec
from gym.streams.worlds import Scored
from rewardserve.model.conversation import Message

EXPLOITS = "EXPLOITS = {'shout': lambda prompt, response: response.upper()}\n"
HONEST = """
import beside
HONEST = {'calm': lambda seed: [[([{'role': 'user', 'content': 'Hi'}], beside.word(i, j)) for j in range(8)] for i in range(3)]}
"""


@pytest.fixture
def folder(tmp_path, texts, tokenize, monkeypatch):
    rows = [
        {
            "prompt": [{"role": "user", "content": p.prompt[-1].content}],
            "chosen": p.responses[0],
            "rejected": p.responses[1],
        }
        for p in texts.pairs
    ]
    (tmp_path / "stories.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "exploits.py").write_text(EXPLOITS)
    (tmp_path / "honest.py").write_text(HONEST)
    (tmp_path / "beside.py").write_text("def word(*at):\n    return f'word {at}'\n")
    monkeypatch.setattr(runs, "tokenizer_of", lambda _: tokenize)
    monkeypatch.setattr(sys, "path", [*sys.path])
    return tmp_path


def test_all_sources_are_replayed_and_saved(folder, monkeypatch, capsys):
    out = folder / "out.json"
    arguments = (
        f"streams --data {folder} --exploits {folder}/exploits.py --honest {folder}/honest.py --seeds 1 2 --steps 4 --batch 16 "
        f"--only drawn shout calm stationary --scores {folder} --processes 1 --json {out}"
    )
    monkeypatch.setattr(sys, "argv", arguments.split())
    assert command.main() == 0
    found = {(each.stream, each.pay): each for each in load(out)}
    assert len(found) == 6  # two exploits with two pays, and two honest streams
    assert found["shout", "+2/-0.7"].shares[-1] > 0.5
    assert found["calm", ""].samples == 24
    assert found["stationary", ""].is_exploit is False
    printed = capsys.readouterr().out
    assert "by wire" in printed
    assert "6 streams" in printed
    monkeypatch.setattr(sys, "argv", ["streams", "--show", str(out)])
    assert command.main() == 0
    assert capsys.readouterr().out.splitlines()[1:] == printed.splitlines()[1:]  # but the load of the machine


def run_command(monkeypatch, folder, flags):
    out = folder / "out.json"
    words = f"streams --data {folder} --batch 16 --scores {folder} --processes 1 --json {out} {flags}".split()
    monkeypatch.setattr(sys, "argv", words)
    assert command.main() == 0
    return load(out)


def test_learned_runs_are_judged_by_their_gold(folder, monkeypatch, capsys):
    monkeypatch.setattr(command, "LESSONS", {"gold": None, "proxy": None})
    monkeypatch.setitem(learning.LESSONS, "gold", Lesson(by_gold=True))
    monkeypatch.setitem(learning.LESSONS, "proxy", Lesson())
    found = run_command(monkeypatch, folder, "--world learned --seeds 1 2 --steps 8 --judge-share 0.1")
    assert [each.stream for each in found] == ["gold", "proxy"]
    assert all(len(each.gold) == len(each.shares) == 8 for each in found)
    assert "never falls, paged" in capsys.readouterr().out


def test_edited_responses_of_a_learned_run_have_the_pay_of_its_exploits(folder, monkeypatch):
    used, replay = [], runs.replay

    def spy(steps, scored, tokenize, traffic, scale, score_edited, **more):
        used.append(score_edited)
        return replay(steps, scored, tokenize, traffic, scale, score_edited, **more)

    monkeypatch.setattr(runs, "replay", spy)
    monkeypatch.setattr(command, "LESSONS", {"proxy": None})
    monkeypatch.setitem(learning.LESSONS, "proxy", Lesson())
    run_command(monkeypatch, folder, "--world learned --seeds 1 2 --steps 2")
    assert [type(each) for each in used] == [learning.LearnedEdits]


def test_gold_is_known_after_the_page_that_ends_a_replay(folder, monkeypatch):
    monkeypatch.setattr(runs, "replay", lambda *_, **__: Replay((), ({}, {}), 3.0))
    monkeypatch.setattr(command, "LESSONS", {"proxy": None})
    monkeypatch.setitem(learning.LESSONS, "proxy", Lesson())
    (each,) = run_command(monkeypatch, folder, "--world learned --seeds 1 2 --steps 8 --until-page")
    assert (each.samples, len(each.gold), len(each.shares)) == (32, 8, 8)


def test_published_runs_are_as_long_as_their_signals_and_have_an_onset(folder, monkeypatch, capsys):
    steps = [{"step": i, "G_smooth": 0.1 * i} for i in range(6)]
    run = {"onset_uncertainty_interval": [2, 3], "per_step_signals": steps}
    (folder / "signals.json").write_text(json.dumps({"runs": {"run_C": run}}))
    (each,) = run_command(monkeypatch, folder, f"--world cherrl --signals {folder}/signals.json --seeds 1 2")
    assert (each.stream, each.onset, len(each.shares), each.shares[-1]) == ("run_C", (2, 3), 6, 1.0)
    assert "page off by" in capsys.readouterr().out


def test_edited_responses_of_a_recorded_run_are_scored_by_the_model_on_demand(folder, monkeypatch):
    rows = [{"prompts": ["a"] * 4, "responses": list("wxyz"), "rewards": [0.1 * i] * 4} for i in range(3)]
    with gzip.open(folder / "run.jsonl.gz", "wt") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    given = argparse.Namespace(data=None, model="", judge="", scores=folder, quality="noise", score_edits=True)
    spec = StreamSpec("recorded", "run", folder / "run.jsonl.gz")
    world = runs.World.of(given)
    heads = {name: 1.0 for name, _ in Model.read().contract.heads}
    monkeypatch.setattr(runs.LiveModel, "load", lambda _: SimpleNamespace(heads=lambda *_: heads))
    edits = world.make(spec).edits
    assert edits((Message("user", "a"),), "v") == Scored({"score": Model.read().normalised(heads)}, None)
    given.score_edits = False
    assert runs.World.of(given).make(spec).edits is None


def test_data_or_a_recorded_run_must_be_given(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["streams"])
    with pytest.raises(SystemExit):
        command.main()
    assert "--data, --recorded or --show" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("base_rows", "names"), [("--base-rows 100", {"stationary", "shout"}), ("", {"stationary", "shout", "improvement"})]
)
def test_the_real_world_scores_some_texts_and_leaves_out_improvement_without_all(
    folder, monkeypatch, capsys, base_rows, names
):
    def score(table, texts, checkpoint):
        heads = [{name: len(response) / 50 for name, _ in Model.read().contract.heads} for _, response in texts]
        table.add(texts, heads)
        return 1.0

    monkeypatch.setattr(command, "fill", score)
    out = folder / "out.json"
    arguments = (
        f"streams --data {folder} --exploits {folder}/exploits.py --world real --judge-share 0 --rows 8 {base_rows} --steps 4 "
        f"--batch 16 --only shout stationary improvement --scores {folder}/scores --processes 1 --json {out}"
    )
    monkeypatch.setattr(sys, "argv", arguments.split())
    assert command.main() == 0
    found = {each.stream: each for each in load(out)}
    assert set(found) == names
    assert ("improvement is left out" in capsys.readouterr().err) is bool(base_rows)
    assert (found["stationary"].imputed > 0) is bool(base_rows)
    assert found["shout"].imputed > 0
