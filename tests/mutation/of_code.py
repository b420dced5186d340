"""Mutants of Python: one operator, condition, number, result or statement of a function, or one constant of a module.

A mutant takes the place of the function's code where it is, so everybody who holds the function has it. What runs only
once, when a module is imported, is left alone but for numbers that functions use; so are assertions, messages and
`__repr__`.
"""

from __future__ import annotations

import ast
import functools
import importlib
import inspect
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

from tests.mutation.mutant import Mutant

ROOT = Path(__file__).parent.parent.parent
COMPARISONS: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
}
ARITHMETIC: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.FloorDiv,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Mult,
    ast.Pow: ast.Mult,
    ast.LShift: ast.RShift,
    ast.RShift: ast.LShift,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
    ast.BitXor: ast.BitOr,
}
LEFT_ALONE = ("__repr__", "__str__")

Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Edit:
    """A change of a syntax tree; `lines` are those that run where it matters."""

    kind: str
    what: str
    lines: range
    make: Callable[[], None]


def mutants(module: str, functions: tuple[str, ...] = ()) -> Iterator[Mutant]:
    """All of one module, or of those functions of it whose names in the module begin so."""
    source = inspect.getsource(importlib.import_module(module))
    file = str(Path(*module.split(".")).with_suffix(".py"))
    known: Counter[str] = Counter()
    tree = ast.parse(source)
    for name, function in _functions(tree):
        if functions and not name.startswith(functions):
            continue
        for number, edit in enumerate(_edits(function)):
            what = f"{name}: {edit.what}"
            known[what] += 1
            again = f" ({known[what]})" if known[what] > 1 else ""
            traces = frozenset(("line", file, line) for line in edit.lines)
            install = functools.partial(_install, module, name, number)
            yield Mutant(f"{file} {what}{again}", file, edit.kind, traces, install)
    if not functions:
        yield from _constants(module, file, tree)


def _install(module: str, name: str, number: int) -> None:
    """Give the function the changed code."""
    here = importlib.import_module(module)
    tree = ast.parse(inspect.getsource(here))
    (function,) = [function for known, function in _functions(tree) if known == name]
    next(edit for index, edit in enumerate(_edits(function)) if index == number).make()
    code = compile(ast.fix_missing_locations(tree), str(here.__file__), "exec", dont_inherit=True)
    for part in name.split("."):
        code = next(one for one in code.co_consts if isinstance(one, CodeType) and one.co_name == part)
    _function(here, name).__code__ = code


def _function(module: ModuleType, name: str) -> Any:
    value: Any = module
    for part in name.split("."):
        value = inspect.getattr_static(value, part)
    if isinstance(value, property):
        value = value.fget
    return inspect.unwrap(getattr(value, "__func__", value))


def _functions(tree: ast.Module) -> Iterator[tuple[str, Function]]:
    """Those of the module and of its classes, with their names; functions in functions belong to the outer one."""
    todo: list[tuple[str, ast.stmt]] = [("", node) for node in tree.body]
    while todo:
        prefix, node = todo.pop(0)
        if isinstance(node, ast.ClassDef):
            todo += [(f"{prefix}{node.name}.", child) for child in node.body]
        elif isinstance(node, Function) and node.name not in LEFT_ALONE:
            yield f"{prefix}{node.name}", node


def _constants(module: str, file: str, tree: ast.Module) -> Iterator[Mutant]:
    """Numbers that the module names and that its functions use."""
    here = importlib.import_module(module)
    for statement in tree.body:
        target = statement.targets[0] if isinstance(statement, ast.Assign) else getattr(statement, "target", None)
        if not isinstance(target, ast.Name):
            continue
        value = getattr(here, target.id, None)
        if type(value) not in (int, float):
            continue
        lines = {
            node.lineno
            for _, function in _functions(tree)
            for part in function.body
            for node in ast.walk(part)
            if isinstance(node, ast.Name) and node.id == target.id
        }
        if lines:
            traces = frozenset(("line", file, line) for line in lines)
            install = functools.partial(_set, target.id, value)
            yield Mutant(f"{file} {target.id}: {value!r} + 1", file, "constant", traces, install)


def _set(name: str, value: Any) -> None:
    for module in list(sys.modules.values()):
        if module.__name__.startswith(("voicegw", "tests")) and getattr(module, name, None) == value:
            setattr(module, name, value + 1)


# -- edits


def _edits(function: Function) -> Iterator[Edit]:
    truth = isinstance(function.returns, ast.Name) and function.returns.id == "bool"
    body = function.body[1:] if ast.get_docstring(function) is not None else function.body
    for statement in list(body):
        yield from _in_statement(statement, truth, removable=function.name != "__init__")


def _in_statement(statement: ast.stmt, truth: bool, removable: bool) -> Iterator[Edit]:
    """Of one statement and those inside."""
    if isinstance(statement, ast.Assert) or _checks_types(statement):
        return
    inside = [value for _, value in ast.iter_fields(statement)]
    blocks = [value for value in inside if isinstance(value, list) and value and isinstance(value[0], ast.stmt)]
    for handler in getattr(statement, "handlers", ()):
        blocks.append(handler.body)
    first = range(statement.lineno, (statement.lineno if blocks else statement.end_lineno or statement.lineno) + 1)
    if removable and _removable(statement):
        yield Edit("statement", f"{_text(statement)} removed", first, functools.partial(_remove, statement))
    if _guards(statement):
        assert isinstance(statement, ast.If)
        never = functools.partial(setattr, statement, "test", ast.Constant(False))
        yield Edit("condition", f"never if {_text(statement.test)}", first, never)
    if isinstance(statement, ast.Return) and statement.value is not None and not _fixed(statement.value):
        for result in (True, False) if truth else (None,):
            value = ast.Constant(result)
            yield Edit(
                "result",
                f"{_text(statement)} -> return {result}",
                first,
                functools.partial(setattr, statement, "value", value),
            )
    if not isinstance(statement, ast.Raise):
        for field, value in ast.iter_fields(statement):
            if field in ("annotation", "returns", "decorator_list", "args", "targets"):
                continue
            for index, child in enumerate(value if isinstance(value, list) else [value]):
                if isinstance(child, ast.expr):
                    asked = field == "test" and isinstance(statement, ast.If | ast.While)
                    yield from _in_expression(statement, field, index, child, asked)
                elif isinstance(child, ast.withitem):
                    yield from _in_expression(child, "context_expr", 0, child.context_expr, False)
                elif isinstance(child, ast.match_case) and child.guard is not None:
                    yield from _in_expression(child, "guard", 0, child.guard, True)
    for block in blocks:
        for child in list(block):
            yield from _in_statement(child, truth, removable)
    for case in getattr(statement, "cases", ()):
        for child in list(case.body):
            yield from _in_statement(child, truth, removable)


def _in_expression(parent: ast.AST, field: str, index: int, node: ast.expr, asked: bool) -> Iterator[Edit]:
    """Of one expression and those inside; `asked` where it decides which way to go."""
    if isinstance(node, ast.JoinedStr):
        return

    def put(new: ast.expr) -> None:
        place = getattr(parent, field)
        if isinstance(place, list):
            place[index] = new
        else:
            setattr(parent, field, new)

    lines = range(node.lineno, (node.end_lineno or node.lineno) + 1)
    text = _text(node)
    if isinstance(node, ast.Compare):
        for place, operator in enumerate(node.ops):
            other = COMPARISONS[type(operator)]()
            turned = ast.Compare(node.left, [*node.ops[:place], other, *node.ops[place + 1 :]], node.comparators)
            yield Edit("comparison", f"{text} -> {_text(turned)}", lines, functools.partial(put, turned))
    elif isinstance(node, ast.BoolOp):
        joined = ast.BoolOp(ast.And() if isinstance(node.op, ast.Or) else ast.Or(), node.values)
        yield Edit("condition", f"{text} -> {_text(joined)}", lines, functools.partial(put, joined))
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        yield Edit("condition", f"{text} -> {_text(node.operand)}", lines, functools.partial(put, node.operand))
    elif isinstance(node, ast.BinOp) and not _is_text(node):
        other_sum = ast.BinOp(node.left, ARITHMETIC.get(type(node.op), ast.Add)(), node.right)
        yield Edit("arithmetic", f"{text} -> {_text(other_sum)}", lines, functools.partial(put, other_sum))
    elif isinstance(node, ast.Constant) and type(node.value) in (int, float, bool):
        value = (not node.value) if isinstance(node.value, bool) else node.value + 1  # type: ignore[operator]
        whole = _text(parent)
        where = f" in {whole}" if len(whole) > len(text) else ""
        yield Edit("constant", f"{text} -> {value}{where}", lines, functools.partial(put, ast.Constant(value)))
    elif asked:
        turned_round = ast.UnaryOp(ast.Not(), node)
        yield Edit("condition", f"{text} -> {_text(turned_round)}", lines, functools.partial(put, turned_round))
    for name, value in ast.iter_fields(node):
        for place, child in enumerate(value if isinstance(value, list) else [value]):
            if isinstance(child, ast.expr):
                yield from _in_expression(node, name, place, child, isinstance(node, ast.IfExp) and name == "test")
            elif isinstance(child, ast.keyword):
                yield from _in_expression(child, "value", 0, child.value, False)
            elif isinstance(child, ast.comprehension):
                yield from _in_expression(child, "iter", 0, child.iter, False)
                for number, question in enumerate(child.ifs):
                    yield from _in_expression(child, "ifs", number, question, True)


def _removable(statement: ast.stmt) -> bool:
    """Is it there for what it does? A name that is not set would only be an error of another kind."""
    if isinstance(statement, ast.Assign):
        return not all(isinstance(target, ast.Name | ast.Tuple) for target in statement.targets)
    if isinstance(statement, ast.Expr):
        return isinstance(statement.value, ast.Call | ast.Await)
    return isinstance(statement, ast.AugAssign | ast.Delete | ast.Raise | ast.Continue | ast.Break)


def _guards(statement: ast.stmt) -> bool:
    """Does it keep something from what follows?"""
    leaves = ast.Return | ast.Raise | ast.Continue | ast.Break
    return isinstance(statement, ast.If) and not statement.orelse and isinstance(statement.body[-1], leaves)


def _remove(statement: ast.stmt) -> None:
    """What is left does nothing."""
    for field in statement._fields:
        if hasattr(statement, field):
            delattr(statement, field)
    statement.__class__ = ast.Pass


def _fixed(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and type(node.value) in (bool, type(None), int, float)


def _is_text(node: ast.BinOp) -> bool:
    return any(isinstance(side, ast.Constant) and isinstance(side.value, str) for side in (node.left, node.right))


def _checks_types(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.If) and _text(statement.test) == "TYPE_CHECKING"


def _text(node: ast.AST) -> str:
    """On one line, not too long."""
    text = " ".join(ast.unparse(node).split())
    return text if len(text) <= 90 else f"{text[:60]} ... {text[-25:]}"
