"""make builds a C program in the mount, and only what is needed when a header changes: times are in the right order."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.cluster.harness import Network
from tests.programs.support import Places, same

MAKEFILE = """\
VPATH ?= .
CFLAGS = -std=c11 -O1 -g -Wall -Wextra -Werror -I$(VPATH) -ffile-prefix-map=$(abspath $(VPATH))=src \
  -fdebug-prefix-map=$(CURDIR)=out
SOURCES := $(notdir $(sort $(wildcard $(VPATH)/*.c)))
OBJECTS := $(SOURCES:.c=.o)
program: $(OBJECTS) libparts.a
\t$(CC) -o $@ main.o -L. -lparts
libparts.a: $(filter-out main.o,$(OBJECTS))
\trm -f $@ && ar rcsD $@ $^
%.o: %.c
\t$(CC) $(CFLAGS) -MMD -MP -c -o $@ $<
clean:
\trm -f *.o *.d *.a program
-include $(OBJECTS:.o=.d)
"""


def make_project(directory: Path, parts: int) -> int:
    """Write a program of `parts` modules on a plain disk; return what it prints.

    Part i uses its own header, that of part i / 2 and one that all use.
    """
    chooser = random.Random(parts)
    directory.mkdir()
    (directory / "Makefile").write_text(MAKEFILE)
    (directory / "common.h").write_text(
        "#ifndef COMMON_H\n#define COMMON_H\n#include <stdint.h>\n#include <stdio.h>\n#include <string.h>\n"
        "typedef uint64_t word;\n#define MIX(a, b) (((a) << 7) ^ ((a) >> 9) ^ (b))\n#endif\n"
    )
    values: list[int] = []
    mask = (1 << 64) - 1
    for part in range(parts):
        seed = chooser.randrange(1 << 30)
        other = part // 2
        header = f'#ifndef PART_{part}_H\n#define PART_{part}_H\n#include "common.h"\n#define SEED_{part} {seed}u\n'
        (directory / f"part{part}.h").write_text(f"{header}word part{part}(word n);\n#endif\n")
        table = ", ".join(str(chooser.randrange(1000)) for _ in range(500))
        call = f"part{other}(n)" if other != part else "n"
        (directory / f"part{part}.c").write_text(
            f'#include "part{part}.h"\n#include "part{other}.h"\nstatic const unsigned table[] = {{{table}}};\n'
            f"word part{part}(word n)\n{{\n    word sum = SEED_{part};\n"
            "    for (size_t i = 0; i < sizeof table / sizeof *table; i++)\n        sum = MIX(sum, table[i]);\n"
            f"    return MIX(sum, {call});\n}}\n"
        )
        total = seed
        for number in map(int, table.split(", ")):
            total = ((total << 7) & mask) ^ (total >> 9) ^ number
        before = values[other] if other != part else 5
        values.append(((total << 7) & mask) ^ (total >> 9) ^ before)
    includes = "".join(f'#include "part{part}.h"\n' for part in range(parts))
    calls = "".join(f"    sum += part{part}(5);\n" for part in range(parts))
    (directory / "main.c").write_text(
        f'{includes}int main(void)\n{{\n    word sum = 0;\n{calls}    printf("%llu\\n", (unsigned long long)sum);\n}}\n'
    )
    return sum(values) & mask


def compiled(output: str) -> list[str]:
    """Return which objects make said it compiled."""
    return sorted(line.split(" -o ")[1].split()[0] for line in output.splitlines() if " -c -o " in line)


def build(network: Network, places: Places, parts: int, jobs: int) -> None:
    project = places.outside / "project"
    printed = make_project(project, parts)
    everything = sorted(["main.o", *(f"part{part}.o" for part in range(parts))])
    for place in places:
        network.run("cp", "-a", project, place / "src")
        src = place / "src"
        make = ("make", f"-j{jobs}", "CC=gcc")
        assert compiled(network.run(*make, cwd=src, deadline=180).out) == everything
        assert network.run("./program", cwd=src).out == f"{printed}\n"
        network.run("make", "-q", cwd=src)
        for header, users in (("part3.h", ["main.o", "part3.o", "part6.o", "part7.o"]), ("common.h", everything)):
            network.run("touch", header, cwd=src)
            expected = [name for name in users if name in everything]
            assert compiled(network.run(*make, cwd=src, deadline=180).out) == expected
            network.run("make", "-q", cwd=src)
        network.run("sh", "-c", "touch part5.c; make -q", cwd=src, check=False)
        assert compiled(network.run(*make, cwd=src).out) == ["part5.o"]
        network.run("rm", "part2.o", cwd=src)
        assert compiled(network.run(*make, cwd=src).out) == ["part2.o"]
        assert network.run("./program", cwd=src).out == f"{printed}\n"
        network.run("mkdir", place / "out")
        separate = (*make, "-f", "../src/Makefile", "VPATH=../src")
        network.run("make", "clean", cwd=src)
        assert compiled(network.run(*separate, cwd=place / "out", deadline=180).out) == everything
        assert network.run("./program", cwd=place / "out").out == f"{printed}\n"
        network.run("make", "-q", "-f", "../src/Makefile", "VPATH=../src", cwd=place / "out")
    same(network, places.inside / "out", places.outside / "out")


def test_build(network: Network, places: Places) -> None:
    build(network, places, 8, 4)


@pytest.mark.long
def test_long_build(network: Network, places: Places) -> None:
    build(network, places, 150, 8)


TIMES = """
import os, sys
last, late = 0, []
elsewhere = os.memfd_create("elsewhere")
for i in range(600):
    os.utime(elsewhere)  # with somebody's look in between, this moves the clock of all file systems on
    os.fstat(elsewhere)
    name = f"{i}"
    if i % 3 == 0:
        os.close(os.open(name, os.O_CREAT | os.O_WRONLY))
    elif i % 3 == 1:
        with open(name, "w") as file:
            file.write("x")
    else:
        os.close(os.open(name, os.O_CREAT | os.O_WRONLY))
        os.utime(name)
    now = os.stat(name).st_mtime_ns
    if now < last:
        late.append((i, last - now))
    last = now
print(len(late), late[:3])
"""


def test_no_file_is_older_than_one_made_before_it(network: Network, places: Places) -> None:
    """The kernel stamps what is written, the driver what is made: by one clock, or make would build too little."""
    for place in places:
        assert network.run("python3", "-c", TIMES, cwd=place).out == "0 []\n"
