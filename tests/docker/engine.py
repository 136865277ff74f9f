"""A Docker engine to test with: the machine's own where one answers, else a dockerd of ours, and nothing of it afterwards.

Ours keeps all that it has in one folder. What it does to the network of the machine (a bridge, chains of iptables, a policy of
forwarding) is undone when it ends, but for what was there before. Knows nothing of RewardServe.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PATIENCE_S = 60.0
BUILD_S = 1500.0
TABLES = ("filter", "nat")
MARK = re.compile(r"docker0|br-[0-9a-f]{12}|DOCKER[\w-]*")
"""What the bridges and the chains of an engine are called."""
FOLDER = "rewardserve-docker-"
FORWARDING = Path("/proc/sys/net/ipv4/ip_forward")


class NoEngine(Exception):
    """There is none and none can be started; the message says why."""


@dataclass(frozen=True, slots=True)
class Engine:
    """How to speak to a running engine. `is_ours`: we have started it."""

    client: str
    environment: dict[str, str]
    is_ours: bool

    def run(self, *arguments, check=True, timeout=PATIENCE_S, folder=None, env=None):
        """`docker` with these arguments. What it wrote, both streams together, if it must succeed; else the process."""
        done = subprocess.run(
            [self.client, *map(str, arguments)], cwd=folder, env=self.environment | (env or {}), timeout=timeout,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, text=True, check=False,
        )  # fmt: skip
        if not check:
            return done
        assert done.returncode == 0, f"docker {' '.join(map(str, arguments))}: {done.stdout[-4000:]}"
        return done.stdout

    def build(self, context, *arguments):
        """BuildKit, on the network of this machine. What it said."""
        return self.run(
            "build", "--progress", "plain", "--network", "host", *arguments, context,
            timeout=BUILD_S, env={"DOCKER_BUILDKIT": "1"},
        )  # fmt: skip

    def inspect(self, thing):
        """What the engine knows of a container or an image."""
        return json.loads(self.run("inspect", thing))[0]

    def has(self, image):
        return self.run("image", "inspect", image, check=False).returncode == 0

    def can_pull(self, image):
        """Whether it is here now."""
        return self.has(image) or self.run("pull", "--quiet", image, check=False, timeout=600).returncode == 0


@contextlib.contextmanager
def running(compose: Path) -> Iterator[Engine]:
    """An engine with `docker compose`, which is this program. Raise `NoEngine`."""
    client = builder()
    with tempfile.TemporaryDirectory(prefix=FOLDER) as folder:
        config = Path(folder) / "config"
        (config / "cli-plugins").mkdir(parents=True)
        (config / "cli-plugins/docker-compose").symlink_to(compose)
        environment = os.environ | {"DOCKER_CONFIG": str(config), "BUILDX_CONFIG": str(config / "buildx")}
        for name in ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS", "PIP_TRUSTED_HOST"):
            environment.pop(name, None)  # folders of this machine mean nothing in a container
        there = Engine(client, environment, is_ours=False)
        if there.run("version", check=False).returncode == 0:
            yield there
            return
        with _own(Path(folder)) as socket:
            yield Engine(client, environment | {"DOCKER_HOST": f"unix://{socket}"}, is_ours=True)


def builder() -> str:
    """The first `docker` on the path that can build: one without its plug-in cannot. Raise `NoEngine`."""
    for folder in os.get_exec_path():
        client = shutil.which("docker", path=folder)
        if client and _builds(client):
            return client
    raise NoEngine("there is no docker here that builds with BuildKit (Debian: docker.io)")


def obstacle() -> str | None:
    """The reason why no engine answers and none can be started here; None: there will be one."""
    try:
        client = builder()
        if subprocess.run([client, "version"], capture_output=True, timeout=PATIENCE_S, check=False).returncode:
            _check_startable()
    except NoEngine as error:
        return str(error)
    return None


def _check_startable() -> None:
    if os.geteuid() != 0:
        raise NoEngine("no engine answers, and only root can start one")
    if shutil.which("dockerd") is None:
        raise NoEngine("no engine answers, and there is no dockerd to start (Debian: docker.io)")


def _builds(client: str) -> bool:
    asked = [client, "build", "--help"]
    environment = os.environ | {"DOCKER_BUILDKIT": "1"}
    return subprocess.run(asked, env=environment, capture_output=True, check=False).returncode == 0


@contextlib.contextmanager
def _own(folder: Path) -> Iterator[Path]:
    """The socket of a dockerd of ours. Raise `NoEngine`."""
    _check_startable()
    (folder / "daemon.json").write_text(json.dumps(_settings(folder)))
    command = ["dockerd", "--config-file", str(folder / "daemon.json")]
    before = Network.now()
    with (folder / "log").open("wb") as log:
        # A session of its own: an interrupt from the keyboard is for us, and we end it when we are done with it.
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            _wait_until_it_answers(process, folder / "socket", folder / "log")
            yield folder / "socket"
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(PATIENCE_S)
            _unmount(folder)
            before.restore()


def _settings(folder: Path) -> dict[str, object]:
    return {
        "data-root": str(folder / "data"),
        "exec-root": str(folder / "exec"),
        "pidfile": str(folder / "pid"),
        "hosts": [f"unix://{folder / 'socket'}"],
        "ip": "127.0.0.1",
        # Some machines allow fewer open files than dockerd asks for.
        "default-ulimits": {"nofile": {"Name": "nofile", "Hard": 4096, "Soft": 4096}},
    }


def _wait_until_it_answers(process: subprocess.Popen[bytes], socket: Path, log: Path) -> None:
    for _ in range(int(PATIENCE_S)):
        asked = ["docker", "--host", f"unix://{socket}", "version"]
        if subprocess.run(asked, capture_output=True, check=False).returncode == 0:
            return
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(1)
            raise NoEngine(f"dockerd ended: {last_words(log)}")
    raise NoEngine(f"dockerd does not answer: {last_words(log)}")


def last_words(log: Path) -> str:
    """The end of a log."""
    return " ".join(log.read_text(errors="replace").splitlines()[-3:])[-600:]


def mounts(part: str) -> list[str]:
    """Where something is mounted, of the places with this in their names, the innermost first."""
    lines = Path("/proc/self/mounts").read_text().splitlines()
    return sorted((place for place in (line.split()[1] for line in lines) if part in place), key=len, reverse=True)


def _unmount(folder: Path) -> None:
    for path in mounts(str(folder)):
        subprocess.run(["umount", "--lazy", path], check=False, capture_output=True)


@dataclass(frozen=True, slots=True)
class Network:
    """What an engine changes of a machine's network: links, rules by table, whether it forwards."""

    links: frozenset[str]
    rules: dict[str, list[str]]
    forwards: str

    @classmethod
    def now(cls) -> Network:
        """As it is."""
        links = frozenset(path.name for path in Path("/sys/class/net").iterdir())
        return cls(links, {table: _rules(table) for table in TABLES}, FORWARDING.read_text())

    def left_by_an_engine(self, before: Network) -> list[str]:
        """What has come since `before` and bears an engine's mark. Others may have changed the network meanwhile."""
        rules = [rule for table in TABLES for rule in self.rules[table] if rule not in before.rules[table]]
        return [name for name in (*sorted(self.links - before.links), *rules) if MARK.search(name)]

    def restore(self) -> None:
        """Undo what an engine has done since: rules, then chains, then policies and bridges."""
        for table, rules in self.rules.items():
            added = [rule.split() for rule in _rules(table) if rule not in rules and MARK.search(rule)]
            for kind, instead in (("-A", "-D"), ("-N", "-F"), ("-N", "-X")):
                for rule in (each for each in added if each[0] == kind):
                    _iptables(table, instead, *rule[1:])
            for policy in (rule for rule in rules if rule.startswith("-P FORWARD")):
                _iptables(table, *policy.split())
        for link in filter(MARK.fullmatch, Network.now().links - self.links):
            subprocess.run(["ip", "link", "delete", link], check=False, capture_output=True)
        with contextlib.suppress(OSError):
            FORWARDING.write_text(self.forwards)


def _rules(table: str) -> list[str]:
    return _iptables(table, "-S").splitlines()


def _iptables(table: str, *arguments: str) -> str:
    command = ["iptables", "--wait", "-t", table, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout
