"""Encode samples into token ids: the only encoder, for training and for serving alike.

Everything in which two encoders may differ is in `EncodingPolicy`, which is part of the
`ScoringContract`. Knows a tokenizer, no model, no HTTP.

Rules, in the order in which they are applied:
- a conversation is rendered with the chat template, as a whole;
- control tokens are valid in the template's text and in text that the client has rendered; in a message, and in a response
  whose beginning the client sends, they are ordinary text (`control_tokens`), except for the one that ends the response;
- an id without an embedding in the model is an error of that sample alone;
- messages have the BOS tokens that the template writes; text and ids begin with those once, and without a template with the
  special tokens that the tokenizer adds before text;
- a rendering is tokenised as a whole, or in LLaMA-Factory's layout slot by slot (`llama_factory_slots`);
- the sequence ends with the end ids of training; a response that was cut off
  (`finish_reason="length"`) gets none and is flagged `missing_end`;
- a template that uses the current date always gets the same date (`chat_template`);
- a response of white space alone counts as empty;
- otherwise white space is never stripped, except where the trainer of the layout does so (`layout_rules`);
- the score is read at the last token of a row: pad tokens at the end, which transformers' classifiers skip, are dropped;
- a row that is too long is cut at the left of its prompt; the response and its ending are never cut.

Responses to one prompt share its rendering and most of its ids: both are cached, the ids only up to
the last position where a cut of the text provably changes no id (`split_points`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import accumulate
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from rewardserve.model.conversation import (
    EmptyResponse,
    InputTooLong,
    InvalidMessages,
    Message,
    Sample,
    SampleError,
    SampleOptions,
    TokenOutOfVocabulary,
    UnsupportedField,
    check_text,
)
from rewardserve.model.layout_rules import CLOSES_ANY_TAIL
from rewardserve.model.templates.chat_template import ChatTemplate, ConversationTooSlow, EncodingPolicyError
from rewardserve.model.templates.llama_factory_slots import Slots, pieces
from rewardserve.model.tokenization.control_tokens import ControlTokens, Escaped
from rewardserve.model.tokenization.encoding_notes import encoder_notes, tokens_without_embedding
from rewardserve.model.tokenization.encoding_policy import (
    EncodingPolicy,
    control_ids,
    end_cuts,
    ids_of,
    is_text,
    n_trailing,
    plain,
    text_of,
)
from rewardserve.model.tokenization.lru_cache import LruCache
from rewardserve.model.tokenization.split_points import last_split_point, split_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

T = TypeVar("T")
R = TypeVar("R")

_WORDS = ("Alpha", "Bravo", "Charlie", "Delta")
_READ_IDS, _READ_CHARS = 512, 200
"""Limits of the turns of a client that are read: of token ids, and of a prompt in which no response is known to begin."""

_TEST_ROLES = (
    ("user", "assistant", "user", "assistant"),
    ("system", "user", "assistant"),
    ("user", "assistant", "tool", "assistant"),
)
"""Roles of the test conversations that show the template's text around contents."""
# Tokenisation takes seconds for a very long text. No vocabulary in use averages more characters a token than this,
# so a longer text is rejected before it is tokenised.
_MAX_CHARS_PER_TOKEN = 64

MEMO_CHARS = 2_000_000
"""Characters of prompts that an encoder caches: a thousand prompts of two thousand, about twenty megabytes."""

_LAST_MARK = 0x10FFFD
"""Marks are private-use characters, from the last one down; stand-ins of control tokens are from another plane."""


class Encoded(NamedTuple):
    """Token ids of a sample. `n_prompt` counts the ids before the response's first.

    A named tuple: there is one for every sample, and creating a frozen dataclass takes three times as long.
    """

    ids: tuple[int, ...]
    n_prompt: int
    truncated: bool = False
    missing_end: bool = False

    @property
    def response(self) -> tuple[int, ...] | None:
        """The response's ids; None where it is not known where the response begins."""
        # Only a prompt is truncated: a row without one is all response, if it had one.
        return self.ids[self.n_prompt :] if self.n_prompt or self.truncated else None


class _Talk(NamedTuple):
    """Messages, and the JSON text of the tools that they may call."""

    messages: tuple[Message, ...]
    tools: str = ""

    def texts(self) -> list[str]:
        """Every text that a client has written, in the order of `with_texts`."""
        written = [text for message in self.messages for text in _texts_of(message)]
        return [self.tools, *written] if self.tools else written

    def with_texts(self, texts: Iterable[str]) -> _Talk:
        """The same conversation with other texts."""
        given = iter(texts)
        tools = next(given) if self.tools else ""
        return _Talk(
            tuple(
                replace(
                    message,
                    content=next(given),
                    tool_calls=tuple(
                        replace(call, name=next(given), arguments=next(given)) for call in message.tool_calls
                    ),
                )
                for message in self.messages
            ),
            tools,
        )


@dataclass(frozen=True, slots=True)
class _Prompt:
    """A rendered prompt and its cuts. `is_quoting`: a message quotes a control token, so this rendering cannot be used."""

    text: str
    cuts: tuple[int, ...]
    is_quoting: bool


@dataclass(frozen=True, slots=True)
class _Draft:
    """Text with its ending, in parts that are tokenised separately: all but the last are worth caching.

    The first `n_prompt_chars` of the text are prompt; they end at the end of a part, or in the last one. `escaped`: quoted control
    tokens are replaced by stand-ins. `adds_start`: the policy's `start_ids` are added where the text does not begin with them.
    """

    parts: tuple[str, ...]
    n_prompt_chars: int
    missing_end: bool
    adds_start: bool
    truncated: bool = False
    escaped: Escaped | None = None


class Encoder:
    """A tokenizer under a policy. Thread-safe; the same text gives the same ids in every process.

    `memo_chars=0`: nothing is cached and no text is split; the ids are the same. `notes`: weaknesses of the chat template.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, policy: EncodingPolicy, *, memo_chars: int = MEMO_CHARS
    ) -> None:
        self.policy = policy
        self._fast = plain(tokenizer)
        self._bos = str(tokenizer.bos_token) if policy.bos_id is not None else None
        self._control_ids = control_ids(self._fast)
        self._special = {token.content for token in self._fast.get_added_tokens_decoder().values() if token.special}
        self._turn_ends = self._find_turn_ends()
        self._turn_end_ids = [ids_of(self._fast, turn_end) for turn_end in self._turn_ends]
        tail = policy.template_tail
        # White space alone is the template's tail only where the row ends with it: else it may belong to the response.
        is_tail = policy.rule.ending.startswith("template") or tail.strip()
        self._plain_tail = tail if is_tail and self._control_ids.isdisjoint(ids_of(self._fast, tail)) else ""
        self._plain_tail_ids = ids_of(self._fast, self._plain_tail)
        self._pads_with_text = policy.skip_id is not None and is_text(self._fast, policy.skip_id)
        self._skip = text_of(self._fast, policy.skip_id)
        self._render = ChatTemplate(tokenizer, policy.template, policy.template_date)
        self._slots = (
            Slots(tokenizer, self._render, policy.template, self._bos) if policy.rule.tokenizes == "slots" else None
        )
        self._eos = str(tokenizer.eos_token)
        self._end_cuts = end_cuts(self._slots, policy.template_tail, policy.end_text)
        around_contents = [_text_around_contents(self._render, roles) for roles in _TEST_ROLES]
        template_texts = [piece for around in around_contents for piece in around]
        for template_text in template_texts:
            self._render.check_addresses(template_text)
        added = self._fast.get_added_tokens_decoder()
        written = {
            i for piece in template_texts for i in self._fast.encode(piece, add_special_tokens=False).ids if i in added
        }
        try:
            self._controls = ControlTokens(self._fast, written, template_texts)
        except ValueError as error:
            raise EncodingPolicyError(f"text cannot be distinguished from control tokens: {error}") from error
        beyond = tokens_without_embedding(self._fast, policy.vocab_size)
        self._may_lack_embeddings = bool(beyond)
        between_turns = around_contents[0][1 : len(_TEST_ROLES[0])]
        self.notes = encoder_notes(tokenizer, policy, self._controls, self._slots, between_turns, beyond)
        between = [
            piece
            for around, roles in zip(around_contents, _TEST_ROLES, strict=True)
            for piece in around[1 : len(roles)]
        ]
        # A template may write more text before a response to be generated than before an existing one.
        answered = around_contents[0][1] if around_contents[0] else ""
        self._before_turns = around_contents[0][0] if around_contents[0] else ""
        self._response_starts = tuple(dict.fromkeys((policy.response_start, answered)))
        self._response_start_ids = (
            policy.response_start_ids,
            *(ids_of(self._fast, start) for start in self._response_starts[1:]),
        )
        is_opener = policy.bos_id is None and any(str(tokenizer.bos_token) in piece for piece in between)
        has_bos = tokenizer.bos_token_id is not None and not is_opener
        # Ids that stay at the beginning of a row whose prompt is cut.
        self._kept_start_ids = policy.start_ids or ((tokenizer.bos_token_id,) if has_bos else ())
        self._kept_start = "".join(tokenizer.convert_ids_to_tokens(list(self._kept_start_ids)))
        # Of all split points only those that the template writes before every response are useful.
        tokens = split_tokens(self._fast) if memo_chars else ()
        before = [token for token in tokens if token in policy.response_start]
        self._split_tokens = tuple(token for token in before if token in answered) or tuple(before)
        self._prompts: LruCache[_Talk, _Prompt] = LruCache(memo_chars)
        self._part_ids: LruCache[str, tuple[int, ...]] = LruCache(memo_chars)

    def __call__(self, sample: Sample) -> Encoded:
        """Encode one sample. Raise `SampleError` (with a code and numbers) if it cannot be scored."""
        (encoded,) = self.many([sample])
        if isinstance(encoded, SampleError):
            raise encoded
        return encoded

    def many(self, samples: Sequence[Sample]) -> list[Encoded | SampleError]:
        """Encode samples in one call of the tokenizer, which releases the GIL. Return one entry a sample, in order."""
        read = [_or_error(self._draft_or_ids, sample) for sample in samples]
        encoded = iter(self._tokenize([each for each in read if isinstance(each, _Draft)]))
        whole = [next(encoded) if isinstance(each, _Draft) else each for each in read]
        return [
            each if isinstance(each, SampleError) else _or_error(partial(self._cut_and_checked, each), sample.options)
            for sample, each in zip(samples, whole, strict=True)
        ]

    def texts(self, sample: Sample) -> tuple[str, str]:
        """Prompt and response as plain text, without the ending; empty where they are unknown."""
        if sample.text is None:
            prompt, response = sample.texts()
            return prompt, self._without_ending(response)[0]
        body, _ = self._rendering_without_ending(sample.text)
        n = self._n_prompt_chars(sample, body)
        return (body[:n], body[n:]) if n else ("", "")

    def first_turns(self, sample: Sample) -> str:
        """The turns before the first response of rendered text or token ids, without the text of the template before them.

        A prompt in which no response of this template begins may have responses of another one: its beginning alone is read.
        """
        if sample.input_ids is not None:
            begins = [_find(sample.input_ids, start) for start in self._response_start_ids]
            end = min([begin for begin in begins if begin >= 0], default=0)
            text: str = self._fast.decode(list(sample.input_ids[: min(end, _READ_IDS)]), skip_special_tokens=False)
        elif sample.text is not None:
            begins = [sample.text.find(start) for start in self._response_starts if start]
            end = min([begin for begin in begins if begin >= 0], default=min(sample.n_prompt_chars or 0, _READ_CHARS))
            text = sample.text[:end]
        else:
            return ""
        return text.removeprefix(self._before_turns)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids, special tokens too."""
        text: str = self._fast.decode(list(ids), skip_special_tokens=False)
        return text

    def is_rendered(self, prompt: str) -> bool:
        """Whether a prompt ends with the template's text before a response."""
        return prompt.endswith(self.policy.response_start)

    def _draft_or_ids(self, sample: Sample) -> Encoded | _Draft:
        if sample.input_ids is not None:
            return self._from_ids(sample.input_ids, sample)
        return self._cut_text(self._draft_of_text(sample), sample.options)

    def _find_turn_ends(self) -> tuple[str, ...]:
        """The texts with a control token that may close a turn in a client's response, the longest first.

        A policy stops at its end token, so these are the ending up to any of its control tokens, and each special token alone.
        """
        texts: set[str] = set()
        for whole in (self.policy.template_tail, self.policy.end_text):
            encoding = self._fast.encode(whole, add_special_tokens=False)
            found = [span for i, span in zip(encoding.ids, encoding.offsets, strict=True) if i in self._control_ids]
            for part in (whole, *(whole[:end] for _, end in found)):
                texts |= {part.rstrip(), part.strip()}
            texts |= {part for begin, end in found if (part := whole[begin:end].strip()) in self._special}
        turn_end = [text for text in texts if not self._control_ids.isdisjoint(ids_of(self._fast, text))]
        return tuple(sorted(turn_end, key=lambda text: (-len(text), text)))

    # -- text ---------------------------------------------------------------------------------------------

    def _draft_of_text(self, sample: Sample) -> _Draft:
        escaped = None
        if sample.text is not None:
            check_text(sample.text)
            body, had_ending = self._rendering_without_ending(sample.text)
            # A client may leave out only an ending that is the same for all conversations.
            rendering = sample.text if self.policy.ending_varies else None
            n_prompt_chars = self._n_prompt_chars(sample, body)
            if not body[n_prompt_chars:].strip():
                _check_empty(sample, has_prompt=bool(body.strip()))
            cuts = (
                self._split_point(body[:n_prompt_chars])
                if self._slots is None
                else self._slots.of_text(body, n_prompt_chars)
            )
            if sample.n_prompt_chars is not None:
                escaped = self._escape_response(body, n_prompt_chars)
            if escaped is not None:
                body = body[:n_prompt_chars] + escaped.texts[0]
        else:
            messages = sample.conversation()
            if self._slots is not None and messages[0] == Message("system", ""):
                messages = messages[1:]  # LLaMA-Factory drops an empty system message
            talk, last = _Talk(messages, sample.tools), messages[-1]
            if self._slots is not None:
                _check_slots(talk)
            for text in talk.texts():
                check_text(text)
            # The text of a policy often still has its end token, which the template writes again.
            content, had_ending = self._without_ending(last.content)
            if not content.strip() and not last.tool_calls:
                _check_empty(sample)
            before = _Talk(messages[:-1], sample.tools)
            prompt = self._prompts.get(before) or self._cache_prompt(before)
            if content != last.content:
                talk = _Talk((*messages[:-1], replace(last, content=content)), sample.tools)
            if prompt.is_quoting or any(map(self._controls.are_quoted, _texts_of(talk.messages[-1]))):
                talk, escaped = self._escape(talk)
                prompt = self._render_prompt(_Talk(talk.messages[:-1], talk.tools))
            rendering = self._render(talk.messages, add_generation_prompt=False, tools=talk.tools)
            if escaped is not None:
                _check_stand_ins(escaped, rendering, talk)
            body, last = rendering.removesuffix(self.policy.template_tail), talk.messages[-1]
            content = last.content
            is_prefix = body.startswith(prompt.text)
            if is_prefix:
                begin = len(prompt.text)
            elif last.tool_calls:
                begin = _n_common(body, prompt.text)
            else:
                begin = _begin_of_response(body, prompt.text, content)
            n_prompt_chars = max(0, begin)
            cuts = self._shared_cuts(prompt, body[:n_prompt_chars])
            if last.tool_calls:  # the text after the content has the calls
                is_usual = rendering.endswith(self.policy.template_tail)
            else:
                is_usual = self._has_usual_tail(rendering, content, begin)
            if not is_usual and self._with_trained_ending(rendering) is None:
                raise InvalidMessages(
                    f"the chat template does not end this conversation with {self.policy.template_tail!r}, so the token at which "
                    "its score is read is not known. Let the template end all conversations in the same way."
                )
            if not is_usual or (sample.finish_reason == "length" and self.policy.ending_varies):
                body = self._before_tail(rendering, talk)
        if self._slots is not None:
            cuts = (*cuts, n_prompt_chars)
        elif escaped is not None:
            cuts = ()
        missing = sample.finish_reason == "length" and not had_ending
        if self.policy.strips_newlines and not missing:
            body = body.rstrip("\n")
            n_prompt_chars = min(n_prompt_chars, len(body))
        cuts = tuple(cut for cut in cuts if cut <= len(body))
        if not missing:
            cuts += tuple(len(body) + cut for cut in self._end_cuts)
            usual = body + self.policy.end_text
            body = usual if rendering is None else self._with_trained_ending(rendering) or usual
        is_rendered_here = sample.text is None and bool(self.policy.template)
        return _Draft(pieces(body, cuts), n_prompt_chars, missing, adds_start=not is_rendered_here, escaped=escaped)

    def _has_usual_tail(self, rendering: str, content: str, begin: int) -> bool:
        """Whether a rendering ends with `template_tail` after this content, which begins at `begin`; -1: not known.

        Where the template changes the content, only the end is compared.
        """
        tail = self.policy.template_tail
        if not rendering.endswith(tail):
            return False
        body, content = rendering.removesuffix(tail), content.strip()
        at = body.rfind(content, begin) if begin >= 0 else begin
        return at < 0 or self._control_ids.isdisjoint(ids_of(self._fast, body[at + len(content) :]))

    def _before_tail(self, rendering: str, talk: _Talk) -> str:
        """A rendering up to the end of its last content, found by a second rendering with a mark after that content.

        The template may change the content, and write the same text before and after it.
        """
        last = talk.messages[-1]
        if last.tool_calls:
            return rendering.removesuffix(self.policy.template_tail)
        mark = next(chr(code) for code in range(_LAST_MARK, 0, -1) if chr(code) not in rendering)
        marked = self._render(
            (*talk.messages[:-1], replace(last, content=last.content + mark)),
            add_generation_prompt=False,
            tools=talk.tools,
        )
        before, found, _ = marked.partition(mark)
        return rendering[: _n_common(before, rendering)] if found else rendering.removesuffix(self.policy.template_tail)

    def _with_trained_ending(self, rendering: str) -> str | None:
        """A rendering with the ending of the layout's trainer; None where the ending depends on the template's tail."""
        if not self.policy.template or self._slots is not None or self.policy.rule.ending not in CLOSES_ANY_TAIL:
            return None
        if self.policy.rule.ending == "template":
            return rendering
        stripped = rendering.rstrip("\n")
        return stripped if stripped.endswith(self._eos) else f"{stripped} {self._eos}"

    def _escape(self, talk: _Talk) -> tuple[_Talk, Escaped]:
        """Replace the control tokens that a conversation quotes by stand-ins."""
        texts = talk.texts()
        if not self.policy.template and self.policy.start_ids:
            while texts[0].startswith(self._kept_start):  # it is added exactly once later
                texts[0] = texts[0].removeprefix(self._kept_start)
        escaped = self._controls.hide(texts)
        return talk.with_texts(escaped.texts), escaped

    def _escape_response(self, body: str, n_prompt_chars: int) -> Escaped | None:
        """Replace the control tokens that a response in rendered text quotes by stand-ins; None: it quotes none."""
        prompt, response = body[:n_prompt_chars], body[n_prompt_chars:]
        if not self._controls.are_quoted(response) and not self._controls.reach_over(prompt, response):
            return None
        return self._controls.hide([response], beside=prompt, is_joined=True)

    def _n_prompt_chars(self, sample: Sample, body: str) -> int:
        """Index of the response in rendered text: the one that the client has sent, or that of the template's response start."""
        if sample.n_prompt_chars is not None:
            return min(sample.n_prompt_chars, len(body))
        begin, start = max(
            ((body.rfind(start), start) for start in self._response_starts if start), key=_begin, default=(-1, "")
        )
        return begin + len(start) if begin >= 0 else 0

    def _cache_prompt(self, talk: _Talk) -> _Prompt:
        prompt = self._render_prompt(talk)
        self._prompts.put(talk, prompt, len(prompt.text))
        return prompt

    def _render_prompt(self, talk: _Talk) -> _Prompt:
        text = self._render(talk.messages, add_generation_prompt=True, tools=talk.tools)
        cuts = self._split_point(text) if self._slots is None else self._slots.of(talk.messages, text)
        return _Prompt(text, cuts, is_quoting=any(map(self._controls.are_quoted, talk.texts())))

    def _split_point(self, prompt: str) -> tuple[int, ...]:
        """The last split point of a prompt, at which a cut changes no id."""
        return (last_split_point(prompt, self._split_tokens),)

    def _shared_cuts(self, prompt: _Prompt, text: str) -> tuple[int, ...]:
        """The cuts of a rendered prompt that are also cuts of this conversation.

        A template may write more text before a response to be generated than before an existing one.
        """
        return tuple(
            cut
            for cut in prompt.cuts
            if text.startswith(prompt.text[:cut])
            and (self._slots is not None or text.startswith(self._split_tokens, cut))
        )

    def _without_ending(self, content: str) -> tuple[str, bool]:
        """A response without its ending, in any of its forms, and whether it had one. Plain text is no ending.

        White space after an end token is no part of a response: templates of other models write some there.
        """
        stripped = content.rstrip()
        for turn_end in self._turn_ends:
            if stripped.endswith(turn_end):
                return stripped.removesuffix(turn_end), True
        return content, False

    def _rendering_without_ending(self, text: str) -> tuple[str, bool]:
        """`_without_ending` for text that the client has rendered, where a tail of plain text counts as an ending too."""
        unpadded = text[: _n_without(text, self._skip)]
        if self._pads_with_text and not self._without_ending(unpadded)[1]:
            unpadded = text  # no end of a turn before the padding: it belongs to the response
        is_padded = len(unpadded) < len(text)
        text = unpadded
        before_padding = self.policy.end_text[: _n_without(self.policy.end_text, self._skip)]
        if is_padded and before_padding != self.policy.end_text and text.endswith(before_padding):
            return text.removesuffix(before_padding), True
        body, had_ending = self._without_ending(text)
        if not had_ending and self._plain_tail and body.endswith(self._plain_tail):
            return body.removesuffix(self._plain_tail), self._plain_tail == self.policy.end_text
        if not had_ending and (written := self._plain_tail.rstrip()) and body.rstrip().endswith(written):
            return body.rstrip().removesuffix(written), self._plain_tail == self.policy.end_text
        return body, had_ending or (is_padded and self.policy.skip_id in self.policy.end_ids)

    def _cut_text(self, draft: _Draft, options: SampleOptions) -> _Draft:
        """Drop prompt characters that could never fit. The remaining tokens are those of a long prompt's tail."""
        limit = self._limit(options)
        n_chars, keep = sum(map(len, draft.parts)), limit * _MAX_CHARS_PER_TOKEN
        if n_chars <= keep:
            return draft
        if not self._truncates(options) or n_chars - draft.n_prompt_chars > keep:
            # The number is a lower bound: the text is not tokenised.
            raise InputTooLong(n=-(-n_chars // _MAX_CHARS_PER_TOKEN), limit=limit, what="text, at the very least,")
        text = "".join(draft.parts)
        first = self._kept_start if text.startswith(self._kept_start) else ""
        n_dropped = n_chars - keep - len(first)
        ends = [end - n_dropped for end in accumulate(map(len, draft.parts)) if end - n_dropped > len(first)]
        return replace(
            draft,
            parts=pieces(first + text[n_chars - keep :], ends),
            n_prompt_chars=draft.n_prompt_chars - n_dropped,
            truncated=True,
        )

    def _tokenize(self, drafts: Sequence[_Draft]) -> list[Encoded]:
        plain = [draft for draft in drafts if draft.escaped is None]
        known = {part: self._part_ids.get(part) for draft in plain for part in draft.parts[:-1]}
        unknown = [part for part, ids in known.items() if ids is None]
        encodings = self._encode([*unknown, *(draft.parts[-1] for draft in plain)])
        for part, encoding in zip(unknown, encodings, strict=False):
            known[part] = ids = tuple(encoding.ids)
            self._part_ids.put(part, ids, len(part))
        lasts = iter(encodings[len(unknown) :])
        return [
            self._with_start(
                _joined(draft, [known[part] or () for part in draft.parts[:-1]], next(lasts))
                if draft.escaped is None
                else self._tokenize_escaped(draft, draft.escaped),
                adds_start=draft.adds_start,
            )
            for draft in drafts
        ]

    def _tokenize_escaped(self, draft: _Draft, escaped: Escaped) -> Encoded:
        """Encode text that quotes control tokens, each of them as ordinary text."""
        ids: list[int] = []
        n_prompt = start = 0
        for part in draft.parts:
            its_ids, ends = self._controls.encode(part, escaped)
            n_chars = len(escaped.restore(part[: max(0, draft.n_prompt_chars - start)]))
            if n_chars:
                n_prompt = len(ids) + _n_until(ends, n_chars, len(its_ids))
            ids += its_ids
            start += len(part)
        return Encoded(tuple(ids), n_prompt, draft.truncated, draft.missing_end)

    def _encode(self, texts: list[str]) -> list[Any]:
        # A batch may wake the tokenizer's threads, which is too slow for the head and the tail of a single sample.
        if len(texts) <= 2:
            return [self._fast.encode(text, add_special_tokens=False) for text in texts]
        encodings: list[Any] = self._fast.encode_batch(texts, add_special_tokens=False)
        return encodings

    # -- ids ----------------------------------------------------------------------------------------------

    def _from_ids(self, ids: tuple[int, ...], sample: Sample) -> Encoded:
        if not ids:
            raise EmptyResponse("input_ids is empty: there is no token to read a score at")
        if min(ids) < 0 or max(ids) >= self.policy.vocab_size:
            i, token = next((i, t) for i, t in enumerate(ids) if not 0 <= t < self.policy.vocab_size)
            raise TokenOutOfVocabulary(
                f"input_ids[{i}] is {token}; the vocabulary has {self.policy.vocab_size} tokens",
                index=i, id=token, vocab_size=self.policy.vocab_size,
            )  # fmt: skip
        skip = self.policy.skip_id
        if skip is not None and not self._pads_with_text and set(ids) == {skip}:
            return Encoded(ids, 0)  # transformers reads the first token of a row of padding alone
        body, ending, had_ending = self._ids_without_ending(ids, is_cut_off=sample.finish_reason == "length")
        missing = sample.finish_reason == "length" and not had_ending
        if not self.policy.ending_varies:
            ids = body if missing else body + ending
        elif not missing:
            ids = self._ids_with_trained_ending(ids)
        begin, start = max(((_rfind(body, start), start) for start in self._response_start_ids), key=_begin)
        n_prompt = begin + len(start) if begin >= 0 else 0
        if self._is_blank(body[n_prompt:]) if n_prompt else self._begins_response(body):
            _check_empty(sample, has_prompt=not self._is_blank(body))
        return self._with_start(Encoded(ids, n_prompt, missing_end=missing), adds_start=True)

    def _ids_without_ending(
        self, ids: tuple[int, ...], *, is_cut_off: bool
    ) -> tuple[tuple[int, ...], tuple[int, ...], bool]:
        """Ids without their ending, the ids that must follow, and whether they had an ending, complete or in part.

        A policy stops at its end token, so the template's text after that is often missing.
        """
        end, skip = self.policy.end_ids, self.policy.skip_id
        n_padding = n_trailing(ids, skip)
        if self._pads_with_text and self._ids_before_turn_end(ids[: len(ids) - n_padding]) is None:
            n_padding = 0
        ids = ids[: len(ids) - n_padding]
        if end and ids[-len(end) :] == end:
            return ids[: -len(end)], end, True
        if not self._is_control(end) and self._ends_with_text(ids, self.policy.end_text, len(end) + 2):
            return ids, (), True  # the plain text of the ending and the end of the response share a token
        before_padding = end[: len(end) - n_trailing(end, skip)]
        if n_padding and before_padding:
            if ids[-len(before_padding) :] == before_padding:
                return ids[: -len(before_padding)], end, True
            if not self._is_control(before_padding) and self._ends_with_text(
                (*ids, *end[len(before_padding) :]), self.policy.end_text, len(end) + 2
            ):
                return ids, (), True
        if self._plain_tail and ids[-len(self._plain_tail_ids) :] == self._plain_tail_ids:
            return ids[: -len(self._plain_tail_ids)], end, False
        if (turn_end := self._plain_tail.rstrip()) and self.policy.end_text.startswith(turn_end):
            whole, n_plain = ids_of(self._fast, self.policy.end_text), len(ids_of(self._fast, turn_end))
            kept = ids[: len(ids) - self._n_blank(ids)]
            if whole[:n_plain] == ids_of(self._fast, turn_end) and self._ends_with_text(kept, turn_end, len(turn_end)):
                return kept, whole[n_plain:], False  # the tokens of the tail may belong to the response too
        before_turn_end = self._ids_before_turn_end(ids)
        if before_turn_end is not None:
            return before_turn_end, end, True
        had_ending = n_padding > 0 and skip in end
        strips = self.policy.strips_newlines and (had_ending or not is_cut_off)
        return ids[: len(ids) - self._n_blank(ids, "\n")] if strips else ids, end, had_ending

    def _ids_with_trained_ending(self, ids: tuple[int, ...]) -> tuple[int, ...]:
        """`_with_trained_ending` for ids."""
        if self.policy.rule.ending == "template":
            return ids
        ids = ids[: len(ids) - self._n_blank(ids, "\n")]
        return ids if self._ends_with_text(ids, self._eos, 1) else (*ids, *ids_of(self._fast, f" {self._eos}"))

    def _ids_before_turn_end(self, ids: tuple[int, ...]) -> tuple[int, ...] | None:
        """Ids up to the control token that ends their turn; None: there is none."""
        ids = ids[: len(ids) - self._n_blank(ids)]
        for turn_end in self._turn_end_ids:
            for n in range(len(turn_end), 0, -1):
                if ids[-n:] == turn_end[:n] and any(token in self._control_ids for token in turn_end[:n]):
                    return ids[:-n]
        return None

    def _n_blank(self, ids: tuple[int, ...], blanks: str | None = None) -> int:
        """Number of tokens at the end of a row that are white space alone, or these characters alone."""
        n = 0
        while n < len(ids) and not self._fast.decode([ids[-1 - n]], skip_special_tokens=False).strip(blanks):
            n += 1
        return n

    def _begins_response(self, ids: tuple[int, ...]) -> bool:
        """Whether a row ends with the template's text before a response, and white space after that.

        For rows in which one token holds both the end of that text and the beginning of the white space.
        """
        ids = ids[: len(ids) - self._n_blank(ids)]
        starts = [start.rstrip() for start in self._response_starts]
        return self._is_blank(ids) or any(
            self._ends_with_text(ids, start, len(start), then_blank=True) for start in starts if start
        )

    def _is_blank(self, ids: tuple[int, ...]) -> bool:
        """Whether ids are white space alone. The first few ids decide nearly all rows; their last character may be incomplete."""
        first, whole = (partial(self._fast.decode, list(part), skip_special_tokens=False) for part in (ids[:8], ids))
        return not first().strip().strip("\ufffd") and not whole().strip()

    def _is_control(self, ids: tuple[int, ...]) -> bool:
        return all(token in self._control_ids for token in ids)

    def _ends_with_text(self, ids: tuple[int, ...], text: str, n_ids: int, *, then_blank: bool = False) -> bool:
        """Whether ids end with this text, in any tokens. `then_blank`: and with white space after that.

        Decoders write spaces beside control tokens that are not in the text.
        """
        decoded: str = self._fast.decode(list(ids[-n_ids:]), skip_special_tokens=False)
        decoded = decoded.rstrip() if then_blank else decoded
        if not self._control_ids.isdisjoint(ids[-n_ids:]):
            decoded, text = decoded.replace(" ", ""), text.replace(" ", "")
        return decoded.endswith(text)

    def _with_start(self, encoded: Encoded, *, adds_start: bool) -> Encoded:
        """Begin the row with the policy's `start_ids` exactly once; a rendering of the template stays as it is."""
        start, ids = self.policy.start_ids, encoded.ids
        if not start or not adds_start:
            return encoded
        unit = start[:1] if len(set(start)) == 1 else start
        n = 0
        while ids[n : n + len(unit)] == unit:
            n += len(unit)
        if n == len(start):
            return encoded
        return encoded._replace(ids=start + ids[n:], n_prompt=max(0, encoded.n_prompt - n) + len(start))

    def _cut_and_checked(self, encoded: Encoded, options: SampleOptions) -> Encoded:
        """Fit a row into the limit, and check that every id has an embedding. Raise `SampleError`."""
        if not encoded.ids:
            raise EmptyResponse("no token is left of the text: there is no token to read a score at")
        cut = self._cut_ids(encoded, options)
        if self._may_lack_embeddings and max(cut.ids) >= (n_rows := self.policy.vocab_size):
            i, token = next((i, token) for i, token in enumerate(cut.ids) if token >= n_rows)
            raise TokenOutOfVocabulary(
                f"token {i} of the sample has id {token}, and the model has no embedding for it: its table has {n_rows} rows. "
                "Remove that token from the text, or serve the model with the tokenizer that it was trained with.",
                index=i, id=token, vocab_size=n_rows,
            )  # fmt: skip
        return cut

    # -- length -------------------------------------------------------------------------------------------

    def _limit(self, options: SampleOptions) -> int:
        return self.policy.max_tokens if options.max_tokens is None else min(options.max_tokens, self.policy.max_tokens)

    def _truncates(self, options: SampleOptions) -> bool:
        return options.truncates and self.policy.truncation != "error"

    def _without_padding(self, encoded: Encoded) -> Encoded:
        """Drop pad tokens at the end: a causal model gives the token before them the same score without them."""
        ids = encoded.ids
        n = max(1, len(ids) - n_trailing(ids, self.policy.skip_id))
        return encoded if n == len(ids) else encoded._replace(ids=ids[:n], n_prompt=min(encoded.n_prompt, n))

    def _cut_ids(self, encoded: Encoded, options: SampleOptions) -> Encoded:
        encoded = self._without_padding(encoded)
        limit = self._limit(options)
        n, first = len(encoded.ids), self._kept_start_ids
        head = len(first) if encoded.ids[: len(first)] == first else 0
        excess = n - limit
        if excess <= 0:
            return encoded
        if not self._truncates(options):
            raise InputTooLong(n=n, limit=limit)
        if excess > encoded.n_prompt - head:
            n_response = n - encoded.n_prompt
            raise InputTooLong(n=n_response + head, limit=limit, what="response" if encoded.n_prompt else "sample")
        ids = encoded.ids[:head] + encoded.ids[head + excess :]
        return encoded._replace(ids=ids, n_prompt=encoded.n_prompt - excess, truncated=True)


def _texts_of(message: Message) -> list[str]:
    """Texts of a message: its content, and names and arguments of its calls."""
    if not message.tool_calls:
        return [message.content]
    return [message.content, *(text for call in message.tool_calls for text in (call.name, call.arguments))]


def _check_slots(talk: _Talk) -> None:
    """Raise `UnsupportedField` for tools and calls in LLaMA-Factory's layout, whose trainer writes them by itself."""
    for field, is_there in (("tools", bool(talk.tools)), ("tool_calls", any(m.tool_calls for m in talk.messages))):
        if is_there:
            raise UnsupportedField(field, by=" in the layout of LLaMA-Factory")


def _check_stand_ins(escaped: Escaped, rendering: str, talk: _Talk) -> None:
    """Raise `InvalidMessages` where the template has changed a control token that tools or calls quote."""
    if talk.tools or any(message.tool_calls for message in talk.messages):
        lost = sum(text.count(stand_in) for stand_in in escaped.originals for text in escaped.texts)
        kept = sum(rendering.count(stand_in) for stand_in in escaped.originals)
        if kept < lost:
            raise InvalidMessages(
                "tools or tool_calls quote a control token of the tokenizer, and the chat template does not write it as it is. "
                "Remove it from them."
            )


def _n_common(a: str, b: str) -> int:
    """Number of characters in the common prefix of two texts."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _begin_of_response(body: str, prompt: str, content: str) -> int:
    """Where the last message begins in a rendering that does not begin with the rendered prompt; -1: not known.

    Its content may stand in the prompt, too, and a template need not write all of it.
    """
    begin = body.rfind(content)
    return -1 if prompt.startswith(body[: begin + len(content)]) else begin


def _joined(draft: _Draft, known: Sequence[tuple[int, ...]], last: Any) -> Encoded:
    """Join the ids of all parts: the `known` ones of the parts before the last, and those of the last."""
    ids: tuple[int, ...] = ()
    n_prompt = start = 0
    for part, its_ids in zip(draft.parts, known, strict=False):
        ids += its_ids
        start += len(part)
        if start <= draft.n_prompt_chars:
            n_prompt = len(ids)
    if draft.n_prompt_chars > start or (draft.n_prompt_chars == start and known):
        ends = (end for _, end in last.offsets)
        n_prompt = len(ids) + _n_until(ends, draft.n_prompt_chars - start, len(last.ids))
    return Encoded(ids + tuple(last.ids), n_prompt, draft.truncated, draft.missing_end)


def _check_empty(sample: Sample, *, has_prompt: bool = True) -> None:
    """Raise `EmptyResponse` unless the response may be empty and is closed, so that the score is read at its end token."""
    if not (sample.options.scores_empty and sample.finish_reason == "stop" and has_prompt):
        raise EmptyResponse()


def _text_around_contents(render: ChatTemplate, roles: Sequence[str]) -> tuple[str, ...]:
    """The template's text before, between and after the contents of a test conversation; empty if it refuses the roles."""
    messages = tuple(Message(role, _WORDS[i]) for i, role in enumerate(roles))
    try:
        texts = [render(messages, add_generation_prompt=False), render(messages[:-1], add_generation_prompt=True)]
    except ConversationTooSlow:  # for a few words: no conversation will be faster
        raise
    except InvalidMessages:
        return ()
    return tuple(piece for text in texts for piece in re.split("|".join(_WORDS), text))


def _n_until(ends: Iterable[int], n_chars: int, n_ids: int) -> int:
    """Number of ids that end within `n_chars` characters."""
    return next((i for i, end in enumerate(ends) if end > n_chars), n_ids)


def _n_without(text: str, suffix: str) -> int:
    """The length of a text without any number of these suffixes."""
    n = len(text)
    while suffix and text.endswith(suffix, 0, n):
        n -= len(suffix)
    return n


def _begin(found: tuple[int, Any]) -> int:
    return found[0]


def _find(ids: tuple[int, ...], needle: tuple[int, ...]) -> int:
    """Index of the first occurrence of `needle` in `ids`, or -1."""
    at = -1
    for _ in range(ids.count(needle[0]) if needle else 0):
        at = ids.index(needle[0], at + 1)
        if ids[at : at + len(needle)] == needle:
            return at
    return -1


def _rfind(ids: tuple[int, ...], needle: tuple[int, ...]) -> int:
    """Index of the last occurrence of `needle` in `ids`, or -1."""
    found = at = -1
    n = len(needle)
    # From the left, because `index` runs in C: the first of these ids is rare, it opens a turn.
    for _ in range(ids.count(needle[0]) if n else 0):
        at = ids.index(needle[0], at + 1)
        if ids[at : at + n] == needle:
            found = at
    return found


def _or_error(step: Callable[[T], R], value: T) -> R | SampleError:
    try:
        return step(value)
    except SampleError as error:
        return error
