"""Where the parts of a file lie: the chunks of PNG and RIFF (WebP, AVI), the segments of JPEG, the boxes of MP4, the
elements of Matroska, the packets of a transport stream, the units of raw H.264 and H.265.

Formats: the PNG specification 5.3, ITU-T T.81 annex B, ISO/IEC 14496-12 4.2, RFC 8794 (EBML), ISO/IEC 13818-1 2.4.3,
ITU-T H.264 annex B.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

PNG = b"\x89PNG\r\n\x1a\n"
BOXES = {b"moov", b"trak", b"mdia", b"minf", b"stbl", b"edts", b"mvex", b"moof", b"traf", b"udta", b"dinf"}
"""MP4's boxes that hold boxes."""
ELEMENTS = {0x18538067, 0x1654AE6B, 0xAE, 0xE0, 0x1F43B675, 0x1C53BB6B, 0x114D9B74, 0xA0, 0x1549A966}
"""Matroska's elements that hold elements: segment, tracks and their entries, clusters, cues, seek head, groups."""
TS_PACKET = 188
MOST = 2000
"""Parts that are looked for."""


@dataclass(frozen=True, slots=True)
class Part:
    """Bytes `start` to `end` of a file. The number at `size_at`, `size_bytes` long, tells how long it is (0 bytes: none
    does); what it holds begins at `body`."""

    start: int
    end: int
    body: int
    size_at: int = 0
    size_bytes: int = 0
    little: bool = False


def parts(data: bytes) -> list[Part]:
    """The parts of a file of one of these formats, outer ones before those within; none of any other."""
    found = []
    for part in _of(data):
        found.append(part)
        if len(found) == MOST:
            break
    return found


def _of(data: bytes) -> Iterator[Part]:
    if data.startswith(PNG):
        return _chunks(data)
    if data.startswith(b"\xff\xd8"):
        return _segments(data)
    if data.startswith(b"RIFF"):
        return _riff(data, 12, len(data))
    if data[4:8] in (b"ftyp", b"moov", b"mdat", b"moof"):
        return _boxes(data, 0, len(data))
    if data.startswith(b"\x1a\x45\xdf\xa3"):
        return _elements(data, 0, len(data))
    if data[:1] == data[TS_PACKET : TS_PACKET + 1] == b"\x47":
        return (Part(at, at + TS_PACKET, at + 4) for at in range(0, len(data), TS_PACKET))
    if data.startswith((b"\0\0\1", b"\0\0\0\1")):
        return _units(data)
    return iter(())


def _chunks(data: bytes) -> Iterator[Part]:
    at = len(PNG)
    while at + 12 <= len(data):
        end = min(at + 12 + int.from_bytes(data[at : at + 4], "big"), len(data))
        yield Part(at, end, at + 8, at, 4)
        at = end


def _segments(data: bytes) -> Iterator[Part]:
    """Each marker with its segment, and a scan with what is coded behind it."""
    at = 2
    while at + 4 <= len(data) and data[at] == 0xFF:
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        if data[at + 1] == 0xDA:
            after = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]").search(data, end)
            end = after.start() if after else len(data)
        yield Part(at, min(end, len(data)), at + 4, at + 2, 2)
        at = end


def _riff(data: bytes, at: int, last: int) -> Iterator[Part]:
    while at + 8 <= last:
        end = min(at + 8 + int.from_bytes(data[at + 4 : at + 8], "little"), last)
        yield Part(at, end, at + 8, at + 4, 4, little=True)
        if data[at : at + 4] == b"LIST":
            yield from _riff(data, at + 12, end)
        at = end + end % 2


def _boxes(data: bytes, at: int, last: int) -> Iterator[Part]:
    while at + 8 <= last:
        end = min(at + max(int.from_bytes(data[at : at + 4], "big"), 8), last)
        yield Part(at, end, at + 8, at, 4)
        if data[at + 4 : at + 8] in BOXES:
            yield from _boxes(data, at + 8, end)
        at = end


def _elements(data: bytes, at: int, last: int) -> Iterator[Part]:
    while at + 2 <= last and data[at]:
        name_bytes = 9 - data[at].bit_length()
        size_at = at + name_bytes
        if size_at >= last or not data[size_at]:
            return
        size_bytes = 9 - data[size_at].bit_length()
        body, ones = size_at + size_bytes, (1 << 7 * size_bytes) - 1
        size = int.from_bytes(data[size_at:body], "big") & ones
        end = last if size == ones else min(body + size, last)
        yield Part(at, end, body, size_at, size_bytes)
        if int.from_bytes(data[at:size_at], "big") in ELEMENTS:
            yield from _elements(data, body, end)
        at = end


def _units(data: bytes) -> Iterator[Part]:
    starts = [found.start() for found in re.finditer(rb"\x00\x00\x01", data)]
    for start, end in zip(starts, [*starts[1:], len(data)], strict=True):
        yield Part(start, end, start + 4)


def with_right_sums(data: bytes) -> bytes:
    """A PNG whose chunks carry the checksums of what is in them, so that what is wrong is looked at; others as they
    are."""
    if not data.startswith(PNG):
        return data
    mended = bytearray(data)
    for part in parts(data):
        mended[part.end - 4 : part.end] = zlib.crc32(data[part.start + 4 : part.end - 4]).to_bytes(4, "big")
    return bytes(mended)
