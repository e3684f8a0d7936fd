"""Single members out of a zip on a web server, by HTTP range requests: the rest of it is never sent.

    archive = RemoteZip("http://.../task_D_D.zip")          # reads the end of the file and the index, nothing else
    wanted = archive.find(lambda name: name.endswith(".npy"))
    for member, data in archive.read(wanted): ...           # in the order of the file, each checked by its CRC-32

Members that lie side by side come in one request of at most CHUNK bytes. `taken`, `index_bytes` and `received` count what was asked for
and what came. Zip and zip64, stored and deflated (PKWARE's APPNOTE 6.3.10, sections 4.3 and 4.5.3). Bad input: UserError, before
anything large is read; a member whose CRC is wrong twice comes as `DamagedMember`.
"""

import http.client
import struct
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urljoin, urlsplit

import numpy as np

from repro import clock
from repro.machine import UserError

CHUNK = 8 * 2**20  # bytes of one request
TAIL = 22 + 65535  # where the end record is, with the longest comment
WAITS = (1, 5, 20, 60)  # seconds before a request that failed is repeated
PIECE = 256 * 2**10  # bytes after which the clock is asked: a slow server must not overrun the session
TIMEOUT = 60
END, END64, LOCATOR, CENTRAL, LOCAL = b"PK\5\6", b"PK\6\6", b"PK\6\7", b"PK\1\2", b"PK\3\4"
REDIRECTS = 5


@dataclass(frozen=True)
class Member:
    """One entry of the index. `start`: of its local header; `end`: no later than this does its data end; both in bytes of the file."""

    name: str
    start: int
    end: int
    packed: int  # bytes in the file
    size: int  # bytes unpacked
    crc: int
    method: int  # 0 stored, 8 deflated


class DamagedMember(Exception):
    """What was read of a member is not what the index says it is."""


class Remote:
    """A file on a web server, read by ranges over one connection; a request that fails is repeated."""

    def __init__(self, url: str, waits: tuple[float, ...] = WAITS, sleep: Callable[[float], None] = time.sleep):
        """Asks for the first byte: UserError where there is no such file, or where the server does not know ranges."""
        self.url, self.waits, self.sleep, self.received, self.connection = url, waits, sleep, 0, None
        self.target = url  # where it led to: asked directly until that expires
        if urlsplit(url).scheme not in ("http", "https"):
            raise UserError(f"{url} is no web address", "http://... or https://...", url.split(":")[0])
        self.size, self.tag = 0, None
        self.read(0, 1)

    def read(self, start: int, end: int) -> bytes:
        """Bytes start..end (end excluded)."""
        why = ""
        for wait in (0, *self.waits):
            clock.check(wait)
            if wait:
                self.sleep(wait)
            try:
                return self._ask(start, end)
            except (OSError, http.client.HTTPException) as error:
                why = f"{type(error).__name__}: {error}"
                self._close()
        raise UserError(f"{self.url} cannot be read", f"bytes {start}..{end}, after {len(self.waits)} more tries", why,
                        "check the connection (Kaggle: Session options, Internet), or try later; what was fetched is kept")  # fmt: skip

    def _ask(self, start: int, end: int) -> bytes:
        fresh = self.target == self.url
        for _ in range(REDIRECTS + 1):
            parts = urlsplit(self.target)
            if self.connection is None:
                kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
                self.connection = kind(parts.hostname, parts.port, timeout=TIMEOUT)
            path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
            self.connection.request("GET", path, headers={"Range": f"bytes={start}-{end - 1}", "Accept-Encoding": "identity"})
            answer = self.connection.getresponse()
            if answer.status in (301, 302, 303, 307, 308):
                self.target = urljoin(self.target, answer.headers.get("Location", ""))
            elif answer.status in (403, 410) and not fresh:  # a signed address that was good for a while: asked for anew, once
                self.target, fresh = self.url, True
            else:
                break
            self._close()
        if answer.status in (429, 500, 502, 503, 504):
            raise OSError(f"HTTP {answer.status} {answer.reason}")  # for a moment only: repeated
        told = (answer.headers.get("Content-Range") or "").rpartition("/")[2]
        if answer.status != 206 or not told.isdigit():
            self._close()  # unread: a server without ranges would send all of it
            raise UserError(f"{self.url} cannot be read in parts", "HTTP 206 with a Content-Range", f"HTTP {answer.status} {answer.reason}",
                            "check the address" if answer.status >= 400 else "download the whole file instead, and attach it")  # fmt: skip
        tag = answer.headers.get("ETag") or answer.headers.get("Last-Modified")
        if self.size and (self.size, self.tag) != (int(told), tag):
            raise UserError(
                f"{self.url} changed while it was read", f"{self.size} bytes, {self.tag}", f"{told} bytes, {tag}", "start again"
            )
        self.size, self.tag = int(told), tag
        data, wanted = bytearray(), min(end, self.size) - start
        try:
            while len(data) < wanted and (piece := answer.read1(min(PIECE, wanted - len(data)))):  # what has come, up to a piece
                data += piece
                self.received += len(piece)
                clock.check()
        except clock.OutOfTime:
            self._close()  # half read
            raise
        if len(data) != wanted:
            raise OSError(f"{len(data)} bytes instead of {wanted}")
        answer.close()
        return bytes(data)

    def _close(self) -> None:
        if self.connection is not None:
            self.connection.close()
        self.connection = None


class RemoteZip:
    """The index of a remote zip, and its members on demand."""

    def __init__(self, url: str, cache: Path | None = None, waits: tuple[float, ...] = WAITS, sleep: Callable[[float], None] = time.sleep):
        """`cache`: file that keeps the index (67 MB for CALVIN's D), so that a second session does not fetch it again."""
        self.file = Remote(url, waits, sleep)
        self.taken, before = 0, self.file.received
        count, size, start = self._end()
        kept = cache.read_bytes() if cache and cache.is_file() else b""
        mark = f"{url} {self.file.size} {self.file.tag}\n".encode()
        if kept.startswith(mark) and len(kept) == len(mark) + size:
            self.index = kept[len(mark) :]
        else:
            self.index = b"".join(self.file.read(at, min(at + CHUNK, start + size)) for at in range(start, start + size, CHUNK))
            if cache:
                cache.parent.mkdir(parents=True, exist_ok=True)
                part = cache.with_name(cache.name + ".part")
                part.write_bytes(mark + self.index)
                part.replace(cache)
        self.index_bytes = self.file.received - before
        self.starts = np.sort(np.fromiter((entry[1] for entry in self._entries()), np.int64))
        if len(self.starts) != count:
            raise self._broken(f"{count} entries in its index", len(self.starts))
        self.stop = start  # of the members

    @property
    def received(self) -> int:
        """Bytes that came over the line so far, without headers of HTTP."""
        return self.file.received

    def _broken(self, expected: object, found: object) -> UserError:
        return UserError(
            f"{self.file.url} is no whole zip", expected, found, "check the address; get the file from where it is distributed"
        )

    def _end(self) -> tuple[int, int, int]:
        """(entries, bytes, start) of the index, from the end record or its zip64 form."""
        size = self.file.size
        tail = self.file.read(max(0, size - 98), size)  # 22 + 20 + 56: the three records where there is no comment
        if tail[-22:-18] != END:
            tail = self.file.read(max(0, size - TAIL), size)
        at = tail.rfind(END)
        if at < 0 or len(tail) < at + 22:
            raise self._broken("an end record in its last 64 kB", "none")
        disk, first, _, count, length, start = struct.unpack("<HHHHII", tail[at + 4 : at + 20])
        if at >= 20 and tail[at - 20 : at - 16] == LOCATOR:
            place = struct.unpack("<Q", tail[at - 12 : at - 4])[0]
            record = self.file.read(place, min(place + 56, size))
            if record[:4] != END64 or len(record) < 56:
                raise self._broken("a zip64 end record", record[:4])
            disk, first = struct.unpack("<II", record[16:24])
            count, length, start = struct.unpack("<QQQ", record[32:56])
        if disk or first or start + length > size:
            raise self._broken("one file that holds all of it", f"index at {start}..{start + length} of {size}, disk {disk}")
        return count, length, start

    def _entries(self) -> Iterator[tuple]:
        """(name as bytes, start, packed, size, crc, method, flags) of each entry, in the index's order."""
        at, index = 0, self.index
        while at < len(index):
            if index[at : at + 4] != CENTRAL or at + 46 > len(index):
                raise self._broken(f"an index entry at byte {at}", index[at : at + 4])
            flags, method, _, crc, packed, size, n, extra, comment = struct.unpack("<HHIIIIHHH", index[at + 8 : at + 34])
            start = struct.unpack("<I", index[at + 42 : at + 46])[0]
            if 0xFFFFFFFF in (packed, size, start):
                size, packed, start = self._large(index[at + 46 + n : at + 46 + n + extra], size, packed, start)
            yield index[at + 46 : at + 46 + n], start, packed, size, crc, method, flags
            at += 46 + n + extra + comment

    def _large(self, extra: bytes, *values: int) -> list[int]:
        """The zip64 values of (size, packed, start): each 0xFFFFFFFF is replaced by the next number of the extra field 1."""
        at = 0
        while at + 4 <= len(extra):
            kind, length = struct.unpack("<HH", extra[at : at + 4])
            if kind == 1:
                large = iter(struct.unpack(f"<{length // 8}Q", extra[at + 4 : at + 4 + length // 8 * 8]))
                try:
                    return [next(large) if value == 0xFFFFFFFF else value for value in values]
                except StopIteration:
                    break
            at += 4 + length
        raise self._broken("sizes above 4 GB in a zip64 field", "none")

    def find(self, wanted: Callable[[str], bool]) -> list[Member]:
        """The members whose name is wanted, in the order of the file."""
        found = []
        for raw, start, packed, size, crc, method, flags in self._entries():
            name = raw.decode("utf-8" if flags & 0x800 else "cp437")
            if wanted(name):
                if flags & 1 or method not in (0, 8):
                    raise UserError(
                        f"{name} in {self.file.url} cannot be read", "stored or deflated, not encrypted", f"method {method}, flags {flags}"
                    )
                after = int(np.searchsorted(self.starts, start, side="right"))
                end = int(self.starts[after]) if after < len(self.starts) else self.stop
                found.append(Member(name, start, end, packed, size, crc, method))
        return sorted(found, key=lambda member: member.start)

    def read(self, members: list[Member]) -> Iterator[tuple[Member, bytes | DamagedMember]]:
        """(member, its content or why there is none) in the order of the file; neighbours come in one request."""
        group: list[Member] = []
        for member in sorted(members, key=lambda one: one.start):
            if group and (member.start != group[-1].end or member.end - group[0].start > CHUNK):
                yield from self._group(group)
                group = []
            group.append(member)
        if group:
            yield from self._group(group)

    def _group(self, group: list[Member]) -> Iterator[tuple[Member, bytes | DamagedMember]]:
        first = group[0].start
        data = self.file.read(first, group[-1].end)
        for member in group:
            self.taken += member.packed
            try:
                yield member, unpack(member, data[member.start - first : member.end - first])
            except DamagedMember:  # on the way, or in the file: asked for once more
                try:
                    yield member, unpack(member, self.file.read(member.start, member.end))
                except DamagedMember as error:
                    yield member, error


def unpack(member: Member, data: bytes) -> bytes:
    """The content of a member from its local header on. DamagedMember where it is not what the index says."""
    if data[:4] != LOCAL or len(data) < 30:
        raise DamagedMember(f"no local header, {data[:4]!r}")
    names = sum(struct.unpack("<HH", data[26:30]))
    body = data[30 + names : 30 + names + member.packed]
    try:
        content = body if member.method == 0 else zlib.decompressobj(-15).decompress(body, member.size + 1)
    except zlib.error as error:
        raise DamagedMember(f"cannot be unpacked ({error})") from error
    if len(content) != member.size or zlib.crc32(content) != member.crc:
        raise DamagedMember(f"CRC-32 {zlib.crc32(content):08x} of {len(content)} bytes instead of {member.crc:08x} of {member.size}")
    return content
