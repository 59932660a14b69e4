"""Real processes: words that arrive, scripts that run with one combination as if nothing had been done to them."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ems.counting import count_by_running
from ems.errors import ScriptError
from ems.node import argv, launch
from ems.unroll import Unrolled, unroll

NASTY = [
    "",
    " ",
    "-1",
    "--lr",
    "'",
    '"',
    "a\nb",
    "$(touch owned)",
    "`id`",
    "${HOME}",
    "é€😀",
    "a,b",
    "0.1",
    "*",
    "\\",
    "!x",
]
_texts = st.one_of(st.sampled_from(NASTY), st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")))
_params = st.dictionaries(st.sampled_from(["lr", "opt", "note", "x_y"]), st.one_of(_texts, st.integers(), st.floats()))

PRINTER = """
import argparse, json, os, sys
words = json.loads(os.environ["NAMES"])
if sys.argv[1:2] == ["flags"]:
    parser = argparse.ArgumentParser()
    parser.add_argument("how")
    for name in words:
        parser.add_argument("--" + name)
    got = {name: vars(parser.parse_args())[name] for name in words}
elif sys.argv[1:2] == ["env"]:
    got = {name: os.environ[name.upper()] for name in words}
elif sys.argv[1:2] == ["positional"]:
    got = dict(zip(words, sys.argv[2:]))
else:
    got = json.loads(sys.argv[2])
print(json.dumps(got))
"""


def newest_and_oldest() -> list[str]:
    """This Python, and the oldest that runs may have, where it is installed beside this one or on the path."""
    beside = sorted(map(str, Path(sys.base_prefix).parent.glob("3.8.*/bin/python")))
    return [sys.executable, *[python for python in (*beside, shutil.which("python3.8")) if python][:1]]


def start(command: Sequence[str], cwd: Path, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=cwd, env={**os.environ, **(env or {})}, capture_output=True, text=True, timeout=200, check=False
    )


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(_params)
@pytest.mark.parametrize("pass_as", ["flags", "positional", "env", "json"])
def test_params_arrive_in_a_real_process(tmp_path: Path, pass_as: str, params: dict[str, Any]) -> None:
    (tmp_path / "s.py").write_text(PRINTER)
    template = ["${interpreter}", "${program}", "${args_json}"] if pass_as == "json" else None
    how = "none" if template else pass_as
    command, env = argv.command(sys.executable, "s.py", [pass_as], params, how, template)
    done = start(command, tmp_path, {**env, "NAMES": json.dumps(list(params)), "PYTHONIOENCODING": "utf-8"})
    assert done.returncode == 0, done.stderr
    got = json.loads(done.stdout)
    assert json.dumps(got) == json.dumps(params if template else {name: argv.text(v) for name, v in params.items()})
    assert not (tmp_path / "owned").exists()


def test_setup_lines_hand_the_words_on_untouched(tmp_path: Path) -> None:
    command, _ = argv.command("printf", r"%s\0", [], {f"p{i}": text for i, text in enumerate(NASTY)}, "positional")
    done = start(["bash", "-c", 'true && exec "$@"', "ems", *command], tmp_path)
    assert done.stdout.split("\0")[:-1] == NASTY


# ------------------------------------------------------------------------------------------- the launcher

INTROSPECTIVE = '''"""A script that looks at itself."""
from __future__ import annotations
import json, os, pickle, sys
import beside

class Thing:
    pass

def fail(x):
    raise ValueError(x)

if __name__ == "__main__":
    for x in [1,
              2]:
        for y in "ab":
            main = sys.modules["__main__"]
            print(json.dumps({
                "file": __file__, "argv": sys.argv, "path0": sys.path[0], "names": sorted(globals()),
                "doc": __doc__, "spec": str(__spec__), "main": main.Thing is Thing, "beside": beside.__file__,
                "pickled": pickle.loads(pickle.dumps(Thing())).__class__ is Thing, "cwd": os.getcwd(),
                "hook": sys.excepthook is sys.__excepthook__, "item": [x, y], "loader": type(__loader__).__name__,
            }))
            if len(sys.argv) > 1:
                fail(y)
'''


def loops_of(source: str) -> Unrolled:
    result = unroll(source, "s.py")
    assert result is not None
    return result


def words_for(result: Unrolled, number: int) -> list[str]:
    loops = [{n: getattr(loop, n) for n in ("line", "column", "names", "size", "known")} for loop in result.loops]
    return launch.arguments(loops, result.points[number].loops)


def launched(
    python: str, script: str, args: Sequence[str], result: Unrolled, number: int, cwd: Path, **env: str
) -> subprocess.CompletedProcess[str]:
    given = {"EMS_PARAMS": json.dumps(result.points[number].params), **env}
    return start([python, *words_for(result, number), script, *args], cwd, given)


@pytest.mark.parametrize("python", newest_and_oldest())
@pytest.mark.parametrize("script", ["s.py", "./s.py", "../linked/s.py", "sub/../s.py"])
def test_a_launched_script_sees_what_it_would_see_by_itself(tmp_path: Path, python: str, script: str) -> None:
    project = tmp_path / "project"
    (project / "sub").mkdir(parents=True)
    (project / "s.py").write_text(INTROSPECTIVE)
    (project / "beside.py").write_text("")
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "s.py").symlink_to("../project/s.py")
    plain = start([python, script], project)
    lines = [json.loads(line) for line in plain.stdout.splitlines()]
    assert len(lines) == 4, plain.stderr
    result = loops_of(INTROSPECTIVE)
    for number, expected in enumerate(lines):
        done = launched(python, script, [], result, number, project)
        assert (done.returncode, done.stderr) == (0, "")
        assert [json.loads(line) for line in done.stdout.splitlines()] == [expected]


@pytest.mark.parametrize("python", newest_and_oldest())
def test_a_traceback_is_that_of_the_original(tmp_path: Path, python: str) -> None:
    (tmp_path / "s.py").write_text(INTROSPECTIVE)
    (tmp_path / "beside.py").write_text("")
    plain = start([python, "s.py", "now"], tmp_path)
    done = launched(python, "s.py", ["now"], loops_of(INTROSPECTIVE), 0, tmp_path)
    assert plain.returncode == done.returncode == 1
    assert done.stderr == plain.stderr
    assert "launch" not in done.stderr


@pytest.mark.parametrize(
    "body",
    [
        "raise SystemExit(3)",
        "raise SystemExit('words')",
        "import os, signal; os.kill(os.getpid(), signal.SIGINT)",
        "raise KeyError(1) from ValueError(2)",
        "import sys; sys.excepthook = lambda k, e, tb: print(k, tb.tb_frame.f_code.co_name, tb.tb_next)\n    1 / 0",
        "import atexit; atexit.register(print, 'bye')",
        "exec('(')",
    ],
)
def test_a_script_ends_as_it_would_by_itself(tmp_path: Path, body: str) -> None:
    source = f"for x in [1]:\n    {body}\n"
    (tmp_path / "s.py").write_text(source)
    plain = start([sys.executable, "s.py"], tmp_path)
    done = launched(sys.executable, "s.py", [], loops_of(source), 0, tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (plain.returncode, plain.stdout, plain.stderr)


def test_processes_that_are_spawned_import_the_script_as_ever(tmp_path: Path) -> None:
    source = """
import multiprocessing
def square(x):
    return x * x
if __name__ == "__main__":
    for x in [2, 3]:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            print(pool.map(square, [x]), flush=True)
"""
    (tmp_path / "s.py").write_text(source)
    done = launched(sys.executable, "s.py", [], loops_of(source), 1, tmp_path)
    assert (done.stdout, done.stderr) == ("[9]\n", "")


def test_signals_reach_the_script(tmp_path: Path) -> None:
    source = "import signal\nfor x in [1]:\n    print('ready', flush=True)\n    signal.pause()\n"
    (tmp_path / "s.py").write_text(source)
    command = [sys.executable, *words_for(loops_of(source), 0), "s.py"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait(120) == -signal.SIGTERM


def test_the_params_that_a_run_really_had_are_written(tmp_path: Path) -> None:
    loop = "for net, (a, b) in [(Net(), (1, 2)), (Net(), (3, float.fromhex('0x9')))]: pass\n"
    source = f"class Net: pass\n{loop}"
    (tmp_path / "s.py").write_text(source)
    result = loops_of(source)
    assert dict(result.points[1].params) == {"net": "Net()", "a": 3, "b": "float.fromhex('0x9')"}
    done = launched(sys.executable, "s.py", [], result, 1, tmp_path, EMS_LOOP_PARAMS=str(tmp_path / "params.json"))
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads((tmp_path / "params.json").read_text()) == {"net": "Net()", "a": 3, "b": 9.0}


@pytest.mark.parametrize(
    ("now", "said"),
    [
        ("xs = [1, 2, 3]", "the loop on line 2 has 3 items here, but 2 were counted"),
        ("xs = [1]", "the loop on line 2 has 1 items here, but 2 were counted"),
        ("xs = iter([1, 2, 3])", "the loop on line 2 has 3 items here, but 2 were counted"),
        ("xs = [1, 5]", "item 1 of the loop on line 2 has x=5 here, but it was 2 when the sweep was counted"),
        ("xs = [1, True]", "has x=True here, but it was 2"),
        ("xs = {1, 2}", "the loop on line 2 walks a set"),
        ("xs = [1, 2]\nxs", "s.py is not the script whose loops were counted"),
    ],
)
def test_a_run_that_would_be_another_combination_stops(tmp_path: Path, now: str, said: str) -> None:
    loop = "\nfor x in xs:\n    try:\n        open(f'{x}', 'w')\n    except Exception:\n        pass\n"
    result = loops_of("xs = [1, 2]" + loop)
    (tmp_path / "s.py").write_text(now + loop)
    done = launched(sys.executable, "s.py", [], result, 1, tmp_path)
    assert done.returncode == 1
    assert said in done.stderr.splitlines()[-1]
    assert "launch.py" not in done.stderr
    assert not (tmp_path / "1").exists()
    assert not (tmp_path / "5").exists()


def test_an_item_that_a_generator_changes_later_is_seen_as_it_was(tmp_path: Path) -> None:
    items = "def items():\n    c = {}\n    for n in range(3):\n        c['n'] = n\n        yield c\n"
    source = f"{items}for c in items():\n    print(c)\n"
    (tmp_path / "s.py").write_text(source)
    counted = count_by_running(tmp_path / "s.py", sys.executable, [], tmp_path)
    assert counted is not None
    done = launched(sys.executable, "s.py", [], counted, 1, tmp_path)
    assert (done.stdout, done.stderr) == ("{'n': 1}\n", "")


def test_a_loop_that_is_not_reached_is_said(tmp_path: Path) -> None:
    source = "import sys\nif len(sys.argv) > 1: sys.exit()\nfor x in [1]: print(x)\n"
    (tmp_path / "s.py").write_text(source)
    done = launched(sys.executable, "s.py", ["stop"], loops_of(source), 0, tmp_path)
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr == "ems: the script ended without reaching its loop on line 3\n"


# ------------------------------------------------------------------------------------------- counting by running


@pytest.mark.parametrize("python", newest_and_oldest())
def test_loops_are_counted_by_running_what_is_above_them(tmp_path: Path, python: str) -> None:
    source = """
import atexit, json, sys
atexit.register(lambda: open("exited", "w"))
sizes = json.loads(sys.argv[1])
print("above")
def main():
    for n in sizes:  # ems: sweep
        for k, thing in enumerate([object()] * n):  # ems: sweep
            open("trained", "w")
    open("after", "w")
main()
"""
    (tmp_path / "s.py").write_text(source)
    result = count_by_running(tmp_path / "s.py", python, ["[1, 0, 2]"], tmp_path)
    assert result is not None
    assert [(p.loops, p.params["n"], p.params["k"]) for p in result.points] == [
        ((0, 0), 1, 0),
        ((2, 0), 2, 0),
        ((2, 1), 2, 1),
    ]
    assert [(loop.size, loop.known) for loop in result.loops] == [(3, True), (-1, False)]
    assert [axis.names for axis in result.axes] == [("n", "k", "thing")]
    assert {p.params["thing"] for p in result.points} == {"<object object>"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["s.py"]
    done = launched(python, "s.py", ["[1, 0, 2]"], result, 2, tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert {path.name for path in tmp_path.iterdir()} == {"s.py", "exited", "trained", "after"}


def test_independent_loops_counted_by_running_are_axes_of_their_own(tmp_path: Path) -> None:
    (tmp_path / "s.py").write_text("import ems\nfor a in list(map(int, '12')):\n  for b in iter('xy'): pass\n")
    result = count_by_running(tmp_path / "s.py", sys.executable, [], tmp_path)
    assert result is not None
    assert [(axis.names, axis.values) for axis in result.axes] == [(("a",), ((1,), (2,))), (("b",), (("x",), ("y",)))]


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (
            "import json\nxs = json.loads('{')\nfor x in xs: pass\n",
            "s.py failed above its loop on line 3: json.decoder",
        ),
        ("import sys\nsys.exit(4)\nfor x in [1]: pass\n", "s.py failed above its loop on line 3: exit status 4"),
        ("import sys\nsys.exit()\nfor x in [1]: pass\n", "s.py ended without reaching its loop on line 3"),
        ("def f():\n  for x in g(): pass  # ems: sweep\n", "s.py ended without reaching its loop on line 2"),
        ("for x in set('ab'): pass\n", "the loop on line 1 walks a set"),
        ("import itertools\nfor x in itertools.count(): pass\n", "give more than 1000000 combinations"),
        ("for x in []: pass\n", "the loops have no items"),
        ("for x in [: pass\n", "s.py line 1: "),
    ],
)
def test_what_cannot_be_counted_by_running_is_said(tmp_path: Path, source: str, said: str) -> None:
    (tmp_path / "s.py").write_text(source)
    with pytest.raises(ScriptError) as caught:
        count_by_running(tmp_path / "s.py", sys.executable, [], tmp_path)
    assert said in caught.value.message
    assert caught.value.hint


def test_a_python_that_is_not_there_is_said(tmp_path: Path) -> None:
    (tmp_path / "s.py").write_text("for x in [1]: pass\n")
    with pytest.raises(ScriptError, match="`/no/python` cannot be started: No such file or directory"):
        count_by_running(tmp_path / "s.py", "/no/python", [], tmp_path)
