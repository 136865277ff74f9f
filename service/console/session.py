"""Sessions of the console: a signed cookie that names an API key, and tokens against forged forms. Knows no HTTP.

The cookie holds the digest of the key, never the key. The key is looked up at every request, so a session ends when the key
is removed from the file, or the secret of the server changes. HMAC-SHA256 of the standard library signs; a cookie and a form
token have different purposes, so neither can stand for the other.
"""

from __future__ import annotations

import base64
import hmac
import json
import secrets
from binascii import Error as Base64Error
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from rewardserve.service.auth.api_keys import ApiKey, ApiKeys, ApiKeysFile, RunPermissions
from rewardserve.service.storage.files import write_atomically

COOKIE = "rewardserve_console"
MAX_AGE_S = 12 * 3600
LOCAL = "local"
"""Name of the person at a server without keys."""

_SECRET_FILE = "console.secret"
_SECRET_BYTES = 32


@dataclass(frozen=True, slots=True)
class Viewer:
    """The person at a page: name and scopes of the key, its permitted runs, and the id of the session."""

    name: str
    scopes: frozenset[str]
    permissions: RunPermissions | None
    session: str

    def may_see(self, run: str) -> bool:
        """Whether the key may see this run."""
        return self.permissions is None or self.permissions.may_see(run)

    @property
    def sees_all_runs(self) -> bool:
        """Whether the key is bound to no runs."""
        return self.permissions is None or not self.permissions.runs


class Sessions:
    """Sessions of one server. `is_local`: without keys, each visitor is from this machine."""

    def __init__(self, secret: bytes, keys: ApiKeys | ApiKeysFile, *, is_local: bool) -> None:
        self._secret = secret
        self._keys = keys
        self._is_local = is_local

    @property
    def needs_key(self) -> bool:
        """Whether a visitor has to log in."""
        return self._keys.current().is_required

    def log_in(self, offered: str, now: float) -> str | None:
        """A cookie for a key, with a new session; None for a key that is not valid. `now` is in Unix seconds."""
        key = self._keys.current().find(offered.strip().encode())
        if key is None:
            return None
        return self._signed({"k": key.digest.hex(), "s": secrets.token_hex(8), "t": int(now)})

    def viewer(self, cookie: str | None, now: float) -> Viewer | None:
        """The person of a request; None: the login page comes first."""
        keys = self._keys.current()
        if not keys.is_required:
            return Viewer(LOCAL, frozenset({"score", "admin", "review"}), None, LOCAL) if self._is_local else None
        content = self._verified(cookie or "")
        if content is None or not 0 <= now - content["t"] <= MAX_AGE_S:
            return None
        key = _with_digest(keys, content["k"])
        return None if key is None else Viewer(key.name, key.scopes, keys.permissions(key), content["s"])

    def form_token(self, viewer: Viewer | None) -> str:
        """The token that forms of this session send back."""
        session = "" if viewer is None else f"{viewer.name} {viewer.session}"
        return hmac.new(self._secret, f"form {session}".encode(), sha256).hexdigest()

    def accepts(self, viewer: Viewer | None, token: str) -> bool:
        """Whether a form came from a page of this session."""
        return hmac.compare_digest(self.form_token(viewer).encode(), token.encode())

    def _signed(self, content: dict[str, Any]) -> str:
        payload = base64.urlsafe_b64encode(json.dumps(content).encode()).decode()
        return f"{payload}.{self._signature(payload)}"

    def _verified(self, cookie: str) -> dict[str, Any] | None:
        payload, _, signature = cookie.partition(".")
        if not hmac.compare_digest(self._signature(payload).encode(), signature.encode()):
            return None
        try:
            content: dict[str, Any] = json.loads(base64.urlsafe_b64decode(payload))
        except (ValueError, Base64Error):
            return None
        return content

    def _signature(self, payload: str) -> str:
        return hmac.new(self._secret, f"cookie {payload}".encode(), sha256).hexdigest()


def _with_digest(keys: ApiKeys, digest: str) -> ApiKey | None:
    return next((key for key in keys.keys if hmac.compare_digest(key.digest.hex(), digest)), None)


def read_secret(folder: str | Path | None) -> bytes:
    """The secret of the sessions: that of the state folder, which replicas share, made at the first start; random without one."""
    if not folder:
        return secrets.token_bytes(_SECRET_BYTES)
    path = Path(folder) / _SECRET_FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    with suppress(FileExistsError):
        write_atomically(path, secrets.token_bytes(_SECRET_BYTES), replaces=False)
    content = path.read_bytes()
    return content if len(content) == _SECRET_BYTES else secrets.token_bytes(_SECRET_BYTES)
