"""Decompress gzip and zstd archives, and report the byte at which one breaks."""

import io
import zlib
from collections.abc import Callable
from typing import Any, cast

BLOCK = 1 << 20  # bytes read at a time
STEP = 1 << 10  # compressed bytes at a time: zstd makes at most 128 KiB of 4 bytes, so 32 MiB of these


class BrokenArchiveError(Exception):
    """An archive is truncated or corrupt, or the file is no archive."""


class _Decompressing(io.RawIOBase):
    """The decompressed bytes of gzip members or zstd frames.

    If an archive is truncated, every byte before the break is returned, then BrokenArchiveError is raised. The standard
    readers either lose buffered bytes or do not report the truncation.
    """

    def __init__(self, inner: io.BufferedReader, frame: Callable[[], Any]) -> None:
        self._inner, self._new_frame = inner, frame
        self._frame: Any = None
        self._position = 0  # stored bytes read
        self._rest = b""  # of them, those not yet decompressed
        self._plain = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._plain and self._fill():
            pass
        size = min(len(buffer), len(self._plain))
        buffer[:size], self._plain = self._plain[:size], self._plain[size:]
        return size

    def _fill(self) -> bool:
        """Decompress one step; return False at the end."""
        step = self._next_step()
        if not step:
            if self._frame is not None or not self._position:
                raise BrokenArchiveError(f"it ends early, at byte {self._position:,} of the file")
            return False
        self._frame = self._frame or self._new_frame()
        try:
            self._plain = memoryview(self._frame.decompress(step))
        except Exception as error:  # zlib's and zstandard's own errors have no common class
            at = self._position - len(step)
            raise BrokenArchiveError(f"{error}, at byte {at:,} of the file") from None
        self._rest = self._frame.unused_data if self._frame.eof else b""
        self._frame = None if self._frame.eof else self._frame
        return True

    def _next_step(self) -> bytes:
        """Return the next compressed bytes, without the NUL padding of any length between and after members."""
        is_between_members = self._frame is None and self._position > 0
        step = self._rest or self._read()
        if is_between_members:
            while step and not step.strip(b"\0"):
                step = self._read()
            step = step.lstrip(b"\0")
        return step

    def _read(self) -> bytes:
        step = self._inner.read(STEP)
        self._position += len(step)
        return step


def buffered(raw: io.RawIOBase) -> io.BufferedReader:
    """Return a buffered reader of a raw stream."""
    return io.BufferedReader(cast(Any, raw), BLOCK)


def decompressed(name: str, raw: io.BufferedReader) -> io.BufferedReader:
    """Return the decompressed bytes of an open file, by its suffix.

    Reading raises BrokenArchiveError where the archive breaks.
    """
    if name.endswith(".gz"):
        return buffered(_Decompressing(raw, lambda: zlib.decompressobj(wbits=31)))
    if name.endswith(".zst"):
        import zstandard

        return buffered(_Decompressing(raw, zstandard.ZstdDecompressor().decompressobj))
    return raw
