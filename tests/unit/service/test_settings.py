"""What an operator can set, and how it is said when it makes no sense."""

from __future__ import annotations

import pytest
from pydantic import ValidationError
from pydantic_settings import SettingsError

from rewardserve.compare.command import CompareSettings
from rewardserve.model.backends import ModelSpec
from rewardserve.model.reward import CombineSettings, PenaltySettings, RewardSettings
from rewardserve.model.text.nearest_word import CUTOFF_OF_NAMES, nearest_word
from rewardserve.service.cli.options import from_command_line, options_of, unknown_variables
from rewardserve.service.settings import (
    ScoreSettings,
    ServeSettings,
    is_loopback,
)


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch):
    import os

    for name in [n for n in os.environ if n.startswith("REWARD_")]:
        monkeypatch.delenv(name)


def parsed(*flags):
    return from_command_line(ServeSettings, "rewardserve serve", flags)


def complaint(capsys, *flags, settings=ServeSettings):
    with pytest.raises(SystemExit) as end:
        from_command_line(settings, "rewardserve serve", flags)
    assert end.value.code == 2
    return capsys.readouterr().err


def test_the_defaults_are_those_of_the_design():
    s = parsed()
    assert (s.host, s.port, s.backend, s.engine, s.contract_mode) == ("127.0.0.1", 8000, "torch", "auto", "strict")
    assert (s.batching.max_tokens, s.batching.linger_ms, s.overload_status) == (None, 2.0, 503)
    assert (s.cache.scores, s.cache.prefix_mib) == (65_536, 256)
    assert s.model_spec() == ModelSpec(prefix_cache_bytes=256 * 2**20)
    assert s.reward_settings() == RewardSettings()
    assert (s.max_body_bytes, s.max_body_bytes_in_flight, s.body_timeout_s) == (64 * 2**20, 256 * 2**20, 30.0)


def test_flags_and_environment_say_the_same_and_flags_win(monkeypatch):
    monkeypatch.setenv("REWARD_BATCHING__MAX_TOKENS", "4096")
    monkeypatch.setenv("REWARD_ADMISSION__MAX_SAMPLES", "5000")
    monkeypatch.setenv("REWARD_NORMALIZE", "off")
    monkeypatch.setenv("REWARD_OVERLOAD_STATUS", "429")
    monkeypatch.setenv("REWARD_PORT", "1")
    s = parsed("--batching.max-tokens", "512", "--contract-mode=warn", "--port=2")
    assert (s.batching.max_tokens, s.admission.max_samples, s.normalize, s.overload_status) == (512, 5000, False, 429)
    assert (s.contract_mode, s.port) == ("warn", 2)


def test_how_the_model_runs_is_handed_on_to_the_backend(monkeypatch):
    monkeypatch.setenv("REWARD_DETERMINISTIC", "1")
    monkeypatch.setenv("REWARD_CACHE__PREFIX_MIB", "3")
    spec = parsed("--engine=packed", "--matmul-precision=highest").model_spec()
    assert (spec.engine, spec.matmul_precision) == ("packed", "highest")
    assert (spec.deterministic, spec.prefix_cache_bytes) == (True, 3 * 2**20)


def test_underscores_in_flags_are_as_good_as_hyphens():
    assert parsed("--max_input_tokens=7", "--batching.max_tokens=8").batching.max_tokens == 8


def test_on_and_off_are_understood():
    assert [parsed(f"--normalize={word}").normalize for word in ("on", "off")] == [True, False]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--port=x"], "--port: must be a whole number, not 'x'"),
        (["--port=70000"], "--port: must be at most 65,535, not '70000'"),
        (["--batching.linger-ms=-1"], "--batching.linger-ms: must be at least 0.0, not '-1'"),
        (["--device=tpu"], "--device: must be auto, cpu, cuda or cuda:N, not 'tpu'\n"),
        (["--device=gpu"], "not 'gpu'; did you mean cuda?"),
        (["--device=GPU:1"], "not 'GPU:1'; did you mean cuda:1?"),
        (["--device="], "must be auto, cpu, cuda or cuda:N, not ''"),
        (["--device=cuda:0\n"], "must be auto, cpu, cuda or cuda:N"),
        (["--cap-low=nan"], "--cap-low: must be a finite number, not 'nan'"),
        (
            ["--shape=none", "--cap-high=1"],
            "--shape=none has no caps, but one is set. Leave out --cap-low and --cap-high",
        ),
        (["--max-samples-per-request=9999"], "Raise --admission.max-samples or lower"),
        (["--max-body-bytes=1000000000"], "--max-body-bytes-in-flight"),
        (["--max-input-tokens=2000000"], "exceeds --admission.max-tokens=1048576"),
        (["--backend=trch"], "--backend: must be one of torch, vllm, echo, not 'trch'; did you mean torch?"),
        (["--engine=pakced"], "--engine: must be one of auto, packed, padded, not 'pakced'; did you mean packed?"),
        (["--normalize=maybe"], "--normalize: must be true or false, not 'maybe'"),
        (["--template-date=2026-02-30"], "--template-date: must be a date of the form YYYY-MM-DD, not '2026-02-30'"),
        (["--batching=3"], "--batching is a section of settings, not one with a value: set --batching.max-tokens,"),
        (["--batching"], "--batching is a section of settings, not one with a value: set --batching.max-tokens,"),
        (['--cache={"scores": 1}'], "--cache is a section of settings, not one with a value: set --cache.scores,"),
        (
            ["--tripwires=off", "model"],
            "--tripwires is a section of settings, not one with a value: set --tripwires.cpu-share,",
        ),
        (["--batchin"], "unrecognized arguments: --batchin\n"),
        (["--penalties.overlong=1"], "set --penalties.overlong-start and --penalties.overlong-end."),
        (["--penalties.overlong=1", "--penalties.overlong-start=3"], "reached: set --penalties.overlong-end."),
        (
            ["--penalties.overlong=1", "--penalties.overlong-start=9", "--penalties.overlong-end=3"],
            "--penalties.overlong-start=9 must be at least 0 and below --penalties.overlong-end=3.",
        ),
        (["--ensemble=a=x,b=y", "--combine.method=sum"], "--combine.method=sum is for the heads of one model"),
        (["--ensemble=a=x,b=y", '--combine.weights={"c": 1}'], "--combine.weights names c; the models are a, b"),
        (["--ensemble=a=x,b=y", '--combine.weights={"a": 0, "b": 0}'], "one weight must be above zero"),
        (['--combine.weights={"a": -1}'], "--combine.weights: a=-1.0: a weight is zero or a positive number"),
        (["--combine.weights=x"], "--combine.weights: must be an object in JSON"),
        (["--cache.scores=-1"], "--cache.scores: must be at least 0"),
        (["--host=192.168.0.1"], "Set --keys-file"),
        (["a", "stray"], "unrecognized arguments: stray"),
    ],
)
def test_what_makes_no_sense_is_said_with_its_remedy(capsys, flags, words):
    assert words in complaint(capsys, *flags)


def test_all_complaints_come_at_once(capsys):
    output = complaint(capsys, "--port=x", "--shape=y")
    assert "--port" in output
    assert "--shape" in output


def test_an_error_names_a_setting_as_it_was_written(capsys, monkeypatch):
    """Flags to a user of flags, variables to one of variables; both where both were written."""
    monkeypatch.setenv("REWARD_CAP_LOW", "2")
    monkeypatch.setenv("REWARD_DTYPE", "flaot32")
    assert complaint(capsys) == (
        "rewardserve serve: REWARD_DTYPE: must be one of auto, float32, bfloat16, float16, not 'flaot32'; did you mean float32?\n"
    )
    assert "serve: REWARD_CAP_LOW=2.0 is not below --cap-high=1.0:" in complaint(capsys, "--dtype=auto", "--cap-high=1")
    monkeypatch.setenv("REWARD_DTYPE", "auto")
    monkeypatch.setenv("REWARD_CAP_HIGH", "1")
    assert "REWARD_CAP_LOW=2.0 is not below REWARD_CAP_HIGH=1.0:" in complaint(capsys)


@pytest.mark.parametrize("settings", [ServeSettings, ScoreSettings])
@pytest.mark.parametrize("value", ["off", "", '{"window": 32}'])
def test_a_variable_of_a_section_is_refused_with_those_of_its_settings(capsys, monkeypatch, settings, value):
    monkeypatch.setenv("REWARD_TRIPWIRES", value)
    output = complaint(capsys, settings=settings)
    words = "REWARD_TRIPWIRES is a section of settings, not one with a value: set REWARD_TRIPWIRES__CPU_SHARE, "
    assert output.startswith(f"rewardserve serve: {words}")


@pytest.mark.parametrize("name", ["REWARD_PROXY", "REWARD_HOME", "REWARD_TRIPWIRES__FOO"])
def test_a_variable_that_shares_no_more_than_its_prefix_suggests_none(name):
    assert nearest_word(name, [option.variable for option in options_of(ServeSettings)], CUTOFF_OF_NAMES) is None


def test_an_unknown_name_in_a_section_suggests_the_nearest(capsys, monkeypatch):
    monkeypatch.setenv("REWARD_BATCHING__MAX_TOKNES", "4")
    monkeypatch.setenv("REWARD_BATCHING__LINGER_MS", "4")
    assert "REWARD_BATCHING__MAX_TOKNES is not a setting; did you mean REWARD_BATCHING__MAX_TOKENS?" in complaint(
        capsys
    )


def test_a_setting_that_is_on_or_off_needs_no_value():
    assert parsed("--allow-pickle", "model").allow_pickle
    assert parsed("--allow-pickle", "model").model == "model"
    assert not parsed("--allow-pickle", "off").allow_pickle
    assert parsed("--port=1", "--allow-pickle").allow_pickle


def test_without_keys_only_this_machine_may_ask_unless_the_operator_says_so(tmp_path):
    keys = tmp_path / "keys"
    keys.write_text("secret\n")
    assert parsed("--host=0.0.0.0", "--allow-unauthenticated=1").allow_unauthenticated
    assert parsed("--host=0.0.0.0", f"--keys-file={keys}").read_keys().find(b"secret") is not None
    assert [is_loopback(h) for h in ("127.0.0.1", "127.9.9.9", "::1", "localhost", "0.0.0.0", "::", "example.org")] == [
        True, True, True, True, False, False, False,
    ]  # fmt: skip


def test_a_keys_file_without_a_key_is_refused(tmp_path):
    keys = tmp_path / "keys"
    keys.write_text("# only a comment\n\n")
    with pytest.raises(SettingsError, match="the file has no key"):
        parsed(f"--keys-file={keys}").read_keys()


def test_an_empty_keys_file_variable_means_none(monkeypatch):
    monkeypatch.setenv("REWARD_KEYS_FILE", "")
    assert parsed().read_keys().keys == ()


@pytest.mark.parametrize(
    "url",
    [
        "hooks.example/services/T0KEN",
        "ftp://hooks.example/T0KEN",
        "http://",
        "http:///T0KEN",
        "http://:80/T0KEN",
        "http://[::1/T0KEN",
        "http://hooks.example:99999/T0KEN",
        "http://hooks.example:0/T0KEN",
        "http://hooks.example:x/T0KEN",
        "http://hooks.example/T0 KEN",
    ],
)
def test_an_address_of_a_webhook_that_no_alert_could_reach_is_refused_at_start_and_not_repeated(capsys, url):
    output = complaint(capsys, f"--webhook-url={url}")
    assert "--webhook-url is not a valid URL" in output
    assert "T0" not in output


@pytest.mark.parametrize(
    "url", ["", "http://a", "https://user:word@hooks.example:8443/x?y=z", "http://[::1]:80/x", "HTTPS://h"]
)
def test_an_address_of_a_webhook_is_taken_as_it_is(url):
    assert parsed(f"--webhook-url={url}").webhook_url == url


def test_metrics_cannot_need_a_key_where_there_is_none(capsys):
    assert "Set --keys-file" in complaint(capsys, "--metrics-key-required=1")


def test_misspelt_variables_are_found():
    environment = {"REWARD_PORTS": "1", "REWARD_PORT": "1", "REWARD_BATCHING__MAX_TOKENS": "1", "HOME": "/"}
    assert unknown_variables(ServeSettings, environment) == ["REWARD_PORTS"]
    unread = {"REWARD_PORT__X": "1", "reward_prot": "1", "REWARD_BATCHIN__MAX_TOKENS": "1"}
    assert unknown_variables(ServeSettings, {**unread, "reward_port": "1"}) == sorted(unread)
    # A wrong name in a section of its own ends the command; `score` has no section `swap`, and shares the environment.
    of_sections = {"REWARD_SWAP__KEEPP": "1", "REWARD_SWAP__KEEP": "1", "REWARD_BATCHING__X": "1"}
    assert unknown_variables(ScoreSettings, of_sections) == ["REWARD_SWAP__KEEPP"]


@pytest.mark.parametrize(
    ("name", "settings", "arguments"),
    [
        ("serve", ServeSettings, []),
        ("score", ScoreSettings, ["in", "out"]),
        ("compare", CompareSettings, ["a", "b", "f"]),
    ],
)
def test_misspelt_variables_are_reported_with_the_nearest_setting(capsys, monkeypatch, name, settings, arguments):
    for variable in ("REWARD_CACHE_SCORES", "REWARD_PORT", "REWARD_QUX"):
        monkeypatch.setenv(variable, "1")
    program = f"rewardserve {name}"
    from_command_line(settings, program, arguments)
    assert capsys.readouterr().err.splitlines() == [
        f"{program}: REWARD_CACHE_SCORES is not a setting and is ignored; did you mean REWARD_CACHE__SCORES? "
        f"See {program} --help-all.",
        f"{program}: REWARD_QUX is not a setting and is ignored. See {program} --help-all.",
    ]


def test_a_bulk_run_needs_both_files(capsys):
    assert "OUTPUT" in complaint(capsys, "in.jsonl", settings=ScoreSettings)


@pytest.mark.parametrize("models", ["a=/x", "a", "a=/x,a=/y", "=/x,b=/y", "a=,b=/y"])
def test_an_ensemble_is_a_list_of_names_and_models(models):
    with pytest.raises(ValidationError, match="REWARD_ENSEMBLE="):
        ServeSettings(ensemble=models, _cli_parse_args=[])


def test_the_models_of_an_ensemble_have_names():
    settings = ServeSettings(ensemble="a=/x, b=org/model=1", _cli_parse_args=[])
    assert settings.named_models() == {"a": "/x", "b": "org/model=1"}
    assert [settings.model_spec(model).model for model in settings.named_models().values()] == ["/x", "org/model=1"]
    with pytest.raises(ValidationError, match="REWARD_MODEL and REWARD_ENSEMBLE are both set"):
        ServeSettings(model="/z", ensemble="a=/x,b=/y", _cli_parse_args=[])


def test_everything_of_the_reward_can_be_set_by_environment(monkeypatch):
    for name, value in {
        "COMBINE__METHOD": "softmin", "COMBINE__BETA": "0.25", "COMBINE__WEIGHTS": '{"a": 2.0}', "LENGTH_DEBIAS": "0.5",
        "PENALTIES__MISSING_END": "1.0", "PENALTIES__OVERLONG": "0.5", "PENALTIES__OVERLONG_START": "400",
        "PENALTIES__OVERLONG_END": "500", "PENALTIES__REPETITION": "2", "SHAPE": "par", "SLOPE": "1.5",
    }.items():  # fmt: skip
        monkeypatch.setenv(f"REWARD_{name}", value)
    assert ServeSettings(_cli_parse_args=[]).reward_settings() == RewardSettings(
        combine=CombineSettings("softmin", 0.25, {"a": 2.0}),
        length_debias=0.5,
        penalties=PenaltySettings(1.0, 0.5, 400, 500, 2.0),
        shape="par",
        slope=1.5,
    )


def test_an_idle_connection_outlives_the_usual_idle_timeout_of_proxies():
    """nginx and load balancers close theirs after 60 s; if the server closes first, a request may meet a reset."""
    assert ServeSettings(keys_file=None).keep_alive_s > 60.0
