"""What a response looks like, for trip wires and for the reference that they compare with. Standard library only."""

from rewardserve.model.traits.lexicon import NO_LEXICON, Lexicon, LexiconError
from rewardserve.model.traits.traits import NAMES, OF_IDS, OF_TEXT, Traits, of_ids, of_text, text_digest

__all__ = [
    "NAMES",
    "NO_LEXICON",
    "OF_IDS",
    "OF_TEXT",
    "Lexicon",
    "LexiconError",
    "Traits",
    "of_ids",
    "of_text",
    "text_digest",
]
