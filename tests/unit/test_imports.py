"""The import direction of design.md: a package imports only what lies below it, and pure ones nothing that acts.

Every import counts, also those inside functions and under TYPE_CHECKING.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import fsdecloud

ROOT = Path(fsdecloud.__file__).parent

BOTTOM = "bottom"
LAYERS = (
    BOTTOM, "crypto", "tree", "fs", "contracts", "ledger", "swarm", "wire", "store", "net", "driver", "fuse",
)  # fmt: skip
"""Lowest first. `contracts` is below `ledger`, which runs them."""

DAEMONS = ("agent", "peerd", "ledgerd")
"""On top of everything but the mount: `driver`, `fuse` and `cli`."""

PURE = ("crypto", "tree", "fs", "contracts", "ledger", "swarm", "wire")

ACTING = frozenset(
    (
        "asyncio", "ctypes", "datetime", "getpass", "io", "lmdb", "multiprocessing", "os", "pathlib", "platform",
        "platformdirs", "pyfuse3", "random", "secrets", "select", "selectors", "shutil", "signal", "socket", "ssl",
        "subprocess", "sys", "tempfile", "time", "trio", "trio_websocket", "urllib", "uuid",
    )
)  # fmt: skip
"""What a pure package never imports: loops, files, sockets, clocks, randomness, the environment."""

ONLY_IMPORTER = {"trio_websocket": "net", "pyfuse3": "fuse"}

MAX_LINES = 700


def modules() -> list[Path]:
    return sorted(ROOT.rglob("*.py"))


def package_of(path: Path) -> str:
    parts = path.relative_to(ROOT).parts
    return BOTTOM if len(parts) == 1 else parts[0]


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """Yield (line, full dotted name) of everything a module imports; relative imports are made absolute."""
    own = ("fsdecloud", *path.relative_to(ROOT).with_suffix("").parts)
    for node in ast.walk(ast.parse(path.read_bytes(), str(path))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                base = ".".join((*own[: len(own) - node.level], *filter(None, [node.module])))
            for alias in node.names:
                yield node.lineno, f"{base}.{alias.name}"


def target_package(name: str) -> str:
    """Return the package of ours that `fsdecloud.x.y` lies in."""
    parts = name.split(".")
    return parts[1] if len(parts) > 1 and (ROOT / parts[1]).is_dir() else BOTTOM


def allowed(package: str) -> frozenset[str]:
    if package == "cli":
        return frozenset((*LAYERS, *DAEMONS, "cli"))
    if package in DAEMONS:
        return frozenset((*LAYERS[: LAYERS.index("driver")], package))
    return frozenset(LAYERS[: LAYERS.index(package) + 1])


def test_every_package_has_its_place() -> None:
    packages = {p.name for p in ROOT.iterdir() if (p / "__init__.py").exists()}
    assert packages <= {*LAYERS, *DAEMONS, "cli"}


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_upward_in_the_list(path: Path) -> None:
    package = package_of(path)
    for line, name in imports(path):
        where = f"{path}:{line}: imports {name}"
        top = name.partition(".")[0]
        if top == "fsdecloud":
            target = target_package(name)
            assert target in allowed(package), f"{where}: {package} may not use {target}"
            if package in PURE:
                impure = name.split(".")[1] in ("config", "readiness") and name != "fsdecloud.config.check_name"
                assert not impure, f"{where}: {package} is pure"
        else:
            assert ONLY_IMPORTER.get(top, package) == package, f"{where}: only {ONLY_IMPORTER.get(top)} may"
            assert package not in PURE or top not in ACTING, f"{where}: {package} is pure"


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(ROOT)))
def test_modules_stay_readable(path: Path) -> None:
    tree = ast.parse(path.read_bytes())
    assert ast.get_docstring(tree) or not tree.body, f"{path} does not say what it is for"
    assert len(path.read_text().splitlines()) <= MAX_LINES


def test_relative_imports_are_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"{__name__}.ROOT", tmp_path)
    (tmp_path / "tree").mkdir()
    module = tmp_path / "tree" / "x.py"
    module.write_text("from ..net import pool\nfrom . import node\nfrom .node import Leaf\nimport time as t\n")
    assert list(imports(module)) == [
        (1, "fsdecloud.net.pool"), (2, "fsdecloud.tree.node"), (3, "fsdecloud.tree.node.Leaf"), (4, "time"),
    ]  # fmt: skip
