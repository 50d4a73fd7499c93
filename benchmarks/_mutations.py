"""Damage, drawn by a seed: of bytes, of text, of plain data, of tensor files, of folders.

Each function returns what it did in a few words, so that a fault can be found again.
"""

from __future__ import annotations

import copy
import json
import os
import random
import struct
from collections.abc import Callable, Iterable, MutableMapping, MutableSequence
from pathlib import Path
from typing import Any

Draw = random.Random

TEXTS = [
    "", " ", "x" * 20_000, "../../outside", "/etc/passwd", "..", ".", "~", "con", "a\x00b",
    "\x1b[2J\x1b]0;title\x07", "\u202egnp.exe", "\ufeff", "[/x]", "[bold]x", ":skull:", "$x_{$",
    "$\\frac{", "<script>alert(1)</script>", "{{7*7}}", "{% raw %}", "%s%n", "=1+1", "@SUM(1)",
    "---", "- [x](javascript:1)", "`rm`", "|", "nan", "null", "true", "1e400", "0x10", "ﬀ",
    "é\u0301",    "\U0001f4a9" * 50, "pkg://../../etc", "pkg://os/../../x", "hf://x", "file:///etc/passwd",
    "http://127.0.0.1:9/x", "https://example.invalid/x", "\\\\server\\share", "C:\\x", "evil",
    "./evil", "evil.py", "__import__('os')", "os.system", "a" * 300, "\n", "a\nb: c", "\r", "\t",
]  # fmt: skip
NUMBERS: list[object] = [
    0, -1, 1, 2**31, 2**63, 10**30, -(10**30), 0.0, -0.0, 0.5, 1e308, -1e308, 1e-320, 10**4,
    float("inf"), float("-inf"), float("nan"),
]  # fmt: skip
OTHERS: list[object] = [None, True, False, [], {}, [[]], [None], {"a": 1}, {"": ""}, [1, "a"]]


def value(draw: Draw) -> object:
    """Any hostile value."""
    kind = draw.randrange(5)
    if kind == 0:
        return draw.choice(TEXTS)
    if kind == 1:
        return draw.choice(NUMBERS)
    if kind == 2:
        return copy.deepcopy(draw.choice(OTHERS))
    if kind == 3:
        return nested(draw.choice([5, 40, 200]), draw.random() < 0.5)
    return draw.choice([[0] * 3000, {str(i): i for i in range(3000)}, [draw.choice(TEXTS)] * 3])


def nested(depth: int, lists: bool) -> object:
    """Lists or mappings in each other."""
    data: object = 1
    for _ in range(depth):
        data = [data] if lists else {"a": data}
    return data


def mutate_bytes(data: bytes, draw: Draw) -> tuple[bytes, str]:
    """Flip, cut, repeat, insert or fill."""
    if not data:
        return b"\x00", "one byte in an empty file"
    place = draw.randrange(len(data))
    kind = draw.randrange(8)
    if kind <= 2:
        changed = bytearray(data)
        for _ in range(1 + kind):
            changed[draw.randrange(len(changed))] ^= 1 << draw.randrange(8)
        return bytes(changed), f"{1 + kind} flipped bits"
    if kind == 3:
        return data[:place], f"cut at {place}"
    if kind == 4:
        end = min(len(data), place + draw.choice([1, 8, 100]))
        return data[:place] + data[end:], f"without bytes {place} to {end}"
    if kind == 5:
        piece = data[place : place + draw.choice([1, 50, 1000])]
        return data[:place] + piece * draw.choice([2, 50]) + data[place:], f"repeated at {place}"
    if kind == 6:
        inserted = draw.choice(
            [b"\x00", b"\xff\xfe", b"\xef\xbb\xbf", b"\xed\xa0\x80", b"{" * 5000]
        )
        return data[:place] + inserted + data[place:], f"{inserted[:4]!r} at {place}"
    whole = draw.choice([b"", b"\x00" * 100, draw.randbytes(500), b"[" * 100_000, b"null", b"\n"])
    return whole, f"replaced by {whole[:6]!r}"


def mutate_plain(data: Any, draw: Draw) -> tuple[Any, str]:
    """Change one place of plain data: another value, a key gone, renamed or added, an item more."""
    data = copy.deepcopy(data)
    holders = _holders([data], ())
    if not holders:
        return value(draw), "replaced whole"
    if draw.random() < 0.03:
        return value(draw), "replaced whole"
    holder, path = draw.choice(holders)
    where = ".".join(map(str, path[1:])) or "top"
    if isinstance(holder, dict):
        return data, f"{where}: {_change_mapping(holder, draw)}"
    return data, f"{where}: {_change_list(holder, draw)}"


def _holders(data: object, path: tuple[object, ...]) -> list[tuple[Any, tuple[object, ...]]]:
    items: Iterable[tuple[object, object]] = ()
    if isinstance(data, dict):
        items = data.items()
    elif isinstance(data, list):
        items = list(enumerate(data))[:50]
    found = []
    for key, item in items:
        if isinstance(item, (dict, list)) and item:
            found.append((item, (*path, key)))
        found += _holders(item, (*path, key))
    return found


def _change_mapping(holder: MutableMapping[Any, Any], draw: Draw) -> str:
    key = draw.choice(list(holder))
    kind = draw.randrange(8)
    if kind == 0:
        del holder[key]
        return f"without {key}"
    if kind == 1:
        name = draw.choice([f"{key}x", str(key)[:-1], draw.choice(TEXTS), f"{key} "])
        holder[name] = holder.pop(key)
        return f"{key} is called {name[:30]!r}"
    if kind == 2:
        holder[draw.choice(TEXTS)] = value(draw)
        return "a key more"
    if kind == 3:
        other = draw.choice(list(holder))
        holder[key], holder[other] = holder[other], holder[key]
        return f"{key} and {other} swapped"
    holder[key] = _other(holder[key], draw)
    return f"{key} = {repr(holder[key])[:60]}"


def _change_list(holder: MutableSequence[Any], draw: Draw) -> str:
    place = draw.randrange(len(holder))
    kind = draw.randrange(5)
    if kind == 0:
        del holder[place]
        return f"without item {place}"
    if kind == 1:
        holder.insert(place, copy.deepcopy(holder[draw.randrange(len(holder))]))
        return f"an item twice at {place}"
    if kind == 2:
        holder.append(value(draw))
        return "an item more"
    holder[place] = _other(holder[place], draw)
    return f"item {place} = {repr(holder[place])[:60]}"


def _other(old: object, draw: Draw) -> object:
    """A value near the old one, or any."""
    if isinstance(old, (int, float)) and not isinstance(old, bool) and draw.random() < 0.5:
        return draw.choice([-old, old + 1, old * 1000, old * 10**12, old / 3, str(old), [old]])
    if isinstance(old, str) and draw.random() < 0.4:
        return draw.choice([old.upper(), f"{old} ", f"../{old}", old[::-1], old * 300, [old]])
    if isinstance(old, bool) and draw.random() < 0.5:
        return not old
    return value(draw)


def mutate_json(text: str, draw: Draw) -> tuple[bytes, str]:
    """A changed JSON file; now and then a key that comes twice, or NaN."""
    data = json.loads(text)
    changed, what = mutate_plain(data, draw)
    written = json.dumps(changed)
    if draw.random() < 0.05 and isinstance(data, dict) and data:
        key = draw.choice(list(data))
        written = written.rstrip()[:-1] + f", {json.dumps(key)}: {json.dumps(value(draw))}}}"
        what = f"{key} twice"
    return written.encode("utf-8", "surrogatepass"), what


# --- safetensors and npy -----------------------------------------------------------------------


def mutate_safetensors(data: bytes, draw: Draw) -> tuple[bytes, str]:
    """A changed header, or changed numbers."""
    if draw.random() < 0.35:
        return mutate_bytes(data, draw)
    size = struct.unpack("<Q", data[:8])[0]
    header, rest = json.loads(data[8 : 8 + size]), data[8 + size :]
    names = [name for name in header if name != "__metadata__"]
    name = draw.choice(names)
    kind = draw.randrange(9)
    if kind == 0:
        length = draw.choice([0, 1, size - 1, size + 1, 2**40, 2**63, 2**64 - 1])
        return struct.pack("<Q", length) + data[8:], f"a header of {length} bytes"
    if kind == 1:
        header[name]["shape"] = draw.choice(
            [[], [-1], [2**40, 2**40], [2**62, 4], header[name]["shape"][::-1], "a", None, [1.5]]
        )
        what = f"{name} has the shape {header[name]['shape']}"
    elif kind == 2:
        kinds = ["F64", "F32", "F16", "BF16", "I8", "U8", "I64", "BOOL", "X9", None, "F8_E4M3"]
        header[name]["dtype"] = draw.choice(kinds)
        what = f"{name} has the type {header[name]['dtype']}"
    elif kind == 3:
        begin, end = header[name]["data_offsets"]
        header[name]["data_offsets"] = draw.choice(
            [[begin, end + 8], [0, end - begin], [end, begin], [2**60, 2**61], [-8, 0], [begin]]
        )
        what = f"{name} lies at {header[name]['data_offsets']}"
    elif kind == 4:
        other = draw.choice([f"{name}x", "", "a.b.c", draw.choice(TEXTS), name.replace("0", "1")])
        header[other] = header.pop(name)
        what = f"{name} is called {other[:40]!r}"
    elif kind == 5:
        other = draw.choice(names)
        header[name], header[other] = header[other], header[name]
        what = f"{name} and {other} swapped"
    elif kind == 6:
        return _without_tensor(header, rest, name), f"without {name}"
    elif kind == 7:
        begin, end = header[name]["data_offsets"]
        filled = draw.choice(
            [b"\x00\x00\xc0\x7f", b"\x00\x00\x80\x7f", b"\xff\xff\xff\xff", b"\0" * 4]
        )
        part = (filled * (1 + (end - begin) // 4))[: end - begin]
        return data[: 8 + size] + rest[:begin] + part + rest[end:], f"{name} is {filled!r}"
    else:
        header["__metadata__"] = value(draw)
        what = "other metadata"
    return _with_header(header, rest), what


def _with_header(header: object, rest: bytes) -> bytes:
    text = json.dumps(header).encode("utf-8", "surrogatepass")
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + rest


def _without_tensor(header: dict[str, Any], rest: bytes, name: str) -> bytes:
    begin, end = header.pop(name)["data_offsets"]
    for key, entry in header.items():
        if key != "__metadata__" and entry["data_offsets"][0] >= end:
            entry["data_offsets"] = [place - (end - begin) for place in entry["data_offsets"]]
    return _with_header(header, rest[:begin] + rest[end:])


def mutate_npy(data: bytes, draw: Draw) -> tuple[bytes, str]:
    """A changed header, or changed numbers."""
    if draw.random() < 0.6:
        return mutate_bytes(data, draw)
    size = struct.unpack("<H", data[8:10])[0]
    header = draw.choice([
        b"{'descr': '<f4', 'fortran_order': False, 'shape': (99999999999, 9), }",
        b"{'descr': '|O', 'fortran_order': False, 'shape': (3,), }",
        b"{'descr': '<f4', 'fortran_order': True, 'shape': (), }",
        b"__import__('os').system('touch canary')", b"{" * 200, b"{'descr': '<f4'}", b"",
    ])  # fmt: skip
    header = header.ljust(size - 1) + b"\n"
    return data[:8] + struct.pack("<H", len(header)) + header + data[10 + size :], "another header"


# --- folders -----------------------------------------------------------------------------------


def mutate_entry(path: Path, draw: Draw) -> str:
    """Something else in a file's place: nothing, a folder, a link, a pipe, an empty file."""
    kind = draw.randrange(7)
    path.unlink()
    if kind == 0:
        return f"no {path.name}"
    if kind == 1:
        path.mkdir()
        return f"a folder as {path.name}"
    if kind == 2:
        os.mkfifo(path)
        return f"a pipe as {path.name}"
    if kind == 3:
        path.write_bytes(b"")
        return f"an empty {path.name}"
    target = ["/dev/zero", "/proc/self/mem", str(path)][kind - 4]
    path.symlink_to(target)
    return f"{path.name} links to {target if target != str(path) else 'itself'}"


Mutator = Callable[[bytes, Draw], tuple[bytes, str]]


def mutate_file(path: Path, draw: Draw) -> str:
    """Damage one file in the way that its kind is read; returns what was done."""
    if draw.random() < 0.12:
        return mutate_entry(path, draw)
    data = path.read_bytes()
    if path.suffix == ".safetensors":
        changed, what = mutate_safetensors(data, draw)
    elif path.suffix == ".npy":
        changed, what = mutate_npy(data, draw)
    elif path.suffix == ".json" and draw.random() < 0.7:
        changed, what = mutate_json(data.decode(), draw)
    elif path.suffix == ".jsonl" and draw.random() < 0.6:
        lines = data.decode().splitlines()
        place = draw.randrange(len(lines))
        line, what = mutate_json(lines[place], draw)
        parts = [part.encode() for part in lines]
        parts[place] = line.replace(b"\n", b" ")
        changed, what = b"\n".join(parts) + b"\n", f"line {place + 1}: {what}"
    else:
        changed, what = mutate_bytes(data, draw)
    path.write_bytes(changed)
    return f"{path.name}: {what}"
