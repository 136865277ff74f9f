"""TRL itself: GRPO with our reward function against a live server, and checkpoints that go either way."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("trl", reason="needs TRL: run `make test-trainers`")

from datasets import Dataset
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer
from trl import GRPOConfig, GRPOTrainer, RewardConfig, RewardTrainer

from rewardserve_client import AsyncRewardClient
from rewardserve_client.trl import reward_function
from tests.support.service_server import ROOT, Server
from tests.support.tiny import randomize, tiny_config, tiny_tokenizer
from tests.trainers.tiny import TEMPLATE, ByHand, normalized

STEPS, GROUP, PROMPTS = 120, 8, 4
QUESTIONS = [
    "What is two plus two?", "Say hello.", "Who jumps over the dog?", "What is a reward model?",
    "Name a colour.", "Why is the sky blue?", "Tell a joke.", "What comes after three?",
]  # fmt: skip
RUNS = ROOT / "runs" / "trainers"


def grpo(folder: Path, policy: Path, rewards, steps: int, **changes):
    """A GRPO run of a tiny policy on the CPU; the trainer after it."""
    settings = {
        "output_dir": str(folder), "max_steps": steps, "per_device_train_batch_size": GROUP * PROMPTS,
        "num_generations": GROUP, "max_completion_length": 16, "learning_rate": 5e-3, "beta": 0.0, "logging_steps": 1,
        "use_cpu": True, "bf16": False, "report_to": [], "save_strategy": "no", "seed": 0, "disable_tqdm": True,
    }  # fmt: skip
    trainer = GRPOTrainer(
        model=str(policy),
        reward_funcs=rewards,
        args=GRPOConfig(**{**settings, **changes}),
        train_dataset=Dataset.from_list([{"prompt": [{"role": "user", "content": q}]} for q in QUESTIONS]),
        processing_class=AutoTokenizer.from_pretrained(policy, padding_side="left"),
    )
    trainer.train()
    return trainer


def column(trainer, name):
    return [entry[name] for entry in trainer.state.log_history if name in entry]


def witnessed(reward, seen):
    """The same function, and what went in and came out."""

    async def witness(prompts, completions, **more):
        rewards = await reward(prompts=prompts, completions=completions, **more)
        seen.append((prompts, completions, rewards))
        return rewards

    witness.__name__ = reward.__name__
    return witness


def test_grpo_learns_from_the_server_and_logs_what_a_recomputation_gives(server, policy_folder, by_hand, tmp_path):
    seen = []
    client = AsyncRewardClient(server.url)
    reward = witnessed(reward_function(client, run="grpo-1"), seen)
    trainer = grpo(tmp_path, policy_folder, reward, STEPS)

    logged, raw = column(trainer, "rewards/rewardserve/mean"), column(trainer, "rewardserve/raw")
    assert len(logged) == len(raw) == len(seen) == STEPS
    for step, (prompts, completions, rewards) in enumerate(seen):
        again = [by_hand.raw([*p, *c]) if c[0]["content"] else None for p, c in zip(prompts, completions, strict=True)]
        scored = [score for score in again if score is not None]
        assert rewards == pytest.approx([None if r is None else normalized(r) for r in again], abs=1e-3)
        assert logged[step] == pytest.approx(normalized(sum(scored) / len(scored)), abs=1e-3)
        assert raw[step] == pytest.approx(sum(scored) / len(scored), abs=1e-3)
    assert sum(logged[-10:]) / 10 > sum(logged[:10]) / 10 + 0.1

    run = server.client.get("/tripwires/grpo-1/details").json()
    assert run["samples"] == sum(reward is not None for _, _, rewards in seen for reward in rewards)
    assert run["step"] == STEPS - 1
    curve(logged, RUNS / "grpo.png")
    (RUNS / "grpo.json").write_text(json.dumps({"rewards": logged, "raw": raw}, indent=1))


def curve(rewards, path: Path) -> None:
    """The mean reward of every step, as a picture."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    path.parent.mkdir(parents=True, exist_ok=True)
    figure, axes = pyplot.subplots(figsize=(6, 3.5), layout="constrained")
    axes.plot(range(1, len(rewards) + 1), rewards)
    axes.set(xlabel="step", ylabel="mean reward", title="GRPO of a tiny policy against a live server")
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def test_trls_own_reward_model_and_the_server_agree_step_by_step(raw_server, reward_folder, policy_folder, tmp_path):
    ours = reward_function(AsyncRewardClient(raw_server.url), run="grpo-2")
    trainer = grpo(tmp_path, policy_folder, [ours, str(reward_folder)], 5)
    in_process = column(trainer, f"rewards/{reward_folder.parent.name}/model/mean") or column(
        trainer, f"rewards/{reward_folder.name}/mean"
    )
    assert len(in_process) == 5
    assert column(trainer, "rewards/rewardserve/mean") == pytest.approx(in_process, abs=1e-3)


def test_a_sample_without_a_score_is_left_out_of_its_group(policy_folder, reward_folder, tmp_path):
    flags = ("--max-input-tokens=56", "--truncation=error", "--device=cpu")
    seen = []
    with Server(f"{reward_folder}", *flags) as short:
        reward = witnessed(reward_function(AsyncRewardClient(short.url), run="short"), seen)
        trainer = grpo(tmp_path, policy_folder, reward, 3)
    given = [reward for _, _, rewards in seen for reward in rewards]
    assert None in given
    assert 0.0 not in given
    means = column(trainer, "rewards/rewardserve/mean")
    for (_, _, rewards), mean in zip(seen, means, strict=True):
        scored = [reward for reward in rewards if reward is not None]
        assert mean == pytest.approx(sum(scored) / len(scored), abs=1e-5)


# -- checkpoints ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained_by_trl(tmp_path_factory):
    """What TRL's RewardTrainer leaves after some steps."""
    folder = tmp_path_factory.mktemp("trl")
    tokenizer = tiny_tokenizer(TEMPLATE)
    config = tiny_config("llama", len(tokenizer), num_labels=1)
    model = AutoModelForSequenceClassification.from_config(config)
    randomize(model)
    pairs = [
        {
            "prompt": [{"role": "user", "content": question}],
            "chosen": [{"role": "assistant", "content": "Four, of course."}],
            "rejected": [{"role": "assistant", "content": "tabs and spaces"}],
        }
        for question in QUESTIONS
    ]
    settings = {
        "output_dir": str(folder / "out"), "max_steps": 10, "per_device_train_batch_size": 4, "learning_rate": 1e-3,
        "use_cpu": True, "bf16": False, "report_to": [], "save_strategy": "no", "disable_tqdm": True, "logging_steps": 1,
    }  # fmt: skip
    trainer = RewardTrainer(
        model=model,
        args=RewardConfig(**settings),
        processing_class=tokenizer,
        train_dataset=Dataset.from_list(pairs),
    )
    trainer.train()
    trainer.save_model(str(folder / "model"))
    tokenizer.save_pretrained(folder / "model")
    return folder / "model"


def test_what_trls_reward_trainer_saves_is_served_with_equal_scores(trained_by_trl):
    by_hand = ByHand(trained_by_trl)
    with Server(f"{trained_by_trl}", "--device=cpu", "--dtype=float32") as server:
        assert server.client.get("/model").json()["contract_report"]["origin"] == "inferred"
        for question in QUESTIONS:
            for answer in ("Four, of course.", "tabs and spaces", "x"):
                messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
                (result,) = server.score({"messages": messages}).json()["results"]
                assert result["raw"] == pytest.approx(by_hand.raw(messages), abs=1e-4)


def test_our_checkpoint_is_a_sequence_classifier_to_transformers_with_our_scores(raw_server, reward_folder, by_hand):
    config = AutoConfig.from_pretrained(reward_folder)
    assert config.architectures == ["Qwen2ForSequenceClassification"]
    assert config.num_labels == 1
    rows = [by_hand.ids([{"role": "user", "content": q}, {"role": "assistant", "content": "Yes."}]) for q in QUESTIONS]
    served = raw_server.score(*({"input_ids": row} for row in rows)).json()["results"]
    assert [result["raw"] for result in served] == pytest.approx([by_hand.raw_of_ids(row) for row in rows], abs=1e-4)


def test_the_example_trains(server, policy_folder, tmp_path):
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": [{"role": "user", "content": q}]}) + "\n" for q in QUESTIONS))
    command = [sys.executable, ROOT / "examples" / "trl" / "grpo.py", "--cpu", "--steps=2", "--run=example"]
    done = subprocess.run(
        [*command, f"--policy={policy_folder}", f"--data={prompts}"],
        cwd=tmp_path, env={**os.environ, "REWARDSERVE_URL": server.url, "PYTHONPATH": str(ROOT / "client")},
        capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert "rewards/rewardserve/mean" in done.stdout
    assert server.client.get("/tripwires/example/details").json()["samples"] > 0
