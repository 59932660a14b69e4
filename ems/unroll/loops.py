"""The loops of a script that become axes: which they are, and what of their surroundings matters.

The first perfect nest of ``for`` loops at module level or in the ``if __name__ == "__main__":`` block, or exactly the
loops marked ``# ems: sweep``.
"""

from __future__ import annotations

import ast
import io
import re
import tokenize
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

from ems.errors import ScriptError
from ems.node.launch import target_names

LOOPS = (ast.For, ast.AsyncFor, ast.While)
_DIRECTIVE = re.compile(r"#\s*ems:\s*(\w+)\s*$")
_SILENT = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Import, ast.ImportFrom, ast.Pass)


@dataclass(frozen=True, slots=True)
class Nest:
    """The loops to sweep, as they stand in the tree of the script."""

    tree: ast.Module
    loops: tuple[ast.For, ...]
    filename: str

    @property
    def is_perfect(self) -> bool:
        """Whether nothing stands between the loops."""
        return all(outer.body == [inner] for outer, inner in pairwise(self.loops))


def parse(source: str, filename: str) -> ast.Module:
    """Parse a script.

    Raises
    ------
    ScriptError
        If it does not compile; the message has the line.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the script's own, which Python shows when it runs
            tree = ast.parse(source, filename)
            compile(tree, filename, "exec", dont_inherit=True)
    except SyntaxError as error:
        line = f" line {error.lineno}" if error.lineno else ""
        text = f": `{error.text.strip()}`" if error.text else ""
        raise ScriptError(f"{filename}{line}: {error.msg}{text}", "mend the script first") from error
    except (ValueError, RecursionError, MemoryError) as error:
        raise ScriptError(f"{filename}: {error}", "mend the script first") from error
    return tree


def find(source: str, filename: str) -> Nest | None:
    """Return the loops to sweep, or None if there are none.

    Raises
    ------
    ScriptError
        If the script does not compile, or its markers make no sense.
    """
    source = source.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")
    tree = parse(source, filename)
    loops = _marked(tree, source, filename) or _first_nest(tree)
    for loop in loops:
        try:
            target_names(loop.target)
        except ValueError:
            raise ScriptError(
                f"{filename} line {loop.lineno}: the loop over `{text_of(loop.target)}` binds no plain names",
                f"write `for item in {text_of(loop.iter)}:` and take it apart in the body",
            ) from None
    return Nest(tree, loops, filename) if loops else None


def _first_nest(tree: ast.Module) -> tuple[ast.For, ...]:
    loop = next((node for node in top_level(tree) if isinstance(node, ast.For)), None)
    loops: list[ast.For] = []
    while loop is not None:
        loops.append(loop)
        loop = loop.body[0] if len(loop.body) == 1 and isinstance(loop.body[0], ast.For) else None
    return tuple(loops)


def top_level(tree: ast.Module) -> Iterator[ast.stmt]:
    """Yield the statements of the module and of its ``if __name__ == "__main__":`` block, in order."""
    for statement in tree.body:
        yield statement
        match statement:
            case ast.If(test=ast.Compare(left=left, ops=[ast.Eq()], comparators=[right])):
                words = {p.id if isinstance(p, ast.Name) else getattr(p, "value", None) for p in (left, right)}
                if words == {"__name__", "__main__"}:
                    yield from statement.body


def _marked(tree: ast.Module, source: str, filename: str) -> tuple[ast.For, ...]:
    """Return the loops marked ``# ems: sweep``, on their line or on one of their own above it."""
    every = [node for node in ast.walk(tree) if isinstance(node, ast.For)]
    marked: dict[int, ast.For] = {}
    for first, last, line in _markers(source, filename):
        loop = next((f for f in every if first == f.lineno or last in _head(f)), None)
        if loop is None:
            raise ScriptError(
                f"{filename} line {line}: `# ems: sweep` marks no `for` loop",
                "put it at the end of the line of a `for` statement, or on a line of its own just above",
            )
        marked[loop.lineno] = loop
    loops = [marked[line] for line in sorted(marked)]
    for outer, inner in pairwise(loops):
        if not _directly_within(inner, outer):
            raise ScriptError(
                f"{filename}: the loops marked on lines {outer.lineno} and {inner.lineno} are not one inside the other",
                "mark the loops of one nest; run the script twice for two",
            )
    return tuple(loops)


def _head(loop: ast.For) -> range:
    """Return the lines from ``for`` to the colon, or the one line that the loop is."""
    return range(loop.lineno, max(loop.body[0].lineno, loop.lineno + 1))


def _markers(source: str, filename: str) -> Iterator[tuple[int, int, int]]:
    """Yield ``(line of the loop, line in its head, line of the marker)``; -1 where a line is not known."""
    if not re.search(r"#\s*ems:", source):
        return
    waiting: list[int] = []
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        line = token.start[0]
        if token.type == tokenize.COMMENT:
            directive = _DIRECTIVE.match(token.string)
            if directive is None:
                continue
            if directive[1] != "sweep":
                raise ScriptError(
                    f"{filename} line {line}: `{token.string}` is nothing that ems knows", "write `# ems: sweep`"
                )
            if token.line.strip().startswith("#"):
                waiting.append(line)
            else:
                yield -1, line, line
        elif token.type not in (tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT):
            yield from ((line, -1, marker) for marker in waiting)
            waiting.clear()


def _directly_within(inner: ast.For, outer: ast.For) -> bool:
    """Whether ``inner`` stands in the body of ``outer``, not in a function defined there."""
    waiting: list[ast.AST] = list(outer.body)
    while waiting:
        node = waiting.pop()
        if node is inner:
            return True
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            waiting += ast.iter_child_nodes(node)
    return False


def find_differences(nest: Nest) -> Iterator[str]:
    """Say what runs otherwise than in plain execution."""
    outermost = nest.loops[0]
    for outer, inner in pairwise(nest.loops):
        if outer.body != [inner]:
            lines = f"lines {outer.lineno} and {inner.lineno}"
            yield f"line {outer.lineno}: what stands between the loops on {lines} runs in every run"
    for loop in nest.loops:
        for node in _leaving(loop.body):
            word = "break" if isinstance(node, ast.Break) else "return"
            why = f"each has one item of the loop on line {loop.lineno}"
            yield f"line {node.lineno}: `{word}` stops no other run: {why}"
        if loop.orelse:
            yield f"line {loop.orelse[0].lineno}: the `else` of the loop on line {loop.lineno} runs in every run"
    for statements in _after(nest.tree, outermost):
        active = [s for s in statements if not isinstance(s, _SILENT)]
        if active:
            first, last = active[0].lineno, active[-1].end_lineno
            lines = f"line {first}" if first == last else f"lines {first}-{last}"
            yield f"{lines}: what follows the loops runs at the end of every run"


def _leaving(body: list[ast.stmt], in_loop: bool = False) -> Iterator[ast.Break | ast.Return]:
    """Yield the ``break`` of this loop, and each ``return`` in it."""
    for node in body:
        if isinstance(node, ast.Return) or (isinstance(node, ast.Break) and not in_loop):
            yield node
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            continue
        for name in ("body", "orelse", "finalbody", "handlers", "cases"):
            # The `else` of an inner loop is outside that loop: its `break` is ours.
            inner = in_loop or (isinstance(node, LOOPS) and name == "body")
            yield from _leaving(getattr(node, name, []), inner)


def _after(tree: ast.Module, loop: ast.For) -> Iterator[list[ast.stmt]]:
    """Yield the statements after ``loop`` in each block around it, up to its function or the module."""
    for node in ast.walk(tree):
        for name in ("body", "orelse", "finalbody"):
            block = getattr(node, name, None)
            if not isinstance(block, list):
                continue
            for position, statement in enumerate(block):
                if statement is loop or (loop in ast.walk(statement) and not _has_own_scope(statement)):
                    yield block[position + 1 :]


def _has_own_scope(node: ast.AST) -> bool:
    return isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)


def text_of(node: ast.AST) -> str:
    """Return the source of ``node``, shortened for a message."""
    text = ast.unparse(node)
    return text if len(text) <= 60 else text[:57] + "..."
