"""Contents of docker-compose.yml and the Dockerfile, with the defaults of their variables substituted."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[2]
VARIABLE = re.compile(r"\$\{(\w+)(?::-([^}]*))?\}")


def with_defaults(value):
    """A string as it is where no variable is set; anything else as it is."""
    return VARIABLE.sub(lambda found: found.group(2) or "", value) if isinstance(value, str) else value


def compose():
    """The whole file."""
    return yaml.safe_load((ROOT / "docker-compose.yml").read_text())


def variables():
    """Every variable of the file, which `.env` may set."""
    return {found.group(1) for found in VARIABLE.finditer((ROOT / "docker-compose.yml").read_text())}


def servers():
    """The services that answer as `rewardserve`."""
    return {name: each for name, each in compose()["services"].items() if name.startswith("rewardserve")}


def mounted(service):
    """(source, target) of each folder or file of the checkout that a service mounts."""
    for volume in service.get("volumes", ()):
        if isinstance(volume, dict):
            source, target = with_defaults(volume["source"]), volume["target"]
        else:
            source, target, *_ = with_defaults(volume).split(":")
        if source.startswith((".", "/")):
            yield source, target


def dockerfile():
    """Its instructions: (word, the rest), with continued lines joined and comments left out."""
    text = (ROOT / "Dockerfile").read_text()
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    return [(word, rest.strip()) for word, _, rest in (line.partition(" ") for line in joined.splitlines()) if word]


def stages():
    """The instructions of each stage, by its name."""
    found: dict[str, list[tuple[str, str]]] = {}
    for word, rest in dockerfile():
        if word == "FROM":
            here = found.setdefault(rest.rpartition(" ")[2], [])
        elif found:
            here.append((word, rest))
    return found
