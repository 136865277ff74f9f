"""Score a benchmark file with a checkpoint or a running server, and write the result files of the benchmark's authors.

Both ways give the same numbers: one encoding, one raw score. Depends on files, models and HTTP; `benchmark_files` has the figures.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from rewardserve.model.checkpoint import Checkpoint
from rewardserve.model.contract import sample_to_dict
from rewardserve.model.conversation import Sample, SampleError
from rewardserve.training import run_folder
from rewardserve.training.batches import scoring
from rewardserve.training.console import progress
from rewardserve.training.errors import ModelUnusable, RunFailed
from rewardserve.training.evaluation.benchmark_files import (
    REWARDBENCH,
    RM_BENCH,
    SECTIONS,
    Benchmark,
    RowScores,
    row_result,
    section_scores,
    style_matrix,
    subset_scores,
)
from rewardserve.training.settings.validation import ConfigError

_BATCH_TOKENS = 16384
_TIMEOUT_S = 600.0
_N_ATTEMPTS, _LONGEST_WAIT_S = 8, 30.0
_MODEL_TYPE = "Seq. Classifier"
_CHAT_TEMPLATE = "tokenizer"
"""Words of the authors for a reward model that is read with its own template."""

Raw = list[float | None]


@dataclass(frozen=True, slots=True)
class Scored:
    """Raw scores of a benchmark's conversations, None for one without a score, and the first reasons."""

    model: str
    raw: Raw
    reasons: tuple[str, ...]


def score_with_checkpoint(checkpoint: Checkpoint, samples: Sequence[Sample], name: str) -> Scored:
    """Score every conversation as training judges its held-out pairs."""
    rows: dict[int, tuple[int, ...]] = {}
    reasons: list[str] = []
    for i, sample in enumerate(samples):
        try:
            rows[i] = checkpoint.encoder(sample).ids
        except SampleError as error:
            reasons.append(error.message)
    network = checkpoint.network
    scores_NH = scoring.score(
        network, list(rows.values()), pad_id=checkpoint.pad_id, batch_tokens=_BATCH_TOKENS, label="conversations"
    )
    raw: Raw = [None] * len(samples)
    for i, own in zip(rows, (scores_NH @ np.asarray(network.head_weights)).tolist(), strict=True):
        raw[i] = own
    return Scored(name, raw, tuple(reasons))


def score_with_server(url: str, key: str, samples: Sequence[Sample]) -> Scored:
    """Score every conversation by `POST /score`. Raise `ModelUnusable` for no server, `RunFailed` for a refusal that stays."""
    if not key.isascii():
        raise ConfigError("--key-file: the key has characters that an HTTP header cannot carry")
    headers = {"authorization": f"Bearer {key}"} if key else {}
    try:
        client = httpx.Client(base_url=url, headers=headers, timeout=_TIMEOUT_S)
    except httpx.InvalidURL as error:
        raise ConfigError(f"--url: {url!r} is no address of a server: {error}") from error
    with client as http:
        try:
            about = http.get("/model").raise_for_status().json()
            model, most = str(about["model"]), max(1, int(about["limits"]["max_samples_per_request"]))
        except (httpx.HTTPError, ValueError, KeyError, TypeError) as error:
            raise ModelUnusable(f"--url: {url} is no server of RewardServe that answers ({error})") from error
        results: list[dict[str, Any]] = []
        chunks = [samples[i : i + most] for i in range(0, len(samples), most)]
        for chunk in progress(chunks, "scoring conversations", len(samples), size=len, unit=" conversations"):
            body = {"samples": [sample_to_dict(sample) for sample in chunk]}
            results += _post(http, body)
    raw: Raw = [None if result.get("error") else result["raw"] for result in results]
    return Scored(model, raw, tuple(str(result["error"]["message"]) for result in results if result.get("error")))


def _post(http: httpx.Client, body: dict[str, Any]) -> list[dict[str, Any]]:
    reason = ""
    for attempt in range(_N_ATTEMPTS):
        try:
            reply = http.post("/score", json=body)
        except httpx.TransportError as error:
            reason = f"{type(error).__name__} {error}"
            time.sleep(min(_LONGEST_WAIT_S, 2.0**attempt))
            continue
        if reply.is_success:
            return _results(reply)
        reason = f"{reply.status_code} {reply.text[:300]}"
        if reply.status_code not in (429, 503, 504):
            break
        wait = reply.headers.get("retry-after", "")
        time.sleep(min(_LONGEST_WAIT_S, float(wait) if wait.isdecimal() else 2.0**attempt))
    raise RunFailed(f"--url: {http.base_url} does not score: {reason}")


def _results(reply: httpx.Response) -> list[dict[str, Any]]:
    """Results of a reply, each with `raw` or an error. Raise `RunFailed` for a body of another form."""
    try:
        found: list[dict[str, Any]] = reply.json()["results"]
        complete = all(result.get("error") or isinstance(result["raw"], int | float) for result in found)
    except (ValueError, KeyError, TypeError, AttributeError):
        complete = False
    if not complete:
        raise RunFailed(f"--url: {reply.url} answers with something other than results: {reply.text[:300]}")
    return found


# -- results ----------------------------------------------------------------------------------------------


def write_results(folder: Path, benchmark: Benchmark, scored: Scored) -> tuple[list[str], int]:
    """Write `eval-set/MODEL.json` and `eval-set-scores/MODEL.json`. Return the lines to print, and the number of rows left out."""
    kept, rows = _with_scores(benchmark, scored)
    about = {"model": scored.model, "model_type": _MODEL_TYPE, "chat_template": _CHAT_TEMPLATE}
    subsets = subset_scores(kept, rows)
    figures: dict[str, Any] = {**about, **subsets}
    lines = [
        f"{subset}: {figure:.3f} of {sum(row.subset == subset for row in kept.rows):,}"
        for subset, figure in subsets.items()
    ]
    if kept.format == REWARDBENCH and any(subset in tests for tests in SECTIONS.values() for subset in subsets):
        lines += [f"section {name}: {figure:.3f}" for name, figure in section_scores(subsets).items()]
    elif kept.format == RM_BENCH and rows:
        matrix = style_matrix(rows, RM_BENCH)
        figures |= {
            "hard_acc": matrix.hard,
            "normal_acc": matrix.normal,
            "easy_acc": matrix.easy,
            "style": asdict(matrix),
        }
        lines.append(f"hard {matrix.hard:.3f}, normal {matrix.normal:.3f}, easy {matrix.easy:.3f}")
    elif rows:
        lines.append(f"mean of the subsets: {np.mean(list(subsets.values())):.3f}")
    n_left_out = len(benchmark.rows) - len(kept.rows)
    if n_left_out:
        figures["rows_left_out"] = n_left_out
        reasons = "; ".join(dict.fromkeys(scored.reasons[:3]))
        lines.append(
            f"left out: {n_left_out:,} of {len(benchmark.rows):,} rows, with a response without a score: {reasons}"
        )
    name = f"{scored.model.strip('/').rpartition('/')[2] or 'model'}.json"
    of_rows = list(_rows(kept, rows)) if kept.format == RM_BENCH else {**about, **_columns(kept, rows)}
    for part, value in (("eval-set", figures), ("eval-set-scores", of_rows)):
        (folder / part).mkdir(parents=True, exist_ok=True)
        run_folder.write_json(folder / part / name, value)
    return [*lines, f"results: {folder / 'eval-set' / name}"], n_left_out


def _with_scores(benchmark: Benchmark, scored: Scored) -> tuple[Benchmark, list[RowScores]]:
    """The rows of which every response has a score. A failure is never a number."""
    by_row = benchmark.by_row([np.nan if raw is None else raw for raw in scored.raw])
    keep = [bool(np.isfinite([*chosen, *rejected]).all()) for chosen, rejected in by_row]
    rows = tuple(row for row, keeps in zip(benchmark.rows, keep, strict=True) if keeps)
    return Benchmark(benchmark.format, rows), [own for own, keeps in zip(by_row, keep, strict=True) if keeps]


def _columns(benchmark: Benchmark, scores: Sequence[RowScores]) -> dict[str, list[Any]]:
    """The columns of the authors' files of scores, without the rendered texts."""
    columns: dict[str, list[Any]] = {
        "id": [row.id for row in benchmark.rows],
        "subset": [row.subset for row in benchmark.rows],
        "results": [row_result(benchmark.format, own) for own in scores],
    }
    if benchmark.format == REWARDBENCH:
        columns["results"] = [int(each) for each in columns["results"]]
        return columns | {
            "scores_chosen": [chosen[0] for chosen, _ in scores],
            "scores_rejected": [rejected[0] for _, rejected in scores],
        }
    return columns | {
        "scores": [[*chosen, *rejected] for chosen, rejected in scores],
        "num_correct": [len(row.chosen) for row in benchmark.rows],
    }


def _rows(benchmark: Benchmark, scores: Sequence[RowScores]) -> Iterator[dict[str, Any]]:
    """The rows of RM-Bench with the keys that its `compute_accuracy` reads."""
    for row, (chosen, rejected) in zip(benchmark.rows, scores, strict=True):
        yield {"id": row.id, "domain": row.subset, "score_chosen": list(chosen), "score_rejected": list(rejected)}
