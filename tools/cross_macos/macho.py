"""Mach-O files of arm64 macOS: what they need and offer, and whether Apple's loader would take them.

The rules are those that dyld applies to new binaries (its mach_o::Header), restated; the signature is the ad-hoc one
that arm64 macOS asks of everything it runs.
"""

from __future__ import annotations

import hashlib
import itertools
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

_MAGIC, _ARM64, _DYLIB = 0xFEEDFACF, 0x0100000C, 6
_HEADER_BYTES = 32
_PAGE = 0x4000
_MACOS = 1

# Load commands.
_SEGMENT, _SYMTAB, _DYSYMTAB, _ID_DYLIB, _UUID, _BUILD_VERSION = 0x19, 0x2, 0xB, 0xD, 0x1B, 0x32
_DYLD_INFO, _EXPORTS_TRIE, _CODE_SIGNATURE = (0x22, 0x80000022), 0x80000033, 0x1D
_LOADS = (0xC, 0x80000018, 0x8000001F, 0x80000023)
_LINKEDIT_DATA = {0x26: "function starts", 0x29: "data in code", 0x80000034: "chained fixups"}

_READ, _WRITE, _EXECUTE, _READ_ONLY_AFTER_LOAD = 1, 2, 4, 0x10
_PROTECTIONS = {
    "__TEXT": _READ | _EXECUTE,
    "__LINKEDIT": _READ,
    "__DATA": _READ | _WRITE,
    "__DATA_CONST": _READ | _WRITE,
}


@dataclass(frozen=True)
class Segment:
    name: str
    address: int
    size: int
    offset: int
    file_size: int
    protection: int
    flags: int


@dataclass
class MachO:
    """The load commands of a file, as far as the checks look at them."""

    data: bytes
    kind: int = 0
    segments: list[Segment] = field(default_factory=list)
    dylibs: list[str] = field(default_factory=list)
    #: (name, offset, size) of what lies in __LINKEDIT.
    tables: list[tuple[str, int, int]] = field(default_factory=list)
    uuids: int = 0
    install_names: list[str] = field(default_factory=list)
    minimum_os: tuple[int, int] | None = None
    signature: int | None = None
    exports_trie: tuple[int, int] = (0, 0)
    symbols: tuple[int, int, int] = (0, 0, 0)  # offset, count, offset of the strings
    binds: list[tuple[int, int]] = field(default_factory=list)  # programs that bind symbols: offset, size

    def undefined_symbols(self) -> list[str]:
        """Names that an object or library takes from elsewhere."""
        offset, count, strings = self.symbols
        names = []
        for i in range(count):
            name, kind = struct.unpack_from("<IB", self.data, offset + 16 * i)
            if kind & 0x0E == 0 and kind & 0x01:  # N_UNDF, N_EXT
                names.append(_text(self.data, strings + name))
        return sorted(set(names))

    def imports(self) -> dict[str, bool]:
        """Names that a library takes from others, and whether weakly: bound to null where the system lacks them."""
        return dict(name for offset, size in self.binds for name in _bound_names(self.data[offset : offset + size]))

    def exports(self) -> list[str]:
        """Names that a library offers, from its trie."""
        start, size = self.exports_trie
        return sorted(_walk_trie(self.data[start : start + size], 0, "")) if size else []


def read(path: Path) -> MachO:
    """Reads a thin arm64 file; a ValueError for others."""
    data = path.read_bytes()
    magic, cpu, _, kind, commands, _size, _, _ = struct.unpack_from("<8I", data)
    if magic != _MAGIC or cpu != _ARM64:
        raise ValueError(f"{path} is no thin arm64 Mach-O file")
    macho, at = MachO(data, kind), _HEADER_BYTES
    for _ in range(commands):
        command, length = struct.unpack_from("<2I", data, at)
        if length < 8 or length % 8:
            raise ValueError(f"{path}: load command {command:#x} has size {length}")
        _read_command(macho, command, at)
        at += length
    return macho


def _read_command(macho: MachO, command: int, at: int) -> None:
    data = macho.data
    if command == _SEGMENT:
        name = data[at + 8 : at + 24].split(b"\0")[0].decode()
        address, size, offset, file_size, _, protection, _, flags = struct.unpack_from("<4Q4I", data, at + 24)
        macho.segments.append(Segment(name, address, size, offset, file_size, protection, flags))
    elif command in _LOADS:
        macho.dylibs.append(_text(data, at + struct.unpack_from("<I", data, at + 8)[0]))
    elif command == _ID_DYLIB:
        macho.install_names.append(_text(data, at + struct.unpack_from("<I", data, at + 8)[0]))
    elif command == _UUID:
        macho.uuids += 1
    elif command == _BUILD_VERSION:
        platform, minimum = struct.unpack_from("<2I", data, at + 8)
        macho.minimum_os = (minimum >> 16, minimum >> 8 & 255) if platform == _MACOS else None
    elif command == _SYMTAB:
        offset, count, strings, strings_size = struct.unpack_from("<4I", data, at + 8)
        macho.symbols = (offset, count, strings)
        macho.tables += [("symbols", offset, count * 16), ("strings", strings, strings_size)]
    elif command == _DYSYMTAB:
        indirect, count = struct.unpack_from("<2I", data, at + 56)
        macho.tables.append(("indirect symbols", indirect, count * 4))
    elif command in _DYLD_INFO:
        numbers = struct.unpack_from("<10I", data, at + 8)
        names = ("rebase", "bind", "weak bind", "lazy bind", "exports")
        macho.tables += [(name, *numbers[2 * i : 2 * i + 2]) for i, name in enumerate(names)]
        macho.exports_trie = numbers[8:10]
        macho.binds += [numbers[2:4], numbers[6:8]]
    elif command in (*_LINKEDIT_DATA, _EXPORTS_TRIE, _CODE_SIGNATURE):
        offset, size = struct.unpack_from("<2I", data, at + 8)
        macho.tables.append((_LINKEDIT_DATA.get(command, f"table {command:#x}"), offset, size))
        if command == _EXPORTS_TRIE:
            macho.exports_trie = (offset, size)
        if command == _CODE_SIGNATURE:
            macho.signature = offset


def check(
    macho: MachO,
    *,
    needs: tuple[str, ...],
    exports: tuple[str, ...],
    minimum_os: tuple[int, int],
    tolerated: tuple[str, ...] = (),
    strong: tuple[str, ...] = (),
) -> list[str]:
    """What is wrong with a library: each entry one sentence; none when dyld would take it.

    needs: parts of the names of dylibs that it must load; exports: what the names that it offers must begin with, or
    with what is tolerated. strong: of the names that it takes from Apple's frameworks, those that every system has, so
    that they need not be bound weakly; with another one, an older system would not load it.
    """
    return [
        *_check_commands(macho, needs, minimum_os),
        *_check_segments(macho),
        *_check_tables(macho),
        *(f"it exports {name}" for name in macho.exports() if not name.startswith((*exports, *tolerated))),
        *(f"it does not export {name}…" for name in exports if not any(e.startswith(name) for e in macho.exports())),
        *_check_imports(macho, strong),
        *_check_signature(macho),
    ]


def _check_commands(macho: MachO, needs: tuple[str, ...], minimum_os: tuple[int, int]) -> Iterator[str]:
    if macho.kind != _DYLIB:
        yield "it is no dynamic library"
    if macho.uuids != 1:
        yield f"it has {macho.uuids} UUIDs instead of one"
    if len(macho.install_names) != 1:
        yield f"it has {len(macho.install_names)} install names instead of one"
    if len(set(macho.dylibs)) != len(macho.dylibs):
        yield "it loads a library twice"
    for name in needs:
        if not any(name in dylib for dylib in macho.dylibs):
            yield f"it does not load {name}"
    for dylib in macho.dylibs:
        if not dylib.startswith(("/usr/lib/", "/System/Library/")):
            yield f"it loads {dylib}, which is no part of macOS"
    if macho.minimum_os != minimum_os:
        yield f"its minimum macOS is {macho.minimum_os}, not {minimum_os}"


def _check_segments(macho: MachO) -> Iterator[str]:
    segments = macho.segments
    if not segments or segments[0].name != "__TEXT" or segments[0].offset != 0:
        yield "__TEXT is not the first segment"
    if not segments or segments[-1].name != "__LINKEDIT":
        yield "__LINKEDIT is not the last segment"
    for index, segment in enumerate(segments):
        if segment.offset + segment.file_size > len(macho.data):
            yield f"{segment.name} runs past the file's end"
        if segment.file_size > segment.size:
            yield f"{segment.name} is larger in the file than in memory"
        if segment.protection != _PROTECTIONS.get(segment.name, segment.protection):
            yield f"{segment.name} has the permissions {segment.protection}"
        if segment.name == "__DATA_CONST" and not segment.flags & _READ_ONLY_AFTER_LOAD:
            yield "__DATA_CONST stays writable"
        if segment.address % _PAGE or segment.offset % _PAGE:
            yield f"{segment.name} does not begin at a page"
        for other in segments[index + 1 :]:
            if segment.address < other.address + other.size and other.address < segment.address + segment.size:
                yield f"{segment.name} and {other.name} overlap"


def _check_tables(macho: MachO) -> Iterator[str]:
    if not macho.segments:
        return
    linkedit = macho.segments[-1]
    used = sorted((offset, size, name) for name, offset, size in macho.tables if size)
    for offset, size, name in used:
        if offset < linkedit.offset or offset + size > linkedit.offset + linkedit.file_size:
            yield f"{name} lie outside __LINKEDIT"
    for (offset, size, name), (following, _, next_name) in itertools.pairwise(used):
        if offset + size > following:
            yield f"{name} and {next_name} overlap"


def _check_imports(macho: MachO, strong: tuple[str, ...]) -> Iterator[str]:
    imports = macho.imports()
    if not imports:
        yield "no program binds what it takes from others"
    for name, weak in imports.items():
        if name.startswith(("_MTL", "_NS")) and not weak and name not in strong:
            yield f"it does not load where {name} is not: bind it weakly"


def _check_signature(macho: MachO) -> Iterator[str]:
    """The code directory's hash of every page, as the kernel computes them when it maps the file."""
    if macho.signature is None:
        yield "it is not signed: arm64 macOS ends processes that load it"
        return
    data, at = macho.data, macho.signature
    magic, _, count = struct.unpack_from(">3I", data, at)
    if magic != 0xFADE0CC0:
        yield "its signature is no signature"
        return
    blobs = [at + struct.unpack_from(">2I", data, at + 12 + 8 * i)[1] for i in range(count)]
    directory = next((blob for blob in blobs if struct.unpack_from(">I", data, blob)[0] == 0xFADE0C02), None)
    if directory is None:
        yield "its signature has no code directory"
        return
    flags, hashes, _, _, pages, limit = struct.unpack_from(">6I", data, directory + 12)
    page = 1 << data[directory + 39]
    for i in range(pages):
        digest = hashlib.sha256(data[i * page : min((i + 1) * page, limit)]).digest()
        if digest != data[directory + hashes + 32 * i : directory + hashes + 32 * i + 32]:
            yield f"the signature's hash of page {i} is wrong"
    if limit != at:
        yield "its signature does not cover the file"
    if not flags & 2:
        yield "its signature is not ad hoc"


def _text(data: bytes, at: int) -> str:
    return data[at : data.index(b"\0", at)].decode()


def _number(data: bytes, at: int) -> tuple[int, int]:
    """A number of seven bits a byte, and where it ends."""
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at


#: Opcodes of a bind program, in the upper four bits, by how many numbers follow; a symbol's name is text.
_BIND_SYMBOL, _BIND_WEAK = 0x40, 0x01
_BIND_NUMBERS = {0x20: 1, 0x60: 1, 0x70: 1, 0x80: 1, 0xA0: 1, 0xC0: 2}


def _bound_names(program: bytes) -> Iterator[tuple[str, bool]]:
    at = 0
    while at < len(program):
        opcode, immediate = program[at] & 0xF0, program[at] & 0x0F
        at += 1
        if opcode == _BIND_SYMBOL:
            name = _text(program, at)
            at += len(name) + 1
            yield name, bool(immediate & _BIND_WEAK)
        for _ in range(_BIND_NUMBERS.get(opcode, 0)):
            _, at = _number(program, at)


def _walk_trie(trie: bytes, node: int, prefix: str) -> Iterator[str]:
    size, at = _number(trie, node)
    if size:
        yield prefix
    at += size
    children = trie[at]
    at += 1
    for _ in range(children):
        edge = _text(trie, at)
        child, at = _number(trie, at + len(edge) + 1)
        yield from _walk_trie(trie, child, prefix + edge)
