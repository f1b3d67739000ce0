"""What an experiment shows at a glance: three sentences, and one table of at most eight rows."""

from collections.abc import Mapping, Sequence
from typing import Any

from immiscible_diffusion.report.measures import metric_name
from immiscible_diffusion.report.sentences import SURE, counted, ended, floors, number, of_metric

__all__ = ["MARKS", "summary_sentences", "summary_table"]

MARKS = "* differs from independent noise, p < 0.05 (paired t-test over seeds, not corrected for the number of values)"
"""What the star in the table means."""
_MOST_ROWS, _MOST_COLUMNS = 8, 4
_NAMED = 3
"""So many arms are named one by one."""

Row = Mapping[str, Any]


def summary_sentences(numbers: Row) -> list[str]:
    """Return three sentences: the training, and its result at the fewest and at the most sampling steps.

    With one number of sampling steps, the third gives the score of real images. A fourth warns if samples score better
    than real images.

    Args:
        numbers: a record.
    """
    metric = numbers["metrics"][0]
    counts = sorted({row["sampling_steps"] for row in of_metric(numbers["finals"], metric)})
    ends = [_end(numbers, metric, count) for count in (counts[0], *counts[1:][-1:])]
    said = [_trained(numbers), *ends]
    if any(entry.get("same_conditions") for entry in numbers["instrument"]):
        return said  # such samples may well score better than real images under other conditions
    blind = _no_measure(numbers, metric)
    return [*said, *(blind or (_perfect(numbers, metric) if len(counts) == 1 else []))]


def summary_table(numbers: Row) -> tuple[list[str], list[list[str]]]:
    """Return the head and the rows of the table: final values of the first metric, a column a number of sampling steps.

    Beside each mean over seeds and its standard deviation stands the change against independent noise, in percent.
    Where there are more than eight rows, the last says how many are left out; four columns are the fewest sampling
    steps and the most.
    """
    metric = numbers["metrics"][0]
    ends = of_metric(numbers["finals"], metric)
    counts = sorted({row["sampling_steps"] for row in ends})
    counts = counts if len(counts) <= _MOST_COLUMNS else [*counts[: _MOST_COLUMNS - 1], counts[-1]]
    cells = {(row["arm"], row["sampling_steps"]): _cell(row) for row in ends}
    rows = [
        [arm, *(cells.get((arm, count), "-") for count in counts)] for arm in dict.fromkeys(arm for arm, _ in cells)
    ]
    for entry, who in floors(numbers["instrument"], metric):
        floor = entry["floor"][metric]
        rows.append([f"real images{who}", *[f"{number(floor['mean'])} ± {number(floor['sd'])}"] * len(counts)])
    if len(rows) > _MOST_ROWS:
        left_out = len(rows) - _MOST_ROWS + 1
        rows = [*rows[: _MOST_ROWS - 1], [f"and {left_out} more, see all final values", *[""] * len(counts)]]
    return ["", *map(counted, counts)], rows


def _cell(row: Row) -> str:
    change, base, p = row.get("difference"), row.get("reference_mean"), row.get("p")
    text = number(row["mean"]) + (f" ± {number(row['sd'])}" if len(row["by_seed"]) > 1 else "")
    if change is None or not base or base < 0:
        return text
    percent = f"{100 * change / base:+.0f}".replace("-0", "0").replace("+0", "0")
    return f"{text} ({percent} %){'*' * (p is not None and p < SURE)}"


def _trained(numbers: Row) -> str:
    arms = list(dict.fromkeys(run["arm"] for run in numbers["runs"]))
    seeds = len({run["seed"] for run in numbers["runs"]})
    varied = {key for run in numbers["runs"] for key in run.get("point", {})} - {"coupling"}
    steps = next(iter(numbers["configurations"].values()))["train"]["steps"]
    which = _listed(arms) if len(arms) <= _NAMED + 1 else f"{len(arms)} variants"
    same = f"the same {seeds} seeds" if seeds > 1 else "the same seed"
    apart = f"they differ in the coupling and in {_listed(sorted(varied))}" if varied else "only their noise differs"
    return f"{which[0].upper()}{which[1:]} were trained for {steps:,} steps each from {same}: {apart}."


def _listed(words: Sequence[str]) -> str:
    """Return words as a list in a sentence.

    >>> _listed(["a"]), _listed(["a", "b", "c"])
    ('a', 'a, b and c')
    """
    *first, last = words
    return f"{', '.join(first)} and {last}" if first else last


def _end(numbers: Row, metric: str, count: int) -> str:
    """Return how the arms end against independent noise, in one sentence."""
    rows = [row for row in of_metric(numbers["finals"], metric) if row["sampling_steps"] == count]
    rises = metric in numbers["rising"]
    compared = [row for row in rows if row.get("difference") is not None]
    if not compared:
        means = _listed([f"{row['arm']} ends at {number(row['mean'])}" for row in rows][:_NAMED])
        return f"At {counted(count)}, {means} ({metric_name(metric)}); there is no independent noise to compare with."
    references = {(row["reference"], row["reference_mean"]) for row in compared}
    if len(compared) > _NAMED or len(references) > 1:
        return f"At {counted(count)}, {_counts(compared, rises)} ({metric_name(metric)})."
    sooner = {
        row["arm"]: f", and is as good as it at best {row['ratio']:.1f} times sooner"
        for row in of_metric(numbers["speedups"], metric)
        if row["sampling_steps"] == count and row["ratio"] is not None and (row["low"] or 0) > 1
    }
    ends = [(row["arm"], number(row["mean"]), _ending(row, rises)) for row in compared]
    clauses = [f"{arm} ends {words}{sooner.get(arm, '')}" for arm, _, words in ends if words]
    equal = [f"{arm} ({mean})" for arm, mean, words in ends if not words]
    clauses += [f"no difference is shown for {_listed(equal)}"] if equal else []
    ((_, base),) = references
    first = f"At {counted(count)} independent noise ends at a {metric_name(metric)} of {number(base)}"
    return f"{first}; {'; '.join(clauses)}."


def _ending(row: Row, rises: bool) -> str:
    """Return how much better or worse an arm ends, with its value, as far as its seeds show it; else nothing."""
    if words := ended(row, rises):
        share, _, p = words.partition(" (")
        return f"{share} ({number(row['mean'])}, {p}"
    share = ended({**row, "p": 0.0}, rises).partition(" (")[0]
    if row.get("p") is None and not share.startswith("0 "):
        return f"{share} ({number(row['mean'])}, from too few seeds to tell it from chance)"
    return ""


def _counts(rows: Sequence[Row], rises: bool) -> str:
    """Return how many of many arms end better and worse, and the best of them."""
    words = {row["arm"]: ended(row, rises) for row in rows}
    better, worse = ([arm for arm, text in words.items() if side in text] for side in (" better ", " worse "))
    text = f"{len(better)} of {len(rows)} variants end better than independent noise and {len(worse)} worse"
    if not better:
        return text
    best = max(better, key=lambda arm: float(words[arm].partition(" ")[0]))
    return f"{text}; the largest gain has {best}, {words[best]}"


def _no_measure(numbers: Row, metric: str) -> list[str]:
    """Return a sentence that warns where samples score clearly better than real images, or nothing."""
    rises = metric in numbers["rising"]
    for entry, who in floors(numbers["instrument"], metric):
        floor, sign = entry["floor"][metric], -1 if rises else 1
        rows = of_metric(numbers["finals"], metric)
        ends = [row["mean"] for row in rows if not who or row["arm"] in entry["arms"]]
        best = min(ends, key=lambda mean: sign * mean, default=floor["mean"])
        if sign * (floor["mean"] - best) > floor["sd"]:
            return [
                f"Samples score {number(best)} and real images in their place only {number(floor['mean'])}: for these "
                f"images the {metric_name(metric)} is no measure of quality. Judge by the pictures, and give more "
                "images or other features (evaluate.features)."
            ]
    return []


def _perfect(numbers: Row, metric: str) -> list[str]:
    """Return the score of real images in place of samples, in one sentence, or nothing."""
    return [
        f"Real images in place of samples score {number(entry['floor'][metric]['mean'])}: about the best "
        "that can be expected."
        for entry, _ in floors(numbers["instrument"], metric)[:1]
    ]
