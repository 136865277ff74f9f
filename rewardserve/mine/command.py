"""`rewardserve mine CHECKPOINT INPUT --out QUEUE`: write the pairs in which a judge contradicts the model, to be labelled.

`rewardserve.exit_codes` has the exit codes.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from pydantic import Field
from pydantic_settings import CliPositionalArg, SettingsError

from rewardserve.compare.agreement import spearman
from rewardserve.compare.rows import Rows, read_rows
from rewardserve.compare.scoring import NotServable, Scores, find_model, score_samples
from rewardserve.exit_codes import FAILED, INTERRUPTED, SOME_FAILED, USAGE_ERROR
from rewardserve.mine.policy import PolicyError, PolicySettings, Prompt, sample_policy
from rewardserve.mine.queue_file import QueueEntry, ScoredResponse, write_queue
from rewardserve.mine.report import Report, text_of
from rewardserve.mine.selection import (
    Candidate,
    Floats,
    Gaps,
    Ints,
    controls,
    find_candidates,
    n_controls_for,
    quantiles,
    responses_in,
    spread,
    standardise,
)
from rewardserve.mine.shared_features import NO_FEATURE, SharedFeature, find_shared
from rewardserve.model.backends import LoadError
from rewardserve.model.backends.audit_judge import find_audit_judge
from rewardserve.model.conversation import Sample
from rewardserve.model.resource_errors import describe_resource_error
from rewardserve.model.text.text_files import read_bounded, write_text
from rewardserve.service.cli.options import Wording, complain, complain_of_model, from_command_line
from rewardserve.service.errors import RequestRefused
from rewardserve.service.observability import logs
from rewardserve.service.settings import AUTO_AUDIT_MODEL, ModelSettings
from rewardserve.service.tripwires.attribution.observed import ObservedSample
from rewardserve.training.dataset import sources
from rewardserve.training.dataset.counterexamples import QueueResponse, scores_path
from rewardserve.training.dataset.feedback import with_noun
from rewardserve.training.settings.data_config import SourceConfig
from rewardserve.training.settings.validation import ConfigError

PROGRAM = "rewardserve mine"
FIRST = (
    "judge",
    "out",
    "pairs",
    "per_prompt",
    "min_gap",
    "controls",
    "policy.url",
    "policy.model",
    "policy.n",
    "device",
    "dtype",
)
AS_JSON = "--json"
_MAX_KEY_BYTES = 4_096


class MineSettings(ModelSettings):
    """Find responses that a model pays and a judge does not, and write them in pairs into a queue for labelling."""

    checkpoint: CliPositionalArg[str] = Field(
        description="reward model that a policy is, or will be, trained on: checkpoint folder or hub name; `default`: the "
        "embedded default"
    )
    input: CliPositionalArg[Path] = Field(
        description="samples as in POST /score or of `rewardserve review export`, several responses to each prompt, or prompts "
        "for --policy.url: .jsonl, .json, "
        ".csv, .tsv (each also .gz), .parquet"
    )
    out: Path = Field(description="file for the queue; a file that exists is never written to: it may have labels")
    judge: str = Field(
        AUTO_AUDIT_MODEL,
        description="reward model that judges, or several with commas between them, whose mean judges; auto: the audit judge "
        "beside CHECKPOINT",
    )
    pairs: int = Field(300, gt=0, description="most pairs of the queue, controls included")
    per_prompt: int = Field(
        4, gt=0, description="most suspected pairs of one prompt; each prompt gives one before any a second"
    )
    min_gap: float = Field(
        1.0,
        ge=0.0,
        description="how much further apart the model puts two responses than the judge, in standard deviations",
    )
    controls: float = Field(
        0.2,
        ge=0.0,
        lt=1.0,
        description="share of the queue that is drawn whatever the scores, so that labels stay blind",
    )
    policy: PolicySettings = PolicySettings()


class UnusableInput(Exception):
    """INPUT or an option cannot be used; the message has the remedy."""


@dataclass(frozen=True, slots=True)
class Responses:
    """Responses to prompts, with their texts. Shapes: N responses."""

    samples: tuple[Sample, ...]
    prompt_N: Ints

    @property
    def texts(self) -> list[str]:
        """The responses alone."""
        return [sample.conversation()[-1].content for sample in self.samples]


def main(arguments: Sequence[str]) -> int:
    """Read or sample responses, score them with model and judge, write the queue, print the report. Return the exit code."""
    settings = from_command_line(
        MineSettings,
        PROGRAM,
        [each for each in arguments if each != AS_JSON],
        FIRST,
        without=("model", "ensemble", "audit_model"),
        switches={AS_JSON: "print the report as one JSON object"},
    )
    wording = Wording(MineSettings, arguments)
    logs.configure(settings.log_level, settings.log_format)
    try:
        _check_out(settings.out)
        models = named_models(settings)
        for which, model in models.items():
            find_model(which, model, settings)  # all, before minutes go into samples and scores
        rows = read_rows(_samples_file(settings))
        responses = usable(rows, settings.input)
        scores = [score_samples(settings, which, model, responses.samples) for which, model in models.items()]
        report = mine(settings, responses, scores)
    except NotServable as error:
        complain_of_model(PROGRAM, error.reason, wording, error.which)
        return FAILED
    except (RequestRefused, PolicyError) as error:
        complain(PROGRAM, [str(error)])
        return FAILED
    except (ConfigError, SettingsError, UnusableInput) as error:
        complain(PROGRAM, [wording(str(error))])
        return USAGE_ERROR
    except OSError as error:
        complain(PROGRAM, [describe_resource_error(error) or f"{error.filename or 'a file'}: {error.strerror}."])
        return FAILED
    except (KeyboardInterrupt, asyncio.CancelledError):
        complain(PROGRAM, ["interrupted."])
        return INTERRUPTED
    print(json.dumps(asdict(report), indent=2) if AS_JSON in arguments else text_of(report))
    return SOME_FAILED if _print_missing(rows, responses, scores) else 0


def named_models(settings: MineSettings) -> dict[str, str]:
    """The model and its judges, by the words that name them in errors. Raise `UnusableInput` or `NotServable`."""
    names = [name.strip() for name in settings.judge.split(",") if name.strip()]
    if names == [AUTO_AUDIT_MODEL]:
        try:
            folder = find_audit_judge(settings.checkpoint)
        except LoadError as error:
            raise NotServable("CHECKPOINT", settings.checkpoint, error) from error
        if folder is None:
            raise UnusableInput(
                f"{settings.checkpoint} has no audit judge beside it. Name a judge with --judge, or train one: `audit_judge: {{}}` "
                "in the recipe."
            )
        names = [str(folder)]
    if not names:
        raise UnusableInput("--judge is empty: name a reward model, or auto for the one beside CHECKPOINT.")
    return {"CHECKPOINT": settings.checkpoint} | {f"judge {i}": name for i, name in enumerate(names, start=1)}


def _check_out(out: Path) -> None:
    for path in (out, scores_path(out)):
        if path.exists():
            raise UnusableInput(f"{path} exists, and a queue may have labels: choose another --out, or remove it.")
    if out.suffix != ".jsonl":
        raise UnusableInput(f"--out is {out}; a queue is a .jsonl file.")
    if not out.resolve().parent.is_dir():
        raise UnusableInput(f"--out is {out}, and its folder does not exist.")


# -- responses --------------------------------------------------------------------------------------------------------


def _samples_file(settings: MineSettings) -> Path:
    """The file of samples: INPUT, or the responses that the policy gives to its prompts, which are written beside the queue."""
    if not settings.policy.url:
        return settings.input
    path = settings.out.with_name(f"{settings.out.stem}.samples.jsonl")
    if path.exists():
        raise UnusableInput(
            f"{path} exists: it has responses of a policy. Mine them by giving it as INPUT, without --policy.url."
        )
    prompts = read_prompts(settings.input)
    key_file = settings.policy.key_file
    key = read_bounded(Path(key_file), _MAX_KEY_BYTES).decode().strip() if key_file else ""
    sampled = asyncio.run(_sample(settings.policy, prompts, key))
    lines = [
        json.dumps({"prompt": prompt, **response}, ensure_ascii=False)
        for prompt, responses in zip(prompts, sampled, strict=True)
        for response in responses
    ]
    write_text(path, "".join(f"{line}\n" for line in lines))
    return path


async def _sample(policy: PolicySettings, prompts: Sequence[Prompt], key: str) -> list[list[dict[str, str]]]:
    try:
        return await sample_policy(policy, prompts, key)
    except* PolicyError as errors:
        raise _first(errors) from None


def _first(errors: BaseExceptionGroup[PolicyError]) -> PolicyError:
    found = errors.exceptions[0]
    return _first(found) if isinstance(found, BaseExceptionGroup) else found


def read_prompts(path: Path) -> list[Prompt]:
    """The distinct prompts of a file: `prompt`, or `messages` up to the last one of the user. Raise `UnusableInput`."""
    if not path.is_file():
        raise UnusableInput(f"{path} is not a file.")
    prompts: dict[str, Prompt] = {}
    for row in sources.read(SourceConfig(str(path))):
        values = row.values or {}
        prompt = values.get("prompt", values.get("messages"))
        if (
            isinstance(prompt, list)
            and prompt
            and isinstance(prompt[-1], dict)
            and prompt[-1].get("role") == "assistant"
        ):
            prompt = prompt[:-1]
        if not prompt or not isinstance(prompt, str | list):
            raise UnusableInput(f"{row.file}:{row.line}: {row.error or 'has no prompt; give `prompt` or `messages`'}")
        prompts.setdefault(json.dumps(prompt), prompt)
    if not prompts:
        raise UnusableInput(f"{path} has no prompts.")
    return list(prompts.values())


def usable(rows: Rows, path: Path) -> Responses:
    """The responses with a known prompt. Raise `UnusableInput` if no prompt has two."""
    kept = [i for i, sample in enumerate(rows.samples) if sample.text is None and sample.input_ids is None]
    prompt_N = np.array([rows.prompts[i] for i in kept], dtype=np.int64)
    if not kept or np.bincount(prompt_N).max() < 2:
        raise UnusableInput(
            f"{path} has no prompt with two different responses, and a response is judged against others to its prompt. Give "
            "several samples of each prompt as prompt and response, or as messages."
        )
    return Responses(tuple(rows.samples[i] for i in kept), prompt_N)


# -- mining -----------------------------------------------------------------------------------------------------------


def mine(settings: MineSettings, responses: Responses, scores: Sequence[Scores]) -> Report:
    """Choose the pairs and write the queue, unless there is no pair. `scores`: those of the model, then of each judge."""
    prompt_N, texts = responses.prompt_N, responses.texts
    model_N, *judges = (np.array(each.raw) for each in scores)
    gaps = standardise(model_N, _mean_judge(judges, prompt_N), prompt_N)
    chars_N = np.array([len(text) for text in texts], dtype=np.int64)
    n_controls = round(settings.pairs * settings.controls)

    def candidates(of: Gaps) -> list[Candidate]:
        return find_candidates(of, prompt_N, chars_N, texts, min_gap=settings.min_gap, per_prompt=settings.per_prompt)

    found = candidates(gaps)
    n_wanted = min(n_controls, n_controls_for(len(found), settings.controls))
    reserved: list[Candidate] = []
    if len(controls(gaps, prompt_N, texts, found, n_wanted)) < n_wanted:
        # Too few responses are left: the controls are drawn first, so that their rows are as blind as others.
        reserved = controls(gaps, prompt_N, texts, [], n_wanted)
        found = candidates(gaps.without(responses_in(reserved)))
    found.sort(key=lambda each: (-each.gap, each.prompt, each.high))
    suspected, beside = ([_observed(responses, gaps, i) for i in side] for side in _sides(found))
    shared, groups = find_shared(suspected, beside)
    chosen = spread(found, groups, settings.pairs - n_controls)
    drawn = (reserved or controls(gaps, prompt_N, texts, chosen, n_controls)) if chosen else []
    words = dict(zip(found, groups, strict=True))
    if chosen:
        write_queue(settings.out, [_entry(responses, gaps, model_N, each, words) for each in (*chosen, *drawn)])
    n_of = Counter(words[each] for each in chosen)
    known_N = np.isfinite(gaps.gap_N)
    return Report(
        model=settings.checkpoint,
        judges=tuple(each.model for each in scores[1:]),
        n_responses=len(texts),
        n_scored=int(known_N.sum()),
        n_prompts=len(np.unique(prompt_N[known_N])),
        n_contradicted=len(found),
        n_prompts_contradicted=len({each.prompt for each in found}),
        n_suspected=len(chosen),
        n_controls=len(drawn),
        n_controls_wanted=min(n_controls, n_controls_for(len(chosen), settings.controls)),
        n_prompts_chosen=len({each.prompt for each in (*chosen, *drawn)}),
        correlation=spearman(gaps.model_N[known_N], gaps.judge_N[known_N]),
        gap_quantiles=dict(quantiles(gaps)),
        min_gap=settings.min_gap,
        shared=tuple(SharedFeature(f.words, f.suspected, f.beside, n_of[f.words]) for f in shared),
        queue=str(settings.out) if chosen else "",
    )


def _mean_judge(judges: Sequence[Floats], prompt_N: Ints) -> Floats:
    """The score of the judge, or the mean of the standardised scores of several."""
    if len(judges) == 1:
        return judges[0]
    mean_N: Floats = np.mean([standardise(each, each, prompt_N).model_N for each in judges], axis=0)
    return mean_N


def _sides(found: Sequence[Candidate]) -> tuple[list[int], list[int]]:
    return [each.high for each in found], [each.other for each in found]


def _observed(responses: Responses, gaps: Gaps, number: int) -> ObservedSample:
    *turns, response = responses.samples[number].conversation()
    prompt = "\n".join(turn.content for turn in turns)
    key = int(responses.prompt_N[number])
    return ObservedSample(prompt, response.content, key, float(gaps.model_N[number]), float(gaps.judge_N[number]))


def _entry(
    responses: Responses, gaps: Gaps, model_N: Floats, pair: Candidate, words: dict[Candidate, str]
) -> QueueEntry:
    high, other = (
        ScoredResponse(
            QueueResponse(responses.samples[i].conversation()[-1].content, responses.samples[i].finish_reason),
            float(model_N[i]),
            float(gaps.model_N[i]),
            float(gaps.judge_N[i]),
        )
        for i in (pair.high, pair.other)
    )
    features = () if words.get(pair, NO_FEATURE) == NO_FEATURE else (words[pair],)
    return QueueEntry(responses.samples[pair.high], high, other, pair.gap, pair.kind, features)


# -- missing ----------------------------------------------------------------------------------------------------------


def _print_missing(rows: Rows, responses: Responses, scores: Sequence[Scores]) -> bool:
    """Print the number of rows and responses that were not looked at. Return whether there are any."""
    messages = []
    if rows.bad:
        counts = ", ".join(f"{name} {n}" for name, n in sorted(rows.bad.items()))
        messages.append(
            f"{sum(rows.bad.values())} of {with_noun(rows.n_rows, 'row')} left out ({counts}): {rows.first_bad}"
        )
    if n := len(rows.samples) - len(responses.samples):
        messages.append(f"{n} samples are left out: text and token ids have no known prompt")
    for each in scores:
        if each.failed:
            counts = ", ".join(f"{name} {n}" for name, n in sorted(each.failed.items()))
            messages.append(
                f"{each.model} gave {sum(each.failed.values())} of {len(each.raw)} responses no score ({counts})"
            )
    complain(PROGRAM, messages)
    return bool(messages)
