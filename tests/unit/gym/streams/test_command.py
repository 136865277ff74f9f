"""The command replays drawn exploits, honest streams and files of others, and writes every outcome."""

import json
import sys

import pytest

from gym.streams import command, runs
from gym.streams.outcomes import load
from gym.streams.scores import Model

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
