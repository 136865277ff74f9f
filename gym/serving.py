"""Serve the gym's reward models by the real server, through a backend that reads text.

    python -m gym.serving --seed 40 --port 0

is `rewardserve serve` with one more backend, `gym`, whose models are named `SEED:BIAS:HEAD`; other flags are passed to
the server. It serves the head that a policy optimises, with the audit judge of the same seed. Text is converted to the
gym's word ids, these to the features of the frozen network, and its linear head gives the score, with the calibration
of `alert_timing`. Independent of gold and policies.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Final

from gym import vocabulary
from gym.labeller import PLANTED
from gym.policy import CAP
from gym.proxy import MultiModelScorer, RewardModel
from gym.run_setup import RunSetup, set_up_run
from gym.vocabulary import EOS, SIZE
from rewardserve.cli import main as rewardserve
from rewardserve.model.backends import BACKENDS, Identity, LoadedModel, LoadError, ModelSpec, SampleEncoder, encode_each
from rewardserve.model.calibration import Calibration
from rewardserve.model.contract import ContractReport, ScoringContract
from rewardserve.model.conversation import EmptyResponse, InputTooLong, Sample, SampleError
from rewardserve.model.encoding import Encoded
from rewardserve.model.scorer import BatchScores, ScorerError, TokenBatch

PROMPT_START: Final = SIZE
"""Id of the words common to all prompts; the ten ids after it are the digits of the prompt's number."""

N_IDS: Final = PROMPT_START + 11
MAX_PROMPT: Final = 8
MAX_TOKENS: Final = MAX_PROMPT + CAP


class NotInTheLanguage(SampleError):
    """The gym cannot have written this prompt or response."""

    code = "not_in_the_language"


class TextEncoder(SampleEncoder):
    """Encodes a prompt and a response: `PROMPT_START`, the digits of the prompt's number, the words, EOS."""

    def __call__(self, sample: Sample) -> Encoded:
        """Encode one sample. An empty response is one whose first draw was EOS, unless it was cut off."""
        prompt, response = sample.texts()
        try:
            prompt_id, words = vocabulary.prompt_id_of(prompt), vocabulary.read(response)
        except ValueError as error:
            raise NotInTheLanguage(str(error)) from None
        missing_end = sample.finish_reason == "length"
        answer = words if missing_end else (*words, EOS)
        if not answer:
            raise EmptyResponse("the response was cut off before its first word")
        before = (PROMPT_START, *(PROMPT_START + 1 + int(digit) for digit in str(prompt_id)))
        if len(answer) > CAP:
            raise InputTooLong(n=len(before) + len(answer), limit=MAX_TOKENS)
        return Encoded((*before, *answer), len(before), missing_end=missing_end)

    def many(self, samples: Sequence[Sample]) -> list[Encoded | SampleError]:
        """Encode all samples; one entry a sample, in order."""
        return encode_each(self, samples)


@dataclass(frozen=True)
class ResponseScorer:
    """Scorer that passes on the response alone: the gym's networks do not read the prompt."""

    models: MultiModelScorer
    max_tokens: int = MAX_TOKENS
    pads_rows: bool = False
    shares_prefixes: bool = False
    concurrency: int = 1
    streams: bool = False
    is_alive: bool = True

    def score(self, batch: TokenBatch) -> BatchScores:
        """Score every row, in order. Raise `ScorerError` for an unknown id, or a row without a response."""
        if any(not 0 <= token < N_IDS for row in batch.rows for token in row):
            raise ScorerError(f"ids are from 0 to {N_IDS - 1}")
        answers = tuple([tuple([token for token in row if token < PROMPT_START]) for row in batch.rows])
        if not all(answers):
            raise ScorerError("a row has no response")
        return self.models.score(TokenBatch(answers))

    def close(self) -> None:
        """Do nothing: there is nothing to release."""


def load(spec: ModelSpec) -> LoadedModel:
    """Load `ModelSpec(model="40:human:reward")`. Raise `LoadError` for a name not of this form."""
    setup, head = _named(spec.model)
    model = setup.models.models[head]
    assert isinstance(model, RewardModel)
    return loaded_model(spec.model, head, model, setup.calibration(head))


def loaded_model(called: str, head: str, model: RewardModel, calibration: Calibration) -> LoadedModel:
    """A model of the gym as the server loads it; `called` is its name in settings."""
    name = f"gym {called}"
    n_parameters = sum(array.size for array in (*vars(model.network).values(), model.head_D))
    heads = ((head, 1.0),)
    contract = ScoringContract(
        template="", template_digest="", bos_id=None, end_text="", end_ids=(EOS,), template_tail="",
        ending="end_token", reads_at="last", skip_id=None, bos_without_template="none", tokenizes="whole", truncation="error",
        max_tokens=MAX_TOKENS, pad_id=EOS, tokenizer_digest="gym", weights_digest=called, head_digest=called,
        dtype="float64", heads=heads, origin="inferred",
    )  # fmt: skip
    return LoadedModel(
        identity=Identity(name, "Gym", "gym", "numpy", "float64", "cpu", heads, n_parameters, MAX_TOKENS),
        scorer=ResponseScorer(MultiModelScorer({head: model})),
        encode=TextEncoder(),
        contract=contract,
        report=ContractReport("inferred", (), 0, None),
        calibration=calibration,
    )


def _named(name: str) -> tuple[RunSetup, str]:
    seed, _, rest = name.partition(":")
    bias, _, head = rest.partition(":")
    if not seed.isdecimal() or bias not in PLANTED:
        raise LoadError(f"{name!r} is not SEED:BIAS:HEAD with a bias of {', '.join(PLANTED)}")
    setup = _run_setup(int(seed), bias)
    if head not in setup.models.heads:
        raise LoadError(f"unknown head {head!r}; known are {', '.join(setup.models.heads)}")
    return setup, head


@cache
def _run_setup(seed: int, bias: str) -> RunSetup:
    """The served model and the audit model share one seed."""
    return set_up_run(seed, bias)


def main() -> None:
    """Run the server with its two models."""
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").splitlines()[0],
        allow_abbrev=False,
        epilog="other flags are those of `rewardserve serve`",
    )
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--bias", choices=PLANTED, default="human", help="bias of the labeller")
    given, flags = parser.parse_known_args()
    BACKENDS["gym"] = "gym.serving:load"
    of_seed = f"{given.seed}:{given.bias}"
    sys.exit(rewardserve(["serve", f"{of_seed}:reward", "--backend=gym", f"--audit-model={of_seed}:audit", *flags]))


if __name__ == "__main__":
    main()
