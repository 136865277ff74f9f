"""The sockets that a server listens on."""

from __future__ import annotations

import socket

_BACKLOG = 2048


def bind(host: str, port: int, *, shared: bool = False) -> socket.socket:
    """A listening socket. Raise OSError when the address is taken or not ours.

    `shared`: with other processes that share it too, and not listening yet; the kernel gives each connection to one that does.
    """
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    listening = socket.socket(family, kind, protocol)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if shared:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    listening.bind(address)
    if not shared:
        listening.listen(_BACKLOG)
    return listening


def url(listening: socket.socket, scheme: str) -> str:
    """Where to find it, the port that was chosen included."""
    host, port = listening.getsockname()[:2]
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"
