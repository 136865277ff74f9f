"""Turn the rows of public data sets into rows of the columns that training reads.

A source has one shape, recognised by its first rows; a later row of another one is a bad row. Independent of files and of
tokenizers; a row without one of these shapes stays as it is.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from itertools import chain, islice
from typing import Any

from rewardserve.training.dataset.conversations import FieldError
from rewardserve.training.dataset.feedback import SourceKind
from rewardserve.training.dataset.sources import SourceRow
from rewardserve.training.settings.data_config import SourceConfig
from rewardserve.training.settings.validation import shown

Row = Mapping[str, Any]
_N_FIRST = 16
"""Rows that decide which shape a source has."""
_KEPT_KEYS = (
    "system_key",
    "tools_key",
    "group_key",
    "source_key",
    "margin_key",
    "tie_key",
    "confidence_key",
    "flip_key",
    "paraphrase_key",
)
"""Settings of columns that no shape changes; a recipe that names another column describes its rows itself."""
_HH_TURN = re.compile(r"(?:^|\n\n)(Human|Assistant):")
_HELPSTEER_TURN = re.compile(r"\n?<extra_id_1>(User|Assistant)\n")
_STEP_TAG = "ки"
"""Math-Shepherd writes it after each step of `input`, and + or - in its place in `label`."""
_FIRST_STEP = re.compile(r"Step 1\s*:")
_NEGATIVE, _POSITIVE = -1, (0, 1)
"""Ratings of PRM800K; its authors count neutral steps as correct ones."""
_NOT_RATED = ("", "n/a")


@dataclass(frozen=True, slots=True)
class Shape:
    """Rows of one form. `fits` recognises a row; `convert` gives the rows that it makes, or raises `FieldError`.

    `reads`: its columns, which no other rule reads. `kinds`: kinds of feedback that come of it.
    """

    kinds: tuple[SourceKind, ...]
    reads: tuple[str, ...]
    fits: Callable[[Row], bool]
    convert: Callable[[Row], Iterable[dict[str, Any]]]


@dataclass(frozen=True, slots=True)
class ShapedRows:
    """The rows of a source, and the name of the shape that they had; empty: none."""

    rows: Iterator[SourceRow]
    name: str = ""

    @property
    def note(self) -> str:
        """How they were read."""
        return f"rows in the shape of {self.name} (shape: none reads their columns by name)"


def shaped(rows: Iterable[SourceRow], source: SourceConfig) -> ShapedRows:
    """Convert the rows of a source where they have a known shape."""
    remaining = iter(rows)
    first = list(islice(remaining, _N_FIRST))
    name = source.shape if source.shape != "auto" else _recognised(first, source)
    together = chain(first, remaining)
    if name not in SHAPES:
        return ShapedRows(together)
    return ShapedRows((made for row in together for made in _converted(row, name)), name)


def _recognised(rows: Iterable[SourceRow], source: SourceConfig) -> str:
    """Name of the shape that all these rows have; empty if there is none, or the recipe names columns itself."""
    own = [f.name for f in fields(SourceConfig) if f.name.endswith("_key") and f.name not in _KEPT_KEYS]
    default = SourceConfig(source.path)
    if source.strings == "raw" or any(getattr(source, key) != getattr(default, key) for key in own):
        return ""
    values = [_filled(row.values) for row in rows if row.values is not None]
    for name, shape in SHAPES.items():
        if source.kind in ("auto", *shape.kinds) and values and all(map(shape.fits, values)):
            return name
    return ""


def _converted(row: SourceRow, name: str) -> Iterator[SourceRow]:
    if row.values is None:
        yield row
        return
    values, shape = _filled(row.values), SHAPES[name]
    try:
        if not shape.fits(values):
            raise FieldError("row", f"is not in the shape of {name}, as the first rows of the source are")
        made = list(shape.convert(values))
        if not made:
            raise FieldError(shape.reads[0], "has no response with a label")
    except FieldError as error:
        yield replace(row, values=None, error=str(error), field=error.field)
        return
    except (KeyError, TypeError, AttributeError, IndexError) as error:  # data from anywhere, nested deeply
        why = f"is not as in the shape of {name}: {type(error).__name__}: {error}"
        yield replace(row, values=None, error=why, field=shape.reads[0])
        return
    others = {key: value for key, value in values.items() if key not in shape.reads}
    for number, each in enumerate(made, 1):
        yield replace(row, values=others | each, part=f"#{number}" if len(made) > 1 else "")


def _filled(values: Row) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}


def _has(row: Row, **types: type | tuple[type, ...]) -> bool:
    return all(isinstance(row.get(name), wanted) for name, wanted in types.items())


def _are_objects(value: Any, *names: str) -> bool:
    """Whether a list has objects with these fields."""
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(each, Mapping) and all(name in each for name in names) for each in value)
    )


def _turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def _one_message(value: Any) -> Any:
    """A response that is one message, as a list of it."""
    return [value] if isinstance(value, Mapping) else value


# -- LLaMA-Factory ----------------------------------------------------------------------------------------

_LABELS = ("label", "kto_tag", "rating", "score")


def _is_sharegpt(row: Row) -> bool:
    named = "conversations" if "conversations" in row else "messages"
    answered = _has(row, chosen=(Mapping, str, list), rejected=(Mapping, str, list))
    if named == "messages":  # messages with a label need no conversion
        answered = _has(row, chosen=Mapping, rejected=Mapping)
    labelled = named == "conversations" and any(name in row for name in _LABELS)
    return "prompt" not in row and _are_objects(row.get(named)) and (answered or labelled)


def _sharegpt(row: Row) -> Iterator[dict[str, Any]]:
    turns = row["conversations"] if "conversations" in row else row["messages"]
    if "chosen" in row:
        yield {"prompt": turns, "chosen": _one_message(row["chosen"]), "rejected": _one_message(row["rejected"])}
    else:
        yield {"messages": turns}


def _is_alpaca(row: Row) -> bool:
    paired = _has(row, chosen=str, rejected=str) or _has(row, output=list)
    labelled = _has(row, output=str) and any(name in row for name in _LABELS)
    return "prompt" not in row and _has(row, instruction=str) and (paired or labelled)


def _alpaca(row: Row) -> Iterator[dict[str, Any]]:
    asked = "\n".join(part for name in ("instruction", "input") if (part := row.get(name)))
    prompt = [*_history(row.get("history")), _turn("user", asked)]
    output = row.get("output")
    if "chosen" in row:
        yield {"prompt": prompt, "chosen": row["chosen"], "rejected": row["rejected"]}
    elif isinstance(output, list):
        if len(output) != 2:
            raise FieldError("output", f"has {len(output)} responses; a pair has the better and the worse one")
        yield {"prompt": prompt, "chosen": output[0], "rejected": output[1]}
    else:
        yield {"prompt": prompt, "response": output}


def _history(value: Any) -> Iterator[dict[str, str]]:
    """Earlier turns: a list of pairs of a question and its answer."""
    for turns in value or ():
        if not isinstance(turns, list | tuple) or len(turns) != 2 or not all(isinstance(each, str) for each in turns):
            raise FieldError("history", "must be a list of pairs of texts: a question and its answer")
        yield _turn("user", turns[0])
        yield _turn("assistant", turns[1])


# -- texts of Anthropic -----------------------------------------------------------------------------------


def _is_hh_text(text: Any) -> bool:
    return isinstance(text, str) and bool(re.match(r"\s*Human:", text)) and "\n\nAssistant:" in text


def _is_hh(row: Row) -> bool:
    return "prompt" not in row and _is_hh_text(row.get("chosen")) and _is_hh_text(row.get("rejected"))


def _hh(row: Row) -> Iterator[dict[str, Any]]:
    sides = {side: _dialogue(row[side], side) for side in ("chosen", "rejected")}
    for side, turns in sides.items():
        if turns[-1]["role"] != "assistant" or not turns[-1]["content"]:
            raise FieldError(side, "does not end with a turn of the assistant that has text")
    yield dict(sides)


def _dialogue(text: str, field: str) -> list[dict[str, str]]:
    """Turns of a text with `Human:` and `Assistant:` before each."""
    before, *parts = _HH_TURN.split(text.strip())
    turns = [
        _turn("user" if who == "Human" else "assistant", content.strip())
        for who, content in zip(parts[::2], parts[1::2], strict=True)
    ]
    if before.strip() or not turns or any(not turn["content"] for turn in turns[:-1]):
        raise FieldError(field, "has an empty turn, or text before the first `Human:`")
    return turns


def _is_nectar(row: Row) -> bool:
    return _is_hh_text(row.get("prompt")) and _are_objects(row.get("answers"), "answer", "rank")


def _nectar(row: Row) -> Iterator[dict[str, Any]]:
    turns = _dialogue(row["prompt"], "prompt")
    prompt = turns[:-1] if turns[-1] == _turn("assistant", "") else turns
    answers = row["answers"]
    yield {
        "prompt": prompt,
        "responses": [each["answer"] for each in answers],
        "ranks": [each["rank"] for each in answers],
    }


# -- ratings ----------------------------------------------------------------------------------------------


def _is_ultrafeedback(row: Row) -> bool:
    return _has(row, instruction=str, completions=list) and (
        not row["completions"] or _are_objects(row["completions"], "response", "annotations")
    )


def _ultrafeedback(row: Row) -> Iterator[dict[str, Any]]:
    """A rating for each response: the mean of its attributes, which are columns too."""
    for each in row["completions"]:
        annotations = each["annotations"]
        if not isinstance(annotations, Mapping):
            raise FieldError("completions", "has annotations that are not an object")
        rated = {str(name): _rating(one, str(name)) for name, one in annotations.items()}
        known = [number for number in rated.values() if number is not None]
        if known:
            yield {
                "prompt": row["instruction"],
                "response": each["response"],
                "rating": sum(known) / len(known),
                **rated,
            }


def _rating(annotation: Any, name: str) -> float | None:
    value = annotation.get("Rating") if isinstance(annotation, Mapping) else None
    if value is None or str(value).strip().casefold() in _NOT_RATED:
        return None
    try:
        return float(value)
    except (TypeError, ValueError):
        raise FieldError("completions", f"has for {name} the Rating {shown(value)}, which is no number") from None


def _is_helpsteer(row: Row) -> bool:
    numbers = all(isinstance(row.get(name), int | float) for name in ("helpfulness", "correctness", "coherence"))
    return _has(row, prompt=str, response=str) and numbers and "rating" not in row and "score" not in row


def _helpsteer(row: Row) -> Iterator[dict[str, Any]]:
    yield {"prompt": _helpsteer_prompt(row["prompt"]), "response": row["response"], "rating": row["helpfulness"]}


def _helpsteer_prompt(value: Any) -> Any:
    """A prompt as turns; HelpSteer2 writes several in one text, with a tag before each but the first."""
    if not isinstance(value, str):
        return value
    first, *rest = _HELPSTEER_TURN.split(value)
    turns = [("User", first), *zip(rest[::2], rest[1::2], strict=True)]
    if turns[-1][0] == "Assistant" and not turns[-1][1].strip():
        turns.pop()
    return [_turn(who.lower(), text) for who, text in turns]


_STRENGTHS = ("preference_strength", "overall_preference")
"""In HelpSteer2 and HelpSteer3: below zero where the first response is better, above where the second is."""


def _is_helpsteer_preference(row: Row) -> bool:
    two = _has(row, prompt=str, response_1=str, response_2=str, preference_strength=(int, float))
    return two or _has(row, context=(list, str), response1=str, response2=str, overall_preference=(int, float))


def _helpsteer_preference(row: Row) -> Iterator[dict[str, Any]]:
    strength = next(row[name] for name in _STRENGTHS if name in row)
    sides = [row[name] for name in ("response_1", "response_2", "response1", "response2") if name in row]
    chosen, rejected = sides if strength <= 0 else reversed(sides)
    prompt = _helpsteer_prompt(row["prompt"] if "preference_strength" in row else row["context"])
    yield {"prompt": prompt, "chosen": chosen, "rejected": rejected, "tie": strength == 0}


# -- two responses with a verdict -------------------------------------------------------------------------

_ARENA = {"model_a": (1, False), "model_b": (-1, False), "tie": (1, True), "tie (bothbad)": (1, True)}


def _is_arena(row: Row) -> bool:
    return _are_objects(row.get("conversation_a")) and _are_objects(row.get("conversation_b")) and "winner" in row


def _arena(row: Row) -> Iterator[dict[str, Any]]:
    if row["winner"] not in _ARENA:
        raise FieldError("winner", f"is {shown(row['winner'])}; it must be one of {', '.join(_ARENA)}")
    order, tie = _ARENA[row["winner"]]
    chosen, rejected = (row["conversation_a"], row["conversation_b"])[::order]
    yield {"chosen": chosen, "rejected": rejected, "tie": tie}


def _is_saferlhf(row: Row) -> bool:
    return _has(row, prompt=str, response_0=str, response_1=str, better_response_id=int, safer_response_id=int)


def _saferlhf(row: Row) -> Iterator[dict[str, Any]]:
    """The more helpful response is chosen; `better` and `safer` are attributes: above zero where it is that one."""
    sides, better, safer = (row["response_0"], row["response_1"]), row["better_response_id"], row["safer_response_id"]
    for name, value in (("better_response_id", better), ("safer_response_id", safer)):
        if value not in (0, 1):
            raise FieldError(name, f"is {shown(value)}; it must be 0 or 1")
    chosen, rejected = sides[better], sides[1 - better]
    yield {
        "prompt": row["prompt"],
        "chosen": chosen,
        "rejected": rejected,
        "better": 1,
        "safer": 1 if safer == better else -1,
    }


def _is_shp(row: Row) -> bool:
    return _has(row, history=str, human_ref_A=str, human_ref_B=str, labels=int)


def _shp(row: Row) -> Iterator[dict[str, Any]]:
    if row["labels"] not in (0, 1):
        raise FieldError("labels", f"is {shown(row['labels'])}; it must be 1 where A is better, or 0")
    chosen, rejected = (row["human_ref_A"], row["human_ref_B"])[:: 1 if row["labels"] else -1]
    yield {"prompt": row["history"], "chosen": chosen, "rejected": rejected}


# -- steps ------------------------------------------------------------------------------------------------


def _is_prm800k(row: Row) -> bool:
    question, label = row.get("question"), row.get("label")
    return isinstance(question, Mapping) and "problem" in question and isinstance(label, Mapping) and "steps" in label


def _prm800k(row: Row) -> Iterator[dict[str, Any]]:
    """The steps that the solution continued with, and a row for each rated step that it did not: it ends there.

    A label of the shared steps is in the first of these rows alone.
    """
    prompt, path = row["question"]["problem"], list[tuple[str, bool | None]]()
    others: list[dict[str, Any]] = []
    for step in row["label"]["steps"] or ():
        completions = step.get("completions") or ()
        chosen = step.get("chosen_completion")
        for number, one in enumerate(completions):
            if number != chosen and one.get("rating") is not None:
                others.append(_solution(prompt, [*((text, None) for text, _ in path), _step(one)], is_whole=False))
        following = step.get("human_completion") if chosen is None else completions[chosen]
        if following is None:
            break
        # A step that an annotator has written counts as correct: it replaces wrong ones.
        text = following if isinstance(following, str) else following["text"]
        path.append((text, True) if chosen is None else _step(following))
    if any(label is not None for _, label in path):
        yield _solution(prompt, path, is_whole=row["label"].get("finish_reason") == "solution")
    yield from others


def _step(completion: Row) -> tuple[str, bool | None]:
    rating = completion.get("rating")
    if rating is not None and rating not in (_NEGATIVE, *_POSITIVE):
        raise FieldError("label", f"has a step with the rating {shown(rating)}; it must be -1, 0 or 1")
    return completion["text"], None if rating is None else rating in _POSITIVE


def _solution(prompt: str, steps: list[tuple[str, bool | None]], *, is_whole: bool) -> dict[str, Any]:
    return {
        "prompt": prompt,
        "completions": [text for text, _ in steps],
        "labels": [label for _, label in steps],
        "finish_reason": "stop" if is_whole else "length",
    }


def _is_math_shepherd(row: Row) -> bool:
    return _has(row, input=str, label=str) and _STEP_TAG in row["input"]


def _math_shepherd(row: Row) -> Iterator[dict[str, Any]]:
    given = row["input"].split(_STEP_TAG)
    begin = _FIRST_STEP.search(given[0])
    if begin is None:
        raise FieldError("input", "has no `Step 1:`, where the prompt ends")
    steps = [given[0][begin.start() :], *given[1:]]
    if not steps[-1].strip():
        steps.pop()
    labels, at = [], 0
    for text in given[: len(steps)]:
        at += len(text)
        mark = row["label"][at : at + 1]
        if mark not in ("+", "-"):
            raise FieldError(
                "label", f"has {shown(mark)} at character {at}, where a step of the input ends; it must be + or -"
            )
        labels.append(mark == "+")
        at += 1
    yield {
        "prompt": given[0][: begin.start()].strip(),
        "completions": [step.strip() for step in steps],
        "labels": labels,
    }


_PAIRS_AND_ONE: tuple[SourceKind, ...] = ("pairs", "ratings", "labels")
SHAPES: dict[str, Shape] = {
    "sharegpt": Shape(_PAIRS_AND_ONE, ("conversations", "messages", "chosen", "rejected"), _is_sharegpt, _sharegpt),
    "ultrafeedback": Shape(("ratings",), ("completions", "instruction"), _is_ultrafeedback, _ultrafeedback),
    "alpaca": Shape(
        _PAIRS_AND_ONE, ("instruction", "input", "history", "chosen", "rejected", "output"), _is_alpaca, _alpaca
    ),
    "hh": Shape(("pairs",), ("chosen", "rejected"), _is_hh, _hh),
    "nectar": Shape(("rankings",), ("answers", "prompt", "source"), _is_nectar, _nectar),
    "helpsteer": Shape(("ratings",), ("prompt", "response"), _is_helpsteer, _helpsteer),
    "helpsteer-preference": Shape(
        ("pairs",),
        ("prompt", "context", "response_1", "response_2", "response1", "response2"),
        _is_helpsteer_preference,
        _helpsteer_preference,
    ),
    "arena": Shape(("pairs",), ("conversation_a", "conversation_b"), _is_arena, _arena),
    "saferlhf": Shape(("pairs",), ("prompt", "response_0", "response_1"), _is_saferlhf, _saferlhf),
    "shp": Shape(("pairs",), ("history", "human_ref_A", "human_ref_B", "labels"), _is_shp, _shp),
    "prm800k": Shape(("steps",), ("question", "label"), _is_prm800k, _prm800k),
    "math-shepherd": Shape(("steps",), ("input", "label"), _is_math_shepherd, _math_shepherd),
}
"""Shapes by name, in the order in which they are tried."""
