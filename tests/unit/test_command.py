"""The command `rewardserve`: its subcommands, its help, and errors of usage in two lines."""

from __future__ import annotations

import re
import runpy
import signal
import subprocess
import sys
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest

from rewardserve import cli
from rewardserve.bench import command as bench
from rewardserve.model.backends import LoadError
from rewardserve.service.cli.options import Wording, complain_of_model, from_command_line, options_of
from rewardserve.service.settings import ServeSettings
from tests.support.checkpoints import reward_model
from tests.support.command import run_command
from tests.support.planted_pairs import recipe_file

ROOT = Path(__file__).parents[2]
COMMANDS = [command for group in cli.COMMANDS.values() for command in group]
NAMES = [command.name for command in COMMANDS]


@pytest.fixture(autouse=True)
def _signals_as_before():
    """The module of `serve` takes signals when it is imported, for a process that is to be a server."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def run(*arguments):
    done = subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    return done.returncode, done.stdout, done.stderr


@pytest.fixture(scope="module")
def small_model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "rm"
    reward_model(folder)
    return folder


@pytest.fixture
def usage_error(capsys):
    def of(*arguments):
        with pytest.raises(SystemExit) as end:
            cli.main(arguments)
        assert end.value.code == 2
        return capsys.readouterr().err.splitlines()

    return of


def test_the_help_has_a_line_for_each_subcommand(capsys):
    assert cli.main(["--help"]) == 0
    output = capsys.readouterr().out
    assert [line.split()[0] for line in output.splitlines() if line.startswith("  ")] == NAMES
    assert len(output.splitlines()) < 34
    assert max(map(len, output.splitlines())) <= 100
    for command in (each for group in cli.COMMANDS.values() for each in group):
        assert re.search(
            rf"^  {re.escape(f'{command.name} {command.arguments}'.strip())} {{2,}}\S", output, re.MULTILINE
        )


@pytest.mark.parametrize("arguments", [[], ["-h"], ["help"]])
def test_the_help_is_what_is_printed_without_a_subcommand(capsys, arguments):
    assert cli.main(arguments) == 0
    assert capsys.readouterr().out.startswith("usage: rewardserve COMMAND")


def test_help_takes_one_subcommand(usage_error):
    assert usage_error("help", "serve", "train")[0] == "rewardserve: help takes one subcommand, not 2"


@pytest.mark.parametrize(
    "arguments", [["--help"], ["--version"], ["version"], ["version", "--help"], ["keys", "--help"]]
)
def test_help_and_version_import_no_large_library(arguments):
    """A second and more would pass before the first line."""
    program = (
        "import sys; from rewardserve.cli import main\n"
        f"try: main({arguments})\nexcept SystemExit: pass\n"
        "print([m for m in ('torch', 'transformers', 'numpy', 'fastapi', 'pydantic') if m in sys.modules])"
    )
    code, output, _ = run("-c", program)
    assert (code, output.splitlines()[-1]) == (0, "[]")


PAIR = '{"prompt": "q", "chosen": "a", "rejected": "b"}\n'


@pytest.mark.parametrize(
    ("verb", "content", "setting", "says"),
    [
        ("train", PAIR, "optim.learning_rate=1", "learning_rate"),
        ("evaluate", PAIR, "method.name=lroa", "lroa"),
        ("train", PAIR, "data.sources.0.path=nowhere.jsonl", "is not a file"),
        ("train", "PAR1", "seed=1", "is a Parquet file"),
        ("train", PAIR, "data.sources.0.chosen_key=choosen", "data.sources.0: "),
        ("train", PAIR + '{"prompt": "q"}', "seed=1", "of 2 rows"),
    ],
)
def test_a_recipe_or_file_is_refused_before_the_large_libraries_are_imported(tmp_path, verb, content, setting, says):
    """They take half a minute on a busy machine."""
    (tmp_path / "d.jsonl").write_text(content)
    recipe = recipe_file(
        tmp_path / "r.yaml", model={"path": str(tmp_path)}, data={"sources": [{"path": str(tmp_path / "d.jsonl")}]},
        output={"folder": str(tmp_path / "out")},
    )  # fmt: skip
    program = (
        "import sys; from rewardserve.cli import main\n"
        f"code = main({[verb, '--config', str(recipe), '--set', setting]})\n"
        "print(code, [m for m in ('torch', 'transformers', 'datasets', 'pydantic') if m in sys.modules])"
    )
    _, output, error = run("-c", program)
    assert says in error
    assert output.splitlines()[-1] == "2 []"


def test_a_checkout_that_is_not_installed_can_be_imported(monkeypatch):
    path = str(ROOT / "rewardserve/__init__.py")
    assert runpy.run_path(path)["__version__"] == version("rewardserve")

    def not_installed(distribution):
        raise PackageNotFoundError(distribution)

    monkeypatch.setattr("importlib.metadata.version", not_installed)
    assert runpy.run_path(path)["__version__"] == "0"


def test_the_version_is_that_of_the_distribution(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"rewardserve {version('rewardserve')}\n"
    assert cli.main(["version"]) == 0
    output = capsys.readouterr().out.splitlines()
    assert output[0] == f"rewardserve {version('rewardserve')}"
    assert f"torch {version('torch')}" in output


def test_the_package_runs_as_a_module():
    assert run("-m", "rewardserve", "--version") == (0, f"rewardserve {version('rewardserve')}\n", "")


@pytest.mark.parametrize("command", COMMANDS, ids=NAMES)
def test_a_subcommand_leads_to_a_function(command):
    module, _, function = command.target.partition(":")
    assert callable(getattr(import_module(module), function))


@pytest.mark.parametrize("name", NAMES)
def test_a_subcommand_has_a_help_under_its_own_name(name):
    code, output, _ = run_command(name, "--help")
    assert code == 0
    assert output.startswith(f"usage: rewardserve {name} ")


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("sevre", "serve"),
        ("evalaute", "evaluate"),
        ("honeypot", "honeypots"),
        ("comapre", "compare"),
        ("TRAIN", "train"),
    ],
)
def test_a_misspelt_subcommand_suggests_the_nearest(usage_error, typed, meant):
    assert usage_error(typed) == [
        f"rewardserve: there is no subcommand {typed!r}; did you mean {meant}?", "See rewardserve --help."
    ]  # fmt: skip


def test_a_word_like_no_subcommand_suggests_none(usage_error):
    assert usage_error("xyzzy")[0] == "rewardserve: there is no subcommand 'xyzzy'"


def test_help_of_a_subcommand_is_its_own(capsys):
    code, output, _ = run_command("help", "keys")
    assert (code, output.startswith("usage: rewardserve keys ")) == (0, True)


def test_version_takes_no_arguments(usage_error):
    assert usage_error("--version", "x")[0] == "rewardserve: --version has no arguments, such as x"


@pytest.mark.parametrize(("option", "without"), [("--runs", "is bound to no runs"), ("--owner", "owns runs as NAME")])
def test_an_empty_binding_makes_no_unbound_key(usage_error, tmp_path, option, without):
    line = usage_error("keys", "a", str(tmp_path / "keys"), option, "")[0]
    assert line == f"rewardserve keys: {option} is empty: leave it out for a key that {without}"
    assert not (tmp_path / "keys").exists()


def test_an_option_before_the_subcommand_is_refused(usage_error):
    assert usage_error("--port", "8000", "serve")[0].endswith("not --port; write rewardserve serve")
    assert usage_error("--serve")[0].endswith("not --serve; write rewardserve serve")
    assert usage_error("--xyzzy")[0] == "rewardserve: the subcommand comes first, not --xyzzy"
    assert (
        usage_error("--port=1", "serve")[0]
        == "rewardserve: the subcommand comes first, not --port=1; write rewardserve serve"
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["serve", "--prot=1"], "unrecognized arguments: --prot=1; did you mean --port?"),
        (["serve", "--model", "x"], "give MODEL without an option name"),
        (["serve", "a", "b"], "unrecognized arguments: b"),
        (["score", "in"], "the following arguments are required: OUTPUT"),
        (
            ["check", "--device=cdua"],
            "check: --device: must be auto, cpu, cuda or cuda:N, not 'cdua'; did you mean cuda?",
        ),
        (["check", "--device", ""], "--device: must be auto, cpu, cuda or cuda:N, not ''"),
        (["check", "--allow"], "unrecognized arguments: --allow"),
        (["check", "--dtype=flaot32"], "not 'flaot32'; did you mean float32?"),
        (["check", "--reads-at=lst"], "must be one of last, last_non_pad, not 'lst'; did you mean last?"),
        (["check", "--template-date=2026-02-30"], "must be a date of the form YYYY-MM-DD, not '2026-02-30'"),
        (["export", "a", "--template-date=today"], "must be a date of the form YYYY-MM-DD, not 'today'"),
        (["train"], "the following arguments are required: --config"),
        (["train", "--confg", "x"], "unrecognized arguments: --confg; did you mean --config?"),
        (["finish", "--confg=x"], "unrecognized arguments: --confg=x; did you mean --config?"),
        (["score", "in", "--modle=x"], "unrecognized arguments: --modle=x; did you mean --model?"),
        (["compare", "a", "b", "c", "--josn"], "unrecognized arguments: --josn; did you mean --json?"),
        (["bench", "--url=http://a", "--jsn", "x"], "unrecognized arguments: --jsn; did you mean --json?"),
        (["bench", "--url=http://a", "--clents", "3"], "unrecognized arguments: --clents"),
        (["bench", "--url=http://a", "--port", "1"], "there is nothing to start with --port 1"),
        (["compare", "a"], "the following arguments are required: MODEL_B, FILE"),
        (["compare", "a", "b", "c", "--model-b=x"], "give MODEL_B without an option name"),
        (["compare", "a", "b", "c", "--model=x"], "give MODEL_B without an option name"),
        (["train", "recipe.yaml", "--set", "seed=1"], "the recipe is an option: write --config recipe.yaml"),
        (["train", "--config=r", "--checkpoint=c"], "unrecognized arguments: --checkpoint=c"),
        (["export"], "the following arguments are required: CHECKPOINT"),
        (["export", "default"], "name the FOLDER to write default into"),
        (["keys", "name"], "the following arguments are required: FILE"),
        (["rules", "--windows", "5"], "'5' is not a window length"),
        (["honeypots"], "the following arguments are required: KEY_FILE"),
        (["version", "x"], "unrecognized arguments: x"),
        (["bench", "--sampels=3"], "unrecognized arguments: --sampels; did you mean --samples?"),
        (["crossvalidate", "--config=r", "--folds=x"], "--folds: must be a whole number, not 'x'"),
        (["keys", "a", "f", "--burst-s=0"], "--burst-s: must be a number above zero, not '0'"),
        (["serve", "--Batching"], "unrecognized arguments: --Batching"),
        (["bench", "--devise=cpu"], "unrecognized arguments: --devise; did you mean --device?"),
        (["bench", "--keys-file=k"], "unrecognized arguments: --keys-file"),
        (["bench", "a", "b"], "unrecognized arguments: b"),
        (["bench", "--url=127.0.0.1:8000"], "'127.0.0.1:8000' is not an address such as http://127.0.0.1:8000"),
        (["bench", "--url=http://h", "model"], "--url names a running server"),
        (["bench", "--key-file=k"], "--key-file is for --url"),
        (["bench", "--file=f", "--group=2"], "--group is for synthetic samples"),
        (["bench", "--samples=0"], "'0' is not a whole number above zero"),
        (["bench", "--seconds=nan"], "'nan' is not a number of seconds above zero"),
    ],
)
def test_an_error_of_usage_is_two_lines_that_name_the_help(usage_error, arguments, words):
    first, second = usage_error(*arguments)
    assert first.startswith(f"rewardserve {arguments[0]}: ")
    assert words in first
    assert second == f"See rewardserve {arguments[0]} --help."


def test_options_of_bench_are_no_settings_of_the_server():
    own = {name for action in bench._parser()._actions for name in action.option_strings}
    assert own & {option.name for option in options_of(ServeSettings)} == set()
    assert set(bench.NOT_SERVED) <= {".".join(option.path) for option in options_of(ServeSettings)}


@pytest.mark.parametrize(
    "arguments", [["serve"], ["score", "in", "out"], ["compare", "a", "b", "c"], ["bench"]], ids=lambda each: each[0]
)
@pytest.mark.parametrize("flag", ["--cache", "--cache=off"])
def test_a_section_of_the_settings_is_refused_by_every_command(arguments, flag):
    code, output, error = run_command(*arguments, flag)
    assert (code, output) == (2, "")
    words = "--cache is a section of settings, not one with a value: set --cache.scores, --cache.prefix-mib"
    assert error == f"rewardserve {arguments[0]}: {words}\n"


@pytest.mark.parametrize("name", ["train", "finish", "evaluate", "calibrate", "crossvalidate"])
def test_only_the_help_of_train_explains_how_to_resume(name):
    _, said, _ = run_command(name, "--help")
    assert ("output.resume" in said) == (name == "train")


def test_the_help_of_calibrate_says_which_checkpoint_is_replaced():
    _, output, _ = run_command("calibrate", "--help")
    assert "A checkpoint that is read from there is replaced" in " ".join(output.split())


@pytest.mark.parametrize("name", ["keys", "rules", "honeypots"])
def test_a_missing_file_is_reported_without_a_number(tmp_path, name):
    missing = tmp_path / "none" / "file"
    arguments = {"keys": ["ppo", missing], "rules": ["--config-file", missing], "honeypots": [missing]}[name]
    code, output, error = run_command(name, *arguments)
    assert (code, output, error) == (2, "", f"rewardserve {name}: {missing}: No such file or directory\n")


# -- a model that cannot be served ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("message", "with_flags", "with_variables"),
    [
        ("'/dtype' is not a model. Name a folder.",) * 3,
        ("its engine is dead, the device is gone",) * 3,
        ("export again, or set template_date in scoring_contract.json",) * 3,
        ("Use float32, or set dtype.", "Use float32, or set --dtype.", "Use float32, or set REWARD_DTYPE."),
        ("set normalize=off.", "set --normalize=off.", "set REWARD_NORMALIZE=off."),
        ("combine.weights names x", "--combine.weights names x", "REWARD_COMBINE__WEIGHTS names x"),
        ("raise cap_high=0", "raise --cap-high=0", "raise REWARD_CAP_HIGH=0"),
        ("Set REWARD_SWAP__WATCH_S.", "Set --swap.watch-s.", "Set REWARD_SWAP__WATCH_S."),
    ],
)  # fmt: skip
def test_a_message_names_settings_as_the_user_writes_them(capsys, message, with_flags, with_variables):
    for arguments, words in ((["--port=1"], with_flags), ([], with_variables)):
        complain_of_model("rewardserve serve", LoadError(message), Wording(ServeSettings, arguments, {}))
        said = ["this model cannot be served.", words]
        assert capsys.readouterr().err.splitlines() == [f"rewardserve serve: {line}" for line in said]


@pytest.mark.parametrize(
    ("flags", "code", "line"),
    [
        (
            ["MODEL", "--audit-model=/nope"],
            1,
            "--audit-model=/nope cannot be served as the audit judge: '/nope' is not a folder.",
        ),
        (["--ensemble=a=/nope,b=default"], 1, "--ensemble: a=/nope cannot be served: '/nope' is not a folder."),
        (["--tripwires.canaries-file=/nope"], 2, "--tripwires.canaries-file=/nope cannot be read: No such file"),
    ],
)
def test_a_part_that_cannot_be_loaded_is_named_by_its_setting(small_model, flags, code, line):
    """The model itself is not blamed for its audit judge."""
    done, _, error = run_command("serve", "--port=0", *(small_model if each == "MODEL" else each for each in flags))
    assert done == code
    assert error.splitlines()[-1].startswith(f"rewardserve serve: {line}")
    assert ("this model cannot be served." in error) == ("--ensemble" in flags[0])


# -- the settings of the server ------------------------------------------------------------------------------------------

FIRST = ["MODEL", "--host", "--port", "--device", "--dtype", "--keys-file", "--webhook-url"]


def printed(capsys, *arguments):
    with pytest.raises(SystemExit) as end:
        cli.main(["serve", *arguments])
    assert end.value.code == 0
    return capsys.readouterr().out


def test_the_help_of_serve_has_seven_settings_with_their_variables(capsys):
    said = printed(capsys, "--help")
    heads = re.findall(r"^  (\S+)(?: \S+)?  (REWARD_\w+)$", said, re.MULTILINE)
    assert [name for name, _ in heads] == FIRST
    assert heads[0] == ("MODEL", "REWARD_MODEL")
    assert heads[5] == ("--keys-file", "REWARD_KEYS_FILE")
    assert len(said.splitlines()) < 34
    assert "\n  -h, --help\n" in said
    assert "\n  --help-all\n" in said
    assert f"shows {len(list(options_of(ServeSettings))) - 7} more settings" in said


def test_all_settings_have_a_line_with_their_variable_and_default(capsys):
    said = printed(capsys, "--help-all")
    assert "  --port N  REWARD_PORT\n      bind port; 0: a free one [8000]\n" in said
    assert "  --batching.linger-ms X  REWARD_BATCHING__LINGER_MS\n" in said
    assert (
        "  --dtype auto|float32|bfloat16|float16  REWARD_DTYPE\n      dtype of the network's weights [auto]\n" in said
    )
    assert "  --normalize true|false  REWARD_NORMALIZE\n" in said
    assert "  --combine.weights JSON  REWARD_COMBINE__WEIGHTS\n" in said

    def leaves(settings, path=()):
        for name, field in settings.model_fields.items():
            if hasattr(field.annotation, "model_fields"):
                yield from leaves(field.annotation, (*path, name))
            else:
                yield "REWARD_" + "__".join((*path, name)).upper()

    assert sorted(re.findall(r"^  \S+.*  (REWARD_\w+)$", said, re.MULTILINE)) == sorted(leaves(ServeSettings))


@pytest.mark.parametrize(
    ("arguments", "first"),
    [
        ("serve --help-all", "usage: rewardserve serve [MODEL] [SETTINGS]"),
        ("version", f"rewardserve {version('rewardserve')}"),
        (
            "rules",
            "# Written by `rewardserve rules`, from the thresholds of the server. Change those, and write this file again.",
        ),
    ],
)
def test_what_is_read_only_in_part_ends_without_a_traceback(arguments, first):
    program = f"{sys.executable} -u -m rewardserve {arguments} | head -n 1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.splitlines() == [first, "0"]
    assert done.stderr == ""


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["version"]])
def test_output_onto_a_full_disk_ends_without_a_traceback(arguments):
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "rewardserve", *arguments],
            cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60, check=False,
        )  # fmt: skip
    program = "rewardserve version" if arguments == ["version"] else "rewardserve"
    assert done.returncode == 1
    assert done.stderr.startswith(f"{program}: the disk is full. Free some space")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "arguments", [["/models/a", "--port=1"], ["--port", "1", "/models/a"], ["--port=1", "/models/a", "--dtype=auto"]]
)
def test_the_model_is_an_argument_wherever_it_stands(monkeypatch, arguments):
    monkeypatch.setenv("REWARD_MODEL", "/models/b")
    assert from_command_line(ServeSettings, "rewardserve serve", []).model == "/models/b"
    settings = from_command_line(ServeSettings, "rewardserve serve", arguments)
    assert (settings.model, settings.port) == ("/models/a", 1)
