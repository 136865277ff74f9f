"""Reading recipes: what is wrong is named, with the nearest right name."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from training import recipe
from training.config import Config, ConfigError

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
        ("method.layers=[1, 2]", lambda c: c.method.layers == (1, 2)),
        ("optim.precision=no", lambda c: c.optim.precision == "no"),
        ("data.sources.0.max_pairs=null", lambda c: c.data.sources[0].max_pairs is None),
        ("model.heads=[a, b]", lambda c: c.model.weight_of_head == (1.0, 1.0)),
        ("model.heads=[a, b]", lambda c: c.model.l2_of_head == (0.1, 0.1)),
        ("model={path: m, heads: [a, b], head_l2: 2}", lambda c: c.model.l2_of_head == (2.0, 2.0)),
        ("model={path: m, heads: [a, b], head_l2: [2, 1e-3]}", lambda c: c.model.l2_of_head == (2.0, 0.001)),
    ],
)
def test_set_overrides_a_nested_key(override, read):
    assert read(recipe.parse(MINIMAL, [override]))


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("optim.learning_rat=1", "did you mean 'optim."),
        ("optim.epoch=1", "did you mean 'optim.epochs'"),
        ("optm.lr=1", "did you mean 'optim'"),
        ("optim.lr=fast", "optim.lr is 'fast'; it must be of type float"),
        ("optim.lr=-1", "optim.lr is -1.0; it must be above zero"),
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
        ("model.head_l2=[1, 2]", "model.head_l2 is (1.0, 2.0); it must be one number"),
        ("model.head_l2=0", "above zero"),
        ("optim.epochs=0", "nothing would be learnt"),
        ("optim.epochs=-1", "zero or above"),
        ("optim={epochs: 0, max_steps: 5}", "left out with epochs: 0"),
    ],
)
def test_what_is_wrong_is_named(override, says):
    with pytest.raises(ConfigError, match=re.escape(says)):
        recipe.parse(MINIMAL, [override])


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
    assert (
        recipe.parse(
            yaml.safe_load(yaml.safe_dump(recipe.plain(config), sort_keys=False).replace("!!python/tuple", ""))
        )
        == config
    )


@pytest.mark.parametrize(
    "path", sorted((Path(__file__).parents[3] / "training" / "recipes").glob("*.yaml")), ids=lambda p: p.stem
)
def test_every_shipped_recipe_reads(path):
    assert recipe.load(path).model.path
