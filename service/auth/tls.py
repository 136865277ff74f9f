"""The certificate that the server shows, and whose it wants to see: TLS 1.2 or later, read again when a file changes.

Certificates are renewed every few weeks by something that writes new files. A thread looks once a second whether one has changed;
connections that are open stay as they are. Knows no HTTP.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rewardserve.service.auth.events import AuthEvents
from rewardserve.service.storage.files import FileState, file_state, poll_in_thread, read_bounded

_POLL_INTERVAL_S = 1.0
_MAX_BYTES = 4 * 2**20


class TlsError(Exception):
    """These files make no TLS. The message names the file."""


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """In PEM. `client_ca`: who has no certificate of one of these is not talked to; None: anybody is."""

    cert: Path
    key: Path
    client_ca: Path | None = None

    @property
    def all(self) -> tuple[Path, ...]:
        """All that there are."""
        return tuple(path for path in (self.cert, self.key, self.client_ca) if path is not None)


def create_ssl_context(files: TlsFiles) -> ssl.SSLContext:
    """What a server needs. Raise `TlsError`."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    for path in files.all:
        try:
            read_bounded(path, _MAX_BYTES)
        except ValueError as error:  # the library below would wait for a FIFO
            raise TlsError(f"{path} cannot be read: {error}") from None
        except OSError as error:
            raise TlsError(f"{path} cannot be read: {error.strerror}") from None
    try:
        # A key with a password would be asked for on the terminal.
        context.load_cert_chain(files.cert, files.key, password=lambda: b"")
    except (ssl.SSLError, OSError) as error:
        raise TlsError(
            f"{files.cert} and {files.key} are no certificate in PEM and its key, without a password ({_reason(error)})"
        ) from None
    if files.client_ca is not None:
        try:
            context.load_verify_locations(files.client_ca)
        except (ssl.SSLError, OSError) as error:
            raise TlsError(f"{files.client_ca} holds no certificate in PEM ({_reason(error)})") from None
        context.verify_mode = ssl.CERT_REQUIRED
    return context


class ReloadingCertificate:
    """`context` is for the listening socket; every handshake gets what the files held at the last look, which is on a thread.

    `events` are notified when they were read again; files that are no good are reported, and the certificate of before is kept.
    """

    def __init__(self, files: TlsFiles, events: AuthEvents) -> None:
        self._files = files
        self._events = events
        self._last_state = self._state()
        self.context = self._current = create_ssl_context(files)
        self.context.sni_callback = self._select_context

    def start(self) -> Callable[[], None]:
        """Look once a second, until the returned function is called."""
        return poll_in_thread(self.poll, _POLL_INTERVAL_S, "certificate")

    def poll(self) -> None:
        """Read the files, if one has changed."""
        state = self._state()
        if state == self._last_state:
            return
        self._last_state, why = state, None
        try:
            self._current = create_ssl_context(self._files)
        except TlsError as error:
            why = str(error)
        self._events.on_certificate_read(why)

    def _select_context(self, connection: ssl.SSLObject, _name: str | None, _context: ssl.SSLContext) -> None:
        if connection.context is not self._current:
            connection.context = self._current

    def _state(self) -> list[FileState]:
        return [file_state(path) for path in self._files.all]


def _reason(error: OSError) -> str:
    return getattr(error, "reason", None) or error.strerror or type(error).__name__
