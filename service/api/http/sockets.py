"""Create listening sockets."""

from __future__ import annotations

import socket

_BACKLOG = 2048


def bind(host: str, port: int, *, shared: bool = False) -> socket.socket:
    """Bind a socket and listen. Raise OSError if the address is in use or not local.

    `shared`: share the port with other processes (SO_REUSEPORT), and do not listen yet; the kernel gives each connection to one
    of the processes that listen.
    """
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    listening = socket.socket(family, kind, protocol)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if shared:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    try:
        listening.bind(address)
        if not shared:
            listening.listen(_BACKLOG)
    except OSError:
        listening.close()
        raise
    return listening


def url(listening: socket.socket, scheme: str) -> str:
    """Return the URL of a socket, with the port that the kernel has chosen."""
    host, port = listening.getsockname()[:2]
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"
