"""Every image that the tests start: pulled where a registry can be reached, else made of what this machine has; ours is built.

Grafana's cannot be made here, so it is started only where it can be pulled.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests.docker import base
from tests.docker.engine import Engine

PYTHON = f"python:{base.VERSION}-slim"
LIKE_THE_REAL_ONE = """\
FROM {archive}
ENV PATH=/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8
RUN ldconfig
CMD ["python3"]
"""
MONITOR = """\
FROM {python}
COPY bin/ /bin/
COPY share/ /usr/share/prometheus/
RUN install --directory --owner=nobody --group=nogroup /{name}
USER nobody
VOLUME ["/{name}"]
WORKDIR /{name}
ENTRYPOINT ["/bin/{name}"]
"""
PROGRAMS = {
    "prometheus": {"prometheus": "prometheus", "promtool": "promtool"},
    "alertmanager": {"prometheus-alertmanager": "alertmanager", "amtool": "amtool"},
}
"""What Debian calls a program, and what its image does."""


STAND_IN = "rewardserve.test"
"""The label of what is not what its name says."""


class NoImage(Exception):
    """It can be neither pulled nor made; the message says why."""


def python(engine: Engine) -> str:
    """What our Dockerfile begins with. Raise `NoImage`."""
    if engine.can_pull(PYTHON):
        return "as its registry has it"
    with tempfile.TemporaryDirectory() as folder:
        archive = Path(folder) / "base.tar"
        try:
            base.write(archive)
        except base.NoBase as error:
            raise NoImage(f"{PYTHON} cannot be pulled, and not be made either: {error}") from None
        engine.run("import", archive, "rewardserve-test-base", timeout=300)
        (Path(folder) / "Dockerfile").write_text(LIKE_THE_REAL_ONE.format(archive="rewardserve-test-base"))
        archive.unlink()
        engine.build(folder, "--label", f"{STAND_IN}=yes", "--tag", PYTHON)
    return "made of this machine's own files"


def monitor(engine: Engine, name: str, image: str) -> str:
    """Prometheus or Alertmanager. Raise `NoImage`."""
    if engine.can_pull(image):
        return "as its registry has it"
    with tempfile.TemporaryDirectory() as folder:
        programs = Path(folder) / "bin"
        programs.mkdir()
        for debian, theirs in PROGRAMS[name].items():
            found = shutil.which(debian)
            if found is None:
                raise NoImage(
                    f"{image} cannot be pulled, and {debian} is not installed (Debian: prometheus-alertmanager)"
                )
            shutil.copy(found, programs / theirs)
        share = Path("/usr/share/prometheus")
        shutil.copytree(share, Path(folder) / "share") if share.is_dir() else (Path(folder) / "share").mkdir()
        (Path(folder) / "Dockerfile").write_text(MONITOR.format(python=PYTHON, name=name))
        engine.build(folder, "--label", f"{STAND_IN}=yes", "--tag", image)
    return "made of Debian's programs"


def ours(engine: Engine, checkout: Path, packages: Sequence[str], tag: str, *arguments: str) -> str:
    """The Dockerfile of the checkout, with what `packages.build_arguments` gives. What the build said."""
    return engine.build(checkout, "--tag", tag, *packages, *arguments)


def forget_stand_ins(engine: Engine) -> None:
    """Nobody is to take them for the real ones when the tests are over."""
    listed = ("images", "--filter", f"label={STAND_IN}", "--format", "{{.Repository}}:{{.Tag}}")
    for tag in {*engine.run(*listed).split(), "rewardserve-test-base"}:
        engine.run("rmi", "--no-prune", tag, check=False)
