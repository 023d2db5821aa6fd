"""Shell scripts and editors behave in the mount as in a plain directory: each runs in both, then both are compared."""

from __future__ import annotations

from typing import Any

import pytest

from tests.cluster.harness import Network
from tests.programs.support import Places, same


def test_editor(network: Network, places: Places) -> None:
    there, here = (network.worker("editor", place) for place in places)
    assert here["all_right"]
    assert there == here
    same(network, *places)


def test_vim(network: Network, places: Places) -> None:
    for place in places:
        network.run("sh", "-c", "printf 'one\\ntwo\\nthree\\n' > text; chmod 600 text; ln text other", cwd=place)
        for _ in range(2):
            save = (
                "vim.tiny",
                "-u",
                "NONE",
                "-N",
                "-es",
                "-c",
                "set backup writebackup",
                "-c",
                "%s/o/0/e",
                "-c",
                "wq",
                "text",
            )
            network.run(*save, cwd=place)
        network.run("sh", "-c", "rm -f *~ .*.un~ .viminfo", cwd=place)
    same(network, *places)
    assert network.run("cat", places[0] / "text").out == "0ne\ntw0\nthree\n"


XATTR = """
import os
open("f", "w").close()
os.setxattr("f", "user.a", b"1")
os.setxattr("f", "user.b", b"")
print(sorted(os.listxattr("f")), os.getxattr("f", "user.a"))
os.removexattr("f", "user.a")
for call in (lambda: os.getxattr("f", "user.a"), lambda: os.setxattr("f", "user.b", b"", os.XATTR_CREATE)):
    try:
        call()
    except OSError as exc:
        print(exc.errno)
os.setxattr("f", "user.b", bytes(2000), os.XATTR_REPLACE)
print(os.listxattr("f"), len(os.getxattr("f", "user.b")))
"""

MMAP = """
import mmap
with open("f", "w+b") as file:
    file.truncate(9999)
    with mmap.mmap(file.fileno(), 0) as view:
        view[5000:5003] = b"abc"
        view.flush()
print(open("f", "rb").read().index(b"abc"))
"""

FALLOCATE = """
import os
fd = os.open("f", os.O_RDWR | os.O_CREAT)
os.posix_fallocate(fd, 0, 100000)
print(os.fstat(fd).st_size)
"""

SHELL: dict[str, str] = {
    "open_truncates": "echo long text > f; echo short > f; cat f",
    "append": "for i in 1 2 3; do echo $i >> f; done; cat f",
    "sparse": "truncate -s 5M f; printf x | dd of=f bs=1 seek=2M conv=notrunc status=none; sha256sum f; stat -c %s f",
    "unlink_open": "exec 3<>f; echo data >&3; rm f; ls; cat /proc/self/fd/3; stat -L -c %h /proc/self/fd/3",
    "rename_directory": "mkdir -p a/b; echo x > a/b/c; mv a z; cat z/b/c; mkdir t; mv -T z t; ls t",
    "rename_over_nonempty": "mkdir -p a b/c; mv -T a b 2>&1; echo $?",
    "rename_into_itself": "mkdir -p a/b; mv a a/b/c 2>&1; echo $?",
    "hard_links": "echo x > a; ln a b; echo y >> b; cat a; stat -c %h a b; rm a; stat -c %h b",
    "symlinks": "ln -s nowhere l; readlink l; cat l 2>&1; ln -sfn /tmp l; readlink l; stat -c %s l",
    "exclusive": "set -C; echo a > f; (echo b > f) 2>/dev/null; echo $?; cat f",
    "permissions": "touch f; chmod 000 f; stat -c %a f; chmod u=rwx,g=s f; stat -c %A f; mkdir d; chmod 1777 d; stat -c %A d",
    "owners": "echo x > f; chown 1234:4321 f; stat -c '%u %g' f; chmod 6755 f; chown 1:1 f; stat -c '%A' f",
    "setgid_directory": "mkdir d; chown :4321 d; chmod g+s d; touch d/f; mkdir d/e; stat -c '%g %A' d/f d/e",
    "umask": "umask 027; touch f; mkdir d; stat -c %a f d; umask 777; touch g; stat -c %a g",
    "names": "touch -- -dash 'sp ace' 'quote\"s' $'new\\nline' .hidden; ls -1A --quoting-style=c",
    "name_too_long": "n=$(printf 'n%.0s' {1..255}); touch $n && touch n$n 2>/dev/null; echo $?; ls | wc -c",
    "many": "seq 1 700 | xargs touch; ls | wc -l; ls | sort -n | sha256sum; seq 1 2 700 | xargs rm; ls | wc -l",
    "fifo": "mkfifo p; (echo through > p &); cat p; stat -c %F p",
    "touch_times": "touch -d '2001-02-03 04:05:06.123456789' f; stat -c '%y' f; touch -r f g; stat -c '%y' g",
    "mtime_of_directory": "mkdir d; touch -d 2000-01-01 d; touch d/x; [ $(stat -c %Y d) -gt 1000000000 ]; echo $?",
    "copy_range": "head -c 3000000 /dev/zero | tr '\\0' 'q' > a; cp --reflink=auto a b; cmp a b; echo $?",
    "direct": "head -c 1048576 /dev/zero > f; dd if=f of=g bs=65536 oflag=direct status=none; cmp f g; echo $?",
    "locks": "touch f; flock f -c 'flock -n f -c true || echo busy'; flock -n f -c 'echo free'",
    "working_directory": "mkdir d; cd d; mv ../d ../e; pwd -P | sed 's/.*\\///'; touch x; ls ../e",
    "removed_directory": "mkdir d; cd d; rmdir ../d; touch x 2>/dev/null; echo $?; ls",
    "find_and_du": "mkdir -p a/b; head -c 200000 /dev/zero > a/b/f; find . -type f -size +100k; du --apparent-size -B1 a/b/f",
    "statfs": "df --output=target . | tail -1 | wc -l; stat -f -c %l .",
    "xattr": f"python3 -c '{XATTR}'",
    "mmap": f"python3 -c '{MMAP}'",
    "fallocate": f"python3 -c '{FALLOCATE}'",
}


@pytest.mark.parametrize("name", SHELL)
def test_shell(network: Network, places: Places, name: str) -> None:
    """The same script in both places says the same and leaves the same."""
    answers: list[Any] = []
    for place in places:
        result = network.run("bash", "-c", SHELL[name], cwd=place, check=False, deadline=30)
        answers.append((result.code, result.out.replace(str(place), "PLACE"), result.err.replace(str(place), "PLACE")))
    assert answers[0] == answers[1]
    same(network, *places)
