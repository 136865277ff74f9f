"""Text files: every encoding that editors write with a byte order mark is read, and other bytes are an error with its reason."""

from __future__ import annotations

import codecs

import pytest

from rewardserve.model.text.text_files import TextDecodeError, decode_text, wide_encoding

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
