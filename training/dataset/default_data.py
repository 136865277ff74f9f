"""Convert the upstream files of the default model's two sources to preference files for `rewardserve train`.

    python -m rewardserve.training.dataset.default_data --ukp UKPConvArg1Strict-CSV --hh harmless-base/test.jsonl.gz --out data

Sources: github.com/UKPLab/acl2016-convincing-arguments (data/UKPConvArg1Strict-CSV, CC-BY 4.0) and the data set
Anthropic/hh-rlhf (harmless-base/test.jsonl.gz, MIT; it contains offensive text). Downloads nothing.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Row = dict[str, Any]
_TURN = re.compile(r"\n\n(Human|Assistant): ?")
_ROLES = {"Human": "user", "Assistant": "assistant"}


def main(argv: list[str] | None = None) -> None:
    """Write `ukp.jsonl.gz` and `hh.jsonl.gz` for the given sources."""
    parser = argparse.ArgumentParser(description="Convert the upstream files of the default model to preference files.")
    parser.add_argument("--ukp", type=Path, help="folder UKPConvArg1Strict-CSV")
    parser.add_argument("--hh", type=Path, help="harmless-base/test.jsonl.gz")
    parser.add_argument("--out", type=Path, default=Path("data"))
    given = parser.parse_args(argv)
    given.out.mkdir(parents=True, exist_ok=True)
    for name, rows in (("ukp", given.ukp and ukp(given.ukp)), ("hh", given.hh and hh(given.hh))):
        if rows:
            print(f"{name}: {_write(given.out / f'{name}.jsonl.gz', rows)} pairs")


def ukp(folder: Path) -> Iterator[Row]:
    """Pairs of arguments for one side of a debate; the file's name is `topic_side.csv`. A topic is a group."""
    for path in sorted(folder.glob("*.csv")):
        topic, _, side = path.stem.partition("_")
        prompt = f"Debate: {topic.replace('-', ' ')}. Write an argument for the side: {side.replace('-', ' ')}."
        with path.open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE):
                better, worse = ("a1", "a2") if row["label"] == "a1" else ("a2", "a1")
                yield _row("ukp-convincing-arguments", topic, [_user(prompt)], row[better], row[worse])


def hh(path: Path) -> Iterator[Row]:
    """Pairs of dialogues that differ in their last turn alone. Dialogues with the same beginning are a group."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        for line in file:
            pair = json.loads(line)
            (prompt, chosen), (other, rejected) = (_dialogue(pair[side]) for side in ("chosen", "rejected"))
            if prompt == other and prompt and chosen and rejected and chosen != rejected:
                yield _row("hh-rlhf-harmless-test", prompt[0]["content"], prompt, chosen, rejected)


def _dialogue(text: str) -> tuple[list[dict[str, str]], str]:
    """Turns before the last one, and the text of the last one; the text is empty if the last turn is not the assistant's."""
    parts = _TURN.split(text)[1:]
    turns = [
        {"role": _ROLES[who], "content": content.strip()} for who, content in zip(parts[::2], parts[1::2], strict=True)
    ]
    if not turns or turns[-1]["role"] != "assistant":
        return turns, ""
    return turns[:-1], turns[-1]["content"]


def _user(content: str) -> dict[str, str]:
    return {"role": "user", "content": content}


def _row(source: str, of_group: str, prompt: list[dict[str, str]], chosen: str, rejected: str) -> Row:
    group = hashlib.sha1(of_group.encode(), usedforsecurity=False).hexdigest()[:12]
    return {"source": source, "group": group, "prompt": prompt, "chosen": chosen, "rejected": rejected}


def _write(path: Path, rows: Iterator[Row]) -> int:
    n = 0
    with gzip.open(path, "wt", encoding="utf-8") as file:
        for n, row in enumerate(rows, start=1):  # noqa: B007  (counted after the loop)
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    return n


if __name__ == "__main__":
    main()
