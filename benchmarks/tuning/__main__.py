"""``python -m benchmarks.tuning [LETTERS] [--seeds N]``: against the peers; puts each section into RESULTS.md."""

from __future__ import annotations

import argparse
import datetime
import re
from pathlib import Path

from benchmarks.harness import machine
from benchmarks.tuning.sections import SECTIONS

RESULTS = Path(__file__).parent / "RESULTS.md"
HEAD = """# Tuning, measured

Every method has the same seeds and an initial design of d + 2 points; peers are at their defaults. Defaults of ems were
chosen on the problems of `DEVELOPED`, the rule of promotions on synthetic curves over them (`curves.py`); those below
were held out. Intervals are bootstrapped, 95 %. One BLAS thread.
`make bench-tuning` measures all of it again, `make bench-tuning ARGS=ae` two sections.
"""


def main() -> int:
    """Measure the sections asked for."""
    parser = argparse.ArgumentParser(prog="benchmarks.tuning", description=__doc__)
    parser.add_argument("letters", nargs="?", default="".join(SECTIONS))
    parser.add_argument("--seeds", type=int, default=20)
    options = parser.parse_args()
    for letter in options.letters:
        text = SECTIONS[letter](options.seeds).as_markdown(letter)
        today = datetime.datetime.now(tz=datetime.UTC).date()
        text = f"{text.rstrip()}\n\n{machine()}, {today}, {options.seeds} seeds.\n"
        print(text, flush=True)
        put(letter.upper(), text)
    return 0


def put(letter: str, text: str) -> None:
    """Replace a section of RESULTS.md, or add it in its place."""
    old = RESULTS.read_text() if RESULTS.exists() else HEAD
    parts = {part[3]: part for part in re.split(r"(?m)^(?=## )", old)[1:]} | {letter: text}
    RESULTS.write_text("\n".join([HEAD, *(parts[each].rstrip() + "\n" for each in sorted(parts))]))


if __name__ == "__main__":
    raise SystemExit(main())
