"""From trained weights to what a run owes: figures, calibration, checkpoint with contract, adapter, report.

Decides nothing about training; is handed a network whose weights are settled.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from model.calibration import Calibration
from model.checkpoint import Checkpoint
from model.conversation import Sample
from model.encoding import Encoder
from model.traits import Lexicon, of_ids, of_text
from training import calibrate, data, evaluate, export, hidden, recipe, report, scoring
from training.calibrate import NothingToFit
from training.config import Config
from training.evaluate import Floats, Judged, Metrics
from training.sequences import PairTable, TokenSequence

_N_BAD_SHOWN = 20


@dataclass(frozen=True, slots=True)
class Tables:
    """The encoded pairs of a run, and what was read to get them."""

    split: data.Split
    train: PairTable
    held_out: PairTable


def finish(
    config: Config, trained: Checkpoint, tables: Tables, folder: Path, *, verb: str, before: Sequence[Metrics] = ()
) -> Path:
    """Judge on the held-out pairs, calibrate, export and report. Return the checkpoint's folder."""
    network = trained.network.requires_grad_(False).eval()
    scores_NH, hidden_ND = _read(config, trained, tables.held_out)
    # The weights of several heads are settled only here; the combined score is judged with them.
    trained, about_hidden = _calibrated(config, trained, tables.held_out, scores_NH, hidden_ND)
    calibration = trained.calibration
    judged = evaluate.slices(tables.held_out, scores_NH, network.head_names, network.head_weights)
    metrics = figures(config, judged)
    crossed = figures(
        config, evaluate.cross_slices(tables.held_out, scores_NH, network.head_names, network.head_weights)
    )
    probes = _probes(config, tables)
    adapter = config.output.adapter and config.model.n_layers is None and export.has_adapter(trained)
    if adapter:
        export.adapter(folder / "adapter", trained, _base_name(config))
    out = folder / "checkpoint"
    facts = {"made by": f"reward-train {verb}", **facts_of(config, tables)}
    contract_digest = _export(out, trained, probes)
    page = facts | {"contract": contract_digest, "calibration": calibration.digest if calibration else None}
    page |= {"hidden states": about_hidden}
    page |= {"heads": dict(zip(network.head_names, network.head_weights, strict=True))}
    details = {
        "metrics": [asdict(m) for m in metrics],
        "cross-use": [asdict(m) for m in crossed],
        "before": [asdict(m) for m in before],
        "bad rows": [str(b) for b in tables.split.bad[:_N_BAD_SHOWN]],
        "recipe": recipe.plain(config),
        "versions": export.versions(),
    }
    export.write_report(out, page | details)
    if _heads_alone(config, trained):
        base = _base_name(config)
        export.heads(folder / "heads", trained, base)
        # Its contract comes last and is another one; the scores in it are the same.
        export.write_report(folder / "heads", page | details | {"base": base, "contract": None})
    title = f"Reward model {folder.resolve().name}"
    shown = report.Page(title, page, metrics, before, judged, recipe.plain(config), crossed)
    report.write(folder / "report.html", shown)
    if adapter:
        # Last: an adapter that cannot be read back over its base must not cost the run its checkpoint.
        export.contract(folder / "adapter", trained, probes)
    if _heads_alone(config, trained):
        export.contract(folder / "heads", trained, probes)
    return out


def score(config: Config, checkpoint: Checkpoint, table: PairTable) -> Floats:
    """Every head on every distinct sequence of a table, `(N, H)`."""
    return _read(config, checkpoint, table)[0]


def _read(config: Config, checkpoint: Checkpoint, table: PairTable) -> tuple[Floats, Tensor]:
    """The scores, and the hidden states `(N, D)` that the heads have read."""
    rows, budget = [s.ids for s in table.sequences], config.eval.batch_tokens
    return scoring.read(checkpoint.network, rows, pad_id=checkpoint.pad_id, batch_tokens=budget, label="held-out pairs")


def judge(config: Config, checkpoint: Checkpoint, table: PairTable) -> list[Judged]:
    """The scored pairs of a table, slice by slice."""
    network = checkpoint.network
    return evaluate.slices(table, score(config, checkpoint, table), network.head_names, network.head_weights)


def figures(config: Config, judged: Sequence[Judged]) -> list[Metrics]:
    """One line of figures a slice."""
    return [evaluate.judge(j, n_bootstrap=config.eval.bootstrap) for j in judged]


def facts_of(config: Config, tables: Tables) -> dict[str, Any]:
    """What was read, kept and dropped: counts, and digests of the data."""
    split, dropped = tables.split, Counter(tables.train.dropped) + Counter(tables.held_out.dropped)
    return {
        "model": f"{config.model.path} ({config.model.start})",
        "method": config.method.name,
        "rows read": split.n_rows,
        "rows skipped": len(split.bad),
        "training pairs": len(tables.train),
        "training sequences": len(tables.train.sequences),
        "held-out pairs": len(tables.held_out),
        "held-out groups": len({p.group for p in tables.held_out.pairs}),
        "pairs dropped": dict(dropped),
        "sequences truncated": sum(s.truncated for t in (tables.train, tables.held_out) for s in t.sequences),
        "training data": data.digest(tables.train.pairs),
        "held-out data": data.digest(tables.held_out.pairs),
    }


def _calibrated(
    config: Config, trained: Checkpoint, table: PairTable, scores_NH: Floats, hidden_ND: Tensor
) -> tuple[Checkpoint, str]:
    """With what the held-out responses say, in place of what an earlier calibration said; and what became of hidden states."""
    if not len(table):
        return replace(trained, calibration=None, hidden=None), "nothing was held out"
    calibration = _calibrate(config, trained, table, scores_NH)
    try:
        reference = hidden.fit(hidden_ND.double().numpy())
    except (NothingToFit, np.linalg.LinAlgError) as why:
        # It changes no score, and must not cost the run its checkpoint.
        return replace(trained, calibration=calibration, hidden=None), f"not fitted: {why}"
    distance_N = reference.log_distance(hidden_ND).double().numpy()
    calibration = calibrate.with_distance(calibration, reference.digest, distance_N)
    said = f"{len(reference.whitening_KD)} directions of {len(reference.mean_D)}, {len(hidden_ND)} responses"
    return replace(trained, calibration=calibration, hidden=reference), said


def _calibrate(config: Config, trained: Checkpoint, table: PairTable, scores_NH: Floats) -> Calibration:
    """The calibration on held-out responses; several heads get their weights first."""
    network = trained.network
    if len(network.head_names) > 1:
        network.head_weights = calibrate.head_weights(scores_NH, config.model.weight_of_head)
    raw_N = scores_NH @ network.head_weights
    chosen, rejected = list(table.chosen), list(table.rejected)
    diff_PH, label_P = scores_NH[chosen] - scores_NH[rejected], np.array([pair.head for pair in table.pairs])
    lexicon, encoder = Lexicon.read(), trained.encoder
    held_out = calibrate.HeldOut(
        raw_N=raw_N,
        tokens_N=np.array([s.n_response for s in table.sequences]),
        diff_P=raw_N[chosen] - raw_N[rejected],
        head_names=network.head_names,
        heads_NH=scores_NH,
        head_diffs=[diff_PH[label_P == name, h] for h, name in enumerate(network.head_names)],
        traits_NT=np.array([_traits(s, lexicon, encoder) for s in table.sequences]),
        lexicon=lexicon.version,
    )
    return calibrate.fit(held_out, data_digest=data.digest(table.pairs))


def _traits(sequence: TokenSequence, lexicon: Lexicon, encoder: Encoder) -> tuple[float, ...]:
    sample, response = sequence.sample, sequence.ids[len(sequence.ids) - sequence.n_response :]
    prompt, text = encoder.texts(sample)
    text = text or sample.text or ""
    return (*of_ids(response, False), *of_text(prompt, text, lexicon))


def _export(out: Path, trained: Checkpoint, probes: Sequence[Sample]) -> str:
    """Write the checkpoint beside its place, then put it there: no half of one is ever at `out`.

    The weights being written may be mapped from the very files that are replaced (`calibrate` in place).
    """
    new = out.with_name(out.name + ".new")
    shutil.rmtree(new, ignore_errors=True)
    contract = export.checkpoint(new, trained, probes)
    shutil.rmtree(out, ignore_errors=True)
    new.rename(out)
    return contract.digest


def _base_name(config: Config) -> str:
    """How an adapter names the model that training started from. (A trunk that was cut is no model to name.)"""
    local = Path(config.model.path)
    return str(local.resolve()) if local.is_dir() else config.model.path


def _heads_alone(config: Config, trained: Checkpoint) -> bool:
    """Whether the trunk is the base as it is, with full weights where its name leads to."""
    untouched = config.method.name == "frozen" and config.model.n_layers is None
    return config.output.adapter and untouched and (trained.folder / "config.json").is_file()


def _probes(config: Config, tables: Tables) -> list[Sample]:
    if config.export.probes:
        return export.read_probes(Path(config.export.probes))
    return export.choose_probes(tables.held_out if len(tables.held_out) else tables.train)


def summary(metrics: Sequence[Metrics]) -> Mapping[str, float]:
    """The figures that are worth a curve while training runs."""
    names = ("accuracy", "nll", "margin")
    return {f"{m.head}/{m.source}/{name}": getattr(m, name) for m in metrics for name in names}
