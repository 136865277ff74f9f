"""Finish a run after training: figures, calibration, checkpoint with contract, adapter, report.

Makes no decision about training; receives a network with final weights.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rewardserve.model.calibration import Calibration
from rewardserve.model.checkpoint import AUDIT_JUDGE, Checkpoint
from rewardserve.model.conversation import Sample
from rewardserve.model.encoding import Encoder
from rewardserve.model.network import RewardNetwork
from rewardserve.model.tokenization.encoding_policy import EncodingPolicy
from rewardserve.model.traits import Lexicon, text_traits, token_traits
from rewardserve.training import run_folder
from rewardserve.training.audit_judge import copy_judge
from rewardserve.training.batches import scoring
from rewardserve.training.console import say, show
from rewardserve.training.dataset import data
from rewardserve.training.dataset.comparisons import comparisons
from rewardserve.training.dataset.counterexamples import SOURCE, Labelled, control_accuracy, mined_accuracy
from rewardserve.training.dataset.feedback import counted, kinds_of, n_ties, with_noun
from rewardserve.training.dataset.rating_scale import standardised
from rewardserve.training.dataset.row_counts import RowCounts
from rewardserve.training.dataset.sequences import EMPTY, FeedbackTable, TokenSequence
from rewardserve.training.evaluation import calibrate, evaluate, hidden_statistics, invariance, style
from rewardserve.training.evaluation.benchmark_files import StyleMatrix
from rewardserve.training.evaluation.calibrate import NothingToFit
from rewardserve.training.evaluation.evaluate import Floats, ScoredPairs, SliceMetrics
from rewardserve.training.evaluation.graded_metrics import grade, graded_lines
from rewardserve.training.evaluation.invariance import InvarianceReport
from rewardserve.training.evaluation.members import ScoredHeads, about_members, of_heads
from rewardserve.training.loop.step_checkpoints import BestStep
from rewardserve.training.objective.feedback_loss import fitted
from rewardserve.training.results import export, model_card, report
from rewardserve.training.settings import recipe
from rewardserve.training.settings.config import Config
from rewardserve.training.settings.data_config import CounterexamplesConfig

_N_BAD_SHOWN = 20


@dataclass(frozen=True, slots=True)
class EncodedData:
    """Encoded feedback of a run, with its sources, row counts and encoding policy.

    `held_out` are the pairs in the held-out feedback, over the same sequences as `held_items`. `labelled` are the
    counterexamples, of which `train` has a part and `audited` the held-out rest.
    """

    split: data.Split
    train: FeedbackTable
    held_out: FeedbackTable
    account: RowCounts
    policy: EncodingPolicy
    held_items: FeedbackTable
    labelled: Labelled | None = None
    audited: FeedbackTable = EMPTY

    def with_tables(self, train: FeedbackTable, held_items: FeedbackTable) -> EncodedData:
        """The same run with other items to train on and to hold out."""
        return replace(self, train=train, held_out=comparisons(held_items), held_items=held_items)


class RunTimer:
    """Start time and duration of a run."""

    def __init__(self) -> None:
        self._date, self._began = datetime.now(UTC), time.monotonic()

    def facts(self) -> dict[str, str]:
        """Date, duration and machine, for a report."""
        seconds = time.monotonic() - self._began
        device = (
            torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {torch.get_num_threads()} threads"
        )
        return {
            "began": f"{self._date:%Y-%m-%d %H:%M} UTC",
            "took": f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min",
            "computed on": device,
        }


@dataclass(frozen=True, slots=True)
class TrainingRecord:
    """Origin of the weights: the subcommand, its timer, the figures `before` training, the log of its steps, and the best of them.

    Without `best` the weights are those of the last step. `origins`: checkpoints that were trained elsewhere, whose weights or mean
    these are; empty: trained here. `of_stage` is the log of the last stage, of which `best` is a step; None: there is one stage.
    `audited_before` are the figures on held-out counterexamples.
    """

    verb: str
    timer: RunTimer
    before: tuple[SliceMetrics, ...] = ()
    history: tuple[dict[str, float], ...] = ()
    origins: tuple[Path, ...] = ()
    best: BestStep | None = None
    audited_before: tuple[SliceMetrics, ...] = ()
    of_stage: tuple[dict[str, float], ...] | None = None

    def facts(self) -> dict[str, str]:
        """The exported step, for a report."""
        if self.best is None:
            return {}
        log = self.history if self.of_stage is None else self.of_stage
        last = int(max((line["step"] for line in log if "step" in line), default=self.best.step))
        n = sum(f"eval_{self.best.metric}" in line for line in log)
        where = "" if self.of_stage is None else " of the last stage"
        best = f"the best {self.best.metric} ({self.best.value:.4g}) of {n} evaluations on the held-out pairs"
        return {
            "exported step": f"{self.best.step:,} of {last:,}{where}: {best}, so the figures on these pairs are optimistic"
        }


def finish(config: Config, trained: Checkpoint, tables: EncodedData, folder: Path, made: TrainingRecord) -> Path:
    """Evaluate on the held-out pairs, calibrate, export and report. Return the checkpoint's folder."""
    network = trained.network.requires_grad_(False).eval()
    scores_NH, hidden_ND = _read(config, trained, tables.held_out)
    about_each = about_members(tables.held_out, network.head_names, scores_NH)
    # The weights of several heads are final only here; the combined score is evaluated with them.
    trained, uncalibrated, about_hidden = _calibrated(config, trained, tables.held_out, scores_NH, hidden_ND, made.verb)
    calibration = trained.calibration
    scored = of_heads(network.head_names, network.head_weights, scores_NH)
    heads, scores_NH = (scored.names, scored.weights), scored.scores_NH
    judged = evaluate.slices(tables.held_out, scores_NH, *heads)
    graded = grade(tables.held_items, scores_NH, scored.names, n_bootstrap=config.eval.bootstrap)
    metrics = figures(config, judged)
    crossed = figures(config, evaluate.cross_slices(tables.held_out, scores_NH, *heads))
    invariant = invariance_report(config, trained, tables.held_out, scores_NH)
    audited = audited_figures(config, trained, tables)
    about_audited = audited_lines(made.audited_before, audited, tables)
    styles = style_report(config, trained, tables.held_out, scores_NH)
    probes = _probes(config, tables)
    # A checkpoint that is only calibrated was trained on other pairs, or keeps the report of its training.
    about_pairs = independence(tables, made.origins, config)
    page = folder / ("calibration.html" if made.verb == "calibrate" else run_folder.REPORT_PAGE)
    out = folder / "checkpoint"
    facts = {"made by": f"rewardserve {made.verb}", **facts_of(config, tables)}
    facts |= {"training data": _training_data(made.origins)} if made.origins else {}
    facts |= {"calibration": calibration.digest if calibration else None, "hidden states": about_hidden}
    facts |= {"not calibrated": uncalibrated} if uncalibrated else {}
    facts |= {"accuracy on held-out counterexamples": about_audited} if about_audited else {}
    facts |= {"notes": list(trained.notes)} if trained.notes else {}
    facts |= {"members": about_each} if about_each else {}
    outputs = dict(zip(network.head_names, network.head_weights, strict=True))
    facts |= {"heads": outputs} | made.facts() | made.timer.facts()
    details = {
        "metrics": [asdict(m) for m in metrics],
        "graded": [asdict(g) for g in graded],
        "cross-use": [asdict(m) for m in crossed],
        "invariance": asdict(invariant) if invariant else None,
        "style": asdict(styles) if styles else None,
        "curves": report.curves(made.history),
        "before": [asdict(m) for m in made.before],
        "best step": asdict(made.best) if made.best else None,
        "counterexamples": [asdict(m) for m in audited],
        "counterexamples before": [asdict(m) for m in made.audited_before],
        "bad rows": [str(b) for b in tables.split.bad[:_N_BAD_SHOWN]],
        "recipe": recipe.plain(config),
        "versions": export.versions(),
    }
    paths = [*export.paths_in(details["recipe"]), *made.origins, folder]
    say(f"exporting to {out}")
    with ExitStack() as late:
        # Adapter and heads are moved into place last: one that cannot be read back must not cost the run its
        # checkpoint.
        alone = _export_adapter_or_heads(config, trained, folder, late, made.origins)
        with run_folder.replace_folder(out) as new:
            contract = export.export_checkpoint(new, trained, probes)
            copy_judge(_judge_of(folder, made.origins), new)
            written = export.without_folders(facts | {"contract": contract.digest} | details, paths)
            export.write_report(new, written)
            model_card.write_card(new, config.output.push_to_hub or folder.resolve().name, written)
        facts |= {"contract": contract.digest}
        shown = report.Page(
            f"Reward model {folder.resolve().name}", facts | {"versions": export.versions()}, metrics, made.before, judged,
            recipe.plain(config), crossed, made.history, about_pairs, invariant, styles, graded,
        )  # fmt: skip
        report.write(page, shown)
        for line in (*evaluate.summary_lines(metrics), *graded_lines(graded), *about_audited):
            show(line)
        if invariant:
            show(invariance.summary_line(invariant))
        if about_each:
            show(f"members: {about_each}")
        if uncalibrated:
            show(f"not calibrated: {uncalibrated}")
        show(f"report: {page}")
        for part, base in alone:
            # Its contract is written last and is a different one; the scores in it are the same.
            if base:
                named = export.without_folders(base, paths)
                export.write_report(part, written | {"base": named, "contract": None})
            export.export_contract(part, trained, probes)
    return out


def _judge_of(folder: Path, origins: Sequence[Path]) -> Path:
    """The judge that was trained in this output folder, or else that of the first checkpoint that was trained elsewhere."""
    made = folder / AUDIT_JUDGE / "checkpoint"
    return made if made.is_dir() or not origins else origins[0] / AUDIT_JUDGE


def _export_adapter_or_heads(
    config: Config, trained: Checkpoint, folder: Path, late: ExitStack, origins: Sequence[Path]
) -> list[tuple[Path, str | None]]:
    """Write the trained part alone, to be moved into place later: the adapter before it is merged, or the heads."""
    if config.output.adapter and config.model.n_layers is None and export.has_adapter(trained):
        new = late.enter_context(run_folder.replace_folder(folder / "adapter"))
        export.export_adapter(new, trained, _base_name(config))
        return [(new, None)]
    if _exports_heads(config, trained, folder, origins):
        new = late.enter_context(run_folder.replace_folder(folder / "heads"))
        export.export_heads(new, trained, _base_name(config), config.model.n_layers)
        copy_judge(folder / AUDIT_JUDGE / "heads", new)
        return [(new, _base_name(config))]
    return []


def independence(tables: EncodedData, origins: Sequence[Path], config: Config | None = None) -> str:
    """Describe the relation of held-out pairs and training for the report, as far as it is known here.

    `origins`: checkpoints that were trained elsewhere, recognised by the digest of their training pairs or not at all.
    """
    shared = (
        f"share no group with the {tables.account.n_train} training pairs of this recipe, and no response to the same prompt "
        f"(ignoring blanks and case; {tables.account.n_leaked} training pairs were left out for that). "
        f"{tables.account.n_same_prompt} of them share a prompt with training, with other responses."
    )
    if not origins:
        start = " The training data of the reward model from which this run started are not known here."
        return f"These pairs {shared}{start if config and config.model.start == 'reward' else ''}"
    if _training_data(origins) == data.digest(tables.train.items):
        return f"By its report, this checkpoint was trained on the training pairs of this recipe. These pairs {shared}"
    return "Whether this checkpoint was trained on these pairs is not known: its training data are not those of this recipe."


def _training_data(origins: Sequence[Path]) -> str | None:
    """Digest of the pairs that checkpoints were trained on, by their reports; None if one has none, or they differ."""
    digests = {reported_data(checkpoint) for checkpoint in origins}
    return digests.pop() if len(digests) == 1 else None


def reported_data(checkpoint: Path) -> str | None:
    """Digest of the pairs that a checkpoint was trained on, by its report; None if it has none."""
    try:
        digest: str | None = json.loads((checkpoint / export.REPORT).read_text()).get("training data")
    except (OSError, ValueError, AttributeError):
        return None
    return digest


def score(config: Config, checkpoint: Checkpoint, table: FeedbackTable) -> ScoredHeads:
    """Score every distinct sequence of a table with every head."""
    network = checkpoint.network
    return of_heads(network.head_names, network.head_weights, _read(config, checkpoint, table)[0])


def _read(config: Config, checkpoint: Checkpoint, table: FeedbackTable) -> tuple[Floats, Tensor]:
    """Scores, and the hidden states `(N, D)` that the heads read."""
    rows, budget = [s.ids for s in table.sequences], config.eval.batch_tokens
    return scoring.read(checkpoint.network, rows, pad_id=checkpoint.pad_id, batch_tokens=budget, label="held-out pairs")


def score_slices(config: Config, checkpoint: Checkpoint, table: FeedbackTable) -> list[ScoredPairs]:
    """Scored pairs of a table, slice by slice."""
    scored = score(config, checkpoint, table)
    return evaluate.slices(table, scored.scores_NH, scored.names, scored.weights)


def figures(config: Config, judged: Sequence[ScoredPairs]) -> list[SliceMetrics]:
    """Compute one line of figures a slice."""
    return [evaluate.slice_metrics(j, n_bootstrap=config.eval.bootstrap) for j in judged]


def invariance_report(
    config: Config, checkpoint: Checkpoint, table: FeedbackTable, scores_NH: Floats
) -> InvarianceReport | None:
    """Figures of a sample of held-out responses under changes that keep their meaning; None without pairs."""
    if not config.eval.invariance_pairs or not len(table):
        return None
    changed = invariance.changed_responses(table, checkpoint.encoder, config.eval.invariance_pairs, config.data.salt)
    network, budget = checkpoint.network, config.eval.batch_tokens
    rows_RH = scoring.score(
        network, changed.rows, pad_id=checkpoint.pad_id, batch_tokens=budget, label="changed held-out responses"
    )
    after_RH = of_heads(network.head_names, network.head_weights, rows_RH)
    base_P2, after = invariance.pair_scores(changed, table, scores_NH, after_RH.scores_NH, after_RH.names)
    return invariance.figures(changed, table, base_P2, after, config.eval.bootstrap)


def audited_figures(config: Config, checkpoint: Checkpoint, tables: EncodedData) -> list[SliceMetrics]:
    """Figures on the held-out counterexamples; none without any."""
    return figures(config, score_slices(config, checkpoint, tables.audited)) if len(tables.audited) else []


def about_counterexamples(config: CounterexamplesConfig, tables: EncodedData) -> str:
    """Describe the counterexamples of a run: their rows, what becomes of them, and how good the judge is that chose them."""
    n_train = sum(pair.source == SOURCE for pair in tables.train.pairs)
    about = (
        f"{tables.labelled}; {n_train:,} to train on with weight {config.weight:g}, {len(tables.audited):,} held out"
    )
    found = control_accuracy(tables.labelled) if tables.labelled else None
    if found is None:
        return about
    model, judge, n = found
    return f"{about}; on {n:,} labelled controls the model that was mined is right in {model:.2f}, its judge in {judge:.2f}"


def audited_lines(before: Sequence[SliceMetrics], after: Sequence[SliceMetrics], tables: EncodedData) -> list[str]:
    """Accuracy on the held-out counterexamples before and after, one line a slice; none without any.

    The model for which the queue was mined is a third one if training starts from a backbone.
    """
    if tables.labelled is None:
        return []
    mined = mined_accuracy(tables.labelled, tables.audited.pairs)
    first = {(m.head, m.source): m.accuracy for m in before}
    lines = []
    for m in after:
        known = first.get((m.head, m.source))
        lines.append(
            f"held-out counterexamples, {m.head}: accuracy {m.accuracy:.3f} [{m.accuracy_low:.3f}, {m.accuracy_high:.3f}] of "
            f"{with_noun(m.n_pairs, 'pair')} in {with_noun(m.n_groups, 'group')}"
            + ("" if known is None else f"; {known:.3f} before training")
            + ("" if mined is None else f"; the model they were mined for: {mined:.3f}")
        )
    return lines or ["held-out counterexamples: none, so there is no accuracy on them"]


def style_report(config: Config, checkpoint: Checkpoint, table: FeedbackTable, scores_NH: Floats) -> StyleMatrix | None:
    """Matrix of styles: of the recipe's file of RM-Bench, or of a sample of held-out pairs in made styles; None without either."""
    network, encoder, pad_id = checkpoint.network, checkpoint.encoder, checkpoint.pad_id

    def scored(rows: Sequence[tuple[int, ...]]) -> Floats:
        budget = config.eval.batch_tokens
        return scoring.score(network, rows, pad_id=pad_id, batch_tokens=budget, label="responses in other styles")

    if config.eval.style_file:
        benchmark = style.read_styles(Path(config.eval.style_file))
        return style.file_matrix(benchmark, encoder, lambda rows: network_raw(network, scored(rows)))
    if not config.eval.invariance_pairs or not len(table):
        return None
    changed = style.made_styles(table, encoder, config.eval.invariance_pairs, config.data.salt)
    made = of_heads(network.head_names, network.head_weights, scored(changed.rows))
    return style.made_matrix(changed, table, scores_NH, made.scores_NH, made.names)


def network_raw(network: RewardNetwork, scores_NH: Floats) -> Floats:
    """The one raw score of each row: the weighted sum of its heads."""
    raw_N: Floats = scores_NH @ np.asarray(network.head_weights)
    return raw_N


def facts_of(config: Config, tables: EncodedData) -> dict[str, Any]:
    """Counts of rows and pairs, and digests of the data, for the report."""
    counts, extra = tables.account, config.counterexamples
    about = {} if extra is None else {"counterexamples": about_counterexamples(extra, tables)}
    return about | {
        "model": f"{config.model.path} ({config.model.start})",
        "method": config.method.name,
        "rows read": counts.n_rows,
        "rows skipped": counts.n_bad,
        "pairs beyond max_pairs": counts.n_spare,
        "pairs dropped": counts.dropped,
        "pairs in a held-out group": counts.n_same_group,
        "pairs with a held-out response": counts.n_leaked,
        "training pairs": counts.n_train,
        "pairs made": counts.made,
        "training sequences": tables.train.n_used,
        **({"twins": len(tables.train.twins)} if tables.train.twins else {}),
        "held-out pairs": counts.n_held_out,
        "held-out groups": counts.n_groups,
        **_of_kinds(config, tables),
        "contradicting pairs": counts.n_contradicting,
        "duplicate pairs": counts.n_duplicate,
        "pairs with a response that was cut off": counts.n_cut,
        "sequences truncated": sum(s.truncated for t in (tables.train, tables.held_out) for s in t.sequences),
        "training data": data.digest(tables.train.items),
        "held-out data": data.digest(tables.held_items.items),
    }


def _of_kinds(config: Config, tables: EncodedData) -> dict[str, Any]:
    """Counts by kind, and the numbers that were fitted on the training items, where there are other kinds than decided pairs."""
    items, held = tables.train.items, tables.held_items.items
    facts: dict[str, Any] = {}
    if kinds_of(chain(items, held)) != ("pairs",):
        facts["feedback"] = f"{counted(items)} to train on, {counted(held)} held out"
    scales = standardised(tables.train)[1]
    facts |= {"scale of ratings": [str(scale) for scale in scales]} if scales else {}
    loss = fitted(config.loss, items)
    facts |= {"ties": f"{n_ties(items):,}, Davidson's nu {loss.tie:.4g}"} if n_ties(items) else {}
    return facts | ({"offset of labels": loss.label_offset} if "labels" in kinds_of(items) else {})


def _calibrated(
    config: Config, trained: Checkpoint, table: FeedbackTable, scores_NH: Floats, hidden_ND: Tensor, verb: str
) -> tuple[Checkpoint, str, str]:
    """Checkpoint with a new calibration, and the reasons for a missing calibration or hidden reference; empty if fitted."""
    if not len(table):
        return replace(trained, calibration=None, hidden=None), "no pairs were held out", "no pairs were held out"
    try:
        calibration = _calibrate(config, trained, table, scores_NH)
    except NothingToFit as why:
        if verb == "calibrate":
            raise
        # A run of hours must not be lost for lack of a calibration; `rewardserve calibrate` fits one later.
        return replace(trained, calibration=None, hidden=None), str(why), "not fitted"
    try:
        reference = hidden_statistics.fit(hidden_ND.double().numpy())
    except (NothingToFit, np.linalg.LinAlgError) as why:
        # It changes no score, and must not cost the run its checkpoint.
        return replace(trained, calibration=calibration, hidden=None), "", f"not fitted: {why}"
    distance_N = reference.log_distance(hidden_ND).double().numpy()
    calibration = calibrate.with_distance(calibration, reference.digest, distance_N)
    fitted = f"{len(reference.whitening_KD)} directions of {len(reference.mean_D)}, {len(hidden_ND)} responses"
    return replace(trained, calibration=calibration, hidden=reference), "", fitted


def _calibrate(config: Config, trained: Checkpoint, table: FeedbackTable, scores_NH: Floats) -> Calibration:
    """Fit the calibration on held-out responses; several heads get their weights first."""
    network = trained.network
    if len(network.head_names) > 1:
        network.head_weights = calibrate.head_weights(scores_NH, config.model.weight_of_output)
    raw_N = scores_NH @ network.head_weights
    chosen, rejected = list(table.chosen), list(table.rejected)
    diff_PH, label_P = scores_NH[chosen] - scores_NH[rejected], np.array([pair.head for pair in table.items])
    lexicon, encoder = Lexicon.read(), trained.encoder
    held_out = calibrate.HeldOut(
        raw_N=raw_N,
        tokens_N=np.array([s.n_response for s in table.sequences]),
        diff_P=raw_N[chosen] - raw_N[rejected],
        head_names=network.head_names,
        heads_NH=scores_NH,
        head_diffs=[diff_PH[label_P == head, h] for h, head in enumerate(config.model.head_of_output)],
        traits_NT=np.array([_traits(s, lexicon, encoder) for s in table.sequences]),
        lexicon=lexicon.version,
    )
    return calibrate.fit(held_out, data_digest=data.digest(table.items))


def _traits(sequence: TokenSequence, lexicon: Lexicon, encoder: Encoder) -> tuple[float, ...]:
    sample, response = sequence.sample, sequence.ids[len(sequence.ids) - sequence.n_response :]
    prompt, text = encoder.texts(sample)
    text = text or sample.text or ""
    return (*token_traits(response, False), *text_traits(prompt, text, lexicon))


def _base_name(config: Config) -> str:
    """Name of the base model in an adapter, and of bare heads. (An adapter over a truncated backbone is not written.)"""
    local = Path(config.model.path)
    return str(local.resolve()) if local.is_dir() else config.model.path


def _exports_heads(config: Config, trained: Checkpoint, folder: Path, origins: Sequence[Path]) -> bool:
    """Whether the backbone is the unchanged base, with full weights under its name; that of another run may have learned."""
    is_own = all(origin.resolve() == (folder / "checkpoint").resolve() for origin in origins)
    untouched = config.method.name == "frozen" and is_own
    return config.output.adapter and untouched and (trained.folder / "config.json").is_file()


def _probes(config: Config, tables: EncodedData) -> list[Sample]:
    if config.export.probes:
        return export.read_probes(Path(config.export.probes))
    return export.choose_probes(tables.held_out if len(tables.held_out) else tables.train)


def summary(metrics: Sequence[SliceMetrics]) -> Mapping[str, float]:
    """Figures to plot as curves during training."""
    names = ("accuracy", "nll", "margin")
    return {f"{m.head}/{m.source}/{name}": getattr(m, name) for m in metrics for name in names}
