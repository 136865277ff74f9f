"""Make further preference pairs from training pairs, so that features which say nothing of quality do not pay.

A pure function of pairs, rates and a seed: the same pair gives the same pairs whatever its file, its place among others, or
the other kinds. Independent of tokenizers and torch. The kinds `other_prompt` and `neutral` are the triplets of RRM (Liu et al.,
2409.13156) beside the pair itself: a response to another prompt loses, and two of them tie. A tie is two opposite pairs of half
the weight.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import NamedTuple

from rewardserve.model.conversation import FinishReason, Message, Sample
from rewardserve.training.augmentation.augment_phrases import EMPTY, FLATTERY, INJECTIONS, OPENERS, ORDERS
from rewardserve.training.dataset.data import DataError
from rewardserve.training.dataset.feedback import Pair
from rewardserve.training.settings.data_config import AugmentConfig

_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")
_MAX_DRAWS = 50
_SHORT_SHARE = 0.75
_PLACES = ("before", "after", "middle", "quote", "instead", "instead")


class _Response(NamedTuple):
    """Text of a response, and its finish reason."""

    text: str
    finish_reason: FinishReason


class _Made(NamedTuple):
    """Two responses to the prompt of a pair; `donor` is the pair from which foreign ones come.

    A text that is made of a response has its finish reason, also one that was cut short: with another one, the end token would
    tell which of the two is better. For a missing end the reward pipeline has a penalty.
    """

    better: _Response
    worse: _Response
    donor: Pair | None = None


@dataclass(frozen=True, slots=True)
class _Donors:
    """Pairs of other groups, by position."""

    pairs: Sequence[Pair]

    def draw(self, rng: random.Random, pair: Pair) -> Pair | None:
        """A pair of another group that trains the same head; None if none was found."""
        for _ in range(_MAX_DRAWS):
            other = self.pairs[rng.randrange(len(self.pairs))]
            if other.group != pair.group and other.head == pair.head:
                return other
        return None


_Maker = Callable[[random.Random, Pair, _Donors], _Made | None]


def augmented(pairs: Sequence[Pair], config: AugmentConfig, seed: int) -> tuple[Pair, ...]:
    """Pairs that are made from these. Raise `DataError` for a kind that makes none."""
    key_of_pair = {pair: _key(pair) for pair in pairs if _is_editable(pair)}
    of_response: dict[tuple[str, Sample], Pair] = {}
    for pair in sorted(key_of_pair, key=key_of_pair.__getitem__):
        of_response.setdefault((pair.head, pair.chosen), pair)  # preferred to twenty others, it is one response
    pairs = tuple(of_response.values())
    donors = _Donors(pairs)
    made: list[Pair] = []
    for kind, make in _MAKERS.items():
        rate = float(getattr(config, kind))
        if not rate:
            continue
        n_before = len(made)
        for pair in pairs:
            rng = random.Random(f"{seed} {kind} {key_of_pair[pair]}")
            if rng.random() < rate and (found := make(rng, pair, donors)) is not None:
                made += _as_pairs(kind, pair, found, config)
        if len(made) == n_before:
            raise DataError(
                f"augment.{kind} is {rate:g} and makes no pair of {len(pairs)} chosen responses that are single texts. "
                "Raise it, or leave it out."
            )
    return tuple(made)


def counts(pairs: Sequence[Pair]) -> dict[str, int]:
    """Number of pairs that were made, by kind; a tie counts once."""
    n = Counter(pair.made for pair in pairs if pair.made)
    return {kind: n[kind] // (1 + (kind in TIES)) for kind in _MAKERS if n[kind]}


def _as_pairs(kind: str, pair: Pair, found: _Made, config: AugmentConfig) -> Iterator[Pair]:
    stripped = {found.better.text.strip(), found.worse.text.strip()}
    if len(stripped) < 2 or "" in stripped:
        return
    both = (found.better, found.worse)
    sides = [(both, 1.0)] if kind not in TIES else [(both, 0.5), (both[::-1], 0.5)]
    for head, ((better, worse), factor) in product(config.heads or (pair.head,), sides):
        yield replace(
            pair,
            head=head,
            chosen=_with_response(pair, better),
            rejected=_with_response(pair, worse),
            chosen_text=better.text,
            rejected_text=worse.text,
            margin=0.0,
            flip=0.0,
            tie=False,
            weight=pair.weight * config.weight * factor,
            made=kind,
            donor_group=found.donor.group if found.donor else None,
        )


def _key(pair: Pair) -> str:
    """Digest of the contents of a pair, which does not depend on its place."""
    parts = (pair.group, pair.head, *pair.chosen.texts(), *pair.rejected.texts())
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def _is_editable(pair: Pair) -> bool:
    """Whether both responses are one text at the end of their samples."""
    return all(
        s.texts()[1] == text != "" and not (s.messages and s.messages[-1].tool_calls)
        for s, text in ((pair.chosen, pair.chosen_text), (pair.rejected, pair.rejected_text))
    )


def _with_response(pair: Pair, response: _Response) -> Sample:
    """The sample of the chosen response with another response."""
    text, sample = response.text, replace(pair.chosen, finish_reason=response.finish_reason)
    if sample.text is not None and sample.n_prompt_chars is not None:
        return replace(sample, text=sample.text[: sample.n_prompt_chars] + text)
    if sample.messages is not None:
        return replace(sample, messages=(*sample.messages[:-1], Message(sample.messages[-1].role, text)))
    return replace(sample, response=text)


# -- kinds ------------------------------------------------------------------------------------------------


def _other_prompt(rng: random.Random, pair: Pair, donors: _Donors) -> _Made | None:
    donor = donors.draw(rng, pair)
    return _Made(_chosen(pair), _chosen(donor), donor) if donor else None


def _neutral(rng: random.Random, pair: Pair, donors: _Donors) -> _Made | None:
    donor = donors.draw(rng, pair)
    return _Made(_chosen(donor), _rejected(donor), donor) if donor else None


def _truncated(rng: random.Random, pair: Pair, donors: _Donors) -> _Made | None:
    words = pair.chosen_text.split(" ")
    kept = words[: round(len(words) * rng.uniform(0.2, 0.8))]
    return _made_of(_chosen(pair), " ".join(kept).rstrip(" .!?")) if len(words) > 3 else None


def _empty(rng: random.Random, pair: Pair, donors: _Donors) -> _Made:
    return _made_of(_chosen(pair), rng.choice(EMPTY))


def _opener(rng: random.Random, pair: Pair, donors: _Donors) -> _Made:
    return _made_of(_chosen(pair), rng.choice(OPENERS))


def _repeated(rng: random.Random, pair: Pair, donors: _Donors) -> _Made:
    response = _either(rng, pair)
    text = response.text
    gap = rng.choice((" ", "\n", "\n\n"))
    way = rng.randrange(4)
    if way < 2:  # the whole answer again
        return _made_of(response, gap.join([text] * rng.choice((2, 2, 2, 3))))
    sentences = _SENTENCE_END.split(text.strip())
    if way == 2:
        return _made_of(response, " ".join([*sentences, *sentences[-1:] * rng.randint(1, 4)]))
    return _made_of(response, gap.join([rng.choice(sentences)] * rng.randint(3, 8)))


def _flattery(rng: random.Random, pair: Pair, donors: _Donors) -> _Made:
    return _added(rng, pair, rng.sample(FLATTERY, 4))


def _injection(rng: random.Random, pair: Pair, donors: _Donors) -> _Made:
    """One or two of the phrases before, after, inside or quoted behind a response, or up to four in its place.

    Most responses are cut to their longest sentence, so that length does not tell an injected text from an honest one.
    """
    orders = [" ".join(part for part in map(rng.choice, ORDERS) if part) for _ in range(2)]
    phrases = rng.sample([*rng.sample(INJECTIONS, 2), *orders], 4)
    response = _either(rng, pair)
    if rng.random() < _SHORT_SHARE:
        response = response._replace(text=max(_SENTENCE_END.split(response.text.strip()), key=len))
    text = response.text
    phrase = " ".join(phrases[: rng.randint(1, 2)])
    gap = rng.choice((" ", "\n\n"))
    place = rng.choice(_PLACES)
    if place == "instead":
        return _made_of(response, " ".join(phrases[: rng.randint(1, len(phrases))]))
    if place == "middle":
        words = text.split(" ")
        cut = len(words) // 2
        return _made_of(response, " ".join((*words[:cut], phrase, *words[cut:])))
    if place == "quote":
        phrase = f'> "{phrase}"' if gap == "\n\n" else f'They wrote: "{phrase}"'
    return _made_of(response, gap.join((phrase, text) if place == "before" else (text, phrase)))


def _added(rng: random.Random, pair: Pair, phrases: Sequence[str]) -> _Made:
    """One or two of the phrases before or after a response, or up to all of them in its place."""
    response, place, gap = _either(rng, pair), rng.randrange(3), rng.choice((" ", "\n\n"))
    if place == 2:
        return _made_of(response, " ".join(phrases[: rng.randint(1, len(phrases))]))
    phrase = " ".join(phrases[: rng.randint(1, 2)])
    return _made_of(response, gap.join((phrase, response.text) if place else (response.text, phrase)))


def _markup(rng: random.Random, pair: Pair, donors: _Donors) -> _Made:
    response = _either(rng, pair)
    sentences = _SENTENCE_END.split(response.text.strip())
    return _made_of(response, rng.choice(_MARKUPS)(rng, sentences))


def _bullets(rng: random.Random, sentences: Sequence[str]) -> str:
    return "\n".join(f"{rng.choice('-*')} {each}" for each in sentences)


def _bold_bullets(rng: random.Random, sentences: Sequence[str]) -> str:
    """List with the first words of each item in bold."""
    n = rng.randint(1, 3)
    items = (each.split(" ") for each in sentences)
    return "\n".join(f"- **{' '.join(words[:n])}** {' '.join(words[n:])}".rstrip() for words in items)


def _numbered(rng: random.Random, sentences: Sequence[str]) -> str:
    return "\n".join(f"{i}. {each}" for i, each in enumerate(sentences, 1))


def _heading(rng: random.Random, sentences: Sequence[str]) -> str:
    first = sentences[0].split(" ")
    n = rng.randint(1, 6)
    return f"{'#' * rng.randint(1, 4)} {' '.join(first[:n])}\n" + " ".join([*first[n:], *sentences[1:]])


def _bold(rng: random.Random, sentences: Sequence[str]) -> str:
    words = " ".join(sentences).split(" ")
    for i in rng.sample(range(len(words)), min(len(words), rng.randint(1, 4))):
        words[i] = f"**{words[i]}**"
    return " ".join(words)


_MARKUPS = (_bullets, _bold_bullets, _numbered, _heading, _bold)


def _either(rng: random.Random, pair: Pair) -> _Response:
    """Either response: an addition says nothing of its quality."""
    return rng.choice((_chosen(pair), _rejected(pair)))


def _chosen(pair: Pair) -> _Response:
    return _Response(pair.chosen_text, pair.chosen.finish_reason)


def _rejected(pair: Pair) -> _Response:
    return _Response(pair.rejected_text, pair.rejected.finish_reason)


def _made_of(response: _Response, worse: str) -> _Made:
    return _Made(response, response._replace(text=worse))


_MAKERS: dict[str, _Maker] = {
    "other_prompt": _other_prompt,
    "neutral": _neutral,
    "truncated": _truncated,
    "empty": _empty,
    "opener": _opener,
    "repeated": _repeated,
    "flattery": _flattery,
    "markup": _markup,
    "injection": _injection,
}
TIES = ("neutral", "markup")
KINDS = tuple(_MAKERS)
