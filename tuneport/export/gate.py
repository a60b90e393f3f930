"""The condition under which a model is registered: scores compared with numbers, and no more than that."""

from __future__ import annotations

import ast
import operator
import typing as t
from collections.abc import Callable, Mapping

from tuneport.errors import UserError, did_you_mean, excerpt

MAX_LENGTH = 2000
EXAMPLE = "better_than_base and accuracy >= 0.9"
COMPARE: dict[type[ast.cmpop], Callable[[t.Any, t.Any], bool]] = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
}
COMPUTE: dict[type[ast.operator], Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}
Value = float | bool | None  # None: there is such a score, but it has no value on these rows


class Gate:
    """An expression of names, numbers, and, or, not, comparisons and + - * /, as in ``register_if``.

    Raises `UserError` for any other one.
    """

    def __init__(self, text: str, parameter: str) -> None:
        self.text, self.parameter = text, parameter
        try:
            if len(text) > MAX_LENGTH:
                raise ValueError(f"it has {len(text):,} characters")
            self.root = ast.parse(text.strip(), mode="eval").body
            self._check(self.root)
        except (SyntaxError, ValueError, RecursionError, MemoryError) as e:
            raise self._refusal(getattr(e, "msg", None) or str(e)) from None

    def __call__(self, values: Mapping[str, Value]) -> bool:
        """Whether it holds. Raises `UserError` for a name that there is not, or that has no value."""
        found = self._value(self.root, values)
        if not isinstance(found, bool):
            raise self._refusal(f"it comes to {excerpt(found)}, not to true or false")
        return found

    def said(self, values: Mapping[str, Value]) -> str:
        """The values of the names in it, in words."""
        names = dict.fromkeys(node.id for node in ast.walk(self.root) if isinstance(node, ast.Name))
        return ", ".join(f"{name}={_shown(values[name])}" for name in names if name in values)

    def _check(self, node: ast.AST) -> None:
        match node:
            case ast.BoolOp() | ast.Compare() | ast.BinOp() | ast.UnaryOp():
                parts = [p for p in ast.iter_child_nodes(node) if isinstance(p, ast.expr)]
                operators = [p for p in ast.iter_child_nodes(node) if not isinstance(p, ast.expr)]
                allowed = (*COMPARE, *COMPUTE, ast.And, ast.Or, ast.Not, ast.USub)
                if strange := next((o for o in operators if not isinstance(o, allowed)), None):
                    raise ValueError(f"it has {type(strange).__name__}")
                for part in parts:
                    self._check(part)
            case ast.Name():
                pass
            case ast.Constant(value=bool() | int() | float()):
                pass
            case _:
                raise ValueError(f"it has {excerpt(ast.unparse(node))}")

    def _value(self, node: ast.AST, values: Mapping[str, Value]) -> float | bool:
        match node:
            case ast.Name(id=name):
                return self._named(name, values)
            case ast.Constant(value=bool() | int() | float() as number):
                return number
            case ast.BoolOp(op=ast.And(), values=parts):
                return all(self._truth(part, values) for part in parts)
            case ast.BoolOp(values=parts):
                return any(self._truth(part, values) for part in parts)
            case ast.UnaryOp(op=ast.Not(), operand=part):
                return not self._truth(part, values)
            case ast.UnaryOp(operand=part):
                return -self._value(part, values)
            case ast.BinOp(left=left, op=compute, right=right):
                return self._computed(compute, self._value(left, values), self._value(right, values))
            case ast.Compare(left=left, ops=ops, comparators=others):
                found = [self._value(part, values) for part in (left, *others)]
                return all(COMPARE[type(op)](found[i], found[i + 1]) for i, op in enumerate(ops))
        raise AssertionError(node)  # `_check` let it through

    def _computed(self, compute: ast.operator, left: float, right: float) -> float:
        try:
            return COMPUTE[type(compute)](left, right)
        except (ZeroDivisionError, OverflowError) as e:
            raise self._refusal(str(e)) from None

    def _truth(self, node: ast.AST, values: Mapping[str, Value]) -> bool:
        found = self._value(node, values)
        if not isinstance(found, bool):
            raise self._refusal(f"{ast.unparse(node)} is a number, not true or false")
        return found

    def _named(self, name: str, values: Mapping[str, Value]) -> float | bool:
        if name not in values:
            raise self._refusal(
                f"there is no score '{name}'; there are: {', '.join(values)}.{did_you_mean(name, values)}"
            )
        found = values[name]
        if found is None:
            raise self._refusal(f"{name} has no value on these test rows")
        return found

    def _refusal(self, reason: str) -> UserError:
        return UserError(
            f"{self.parameter}={excerpt(self.text)}: not valid ({reason.rstrip('.')}); expected scores, numbers, and, "
            f"or, not, comparisons and + - * /, as in {EXAMPLE}."
        )


def _shown(value: Value) -> str:
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else f"{value:.6g}"
