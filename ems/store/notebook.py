"""Rows for a notebook: ``pandas.DataFrame(ems.open_store().rows("last"))``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from ems.store.wide import flatten

if TYPE_CHECKING:
    import pandas

    from ems.store import RunRow, Store

_FIELDS = ("state", "slurm_state", "attempt", "seed", "started_at", "wall_s", "max_rss_mb", "gpus", "host", "reason")


def rows(store: Store, *refs: str) -> list[dict[str, Any]]:
    """Return one flat dict a run: where it belongs, params, the last value of each metric, then facts.

    Parameters
    ----------
    refs
        Experiments by id, name or ``last``; default: all.

    Raises
    ------
    NotFoundError
        If there is no such experiment.
    """
    ids = [store.resolve(ref).id for ref in refs] or None
    return [_flat(row) for row in store.run_table(ids)]


def _flat(row: RunRow) -> dict[str, Any]:
    facts: dict[str, Any] = {"experiment": row.exp_id, "name": row.exp_name, "run": row.index}
    found = facts | {name: _at(row.params, path) for name, path in flatten(row.params).items() if name not in facts}
    metrics = {name: summary.last for name, summary in row.metrics.items()}
    found |= {(f"metric.{name}" if name in found else name): value for name, value in metrics.items()}
    return found | {name: getattr(row, name) for name in _FIELDS if name not in found}


def _at(params: Any, path: tuple[str, ...]) -> Any:
    for key in path:
        params = params[key]
    return params


def points(store: Store, metric: str, *refs: str) -> Iterator[dict[str, Any]]:
    """Yield experiment, run, step and value of the current points of one metric (long form)."""
    ids = [store.resolve(ref).id for ref in refs] or store.ids()
    for exp_id, index, step, value in store.curves(ids, metric):
        yield {"experiment": exp_id, "run": index, "step": step, metric: value}


def frame(store: Store, *refs: str) -> pandas.DataFrame:
    """Return :func:`rows` as a pandas frame.

    Raises
    ------
    ImportError
        Without pandas: ``pip install 'ems[notebook]'``.
    """
    try:
        import pandas  # noqa: PLC0415  # optional
    except ImportError as error:
        raise ImportError("pandas is not installed: pip install 'ems[notebook]'") from error
    return pandas.DataFrame(rows(store, *refs))
