"""Which of a script's draws is the training noise: each other one has a reason, and doubt is a refusal."""

import ast
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from immiscible_diffusion.scripts.context import function_of, target_of, words_of
from immiscible_diffusion.scripts.draws import Draw
from immiscible_diffusion.scripts.reasons import beside_training, reason_against

__all__ = ["Decision", "decide"]


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
    reasons = {id(draw): reason_against(draw, draws) for draw in draws}
    candidates = [draw for draw in draws if not reasons[id(draw)]]
    outside = [draw for draw in candidates if not _without_gradient(draw)]
    likely = outside or candidates
    chosen = likely if _one_noise(likely) else _called_noise(likely)
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
        chosen += [draw for draw in fit if draw not in chosen]
    return Decision(tuple(chosen), (), tuple((draw, "not named by --at") for draw in draws if draw not in chosen))


def _without_gradient(draw: Draw) -> bool:
    """Return whether a draw is in a block without gradients."""
    blocks = (item.context_expr for node in draw.above if isinstance(node, ast.With) for item in node.items)
    return any(words_of(ast.unparse(block)) & {"grad", "inference"} for block in blocks)


def _one_noise(draws: Sequence[Draw]) -> bool:
    """Return whether draws are one noise: a single draw, or one in each of several branches that exclude each other."""
    if len({target_of(draw) for draw in draws}) != 1:
        return False
    return all(_exclusive(a, b) for i, a in enumerate(draws) for b in draws[i + 1 :])


def _replaces_in_another_branch(draw: Draw, chosen: Sequence[Draw]) -> bool:
    """Return whether a draw gives the noise its value in a branch that excludes the branches of the chosen draws."""
    if not chosen or target_of(draw) != target_of(chosen[0]) or beside_training(draw):
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


def _called_noise(draws: Sequence[Draw]) -> list[Draw]:
    """Return the draws of a single function that are called noise, where they are its first and others follow."""
    called = [draw for draw in draws if target_of(draw) == "noise"]
    first = bool(draws) and called[:1] == list(draws[:1])
    return called if first and _one_noise(called) and len({id(function_of(draw)) for draw in draws}) == 1 else []
