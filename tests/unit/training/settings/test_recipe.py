"""Reading recipes: what is wrong is named, with the nearest right name."""

from __future__ import annotations

import dataclasses
import math
import re
import typing
from pathlib import Path

import pytest
import yaml

from rewardserve.training.settings import recipe, yaml12
from rewardserve.training.settings.config import Config
from rewardserve.training.settings.data_config import SourceConfig
from rewardserve.training.settings.optim_config import StageConfig
from rewardserve.training.settings.validation import RANGES, ConfigError

MINIMAL = {"model": {"path": "m"}, "data": {"sources": [{"path": "a.jsonl"}]}, "output": {"folder": "o"}}


def test_a_minimal_recipe_has_defaults_everywhere_else():
    config = recipe.parse(MINIMAL)
    assert isinstance(config, Config)
    assert config.optim.batching == "shuffled"
    assert config.data.sources[0].prompt_key == "prompt"


@pytest.mark.parametrize(
    ("override", "read"),
    [
        ("optim.lr=1e-4", lambda c: c.optim.lr == 1e-4),
        ("optim.lr=3e-05", lambda c: c.optim.lr == 3e-5),
        ("seed=7", lambda c: c.seed == 7),
        ("data.sources.0.weight=2", lambda c: c.data.sources[0].weight == 2.0),
        ("method={name: lora, layers: [1, 2]}", lambda c: c.method.layers == (1, 2)),
        ("optim.precision=no", lambda c: c.optim.precision == "no"),
        ("data.sources.0.max_pairs=null", lambda c: c.data.sources[0].max_pairs is None),
        ("model.heads=[a, b]", lambda c: c.model.weight_of_head == (1.0, 1.0)),
        ("model.heads=[a, b]", lambda c: c.model.l2_of_head == ()),
        ("model={path: m, heads: [a, b], head_init: logistic, head_l2: 2}", lambda c: c.model.l2_of_head == (2.0, 2.0)),
        (
            "model={path: m, heads: [a, b], head_init: logistic, head_l2: [2, 1e-3]}",
            lambda c: c.model.l2_of_head == (2, 0.001),
        ),
    ],
)
def test_set_overrides_a_nested_key(override, read):
    assert read(recipe.parse(MINIMAL, [override]))


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("optim.learning_rate=1", "did you mean 'optim.lr'?"),
        ("optim.max_tokens=1", "did you mean 'encoding.max_tokens'?"),
        ("optim.zzz=1", "unknown setting 'optim.zzz'. Known here: lr, "),
        ("method.name=lroa", "it must be one of full, lora, frozen; did you mean lora?"),
        ("data.on_bad_row=skipp", "it must be one of raise, skip; did you mean skip?"),
        ("optim.epoch=1", "did you mean 'optim.epochs'"),
        ("optm.lr=1", "did you mean 'optim'"),
        ("optim.lr=fast", "optim.lr is 'fast'; it must be of type float"),
        ("optim.lr=-1", "optim.lr is -1.0; it must be above 0 and at most 100"),
        ("optim.accumulate=1.5", "of type int"),
        ("seed=true", "of type int"),
        ("method.name=qlora", "one of full, lora, frozen"),
        ("data.eval_fraction=1", "data.eval_fraction is 1.0"),
        ("data.sources.3.path=x", "is a list of 1"),
        ("data.sources.0.head=other", "model.heads are"),
        ("optim", "write key=value"),
        ("model.path.deeper=1", "has no parts"),
        ("model.head_weights=[1, 2]", "one a head"),
        ("model.heads=[a, a]", "names that differ"),
        ("model.heads=[a, distance]", "it is taken"),
        ("model.heads=['']", "names, none of them blank"),
        ("model.heads=[a, ' ']", "names, none of them blank"),
        ("data.eval_sources.1.path=x", "unknown setting 'data.eval_sources.0.1'"),
        ("model.head_l2=[1, 2]", "model.head_l2 is (1.0, 2.0); it must be empty, one number"),
        ("model.head_l2=0", "above 0"),
        ("optim.epochs=0", "no weight would be trained"),
        ("optim.epochs=-1", "at least 0"),
        ("optim={epochs: 0, max_steps: 5}", "left out with epochs: 0"),
    ],
)
def test_what_is_wrong_is_named(override, says):
    with pytest.raises(ConfigError, match=re.escape(says)):
        recipe.parse(MINIMAL, [override])


NO_STEPS = ("method.name=frozen", "model.head_init=logistic", "optim.epochs=0")


def test_the_first_of_a_list_that_a_recipe_does_not_have_is_set_by_its_number():
    overrides = ["data.eval_sources.0.path=test.jsonl", "data.eval_sources.0.split=test"]
    (source,) = recipe.parse(MINIMAL, overrides).data.eval_sources
    assert (source.path, source.split) == ("test.jsonl", "test")
    data_only = {k: v for k, v in MINIMAL.items() if k != "data"}
    assert recipe.parse(data_only, ["data.sources.0.path=x"]).data.sources[0].path == "x"


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        *((["method.name=full", f"method.{name}"], f"method.{name.partition('=')[0]} ") for name in (
            "rank=8", "alpha=16", "dropout=0.1", "targets=[q_proj]", "layers=[1]")),
        (["method.name=frozen", "method.rank=8"], "has no effect with method.name other than lora; leave it out"),
        (["model.start=reward", "model.n_layers=3"], "model.n_layers is 3, which has no effect with model.start: reward"),
        (["model.head_l2=2"], "has no effect with model.head_init: random"),
        (["optim.schedule=constant", "optim.warmup=10"], "optim.warmup is 10.0, which has no effect with optim.schedule: constant"),
        (["optim.batching=grouped", "optim.batch_pairs=4"], "which has no effect with optim.batching: grouped"),
        (["optim.batch_sequences=8"], "optim.batch_sequences is 8, which has no effect with optim.batching: shuffled"),
        (["method.name=frozen", "optim.precision=bf16"], "optim.precision is 'bf16', which has no effect with method.name: frozen"),
        (["data.sources.0.context=prepend", "data.sources.0.context_key=null"], "context: prepend"),
        (["data.sources.0.context_key=passages"], "which has no effect with context: ignore"),
        (["optim.max_steps=10", "optim.warmup=10"], "optim.warmup is 10 steps, and the run has 10"),
        (["optim.max_steps=10", "optim.warmup=500"], "the learning rate would never reach optim.lr"),
        *(([*NO_STEPS, override], "which has no effect with optim.epochs: 0, which takes no step; leave it out") for override in (
            "optim.lr=1e-3", "optim.ema=0.9", "optim.accumulate=2", "loss.centring=0.1", "loss.name=logexp")),
    ],
)  # fmt: skip
def test_a_setting_that_would_do_nothing_is_refused(overrides, says):
    with pytest.raises(ConfigError) as refused:
        recipe.parse(MINIMAL, overrides)
    assert says in str(refused.value)


@pytest.mark.parametrize(
    "overrides",
    [
        ["method.name=lora", "method.rank=8", "method.layers=[1]"],
        ["optim.schedule=constant_with_warmup", "optim.warmup=10"],
        ["optim.batching=grouped", "optim.batch_sequences=8"],
        ["data.eval_sources=[{path: b}]", "data.eval_fraction=0.2"],
        ["optim.max_steps=10", "optim.warmup=9"],
        ["optim.max_steps=1", "optim.warmup=0.03"],
    ],
)
def test_a_setting_that_does_something_is_not(overrides):
    recipe.parse(MINIMAL, overrides)


def numbers():
    """Every numeric setting: its full name as `--set` takes it, and its place in `RANGES`."""

    def walk(kind, where, key):
        for f in dataclasses.fields(kind):
            hint = typing.get_type_hints(kind)[f.name]
            kinds = [hint, *typing.get_args(hint)]
            inner = next((k for k in kinds if dataclasses.is_dataclass(k)), None)
            place, name = f"{where}.{f.name}".lstrip("."), f"{key}.{f.name}".lstrip(".")
            if inner is SourceConfig:
                yield from walk(inner, f"{place}.0", "data.sources") if place == "data.sources" else ()
            elif inner is StageConfig or (inner and where == "audit_judge"):
                continue  # its sections are those of the recipe
            elif inner:
                yield from walk(inner, place, name)
            elif int in kinds or float in kinds:
                yield place, name

    return list(walk(Config, "", ""))


def test_every_number_of_a_recipe_has_a_range():
    assert {key for _, key in numbers()} == set(RANGES)
    assert all(math.isfinite(r.low) and math.isfinite(r.high) for r in RANGES.values())


@pytest.mark.parametrize(("place", "key"), numbers())
@pytest.mark.parametrize(
    "value", [".inf", "-.inf", ".nan", "-1", "0", "-0.0", "1e308", "1e400", "9" * 400, "9" * 5000, "1e-320"]
)
def test_an_absurd_number_is_refused_in_words_or_is_in_its_range(place, key, value):
    """A run never starts with a number that breaks it later."""
    try:
        needed = ["counterexamples.path=queue.jsonl"] * place.startswith("counterexamples.")
        config = recipe.parse(MINIMAL, [*needed, f"{place}={value}"])
    except ConfigError as error:
        message = str(error)
        assert len(message) < 400
        assert place.rpartition(".")[2] in message or "not a YAML value" in message
    else:
        for part in place.split("."):
            config = config[int(part)] if part.isdecimal() else getattr(config, part)
        for number in config if isinstance(config, tuple) else (config,):
            assert number is None or number in RANGES[key]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("optim: {lr: 1}\nmodel: {path: m}\noptim: {lr: 2}", "'optim' occurs twice"),
        ("optim:\n  lr: 1\n  epochs: 2\n  lr: 2\n", "line 4"),
        ("data: {sources: [{path: a, path: b}]}", "'path' occurs twice"),
        ("a: [1", "bad.yaml, line 1, column 6, is not a recipe: expected ',' or ']', but got the end"),
        ("model:\n\tpath: m", "bad.yaml, line 2, column 1, is not a recipe: a tab; indent with spaces"),
        ("model:\n  path: m\n bad: 1", "bad.yaml, line 3, column 2, is not a recipe: the indentation differs from"),
        ("a: 1\n---\nb: 1", "bad.yaml, line 2, column 1, is not a recipe: a second document begins here"),
        ("model: {path: m}\nmodl: 1", "bad.yaml, line 2: unknown setting 'modl'; did you mean 'model'?"),
        (
            "model: {path: m}\noptim:\n  epochs: 1\n  lr: fast\ndata: {sources: [{path: a}]}\noutput: {folder: o}",
            "bad.yaml, line 4: optim.lr is 'fast'",
        ),
        (
            "data:\n  sources:\n  - path: a\n  - pth: b\nmodel: {path: m}\noutput: {folder: o}",
            "bad.yaml, line 4: unknown setting 'data.sources.1.pth'",
        ),
        ("model: {path: m}", "bad.yaml: data is missing"),
        (
            "data: {sources: [{path: a}]}\nmodel:\n  dtype: auto\noutput: {folder: o}",
            "bad.yaml, line 2: model.path is missing",
        ),
        ("# a comment", "bad.yaml: the recipe is empty; it must be a mapping of sections: model, data, "),
        ("- a", "bad.yaml: the recipe is a list"),
        ("a\0b", "bad.yaml is not a recipe: it contains the control character #x00"),
        ("[" * 5000, "nested too deeply"),
        ("seed: " + "9" * 5000, "is not a recipe"),
        ("{[a]: b}", "unhashable"),
        ("- a", "mapping of sections"),
        ("", "mapping of sections"),
        ("just words", "mapping of sections"),
        ('model: {path: "a\\0b"}\ndata: {sources: [{path: a}]}\noutput: {folder: o}', "model.path is 'a\\x00b'"),
        ('model: {path: "\\ud800"}\ndata: {sources: [{path: a}]}\noutput: {folder: o}', "text cannot contain"),
    ],
)
def test_a_file_that_is_no_recipe_is_refused_in_one_line(text, says, tmp_path):
    (tmp_path / "bad.yaml").write_text(text)
    with pytest.raises(ConfigError) as caught:
        recipe.load(tmp_path / "bad.yaml")
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "<unicode string>" not in str(caught.value)


@pytest.mark.parametrize("data", [b"\xff\xfe\x00", b"model: caf\xe9", b"\x80", b"a\x00b"])
def test_bytes_that_are_no_text_are_no_recipe(data, tmp_path):
    (tmp_path / "bad.yaml").write_bytes(data)
    with pytest.raises(ConfigError, match=r"bad\.yaml|mapping of sections"):
        recipe.load(tmp_path / "bad.yaml")


def test_a_byte_order_mark_and_a_merged_mapping_are_read(tmp_path):
    plain = yaml.safe_dump(MINIMAL)
    (tmp_path / "r.yaml").write_bytes(b"\xef\xbb\xbf" + plain.encode())
    assert recipe.load(tmp_path / "r.yaml").model.path == "m"
    (tmp_path / "r.yaml").write_text(f"{plain}method: {{name: lora, rank: 3}}\neval: {{<<: {{steps: 5}}, steps: 6}}\n")
    assert recipe.load(tmp_path / "r.yaml").eval.steps == 6


@pytest.mark.parametrize(
    "override", ["data.sources.\u00b2.path=x", "a={b: 1, b: 2}", "seed=[", "optim.lr=[[[[1]]]]", ".=1", "=1"]
)
def test_an_override_that_makes_no_sense_is_one_line(override):
    with pytest.raises(ConfigError):
        recipe.parse(MINIMAL, [override])


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("optim.lr=fast", "optim.lr is 'fast'"),
        ("optm.lr=1", "unknown setting 'optm'"),
        ("optim", "--set 'optim'"),
        ("seed=[", "--set: '[' is not a YAML value"),
    ],
)
def test_an_error_of_an_override_does_not_name_the_file(tmp_path, override, says):
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(MINIMAL))
    with pytest.raises(ConfigError) as caught:
        recipe.load(tmp_path / "r.yaml", [override])
    assert str(caught.value).startswith(says)
    assert "<unicode string>" not in str(caught.value)


@pytest.mark.parametrize("missing", ["model", "data", "output"])
def test_a_missing_section_is_named(missing):
    with pytest.raises(ConfigError, match=f"{missing} is missing"):
        recipe.parse({k: v for k, v in MINIMAL.items() if k != missing})


def test_an_unreadable_file_is_an_error_that_names_it(tmp_path):
    with pytest.raises(ConfigError, match=r"gone\.yaml"):
        recipe.load(tmp_path / "gone.yaml")
    (tmp_path / "bad.yaml").write_text("a: [1")
    with pytest.raises(ConfigError, match=r"bad\.yaml"):
        recipe.load(tmp_path / "bad.yaml")


def test_plain_goes_back_into_the_same_config():
    config = recipe.parse(MINIMAL, ["optim.lr=1e-4", "model.heads=[a, b]"])
    assert recipe.parse(yaml12.load(yaml12.dump(recipe.plain(config)))) == config


@pytest.mark.parametrize(
    "path", sorted((Path(__file__).parents[4] / "training" / "recipes").glob("*.yaml")), ids=lambda p: p.stem
)
def test_every_shipped_recipe_reads(path):
    assert recipe.load(path).model.path


@pytest.mark.parametrize("typed", ["lroa.yaml", "lora", "training/recipes/lora.yml"])
def test_a_missing_recipe_suggests_one_that_is_shipped(tmp_path, typed):
    with pytest.raises(ConfigError, match=r"No such file or directory; did you mean \S*recipes/lora\.yaml\?"):
        recipe.load(tmp_path / typed)


def test_a_missing_recipe_suggests_the_one_beside_it(tmp_path):
    (tmp_path / "lora2.yaml").write_text("")
    with pytest.raises(ConfigError, match=f"did you mean {tmp_path}/lora2.yaml"):
        recipe.load(tmp_path / "lora3.yaml")


@pytest.mark.parametrize("typed", ["xyzzy.yaml", "nope.yaml", "mine.yml", "nope"])
def test_an_unlike_name_names_the_folder_of_those_that_are_shipped(tmp_path, typed):
    with pytest.raises(ConfigError, match=r"The shipped recipes are in \S+recipes$"):
        recipe.load(tmp_path / typed)
