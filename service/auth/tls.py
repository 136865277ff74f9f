"""The certificate of the server and the CA of its clients: TLS 1.2 or later, read again when a file changes.

Certificates are renewed every few weeks by tools that write new files. A thread polls the files once a second;
open connections keep their certificate. Knows no HTTP.
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path

from rewardserve.model.text.text_files import read_bounded
from rewardserve.service.auth.events import AuthEvents
from rewardserve.service.storage.files import FileState, file_state

_MAX_BYTES = 4 * 2**20


class TlsError(Exception):
    """The TLS files are invalid. The message names the file."""


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """Files in PEM. `client_ca`: require client certificates signed by this CA (mTLS); None: require none."""

    cert: Path
    key: Path
    client_ca: Path | None = None

    @property
    def all(self) -> tuple[Path, ...]:
        """All files that are set."""
        return tuple(path for path in (self.cert, self.key, self.client_ca) if path is not None)


def create_ssl_context(files: TlsFiles) -> ssl.SSLContext:
    """Create the TLS context of a server. Raise `TlsError`."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    for path in files.all:
        try:
            read_bounded(path, _MAX_BYTES)
        except ValueError as error:  # such as a FIFO, on which `ssl` would block
            raise TlsError(f"{path} cannot be read: {error}") from None
        except OSError as error:
            raise TlsError(f"{path} cannot be read: {error.strerror}") from None
    try:
        # Without this, OpenSSL would prompt on the terminal for the password of an encrypted key.
        context.load_cert_chain(files.cert, files.key, password=lambda: b"")
    except (ssl.SSLError, OSError) as error:
        raise TlsError(
            f"{files.cert} and {files.key} must be a certificate in PEM and its key, without a password ({_reason(error)})"
        ) from None
    if files.client_ca is not None:
        try:
            context.load_verify_locations(files.client_ca)
        except (ssl.SSLError, OSError) as error:
            raise TlsError(f"{files.client_ca} has no certificate in PEM ({_reason(error)})") from None
        context.verify_mode = ssl.CERT_REQUIRED
    return context


class ReloadingCertificate:
    """A TLS context whose certificate follows its files. `context` is for the listening socket; every handshake uses the
    certificate of the last poll, which runs on a thread.

    `events` receive every reload; invalid files are reported, and the previous certificate stays in use.
    """

    name = "certificate"
    interval_s = 1.0

    def __init__(self, files: TlsFiles, events: AuthEvents) -> None:
        self._files = files
        self._events = events
        self._last_state = self._state()
        self.context = self._current = create_ssl_context(files)
        self.context.sni_callback = self._select_context

    def poll(self) -> None:
        """Read the files if one has changed."""
        state = self._state()
        if state == self._last_state:
            return
        self._last_state, problem = state, None
        try:
            self._current = create_ssl_context(self._files)
        except TlsError as error:
            problem = str(error)
        self._events.on_certificate_read(problem)

    def _select_context(self, connection: ssl.SSLObject, _name: str | None, _context: ssl.SSLContext) -> None:
        if connection.context is not self._current:
            connection.context = self._current

    def _state(self) -> list[FileState]:
        return [file_state(path) for path in self._files.all]


def _reason(error: OSError) -> str:
    return getattr(error, "reason", None) or error.strerror or type(error).__name__
