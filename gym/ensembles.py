"""Who judges in a row of the table: the reward models of one seed, by the data and the backbones they are made of.

Every jury of a seed starts from the same labelled pairs, and their first backbone is the same, so that rows can be
compared seed by seed. It knows no settings of the pipeline.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np

from gym.counterexamples import AUDITOR, N_AUDITED, audited, drawn, mined, together
from gym.labeller import PLANTED, Biases, Pairs, pairs
from gym.policy import Policy
from gym.proxy import Backbone, Panel, backbone, reward_model
from gym.rewards import Jury, Reference, one_model, several_models

N_MEMBERS: Final = 4
N_PAIRS: Final = 6_000


@dataclass(frozen=True)
class World:
    """One seed: its labelled pairs, its backbones, and the audited labels that could be had in addition."""

    base: Policy
    against: Reference
    seed: int
    biases: Biases = PLANTED["human"]
    n_pairs: int = N_PAIRS

    @cached_property
    def labelled(self) -> Pairs:
        """The biased labels that every reward model learns from: those of `proxy.panel` for this seed."""
        return pairs(self.base, self.n_pairs, self.biases, np.random.default_rng([self.seed, 0]))

    @cached_property
    def mined(self) -> Pairs:
        """Audited labels of what a policy found on the first backbone."""
        return mined(self.base, self.network(0), self.labelled, self.against, self.seed)

    @cached_property
    def audited_base(self) -> Pairs:
        """As many audited labels of the base policy's responses."""
        return audited(self.base, N_AUDITED, np.random.default_rng([self.seed, 12]))

    @cached_property
    def audited_variants(self) -> Pairs:
        """As many audited labels of the kind of pairs that there were before, which are further apart."""
        return pairs(self.base, N_AUDITED, AUDITOR, np.random.default_rng([self.seed, 14]))

    def network(self, index: int) -> Backbone:
        """The backbone of a member."""
        return backbone([self.seed, index + 1])


def one(world: World, labelled: Pairs) -> Jury:
    """One model on the first backbone."""
    return one_model(Panel({"reward": reward_model(world.network(0), labelled)}), world.against)


def heads(world: World, labelled: Pairs) -> Jury:
    """One model with several heads on the first backbone, each fitted to a bootstrap of the pairs."""
    rng, network = np.random.default_rng([world.seed, 13]), world.network(0)
    members = {f"head_{i}": reward_model(network, drawn(labelled, rng)) for i in range(N_MEMBERS)}
    return one_model(Panel(members), world.against)


def backbones(world: World, labelled: Pairs) -> Jury:
    """Several models, each on a backbone of its own, fitted to the same pairs."""
    members = {f"member_{i}": reward_model(world.network(i), labelled) for i in range(N_MEMBERS)}
    return several_models(Panel(members), world.against)


JURIES: Final[dict[str, Callable[[World], Jury]]] = {
    "one": lambda w: one(w, w.labelled),
    "heads": lambda w: heads(w, w.labelled),
    "backbones": lambda w: backbones(w, w.labelled),
    "one, mined": lambda w: one(w, together([w.labelled, w.mined])),
    "backbones, mined": lambda w: backbones(w, together([w.labelled, w.mined])),
    "one, audited base": lambda w: one(w, together([w.labelled, w.audited_base])),
    "backbones, audited base": lambda w: backbones(w, together([w.labelled, w.audited_base])),
    "one, audited variants": lambda w: one(w, together([w.labelled, w.audited_variants])),
    "backbones, audited variants": lambda w: backbones(w, together([w.labelled, w.audited_variants])),
}
