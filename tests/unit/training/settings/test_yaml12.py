"""YAML values are those of the core schema of YAML 1.2 (chapter 10.3), and what is written is read back."""

from __future__ import annotations

import math

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from rewardserve.training.settings import recipe, yaml12
from rewardserve.training.settings.validation import ConfigError

MINIMAL = "model: {path: m}\ndata: {sources: [{path: a.jsonl}]}\noutput: {folder: o}\n"

CORE = {
    # null
    "": None, "~": None, "null": None, "Null": None, "NULL": None,
    # bool
    "true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False,
    # int
    "0": 0, "7": 7, "-19": -19, "+12": 12, "010": 10, "0o10": 8, "0x10": 16, "0xFf": 255, "00": 0,
    # float
    "0.": 0.0, "-0.0": 0.0, ".5": 0.5, "+12e03": 12e3, "-2E+05": -2e5, "1e-5": 1e-5, "1E5": 1e5, "3e-05": 3e-5, "1.e3": 1e3,
    ".inf": math.inf, "-.Inf": -math.inf, "+.INF": math.inf,
}  # fmt: skip
TEXTS = [
    "yes", "No", "on", "OFF", "y", "n", "1:30", "190:20:30.15", "1_0", "0b101", "1_000.5", "2001-12-14",
    "2001-12-14t21:59:43.10-05:00", "0o18", "-0x1", "0x", "nan", "inf", "-.nan", ".", "e5", "+", "nULL", "tRUE", "=", "1e", "0xg",
    "１", "٣",
]  # fmt: skip
"""Of most of these YAML 1.1 makes something else."""
CORE |= {text: text for text in TEXTS}


@pytest.mark.parametrize("text", CORE)
def test_a_plain_scalar_is_what_the_core_schema_says(text):
    value = yaml12.load(text)
    assert (value, type(value)) == (CORE[text], type(CORE[text]))


def test_not_a_number_is_one_word_in_three_cases():
    assert all(math.isnan(yaml12.load(text)) for text in (".nan", ".NaN", ".NAN"))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('"010"', "010"), ("'yes'", "yes"), ("!!str 010", "010"), ("!!int 010", 10), ("!!int 0o10", 8), ("!!float 1", 1.0),
        ("!!float 1e3", 1000.0), ("!!bool True", True), ("|\n 010\n", "010\n"), ("[010, no, 1e3]", [10, "no", 1e3]),
        ("{on: off}", {"on": "off"}),
    ],
)  # fmt: skip
def test_quotes_and_tags_decide(text, value):
    found = yaml12.load(text)
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize(
    "text",
    [
        "!!int yes", "!!int 1_0", "!!int 1:30", "!!float yes", "!!bool yes", "!!bool on", "!!null x", "!!timestamp 2001-12-14",
        "!!binary aGk=", "!!set {a, b}", "!!omap [a: 1]", "!!python/name:os.system", "!own x", "a: 1\na: 2", "{1: a, 0x1: b}",
        "[" * 5000, "a: &a [*a]: 1", "9" * 5000, "0x" + "f" * 5000,
    ],
)  # fmt: skip
def test_what_the_core_schema_does_not_have_is_refused(text):
    with pytest.raises((yaml.YAMLError, ValueError, RecursionError)):
        yaml12.load(text)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.sampled_from(list(CORE)),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text() | st.sampled_from(list(CORE)), inner, max_size=3),
        max_leaves=8,
    )
)  # fmt: skip
def test_what_is_written_is_read_back_and_texts_also_by_readers_of_yaml_1_1(value):
    text = yaml12.dump(value)
    assert yaml12.load(text) == value
    if isinstance(value, str):
        assert yaml.safe_load(text) == value


def seed_of(tmp_path, text, how):
    if how == "set":
        return recipe.parse(yaml12.load(MINIMAL), [f"seed={text}"]).seed
    if how == "set in a mapping":
        return recipe.parse(yaml12.load(MINIMAL), [f"optim={{accumulate: {text}}}"]).optim.accumulate
    (tmp_path / "r.yaml").write_text(f"{MINIMAL}seed: {text}\n")
    return recipe.load(tmp_path / "r.yaml").seed


@pytest.mark.parametrize("how", ["file", "set", "set in a mapping"])
def test_numbers_of_a_recipe_are_read_alike_on_every_way(tmp_path, how):
    assert [seed_of(tmp_path, text, how) for text in ("010", "0o10", "0x10", "+7")] == [10, 8, 16, 7]
    for text in ("1:30", "1_0", "0b11", "2001-12-14", '"7"', "1e3", "7.0", "yes"):
        with pytest.raises(
            ConfigError, match=r"(seed|accumulate) is .*; it must be of type int \(a whole number, as 12\)"
        ):
            seed_of(tmp_path, text, how)


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("output.resume=yes", "output.resume is 'yes'; it must be of type bool (true or false)"),
        ("output.resume=on", "output.resume is 'on'; it must be of type bool (true or false)"),
        ("output.resume=1", "output.resume is 1; it must be of type bool (true or false)"),
        ("optim.lr=1_0", "optim.lr is '1_0'; it must be of type float (a number, as 0.001 or 1e-3)"),
        ('optim.lr="1e-5"', "optim.lr is '1e-5'; it must be of type float (a number, as 0.001 or 1e-3)"),
        ("optim.lr=1:30", "optim.lr is '1:30'; it must be of type float"),
        ("data.salt=010", "data.salt is 10; it must be of type str (text: put it in quotes)"),
        ("data.salt=1e5", "data.salt is 100000.0; it must be of type str (text: put it in quotes)"),
        ("data.salt=true", "data.salt is True; it must be of type str (text: put it in quotes)"),
        ("optim.precision=false", "optim.precision is False; it must be one of no, bf16, fp16"),
        ("optim.lr=true", "optim.lr is True; it must be of type float"),
    ],
)
def test_a_value_of_another_type_is_refused_with_how_to_write_it(override, says):
    with pytest.raises(ConfigError) as refused:
        recipe.parse(yaml12.load(MINIMAL), [override])
    assert says in str(refused.value)


@pytest.mark.parametrize(
    ("override", "read"),
    [
        ("optim.lr=1e-5", lambda c: c.optim.lr == 1e-5), ("optim.precision=no", lambda c: c.optim.precision == "no"),
        ("data.salt=2001-12-14", lambda c: c.data.salt == "2001-12-14"), ("data.salt=yes", lambda c: c.data.salt == "yes"),
        ("data.sources.0.split=on", lambda c: c.data.sources[0].split == "on"), ("data.salt=1:30", lambda c: c.data.salt == "1:30"),
        ("model={path: m, heads: [yes, no]}", lambda c: c.model.heads == ("yes", "no")),
        ("optim.lr=1", lambda c: c.optim.lr == 1.0),
    ],
)  # fmt: skip
def test_words_and_dates_are_text(override, read):
    assert read(recipe.parse(yaml12.load(MINIMAL), [override]))


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_a_recipe_is_read_in_every_encoding_that_its_mark_tells(tmp_path, encoding):
    (tmp_path / "r.yaml").write_bytes(f"{MINIMAL}seed: 010 # né\n".encode(encoding))
    assert recipe.load(tmp_path / "r.yaml").seed == 10
