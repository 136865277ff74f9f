"""Row lengths at which a model changes its computation; rows of one length class may share a forward and cached keys.

With LongRoPE every key of a row depends on whether the row is longer than one length; with dynamic NTK scaling, beyond one
length, on the length itself. A sliding window or an attention chunk only limits the attention of a token: keys before it stay
as they are. Read from the configuration; knows no tensors.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

_FIXED_ROPE = frozenset({"default", "linear", "yarn", "llama3", "proportional", "mrope", "su_static"})
"""Rotary scalings whose angles depend on the position alone."""

_LENGTH_NAMES = re.compile(r"window|chunk|local_attention|original_max_position|floor|block_size|sliding")
_NO_LENGTH = re.compile(r"layers|pattern|every|num_|n_|ratio|norm|type|use_|max_window_layers")


@dataclass(frozen=True, slots=True)
class LengthClasses:
    """Classes of row lengths with the same rotary angles. `fixed`: angles change once, beyond each of these lengths.

    `growing_from`: beyond this length, the angles differ for every length.
    """

    fixed: tuple[int, ...] = ()
    growing_from: float = math.inf

    @classmethod
    def of_config(cls, config: Any) -> LengthClasses:
        """Read the rotary scaling of every layer type. An unknown kind of scaling counts as growing."""
        text = config.get_text_config()
        fixed: set[int] = set()
        growing = math.inf
        for rope in _ropes(text):
            kind = str(rope.get("rope_type", rope.get("type", "default")))
            longest = int(getattr(text, "max_position_embeddings", None) or 0)
            named = {int(n) for of in (rope, vars(text)) if (n := of.get("original_max_position_embeddings"))}
            if kind == "longrope" or any(str(name).startswith("long_") for name in rope):
                fixed |= named or {longest}
            elif kind not in _FIXED_ROPE:
                growing = min([growing, longest, *named])
        return cls(tuple(sorted(fixed)), growing)

    def of(self, n_tokens: int) -> int:
        """Class of a row of this length; negative where the class holds rows of exactly this length."""
        if n_tokens > self.growing_from:
            return -n_tokens
        return sum(n_tokens > limit for limit in self.fixed)

    @property
    def limits(self) -> tuple[int, ...]:
        """Lengths after which another class begins."""
        return (*self.fixed, *((int(self.growing_from),) if self.growing_from < math.inf else ()))


def special_lengths(config: Any) -> tuple[int, ...]:
    """All lengths in the configuration after which the computation may change, ascending."""
    text = config.get_text_config()
    found = set(LengthClasses.of_config(config).limits)
    for path, value in _numbers(text.to_dict()):
        if _LENGTH_NAMES.search(path) and not _NO_LENGTH.search(path):
            found.add(value)
    return tuple(sorted(n for n in found if n > 1))


def _ropes(text: Any) -> Iterator[Mapping[str, Any]]:
    for name in ("rope_parameters", "rope_scaling"):
        rope = getattr(text, name, None)
        if isinstance(rope, Mapping):
            yield rope
            yield from (each for each in rope.values() if isinstance(each, Mapping))


def _numbers(value: Any, path: str = "") -> Iterator[tuple[str, int]]:
    """Every integer in a nested configuration, with its key; integers in lists too."""
    if isinstance(value, Mapping):
        for name, each in value.items():
            yield from _numbers(each, str(name))
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _numbers(each, path)
    elif isinstance(value, int) and not isinstance(value, bool):
        yield path, value
