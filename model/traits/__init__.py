"""Traits of responses, for trip wires and for the baseline that they compare with. Standard library only."""

from rewardserve.model.traits.lexicon import NO_LEXICON, Lexicon, LexiconError
from rewardserve.model.traits.traits import (
    TEXT_TRAITS,
    TOKEN_TRAITS,
    TRAITS,
    text_digest,
    text_traits,
    token_traits,
)

__all__ = [
    "NO_LEXICON",
    "TEXT_TRAITS",
    "TOKEN_TRAITS",
    "TRAITS",
    "Lexicon",
    "LexiconError",
    "text_digest",
    "text_traits",
    "token_traits",
]
