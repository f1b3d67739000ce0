"""What a record says, in words and in the cells of tables."""

from collections.abc import Mapping, Sequence
from typing import Any

from immiscible_diffusion.report.measures import metric_name

__all__ = [
    "SURE",
    "change_cell",
    "counted",
    "ended",
    "final_rows",
    "findings",
    "floor_findings",
    "floor_mark",
    "floors",
    "measured_once",
    "number",
    "of_metric",
    "speedup_cells",
]

SURE = 0.05
"""A difference of smaller p is said to be one."""
_FLOORS = 10
"""A difference below so many noise floors has a mark in tables."""

Row = Mapping[str, Any]


def of_metric(rows: Sequence[Row], metric: str) -> list[Row]:
    """Return the rows of one metric."""
    return [row for row in rows if row["metric"] == metric]


def measured_once(curves: Sequence[Row]) -> bool:
    """Return whether every run was measured once, at the end of training: then there are no curves to compare."""
    return all(len(curve) < 2 for row in curves for curve in row["by_seed"].values())


def findings(numbers: Row, metric: str) -> list[str]:
    """Return the findings of a record, a sentence for each number of sampling steps and group, losses included.

    † marks differences at the end that are near the noise floor, as in tables.

    Args:
        numbers: ``speedups``, without those of sampling steps that were measured once, at the end of training;
            ``finals``; ``rising``; ``instrument``.
        metric: the one to tell of.
    """
    rows, ends = (of_metric(numbers[key], metric) for key in ("speedups", "finals"))
    rises, quality = metric in numbers["rising"], numbers.get("reaches", "final")
    instrument = _instrument(numbers, metric)
    endings = {(row["arm"], row["sampling_steps"]): ended(row, rises, floor_mark(row, instrument)) for row in ends}
    sentences = []
    for (group, count), same in _grouped(rows, "group", "sampling_steps"):
        faster = [(_arm(row), words) for row in same if (words := _sooner(row))]
        rest = [(_arm(row), endings.get((row["arm"], count), "")) for row in same if not _sooner(row)]
        clauses = _clauses(faster + [(arm, words and f"ends {words}") for arm, words in rest], "speed-up")
        where = counted(count) + (f" ({group})" if group else "")
        steps = f"after {same[0]['reference_steps']:.0f} training steps"
        reached = "by its first evaluation" if same[0]["reference_at_first"] else steps
        target = f"{metric_name(metric)}, {number(same[0]['target'])}"
        sentences.append(f"At {where} independent noise reaches its {quality} {target}, {reached}: {clauses}.")
    followed = {row["sampling_steps"] for row in rows}
    return sentences + _end_findings([row for row in ends if row["sampling_steps"] not in followed], metric, endings)


def _end_findings(ends: Sequence[Row], metric: str, endings: Mapping[tuple[str, int], str]) -> list[str]:
    """Return how each arm ends against its reference, a sentence for each reference and number of sampling steps."""
    compared = [row for row in ends if "reference" in row]
    sentences = []
    for (reference, count), same in _grouped(compared, "reference", "sampling_steps"):
        clauses = _clauses([(_arm(row), endings.get((row["arm"], count), "")) for row in same], "difference")
        base = f"{metric_name(metric)} of {number(same[0]['reference_mean'])}"
        sentences.append(f"At {counted(count)} {reference} ends at a {base}: {clauses}.")
    return sentences


def _grouped(rows: Sequence[Row], *keys: str) -> list[tuple[tuple[Any, ...], list[Row]]]:
    """Return the rows that share the values of these keys, in the order in which the values first come."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row.get(key, "") for key in keys), []).append(row)
    return list(groups.items())


def _arm(row: Row) -> str:
    return str(row["arm"]).replace(", plain start", " (plain start)")


def _clauses(words: Sequence[tuple[str, str]], missing: str) -> str:
    """Join pairs (arm, its finding) to one list in words; arms without a finding come last."""
    *first, last = [arm for arm, text in words if not text] or [""]
    unclear = f"no {missing} is shown for {', '.join(first)}{' and ' * bool(first)}{last}"
    return "; ".join([*(f"{arm} {text}" for arm, text in words if text), *([unclear] if last else [])])


def ended(row: Row, rises: bool, mark: str = "") -> str:
    """Return how much better or worse an arm ends than its reference, where a paired t-test says so; else nothing.

    Args:
        row: one of ``finals``.
        rises: whether larger values are better.
        mark: stands behind the amount.
    """
    p, change, base = row.get("p"), row.get("difference"), row.get("reference_mean")
    if p is None or p >= SURE or change is None or base is None:
        return ""
    amount = f"{100 * abs(change) / base:.0f} %" if base > 0 else number(abs(change))
    return f"{amount} {'better' if (change > 0) == rises else 'worse'}{mark} (p = {p:.2g})"


def _sooner(row: Row) -> str:
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


def change_cell(reduction: float) -> str:
    """Return a reduction in percent as the change that it is.

    >>> change_cell(9.139), change_cell(0.001)
    ('-9.14 %', '+0.00 %')
    """
    return f"{0 - round(reduction, 2):+.2f} %"


def speedup_cells(row: Row) -> list[str]:
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


def _final_cells(row: Row, mark: str) -> list[str]:
    """Return a row of ``finals`` as text: arm, sampling steps, mean and deviation, difference from its reference, p."""
    difference, p = row.get("difference"), row.get("p")
    cells = [row["arm"], str(row["sampling_steps"]), f"{number(row['mean'])} ± {number(row['sd'])}"]
    cells += ["-" if difference is None else f"{'+' if difference > 0 else ''}{number(difference)}{mark}"]
    return [*cells, "-" if p is None else f"{p:.2g}"]


def floor_findings(instrument: Sequence[Row], metric: str) -> list[str]:
    """Return what real images score in place of samples, a sentence for each feature network that a metric has.

    Args:
        instrument: the entries of ``instrument.json``; none in records of earlier versions.
        metric: the one to tell of.
    """
    sentences = []
    for entry, who in floors(instrument, metric):
        floor, drawn, held_out = entry["floor"][metric], entry["drawn"], entry["held_out_rows"]
        rows = "rows" if entry["features"].get("use") == "values" else "images"
        perfect = (
            f"more than a perfect generator would: samples are made under the conditions of the held-out {rows}"
            if entry.get("same_conditions")
            else "as a perfect generator would"
        )
        likewise = ", which the codec encoded and decoded likewise" if entry.get("reference") == "decoded" else ""
        sentence = (
            f"{drawn:,} real training {rows} in place of generated ones score a {metric_name(metric)} of "
            f"{number(floor['mean'])} ± {number(floor['sd'])} against the {held_out:,} held-out {rows}{who}{likewise}, "
            f"{perfect}"
        )
        task = {"labels": "class", "rotation": "rotation"}.get(entry.get("task", ""))
        knows = f"; the classifier of features tells the {task} of {100 * entry.get('accuracy', 0):.0f} % of them"
        sentences.append(f"{sentence}{knows if task else ''}.")
    return sentences


def final_rows(numbers: Row, metric: str) -> list[list[str]]:
    """Return the rows of the table of ends, for one metric, and below them what real images score, over draws.

    Differences that are near the noise floor have a mark, see ``floor_mark``.
    """
    instrument = _instrument(numbers, metric)
    rows = [_final_cells(row, floor_mark(row, instrument)) for row in of_metric(numbers["finals"], metric)]
    real = [(who, entry["floor"][metric]) for entry, who in floors(numbers["instrument"], metric)]
    cells = [[f"real images{who}", "-", f"{number(floor['mean'])} ± {number(floor['sd'])}"] for who, floor in real]
    return [*rows, *([*row, "-", "-"] for row in cells)]


def _instrument(numbers: Row, metric: str) -> Sequence[Row]:
    """Return the entries of ``instrument.json``; none for metrics of which larger values are better."""
    return () if metric in numbers["rising"] else numbers.get("instrument", ())


def floor_mark(row: Row, instrument: Sequence[Row]) -> str:
    """Return a mark if an arm ends within ten noise floors of its reference: what real images score for samples.

    Args:
        row: one of ``finals``.
        instrument: the entries of ``instrument.json``. Without one that has the arm, nothing is near.
    """
    entries = [entry["floor"][row["metric"]] for entry, _ in floors(instrument, row["metric"]) if _has(entry, row)]
    difference = row.get("difference")
    near = bool(entries) and difference is not None and abs(difference) < _FLOORS * entries[0]["mean"]
    return " †" if near else ""


def _has(entry: Row, row: Row) -> bool:
    return row["arm"].removesuffix(", plain start") in entry["arms"]


def floors(instrument: Sequence[Row], metric: str) -> list[tuple[Row, str]]:
    """Return the entries that have a metric, with the names of their arms where other arms have another entry."""
    entries = [entry for entry in instrument if metric in entry["floor"]]
    return [(entry, f" ({', '.join(entry['arms'])})" if len(entries) > 1 else "") for entry in entries]
