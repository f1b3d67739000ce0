"""Which of a script's draws is the training noise: each other one has a reason, and doubt is a refusal."""

import ast
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from immiscible_diffusion.scripts.draws import Draw

__all__ = ["NO_TRAINING", "Decision", "decide"]

NO_TRAINING = "is no training step"
"""End of the reason that a function's name gives."""

_SAMPLING = {
    "sample", "sampler", "samplers", "sampling", "generate", "generation", "generator", "validate", "validation",
    "val", "valid", "eval", "evaluate", "evaluation", "inference", "infer", "pipeline", "visualize",
    "visualise", "plot", "preview", "demo", "interpolate", "interpolation", "test", "bpd", "ddim",
    "ddpm", "ode", "sde", "euler", "heun", "reverse", "denoise", "decode", "edit",
    "invert", "inversion", "augment", "augmentation", "dataset", "scheduler", "solver", "solvers", "multistep",
}  # fmt: skip
"""Words in the name of a function or class that draws for something else than training."""

_TRAINING = {"train", "training", "trainer", "loss", "losses"}
"""Words that speak for training, whatever else a name or that of its class says: ``generate_train_sample``."""

_EVALUATION = {"val", "valid", "validation", "validate", "eval", "evaluate", "evaluation", "test", "demo", "preview"}
"""Words in the loader of a loop, or in the condition of a branch, that runs beside training."""

_NOISE = {"noise", "noises", "eps", "epsilon"}
_MOMENTS = {"std", "mean", "logvar", "sigma", "sigmas"}
_PREDICTED = {"output", "pred", "prediction", "predicted", "target", "targets"}
_TIME = {"t", "u", "ts", "sigma", "sigmas", "timestep", "timesteps", "time"}
_ROWS = {"chunk", "chunks", "row", "item", "piece"}
_SMALL = {"offset", "perturbation", "pertubation", "perturb", "gamma", "jitter", "strength", "augment", "augmentation"}
_THROUGH = (ast.BinOp, ast.Call, ast.Attribute, ast.IfExp, ast.Lambda, ast.Tuple, ast.Subscript, ast.NamedExpr)
_ABOUT = {"shape", "size", "device", "dtype", "ndim"}
_KEYWORDS = {"noise", "eps", "epsilon", "x0", "x_0", "z"}
_METHODS = {
    "to", "type", "type_as", "cuda", "cpu", "half", "float", "double", "bfloat16",
    "contiguous", "clone", "detach", "requires_grad_", "chunk", "repeat", "expand", "view", "reshape",
    "split", "unsqueeze", "squeeze", "mul", "mul_",
}  # fmt: skip
"""Methods through which noise stays noise, up to copies and scale."""


@dataclass(frozen=True)
class Decision:
    """Draws that are replaced, none where that is not safe, and why each other one is left as it is."""

    chosen: tuple[Draw, ...]
    open: tuple[Draw, ...]
    others: tuple[tuple[Draw, str], ...]

    @property
    def kind(self) -> str:
        """Return ``rewritten``, ``refused`` or ``no torch noise``."""
        return "rewritten" if self.chosen else "refused" if self.open or self.others else "no torch noise"


def decide(draws: Sequence[Draw], at: Sequence[int] = ()) -> Decision:
    """Decide which draws of one module are the training noise.

    Args:
        draws: all draws of the module.
        at: lines that the user names; they replace the search.

    Raises:
        ValueError: a line named by the user holds no draw, or one that cannot be replaced.
    """
    if at:
        return _named(draws, at)
    reasons = {id(draw): _reason(draw, draws) for draw in draws}
    candidates = [draw for draw in draws if not reasons[id(draw)]]
    outside = [draw for draw in candidates if not _without_gradient(draw)]
    likely = outside or candidates
    chosen = likely if _one_noise(likely) else _named_noise(likely)
    if any(_replaces_in_another_branch(draw, chosen) for draw in draws if draw not in chosen):
        chosen = []
    left = ((draw, reasons[id(draw)] or "not the noise of the loss") for draw in draws if draw not in chosen)
    if chosen:
        return Decision(tuple(chosen), (), tuple(left))
    return Decision((), tuple(candidates), tuple(pair for pair in left if pair[0] not in candidates))


def _named(draws: Sequence[Draw], at: Sequence[int]) -> Decision:
    """Return the decision for lines that the user named."""
    chosen: list[Draw] = []
    for line in at:
        here = [draw for draw in draws if draw.line <= line <= (draw.call.end_lineno or draw.line)]
        fit = [draw for draw in here if draw.edits]
        if not here:
            lines = [draw.line for draw in draws]
            raise ValueError(f"--at {line}: no call that draws normal noise is on that line; there are {lines}")
        if not fit:
            raise ValueError(
                f"--at {line}: {here[0].text} cannot be replaced: it does not name the data whose shape the noise has; "
                "write it as torch.randn_like(x)"
            )
        chosen += fit
    return Decision(tuple(chosen), (), tuple((draw, "not named by --at") for draw in draws if draw not in chosen))


def _reason(draw: Draw, draws: Sequence[Draw]) -> str:
    """Return why a draw is not the training noise; empty where it may be."""
    if draw.like is None:
        return "its sizes are written out"
    if not draw.edits:
        return "it has options that a coupling lacks"
    if place := _beside_training(draw):
        return place
    if _last_words(draw.like) & _ROWS:
        return "it is of a part of the batch"
    if _is_part(draw.like):
        return "it is of a part of the data: an offset"
    if _last_words(draw.like) & _NOISE or ast.unparse(draw.like) in _targets(draws, draw):
        return "it is of the shape of another noise: a perturbation"
    if _last_name(draw.like) in _TIME:
        return "it is of the shape of times"
    if _last_words(draw.like) & _MOMENTS:
        return "it is of the shape of a mean or deviation: a posterior"
    if _last_words(draw.like) & _PREDICTED:
        return f"it is of the shape of {ast.unparse(draw.like)}, which is no data"
    return _use_reason(draw) or _later_reason(draw)


def _later_reason(draw: Draw) -> str:
    """Return why what becomes of a draw's variable shows that it is a perturbation of the noise."""
    target, function = _target(draw), _function(draw)
    for node in ast.walk(function) if function is not None else ():
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult):
            for side, other in ((node.left, node.right), (node.right, node.left)):
                if ast.unparse(side) == target and any(_last_words(part) & _SMALL for part in _values(other)):
                    return f"line {node.lineno} scales it as an offset or a perturbation"
    return ""


def _use_reason(draw: Draw) -> str:
    """Return why the expression around a draw shows that it is not the training noise."""
    below: ast.AST = draw.call
    for node in draw.above:
        if isinstance(node, ast.keyword):
            return "" if node.arg in _KEYWORDS else f"it is the option {node.arg}= of a call"
        if isinstance(node, ast.BinOp) and (reason := _sum_reason(node, below, draw)):
            return reason
        if isinstance(node, ast.Call) and not _keeps_noise(node, below):
            return f"it is inside {ast.unparse(node.func)}(...)"
        if isinstance(node, ast.stmt):
            return _statement_reason(node, draw)
        if not isinstance(node, _THROUGH) or (isinstance(node, ast.Attribute) and node.attr not in _METHODS):
            return f"it is inside {ast.unparse(node)}"
        below = node
    return "its value is not kept"


def _sum_reason(node: ast.BinOp, below: ast.AST, draw: Draw) -> str:
    other = node.right if below is node.left else node.left
    data = ast.dump(draw.like) if draw.like is not None else ""
    if isinstance(node.op, ast.Add | ast.Sub) and any(ast.dump(part) == data for part in _values(other)):
        return "it is added to the data that it is like: an augmentation or a posterior"
    if isinstance(node.op, ast.Mult | ast.Div) and any(_last_words(part) & _SMALL for part in _values(other)):
        return "it is scaled as an offset or a perturbation"
    return ""


def _values(node: ast.AST) -> Iterator[ast.AST]:
    """Yield the parts of an expression whose values enter it: of ``x.shape`` neither x nor its values."""
    yield node
    if not (isinstance(node, ast.Attribute) and node.attr in _ABOUT):
        for child in ast.iter_child_nodes(node):
            yield from _values(child)


def _keeps_noise(call: ast.Call, below: ast.AST) -> bool:
    """Return whether the value of a call is the noise inside it."""
    if below is call.func:
        return True  # the method of a node that was looked at: noise.to(...)
    if isinstance(call.func, ast.Name) and call.func.id == "default":
        return len(call.args) == 2 and call.args[1] is below  # default(noise, lambda: torch.randn_like(x))
    return False


def _statement_reason(node: ast.stmt, draw: Draw) -> str:
    if isinstance(node, ast.AugAssign):
        return "it is added to another value: an offset or a perturbation"
    if isinstance(node, ast.Return):
        return "it is returned, and what becomes of it is not seen"
    target = _target(draw)
    if target is None:
        return "its value is not kept in a variable"
    if draw.like is not None and target == ast.unparse(draw.like):
        return "it replaces the data"
    if _words(target) & _PREDICTED:
        return f"it is kept as {target}"
    return "it is kept as a time" if target in _TIME else ""


def _target(draw: Draw) -> str | None:
    """Return the variable or keyword that holds a draw's value."""
    below: ast.AST = draw.call
    for node in draw.above:
        if isinstance(node, ast.keyword):
            return node.arg
        if isinstance(node, ast.Call) and not _keeps_noise(node, below):
            return None
        if isinstance(node, ast.Attribute) and node.attr not in _METHODS:
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


def _targets(draws: Sequence[Draw], beside: Draw) -> set[str]:
    """Return the variables of the same function that hold noise."""
    function = _function(beside)
    held = (draw for draw in draws if _function(draw) is function and draw.line < beside.line)
    shaped = (draw for draw in held if draw.like is not None)  # sizes that are written out may be those of toy data
    return {target for draw in shaped if not _is_added(draw) and (target := _target(draw))}


def _is_added(draw: Draw) -> bool:
    """Return whether a draw is added to data, so that its variable holds data."""
    below: ast.AST = draw.call
    for node in draw.above:
        if isinstance(node, ast.BinOp) and draw.like is not None and _sum_reason(node, below, draw):
            return True
        below = node
    return False


def _beside_training(draw: Draw) -> str:
    """Return the function, loop or branch around a draw that runs for something else than training."""
    for i, node in enumerate(draw.above):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            words = _words(node.name)
            if words & _TRAINING:
                return ""
            if words & _SAMPLING:
                return f"{node.name} {NO_TRAINING}"
            if any(_words(ast.unparse(decorator)) & {"grad", "inference"} for decorator in node.decorator_list):
                return f"{node.name} computes no gradients"
        below = draw.above[i - 1] if i else draw.call
        if isinstance(node, ast.For) and _words(ast.unparse(node.iter)) & _EVALUATION:
            return f"a loop over {ast.unparse(node.iter)} is no training"
        if isinstance(node, ast.If) and below in node.body and _words(ast.unparse(node.test)) & _EVALUATION:
            return f"a branch of {ast.unparse(node.test)} is no training"
    return ""


def _without_gradient(draw: Draw) -> bool:
    """Return whether a draw is in a block without gradients."""
    blocks = (item.context_expr for node in draw.above if isinstance(node, ast.With) for item in node.items)
    return any(_words(ast.unparse(block)) & {"grad", "inference"} for block in blocks)


def _one_noise(draws: Sequence[Draw]) -> bool:
    """Return whether draws are one noise: a single draw, or one in each of several branches that exclude each other."""
    if len({_target(draw) for draw in draws}) != 1:
        return False
    return all(_exclusive(a, b) for i, a in enumerate(draws) for b in draws[i + 1 :])


def _replaces_in_another_branch(draw: Draw, chosen: Sequence[Draw]) -> bool:
    """Return whether a draw gives the noise its value in a branch that excludes those of the chosen draws."""
    if not chosen or _target(draw) != _target(chosen[0]) or _beside_training(draw):
        return False
    return all(_exclusive(draw, other) for other in chosen)


def _exclusive(a: Draw, b: Draw) -> bool:
    """Return whether two draws are in different branches of one condition."""
    arms = dict(_arms(a))
    return any(arms.get(node, arm) != arm for node, arm in _arms(b))


def _arms(draw: Draw) -> Iterator[tuple[int, str]]:
    """Yield the conditions around a draw, each with the branch that holds it."""
    below: ast.AST = draw.call
    for node in draw.above:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            return  # two functions may both be called in a step
        if isinstance(node, ast.If) and (below in node.body or below in node.orelse):
            yield id(node), "body" if below in node.body else "orelse"
        elif isinstance(node, ast.IfExp) and below is not node.test:
            yield id(node), "body" if below is node.body else "orelse"
        below = node


def _named_noise(draws: Sequence[Draw]) -> list[Draw]:
    """Return the draws of a single function that are called noise, where they are its first and others follow."""
    called = [draw for draw in draws if _target(draw) == "noise"]
    first = bool(draws) and called[:1] == list(draws[:1])
    return called if first and _one_noise(called) and len({id(_function(draw)) for draw in draws}) == 1 else []


def _function(draw: Draw) -> ast.AST | None:
    return next((node for node in draw.above if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)), None)


def _is_part(node: ast.expr) -> bool:
    """Return whether an expression takes a slice of data."""
    slices = (part.slice for part in ast.walk(node) if isinstance(part, ast.Subscript))
    return any(isinstance(part, ast.Slice) for index in slices for part in ast.walk(index))


def _last_name(node: ast.AST) -> str:
    """Return the name of a variable or attribute, of a call that of its object."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        return _last_name(node.func.value)
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def _last_words(node: ast.AST) -> set[str]:
    return _words(_last_name(node))


def _words(text: str) -> set[str]:
    """Return the words of a name, lower case.

    >>> sorted(_words("logValidation_step2"))
    ['log', 'step', 'validation']
    """
    return {word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+", text)}
