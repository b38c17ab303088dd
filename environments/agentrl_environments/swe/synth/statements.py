"""Writes problem statements from the way the tests fail: what was called, what was expected, what happened.

A problem statement shows examples. An example is the statement at which a test failed, with the assignments
that it depends on, and nothing else of the test. The package's own source is not quoted.
If a problem statement contains a line that the fix adds or removes, it is written again with less detail, so
that it does not reveal the fix.
"""

from __future__ import annotations

import ast
import re
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence

from agentrl_environments.swe import diffs
from agentrl_environments.swe.synth.candidates import REMOVE_BODY, CheckedCandidate, Failure

MAX_EXAMPLES = 3
_MAX_LINES = 14
"""Maximum number of lines of an example."""
_MAX_QUOTED = 400
"""Approximate maximum length of a quoted error message, in characters."""
_COMMON = re.compile(
    r"[\W_]*|pass|else:|try:|finally:|break|continue|return|return (None|True|False|self|NotImplemented)|"
    r"raise( NotImplementedError)?"
)
"""Pattern of lines that are too common to reveal a particular fix."""


def statement(
    package: str, checked: CheckedCandidate, tests: Mapping[str, str], fix: str, modules: Mapping[str, str]
) -> str:
    """Return the problem statement of a valid candidate.

    ``tests`` are the texts of the test files by path, ``fix`` is the patch that removes the bug, and
    ``modules`` are the texts of the files with the bug by path.
    """
    for examples, messages in ((MAX_EXAMPLES, True), (MAX_EXAMPLES, False), (0, True), (0, False)):
        text = _compose(package, checked, tests, modules, examples=examples, messages=messages)
        if not leaks(text, fix):
            return text
    return _head(package, checked, modules) + "\n"


def leaks(text: str, fix: str) -> bool:
    r"""Return whether a text contains a line that a patch adds or removes, except lines that are common.

    >>> fix = "--- a/m.py\n+++ b/m.py\n@@ -1 +1 @@\n-    return x + 1\n+    return x\n"
    >>> leaks("it returns x + 1\n", fix), leaks("see `return x + 1`\n", fix)
    (False, True)
    """
    lines = {
        line[1:].strip()
        for file in diffs.parse(fix)
        for hunk in file.hunks
        for line in hunk.lines
        if line[0] in "+-"
    }
    squeezed = " ".join(text.split())
    return any(
        " ".join(line.split()) in squeezed for line in lines if len(line) > 5 and not _COMMON.fullmatch(line)
    )


def _compose(
    package: str,
    checked: CheckedCandidate,
    tests: Mapping[str, str],
    modules: Mapping[str, str],
    *,
    examples: int,
    messages: bool,
) -> str:
    parts = [_head(package, checked, modules)]
    shown: set[str] = set()
    reported: set[tuple[str, str]] = set()
    for test in sorted(checked.failures, key=lambda test: (len(checked.failures[test].message), test)):
        failure = checked.failures[test]
        key = (failure.type, failure.message.split("\n", 1)[0])
        code = example(test, failure, tests) if examples else ""
        if len(reported) >= max(examples, 1) or key in reported or (code and code in shown):
            continue
        reported.add(key)
        shown.add(code)
        case = re.search(r"\[(.*)\]$", test)
        with_case = f" (for the case `{case.group(1)}`)" if case and code else ""
        happened = describe(failure, with_message=messages)
        if code:
            parts.append(f"This fails{with_case}:\n\n```python\n{code}\n```\n\n{happened}")
        else:
            name = re.sub(r"\[.*$", "", test).rpartition("::")[2]
            parts.append(f"A check called `{name}` fails. {happened}")
    more = len(checked.fail_to_pass) - len(reported)
    if more == 1:
        parts.append("1 more check of this behaviour fails.")
    elif more > 1:
        parts.append(f"{more} more checks of this behaviour fail.")
    return "\n\n".join(parts) + "\n"


def _head(package: str, checked: CheckedCandidate, modules: Mapping[str, str]) -> str:
    if checked.candidate.kind == REMOVE_BODY:
        path, name = checked.candidate.functions[0].split("::")
        signature, docstring = _signature(modules[path], name)
        head = f"`{name}` in `{path}` is not implemented: it only raises `NotImplementedError`. Write it."
        head += f"\n\n```python\n{signature}\n```"
        return head + (f"\n\nIts description says:\n\n{docstring}" if docstring else "")
    many = " There may be more than one cause." if len(checked.candidate.edits) > 1 else ""
    return f"{package} does not behave as it should.{many}"


def describe(failure: Failure, *, with_message: bool = True) -> str:
    r"""Return a sentence that says what happened in a failed test, and what should have happened.

    >>> describe(Failure(type="AssertionError", message="assert 1 == 2\n +  where 1 = f(3)"))
    'Expected `2`, but got `1`, where `1 = f(3)`.'
    """
    first, _, rest = failure.message.partition("\n")
    if missing := re.match(r"DID NOT RAISE <class '(?:builtins\.)?(.*)'>", first):
        return f"`{missing.group(1).rpartition('.')[2]}` should be raised, and is not."
    if failure.type == "AssertionError":
        if not with_message or not first:
            return "The assertion does not hold."
        origin = re.search(r"^\s*\+\s+where (.*)$", rest, re.MULTILINE)
        where = f", where `{_cut(origin.group(1))}`" if origin else ""
        compared = re.fullmatch(r"assert (.+) == (.+)", first)
        if compared and not re.search(r" (?:==|and|or) ", compared.group(1)):
            return f"Expected `{_cut(compared.group(2))}`, but got `{_cut(compared.group(1))}`{where}."
        if differ := re.fullmatch(r"(.+) != (.+)", first):
            return f"`{_cut(differ.group(1))}` and `{_cut(differ.group(2))}` should be equal, and are not."
        return f"What should hold does not: `{_cut(first.removeprefix('assert '))}`{where}."
    detail = f": {_cut(first)}" if with_message and first else ""
    return f"It should work, but raises `{failure.type}{detail}`."


def example(test: str, failure: Failure, tests: Mapping[str, str]) -> str:
    """Return the code of the statement at which a test failed, with the assignments it depends on.

    ``tests`` are the texts of the test files by path. The code is empty if it cannot be found or is too long.
    """
    path, *names = re.sub(r"\[.*\]$", "", test).split("::")
    if path not in tests or not names:
        return ""
    function = _function(ast.parse(tests[path]), names)
    lines = [line for file, line, name in failure.frames if file == path and name == names[-1]]
    if function is None or not lines:
        return ""
    failed, before = _statement_at(function, lines[0])
    if failed is None:
        return ""
    chosen = [failed]
    needed = _names(failed, ast.Load)
    for earlier in reversed(before):
        made = _names(earlier, ast.Store)
        simple = isinstance(
            earlier,
            (
                ast.Assign,
                ast.AnnAssign,
                ast.AugAssign,
                ast.Import,
                ast.ImportFrom,
                ast.FunctionDef,
                ast.ClassDef,
            ),
        )
        touched = (
            isinstance(earlier, ast.Expr)
            and isinstance(earlier.value, ast.Call)
            and bool(_names(earlier, ast.Load) & needed)
        )
        if (simple and made & needed) or touched:
            chosen.insert(0, earlier)
            needed |= _names(earlier, ast.Load)
    source = tests[path].splitlines()
    blocks = [textwrap.dedent("\n".join(source[one.lineno - 1 : one.end_lineno])) for one in chosen]
    code = "\n".join(blocks)
    if len(code.splitlines()) > _MAX_LINES:
        code = blocks[-1]
    return code if len(code.splitlines()) <= _MAX_LINES else ""


def _function(tree: ast.AST, names: Sequence[str]) -> ast.FunctionDef | ast.AsyncFunctionDef | None:
    """Return the function with a qualified name, given as a list of names, or ``None`` if there is none."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)) and node.name == names[0]:
            if len(names) > 1:
                return _function(node, names[1:])
            if not isinstance(node, ast.ClassDef):
                return node
    return None


def _statement_at(
    function: ast.FunctionDef | ast.AsyncFunctionDef, line: int
) -> tuple[ast.stmt | None, list[ast.stmt]]:
    """Return the statement that contains a line, and all statements before it in the function.

    If the line is in a ``with`` block, the whole ``with`` statement is returned.
    """
    before: list[ast.stmt] = []

    def inside(body: Iterable[ast.stmt]) -> ast.stmt | None:
        for one in body:
            if not one.lineno <= line <= (one.end_lineno or one.lineno):
                before.append(one)
                continue
            inner = [block for name in ("body", "orelse", "finalbody") for block in getattr(one, name, [])]
            if (
                inner
                and not isinstance(one, (ast.With, ast.FunctionDef, ast.ClassDef))
                and line >= inner[0].lineno
            ):
                return inside(inner)
            return one
        return None

    return inside(function.body), before


def _names(node: ast.AST, context: type[ast.expr_context]) -> set[str]:
    """Return the names that a node reads (``ast.Load``) or assigns (``ast.Store``)."""
    found = {one.id for one in ast.walk(node) if isinstance(one, ast.Name) and isinstance(one.ctx, context)}
    if context is ast.Store:
        found |= {one.name for one in ast.walk(node) if isinstance(one, (ast.FunctionDef, ast.ClassDef))}
        found |= {
            (one.asname or one.name).partition(".")[0] for one in ast.walk(node) if isinstance(one, ast.alias)
        }
        if isinstance(node, (ast.Assign, ast.AugAssign)):  # x.y = 1 and x[0] = 1 change x
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found |= {one.id for target in targets for one in ast.walk(target) if isinstance(one, ast.Name)}
    return found


def _signature(text: str, name: str) -> tuple[str, str]:
    """Return the signature and the docstring of the function ``name`` in the source ``text``."""
    function = _function(ast.parse(text), name.split("."))
    if function is None:
        return name, ""
    word = "async def" if isinstance(function, ast.AsyncFunctionDef) else "def"
    returns = f" -> {ast.unparse(function.returns)}" if function.returns else ""
    signature = f"{word} {function.name}({ast.unparse(function.args)}){returns}:"
    return signature, ast.get_docstring(function) or ""


def _cut(text: str) -> str:
    """Return a text in a form for quoting, without backticks and memory addresses.

    If it is longer than `_MAX_QUOTED` characters, its middle is left out.
    """
    text = text.strip().replace("`", "'")
    text = re.sub(r"\b0x[0-9a-f]{6,}\b", "0x...", text)  # addresses differ between runs
    if len(text) <= _MAX_QUOTED:
        return text
    return text[: _MAX_QUOTED // 2] + " ... " + text[-_MAX_QUOTED // 4 :]


def without_functions(text: str, names: Iterable[Sequence[str]]) -> str:
    """Return a test file without some of its functions, each given by its qualified name as a list of names.

    A class that would be empty gets ``pass``.
    """
    tree = ast.parse(text)
    gone = {id(node): node for path in names for node in _definitions(tree, path)}
    lines = text.splitlines(keepends=True)
    cuts: list[tuple[int, int, str]] = []
    holders: list[ast.Module | ast.ClassDef] = [
        tree,
        *(node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)),
    ]
    for holder in holders:
        body = holder.body
        removed = [node for node in body if id(node) in gone]
        for node in removed:
            start = min([node.lineno, *(one.lineno for one in getattr(node, "decorator_list", []))])
            instead = (
                " " * node.col_offset + "pass\n"
                if len(removed) == len(body) and node is removed[-1] and holder is not tree
                else ""
            )
            cuts.append((start - 1, node.end_lineno or node.lineno, instead))
    for start, stop, instead in sorted(cuts, reverse=True):
        while not instead and stop < len(lines) and not lines[stop].strip():
            stop += 1  # also remove the blank lines below
        lines[start:stop] = [instead] if instead else []
    return "".join(lines)


def _definitions(tree: ast.Module, names: Sequence[str]) -> Iterator[ast.stmt]:
    """Yield every function that the qualified name of a test can refer to.

    This includes a function that the test's class inherits from a class in the same file.
    """
    classes = {node.name: node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}
    holders: list[ast.Module | ast.ClassDef] = [tree]
    for name in names[:-1]:
        holders = [
            node
            for holder in holders
            for node in holder.body
            if isinstance(node, ast.ClassDef) and node.name == name
        ]
    seen: set[str] = set()
    while holders:
        holder = holders.pop()
        own = [
            node
            for node in holder.body
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.name == names[-1]
        ]
        yield from own
        if isinstance(holder, ast.ClassDef) and not own and holder.name not in seen:
            seen.add(holder.name)
            holders += [
                classes[base.id] for base in holder.bases if isinstance(base, ast.Name) and base.id in classes
            ]
