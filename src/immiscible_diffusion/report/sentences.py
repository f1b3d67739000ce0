"""What a record says, in words and in the cells of tables."""

from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["counted", "final_cells", "findings", "number", "speedup_cells"]

_SURE = 0.05


def findings(rows: Sequence[Mapping[str, Any]], ends: Sequence[Mapping[str, Any]], name: str) -> list[str]:
    """Return what was found, a sentence for each number of sampling steps and group; losses are said as gains are.

    Args:
        rows: ``speedups`` of one metric; empty where it was measured once, at the end of training.
        ends: its ``finals``.
        name: how the metric is written.
    """
    if not rows:
        return _end_findings(ends, name)
    last = {(row["arm"], row["sampling_steps"]): row for row in ends}
    sentences = []
    for key in dict.fromkeys((row.get("group", ""), row["sampling_steps"]) for row in rows):
        same = [row for row in rows if (row.get("group", ""), row["sampling_steps"]) == key]
        sooner = {row["arm"]: _sooner(row) for row in same}
        rest = [arm for arm, words in sooner.items() if not words]
        ended = [arm for arm in rest if _ended(last.get((arm, key[1]), {}))]
        parts = [f"{arm} {words}" for arm, words in sooner.items() if words]
        parts += [f"{arm} ends {_ended(last[arm, key[1]])}" for arm in ended]
        if missing := [arm for arm in rest if arm not in ended]:
            parts.append(f"no speed-up is shown for {_listed(missing)}")
        count = counted(key[1]) + (f" ({key[0]})" if key[0] else "")
        reaches = f"reaches its final {name} distance, {number(same[0]['target'])}, "
        steps = f"after {same[0]['reference_steps']:.0f} training steps"
        reaches += "by its first evaluation" if same[0]["reference_at_first"] else steps
        sentences.append(f"At {count} independent noise {reaches}: {'; '.join(parts)}.")
    return sentences


def _end_findings(ends: Sequence[Mapping[str, Any]], name: str) -> list[str]:
    """Return how each arm ends against its reference, a sentence for each reference and number of sampling steps."""
    sentences = []
    for key in dict.fromkeys((row["reference"], row["sampling_steps"]) for row in ends if "reference" in row):
        same = [row for row in ends if (row.get("reference"), row["sampling_steps"]) == key]
        base = same[0]["reference_mean"]
        sure = [row for row in same if row["p"] is not None and row["p"] < _SURE]
        parts = [f"{row['arm']} {_percent(row)}" for row in sure]
        if rest := [row["arm"] for row in same if row not in sure]:
            parts.append(f"no difference is shown for {_listed(rest)}")
        count = counted(key[1])
        sentences.append(f"At {count} {key[0]} ends at a {name} distance of {number(base)}: {'; '.join(parts)}.")
    return sentences


def _listed(arms: Sequence[str]) -> str:
    *first, last = (arm.replace(", plain start", " (plain start)") for arm in arms)
    return f"{', '.join(first)} and {last}" if first else last


def _percent(row: Mapping[str, Any]) -> str:
    share = 100 * row["difference"] / row["reference_mean"]
    return f"{abs(share):.0f} % {'worse' if share > 0 else 'better'} (p = {row['p']:.2g})"


def _ended(row: Mapping[str, Any]) -> str:
    """Return how much better or worse an arm ends than its reference, where a paired t-test says so; else nothing."""
    p = row.get("p")
    return "" if p is None or p >= _SURE else _percent(row)


def _sooner(row: Mapping[str, Any]) -> str:
    """Return how much sooner or later an arm arrives, where its interval says so or there is one seed; else nothing."""
    low, high = row["low"], row["high"]
    if row["seeds"] == 1 and row["ratio"] is not None:
        return f"after {row['steps']:.0f}, {row['ratio']:.1f} times sooner (one seed)"
    if row["ratio"] is None:
        if low is not None and low > 1:
            return f"by its first evaluation, at least {row['bounds'][0]:.1f} times sooner"
        return f"at most {row['bounds'][1]:.2f} times as soon" if low is not None and (high or 1) < 1 else ""
    if low is not None and (low > 1 or high < 1):
        way = f"{row['ratio']:.1f} times sooner" if low > 1 else f"{row['ratio']:.2f} times as soon"
        return f"after {row['steps']:.0f}, {way} ({low:.2f} to {high:.2f})"
    return ""


def counted(steps: int) -> str:
    """Return a number of sampling steps as words."""
    return f"{steps} sampling step{'s' * (steps > 1)}"


def number(value: float) -> str:
    """Return a distance with three digits that mean something.

    >>> [number(each) for each in (1234.5, 63.21, 0.28123, 0.00021)]
    ['1234', '63.2', '0.281', '0.00021']
    """
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def speedup_cells(row: Mapping[str, Any]) -> list[str]:
    """Return a row of ``speedups`` as text: arm, sampling steps, target, reference's steps, steps, ratio, interval.

    Where a seed did not arrive, or one of either arm was there at its first evaluation, the ratio is a bound.
    """
    low, high = row["bounds"]
    reference = f"{'≤ ' * row['reference_at_first']}{row['reference_steps']:.0f}"
    steps = "-" if row["steps"] is None else f"{'≤ ' * row['at_first']}{row['steps']:.0f}"
    cells = [row["arm"], str(row["sampling_steps"]), number(row["target"]), reference, steps]
    if row["ratio"] is not None:
        interval = "one seed" if row["low"] is None else f"{row['low']:.2f} to {row['high']:.2f}"
        return [*cells, f"{row['ratio']:.2f} x", interval]
    late = row["seeds_reached"] < row["seeds"]
    why = f"{row['seeds_reached']} of {row['seeds']} arrive" if late else "first eval."
    if low > 0:
        return [*cells, f"≥ {low:.2f} x", why if row["low"] is None else f"from {row['low']:.2f}"]
    return [*cells, "no bound" if high is None else f"< {high:.2f} x", why]


def final_cells(row: Mapping[str, Any]) -> list[str]:
    """Return a row of ``finals`` as text: arm, sampling steps, mean and deviation, difference from its reference, p."""
    difference, p = row.get("difference"), row.get("p")
    cells = [row["arm"], str(row["sampling_steps"]), f"{number(row['mean'])} ± {number(row['sd'])}"]
    cells += ["-" if difference is None else f"{'+' if difference > 0 else ''}{number(difference)}"]
    return [*cells, "-" if p is None else f"{p:.2g}"]
