"""Calls in a script's syntax tree that draw normal noise, and how to replace each: no torch here."""

import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

__all__ = ["LIKE", "SHAPED", "Draw", "Edit", "find_draws"]

LIKE = "immiscible_like"
"""Name under which a script finds the function that takes the place of ``torch.randn_like``."""

SHAPED = "immiscible_randn"
"""The same of ``torch.randn``: its dtype and device do not follow the data."""

_OPTIONS = {"generator", "device", "dtype", "memory_format", "layout", "requires_grad", "pin_memory"}
_EMPTY_LIKE = {"empty_like", "zeros_like", "ones_like"}


@dataclass(frozen=True)
class Edit:
    """A piece of the source, from (line, column in bytes) to (line, column), and the text that replaces it."""

    start: tuple[int, int]
    end: tuple[int, int]
    text: str


@dataclass(frozen=True)
class Draw:
    """A call that draws normal noise.

    ``like`` is the expression of the data whose shape the noise has, None where the sizes are written out.
    ``above`` are the nodes around the call, innermost first. ``edits`` replace the call, none where that is not safe.
    """

    call: ast.Call
    like: ast.expr | None
    above: tuple[ast.AST, ...] = field(repr=False)
    edits: tuple[Edit, ...] = field(repr=False)

    @property
    def line(self) -> int:
        """Return the first line of the call."""
        return self.call.lineno

    @property
    def text(self) -> str:
        """Return the call in one line."""
        return ast.unparse(self.call)


def find_draws(tree: ast.AST) -> list[Draw]:
    r"""Return the calls of a module that draw normal noise with torch, in the order of their lines.

    >>> tree = ast.parse("import torch as th\nnoise = th.randn(x.shape, device=x.device)")
    >>> [(draw.line, ast.unparse(draw.like)) for draw in find_draws(tree)]
    [(2, 'x')]
    """
    names = _imported(tree)
    shapes = _shapes(tree)
    draws = [draw for call, above in _calls(tree, ()) if (draw := _draw(call, above, names, shapes)) is not None]
    return sorted(draws, key=lambda draw: (draw.line, draw.call.col_offset))


def _calls(node: ast.AST, above: tuple[ast.AST, ...]) -> Iterator[tuple[ast.Call, tuple[ast.AST, ...]]]:
    if isinstance(node, ast.Call):
        yield node, above
    for child in ast.iter_child_nodes(node):
        yield from _calls(child, (node, *above))


def _imported(tree: ast.AST) -> Mapping[str, str]:
    """Return the full names of a module's imports: ``{"th": "torch", "randn_like": "torch.randn_like"}``."""
    names: dict[str, str] = {"torch": "torch"}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.asname: alias.name for alias in node.names if alias.asname}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    return names


def _shapes(tree: ast.AST) -> Mapping[str, ast.expr]:
    """Return the data behind names that hold a shape and nothing else, as after ``shape = x.shape``."""
    values: dict[str, list[ast.expr | None]] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            values.setdefault(node.id, []).append(None)
        elif isinstance(node, ast.arg):
            values.setdefault(node.arg, []).append(None)
        if isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
            values.setdefault(node.targets[0].id, []).append(_of_shape(node.value, {}))
    return {
        name: data
        for name, given in values.items()
        if len(given) == 2 and (data := next(filter(None, given), None)) is not None  # one store, and it is a shape
    }


def _of_shape(node: ast.expr, shapes: Mapping[str, ast.expr]) -> ast.expr | None:
    """Return the data whose whole shape an expression is."""
    if isinstance(node, ast.Starred):
        return _of_shape(node.value, shapes)
    if isinstance(node, ast.Attribute) and node.attr == "shape":
        return node.value
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "size":
        return node.func.value if not node.args and not node.keywords else None
    if isinstance(node, ast.Name):
        return shapes.get(node.id)
    if isinstance(node, ast.Tuple | ast.List) and len(node.elts) == 1 and isinstance(node.elts[0], ast.Starred):
        return _of_shape(node.elts[0], shapes)
    return None


def _draw(
    call: ast.Call, above: tuple[ast.AST, ...], names: Mapping[str, str], shapes: Mapping[str, ast.expr]
) -> Draw | None:
    """Return the draw that a call makes, None where it makes none."""
    name = _full_name(call.func, names)
    tail = name.rpartition(".")[2]
    options = {keyword.arg for keyword in call.keywords}
    if name == "torch.randn_like":
        data = call.args[0] if len(call.args) == 1 else _keyword(call, "input")
        safe = data is not None and options <= _OPTIONS | {"input"}
        return Draw(call, data, above, _renamed(call, LIKE, data, data) if safe and data is not None else ())
    if name == "torch.randn" or tail == "randn_tensor":
        size = call.args[0] if len(call.args) == 1 or (tail == "randn_tensor" and call.args) else None
        size = size or _keyword(call, "size") or _keyword(call, "shape")
        data = _of_shape(size, shapes) if size is not None else None
        safe = size is not None and data is not None and options <= _OPTIONS | {"size", "shape"}
        return Draw(call, data, above, _renamed(call, SHAPED, size, data) if safe and size and data else ())
    if name == "torch.normal":
        return Draw(call, None, above, ())
    if isinstance(call.func, ast.Attribute) and call.func.attr == "normal_" and isinstance(call.func.value, ast.Call):
        return _filled(call, call.func.value, above, names)
    return None


def _filled(call: ast.Call, made: ast.Call, above: tuple[ast.AST, ...], names: Mapping[str, str]) -> Draw:
    """Return the draw ``torch.empty_like(x).normal_()``."""
    name = _full_name(made.func, names)
    plain = name.startswith("torch.") and name[6:] in _EMPTY_LIKE and len(made.args) == 1
    if not plain or call.args or call.keywords or not {keyword.arg for keyword in made.keywords} <= _OPTIONS:
        return Draw(call, None, above, ())
    tail = Edit(_end(made), _end(call), "")
    return Draw(call, made.args[0], above, (*_renamed(made, LIKE, made.args[0], made.args[0]), tail))


def _renamed(call: ast.Call, name: str, size: ast.expr, data: ast.expr) -> tuple[Edit, ...]:
    """Return the edits that turn ``randn(x.shape, ...)`` into ``name(x, ...)``, each on the lines that it was on."""
    head = Edit((call.func.lineno, call.func.col_offset), _end(call.func), name)
    value = size.value if isinstance(size, ast.Starred) else size
    keyword = next((keyword for keyword in call.keywords if keyword.value is size), None)
    if size is data and keyword is None:
        return (head,)
    first: ast.expr | ast.keyword = keyword or size
    lines = (value.end_lineno or value.lineno) - first.lineno
    return head, Edit((first.lineno, first.col_offset), _end(value), ast.unparse(data) + "\n" * lines)


def _keyword(call: ast.Call, name: str) -> ast.expr | None:
    return next((keyword.value for keyword in call.keywords if keyword.arg == name), None)


def _end(node: ast.expr) -> tuple[int, int]:
    return node.end_lineno or node.lineno, node.end_col_offset or node.col_offset


def _full_name(node: ast.expr, names: Mapping[str, str]) -> str:
    """Return the dotted name of a function, with the module behind an alias; empty where it has none."""
    if isinstance(node, ast.Name):
        return names.get(node.id, "")
    if isinstance(node, ast.Attribute):
        head = _full_name(node.value, names)
        return f"{head}.{node.attr}" if head else ""
    return ""
