"""Bodies of many bytes that mean as little as can be, each a different way of making a reader build something."""

from __future__ import annotations

from collections.abc import Callable


def filled(head: bytes, piece: bytes, tail: bytes) -> Callable[[int], bytes]:
    """As many pieces as fit."""
    return lambda n_bytes: head + piece * ((n_bytes - len(head) - len(tail)) // len(piece)) + tail


def of_keys(n_bytes: int) -> bytes:
    """One object with as many names as fit."""
    return b"{" + b",".join(b'"%d":0' % i for i in range(10**6, 10**6 + n_bytes // 12)) + b"}"


BRACKETS = b'{"samples":[{"text":"' + b"[" * 300_000

LARGE: dict[str, Callable[[int], bytes]] = {
    "brackets": filled(b"", b"[", b""),
    "objects": filled(b"", b'{"a":', b""),
    "empty samples": filled(b'{"samples":[', b"{},", b"{}]}"),
    "lists for samples": filled(b'{"samples":[', b"[],", b"[]]}"),
    "numbers for samples": filled(b'{"samples":[', b"1,", b"1]}"),
    "samples": filled(b'{"samples":[', b'{"text":""},', b'{"text":"x"}]}'),
    "turns": filled(b'{"samples":[{"messages":[', b'{"role":"","content":""},', b'{"role":"","content":""}]}]}'),
    "ids": filled(b'{"samples":[{"input_ids":[', b"1000,", b"1]}]}"),
    "ids that are none": filled(b'{"samples":[{"input_ids":[', b"1.5,", b"1]}]}"),
    "wrong ids": filled(b'{"samples":[{"input_ids":[', b'"",', b"1]}]}"),
    "a field that is not ours": filled(b'{"samples":[{"text":"x"}],"zz":[', b"[],", b"[]]}"),
    "texts in a field that is not ours": filled(b'{"samples":[{"text":"x"}],"zz":[', b'"ab",', b'"ab"]}'),
    "fields": of_keys,
    "escapes": filled(b'{"samples":[{"text":"', b'\\"', b'"}]}'),
    "brackets in a text, and samples": filled(
        b'{"samples":[{"text":"' + b"[" * 300_000 + b'"},', b'{"text":""},', b'{"text":""}]}'
    ),
    "brackets in a text, and texts": filled(b'{"zz":["' + b"[" * 300_000 + b'",', b'"",', b'""]}'),
    "brackets in a text, and many names": filled(b'{"a":"' + b"[" * 300_000 + b'"', b',"a":0', b"}"),
}
