"""Compare what a writer acknowledged with what is there.

    python -m tests.crash.checker DIRECTORY MANIFEST SEED        prints one JSON value

Imports nothing of the project.
"""

from __future__ import annotations

import itertools
import json
import os
import stat
import sys
from pathlib import Path
from typing import Any

from tests.crash.workload import PAGE, Model, Node, StrictPlan, content, current_size, loose_size, replaces
from tests.crash.writer import STRICT


def acknowledged(path: Path) -> int:
    """Return how many operations a manifest acknowledges; a line that was being written does not count."""
    return path.read_bytes().count(b"\n") if path.exists() else 0


class Check:
    """What was found wrong, each with the place; empty lists mean that all is well."""

    def __init__(self) -> None:
        self.lost: list[str] = []
        """Acknowledged things that are missing or differ."""
        self.mixed: list[str] = []
        """Bytes that never were in that place."""
        self.holes: list[str] = []
        """A size over bytes that are missing."""
        self.order: list[str] = []
        """Something later is there without something earlier."""
        self.operations = 0

    # ---- synced ----------------------------------------------------------------------------------------------------
    def strict(self, root: Path, manifest: Path, seed: str) -> None:
        """Check one strict plan's directory."""
        count = acknowledged(manifest)
        self.operations += count
        plan = StrictPlan(seed)
        steps = next(itertools.islice(plan, count, None))  # everything before it is applied
        model = plan.model
        touched = {argument for step in steps for argument in step[1:3] if isinstance(argument, str)}
        states = [self._state(model)]
        for step in steps:
            model.apply(step)
            states.append(self._state(model))
        touched |= {name for state in states for name in state if any(s.get(name) != state[name] for s in states)}
        names = {os.path.relpath(os.path.join(d, n), root) for d, ds, fs in os.walk(root) for n in ds + fs}
        for name in sorted(names | {name for state in states for name in state}):
            options = [state[name] for state in states if name in state]
            if name not in names:
                if all(name in state for state in states):
                    self.lost.append(f"{root.name}/{name} is missing")
            elif not options:
                self.lost.append(f"{root.name}/{name} should not be there")
            else:
                self._compare(
                    root, name, options, exact=name not in touched and all(option == options[0] for option in options)
                )

    @staticmethod
    def _state(model: Model) -> dict[str, tuple[Node, int]]:
        copies = {id(node): node.copy() for node in model.names.values()}
        return {
            name: (copies[id(node)], model.links(name) if node.kind == "file" else 0)
            for name, node in model.names.items()
        }

    def _compare(self, root: Path, name: str, options: list[tuple[Node, int]], *, exact: bool) -> None:
        path, label = root / name, f"{root.name}/{name}"
        try:
            status = os.lstat(path)
            kind = {stat.S_IFREG: "file", stat.S_IFDIR: "dir", stat.S_IFLNK: "link"}[stat.S_IFMT(status.st_mode)]
            data = path.read_bytes() if kind == "file" else b""
            target = os.readlink(path) if kind == "link" else ""
            keys = [] if kind == "link" else os.listxattr(path)
            xattrs = {key: os.getxattr(path, key) for key in keys if key.startswith("user.")}
        except OSError as exc:
            self.lost.append(f"{label}: {exc}")
            return
        if not any(node.kind == kind for node, _links in options):
            self.lost.append(f"{label} is a {kind}")
            return
        mode = stat.S_IMODE(status.st_mode)
        found: list[tuple[str, Any, list[Any]]] = [("target", target, [node.target for node, _ in options])]
        if kind != "link":
            modes = [node.mode for node, _ in options]
            if not exact:
                modes += [0o600, *(mode & ~0o6000 for mode in modes)]  # being made, or written to by its owner
            # A write or chown clears set-id bits; the plan does not model when.
            found.append(("mode", mode & ~0o6000, [mode & ~0o6000 for mode in modes]))
            found.append(("owner", status.st_uid, [node.owner for node, _ in options]))
            for key in {key for node, _ in options for key in node.xattrs} | set(xattrs):
                found.append((key, xattrs.get(key), [node.xattrs.get(key) for node, _ in options]))
        if kind == "file":
            found.append(("links", status.st_nlink, [links for _, links in options]))
            if all(node.mtime is not None for node, _ in options):
                found.append(("mtime", status.st_mtime_ns, [node.mtime for node, _ in options]))
            if exact:
                if data != options[0][0].data:
                    self.lost.append(f"{label}: {describe(data, options[0][0].data)}")
            else:
                self._pages(label, data, [bytes(node.data) for node, _ in options if node.kind == "file"])
        self.lost += [f"{label}: {what} is {value!r:.80}" for what, value, allowed in found if value not in allowed]

    def _pages(self, label: str, data: bytes, versions: list[bytes]) -> None:
        """A file that was being changed: each page is that of one version, and there are no more than the longest has."""
        if not min(map(len, versions)) <= len(data) <= max(map(len, versions)):
            self.lost.append(f"{label} has {len(data)} bytes, its versions {sorted(set(map(len, versions)))}")
        for offset in range(0, len(data), PAGE):
            page = data[offset : offset + PAGE]
            if all(page != version[offset : offset + len(page)] for version in versions):
                (self.mixed if any(page) else self.holes).append(f"{label} at {offset} of {len(data)}")
                return

    # ---- not synced ----------------------------------------------------------------------------------------------------
    def loose(self, root: Path, manifest: Path, seed: str) -> None:
        """Check the directory that nothing was synced in."""
        written = acknowledged(manifest)
        names = sorted(os.listdir(root))
        numbers = [int(name) for name in names if name.isdigit()]
        if numbers != list(range(len(numbers))):
            self.order.append(f"loose files {sorted(set(range(max(numbers))) - set(numbers))} are missing")
        if len(numbers) > written + 1:
            self.lost.append(f"{len(numbers)} loose files, but only {written} were finished")
        for number in numbers:
            data, wanted = (root / f"{number:06}").read_bytes(), self._loose(seed, number)
            self._prefix(f"loose/{number:06}", data, wanted)
        starts = [number for number in range(len(numbers) + 3) if replaces(number)]
        due = [number for number in starts if number < len(numbers)]
        if "current" in names:
            data = (root / "current").read_bytes()
            contents = {number: content(f"{seed}/current/{number}", current_size(seed, number)) for number in starts}
            versions = [number for number in starts if data == contents[number]]
            if not versions:
                likely = [number for number in starts if data[:PAGE] == contents[number][:PAGE]] or [0]
                self.mixed.append(f"loose/current is no version: {describe(data, contents[likely[0]])}")
            elif due and versions[0] < due[-1]:
                self.order.append(f"current has version {versions[0]}, but file {due[-1]} is there")
        elif due:
            self.order.append(f"current is missing, but file {due[-1]} is there")

    @staticmethod
    def _loose(seed: str, number: int) -> bytes:
        return content(f"{seed}/loose/{number}", loose_size(seed, number))

    def _prefix(self, label: str, data: bytes, wanted: bytes) -> None:
        if data != wanted[: len(data)]:
            offset = next(o for o in range(0, len(data), PAGE) if data[o : o + PAGE] != wanted[o : o + PAGE])
            bad = self.mixed if any(data[offset : offset + PAGE]) else self.holes
            bad.append(f"{label} at {offset} of {len(data)} (whole: {len(wanted)})")


def describe(data: bytes, wanted: bytes) -> str:
    """Say where two contents differ."""
    size = min(len(data), len(wanted))
    first = next((i for i in range(0, size, PAGE) if data[i : i + PAGE] != wanted[i : i + PAGE]), size)
    kind = "zeros" if not any(data[first : first + PAGE]) else "bytes"
    return f"{len(data)} of {len(wanted)} bytes, other {kind} from page {first // PAGE}"


def check(directory: Path, manifest: Path, seed: str) -> dict[str, Any]:
    """Check one round; `loose` says how many unsynced files were finished, and how many are there."""
    result = Check()
    found = 0
    if directory.exists():
        for name in STRICT:
            if (directory / name).exists():
                result.strict(directory / name, manifest / name, f"{seed}/{name}")
            elif acknowledged(manifest / name):
                result.lost.append(f"{name} is missing")
        if (directory / "loose").exists():
            result.loose(directory / "loose", manifest / "loose", seed)
            found = sum(name.isdigit() for name in os.listdir(directory / "loose"))
    elif any(acknowledged(manifest / name) for name in STRICT):
        result.lost.append(f"{directory.name} is missing")
    return {**vars(result), "loose": [acknowledged(manifest / "loose"), found]}


def main() -> None:
    """Check one round."""
    directory, manifest, seed = sys.argv[1:]
    print(json.dumps(check(Path(directory), Path(manifest), seed)))


if __name__ == "__main__":
    main()
