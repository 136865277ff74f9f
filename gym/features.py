"""Features of responses for the trip wires: the traits of their ids and of their rendered text.

Independent of rewards and wires; `rewardserve.model.traits` defines the traits.
"""

from __future__ import annotations

from gym import vocabulary
from gym.responses import Responses
from rewardserve.model.traits import Lexicon, text_traits, token_traits


def traits_of(responses: Responses, lexicon: Lexicon) -> list[tuple[float, ...]]:
    """Values of `rewardserve.model.traits.TRAITS` for every response."""
    rows = zip(responses.rows(), responses.ended_B, responses.texts(), responses.prompt_ids_B, strict=True)
    return [
        (*token_traits(row, not ended), *text_traits(vocabulary.prompt(int(prompt)), text, lexicon))
        for row, ended, text, prompt in rows
    ]
