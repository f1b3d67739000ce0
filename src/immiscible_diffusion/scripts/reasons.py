"""Why a draw is not the training noise, as its place and use in the script show."""

import ast
from collections.abc import Sequence

from immiscible_diffusion.scripts.context import (
    METHODS,
    function_of,
    keeps_noise,
    last_name,
    last_words,
    target_of,
    values_in,
    words_of,
)
from immiscible_diffusion.scripts.draws import Draw

__all__ = ["NO_TRAINING", "beside_training", "reason_against"]

NO_TRAINING = "is no training step"
"""End of the reason that a function's name gives."""

_SAMPLING = {
    "sample", "sampler", "samplers", "sampling", "generate", "generation", "generator", "validate", "validation",
    "val", "valid", "eval", "evaluate", "evaluation", "inference", "infer", "pipeline", "visualize",
    "visualise", "plot", "preview", "demo", "interpolate", "interpolation", "test", "bpd", "ddim",
    "ddpm", "ode", "sde", "euler", "heun", "reverse", "denoise", "decode", "edit",
    "invert", "inversion", "getitem", "augment", "augmentation", "dataset", "scheduler", "solver", "solvers",
    "multistep",
}  # fmt: skip
"""Words in the name of a function or class that draws for something else than training."""

_METHODS_BY_NAME = {"ddpm", "ddim"}
"""Words that name a sampler in a function, and in a class the model that is trained."""

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

_KEYWORDS = {"noise", "eps", "epsilon", "x0", "x_0", "z"}


def reason_against(draw: Draw, draws: Sequence[Draw]) -> str:
    """Return why a draw is not the training noise; empty where it may be."""
    if draw.like is None:
        return "its sizes are written out"
    if not draw.edits:
        return "it has options that a coupling lacks"
    if place := beside_training(draw):
        return place
    if last_words(draw.like) & _ROWS:
        return "it is of a part of the batch"
    if _is_part(draw.like):
        return "it is of a part of the data: an offset"
    if last_words(draw.like) & _NOISE or ast.unparse(draw.like) in _targets(draws, draw):
        return "it is of the shape of another noise: a perturbation"
    if last_name(draw.like) in _TIME:
        return "it is of the shape of times"
    if last_words(draw.like) & _MOMENTS:
        return "it is of the shape of a mean or deviation: a posterior"
    if last_words(draw.like) & _PREDICTED:
        return f"it is of the shape of {ast.unparse(draw.like)}, which is no data"
    return _use_reason(draw) or _later_reason(draw)


def _later_reason(draw: Draw) -> str:
    """Return why what becomes of a draw's variable shows that it is a perturbation of the noise."""
    target, function = target_of(draw), function_of(draw)
    for node in ast.walk(function) if function is not None else ():
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult):
            for side, other in ((node.left, node.right), (node.right, node.left)):
                if ast.unparse(side) == target and any(last_words(part) & _SMALL for part in values_in(other)):
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
        if isinstance(node, ast.Call) and not keeps_noise(node, below):
            return f"it is inside {ast.unparse(node.func)}(...)"
        if isinstance(node, ast.stmt):
            return _statement_reason(node, draw)
        if not isinstance(node, _THROUGH) or (isinstance(node, ast.Attribute) and node.attr not in METHODS):
            return f"it is inside {ast.unparse(node)}"
        below = node
    return "its value is not kept"


def _sum_reason(node: ast.BinOp, below: ast.AST, draw: Draw) -> str:
    other = node.right if below is node.left else node.left
    data = ast.dump(draw.like) if draw.like is not None else ""
    if isinstance(node.op, ast.Add | ast.Sub) and any(ast.dump(part) == data for part in values_in(other)):
        return "it is added to the data that it is like: an augmentation or a posterior"
    if isinstance(node.op, ast.Mult | ast.Div) and any(last_words(part) & _SMALL for part in values_in(other)):
        return "it is scaled as an offset or a perturbation"
    return ""


def _statement_reason(node: ast.stmt, draw: Draw) -> str:
    if isinstance(node, ast.AugAssign):
        return "it is added to another value: an offset or a perturbation"
    if isinstance(node, ast.Return):
        return "it is returned, and what becomes of it is not seen"
    target = target_of(draw)
    if target is None:
        return "its value is not kept in a variable"
    if draw.like is not None and target == ast.unparse(draw.like):
        return "it replaces the data"
    if words_of(target) & _PREDICTED:
        return f"it is kept as {target}"
    return "it is kept as a time" if target in _TIME else ""


def _targets(draws: Sequence[Draw], beside: Draw) -> set[str]:
    """Return the variables of the same function that hold noise."""
    function = function_of(beside)
    held = (draw for draw in draws if function_of(draw) is function and draw.line < beside.line)
    shaped = (draw for draw in held if draw.like is not None)  # sizes that are written out may be those of toy data
    return {target for draw in shaped if not _is_added(draw) and (target := target_of(draw))}


def _is_added(draw: Draw) -> bool:
    """Return whether a draw is added to data, so that its variable holds data."""
    below: ast.AST = draw.call
    for node in draw.above:
        if isinstance(node, ast.BinOp) and draw.like is not None and _sum_reason(node, below, draw):
            return True
        below = node
    return False


def beside_training(draw: Draw) -> str:
    """Return the function, loop or branch around a draw that runs for something else than training."""
    for i, node in enumerate(draw.above):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            words = words_of(node.name)
            if words & _TRAINING:
                return ""
            if isinstance(node, ast.ClassDef):
                words -= _METHODS_BY_NAME
            if words & _SAMPLING:
                return f"{node.name} {NO_TRAINING}"
            if any(words_of(ast.unparse(decorator)) & {"grad", "inference"} for decorator in node.decorator_list):
                return f"{node.name} computes no gradients"
        below = draw.above[i - 1] if i else draw.call
        if isinstance(node, ast.For) and words_of(ast.unparse(node.iter)) & _EVALUATION:
            return f"a loop over {ast.unparse(node.iter)} is no training"
        if isinstance(node, ast.If) and below in node.body and words_of(ast.unparse(node.test)) & _EVALUATION:
            return f"a branch of {ast.unparse(node.test)} is no training"
    return ""


def _is_part(node: ast.expr) -> bool:
    """Return whether an expression takes a slice of data."""
    slices = (part.slice for part in ast.walk(node) if isinstance(part, ast.Subscript))
    return any(isinstance(part, ast.Slice) for index in slices for part in ast.walk(index))
