"""The description and the examples of a field, as a part of its type, and the texts that examples share.

The OpenAPI document takes both from the type: `content: Annotated[str, doc("text of the turn", PROMPT)]`.
"""

from __future__ import annotations

from typing import Any

import msgspec

PROMPT = "How do I boil an egg?"
RESPONSE = "Eight minutes in boiling water."
RENDERED = f"<|im_start|>user\n{PROMPT}<|im_end|>\n<|im_start|>assistant\n{RESPONSE}<|im_end|>\n"
MESSAGES = [{"role": "user", "content": PROMPT}, {"role": "assistant", "content": RESPONSE}]
MODEL = "default"
"""A name that every server accepts."""
CHECKPOINT = "/models/step-1200"


def doc(description: str, *examples: Any, **schema: Any) -> msgspec.Meta:
    """Describe a field of a request. `schema` has further parts of its JSON schema."""
    return msgspec.Meta(description=description, examples=list(examples), extra_json_schema=schema or None)
