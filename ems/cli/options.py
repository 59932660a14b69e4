"""Options and arguments that several commands share."""

from __future__ import annotations

import enum
from typing import Annotated

import typer

from ems.errors import UsageError
from ems.model import PassAs

RUNS, WHERE, ASK, ENVIRONMENT, RECORD, THEN = (
    "What to run",
    "Where",
    "What each run asks for",
    "Environment of a run",
    "Record",
    "Then",
)


def option(panel: str, *names: str, help: str, metavar: str | None = None) -> object:  # noqa: A002  # typer's word
    """Return an option that help lists under ``panel``."""
    return typer.Option(*names, help=help, metavar=metavar, rich_help_panel=panel, show_default=False)


# -- addresses ---------------------------------------------------------------------------------------------------

Exp = Annotated[str, typer.Argument(metavar="EXP", help="Id (a prefix will do), name, or `last`.", show_default=False)]
ExpOrRun = Annotated[
    str,
    typer.Argument(metavar="EXP[/INDEX]", help="An experiment, or one run of it: last, last/3.", show_default=False),
]
Experiments = Annotated[
    list[str] | None, typer.Argument(metavar="[EXP]...", help="Ids, names or `last`; default: all.", show_default=False)
]
RunAddress = Annotated[str, typer.Argument(metavar="EXP/INDEX", help="A run, e.g. last/3.", show_default=False)]

# -- output ------------------------------------------------------------------------------------------------------

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]


def check_watch(watch: bool, as_json: bool) -> None:
    """Refuse to print one JSON document again and again.

    Raises
    ------
    UsageError
        If both are asked for.
    """
    if watch and as_json:
        raise UsageError("--watch and --json exclude each other", "leave one of them out")


# -- what to run -------------------------------------------------------------------------------------------------

Sets = Annotated[
    list[str] | None,
    option(
        RUNS,
        "--set",
        metavar="NAME=VALUES",
        help="Values of a param; crossed with the others. 0.1,0.01 | 0..9 | 0..1..0.25 | logspace(-4,-1,7) | "
        "linspace(0,1,5) | adam,sgd; with --samples loguniform(1e-5,1e-1), uniform, int, logint, normal.",
    ),
]
Zips = Annotated[
    list[str] | None, option(RUNS, "--zip", metavar="A,B", help="Let these params move together instead of crossing.")
]
Samples = Annotated[int | None, option(RUNS, "--samples", metavar="N", help="Draw N points at random.")]
Seed = Annotated[
    int | None, option(RUNS, "--seed", metavar="S", help="Of --samples, and of EMS_SEED of every run (default 0).")
]
Sweep = Annotated[
    str | None, option(RUNS, "--sweep", metavar="FILE", help="A sweep file in the Weights & Biases format.")
]
CountByRunning = Annotated[
    bool, option(RUNS, "--count-by-running", help="Count the script's loops by running the code above them.")
]
PassParams = Annotated[
    PassAs | None, option(RUNS, "--pass-as", help="How params reach the script; EMS_PARAMS is always set.")
]
Again = Annotated[bool, option(RUNS, "--again", help="Also run what completed before with the same code and params.")]

# -- where -------------------------------------------------------------------------------------------------------

On = Annotated[str | None, option(WHERE, "--on", metavar="TARGET", help="`here`, `slurm` or a configured target.")]
MaxParallel = Annotated[
    int | None, option(WHERE, "--max-parallel", metavar="N", help="At most N runs (with --pack: tasks) at a time.")
]
Budget = Annotated[
    list[str] | None,
    option(WHERE, "--budget", metavar="AMOUNT", help="Start no run beyond it: 50usd, 200gpuh, 400cpuh; or several."),
]
Pack = Annotated[
    int | None,
    option(WHERE, "--pack", metavar="K", help="K runs at a time share one array task, until its time is up."),
]
Workers = Annotated[
    int | None, option(WHERE, "--workers", metavar="N", help="On `here`: runs at a time (default: cores, or GPUs).")
]

# -- what each run asks for: SLURM's own words -------------------------------------------------------------------

Gres = Annotated[str | None, option(ASK, "--gres", metavar="GRES", help="e.g. gpu:1, gpu:a100:2.")]
Gpus = Annotated[str | None, option(ASK, "--gpus", metavar="N", help="GPUs of a run.")]
Cpus = Annotated[int | None, option(ASK, "--cpus", "-c", metavar="N", help="Cores of a run.")]
Mem = Annotated[str | None, option(ASK, "--mem", metavar="SIZE", help="Memory of a run, e.g. 16G.")]
Time = Annotated[str | None, option(ASK, "--time", "-t", metavar="TIME", help="Time limit: minutes, H:MM:SS or D-HH.")]
Partition = Annotated[str | None, option(ASK, "--partition", "-p", metavar="NAME", help="SLURM partition.")]
Account = Annotated[str | None, option(ASK, "--account", metavar="NAME", help="SLURM account.")]
Qos = Annotated[str | None, option(ASK, "--qos", metavar="NAME", help="SLURM quality of service.")]
Constraint = Annotated[str | None, option(ASK, "--constraint", metavar="LIST", help="Features a node must have.")]
Nodes = Annotated[int | None, option(ASK, "--nodes", metavar="N", help="Nodes of a run.")]
Exclude = Annotated[str | None, option(ASK, "--exclude", metavar="NODES", help="Nodes to stay away from.")]
Alloc = Annotated[
    str | None, option(ASK, "--alloc", metavar="ARGS", help='Raw sbatch arguments for everything else: "--a=b -c d".')
]
Grace = Annotated[
    int | None,
    option(ASK, "--grace", metavar="SECONDS", help="From SIGTERM to SIGKILL when time is up (default 60)."),
]
MaxRequeues = Annotated[
    int | None, option(ASK, "--max-requeues", metavar="N", help="How often a run may start again (default 3).")
]

# -- environment of a run ----------------------------------------------------------------------------------------

Python = Annotated[str | None, option(ENVIRONMENT, "--python", metavar="PATH", help="Which Python runs the script.")]
Setup = Annotated[
    list[str] | None,
    option(ENVIRONMENT, "--setup", metavar="LINE", help='Shell line before each run: "module load cuda".'),
]


class EnvKind(enum.StrEnum):
    """What ``--env`` takes."""

    AUTO = "auto"
    NONE = "none"


Env = Annotated[
    EnvKind | None,
    option(ENVIRONMENT, "--env", help="auto: build the project's environment once and reuse it."),
]
Container = Annotated[
    str | None, option(ENVIRONMENT, "--container", metavar="IMAGE", help="Run inside it (apptainer or enroot).")
]
Data = Annotated[
    list[str] | None,
    option(
        ENVIRONMENT, "--data", metavar="PATH", help="Path that git ignores but runs read; default: ignored folders."
    ),
]
MaxFile = Annotated[
    float | None, option(ENVIRONMENT, "--max-file", metavar="MB", help="Refuse larger files in the code (default 50).")
]

# -- record ------------------------------------------------------------------------------------------------------

Name = Annotated[str | None, option(RECORD, "--name", metavar="NAME", help="Default: the script's name.")]
Message = Annotated[str | None, option(RECORD, "--message", "-m", metavar="TEXT", help="What the question is.")]
Tags = Annotated[list[str] | None, option(RECORD, "--tag", metavar="TAG", help="A word to find it by.")]
LogPatterns = Annotated[
    list[str] | None,
    option(RECORD, "--log-pattern", metavar="REGEX", help="How a printed line gives metrics: named groups."),
]
MetricFiles = Annotated[
    list[str] | None,
    option(RECORD, "--metric-files", metavar="GLOB", help="Files that runs write metrics to, e.g. 'out/*.csv'."),
]

# -- then --------------------------------------------------------------------------------------------------------

Wait = Annotated[bool, option(THEN, "--wait", help="Stay until the last run ends, then harvest; exit 1 if one failed.")]
DryRun = Annotated[
    bool, option(THEN, "--dry-run", help="Show the runs, the sbatch script and the GPU-hours; submit nothing.")
]
