"""The view ``runs_wide``: one row a run, its params and the last value of each metric as columns. For people."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence

from ems.model import Json

# SQLite's own limit is 2,000 columns; a thousand each would be no help to anybody
MAX_COLUMNS = 900

_FIXED = {
    "experiment": "r.experiment_id",
    "name": "e.name",
    "run": "r.idx",
    "state": "r.state",
    "slurm_state": "r.slurm_state",
    "attempt": "r.attempt",
    "seed": "r.seed",
    "started_at": "a.started_at",
    "wall_s": "a.wall_s",
    "max_rss_mb": "a.max_rss_mb",
    "gpus": "a.gpus",
    "host": "a.host",
    "reason": "r.reason",
}


_LAST = "(SELECT coalesce(s.last, s.last_text) FROM summaries s WHERE s.run_id = r.id AND s.metric_id = ?)"


def flatten(params: Mapping[str, object], prefix: tuple[str, ...] = ()) -> dict[str, tuple[str, ...]]:
    """Return the flat name of every param (``opt.lr`` where nested) and where it lies.

    >>> flatten({"opt": {"lr": 0.1}, "seed": 1})
    {'opt.lr': ('opt', 'lr'), 'seed': ('seed',)}
    """
    found: dict[str, tuple[str, ...]] = {}
    for name, value in params.items():
        path = (*prefix, name)
        if isinstance(value, Mapping) and value:
            found.update(flatten(value, path))
        else:
            found[".".join(path)] = path
    return found


def json_path(path: Sequence[str]) -> str:
    """Return SQLite's JSON path of a param."""
    return "$" + "".join(f'."{part}"' for part in path)


def view(params: Iterable[tuple[str, str]], metrics: Iterable[tuple[str, int]]) -> str:
    """Return the CREATE VIEW statement.

    Parameters
    ----------
    params
        Flat name and JSON path of each.
    metrics
        Name and id of each.
    """
    columns = dict(_FIXED)
    taken = {name.lower() for name in columns}  # SQLite's column names know no case
    for name, path in params:
        # SQLite's JSON paths cannot quote a quote
        if '"' not in name:
            _add(columns, taken, name, "param", f"json_extract(r.params, {_literal(path)})")
    for name, metric_id in metrics:
        _add(columns, taken, name, "metric", _LAST.replace("?", str(int(metric_id))))
    listed = ",\n       ".join(f"{value} AS {_identifier(name)}" for name, value in columns.items())
    # identifiers and literals are quoted above; a view cannot have parameters
    return (
        f"CREATE VIEW runs_wide AS\nSELECT {listed}\n"
        "FROM runs r JOIN experiments e ON e.id = r.experiment_id\n"
        "LEFT JOIN attempts a ON a.run_id = r.id AND a.attempt = r.attempt"
    )


def _add(columns: dict[str, str], taken: set[str], name: str, kind: str, value: str) -> None:
    if name.lower() in taken:
        name = f"{kind}_{name}"
    if name.lower() not in taken and len(columns) < MAX_COLUMNS and "\0" not in name:
        taken.add(name.lower())
        columns[name] = value


def _identifier(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def dump_params(params: Mapping[str, object]) -> str:
    """Return params as JSON that SQLite can read too: infinity as 1e999, NaN as ``{"$nan": true}``."""
    try:
        return json.dumps(params, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    except ValueError:
        text = json.dumps(_mark_nan(params), ensure_ascii=False, separators=(",", ":"), allow_nan=False)
        return text.replace('{"$inf":1}', "1e999").replace('{"$inf":-1}', "-1e999")


def load_params(text: str) -> dict[str, Json]:
    """Undo :func:`dump_params`."""
    hook = _unmark_nan if '"$nan"' in text else None
    loaded: dict[str, Json] = json.loads(text, object_hook=hook)
    return loaded


def _mark_nan(value: object) -> object:
    if isinstance(value, Mapping):
        return {key: _mark_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_mark_nan(item) for item in value]
    if isinstance(value, float) and value != value:  # noqa: PLR0124  # NaN differs from itself
        return {"$nan": True}
    if isinstance(value, float) and value in (float("inf"), float("-inf")):
        return {"$inf": 1 if value > 0 else -1}
    return value


def _unmark_nan(value: dict[str, object]) -> object:
    return float("nan") if value == {"$nan": True} else value
