"""The command line of a run: params into the words that the script gets, for every way of passing them.

Everything is a list of words; nothing is ever quoted for, or read by, a shell. The macros of ``command:`` are those
of Weights & Biases sweeps (https://docs.wandb.ai/models/sweeps/sweep-config-keys#command).
"""

from __future__ import annotations

import json
import math
import os
import re
from typing import Any, Dict, Iterator, List, Mapping, Optional, Sequence, Tuple

Params = Mapping[str, Any]

# What a param must not overwrite: with these changed, the run would no longer be the run that was asked for.
_RESERVED = re.compile(r"(PATH|HOME|USER|SHELL|TMPDIR|LANG|IFS|CUDA_VISIBLE_DEVICES|(LD|LC|PYTHON|SLURM|EMS).*)\Z")
_MACRO = re.compile(r"\$\{([A-Za-z_]+)\}")
MACROS = (
    "${env}",
    "${interpreter}",
    "${program}",
    "${args}",
    "${args_no_hyphens}",
    "${args_no_equals}",
    "${args_no_boolean_flags}",
    "${args_json}",
)
_ENVVAR = re.compile(r"\$\{envvar:([A-Za-z_][A-Za-z0-9_]*)\}")


def command(
    python: str,
    script: str,
    args: Sequence[str],
    params: Params,
    pass_as: str,
    template: Optional[Sequence[str]] = None,
    launcher: Optional[Sequence[str]] = None,
) -> Tuple[List[str], Dict[str, str]]:
    """Return the words that start a run, and the environment that it gets on top.

    Parameters
    ----------
    python
        The interpreter of the run.
    script, args
        The entry point and the user's own arguments. Params come after them, so that params win where a parser
        takes the last of two.
    params
        The point; nested mappings are flattened with dots (``--model.depth 3``).
    pass_as
        ``flags`` (``--lr 0.1``, or ``--lr=-1`` where the value starts with a dash; true is a bare flag, false and
        null are left out), ``hydra`` (``lr=0.1`` in Hydra's override grammar), ``positional`` (the values as they
        are, in the order of the params), ``env`` (``LR=0.1``; null is left out) or ``none``.
    template
        The ``command:`` list of a sweep file; its macros then say where params go, whatever ``pass_as``.
    launcher
        Words between the interpreter and the script, see :func:`ems.node.launch.arguments`.

    Raises
    ------
    ValueError
        If a param cannot be passed so: a NUL byte, two names that are one environment variable, a variable that
        the run depends on, an unknown macro. The message names it.
    """
    interpreter = [python, *(launcher or ())]
    env = environment(params) if pass_as == "env" else {}  # noqa: S105 - not a password
    if template:
        words = _fill(template, interpreter, script, args, params)
    else:
        words = [*interpreter, script, *args, *_WORDS[pass_as](params)]
    for word in words:
        if "\0" in word:
            raise ValueError("%r cannot be passed to a program: it has a NUL byte" % word)
    return words, env


def flatten(params: Params, prefix: str = "") -> Iterator[Tuple[str, Any]]:
    """Yield ``(name, value)`` with the names of nested params joined by dots; an empty mapping is a value."""
    for name, value in params.items():
        if isinstance(value, Mapping) and value:
            yield from flatten(value, prefix + name + ".")
        else:
            yield prefix + name, value


def text(value: Any) -> str:
    """Return ``value`` as one word: strings as they are, everything else as JSON (``true``, ``null``, ``[1, 2]``).

    ``inf`` and ``nan`` are written as Python, C and NumPy read them, not as JSON's ``Infinity`` and ``NaN``.
    """
    if isinstance(value, str):
        return value
    if isinstance(value, float):
        return repr(float(value))
    return json.dumps(value, ensure_ascii=False)


def environment(params: Params) -> Dict[str, str]:
    """Return params as environment variables: upper case, everything but letters and digits as ``_``.

    Raises
    ------
    ValueError
        If two params give the same variable, or one gives a variable that the run itself depends on.
    """
    env: Dict[str, str] = {}
    origin: Dict[str, str] = {}
    for name, value in flatten(params):
        variable = re.sub(r"[^A-Z0-9_]", "_", name.upper())
        if variable[:1].isdigit():
            variable = "_" + variable
        if variable in origin:
            raise ValueError("params `%s` and `%s` are both %s in the environment" % (origin[variable], name, variable))
        if _RESERVED.match(variable):
            raise ValueError("param `%s` would overwrite %s, which the run depends on" % (name, variable))
        origin[variable] = name
        if value is not None:
            env[variable] = text(value)
            if "\0" in env[variable]:
                raise ValueError("param `%s` cannot be passed in the environment: it has a NUL byte" % name)
    return env


def _flags(params: Params) -> List[str]:
    words = []
    for name, value in flatten(params):
        if value is True:
            words.append("--" + name)
        elif value is not None and value is not False:
            word = text(value)
            # A parser takes a second word that starts with a dash for the next option.
            words += ["--%s=%s" % (name, word)] if word.startswith("-") else ["--" + name, word]
    return words


def _positional(params: Params) -> List[str]:
    return [text(value) for _, value in flatten(params)]


def _hydra(params: Params) -> List[str]:
    return ["%s=%s" % (name, _hydra_value(value)) for name, value in flatten(params)]


def _hydra_value(value: Any) -> str:
    """Write a value in the grammar of https://hydra.cc/docs/advanced/override_grammar/basic/."""
    if isinstance(value, str):
        # OmegaConf reads ${...} as an interpolation also inside quotes; a backslash (and every one before it, twice)
        # makes it text. Hydra's quoting then doubles the backslashes that stand before a quote or the end.
        literal = re.sub(r"(\\*)\$\{", r"\1\1\\${", value)
        return "'" + re.sub(r"(\\*)'", r"\1\1\\'", re.sub(r"(\\+)\Z", r"\1\1", literal)) + "'"
    if isinstance(value, float) and not math.isfinite(value):
        return text(value)
    if isinstance(value, (list, tuple)):
        return "[" + ",".join(_hydra_value(item) for item in value) + "]"
    if isinstance(value, Mapping):
        return "{" + ",".join("%s:%s" % (_hydra_value(k), _hydra_value(v)) for k, v in value.items()) + "}"
    return text(value)


def _none(params: Params) -> List[str]:  # noqa: ARG001 - one signature for all ways of passing
    return []


_WORDS = {"flags": _flags, "hydra": _hydra, "positional": _positional, "env": _none, "none": _none}


def _fill(
    template: Sequence[str], interpreter: List[str], script: str, args: Sequence[str], params: Params
) -> List[str]:
    flat = list(flatten(params))
    macros: Dict[str, List[str]] = {
        "env": ["/usr/bin/env"],
        "interpreter": interpreter,
        "program": [script, *args],
        # W&B writes values as Python's str() does: scripts written for it expect True and None.
        "args": ["--%s=%s" % item for item in flat],
        "args_no_hyphens": ["%s=%s" % item for item in flat],
        "args_no_equals": [word for name, value in flat for word in ("--" + name, str(value))],
        "args_no_boolean_flags": [_no_boolean(name, value) for name, value in flat if value is not False],
        "args_json": [json.dumps(dict(params), ensure_ascii=False)],
    }
    words = []
    for item in template:
        macro = _macro(item)
        words += [_ENVVAR.sub(_variable, item)] if macro is None else macros[macro]
    return words if "${program}" in template else words + list(args)


def check_command(template: Sequence[str]) -> None:
    """Raise ValueError, saying why, if a ``command:`` list has a macro that is unknown or inside a word."""
    for item in template:
        _macro(item)


def _macro(item: str) -> Optional[str]:
    """Return the macro that ``item`` is; None for a plain word."""
    found = _MACRO.search(item)
    if found is None:
        return None
    name = found.group(1)
    if "${%s}" % name in MACROS:
        if found.group() != item:
            raise ValueError("`${%s}` in `%s` must be a word of its own in the command" % (name, item))
        return name
    import difflib  # only on the way to an error: workers start in milliseconds

    close = difflib.get_close_matches("${%s}" % name, MACROS, 1)
    guess = "; did you mean `%s`?" % close[0] if close else ""
    raise ValueError("the command has an unknown macro `${%s}`%s" % (name, guess))


def _no_boolean(name: str, value: Any) -> str:
    return "--" + name if value is True else "--%s=%s" % (name, value)


def _variable(match: "re.Match[str]") -> str:
    name = match.group(1)
    if name not in os.environ:
        raise ValueError("the command asks for `${envvar:%s}`, but %s is not set where the run starts" % (name, name))
    return os.environ[name]
