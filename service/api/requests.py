"""The requests of this server, each described once.

A record here decodes the bytes of a valid body in one pass. `validation` derives from it the report of an invalid body, and
`openapi` its part of the document.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from rewardserve.model.conversation import DEFAULT_OPTIONS, SCORE_EMPTY_OPTIONS, Message, Sample, SampleError
from rewardserve.service.api.field_docs import DIGEST, MESSAGES, PROMPT, RENDERED, RESPONSE, doc
from rewardserve.service.api.names import MAX_NAME_CHARS
from rewardserve.service.scoring import Comparison, SampleOrError

MAX_STEP = 2**53 - 1
"""The largest integer that every JSON parser reads exactly."""

MAX_NUMBER = 1e9
"""Limit of every other number of a body, with either sign: its square, and sums over a run, cannot overflow."""

MAX_TOKENS = 2**31 - 1

MAX_LOOKAHEAD = 16
"""Continuations of a sample."""

Name = Annotated[str, Meta(max_length=MAX_NAME_CHARS)]
NonNegativeNumber = Annotated[float, Meta(ge=0.0, le=MAX_NUMBER)]
RawScore = Annotated[float, Meta(ge=-MAX_NUMBER, le=MAX_NUMBER)]
Tokens = Annotated[int, Meta(ge=1, le=MAX_TOKENS)]

Run = Annotated[
    Name | None,
    doc(
        "name of the training run, for trip wires and dashboards; empty: none. Same as ?run= or x-run; different values are "
        "refused",
        "ppo-7",
    ),
]
Step = Annotated[
    Annotated[int, Meta(ge=0, le=MAX_STEP)] | None,
    doc("training step of the run. Same as ?step= or the header x-step; different values are refused", 120),
]
Kl = Annotated[
    NonNegativeNumber | None,
    doc("KL divergence of the policy from its initial state, in nats; for the trip wires", 3.4),
]
Task = Annotated[
    Name | None,
    doc(
        "name of the task or data set that the prompt is from, for the trip wires: each task of a run has a separate baseline; "
        "empty: none",
        "math",
    ),
]
ResultId = Annotated[
    Name | None, doc("returned in the reply, which has the order of the request; default: the index", "a")
]


class StrictRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True, gc=False):
    """Base of requests and of their parts: types are not converted, unknown fields are refused."""

    EXAMPLES: ClassVar[Sequence[Any]] = ()
    """Whole bodies, for the OpenAPI document."""


class MessageIn(StrictRecord, frozen=True, gc=False):
    """One turn of a conversation."""

    role: Annotated[str, doc("system, user, assistant or tool; another role is an error of that sample", "user")]
    content: Annotated[str, doc("text of the turn", PROMPT)]


Prompt = str | list[MessageIn]


class SampleIn(StrictRecord, frozen=True, gc=False):
    """One conversation to score. Give exactly one of: prompt and response; messages; text; input_ids."""

    id: ResultId = None
    prompt: Annotated[Prompt | None, doc("one user turn, or a list of messages", PROMPT)] = None
    response: Annotated[str | None, doc("response to `prompt`, which is scored", RESPONSE)] = None
    messages: Annotated[
        list[MessageIn] | None, doc("conversation whose last message is the assistant's, which is scored", MESSAGES)
    ] = None
    text: Annotated[str | None, doc("conversation that the client has rendered", RENDERED)] = None
    input_ids: Annotated[tuple[int, ...] | None, doc("conversation that the client has tokenised", [1, 40, 33, 2])] = (
        None
    )
    finish_reason: Annotated[
        Literal["stop", "length"] | UnsetType,
        doc("length: the response was cut off, so no end token is added", "stop", default="stop"),
    ] = UNSET
    reference_rewards: Annotated[
        tuple[RawScore, ...],
        Meta(max_length=64),
        doc("raw scores of reference responses to this prompt, for the shapes par and lsc", [0.3, 0.8]),
    ] = ()
    score_empty: Annotated[
        bool, doc("score an empty or blank response at its end token, instead of refusing it", False)
    ] = False
    task: Task = None
    lookahead: Annotated[
        tuple[Annotated[list[MessageIn], Meta(min_length=1, max_length=32)], ...],
        Meta(max_length=MAX_LOOKAHEAD),
        doc(
            "continuations: turns that may follow the response, each scored as a conversation. One that ends before a turn of the "
            "assistant is continued by the policy that the operator has configured",
            [[{"role": "user", "content": "And then?"}, {"role": "assistant", "content": "Cool it in water."}]],
        ),
    ] = ()
    lookahead_reward: Annotated[
        Literal["min", "mean"] | Annotated[float, Meta(ge=0.0, le=1.0)],
        doc(
            "the reward of a sample with continuations: the least or the mean of all, or a quantile (a number)",
            "min",
            0.25,
        ),
    ] = "min"


class ScoreRequest(StrictRecord, frozen=True, gc=False):
    """Samples to score, and the run and step of the training that they belong to."""

    EXAMPLES = (
        {
            "run": "ppo-7",
            "step": 120,
            "samples": [
                {
                    "id": "a",
                    "prompt": "Add two and two.",
                    "response": "Four.",
                    "finish_reason": "stop",
                    "task": "math",
                },
                {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}]},
                {"text": "a conversation that the client has rendered"},
                {"input_ids": [1, 2, 3]},
            ],
        },
    )

    samples: Annotated[
        list[SampleIn],
        Meta(min_length=1),
        doc(
            "conversations to score; an invalid sample gets an error in its result, the others are scored",
            [{"id": "a", "prompt": PROMPT, "response": RESPONSE}],
        ),
    ]
    run: Run = None
    step: Step = None
    kl: Kl = None


class ComparisonIn(StrictRecord, frozen=True, gc=False):
    """One prompt and the responses to rank."""

    prompt: Annotated[Prompt, doc("one user turn, or a list of messages", PROMPT)]
    responses: Annotated[
        list[str],
        Meta(min_length=2, max_length=16),
        doc("responses to the prompt, in any order", ["Look it up.", RESPONSE]),
    ]
    id: ResultId = None


class CompareRequest(StrictRecord, frozen=True, gc=False):
    """Prompts with responses to rank. `tie_margin` is in units of the raw score."""

    EXAMPLES = ({"comparisons": [{"id": "q", "prompt": "Why?", "responses": ["No.", "Because."]}]},)

    comparisons: Annotated[
        list[ComparisonIn],
        Meta(min_length=1),
        doc("prompts with their responses", [{"id": "q", "prompt": PROMPT, "responses": ["Look it up.", RESPONSE]}]),
    ]
    run: Run = None
    step: Step = None
    tie_margin: Annotated[
        NonNegativeNumber, doc("there is no winner if the best two raw scores differ by no more than this", 0.05)
    ] = 0.0


class QueryIn(StrictRecord, frozen=True, gc=False):
    """A response to approve that may have been cut off."""

    response: Annotated[str, doc("response to `prompt`, which is approved", RESPONSE)]
    finish_reason: Annotated[
        Literal["stop", "length"],
        doc("length: the response was cut off, so no end token is added", "stop", default="stop"),
    ] = "stop"


class ApprovalIn(StrictRecord, frozen=True, gc=False):
    """One prompt with the responses that the trainer has acted on, and independent draws of the policy to approve."""

    prompt: Annotated[Prompt, doc("one user turn, or a list of messages", PROMPT)]
    queries: Annotated[
        list[str | QueryIn],
        Meta(min_length=1, max_length=64),
        doc("responses drawn independently of those taken; these alone are approved", [RESPONSE]),
    ]
    taken: Annotated[
        tuple[str, ...],
        Meta(max_length=64),
        doc("responses that were acted on; they are compared with the queries, and never approved", ["Look it up."]),
    ] = ()
    id: ResultId = None
    task: Task = None


class ApprovalsRequest(StrictRecord, frozen=True, gc=False):
    """Groups of queries to approve, and the run whose snapshot approves them."""

    EXAMPLES = (
        {
            "run": "ppo-7",
            "step": 120,
            "groups": [{"id": "g", "prompt": "Why?", "taken": ["No."], "queries": ["Because."]}],
        },
    )

    groups: Annotated[
        list[ApprovalIn],
        Meta(min_length=1),
        doc("prompts with their queries", [{"id": "g", "prompt": PROMPT, "queries": [RESPONSE]}]),
    ]
    run: Run = None
    step: Step = None
    kl: Kl = None
    snapshot: Annotated[
        Annotated[str, Meta(pattern=r"^sha256:[0-9a-f]{64}$")] | None,
        doc("the snapshot of earlier replies: a server that would approve with another one refuses", DIGEST),
    ] = None


def to_sample(sample: SampleIn) -> SampleOrError:
    """Convert a sample of a request. Return the error of an invalid one."""
    prompt, messages = sample.prompt, sample.messages
    try:
        return Sample(
            prompt if prompt is None or isinstance(prompt, str) else _messages(prompt),
            sample.response,
            None if messages is None else _messages(messages),
            sample.text,
            sample.input_ids,
            "stop" if sample.finish_reason is UNSET else sample.finish_reason,
            sample.reference_rewards,
            options=SCORE_EMPTY_OPTIONS if sample.score_empty else DEFAULT_OPTIONS,
            lookahead=tuple([_messages(turns) for turns in sample.lookahead]) if sample.lookahead else (),
            lookahead_reward=sample.lookahead_reward,
        )
    except SampleError as error:
        return error


def to_comparison(comparison: ComparisonIn) -> Comparison:
    """Convert a comparison of a request to a plain record."""
    prompt = comparison.prompt
    return Comparison(prompt if isinstance(prompt, str) else _messages(prompt), tuple(comparison.responses))


def to_query_samples(group: ApprovalIn) -> list[SampleOrError]:
    """Convert the queries of a group to samples."""
    prompt = group.prompt if isinstance(group.prompt, str) else _messages(group.prompt)
    return [
        Sample(prompt, query)
        if isinstance(query, str)
        else Sample(prompt, query.response, finish_reason=query.finish_reason)
        for query in group.queries
    ]


def repeats_of_taken(group: ApprovalIn) -> list[int]:
    """The indices of queries that are equal to a response that was taken."""
    taken = set(group.taken)
    texts = [query if isinstance(query, str) else query.response for query in group.queries]
    return [i for i, text in enumerate(texts) if text in taken]


def _messages(messages: Sequence[MessageIn]) -> tuple[Message, ...]:
    return tuple(Message(m.role, m.content) for m in messages)


def n_strings(request: ScoreRequest | CompareRequest | ApprovalsRequest) -> int:
    """Count the strings, keys included, of the JSON of this request without fields at their defaults."""
    n = 2 * (request.run is not None) + (request.step is not None) + 1
    if isinstance(request, ApprovalsRequest):
        n += (request.kl is not None) + 2 * (request.snapshot is not None)
        return n + sum([_n_strings_of_group(each) for each in request.groups])
    if isinstance(request, ScoreRequest):
        return n + (request.kl is not None) + _n_strings_of_samples(request.samples)
    return n + (request.tie_margin != 0.0) + sum([_n_strings_of_comparison(each) for each in request.comparisons])


def _n_strings_of_samples(samples: list[SampleIn]) -> int:
    """Count the strings of samples. A loop without calls, since it runs in every request."""
    n, unset = 0, UNSET
    for sample in samples:
        if (prompt := sample.prompt) is not None:
            n += 2 if type(prompt) is str else 1 + 4 * len(prompt)
        if sample.response is not None:
            n += 2
        if sample.input_ids is not None:
            n += 1
        if sample.id is not None:
            n += 2
        if sample.finish_reason is not unset:
            n += 2
        if (messages := sample.messages) is not None:
            n += 1 + 4 * len(messages)
        if sample.text is not None:
            n += 2
        if sample.reference_rewards:
            n += 1
        if sample.score_empty:
            n += 1
        if sample.task is not None:
            n += 2
        if sample.lookahead:
            n += 1 + sum([4 * len(turns) for turns in sample.lookahead])
        if sample.lookahead_reward != "min":
            n += 1 + isinstance(sample.lookahead_reward, str)
    return n


def _n_strings_of_comparison(comparison: ComparisonIn) -> int:
    prompt = comparison.prompt
    n = 2 if isinstance(prompt, str) else 1 + 4 * len(prompt)
    return n + 1 + len(comparison.responses) + 2 * (comparison.id is not None)


def _n_strings_of_group(group: ApprovalIn) -> int:
    prompt = group.prompt
    n = 2 if isinstance(prompt, str) else 1 + 4 * len(prompt)
    n += 1 + sum([1 if isinstance(q, str) else 2 + 2 * (q.finish_reason != "stop") for q in group.queries])
    n += len(group.taken) + bool(group.taken)
    return n + 2 * (group.id is not None) + 2 * (group.task is not None)
