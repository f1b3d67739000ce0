"""What surrounds a draw in the syntax tree: the variable that holds it, its function, the words of names."""

import ast
import re
from collections.abc import Iterator

from immiscible_diffusion.scripts.draws import Draw

__all__ = ["METHODS", "function_of", "keeps_noise", "last_name", "last_words", "target_of", "values_in", "words_of"]

METHODS = {
    "to", "type", "type_as", "cuda", "cpu", "half", "float", "double", "bfloat16",
    "contiguous", "clone", "detach", "requires_grad_", "chunk", "repeat", "expand", "view", "reshape",
    "split", "unsqueeze", "squeeze", "mul", "mul_",
}  # fmt: skip
"""Methods through which noise stays noise, up to copies and scale."""

_ABOUT = {"shape", "size", "device", "dtype", "ndim"}


def target_of(draw: Draw) -> str | None:
    """Return the variable or keyword that holds a draw's value."""
    below: ast.AST = draw.call
    for node in draw.above:
        if isinstance(node, ast.keyword):
            return node.arg
        if isinstance(node, ast.Call) and not keeps_noise(node, below):
            return None
        if isinstance(node, ast.Attribute) and node.attr not in METHODS:
            return None
        if isinstance(node, ast.NamedExpr):
            return node.target.id
        if isinstance(node, ast.AnnAssign):
            return ast.unparse(node.target)
        if isinstance(node, ast.Assign):
            return _matching_target(node, below)
        below = node
    return None


def _matching_target(node: ast.Assign, below: ast.AST) -> str | None:
    target = node.targets[0]
    if isinstance(node.value, ast.Tuple) and isinstance(target, ast.Tuple) and below in node.value.elts:
        target = target.elts[node.value.elts.index(below)] if len(target.elts) == len(node.value.elts) else target
    return None if isinstance(target, ast.Tuple) else ast.unparse(target)


def keeps_noise(call: ast.Call, below: ast.AST) -> bool:
    """Return whether the value of a call is the noise inside it."""
    if below is call.func:
        return True  # the method of a node that was looked at: noise.to(...)
    if isinstance(call.func, ast.Name) and call.func.id == "default":
        return len(call.args) == 2 and call.args[1] is below  # default(noise, lambda: torch.randn_like(x))
    return False


def function_of(draw: Draw) -> ast.AST | None:
    """Return the function around a draw, None at the top of its module."""
    return next((node for node in draw.above if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)), None)


def values_in(node: ast.AST) -> Iterator[ast.AST]:
    """Yield the parts of an expression whose values enter it: of ``x.shape`` neither x nor its values."""
    yield node
    if not (isinstance(node, ast.Attribute) and node.attr in _ABOUT):
        for child in ast.iter_child_nodes(node):
            yield from values_in(child)


def last_name(node: ast.AST) -> str:
    """Return the name of a variable or attribute; for a call, the name of its object."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        return last_name(node.func.value)
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def last_words(node: ast.AST) -> set[str]:
    """Return the words of the name of a variable or attribute."""
    return words_of(last_name(node))


def words_of(text: str) -> set[str]:
    """Return the words of a name, lower case.

    >>> sorted(words_of("logValidation_step2"))
    ['log', 'step', 'validation']
    >>> sorted(words_of("DDPMScheduler"))
    ['ddpm', 'scheduler']
    """
    return {word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", text)}
