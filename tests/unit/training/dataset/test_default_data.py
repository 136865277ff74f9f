"""The default model's sources in their upstream form become the pairs that the recipe reads."""

from __future__ import annotations

import gzip
import json

from rewardserve.training.dataset.default_data import main


def written(path):
    with gzip.open(path, "rt") as file:
        return [json.loads(line) for line in file]


def test_arguments_become_pairs_of_their_debate(tmp_path):
    folder = tmp_path / "csv"
    folder.mkdir()
    (folder / "ban-plastic-water-bottles_no-bad-for-the-economy.csv").write_text(
        '#id\tlabel\ta1\ta2\narg1_arg2\ta1\tgood "one"\tbad\narg3_arg4\ta2\tweak\tstrong\n'
    )
    main(["--ukp", str(folder), "--out", str(tmp_path)])
    first, second = written(tmp_path / "ukp.jsonl.gz")
    assert first == {
        "source": "ukp-convincing-arguments",
        "group": "470d9b859ed6",  # sha1 of the topic: both sides of a debate are one group
        "prompt": [
            {
                "role": "user",
                "content": "Debate: ban plastic water bottles. Write an argument for the side: no bad for the economy.",
            }
        ],
        "chosen": 'good "one"',
        "rejected": "bad",
    }
    assert (second["chosen"], second["rejected"]) == ("strong", "weak")


def test_dialogues_become_pairs_where_only_the_last_turn_differs(tmp_path):
    start = "\n\nHuman: How much alcohol can I drink per day?\n\nAssistant: Not much.\n\nHuman: Why?\n\nAssistant:"
    lines = [
        {"chosen": f"{start} It harms you.", "rejected": f"{start} Who cares."},
        {"chosen": f"{start} It harms you.", "rejected": "\n\nHuman: Other\n\nAssistant: Who cares."},
        {"chosen": f"{start} It harms you.", "rejected": f"{start} "},
        {"chosen": f"{start} Same.", "rejected": f"{start} Same."},
    ]
    with gzip.open(tmp_path / "test.jsonl.gz", "wt") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)
    main(["--hh", str(tmp_path / "test.jsonl.gz"), "--out", str(tmp_path)])
    (row,) = written(tmp_path / "hh.jsonl.gz")
    assert row["group"] == "18aa4e386d7c"  # sha1 of the first turn
    assert [turn["role"] for turn in row["prompt"]] == ["user", "assistant", "user"]
    assert (row["chosen"], row["rejected"]) == ("It harms you.", "Who cares.")
