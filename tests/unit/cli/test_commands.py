"""The command line as a whole: what it imports, how it ends, and that the manual pages know every option."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import click
import pytest

from fsdecloud.cli.fsck import FsckCommand
from fsdecloud.cli.fsck import command as fsck_helper
from fsdecloud.cli.main import COMMANDS, group
from fsdecloud.cli.mount import helper_command as mount_helper
from fsdecloud.cli.run import run
from fsdecloud.cli.umount import helper_command as umount_helper
from fsdecloud.errors import RemoteError, StoreFull, UsageError

ROOT = Path(__file__).resolve().parents[3]
MAN = ROOT / "man"


def commands() -> list[tuple[str, click.Command]]:
    """Return every command with its full name."""
    found = []
    context = click.Context(group)
    for name in COMMANDS:
        command = group.get_command(context, name)
        assert command is not None
        if isinstance(command, click.Group):
            found += [(f"decloud {name} {sub}", command.commands[sub]) for sub in command.commands]
        else:
            found.append((f"decloud {name}", command))
    return found


def options_of(command: click.Command) -> set[str]:
    return {
        spelled
        for parameter in command.params
        if isinstance(parameter, click.Option)
        for spelled in (*parameter.opts, *parameter.secondary_opts)
    }


def documented(text: str) -> set[str]:
    """Return the options that the item lines of mdoc text describe."""
    found = set()
    for line in re.findall(r"^\.It (?:Fl .*)$", text, re.MULTILINE):
        for piece in line.removeprefix(".It ").split(" , "):
            match = re.match(r"Fl (-?[\w-]+)", piece.strip())
            if match:
                found.add("-" + match[1])
    return found


def test_every_option_of_every_command_is_in_the_manual() -> None:
    page = (MAN / "decloud.1").read_text()
    sections = dict(re.findall(r"^\.Ss (decloud .+)\n((?:(?!\.S[sh] ).*\n)*)", page, re.MULTILINE))
    assert set(sections) == {name for name, _ in commands()}
    for name, command in commands():
        assert documented(sections[name]) == options_of(command), name


@pytest.mark.parametrize(
    ("page", "command"),
    [("mount.decloud.8", mount_helper), ("umount.decloud.8", umount_helper), ("fsck.decloud.8", fsck_helper)],
    ids=["mount", "umount", "fsck"],
)
def test_the_helpers_options_are_in_their_manuals(page: str, command: click.Command) -> None:
    text = (MAN / page).read_text().partition(".Ss Mount options")[0]
    assert documented(text) - {"-h", "--help"} == options_of(command)


@pytest.mark.parametrize("module", ["ledgerd", "peerd"])
def test_the_daemons_options_are_in_their_manuals(module: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", f"fsdecloud.{module}", "run", "--help"], capture_output=True, text=True, check=True
    )
    offered = set(re.findall(r"(?<![\w-])(--?[a-z][\w-]*)", done.stdout.partition("options:")[2]))
    assert documented((MAN / f"decloud-{module}.8").read_text()) == {
        o for o in offered if o.startswith("--") or o == "-h"
    }


@pytest.mark.parametrize("page", sorted(p.name for p in MAN.iterdir()))
def test_manual_pages_are_clean(page: str) -> None:
    done = subprocess.run(
        ["mandoc", "-T", "lint", "-W", "warning", MAN / page], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "")


def test_the_table_of_commands_says_what_their_help_says() -> None:
    for _, command in commands():
        assert command.help, command.name
    for name, (module, text) in COMMANDS.items():
        assert text.endswith("."), name
        assert (ROOT / "fsdecloud" / "cli" / f"{module}.py").exists()


def imported_by(*arguments: str) -> set[str]:
    """Return the top-level modules that `decloud ARGUMENTS` has loaded when it ends."""
    code = (
        "import sys\n"
        "from fsdecloud.cli.run import run\n"
        "from fsdecloud.cli.main import group\n"
        f"run(group, {list(arguments)!r}, 'decloud')\n"
        "print('\\n' + ' '.join(sorted({m.partition('.')[0] for m in sys.modules})))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines()[-1].split())


SLOW = {"trio", "trio_websocket", "cryptography", "lmdb", "pyfuse3", "rich", "pyeclib", "asyncio", "mnemonic"}


@pytest.mark.parametrize("command", [name.removeprefix("decloud ") for name, _ in commands()])
def test_help_imports_nothing_slow(command: str) -> None:
    assert not imported_by(*command.split(), "--help") & SLOW


@pytest.mark.parametrize("arguments", [("--help",), ("--version",), ("nosuch",)])
def test_the_group_imports_no_command(arguments: tuple[str, ...]) -> None:
    modules = imported_by(*arguments)
    assert not modules & (SLOW | {"msgspec", "platformdirs"})


def failing(error: BaseException, kind: type[click.Command] = click.Command) -> click.Command:
    @click.command(cls=kind)
    def command() -> None:
        raise error

    return command


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (UsageError("no\nsuch thing"), 1, "decloud: no such thing\n"),
        (UsageError("mounted", 32), 32, "decloud: mounted\n"),
        (StoreFull("the disk is full"), 2, "decloud: the disk is full\n"),
        (RemoteError("gone"), 2, "decloud: gone\n"),
        (PermissionError(13, "Permission denied", "/etc/x\x1b"), 1, "decloud: /etc/x\\x1b: Permission denied\n"),
        (FileNotFoundError(2, "No such file or directory", "x"), 2, "decloud: x: No such file or directory\n"),
        (click.UsageError("bad"), 1, "decloud: bad\n"),
        (KeyboardInterrupt(), 130, "decloud: interrupted\n"),
        (BrokenPipeError(32, "Broken pipe"), 0, ""),
    ],
)
def test_170_exit_codes(error: BaseException, code: int, line: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(failing(error), [], "decloud") == code
    assert capfd.readouterr().err == line


def test_166_an_interrupted_mount_ends_with_8(capfd: pytest.CaptureFixture[str]) -> None:
    assert run(failing(KeyboardInterrupt()), [], "mount.decloud", interrupted=8) == 8
    assert capfd.readouterr().err == "mount.decloud: interrupted\n"


def test_a_bug_keeps_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        run(failing(ZeroDivisionError()), [], "decloud")


@pytest.mark.parametrize(
    "error", [ZeroDivisionError("x"), MemoryError(), ImportError("x"), ExceptionGroup("x", [KeyError()])]
)
def test_a_bug_is_no_repair_to_fsck_and_keeps_its_traceback(
    error: Exception, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(failing(error, FsckCommand), [], "fsck.decloud", interrupted=32) == 8
    said = capfd.readouterr().err
    assert "Traceback" in said
    assert "in command" in said
    assert "\nfsck.decloud: internal error: " in said


@pytest.mark.parametrize(("option", "full", "code"), [("--json", False, 4), ("-n", False, 4), ("-n", True, 8)])
def test_fsck_to_a_closed_pipe_or_a_full_disk_says_what_it_found(option: str, full: bool, code: int) -> None:
    program = (
        "import sys; from fsdecloud.cli import fsck; from fsdecloud.driver.fsck import Report;"
        "from fsdecloud.fs.findings import Finding; report = Report([Finding('links', 'wrong ' * 9)] * int(sys.argv.pop()));"
        "fsck.check = lambda *_arguments: report; fsck.main(sys.argv[1:])"
    )
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as closed, open("/dev/full", "w") as no_room:
        done = subprocess.run(
            [sys.executable, "-c", program, "docs", option, "1" if full else "5000"],
            stdin=subprocess.DEVNULL,
            stdout=no_room if full else closed,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
            timeout=60,
        )
    assert (done.returncode, "Traceback" in done.stderr) == (code, False)


def decloud(
    *arguments: str, home: Path, stdout: int | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "FSDECLOUD_HOME": os.fspath(home), **environment}
    program = Path(sys.executable).with_name("decloud")
    return subprocess.run(
        [program, *arguments], stdin=subprocess.DEVNULL, stdout=stdout or subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, env=env, check=False, timeout=60,
    )  # fmt: skip


def test_163_output_to_a_full_disk_is_an_error(tmp_path: Path) -> None:
    with open("/dev/full", "w") as full:
        done = decloud("--help", home=tmp_path, stdout=full.fileno())
    assert done.returncode == 2
    assert done.stderr == "decloud: No space left on device\n"


def test_163_output_to_a_closed_pipe_is_quiet(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = decloud("--help", home=tmp_path, stdout=writer)
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("locale", ["C", "POSIX", "tr_TR.UTF-8"])
def test_165_any_locale_and_terminal(tmp_path: Path, locale: str) -> None:
    for arguments in (["--help"], ["mount", "--help"], ["status"]):
        done = decloud(*arguments, home=tmp_path, LC_ALL=locale, LANG=locale, TERM="dumb", COLUMNS="20", NO_COLOR="1")
        assert (done.returncode, done.stderr) == (1 if arguments == ["status"] else 0, "")
        assert "\x1b" not in done.stdout


def test_nothing_is_mounted(tmp_path: Path) -> None:
    done = decloud("status", home=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (1, "ledger not running\nno volume is mounted\n", "")
    assert list(tmp_path.iterdir()) == []


def test_167_a_relative_home_is_refused(tmp_path: Path) -> None:
    done = decloud("status", home=Path("relative"))
    assert done.returncode == 1
    assert done.stderr == "decloud: FSDECLOUD_HOME must be an absolute path, not 'relative'\n"
    assert list(tmp_path.iterdir()) == []
