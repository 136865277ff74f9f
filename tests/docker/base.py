"""`python:3.11-slim` where no registry can be reached: this machine's own Debian packages and its own Python, as one archive.

Stands in for the real image in tests and nowhere else. What is in it beside Python: Debian's required packages, apt with its
sources, and the libraries that Python's extension modules are linked with. The list of installed packages is cut down to
these, so `apt-get install` in it finds that there is no compiler, and installs one.
"""

from __future__ import annotations

import platform
import re
import subprocess
import sys
import sysconfig
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

VERSION = "3.11"
BESIDE = ("apt", "ca-certificates", "netbase", "tzdata", "openssl", "zlib1g", "libbz2-1.0", "libexpat1", "libffi8", "libgdbm6",
          "liblzma5", "libncursesw6", "libreadline8", "libsqlite3-0", "libuuid1", "libnsl2", "libdb5.3")  # fmt: skip
"""What Python's modules are linked with, and what `apt-get` and certificates need."""

UNREAD = ("/usr/share/doc", "/usr/share/man", "/usr/share/locale", "/usr/share/info")
SOURCES = ("/etc/apt/sources.list", "/etc/apt/sources.list.d/debian.sources", "/etc/ssl/certs", "/etc/ca-certificates.conf",
           "/usr/local/share/ca-certificates")  # fmt: skip
LINKS = ("/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")
FOLDERS = ("dev", "etc/apt/apt.conf.d", "etc/apt/preferences.d", "home", "opt", "proc", "root", "run", "sys", "tmp",
           "var/cache/apt/archives/partial", "var/lib/apt/lists/partial", "var/lib/dpkg/triggers", "var/lib/dpkg/updates",
           "var/log/apt", "var/tmp")  # fmt: skip
"""Those that no file is in, or that no package brings."""

INFO = Path("/var/lib/dpkg/info")
FORMAT = "${Package}\t${Architecture}\t${Essential}\t${Priority}\t${Pre-Depends}, ${Depends}\n"


class NoBase(Exception):
    """The image cannot be made here; the message says what is missing."""


@dataclass(frozen=True, slots=True)
class Package:
    """One that is installed on this machine."""

    name: str
    architecture: str
    is_required: bool
    needs: tuple[str, ...]

    def info(self) -> list[Path]:
        """What dpkg keeps of it: the list of its files, the scripts of its installation."""
        return sorted({*INFO.glob(f"{self.name}.*"), *INFO.glob(f"{self.name}:{self.architecture}.*")})


def write(archive: Path) -> None:
    """Write the root file system. Raise `NoBase`."""
    if platform.python_version_tuple()[:2] != tuple(VERSION.split(".")):
        raise NoBase(f"it is made of this Python, which is {platform.python_version()} and not {VERSION}")
    if sys.base_prefix == "/usr":
        raise NoBase("this Python is Debian's own and cannot be taken out of /usr")
    try:
        listed = subprocess.run(["dpkg-query", "-W", "-f", FORMAT], capture_output=True, text=True, check=True).stdout
    except FileNotFoundError:
        raise NoBase("this machine has no dpkg") from None
    chosen = closure({package.name: package for package in parse(listed)}, BESIDE)
    with tarfile.open(archive, "w") as tar:
        _folders(tar)
        for path in sorted({*debian_files(chosen)}):
            tar.add(path, path.lstrip("/"), recursive=False)
        for path in SOURCES:
            if Path(path).exists():
                tar.add(path, path.lstrip("/"))
        _text(tar, "var/lib/dpkg/status", status_of(chosen, Path("/var/lib/dpkg/status").read_text()))
        for name in ("passwd", "group"):
            _text(tar, f"etc/{name}", Path(f"/usr/share/base-passwd/{name}.master").read_text())
        _text(tar, "etc/pip.conf", "[global]\ncert = /etc/ssl/certs/ca-certificates.crt\n")
        _python(tar, Path(sys.base_prefix))


def parse(listed: str) -> Iterator[Package]:
    """The lines of `dpkg-query`. Every alternative counts among what a package needs: which one was taken is not told."""
    for line in listed.splitlines():
        name, architecture, essential, priority, needs = line.split("\t")
        named = (each.split("(")[0].split(":")[0].strip() for each in re.split("[,|]", needs))
        required = essential == "yes" or priority == "required"
        yield Package(name, architecture, required, tuple(each for each in named if each))


def closure(installed: dict[str, Package], wanted: Iterable[str]) -> list[Package]:
    """The required packages, those wanted, and all that they need."""
    waiting = [*wanted, *(package.name for package in installed.values() if package.is_required)]
    chosen: dict[str, Package] = {}
    while waiting:
        name = waiting.pop()
        if name in installed and name not in chosen:  # a virtual package is one that another provides
            chosen[name] = installed[name]
            waiting += installed[name].needs
    return sorted(chosen.values(), key=lambda package: package.name)


def debian_files(packages: Iterable[Package]) -> Iterator[str]:
    """Every file and link of these packages where it really lies, what dpkg keeps of them, and what Debian links to them."""
    yield from (link for link in LINKS if Path(link).is_symlink())
    found = set()
    for package in packages:
        for kept in package.info():
            yield str(kept)
            if kept.suffix == ".list":
                found |= set(_there(kept.read_text().splitlines()))
    yield from found
    for link in Path("/etc/alternatives").iterdir():
        if str(link.resolve()) in found:
            yield str(link)
            yield from _named(link, found)


def _there(listed: Iterable[str]) -> Iterator[str]:
    for line in listed:
        path = Path(line)
        if line.startswith(UNREAD) or not (path.is_symlink() or path.is_file()):
            continue
        yield str(path.parent.resolve() / path.name)  # /bin/ls lies in /usr/bin


def _named(alternative: Path, found: set[str]) -> Iterator[str]:
    """The links in the folders of programs that lead to this alternative."""
    for folder in {str(Path(path).parent) for path in found if path.endswith(alternative.resolve().name)}:
        name = Path(folder) / alternative.name
        if name.is_symlink() and str(name.readlink()) == str(alternative):
            yield str(name)


def status_of(packages: Iterable[Package], status: str) -> str:
    """dpkg's list of what is installed, cut down to these packages."""
    names = {(package.name, package.architecture) for package in packages}
    kept = []
    for entry in status.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in entry.splitlines() if line[:1].strip() and ": " in line)
        if (fields.get("Package"), fields.get("Architecture")) in names:
            kept.append(entry.strip("\n"))
    return "\n\n".join(kept) + "\n"


def _python(tar: tarfile.TarFile, prefix: Path) -> None:
    """Python and pip under /usr/local, where the real image has them."""
    library = f"lib/python{VERSION}"
    shared = sysconfig.get_config_var("INSTSONAME")
    tar.add(prefix / f"bin/python{VERSION}", f"usr/local/bin/python{VERSION}")
    for name in ("python", "python3"):
        _link(tar, f"usr/local/bin/{name}", f"python{VERSION}")
    if (prefix / "lib" / shared).is_file():
        tar.add(prefix / "lib" / shared, f"usr/local/lib/{shared}")
    tar.add(prefix / "include", "usr/local/include")
    tar.add(prefix / library, f"usr/local/{library}", filter=_not_a_test_nor_a_package)
    for name in ("pip", "setuptools", "_distutils_hack", "distutils-precedence.pth", "pkg_resources"):
        for path in sorted((prefix / library / "site-packages").glob(f"{name}*")):
            tar.add(path, f"usr/local/{library}/site-packages/{path.name}", filter=_no_bytecode)
    pip = '#!/bin/sh\nexec /usr/local/bin/python3 -m pip "$@"\n'
    _text(tar, "usr/local/bin/pip", pip, mode=0o755)


def _no_bytecode(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
    return None if "__pycache__" in member.name else member


def _not_a_test_nor_a_package(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
    below = member.name.partition(f"python{VERSION}/")[2]
    unwanted = below.startswith(("test/", "site-packages/", "idlelib/", "turtledemo/", "config-"))
    return None if unwanted or member.name.endswith(".a") else _no_bytecode(member)


def _folders(tar: tarfile.TarFile) -> None:
    for name in FOLDERS:
        member = tarfile.TarInfo(name)
        member.type, member.mode = tarfile.DIRTYPE, 0o1777 if name.endswith("tmp") else 0o755
        tar.addfile(member)


def _link(tar: tarfile.TarFile, name: str, to: str) -> None:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = tarfile.SYMTYPE, to
    tar.addfile(member)


def _text(tar: tarfile.TarFile, name: str, text: str, mode: int = 0o644) -> None:
    content = text.encode()
    member = tarfile.TarInfo(name)
    member.size, member.mode = len(content), mode
    tar.addfile(member, BytesIO(content))
