"""What runs wrote, brought together: copied under distinct names (gather) or joined into one table (reduce)."""

from __future__ import annotations

import csv
import io
import json
import os
import posixpath
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ems import outputs
from ems.errors import UsageError
from ems.harvest.readers import wrong_width
from ems.model import Experiment, Run
from ems.node import records
from ems.node.records import ExperimentFiles
from ems.store.wide import flatten

if TYPE_CHECKING:
    from numpy.typing import NDArray

FORMATS = (".csv", ".json", ".jsonl", ".npz")


@dataclass(frozen=True, slots=True)
class Gathered:
    """What :func:`gather` copied: (run, path in the run, where it is now), and the runs that have no such file."""

    files: tuple[tuple[int, str, Path], ...]
    missing: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Reduced:
    """A file of all runs joined: rows of a table, or for npz arrays by name.

    ``missing`` are the runs that have no such file; ``problems`` say what could not be read, and where.
    """

    rows: tuple[Mapping[str, Any], ...] = ()
    arrays: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    missing: tuple[int, ...] = ()
    problems: tuple[str, ...] = ()

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns, in order of first appearance."""
        return tuple(dict.fromkeys(name for row in self.rows for name in row))


def gather(root: Path, experiment: Experiment, pattern: str, into: Path, *, move: bool = False) -> Gathered:
    """Copy the files of all runs that match ``pattern`` into one folder, as ``INDEX-PATH`` with ``/`` as ``-``.

    Parameters
    ----------
    pattern
        Shell pattern of the path as the script sees it, of the path below the run's directory (``checkpoint/*.pt``,
        ``stdout.log``), or of the name alone.
    move
        Move them: they were fetched for this.

    Raises
    ------
    UsageError
        If ``into`` is a file.
    """
    if into.exists() and not into.is_dir():
        raise UsageError(f"{into} is a file, not a folder", "name a folder, which is made if it is not there")
    files = ExperimentFiles(root, experiment.id)
    width = len(str(max(0, experiment.n_runs - 1)))
    copied: list[tuple[int, str, Path]] = []
    missing: list[int] = []
    for index in range(experiment.n_runs):
        found = sorted(outputs.matching(Path(files.run(index)), pattern, experiment.cwd))
        if not found:
            missing.append(index)
        taken: set[str] = set()
        for path in found:
            shown = path.removeprefix("files/")
            name = _distinct(f"{index:0{width}d}-{shown.replace('/', '-')}", taken)
            into.mkdir(parents=True, exist_ok=True)
            aside = into / f".{name}.{os.getpid()}.aside"
            (shutil.move if move else shutil.copy2)(Path(files.run(index), path), aside)
            copied.append((index, shown, aside.replace(into / name)))
    return Gathered(tuple(copied), tuple(missing))


def _distinct(name: str, taken: set[str]) -> str:
    """Return ``name``, with a number before its suffix where ``a/b`` and ``a-b`` would be the same."""
    stem, dot, suffix = name.rpartition(".")
    number, free = 1, name
    while free in taken:
        number += 1
        free = f"{stem}.{number}{dot}{suffix}" if dot else f"{name}.{number}"
    taken.add(free)
    return free


def reduce(root: Path, experiment: Experiment, runs: Sequence[Run], name: str) -> Reduced:
    """Join a file of all ``runs`` into one table, the run's index and params as its first columns.

    CSV gives its rows, JSON an object or a list of objects, JSON lines an object a line. Of npz the arrays of each
    name are joined along their first axis; ``run`` and the params are arrays beside them, one entry a row if all
    arrays of a file have equally many, else one entry a run (and ``NAME.run`` says for each row which run's it is).

    Parameters
    ----------
    name
        The file as the script sees it, e.g. ``out/results.csv``.

    Raises
    ------
    UsageError
        If the file is of another format, or arrays of different runs do not fit together.
    """
    suffix = Path(name).suffix.lower()
    if suffix not in FORMATS:
        raise UsageError(f"`{name}` cannot be joined: its format is not known", f"formats: {', '.join(FORMATS)}")
    files = ExperimentFiles(root, experiment.id)
    paths = {run.index: _locate(Path(files.run(run.index)), name, experiment.cwd) for run in runs}
    found = [(run, path) for run in runs if (path := paths[run.index]) is not None]
    missing = tuple(run.index for run in runs if paths[run.index] is None)
    if suffix == ".npz":
        return _join_arrays(found, missing, experiment.id)
    problems: list[str] = []
    rows = tuple(
        _with_params(run, row)
        for run, path in found
        for row in _rows(path, suffix, f"{experiment.id}/{run.index}/{name}", problems)
    )
    return Reduced(rows, missing=missing, problems=tuple(problems))


def places(name: str, cwd: str) -> tuple[str, ...]:
    """Return where below a run's directory a file may lie that the script calls ``name``, the likeliest first."""
    found = (posixpath.normpath(place) for place in (f"files/{cwd}/{name}", f"files/{name}", name))
    return tuple(place for place in dict.fromkeys(found) if not place.startswith(("../", "/")))


def _locate(folder: Path, name: str, cwd: str) -> Path | None:
    paths = (folder / place for place in places(name, cwd))
    return next((path for path in paths if path.is_file() and not path.is_symlink()), None)


def _rows(path: Path, suffix: str, shown: str, problems: list[str]) -> Iterator[Mapping[str, Any]]:
    try:
        text = path.read_text(encoding="utf-8-sig", errors="replace")
        if suffix == ".csv":
            yield from _csv_rows(text, shown, problems)
            return
        lines = enumerate(text.splitlines(), 1) if suffix == ".jsonl" else [(1, text)]
        for number, line in lines:
            if line.strip():
                yield from _json_rows(line, f"{shown} line {number}", problems)
    except OSError as error:
        problems.append(f"{shown}: {error.strerror or error}")


def _csv_rows(text: str, shown: str, problems: list[str]) -> Iterator[Mapping[str, Any]]:
    reader = csv.reader(io.StringIO(text.replace("\0", "\ufffd"), newline=""))
    header: list[str] = []
    try:
        for cells in reader:
            if not header:
                header = [cell.strip() for cell in cells]
            elif len(cells) == len(header):
                yield {name: cell for name, cell in zip(header, cells, strict=True) if name}
            elif any(cells):
                problems.append(f"{shown} line {reader.line_num}: {wrong_width(cells, header)}")
    except csv.Error as error:
        problems.append(f"{shown} line {reader.line_num}: {error}")


def _json_rows(text: str, shown: str, problems: list[str]) -> Iterator[Mapping[str, Any]]:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        problems.append(f"{shown}: not JSON: {error}")
        return
    for row in content if isinstance(content, list) else [content]:
        if isinstance(row, dict):
            yield row
        else:
            problems.append(f"{shown}: not an object")


def _with_params(run: Run, row: Mapping[str, Any]) -> dict[str, Any]:
    """Put the run and its params before a row; where the file has a column of that name too, ``param.NAME``."""
    params = _flat(run)
    first = {"run": run.index} | params
    return {(f"param.{name}" if name in row else name): value for name, value in first.items()} | dict(row)


def _flat(run: Run) -> dict[str, Any]:
    found = {}
    for name, path in flatten(run.params).items():
        value: Any = run.params
        for key in path:
            value = value[key]
        found[name] = value
    return found


def _join_arrays(found: Sequence[tuple[Run, Path]], missing: tuple[int, ...], exp_id: str) -> Reduced:
    import numpy as np  # noqa: PLC0415  # a tenth of a second, and only for npz

    parts: dict[str, list[tuple[Run, NDArray[Any]]]] = {}
    lengths: dict[int, set[int]] = {}
    problems: list[str] = []
    read: list[Run] = []
    for run, path in found:
        try:
            with np.load(path, allow_pickle=False) as content:
                arrays = {name: np.atleast_1d(content[name]) for name in content.files}
        except (OSError, ValueError, EOFError, KeyError, np.exceptions.AxisError) as error:
            problems.append(f"{exp_id}/{run.index}/{path.name}: {error}")
            continue
        read.append(run)
        lengths[run.index] = {len(array) for array in arrays.values()}
        for name, array in arrays.items():
            parts.setdefault(name, []).append((run, array))
    joined = {name: _concatenate(name, members) for name, members in parts.items()}
    is_table = all(len(each) == 1 for each in lengths.values()) and all(len(m) == len(read) for m in parts.values())
    counts = [next(iter(lengths[run.index])) if is_table else 1 for run in read]
    columns: dict[str, NDArray[Any]] = {"run": np.repeat([run.index for run in read], counts)}
    for name in dict.fromkeys(name for run in read for name in _flat(run)):
        values = [_flat(run).get(name) for run in read]
        columns[name] = np.repeat(np.array([_plain(value) for value in values]), counts, axis=0)
    if not is_table:
        for name, members in parts.items():
            columns[f"{name}.run"] = np.concatenate([np.full(len(array), run.index) for run, array in members])
    columns = {(f"param.{name}" if name in joined else name): array for name, array in columns.items()}
    return Reduced(arrays=columns | joined, missing=missing, problems=tuple(problems))


def _concatenate(name: str, members: Sequence[tuple[Run, NDArray[Any]]]) -> NDArray[Any]:
    import numpy as np  # noqa: PLC0415  # as above

    first = members[0]
    for run, array in members:
        if array.shape[1:] != first[1].shape[1:]:
            raise UsageError(
                f"`{name}` of run {run.index} has rows of shape {array.shape[1:]}, "
                f"that of run {first[0].index} {first[1].shape[1:]}: they cannot be joined"
            )
    return np.concatenate([array for _, array in members])


def _plain(value: Any) -> Any:
    return value if isinstance(value, str | int | float | bool) else json.dumps(value)


def write(reduced: Reduced, path: Path) -> None:
    """Write a joined table in the format of its name: .csv, .json, .jsonl or .npz (arrays only).

    Raises
    ------
    UsageError
        If the format is another, or does not fit what was joined.
    """
    suffix = path.suffix.lower()
    if (suffix == ".npz") != bool(reduced.arrays) or suffix not in FORMATS:
        fits, example = (".npz", "npz") if reduced.arrays else (".csv, .json or .jsonl", "csv")
        raise UsageError(f"`{path}` does not fit: this is written as {fits}", f"-o NAME.{example}")
    path.parent.mkdir(parents=True, exist_ok=True)
    if reduced.arrays:
        import numpy as np  # noqa: PLC0415  # as above

        buffer = io.BytesIO()
        np.savez_compressed(buffer, allow_pickle=False, **reduced.arrays)
        records.write_atomic(path, buffer.getvalue())
        return
    records.write_atomic(path, dump(reduced, suffix.removeprefix(".")))


def dump(reduced: Reduced, form: str) -> str:
    """Return a joined table as text: ``csv``, ``json`` or ``jsonl``."""
    if form == "json":
        return json.dumps(list(reduced.rows), ensure_ascii=False, indent=1) + "\n"
    if form == "jsonl":
        return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in reduced.rows)
    text = io.StringIO()
    writer = csv.DictWriter(text, reduced.columns, lineterminator="\n")
    writer.writeheader()
    for row in reduced.rows:
        writer.writerow({name: json.dumps(v) if isinstance(v, dict | list) else v for name, v in row.items()})
    return text.getvalue()
