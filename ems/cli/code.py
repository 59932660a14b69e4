"""``ems show``, ``ems diff`` and ``ems checkout``: what an experiment is made of."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ems.cli import options as o
from ems.cli.app import AGAIN, LOOK, command

if TYPE_CHECKING:
    from ems.cli.session import Session
    from ems.model import Experiment, Json


@command(LOOK, "ems show last", "ems show last/3")
def show(address: o.ExpOrRun = "last", as_json: o.AsJson = False) -> None:
    """Show what an experiment or a run is made of.

    Code, params, environment; of a run its attempts, and the traceback where it failed.
    """
    from ems.cli import render
    from ems.cli.session import open_session

    with open_session() as session:
        experiment, parsed = session.address(address)
        index = parsed.index
        if as_json:
            render.print_json(
                _experiment_json(session, experiment) if index is None else _run_json(session, experiment, index)
            )
        elif index is None:
            _say_pairs(_experiment_pairs(session, experiment))
            render.note(
                "", f"next: ems ls {experiment.id} · ems report {experiment.id} · ems checkout {experiment.id} DIR"
            )
        else:
            _say_run(session, experiment, index)


def _say_pairs(pairs: Mapping[str, str]) -> None:
    from ems.cli import render

    shown = {key: value for key, value in pairs.items() if value}
    room = max(map(len, shown), default=0)
    render.say(*(f"{key:<{room}}  {render.clean(value)}" for key, value in shown.items()))


def _experiment_pairs(session: Session, experiment: Experiment) -> dict[str, str]:
    from ems.cli import render

    origin: Mapping[str, Any] = experiment.provenance
    python = origin.get("python") or {}
    n_packages = len(origin.get("packages") or ())
    swept: list[Any] = list(experiment.axes)
    axes = " x ".join(f"{','.join(axis['names'])} ({axis['size']:,})" for axis in swept)
    counts = render.state_words(session.store.counts([experiment.id])[experiment.id])
    return {
        "experiment": f"{experiment.id}  {experiment.name}",
        "message": experiment.message or "",
        "tags": ", ".join(experiment.tags),
        "created": f"{render.clock(experiment.created_at)} ({render.ago(experiment.created_at)})"
        + (f" by {origin['user']} on {origin['host']}" if origin.get("user") else ""),
        "command": shlex.join(experiment.command_line),
        "script": shlex.join([experiment.script, *experiment.args]),
        "runs": f"{experiment.n_runs:,}" + (f" = {axes}" if axes else "") + f": {counts}",
        "code": f"{experiment.snapshot[:8]} ({_base(origin)})",
        "on": experiment.target,
        "asks for": _asked(experiment),
        "python": f"{python.get('version') or ''} {experiment.python}, {n_packages} packages".strip(),
        "set-up": "; ".join(experiment.setup),
        "container": experiment.container or "",
        "data": ", ".join(experiment.data),
        "files": _where(session, experiment),
    }


def _where(session: Session, experiment: Experiment, index: int | None = None) -> str:
    if experiment.id in session.store.removed():
        return "removed"
    files, remote = session.files(experiment), session.target(experiment.target).remote
    place = files.dir if index is None else files.run(index)
    if remote is None:
        return place
    there = remote.agent.target
    return f"{there.name}:{there.root}{place.removeprefix(files.root)}"


def _base(origin: Mapping[str, Any]) -> str:
    commit = origin.get("commit")
    if not commit:
        return "no commit"
    branch = f" on {origin['branch']}" if origin.get("branch") else ""
    return f"{commit[:8]}{branch}" + (" + changes" if origin.get("dirty_diff_bytes") or origin.get("untracked") else "")


def _asked(experiment: Experiment) -> str:
    asked = {key: value for key, value in asdict(experiment.resources).items() if value is not None}
    return ", ".join(f"{key} {value}" for key, value in asked.items())


def _experiment_json(session: Session, experiment: Experiment) -> dict[str, Json]:
    record: dict[str, Any] = asdict(experiment)
    counts = session.store.counts([experiment.id])[experiment.id]
    return {
        **record,
        "states": {str(state): n for state, n in counts.items()},
        "root": str(session.target(experiment.target).root),
    }


# -- one run -----------------------------------------------------------------------------------------------------


def _run_json(session: Session, experiment: Experiment, index: int) -> dict[str, Json]:
    from ems.node import records

    run = next(session.store.runs(experiment.id, [index]))
    last = records.last_attempt(session.files(experiment), index) or {}
    attempts: Any = [asdict(attempt) for attempt in session.store.attempts(experiment.id, index)]
    return {
        "experiment": experiment.id,
        "index": index,
        "params": run.params,
        "seed": run.seed,
        "state": session.state(experiment, index),
        "attempts": attempts,
        "error": last.get("error"),
    }


def _say_run(session: Session, experiment: Experiment, index: int) -> None:
    from ems.cli import render

    facts: Any = _run_json(session, experiment, index)
    _say_pairs(
        {
            "run": f"{experiment.id}/{index}  {experiment.name}",
            "state": str(facts["state"]).lower(),
            "params": "  ".join(f"{name}={render.value_text(value)}" for name, value in facts["params"].items()),
            "seed": str(facts["seed"]),
            "files": _where(session, experiment, index),
        }
    )
    attempts = session.store.attempts(experiment.id, index)
    if attempts:
        render.say("")
        titles = ("attempt", "state", "started", "time", "host", "GPUs", "memory", "reason")
        right = {"attempt", "time", "memory"}
        rows = [
            [
                str(each.attempt),
                render.state_cell(each.state),
                render.clock(each.started_at),
                render.duration(each.wall_s),
                each.host,
                each.gpus or render.ABSENT,
                render.ABSENT if each.max_rss_mb is None else render.size(each.max_rss_mb * 2**20),
                render.clean(each.reason),
            ]
            for each in attempts
        ]
        render.print_table(
            [render.Column(title, right=title in right, cut=title == "reason") for title in titles], rows
        )
    if facts["error"]:
        render.say("", facts["error"]["traceback"].rstrip())
    run = f"{experiment.id}/{index}"
    again = "" if experiment.study_id else f"ems rerun {run} · "  # which runs a study makes, its search decides
    render.note("", f"next: ems logs {run} · ems ls {run} · {again}ems reproduce {run}")


# -- two experiments, and the code of one ----------------------------------------------------------------------------


@command(LOOK, "ems diff 7f3a9c21 last", "ems diff 7f3a9c21 last --stat")
def diff(
    first: o.Exp,
    second: o.Exp = "last",
    stat: Annotated[bool, typer.Option("--stat", help="Name the changed files only.")] = False,
    as_json: o.AsJson = False,
) -> None:
    """Compare two experiments: params, code, environment."""
    from ems import snapshot
    from ems.cli import render
    from ems.cli.session import open_session

    with open_session() as session:
        one, two = session.experiment(first), session.experiment(second)
        repository = _repository(session, one, two)
        changes = snapshot.changed(repository, one.snapshot, two.snapshot)
        text = "" if stat or not changes else snapshot.diff(repository, one.snapshot, two.snapshot)
        differing: dict[str, Any] = {
            "settings": _differing(_settings(one), _settings(two)),
            "params": _differing(_params(session, one), _params(session, two)),
            "environment": _differing(_environment(one), _environment(two)),
        }
    if as_json:
        code = [{"path": change.path, "kind": change.kind} for change in changes]
        render.print_json({"experiments": [one.id, two.id], **differing, "code": code, "diff": text})
        return
    lines = [f"{one.id} {one.name} -> {two.id} {two.name}"]
    for section, pairs in differing.items():
        lines += ["", f"{section}:"] + [f"  {key}  {a} -> {b}" for key, (a, b) in pairs.items()] if pairs else []
    lines += (
        ["", "code:", *(f"  {change.kind:<8}  {render.clean(change.path)}" for change in changes)] if changes else []
    )
    if len(lines) == 1:
        lines.append("the same settings, params, code and environment")
    render.page([*lines, *(["", *text.splitlines()] if text else [])])


def _repository(session: Session, one: Experiment, two: Experiment) -> Path:
    """Return a repository that holds both snapshots: that of the second's target, which may lack the first."""
    del one
    return session.target(two.target).root / "snapshots.git"


def _settings(experiment: Experiment) -> dict[str, str]:
    plain = ("script", "args", "pass_as", "target", "python", "setup", "container", "pack", "seed", "data")
    own = {name: _text(getattr(experiment, name)) for name in plain}
    return own | {name: _text(value) for name, value in asdict(experiment.resources).items()}


def _params(session: Session, experiment: Experiment) -> dict[str, str]:
    from ems.cli import render

    values: dict[str, dict[str, None]] = {}
    for run in session.store.runs(experiment.id):
        for name, value in run.params.items():
            values.setdefault(name, {})[render.value_text(value)] = None
    return {name: ",".join(list(found)[:12]) + (",…" if len(found) > 12 else "") for name, found in values.items()}


def _environment(experiment: Experiment) -> dict[str, str]:
    origin: Mapping[str, Any] = experiment.provenance
    packages = dict(_split(line) for line in origin.get("packages") or ())
    python = {f"python {key}": str(value) for key, value in (origin.get("python") or {}).items()}
    variables = {f"${key}": str(value) for key, value in (origin.get("environment") or {}).items()}
    return {**python, "platform": str(origin.get("platform", "")), **variables, **packages}


def _split(line: str) -> tuple[str, str]:
    name, mark, version = line.partition("==")
    return (name, version) if mark else tuple(line.split(" @ ", 1)) if " @ " in line else (line, "")  # type: ignore[return-value]


def _text(value: object) -> str:
    from ems.cli import render

    if isinstance(value, tuple):
        return shlex.join(map(str, value))
    return "" if value is None or value == {} else str(value) if not isinstance(value, float) else render.number(value)


def _differing(one: Mapping[str, str], two: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    from ems.cli import render

    keys = dict.fromkeys([*one, *two])
    pairs = {key: (one.get(key) or render.ABSENT, two.get(key) or render.ABSENT) for key in keys}
    return {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}


@command(AGAIN, "ems checkout last /tmp/code")
def checkout(
    experiment: o.Exp,
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="A folder that does not exist yet.", show_default=False)
    ],
) -> None:
    """Write out the code that an experiment ran."""
    from ems import snapshot
    from ems.cli import render
    from ems.cli.session import open_session

    with open_session() as session:
        found = session.experiment(experiment)
        n_files = snapshot.export(session.target(found.target).root / "snapshots.git", found.snapshot, folder)
    render.say(f"wrote {render.plural(n_files, 'file')} of code {found.snapshot[:8]} to {folder}")
    render.note(f"next: cd {shlex.quote(str(folder))} && {shlex.join(('python', found.script, *found.args))}")
