"""Random traffic of a run monitor, and its whole state as plain values: a server that restarts against one that does not."""

from __future__ import annotations

import random
from collections import OrderedDict
from dataclasses import fields, is_dataclass
from functools import partial

from rewardserve.model.traits import TRAITS
from rewardserve.service.tripwires.alert import CANARY, Alert
from rewardserve.service.tripwires.features import SampleFeatures
from rewardserve.service.tripwires.run_context import UnnamedClient
from rewardserve.service.tripwires.run_table import CANARIES
from rewardserve.service.tripwires.running_sums import RunningSums

TASKS = ("", "", "chat", "code")
RUNS = (("a", ""), ("b", "key"), (UnnamedClient("::1", "agent /score"), ""), ("a", "key"), (None, ""))


def actions(seed, n):
    """Calls of a monitor, each a function of the monitor: requests, audits, ids, acknowledgements, canaries. Exploits grow."""
    rng = random.Random(seed)
    return [_action(rng, i, i / n) for i in range(n)]


def _action(rng, at, share):
    kind = rng.random()
    name, owner = rng.choice(RUNS)
    if kind < 0.75:
        samples = [_sample(rng, share) for _ in range(rng.choice((1, 3, 16, 40)))]
        text = "Why is it so? " * 9 if share < 0.5 else "def f(x): return x[1]"
        prompts = {each.prompt_hash: f"{text} {each.prompt_hash}" for each in samples[::2]}
        return lambda monitor: monitor.observe(name, at, samples, float(at), rng_kl(at), owner=owner, prompts=prompts)
    if kind < 0.85:
        ids = [(rng.randrange(30), rng.randrange(3)) for _ in range(8)]
        return lambda monitor: monitor.add_sample_ids(name, ids, float(at), owner)
    if kind < 0.95:
        score, prompt = rng.gauss(share * 3, 1), rng.randrange(9)
        task = rng.choice(TASKS)
        return lambda monitor: monitor.add_audit(name, prompt, score, rng_audit(score, share), float(at), owner, task)
    if kind < 0.96:
        return lambda monitor: monitor.report(CANARIES, Alert(CANARY, "page", 2.0, 1.0, None, ("c",)), float(at))
    return partial(_acknowledge, rng.random())


def rng_kl(at):
    return at * 0.01


def rng_audit(score, share):
    return (1 - share) * 0.6 * score - share


def _acknowledge(where, monitor):
    """Acknowledge one of the active alerts, whichever that is."""
    active = [(label, wire) for label, run in monitor.runs.items() for wire in run.alerts]
    return monitor.acknowledge(*active[int(where * len(active))]) if active else None


def _sample(rng, share):
    exploits = rng.random() < share
    traits = [rng.random() * 0.1 for _ in TRAITS]
    traits[0] = 0.0
    if exploits:
        traits[TRAITS.index("flattery")] = 2.0
    score = rng.gauss(2.0 * exploits, 1.0)
    return SampleFeatures(
        prompt_hash=rng.randrange(40) - 20,
        retry_key=rng.randrange(2**63) if rng.random() < 0.9 else 7,
        reward=score,
        score=score,
        is_capped=rng.random() < 0.1,
        traits=tuple(traits[: rng.choice((0, 3, len(TRAITS), len(TRAITS), len(TRAITS)))]),
        text_digest=rng.randrange(2**64) if rng.random() < 0.95 else 5,
        spread=rng.random(),
        distance=rng.gauss(0, 1),
        audit=score * 0.6 - 2.0 * exploits if rng.random() < 0.3 else None,
        evidence=f"{rng.randrange(2**64):016x}",
        components=(score, rng.gauss(0, 1)),
        is_honeypot_hit=exploits if rng.random() < 0.2 else None,
        task=rng.choice(TASKS),
    )


def plain(value):
    """A value with all that it contains, comparable by `==`; of an `OrderedDict` with its order."""
    if isinstance(value, RunningSums):
        return value.sums
    if is_dataclass(value):
        return {each.name: plain(getattr(value, each.name)) for each in fields(value) if each.name != "baseline_source"}
    if isinstance(value, OrderedDict):
        return [(key, plain(each)) for key, each in value.items()]
    if isinstance(value, dict):
        return {key: plain(each) for key, each in value.items()}
    if isinstance(value, set):
        return sorted(value)
    if isinstance(value, tuple | list):
        return [plain(each) for each in value]
    return [value.maxlen, [plain(each) for each in value]] if hasattr(value, "maxlen") else value


def state(monitor):
    """The whole state of a monitor."""
    return [[(label, plain(run)) for label, run in runs.items()] for runs in (monitor.runs, monitor.archived)]
