"""`python -m tests.architectures [NAME ...]`: sweep the architectures, write docs/reference/architectures.md (only without names).

Exit code 1: an engine was chosen that gives other scores.
"""

from __future__ import annotations

import argparse
import signal
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
import transformers

from tests.architectures.build import ENCODER_DECODERS, ENCODERS, cases
from tests.architectures.sweep import TOLERANCE, Outcome, outcome

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "architectures.md"
LIMIT_S = 120

_HEAD = """# Architectures and their engines

`make test-architectures` writes this page: a tiny model with random weights of every text decoder that transformers
{transformers} makes a causal language model of (torch {torch}, float32, on a CPU), with a value head, through the engine that the
server chooses for it at load, against a plain forward of each row alone. The rows share prompts, are equal, have one token, go
beyond windows, chunks and the lengths at which rotary angles change, and come in batches and with cached prefixes, short
ones first and long ones first.

- **packed**: rows without padding, common prefixes once. **padded**: one padded batch. **one_by_one**: every row has a separate
  forward, because both of the others give other scores; slower, and right. **refused**: the model is not served.
- *padding* says whether a padded batch would be right (`REWARD_ENGINE=padded`; where it is wrong, rows go one by one there too).
- *difference* is the largest between the score and that of the plain forward, divided by the largest score where that is
  above 1. {tolerance:.0e} is allowed.
- The engine of your checkpoint is chosen by the same check on its own weights, not by this table: `GET /model` has `engine` and
  `engine_notes`.
- The check has some rows; your rows may differ by more where float32 itself is that coarse. That is so with the gated
  delta rule (qwen3_next, qwen3_5, olmo_hybrid and others), which is computed in chunks: padding moves their
  borders. Of eight tiny models each of qwen3_next and qwen3_5_text, with scores up to 3.7, padded rows differed from
  plain forwards by up to 3.3e-05, and the plain forwards themselves from float64 by up to 8.0e-05: neither of the two is
  nearer to it. With `REWARD_DETERMINISTIC=1` every row has a separate forward: the plain one.

| architecture | engine | padding | difference | why |
|---|---|---|---|---|
"""


def main() -> int:
    """Run the sweep. Return the exit code: 1 where an engine gives other scores."""
    parser = argparse.ArgumentParser(prog="python -m tests.architectures", description=__doc__)
    parser.add_argument("names", nargs="*", help="only these, and write nothing")
    names = parser.parse_args().names
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    signal.signal(signal.SIGALRM, _too_long)
    done: list[Outcome] = []
    not_tried: dict[str, str] = {}
    for case in cases():
        if names and case.name not in names:
            continue
        signal.alarm(LIMIT_S)
        try:
            done.append(outcome(case))
            print(*_cells(done[-1]), sep=" | ", flush=True)
        except Exception as error:  # transformers may raise anything
            not_tried[case.name] = f"{type(error).__name__}: {error}"
            print(case.name, not_tried[case.name][:200].replace("\n", " "), sep=" | ", flush=True)
        finally:
            signal.alarm(0)
    if not names:
        PAGE.write_text(page(done, not_tried))
    wrong = [each.name for each in done if not each.is_right]
    print(f"{len(done)} architectures, {len(wrong)} wrong {wrong}, {len(not_tried)} could not be made")
    return 1 if wrong else 0


def page(done: list[Outcome], not_tried: dict[str, str]) -> str:
    """The page in Markdown."""
    head = _HEAD.format(
        transformers=transformers.__version__, torch=torch.__version__.split("+")[0], tolerance=TOLERANCE
    )
    lines = ["| " + " | ".join(_cells(each)) + " |" for each in done]
    rest = [
        "\n## Not tried",
        "Encoder-decoders and encoders, whose causal form is not what transformers loads as a base model: "
        + ", ".join(sorted(ENCODER_DECODERS | ENCODERS)) + ".",
    ]  # fmt: skip
    rest += [f"- {name}: no tiny model ({_short(why)})" for name, why in not_tried.items()]
    return head + "\n".join(lines) + "\n" + "\n".join(rest) + "\n"


def _cells(each: Outcome) -> tuple[str, ...]:
    difference = "" if each.engine == "refused" else f"{each.difference:.0e}"
    return each.name, each.engine, each.padding, difference, _short(each.why)


def _short(text: str) -> str:
    line = " ".join(text.split()).replace("|", "/")
    return line if len(line) <= 240 else f"{line[:237]}..."


def _too_long(*_: Any) -> None:
    raise TimeoutError(f"more than {LIMIT_S} s")


if __name__ == "__main__":
    sys.exit(main())
