"""Choose the engine of a network: the fastest that gives the scores of a plain forward of each row alone.

Engines run inside models that were not written for them: they pack rows, pad them, cache keys for later batches. So before
a model is served, each engine scores test rows (common prefixes, equal rows, one token, both sides of every length at which
the model changes its computation), in batches and with cached prefixes in both orders, and the scores are compared with those
of transformers for each row alone. An engine that gives other scores is not used; a model that gives other scores even one
row at a time is refused.
"""

from __future__ import annotations

from collections.abc import Callable

from rewardserve.model.backends import LoadError, MatmulPrecision, ModelSpec
from rewardserve.model.backends.engine_check import CheckRows, ReferenceScores, check_rows, within_check_budget
from rewardserve.model.backends.packed import PackedScorer, UnsupportedArchitecture
from rewardserve.model.backends.padded import PaddedScorer
from rewardserve.model.hidden_reference import HiddenReference
from rewardserve.model.network import RewardNetwork

Engine = PackedScorer | PaddedScorer


def choose_engine(
    network: RewardNetwork, spec: ModelSpec, *, pad_id: int, max_tokens: int, hidden: HiddenReference | None = None
) -> tuple[Engine, tuple[str, ...]]:
    """Return the engine, and notes on the optimisations it leaves out. Raise `LoadError` where none gives the right scores."""
    rows = check_rows(network.config, max_tokens, within_check_budget(network))
    reference = ReferenceScores(network, rows)

    def pack(trim: bool, precision: MatmulPrecision) -> PackedScorer:
        return PackedScorer(network, max_tokens=max_tokens, hidden=hidden, trim=trim, matmul_precision=precision,
                            one_by_one=spec.deterministic, prefix_cache_bytes=spec.prefix_cache_bytes)  # fmt: skip

    def pad(one_by_one: bool) -> PaddedScorer:
        return PaddedScorer(network, pad_id=pad_id, max_tokens=max_tokens, hidden=hidden, one_by_one=one_by_one)

    engine, notes = _chosen(spec, reference, pack, pad)
    return engine, (*notes, *_unchecked_notes(rows))


def _chosen(
    spec: ModelSpec,
    reference: ReferenceScores,
    pack: Callable[[bool, MatmulPrecision], PackedScorer],
    pad: Callable[[bool], PaddedScorer],
) -> tuple[Engine, tuple[str, ...]]:
    why: list[str] = []
    if spec.engine != "padded":
        packed, notes = _packed(spec, reference, pack)
        if packed is not None:
            return packed, notes
        if spec.engine == "packed":
            raise LoadError(f"engine=packed is not possible here: {notes[0]}. Use auto or padded.")
        why.append(f"rows are not packed: {notes[0]}")
    if not spec.deterministic:
        padded = pad(False)
        objection = reference.objection(padded)
        if objection is None:
            return padded, (f"rows are padded: {notes[0]}",) if why else ()
        why.append(f"rows are not padded: {objection}")
    alone = pad(True)
    if (objection := reference.objection(alone)) is not None:
        raise LoadError(
            f"this model cannot be served: even with a separate forward for each row, {objection}. Serve it with the library "
            "that it was trained with."
        )
    return alone, ("every row has a separate forward", *why) if why else ()


def _packed(
    spec: ModelSpec, reference: ReferenceScores, pack: Callable[[bool, MatmulPrecision], PackedScorer]
) -> tuple[PackedScorer | None, tuple[str, ...]]:
    """Return the fastest packed scorer that passes, with its notes; or None and the last objection."""
    objections: dict[tuple[bool, MatmulPrecision], str] = {}
    for trim, precision in _packing_options(spec):
        try:
            scorer = pack(trim, precision)
        except (
            UnsupportedArchitecture,
            ValueError,
        ) as error:  # transformers raises ValueError where a model does not support an attention implementation
            objections[trim, precision] = str(error)
            continue
        got = scorer.matmul_precision
        why_not = objections.get((trim, got)) or _objection(reference, scorer)
        if why_not is None:
            scorer.release_unpacked_weights()
            notes = {"the last layer is computed whole": objections.get((True, got)) if not trim else None,
                     "float32 is multiplied as float32": objections.get((trim, "high")) if got == "highest" else None,
                     "the fastest kernels are not used": scorer.kernels_note}  # fmt: skip
            return scorer, tuple(f"{note}: {reason}" for note, reason in notes.items() if reason)
        scorer.uninstall()
        objections[trim, got] = why_not
    return None, ([*objections.values()][-1],)


def _objection(reference: ReferenceScores, scorer: PackedScorer) -> str | None:
    """Reason why this engine must not be used, or None: checked without the weights that it will free, then with them."""
    for withheld in (True, False):
        scorer.withhold_weights(withheld)
        objection = reference.objection(scorer, is_high=scorer.matmul_precision == "high")
        if objection is None:
            return None
    return objection


def _packing_options(spec: ModelSpec) -> list[tuple[bool, MatmulPrecision]]:
    """Pairs (trim the last layer, precision of matrix products), the fastest first."""
    precisions: tuple[MatmulPrecision, ...] = ("high", "highest") if spec.matmul_precision == "high" else ("highest",)
    return [(trim, precision) for trim in (True, False) for precision in precisions]


def _unchecked_notes(rows: CheckRows) -> tuple[str, ...]:
    if not rows.unchecked:
        return ()
    lengths = ", ".join(f"{n:,}" for n in rows.unchecked)
    return (
        f"rows longer than {lengths} tokens, where the model changes its computation, were not checked: it would take too long. "
        "Rows on two sides of such a length share nothing that depends on a row's length",
    )
