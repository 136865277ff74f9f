"""How a training ends: what it says of its rows and results, what it does not overwrite, and one line for what goes wrong."""

from __future__ import annotations

import json
import pkgutil
import re
import shutil
import signal
import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import distributed
from transformers import AutoModelForCausalLM, TrainerCallback

from rewardserve.cli import main
from rewardserve.model.backends import ModelSpec
from rewardserve.model.backends import load as load_model
from rewardserve.model.contract import ScoringContract
from rewardserve.training import errors, run_folder, workflow
from rewardserve.training.dataset import hub, sequences
from rewardserve.training.evaluation import calibrate
from rewardserve.training.evaluation.calibrate import NothingToFit
from rewardserve.training.loop import reporting, trainer
from rewardserve.training.loop.step_checkpoints import MarkComplete, history_of, last_complete
from rewardserve.training.results import export, report
from rewardserve.training.settings import recipe
from rewardserve.training.settings.recipe import load
from rewardserve.training.workflow import checkpoints, fitting, run
from tests.support import planted_pairs as world
from tests.support.checkpoints import merge_newlines, value_head
from tests.support.small_disk import SmallDisk, why_none
from tests.support.tiny import tiny_config

pytestmark = pytest.mark.usefixtures("undrawn")

N_ROWS = 120
SETS = {"optim": {"lr": 1e-3, "max_steps": 3}, "eval": {"bootstrap": 20}, "encoding": {"max_tokens": 128}}
FROZEN = {"method": {"name": "frozen"}, "optim": {"epochs": 0}}


@pytest.fixture(scope="module")
def sft(tmp_path_factory):
    return world.language_model(tmp_path_factory.mktemp("sft"))


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    return world.write_jsonl(tmp_path_factory.mktemp("data") / "pairs.jsonl", world.planted_rows(N_ROWS))


def recipe_in(folder, sft, pairs, **sections):
    model = {"path": str(sft), **sections.pop("model", {})}
    data = {"sources": [{"path": str(pairs)}], "eval_fraction": 0.25, **sections.pop("data", {})}
    out = {"folder": str(folder / "out"), **sections.pop("output", {})}
    whole = {"model": model, "data": data, "output": out} | SETS | sections
    folder.mkdir(exist_ok=True)
    return str(world.recipe_file(folder / "recipe.yaml", **whole))


def frozen(folder, sft, pairs, **sections):
    return recipe_in(folder, sft, pairs, **{"model": {"head_init": "logistic"}, **FROZEN, **sections})


def one_line(capsys):
    """The last line of stderr, which is the error; there is no traceback."""
    err = capsys.readouterr().err
    assert "Traceback" not in err
    return err.strip().splitlines()[-1]


# -- what it says -----------------------------------------------------------------------------------------


def test_a_run_accounts_for_its_rows_and_ends_with_its_figures(tmp_path, sft, capsys):
    rows = world.planted_rows(N_ROWS)
    rows += [{**rows[0], "group": "elsewhere"}, {**rows[1], "chosen": " river" * 300}, {"prompt": "no pair"}, rows[2]]
    pairs = world.write_jsonl(tmp_path / "pairs.jsonl", rows)
    assert main(["train", "--config", frozen(tmp_path, sft, pairs, data={"on_bad_row": "skip"})]) == 0
    output = capsys.readouterr()
    out = output.out
    assert f"rows read: {N_ROWS + 4}" in out
    for line in (
        "1 without a pair",
        "1 longer than encoding.max_tokens",
        "pairs to train on",
        "0 contradicting, 2 duplicate",
    ):
        assert line in out, out
    found = json.loads((tmp_path / "out" / "checkpoint" / "training_report.json").read_text())
    (m,) = found["metrics"]
    assert f"held out, score planted: accuracy {m['accuracy']:.3f} [{m['accuracy_low']:.3f}, " in out
    assert f"mean margin {m['margin']:.3g}" in out
    assert f"report: {tmp_path / 'out' / 'report.html'}" in out
    assert f"checkpoint: {tmp_path / 'out' / 'checkpoint'}" in out
    for phase in (
        "encoding training pairs",
        "scoring features of the frozen backbone",
        "scoring held-out pairs",
        "exporting to",
    ):
        assert phase in output.err


def test_held_out_pairs_under_other_groups_are_not_trained_on(tmp_path, sft, pairs, capsys):
    renamed = [{**r, "group": f"other {r['group']}"} for r in world.planted_rows(40)]
    held = world.write_jsonl(tmp_path / "held.jsonl", renamed)
    assert main(["train", "--config", frozen(tmp_path, sft, pairs, data={"eval_sources": [{"path": str(held)}]})]) == 0
    assert "left out: 40 with a response that is held out" in capsys.readouterr().out
    page = (tmp_path / "out" / "report.html").read_text()
    assert "no response to the same prompt (ignoring blanks and case; 40 training pairs were left out for that)" in page
    most = [{**r, "group": f"other {r['group']}"} for r in world.planted_rows(N_ROWS)[: N_ROWS - 10]]
    held_most = world.write_jsonl(tmp_path / "most.jsonl", most)
    few = frozen(tmp_path / "few", sft, pairs, data={"eval_sources": [{"path": str(held_most)}]})
    assert main(["train", "--config", few]) == 2
    assert f"{N_ROWS - 10} with a response that is held out" in one_line(capsys)
    same = recipe_in(tmp_path / "same", sft, held, data={"eval_sources": [{"path": str(pairs)}]})
    assert main(["train", "--config", same]) == 2
    assert "each has a response that is held out, under another group" in one_line(capsys)


def test_evaluate_says_what_it_knows_of_the_training_pairs(tmp_path, sft, pairs):
    recipe = frozen(tmp_path, sft, pairs)
    assert main(["train", "--config", recipe]) == 0
    assert main(["evaluate", "--config", recipe]) == 0
    page = tmp_path / "out" / "evaluation.html"
    assert "By its report, this checkpoint was trained on the training pairs of this recipe" in page.read_text()
    assert main(["evaluate", "--config", recipe, "--set", "data.salt=other"]) == 0
    assert "is not known" in page.read_text()


@pytest.mark.parametrize("verb", ["evaluate", "calibrate"])
def test_a_checkpoint_is_judged_on_the_tokens_that_it_is_served_with(tmp_path, monkeypatch, verb):
    """LLaMA-Factory tokenises the response apart; so does the server, until a checkpoint of our layout is written."""
    value_head(tmp_path / "rm", separate=True)
    merge_newlines(tmp_path / "rm")
    rows = [
        {**r, "chosen": f"\n\n{r['chosen']}", "rejected": f"\n\n{r['rejected']}"}
        for r in world.planted_rows(60, n_groups=60)
    ]
    pairs = world.write_jsonl(tmp_path / "pairs.jsonl", rows)
    recipe = recipe_in(tmp_path, tmp_path / "rm", pairs, data={"eval_fraction": 0.5}, model={"start": "reward"})
    encoded, encode = [], workflow.encode
    for module in (run, checkpoints):
        monkeypatch.setattr(module, "encode", lambda *args, **how: encoded.append(encode(*args, **how)) or encoded[0])
    assert main([verb, "--config", recipe, "--checkpoint", str(tmp_path / "rm")]) == 0
    folder = tmp_path / "rm" if verb == "evaluate" else tmp_path / "out" / "checkpoint"
    served = load_model("torch", ModelSpec(str(folder))).encode
    apart = load_model("torch", ModelSpec(str(tmp_path / "rm"))).encode
    samples = [(s.sample, s.ids) for s in encoded[0].held_out.sequences]
    assert len(samples) > 20
    assert all(served(sample).ids == ids for sample, ids in samples)
    assert all(apart(sample).ids == ids for sample, ids in samples) == (verb == "evaluate")


def test_the_report_has_dates_curves_and_plain_words(tmp_path, sft, pairs):
    assert (
        main(
            ["train", "--config", recipe_in(tmp_path, sft, pairs, output={"log_steps": 1}, data={"eval_fraction": 0.1})]
        )
        == 0
    )
    page = (tmp_path / "out" / "report.html").read_text()
    facts = re.sub(r"<[^>]*>", " ", page[: page.index("<h2>Training</h2>")].partition("</style>")[2])
    assert not re.search(r"[{}\[\]']|None|True", facts)
    for fact in ("began", "took", "computed on", "versions", "torch ", "heads", "score 1"):
        assert fact in facts
    assert page.count("over the steps") == 4


# -- what it does not overwrite ---------------------------------------------------------------------------


def test_a_finished_run_is_not_overwritten_whatever_is_left_of_it(tmp_path, sft, pairs, capsys):
    recipe = recipe_in(tmp_path, sft, pairs)
    assert main(["train", "--config", recipe]) == 0
    assert main(["finish", "--config", recipe]) == 2
    assert "holds a finished run" in one_line(capsys)
    assert main(["train", "--config", recipe, "--set", "output.resume=true"]) == 0, "it was finished, and is so again"
    steps = tmp_path / "out" / "steps"
    steps.rename(tmp_path / "steps")
    for resume in ("true", "false"):
        assert main(["train", "--config", recipe, "--set", f"output.resume={resume}"]) == 2
        assert "holds a finished run (checkpoint, report.html)" in one_line(capsys)
    other = recipe_in(tmp_path / "other", sft, pairs, output={"folder": str(tmp_path / "out")}, seed=1)
    (tmp_path / "steps").rename(steps)
    assert main(["train", "--config", other, "--set", "output.resume=true"]) == 2
    assert "another recipe: seed differ" in one_line(capsys)


@pytest.mark.parametrize("verb", ["train", "calibrate", "finish", "crossvalidate"])
def test_two_runs_do_not_share_a_folder(tmp_path, sft, pairs, capsys, verb):
    with run_folder.lock_folder(tmp_path / "out"):
        assert main([verb, "--config", recipe_in(tmp_path, sft, pairs)]) == 2
    assert "another rewardserve train writes into" in one_line(capsys)


# -- what goes wrong --------------------------------------------------------------------------------------

REFUSED = {
    "optim.epochs=.inf": "optim.epochs is inf",
    "optim.optimizer=adamw_bnb_8bit": "adamw_bnb_8bit",
    "optim.schedule=reduce_lr_on_plateau": "reduce_lr_on_plateau",
    "model.dtype=bfloat16": "most weights would never change",
    "model.dtype=float16": "most weights would never change",
    "output.folder=/proc/nothing": "cannot be written",
    "optim.learning_rate=1": "did you mean 'optim.lr'",
    "model.path=some/model": "hf download",
    "data.sources.0.path=some/pairs": "hf download",
}


@pytest.mark.parametrize("override", REFUSED)
def test_what_a_user_may_get_wrong_is_one_line(tmp_path, sft, pairs, capsys, monkeypatch, override):
    import datasets
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub, "answers", lambda endpoint, timeout_s: False)
    code = 1 if override.startswith("model.path=") else 2
    assert main(["train", "--config", recipe_in(tmp_path, sft, pairs), "--set", override]) == code
    assert REFUSED[override] in one_line(capsys)


@pytest.mark.parametrize("verb", ["evaluate", "calibrate"])
def test_a_verb_that_needs_held_out_pairs_says_so(tmp_path, sft, pairs, capsys, verb):
    recipe = frozen(tmp_path, sft, pairs)
    assert main(["train", "--config", recipe]) == 0
    assert main([verb, "--config", recipe, "--set", "data.eval_fraction=0"]) == 2
    assert "none is held out" in one_line(capsys)


def test_scores_that_allow_no_calibration_cost_no_run_its_checkpoint(tmp_path, sft, pairs, capsys, monkeypatch):
    def no_fit(*args, **kwargs):
        raise NothingToFit("all scores are equal")

    monkeypatch.setattr(calibrate, "fit", no_fit)
    recipe = frozen(tmp_path, sft, pairs)
    assert main(["train", "--config", recipe]) == 0
    assert "not calibrated: all scores are equal" in capsys.readouterr().out
    assert main(["calibrate", "--config", recipe]) == 2
    assert "all scores are equal" in one_line(capsys)


class Sender(TrainerCallback):
    """Sends a signal to this process at a step, as Ctrl-C does."""

    def __init__(self, number, step, times=1):
        self._number, self._step, self._times = number, step, times

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self._step:
            for _ in range(self._times):
                signal.raise_signal(self._number)


def with_signal(monkeypatch, sender):
    real = trainer.RewardTrainer.__init__

    def init(self, *args, **kwargs):
        real(self, *args, **kwargs)
        self.add_callback(sender)

    monkeypatch.setattr(trainer.RewardTrainer, "__init__", init)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_the_step_and_the_run_goes_on_as_if_nothing_was(
    tmp_path, sft, pairs, capsys, monkeypatch, number
):
    sets = {"optim": {"lr": 1e-3, "max_steps": 6}, "output": {"log_steps": 1}}
    assert threading.current_thread() is threading.main_thread()
    before = signal.getsignal(number)
    recipe = recipe_in(tmp_path / "stopped", sft, pairs, **sets)
    with monkeypatch.context() as patch:
        with_signal(patch, Sender(number, 2))
        assert main(["train", "--config", recipe]) == 130
    assert signal.getsignal(number) is before
    assert "stopped and saved at step 3 of 6. Resume from checkpoint-3 with --set output.resume=true." in one_line(
        capsys
    )
    assert main(["train", "--config", recipe, "--set", "output.resume=true"]) == 0
    assert main(["train", "--config", recipe_in(tmp_path / "whole", sft, pairs, **sets)]) == 0
    curves = [history_of(last_complete(tmp_path / name / "out" / "steps")) for name in ("stopped", "whole")]
    losses = [[line["loss"] for line in curve if "loss" in line] for curve in curves]
    assert len(losses[0]) == 6
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


PHASES = {
    "reading": ("rewardserve.training.dataset.data.load", ()),
    "encoding": ("rewardserve.training.dataset.sequences.encode", ()),
    "features": ("rewardserve.training.workflow.run.features", ()),
    "judging": ("rewardserve.training.finish.scoring.read", ()),
    "the contract": ("rewardserve.training.results.export.write_contract", ()),
    "the weights": ("rewardserve.training.results.export.write", ()),
    "the report": ("rewardserve.training.results.report.write", ("checkpoint",)),
}


@pytest.mark.sweep(5)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("phase", PHASES)
def test_a_signal_outside_of_training_ends_with_a_line_and_leaves_nothing_half_written(
    tmp_path, sft, pairs, capsys, monkeypatch, phase, number
):
    place, kept = PHASES[phase]
    module, _, name = place.rpartition(".")
    real = getattr(pkgutil.resolve_name(module), name)

    def interrupted(*args, **kwargs):
        done = real(*args, **kwargs)  # what it has written is there, and goes
        signal.raise_signal(number)
        return done

    monkeypatch.setattr(place, interrupted)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background has it ignored
    before = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    assert main(["train", "--config", frozen(tmp_path, sft, pairs)]) == 130
    assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)] == before
    assert one_line(capsys).startswith("rewardserve train: stopped. ")
    out = {path.name for path in (tmp_path / "out").glob("*")} - {".lock", "recipe.json"}
    assert out - {"report.html"} == set(kept)
    monkeypatch.undo()
    assert (
        main(["train", "--config", frozen(tmp_path, sft, pairs), "--set", f"output.folder={tmp_path / 'again'}"]) == 0
    )


@pytest.mark.parametrize("verb", ["evaluate", "calibrate", "crossvalidate"])
def test_a_signal_ends_the_other_verbs_too(tmp_path, sft, pairs, capsys, monkeypatch, verb):
    recipe = frozen(tmp_path, sft, pairs)
    assert main(["train", "--config", recipe]) == 0
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*") if path.name != ".lock"}
    real = sequences.encode
    monkeypatch.setattr(
        sequences, "encode", lambda *a, **k: real(*a, **k) if signal.raise_signal(signal.SIGTERM) else None
    )
    assert main([verb, "--config", recipe]) == 130
    assert one_line(capsys) == f"rewardserve {verb}: stopped."
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*") if path.name != ".lock"} == files


def test_with_several_processes_a_signal_keeps_its_action(tmp_path, sft, pairs, monkeypatch):
    """A process that waits for another one inside a collective would never get to a handler of Python."""
    seen = []
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(recipe, "load", lambda *_: seen.append(signal.getsignal(signal.SIGTERM)) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main(["train", "--config", frozen(tmp_path, sft, pairs)])
    assert seen == [signal.getsignal(signal.SIGTERM)]


@pytest.mark.parametrize(
    ("end", "code", "is_left"),
    [(None, 0, True), (errors.Stopped("step 3"), 130, True), (errors.RunFailed("nan"), 1, False)],
)
def test_processes_that_end_together_end_their_connections(tmp_path, sft, pairs, monkeypatch, end, code, is_left):
    """Gloo's threads abort a process that finalizes with them; a collective that another process waits in is not waited for."""

    def joined_run(*_):
        distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
        if end is not None:
            raise end

    monkeypatch.setattr("rewardserve.training.cli._run", joined_run)
    try:
        assert main(["train", "--config", frozen(tmp_path, sft, pairs)]) == code
        assert distributed.is_initialized() is not is_left
    finally:
        if distributed.is_initialized():
            distributed.destroy_process_group()


def test_a_second_signal_ends_at_once(tmp_path, sft, pairs, capsys, monkeypatch):
    with_signal(monkeypatch, Sender(signal.SIGINT, 1, times=2))
    assert main(["train", "--config", recipe_in(tmp_path, sft, pairs)]) == 130
    assert "There is no saved step" in one_line(capsys)


@pytest.fixture
def disk(tmp_path):
    if why_none():
        pytest.skip(why_none())
    with SmallDisk(tmp_path / "disk", 8) as mounted:
        yield mounted


STAGES = {
    "recipe": (run_folder, "write_json"),
    "steps": (trainer.RewardTrainer, "_save"),
    "optimizer": (trainer.RewardTrainer, "_save_optimizer_and_scheduler"),
    "curves": (reporting, "_callback"),
    "mark": (MarkComplete, "on_save"),
    "adapter": (export, "export_adapter"),
    "checkpoint": (export, "export_checkpoint"),
    "training report": (export, "write_report"),
    "page": (report, "write"),
    "contract": (export, "export_contract"),
}


@pytest.mark.sweep(4)
@pytest.mark.parametrize("stage", STAGES)
def test_a_disk_that_is_full_ends_the_run_in_one_line_and_leaves_nothing_half(
    disk, sft, pairs, capsys, monkeypatch, stage
):
    recipe = recipe_in(disk.folder, sft, pairs, method={"name": "lora", "rank": 2})
    place, name = STAGES[stage]
    real = getattr(place, name)

    def full(*args, **kwargs):
        disk.fill()
        return real(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(place, name, full)
        code = main(["train", "--config", recipe])
    line = one_line(capsys)
    assert code == 1, line
    assert re.search(r"disk is full|want of room", line), line
    assert "resume=true" in line or "There is no saved step" in line or "`rewardserve finish`" in line
    out = disk.folder / "out"
    assert not list(out.rglob("*.new"))
    if (out / "checkpoint").exists():
        assert ScoringContract.load(out / "checkpoint")
    disk.empty()
    saved = last_complete(out / "steps") is not None
    assert main(["train", "--config", recipe, "--set", f"output.resume={str(saved).lower()}"]) == 0
    assert ScoringContract.load(out / "checkpoint")


# -- numbers ----------------------------------------------------------------------------------------------


def changed(network, before):
    """The share of the weights outside the embeddings that are not what they were; unused tokens get no gradient."""
    now = {n: p for n, p in network.named_parameters() if p.requires_grad and "embed" not in n}
    differ = sum(int((p != before[n]).sum()) for n, p in now.items())
    return differ / sum(p.numel() for p in now.values())


@pytest.mark.parametrize("method", [{"name": "full"}, {"name": "lora", "rank": 2}])
def test_at_a_small_rate_every_weight_that_learns_changes(tmp_path, sft, pairs, method):
    dtype = {"full": "float32", "lora": "bfloat16"}[method["name"]]
    optim = {"lr": 1e-5, "max_steps": 4, "schedule": "constant"}
    config = load(Path(recipe_in(tmp_path, sft, pairs, model={"dtype": dtype}, method=method, optim=optim)))
    torch.manual_seed(0)
    start = workflow.load_start(config)
    tables = workflow.encode(config, start)
    if method["name"] == "lora":
        fitting.prepare_network(config, start)
    learning = {n: p for n, p in start.network.named_parameters() if p.requires_grad}
    assert {p.dtype for p in learning.values()} == {torch.float32}
    before = {n: p.detach().clone() for n, p in learning.items()}
    monkey = pytest.MonkeyPatch()
    with monkey.context() as patch:
        patch.setattr(fitting, "prepare_network", lambda *args, **kwargs: None)
        workflow.fit(config, start, tables, None, tmp_path, None)
    assert changed(start.network, before) > 0.99


def test_an_adapter_over_half_precision_is_merged_in_float32(tmp_path, sft, pairs):
    recipe = recipe_in(tmp_path, sft, pairs, model={"dtype": "bfloat16"}, method={"name": "lora", "rank": 2},
                       optim={"lr": 1e-4, "max_steps": 4})  # fmt: skip
    assert main(["train", "--config", recipe]) == 0
    base, merged = (
        load_file(sft / "model.safetensors"),
        load_file(tmp_path / "out" / "checkpoint" / "model.safetensors"),
    )
    name = "model.layers.0.mlp.up_proj.weight"
    assert merged[name].dtype == torch.float32
    assert (merged[name] != base[name].bfloat16().float()).float().mean() > 0.99
    assert main(["evaluate", "--config", recipe]) == 0


# -- going on ------------------------------------------------------------------------------------------------


STEPS = {"optim": {"lr": 1e-2, "max_steps": 4, "schedule": "constant", "ema": 0.5}, "output": {"save_steps": 2}}
RESUME = ("--set", "output.resume=true")


def weights_of(folder):
    return load_file(folder / "out" / "checkpoint" / "model.safetensors")


def test_a_finished_run_that_is_resumed_keeps_its_weights(tmp_path, sft, pairs):
    recipe = recipe_in(tmp_path, sft, pairs, **STEPS)
    assert main(["train", "--config", recipe]) == 0
    before = weights_of(tmp_path)
    assert main(["train", "--config", recipe, *RESUME]) == 0
    after = weights_of(tmp_path)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert last_complete(tmp_path / "out" / "steps").name == "checkpoint-4"


@pytest.mark.sweep(2)
@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.pt", "trainer_state.json", "ema.safetensors"])
def test_a_run_goes_on_from_the_step_before_one_that_is_damaged(tmp_path, sft, pairs, capsys, name):
    recipe = recipe_in(tmp_path, sft, pairs, **STEPS)
    assert main(["train", "--config", recipe]) == 0
    before = weights_of(tmp_path)
    out = tmp_path / "out"
    (out / "steps" / "checkpoint-4" / name).unlink()
    capsys.readouterr()
    assert main(["train", "--config", recipe, *RESUME]) == 0
    output = capsys.readouterr().err
    assert f"checkpoint-4 is damaged ({name} is missing) and left out: the run resumes from checkpoint-2" in output
    after = weights_of(tmp_path)
    assert all(torch.allclose(before[each], after[each], atol=1e-6) for each in before)
    assert last_complete(out / "steps").name == "checkpoint-4", "it was written again"


@pytest.mark.parametrize("verb", ["train", "finish"])
def test_steps_of_other_training_pairs_are_not_gone_on_from(tmp_path, sft, capsys, verb):
    rows = world.planted_rows(N_ROWS)
    pairs = world.write_jsonl(tmp_path / "pairs.jsonl", rows)
    recipe = recipe_in(tmp_path, sft, pairs, **STEPS)
    assert main(["train", "--config", recipe]) == 0
    out = tmp_path / "out"
    for name in run_folder.RESULTS:
        if (out / name).is_file():
            (out / name).unlink()
    (out / "checkpoint").rename(tmp_path / "elsewhere")
    world.write_jsonl(pairs, rows[:-10])
    resume = RESUME if verb == "train" else ()
    assert main([verb, "--config", recipe, *resume]) == 2
    assert "was started with other training pairs" in one_line(capsys)
    world.write_jsonl(pairs, rows)
    assert main([verb, "--config", recipe, *resume]) == 0


@pytest.mark.parametrize("method", ["solved", "frozen", "lora"])
def test_a_run_without_a_report_gets_all_it_lacks_from_finish(tmp_path, sft, capsys, monkeypatch, method):
    pairs = world.write_jsonl(tmp_path / "pairs.jsonl", world.planted_rows(N_ROWS))
    part = "adapter" if method == "lora" else "heads"
    steps = {"method": {"name": method, **({"rank": 2} if method == "lora" else {})}, "optim": {"max_steps": 2}}
    recipe = frozen(tmp_path, sft, pairs) if method == "solved" else recipe_in(tmp_path, sft, pairs, **steps)
    out = tmp_path / "out"

    def missing(*_):
        raise ImportError("No module named 'x'")

    with monkeypatch.context() as patch:
        patch.setattr(report, "write", missing)
        assert main(["train", "--config", recipe]) == 1
    assert {"solved": "`rewardserve finish` with this recipe writes its report"}.get(method, "Resume from") in one_line(
        capsys
    )
    assert not (out / part).exists()
    before = (out / "checkpoint" / "model.safetensors").read_bytes()
    probes = [probe.score for probe in ScoringContract.load(out / "checkpoint").probes]
    assert main(["finish", "--config", recipe, "--set", "seed=5"]) == 2, "another recipe"
    kept = pairs.read_text()
    pairs.write_text(kept.replace("kindly", "badly"))
    assert main(["finish", "--config", recipe]) == 2
    assert "have changed" in one_line(capsys)
    pairs.write_text(kept)
    assert main(["finish", "--config", recipe]) == 0
    assert (out / "checkpoint" / "model.safetensors").read_bytes() == before
    assert [probe.score for probe in ScoringContract.load(out / part).probes] == pytest.approx(probes, abs=1e-4)
    assert (out / "report.html").is_file()
    assert main(["finish", "--config", recipe]) == 2


@pytest.mark.parametrize("verb", ["train", "finish", "evaluate", "calibrate", "crossvalidate"])
def test_a_missing_package_is_named_before_the_first_row(tmp_path, capsys, monkeypatch, verb):
    monkeypatch.setattr(errors, "find_spec", lambda name: None if name == "matplotlib" else name)
    assert main([verb, "--config", str(tmp_path / "none.yaml")]) == 1
    line = one_line(capsys)
    assert "needs matplotlib" in line
    assert "rewardserve[train]" in line


def test_a_convex_solution_without_steps_drops_no_margins_in_silence(tmp_path, sft, capsys):
    pairs = world.write_jsonl(tmp_path / "pairs.jsonl", [{**row, "margin": 1.0} for row in world.planted_rows(40)])
    assert main(["train", "--config", frozen(tmp_path, sft, pairs)]) == 2
    assert "pairs have a margin, and head_init: logistic" in one_line(capsys)


def test_an_evaluation_asks_for_its_folder_before_it_scores(tmp_path, sft, pairs, capsys):
    (tmp_path / "file").write_text("")
    recipe = recipe_in(tmp_path, sft, pairs, output={"folder": str(tmp_path / "file")})
    assert main(["evaluate", "--config", recipe, "--checkpoint", str(tmp_path / "nothing")]) == 2
    assert "output.folder" in one_line(capsys)


@pytest.mark.parametrize(
    ("verb", "option"),
    [("train", "--checkpoint=x"), ("finish", "--checkpoint=x"), ("crossvalidate", "--checkpoint=x"), ("train", "--folds=3")],
)  # fmt: skip
def test_an_option_that_does_nothing_with_a_verb_is_refused(tmp_path, sft, pairs, capsys, verb, option):
    with pytest.raises(SystemExit) as caught:
        main([verb, "--config", recipe_in(tmp_path, sft, pairs), option])
    assert caught.value.code == 2
    assert capsys.readouterr().err == (
        f"rewardserve {verb}: unrecognized arguments: {option}\nSee rewardserve {verb} --help.\n"
    )


def test_a_cross_validation_does_not_say_that_nothing_is_held_out(tmp_path, sft, pairs, capsys):
    assert main(["crossvalidate", "--config", frozen(tmp_path, sft, pairs), "--folds", "3"]) == 0
    out = capsys.readouterr().out
    assert f"used: {N_ROWS} pairs, each held out in one fold" in out
    assert "no pairs are held out" not in out


# -- what is not there -------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", ["train", "crossvalidate"])
@pytest.mark.parametrize("start", ["backbone", "reward"])
def test_a_model_that_is_not_there_is_told_with_its_setting_and_a_remedy(
    tmp_path, sft, pairs, capsys, monkeypatch, verb, start
):
    monkeypatch.chdir(tmp_path)
    recipe = recipe_in(tmp_path, sft, pairs, model={"start": start})
    assert main([verb, "--config", recipe, "--set", "model.path=nosuch"]) == 1
    line = one_line(capsys)
    assert line.startswith(f"rewardserve {verb}: model.path: 'nosuch' is not a folder"), line
    assert str(tmp_path) in line, "where it was looked for"
    assert "Name a folder" in line


@pytest.mark.parametrize("verb", ["evaluate", "calibrate"])
def test_a_checkpoint_that_is_not_there_is_told_with_its_option_and_a_remedy(tmp_path, sft, pairs, capsys, verb):
    recipe = recipe_in(tmp_path, sft, pairs)
    assert main([verb, "--config", recipe, "--checkpoint", "nosuch"]) == 1
    line = one_line(capsys)
    assert line.startswith(f"rewardserve {verb}: --checkpoint: 'nosuch' is not a folder"), line
    assert "Name a folder" in line
    assert main([verb, "--config", recipe]) == 2
    line = one_line(capsys)
    assert str(tmp_path / "out" / "checkpoint") in line
    assert "rewardserve train" in line
    assert "--checkpoint" in line


def test_the_base_model_of_an_adapter_that_is_not_there_is_told_with_the_file_that_names_it(
    tmp_path, sft, pairs, capsys
):
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "/gone"}))
    recipe = recipe_in(tmp_path, sft, pairs)
    assert main(["evaluate", "--config", recipe, "--checkpoint", str(adapter)]) == 1
    line = one_line(capsys)
    assert f"{adapter / 'adapter_config.json'} names a base model: '/gone' is not a folder" in line


@pytest.mark.parametrize("verb", ["evaluate", "calibrate"])
def test_a_source_for_a_head_that_the_checkpoint_lacks_is_told_with_a_remedy(tmp_path, sft, pairs, capsys, verb):
    assert main(["train", "--config", frozen(tmp_path, sft, pairs)]) == 0
    other = tmp_path / "other"
    source = {"path": str(pairs), "head": "kind"}
    recipe = recipe_in(other, sft, pairs, model={"heads": ["kind"]}, data={"sources": [source]})
    assert main([verb, "--config", recipe, "--checkpoint", str(tmp_path / "out" / "checkpoint")]) == 2
    line = one_line(capsys)
    assert "'kind'" in line
    assert "['score']" in line
    assert "data.sources.0.head=score" in line


# -- the model that training started from ------------------------------------------------------------------


def other_weights(folder):
    world.language_model(folder, seed=1)


def other_epsilon(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 1e-2}))


def other_template(folder):
    path = folder / "chat_template.jinja"
    path.write_text(path.read_text().replace("assistant", "helper"))


def other_merges(folder):
    whole = json.loads((folder / "tokenizer.json").read_text())
    whole["model"]["merges"] = whole["model"]["merges"][:-1]
    (folder / "tokenizer.json").write_text(json.dumps(whole))


LORA = {"name": "lora", "rank": 2}
CHANGES = {
    "lora, weights": (LORA, other_weights, "weights"),
    "lora, configuration": (LORA, other_epsilon, "config.json"),
    "lora, template": (LORA, other_template, "chat template"),
    "frozen, weights": ({"name": "frozen"}, other_weights, "weights"),
    "frozen, tokenizer": ({"name": "frozen"}, other_merges, "tokenizer"),
    "full, configuration": ({"name": "full"}, other_epsilon, "config.json"),
    "full, tokenizer": ({"name": "full"}, other_merges, "tokenizer"),
}


@pytest.mark.sweep(3)
@pytest.mark.parametrize(("change", "verb"), [*((change, "train") for change in CHANGES), ("lora, weights", "finish")])
def test_steps_over_a_model_that_has_changed_are_not_gone_on_from(tmp_path, pairs, capsys, change, verb):
    method, spoil, says = CHANGES[change]
    sft = world.language_model(tmp_path / "sft")
    recipe = recipe_in(tmp_path, sft, pairs, **STEPS, method=method)
    out, saved = tmp_path / "out", tmp_path / "saved"
    stopped_run(recipe, out)
    shutil.copytree(sft, saved)
    spoil(sft)
    resume = RESUME if verb == "train" else ()
    assert main([verb, "--config", recipe, *resume]) == 2
    line = one_line(capsys)
    assert f"{out} was started with " in line
    assert says in line
    assert "model.path" in line
    shutil.rmtree(sft)
    saved.rename(sft)
    assert main([verb, "--config", recipe, *resume]) == 0


def stopped_run(recipe, out):
    """A run with steps and without results."""
    assert main(["train", "--config", recipe]) == 0
    shutil.rmtree(out / "checkpoint")
    for name in run_folder.RESULTS:
        if (out / name).is_dir():
            shutil.rmtree(out / name)
        (out / name).unlink(missing_ok=True)


def test_full_training_goes_on_with_its_own_weights(tmp_path, pairs):
    sft = world.language_model(tmp_path / "sft")
    recipe = recipe_in(tmp_path, sft, pairs, **STEPS)
    stopped_run(recipe, tmp_path / "out")
    other_weights(sft)
    assert main(["train", "--config", recipe, *RESUME]) == 0


def test_steps_of_a_version_that_noted_no_model_are_gone_on_from(tmp_path, sft, pairs):
    recipe = recipe_in(tmp_path, sft, pairs, **STEPS, method=LORA)
    stopped_run(recipe, tmp_path / "out")
    noted = tmp_path / "out" / "steps" / "data.json"
    noted.write_text(json.dumps({"training data": json.loads(noted.read_text())["training data"]}))
    assert main(["train", "--config", recipe, *RESUME]) == 0


def test_parameters_that_take_no_adapter_are_told_once_and_in_the_report(tmp_path, pairs, capsys):
    tokenizer = world.tokenizer()
    config = tiny_config("mixtral", len(tokenizer), pad_token_id=tokenizer.pad_token_id)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "moe")
    tokenizer.save_pretrained(tmp_path / "moe")
    recipe = recipe_in(tmp_path, tmp_path / "moe", pairs, method=LORA)
    assert main(["train", "--config", recipe]) == 0
    output = capsys.readouterr().err
    (line,) = [line for line in output.splitlines() if "without an adapter" in line]
    assert "layers.*.mlp.experts.down_proj" in line
    assert output.index(line) < output.index("exporting")
    (note,) = [
        n for n in json.loads((tmp_path / "out/checkpoint/training_report.json").read_text())["notes"] if n in line
    ]
    assert "experts.down_proj" in (tmp_path / "out" / "report.html").read_text()
    assert "method.targets" in note
