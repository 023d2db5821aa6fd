"""The text after `-o` (faults 125, 137, 159, 160, 161)."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fsdecloud.errors import UsageError
from fsdecloud.mountoptions import (
    _FLAGS,
    _KERNEL,
    _VALUES,
    IGNORED,
    IGNORED_PREFIXES,
    SECRET_WORDS,
    MountOptions,
    describe_options,
    format_options,
    parse_options,
    split_options,
)


def parse(text: str) -> MountOptions:
    options, unknown = parse_options(text)
    assert unknown == ()
    return options


def test_defaults() -> None:
    assert parse("") == MountOptions()
    assert parse("defaults,rw") == MountOptions()
    assert format_options(MountOptions()) == ""


def test_ours() -> None:
    options = parse(
        "ro,allow_other,foreground,cache_size=1G,stage-size=2GiB,timeout=30,nowriteback,noexec,fsname=decloud:a"
    )
    assert options == MountOptions(
        read_only=True, allow_other=True, foreground=True, cache_size=1 << 30, stage_size=2 << 30, timeout=30.0,
        writeback=False, kernel=("noexec",), fsname="decloud:a",
    )  # fmt: skip


def test_159_what_mount_does_not_strip_is_ignored() -> None:
    for option in IGNORED:
        assert parse(option) == MountOptions(), option
    assert (
        parse("_netdev,nofail,x-systemd.automount,x-systemd.idle-timeout=10min,comment=a,subtype=decloud")
        == MountOptions()
    )


def test_159_unknown_options_are_named() -> None:
    with pytest.raises(UsageError, match="'cache_sise'; did you mean 'cache_size'") as caught:
        parse("rw,cache_sise=1G")
    assert caught.value.exit_code == 1
    assert parse_options("cache_sise=1G,ro,zzz", sloppy=True) == (MountOptions(read_only=True), ("cache_sise", "zzz"))


@pytest.mark.parametrize(
    "text", ["cache_size", "cache_size=", "cache_size=-1", "cache_size=1", "timeout=0", "passfile=rel", "ro=1"]
)
def test_159_values_are_checked(text: str) -> None:
    with pytest.raises(UsageError, match=text.partition("=")[0]):
        parse(text)


@pytest.mark.parametrize("name", [*SECRET_WORDS, "Password".lower()])
def test_125_a_secret_is_refused_and_not_repeated(name: str) -> None:
    with pytest.raises(UsageError, match="every process") as caught:
        parse_options(f"{name}=hunter2", sloppy=True)
    assert "hunter2" not in str(caught.value)


def test_remount_is_refused() -> None:
    with pytest.raises(UsageError, match="unmount it and mount it again"):
        parse_options("remount,ro", sloppy=True)


def test_the_last_word_counts() -> None:
    assert parse("ro,rw") == MountOptions()
    assert parse("noexec,nosuid,exec").kernel == ("nosuid",)
    assert parse("noatime,nodiratime,diratime") == MountOptions(atime="noatime")
    assert parse("noatime,strictatime,nostrictatime,nodiratime") == MountOptions(nodiratime=True)
    options, _ = parse_options("rw,suid", base=MountOptions(read_only=True, kernel=("nosuid", "nodev")))
    assert options == MountOptions(kernel=("nodev", "suid"))
    assert parse("nosuid,suid,dev,dev").kernel == ("suid", "dev")
    assert parse("suid,nosuid").kernel == ("nosuid",)


@pytest.mark.parametrize(
    ("text", "items"),
    [
        ("a,b", ["a", "b"]),
        (r"a\,b", ["a,b"]),
        ('a="x,y",b', ["a=x,y", "b"]),
        (r"a=\\", ["a=\\"]),
        ("", [""]),
        ("a,,b", ["a", "", "b"]),
    ],
)
def test_160_commas_quotes_backslashes(text: str, items: list[str]) -> None:
    assert list(split_options(text)) == items


@pytest.mark.parametrize("text", ["a\\", 'a="b', "passfile=/a\0b", "fsname=a\nb", "fsname=\x1b[2J"])
def test_160_broken_text_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse(text)


printable = st.text(
    st.characters(min_codepoint=33, max_codepoint=0x2FFF, exclude_categories=["Cs", "Cc", "Zs", "Zl", "Zp"]), min_size=1
)


@given(
    st.builds(
        MountOptions,
        read_only=st.booleans(), allow_other=st.booleans(), foreground=st.booleans(), nonempty=st.booleans(),
        writeback=st.booleans(), cache_size=st.integers(64 << 20, 1 << 60), stage_size=st.integers(64 << 20, 1 << 60),
        timeout=st.integers(1, 3600).map(float), attr_timeout=st.integers(0, 86400000).map(lambda n: n / 1000),
        entry_timeout=st.integers(0, 86400).map(float), mount_timeout=st.integers(1, 3600).map(float),
        fsname=printable | st.just(""), credential=printable, passfile=printable.map(lambda s: "/" + s),
        kernel=st.lists(st.sampled_from(["noexec", "nosuid", "dev", "sync", "dirsync"]), unique=True).map(tuple),
        up=st.none() | st.just(0) | st.integers(32 << 10, 1 << 60), down=st.none() | st.integers(32 << 10, 1 << 60),
        acl=st.booleans(), nodiratime=st.booleans(), atime=st.sampled_from(["relatime", "strictatime", "noatime"]),
    )
)  # fmt: skip
def test_160_every_option_survives_the_round_trip(options: MountOptions) -> None:
    assert parse(format_options(options)) == options


@given(st.text(max_size=40))
def test_any_text_gives_options_or_a_usage_error(text: str) -> None:
    with contextlib.suppress(UsageError):
        parse_options(text)


def test_every_described_option_exists() -> None:
    for spelled, description in describe_options():
        assert description
        if not spelled.endswith("=…"):
            parse(spelled)


def test_the_manual_names_what_is_accepted_and_nothing_else() -> None:
    page = (Path(__file__).parents[2] / "man" / "mount.decloud.8").read_text()
    listed, ignored = re.split(
        r"^Ignored are$", page.partition(".Ss Mount options\n")[2].partition("\n.Ss ")[0], flags=re.MULTILINE
    )
    words: set[str] = set()
    for line in re.findall(r"^\.It Cm (.*)$", listed, re.MULTILINE):
        names, _, more = line.partition(" No ")
        for name in names.split(" , "):
            word, equals, _value = name.removeprefix("Cm ").partition(" Ns = Ns Ar ")
            assert bool(equals) == (word in _VALUES), word
            words.add(word)
            if more == "and their opposites" and _KERNEL[word]:
                words.add(_KERNEL[word])
    assert words == {*_FLAGS, *_VALUES, *_KERNEL, *filter(None, _KERNEL.values())}
    plain, begins = ignored.split("and everything that begins with")
    assert set(re.findall(r"[a-z_]+", plain.replace(".Cm", ""))) == IGNORED - {""}
    assert set(re.findall(r"[A-Za-z]+[-=]", begins)) == set(IGNORED_PREFIXES)
