"""Texts of benchmarks: from every row of a folder that is a preference pair."""

from __future__ import annotations

import json

from benchmarks.texts import samples


def test_rows_that_are_no_pairs_are_left_out(tmp_path):
    pair = {"prompt": "q", "chosen": "good", "rejected": "bad"}
    rows = [pair, {"prompt": "q", "responses": ["good", "bad"], "ranks": [1, 2]}, {**pair, "rejected": None}]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert sorted(each["response"] for each in samples(tmp_path, 3)) == ["bad", "good", "good"]
