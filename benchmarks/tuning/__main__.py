"""``python -m benchmarks.tuning [LETTERS] [--seeds N]``: against the peers; writes RESULTS.md when all was run."""

from __future__ import annotations

import argparse
import datetime
from pathlib import Path

from benchmarks.harness import machine
from benchmarks.tuning.sections import SECTIONS, Section

HERE = Path(__file__).parent


def main() -> int:
    """Measure the sections asked for."""
    parser = argparse.ArgumentParser(prog="benchmarks.tuning", description=__doc__)
    parser.add_argument("letters", nargs="?", default="".join(SECTIONS))
    parser.add_argument("--seeds", type=int, default=20)
    options = parser.parse_args()
    parts = []
    for letter in options.letters:
        section: Section = SECTIONS[letter](options.seeds)
        parts.append(section.as_markdown(letter))
        print(parts[-1], flush=True)
    if set(options.letters) == set(SECTIONS):
        today = datetime.datetime.now(tz=datetime.UTC).date()
        head = f"# Tuning, measured\n\n{machine()}, {today}, one BLAS thread, {options.seeds} seeds."
        note = (
            "Every method has the same seeds and an initial design of d + 2 points; peers are at their defaults. "
            "Defaults of ems were chosen on the problems of `DEVELOPED`; those below were held out. "
            "Intervals are bootstrapped, 95 %. `make bench-tuning` measures all of it again."
        )
        (HERE / "RESULTS.md").write_text("\n\n".join([head, note, *parts]) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
