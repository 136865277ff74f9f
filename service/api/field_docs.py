"""The description and the examples of a field, as a part of its type, and the values that examples share.

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
DIGEST = "sha256:6f1d0c5e2b7a49d38c11f0e4a7b2956d0e8c3a51f4d27b69e0a1c85d3f4b2e70"
TIME = "2026-11-30T12:00:00+00:00"


def doc(description: str, *examples: Any, **schema: Any) -> msgspec.Meta:
    """Describe a field of a request or reply. `schema` has further parts of its JSON schema."""
    return msgspec.Meta(description=description, examples=list(examples), extra_json_schema=schema or None)
