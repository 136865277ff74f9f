"""Read addresses and API key from arguments or the environment, and check them before a request is sent.

No message contains a key.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from rewardserve_client.arguments import check_listed, check_text, check_type, seconds
from rewardserve_client.errors import Misconfigured

URL = "REWARDSERVE_URL"
API_KEY = "REWARDSERVE_API_KEY"
MODEL_DIGEST = "REWARDSERVE_MODEL_DIGEST"
RUN = "REWARDSERVE_RUN"
DEADLINE_S = "REWARDSERVE_DEADLINE_S"
END_TEXT = "REWARDSERVE_END_TEXT"

DEFAULT_DEADLINE_S = 300.0
"""Default deadline of a call: a restarted server has loaded its model by then."""

_KEY = re.compile(r"[\x21-\x7e]+")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class ClientLimits:
    """Size and concurrency limits of a client.

    `chunk_samples` and `chunk_bytes` bound one request, `concurrent_chunks` one call, `connections` the whole client.
    `attempt_timeout_s` bounds one attempt; `sample_retries` is the number of retries of single samples; after
    `warn_after_s` without a reply a call logs a warning.
    """

    chunk_samples: int = 64
    chunk_bytes: int = 8 * 2**20
    concurrent_chunks: int = 8
    connections: int = 64
    attempt_timeout_s: float = 120.0
    sample_retries: int = 2
    warn_after_s: float = 5.0

    def __post_init__(self) -> None:
        """Raise `Misconfigured`."""
        for name in ("chunk_samples", "chunk_bytes", "concurrent_chunks", "connections", "sample_retries"):
            check_type(f"limits.{name}", getattr(self, name), int, "a whole number")
        times_s = [seconds(f"limits.{name}", getattr(self, name)) for name in ("attempt_timeout_s", "warn_after_s")]
        least = min(self.chunk_samples, self.chunk_bytes, self.concurrent_chunks, self.connections)
        if least < 1 or min(times_s) <= 0 or self.sample_retries < 0:
            raise Misconfigured(f"limits must be positive: {self}")


def urls_from(given: str | Sequence[str] | None, environment: Mapping[str, str] = os.environ) -> tuple[str, ...]:
    """Parse the addresses; drop duplicates and trailing slashes. Raise `Misconfigured`."""
    if given is None:
        given = environment.get(URL, "")
    listed = given.split(",") if isinstance(given, str) else _texts("url", given)
    empty = next((n for n, url in enumerate(listed, 1) if not url.strip()), None)
    if empty is not None and not isinstance(given, str) and len(listed) > 1:
        raise Misconfigured(f"address {empty} of {len(listed)} in url is empty: leave it out, or name the server")
    urls = tuple(dict.fromkeys(_checked_url(url.strip()) for url in listed if url.strip()))
    if not urls:
        raise Misconfigured(f"no server: pass url, or set {URL} (separate several by commas)")
    return urls


def key_from(given: str | None, environment: Mapping[str, str] = os.environ) -> str | None:
    """Parse the API key; None if it is not set. Raise `Misconfigured` for a key that no header can carry."""
    check_text("api_key", given)
    key = (environment.get(API_KEY, "") if given is None else given).strip()
    if key and not _KEY.fullmatch(key):
        raise Misconfigured(f"the API key (api_key or {API_KEY}) has characters that an HTTP header cannot carry")
    return key or None


def model_digests_from(
    given: str | Sequence[str] | None, environment: Mapping[str, str] = os.environ
) -> tuple[str, ...]:
    """Parse the digests of the accepted model; empty if neither argument nor variable is set, and then any model is accepted.

    Raise `Misconfigured` for anything other than digests; also for an empty value, which would lift the restriction.
    """
    if given is None:
        given = environment.get(MODEL_DIGEST)
    if given is None:
        return ()
    listed = given.split(",") if isinstance(given, str) else _texts("model_digest", given)
    digests = tuple(each.strip() for each in listed)
    if not (digests and all(_DIGEST.fullmatch(each) for each in digests)):
        raise Misconfigured(
            f"model_digest (or {MODEL_DIGEST}) must be digests as in replies (sha256: and 64 hexadecimal digits) and not "
            "empty: leave it out to accept any model"
        )
    return digests


def _texts(name: str, given: Sequence[str]) -> list[str]:
    """The listed strings; the caller has split a single one."""
    check_type(name, given, Iterable, "a string or a list of strings")
    check_listed(name, given, "strings")
    listed = list(given)
    for i, each in enumerate(listed):
        check_type(f"{name}[{i}]", each, str, "a string")
    return listed


def run_from(environment: Mapping[str, str] = os.environ) -> str | None:
    """Read the name of the run from the environment, the default of the adapters."""
    return environment.get(RUN) or None


def deadline_from(environment: Mapping[str, str] = os.environ) -> float:
    """Read the deadline of a call in seconds from the environment, the default of the adapters. Raise `Misconfigured`."""
    try:
        seconds = float(environment.get(DEADLINE_S) or DEFAULT_DEADLINE_S)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise Misconfigured(f"{DEADLINE_S} is not a positive number of seconds")
    return seconds


def end_text_from(environment: Mapping[str, str] = os.environ) -> str | None:
    """Read the text that ends a complete response of the policy, for adapters that receive rendered text."""
    return environment.get(END_TEXT) or None


def _checked_url(url: str) -> str:
    try:
        parts = urlsplit(url)
        has_user = parts.username is not None or parts.password is not None
        _ = parts.port  # reading the port validates it
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and not (parts.query or parts.fragment)
    except ValueError:
        good, has_user = False, False
    if has_user:
        raise Misconfigured("a server URL contains a user or a password: pass the key as api_key instead")
    if not good:
        raise Misconfigured(f"{url!r} is not an http:// or https:// URL of a server")
    return url.rstrip("/")
