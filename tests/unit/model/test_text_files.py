"""Text files: encodings of editors, with a byte order mark, are read; other bytes, and files that are none, are errors."""

from __future__ import annotations

import codecs
import os

import pytest

from rewardserve.model.text.text_files import TextDecodeError, decode_text, error_reason, read_bounded, wide_encoding

TEXT = "schlüssel = 1\n\ud83d\ude00 \u4e2d\n".encode("utf-16", "surrogatepass").decode("utf-16")
MARKED = {
    "utf-8": codecs.BOM_UTF8,
    "utf-16-le": codecs.BOM_UTF16_LE,
    "utf-16-be": codecs.BOM_UTF16_BE,
    "utf-32-le": codecs.BOM_UTF32_LE,
    "utf-32-be": codecs.BOM_UTF32_BE,
}


@pytest.mark.parametrize("encoding", MARKED)
def test_a_text_with_a_byte_order_mark_is_the_text_without_it(encoding):
    assert decode_text(MARKED[encoding] + TEXT.encode(encoding)) == TEXT
    assert decode_text(MARKED[encoding]) == ""


def test_a_text_without_a_mark_is_utf_8():
    assert decode_text(TEXT.encode()) == TEXT
    assert decode_text(b"") == ""


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("é".encode("latin-1"), "it is not UTF-8 (at byte 0); save it as UTF-8"),
        (codecs.BOM_UTF8 + b"ab\xff", "it is not UTF-8 (at byte 5); save it as UTF-8"),
        (codecs.BOM_UTF16_LE + b"a\0b", "it is not UTF-16 (at byte 4); save it as UTF-8"),
        (codecs.BOM_UTF32_LE + b"\xff\xff\xff\xff", "it is not UTF-32 (at byte 4); save it as UTF-8"),
    ],
)
def test_what_is_no_text_is_named_with_its_place(data, message):
    with pytest.raises(TextDecodeError) as refused:
        decode_text(data)
    assert str(refused.value) == message


def test_of_a_file_that_is_read_by_lines_the_first_bytes_tell_another_encoding():
    told = [wide_encoding((MARKED[each] + TEXT.encode(each))[:4]) for each in MARKED]
    assert told == [None, "UTF-16", "UTF-16", "UTF-32", "UTF-32"]
    assert wide_encoding(b"") is None
    assert wide_encoding(b'{"a"') is None


def test_what_is_larger_than_it_may_be_is_not_read(tmp_path):
    (tmp_path / "f").write_bytes(b"12345")
    assert read_bounded(tmp_path / "f", 5) == b"12345"
    with pytest.raises(ValueError, match="more than 4"):
        read_bounded(tmp_path / "f", 4)


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: os.symlink("/dev/zero", path)])
@pytest.mark.timeout(30)
def test_what_is_no_regular_file_is_not_waited_for(tmp_path, make):
    make(tmp_path / "file")
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(ValueError, match="no regular file"):
        read_bounded(tmp_path / "file", 100)
    assert len(os.listdir("/proc/self/fd")) == before


def test_an_error_without_words_is_named():
    assert error_reason(BlockingIOError()) == "BlockingIOError"
    assert error_reason(ValueError("no regular file")) == "no regular file"
    assert error_reason(FileNotFoundError(2, "No such file or directory", "/secret")) == "No such file or directory"
