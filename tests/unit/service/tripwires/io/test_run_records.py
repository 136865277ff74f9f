"""Every field of a run can be written and read, whatever is in it."""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from collections.abc import Mapping
from dataclasses import is_dataclass
from types import NoneType, UnionType
from typing import Literal, Union, get_args, get_origin, get_type_hints

from rewardserve.service.tripwires.baseline import BaselineSource
from rewardserve.service.tripwires.io.run_records import decode_run, encode_run
from rewardserve.service.tripwires.run_state import Run
from rewardserve.service.tripwires.running_sums import RunningSums
from tests.support.run_states import plain

VALUES = {int: -(2**62), float: 0.1, str: "ä\n", bool: True, None: None}


def example(hint):
    """A value of this type, with one value in each collection. Raise `KeyError` for a type that no example is known of."""
    made, of = get_origin(hint) or hint, get_args(hint)
    if made is Literal:
        return of[0]
    if made in (Union, UnionType):
        return example(next(each for each in of if each is not NoneType))
    if made in (dict, OrderedDict, Counter, Mapping):
        key, value = of if len(of) == 2 else (*of, int)
        return (dict if made is Mapping else made)({example(key): example(value)})
    if made is tuple:
        return tuple(example(each) for each in of if each is not ...)
    if made in (list, set, deque):
        return made([example(of[0])])
    if made is RunningSums:
        return RunningSums()
    if is_dataclass(made) or hasattr(made, "_fields"):
        return made(**{name: example(each) for name, each in get_type_hints(made).items()})
    return VALUES[made]


def test_a_value_in_every_field_outlives_a_restart():
    source = BaselineSource()
    run = Run(source, **{name: example(of) for name, of in get_type_hints(Run).items() if name != "baseline_source"})
    run.baseline_source = source
    restored = decode_run(encode_run("a", run, is_archived=False, incidents={}, waiting=()), source, 0.0)
    assert restored.misfit == ""
    assert plain(restored.run) == plain(run)
