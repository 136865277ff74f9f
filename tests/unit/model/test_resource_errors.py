"""A shortage is found among the causes of an error, with its remedy; no other error is taken for one."""

from __future__ import annotations

import errno
import os
import re
import sys

import pytest

from rewardserve.model.resource_errors import describe_resource_error, explain_resource_errors


def caused(error, *others):
    for other in others:
        try:
            raise other from error
        except type(other) as raised:
            error = raised
    return error


@pytest.mark.parametrize(
    ("error", "remedy"),
    [
        (MemoryError(), "ulimit -v"),
        (OSError(errno.EMFILE, os.strerror(errno.EMFILE)), "ulimit -n"),
        (RuntimeError("can't start new thread"), "ulimit -u"),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory"), "ulimit -v"),
        (BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable"), "ulimit -u"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes"), "ulimit -v"),
        (ImportError("libtorch_cpu.so: failed to map segment from shared object"), "ulimit -v"),
        (PermissionError(errno.EACCES, "Permission denied", "/secret"), "/secret: permission is denied"),
        (OSError(errno.EROFS, "Read-only file system", "/x"), "XDG_CACHE_HOME"),
        (
            caused(OSError(errno.ENOSPC, "No space left on device", "/x"), ValueError("a"), RuntimeError("b")),
            "Free some space",
        ),
    ],
)
def test_a_shortage_is_said_with_its_remedy(error, remedy):
    assert remedy in describe_resource_error(error)


@pytest.mark.parametrize(
    "error", [ValueError("out of memory"), RuntimeError("x"), KeyError("y"), FileNotFoundError(2, "no"), None]
)
def test_a_bug_is_no_shortage(error):
    assert describe_resource_error(error) is None


TORCH = (
    "CUDA out of memory. Tried to allocate 20.00 GiB. GPU 3 has a total capacity of 139.81 GiB of which 14.25 MiB is free. "
    "Including non-PyTorch memory, this process has 139.79 GiB memory in use."
)
ON_A_DEVICE = {
    TORCH: "GPU 3 has not enough free memory: 20.00 GiB were requested, 14.25 MiB is free",
    "HIP out of memory. Tried to allocate 2.00 MiB. GPU 0 has a total capacity of 63.98 GiB of which 0 bytes is free.": "GPU 0",
    "XPU out of memory. Tried to allocate 1.00 GiB. GPU 0 has a total capacity of 8.00 GiB.": "1.00 GiB were requested.",
    "MPS backend out of memory (MPS allocated: 8.00 GB, other allocations: 1 GB, max allowed: 9 GB).": "the MPS device",
    "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported": "the CUDA device",
    "CUDA driver error: out of memory": "the CUDA device",
    "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`": "the CUDA device",
    "cuDNN error: CUDNN_STATUS_ALLOC_FAILED": "the CUDA device",
}


class OutOfMemoryError(RuntimeError):
    """As torch's, by its name."""


@pytest.mark.parametrize("message", ON_A_DEVICE)
@pytest.mark.parametrize("kind", [RuntimeError, OutOfMemoryError])
def test_a_device_without_memory_is_named_with_a_remedy_that_helps_it(message, kind):
    for error in (kind(message), caused(kind(message), ValueError("wrapped"))):
        words = describe_resource_error(error)
        assert ON_A_DEVICE[message] in words
        assert "ulimit" not in words
        assert "dtype" in words
        assert "docs/how-to/models.md" in words


def while_handling(first, then, *, is_hidden=False):
    """The second error, raised while the first is handled."""
    try:
        try:
            raise first
        except type(first):
            if is_hidden:
                raise then from None
            raise then  # noqa: B904 - the context alone
    except type(then) as error:
        return error


def test_an_error_that_hides_what_it_came_from_is_not_explained_by_it():
    denied = PermissionError(errno.EACCES, "Permission denied", "/a")
    assert describe_resource_error(while_handling(denied, KeyError("a bug"), is_hidden=True)) is None
    assert (
        describe_resource_error(caused(while_handling(denied, KeyError("a bug"), is_hidden=True), RuntimeError("x")))
        is None
    )


def test_an_error_during_the_handling_of_a_shortage_is_explained_by_it():
    denied = PermissionError(errno.EACCES, "Permission denied", "/a")
    assert "/a: permission is denied" in describe_resource_error(while_handling(denied, KeyError("x")))


def test_of_a_cause_and_a_context_the_cause_counts():
    full = OSError(errno.ENOSPC, "No space left on device", "/cause")
    denied = PermissionError(errno.EACCES, "Permission denied", "/context")
    error = caused(full, ValueError("x"))
    error.__context__ = denied
    assert describe_resource_error(error).startswith("/cause: the disk is full")


def test_a_ring_of_causes_has_an_end():
    one, two = ValueError("1"), ValueError("2")
    one.__cause__, two.__cause__ = two, one
    assert describe_resource_error(one) is None


def test_the_places_where_a_shortage_was_raised_and_passed_on_are_kept(monkeypatch, capsys):
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    explain_resource_errors("reward-test")
    error = while_handling(PermissionError(errno.EACCES, "Permission denied", "/a"), KeyError("secret"))
    sys.excepthook(type(error), error, error.__traceback__)
    output = capsys.readouterr().err
    assert output.count("\n") == 1
    assert "/a: permission is denied" in output
    assert re.search(
        r"PermissionError at \S*test_resource_errors\.py:\d+, KeyError at \S*test_resource_errors\.py:\d+", output
    )
    assert "secret" not in output
