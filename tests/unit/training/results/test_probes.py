"""`export.probes`, and `--probes` of rewardserve export: a line that is no sample is told by its number, with what is wrong."""

from __future__ import annotations

import json

import pytest

from rewardserve.model import export as tool
from rewardserve.model.conversation import SampleError
from rewardserve.training.results.export import read_probes
from rewardserve.training.settings.validation import ConfigError

GOOD = json.dumps({"prompt": "a", "response": "b"})
BAD = {
    "{": "line 3: ",
    "[1]": "line 3: a sample is an object, got list",
    '"text"': "line 3: a sample is an object, got str",
    '{"messages": [{"role": "user"}]}': "line 3: messages[0].content is missing",
    '{"messages": 3}': "line 3: messages must be a list, not a whole number",
    '{"prompt": [1], "response": "b"}': "line 3: prompt[0] must be an object, not a whole number",
    '{"prompt": 1, "response": "b"}': "line 3: prompt must be a text, not a whole number",
    '{"prompt": "a", "response": 5}': "line 3: response must be a text, not a whole number",
    '{"prompt": "a", "response": "b", "finish_reason": 1}': "line 3: finish_reason must be one of stop, length, not 1",
    '{"input_ids": 3}': "line 3: input_ids must be a list, not a whole number",
    '{"input_ids": ["a"]}': "line 3: input_ids[0] must be a whole number, not a text",
    '{"response": "b"}': "line 3: ",
    '{"promt": "a", "response": "b"}': "line 3: ",
}


@pytest.mark.parametrize("line", BAD)
def test_a_line_that_is_no_sample_is_told_by_its_number(tmp_path, line):
    path = tmp_path / "probes.jsonl"
    path.write_text(f"{GOOD}\n\n{line}\n{GOOD}\n")
    with pytest.raises(ConfigError) as error:
        read_probes(path)
    assert f"export.probes: {path}, {BAD[line]}" in str(error.value)
    with pytest.raises((ValueError, SampleError)) as error:
        tool.read_samples(path)
    assert f"{path}, {BAD[line]}" in str(error.value)


def test_good_lines_are_samples(tmp_path):
    path = tmp_path / "probes.jsonl"
    path.write_text(f"\ufeff{GOOD}\n\n{GOOD}")
    assert read_probes(path) == tool.read_samples(path)
    assert [(sample.prompt, sample.response) for sample in read_probes(path)] == [("a", "b")] * 2
