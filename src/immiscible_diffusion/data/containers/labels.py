"""From the labels that a container gives to the numbers of classes."""

import posixpath
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from immiscible_diffusion.data.containers.listing import Bad, Label, Labels, Listing, plain, subset
from immiscible_diffusion.files import parsed_json

__all__ = ["Classes", "classes_of", "label_faults", "labelled", "parsed_labels", "text_names", "tidy"]


class Classes(NamedTuple):
    """How many classes there are, their names where they have some, and the class of every row, (n,); -1 for none."""

    amount: int
    names: tuple[str, ...] | None
    numbers: Labels


def labelled(
    listing: Listing, labels: Sequence[Label | None] | None, captions: Sequence[tuple[str, ...]] | None
) -> Listing:
    """Return the listing with labels and captions, if any; rows whose label or caption is at fault are taken out.

    Where the listing names its classes, the labels are their numbers, and become names.
    """
    faults: dict[int, str] = {}
    if labels is not None:
        faults = label_faults(labels, None if listing.classes is None else len(listing.classes))
        if names := listing.classes:
            labels = [None if i in faults or n is None else names[int(n)] for i, n in enumerate(labels)]
    if captions is not None:
        faults |= {i: "it has no caption" for i, texts in enumerate(captions) if not texts}
    whole = replace(
        listing,
        labels=labels,
        captions=None if captions is None else tuple(captions),
        bad=listing.bad + tuple(Bad(listing.names[i], reason) for i, reason in sorted(faults.items())),
    )
    return subset(whole, [i for i in range(len(listing.names)) if i not in faults]) if faults else whole


def label_faults(
    labels: Sequence[Label | None], classes: int | None, missing: str = "it has no label"
) -> dict[int, str]:
    """Return row -> fault for labels that are missing, negative, beyond the classes, or of a rarer kind than most.

    >>> label_faults([0, None, -1, 3], classes=3)
    {1: 'it has no label', 2: 'its label is -1; labels start at 0', 3: 'its label is 3; there are 3 classes'}
    """
    texts = sum(isinstance(label, str) for label in labels)
    numbers = len(labels) - texts - sum(label is None for label in labels)
    faults = {}
    for i, label in enumerate(labels):
        if label is None:
            faults[i] = missing
        elif isinstance(label, str) == (texts <= numbers) and texts and numbers:
            most = "whole numbers" if texts <= numbers else "names"
            faults[i] = f"its label is {plain(str(label)[:40])!r}; most are {most}"
        elif isinstance(label, int) and label < 0:
            faults[i] = f"its label is {label}; labels start at 0"
        elif classes is not None and isinstance(label, int) and label >= classes:
            faults[i] = f"its label is {label}; there are {classes} classes"
    return faults


def parsed_labels(content: bytes) -> dict[str, Label] | None:
    """Return path -> label from a ``dataset.json`` as EDM's and StyleGAN's data tools write it; None for another.

    Raises:
        ValueError: it is of another form, or one picture has two labels.
    """
    values = parsed_json(content)
    if not isinstance(values, Mapping) or "labels" not in values:
        return None
    pairs = values["labels"] or []
    if not isinstance(pairs, list) or not all(
        isinstance(pair, list) and len(pair) == 2 and isinstance(pair[0], str) and type(pair[1]) in (int, str)
        for pair in pairs
    ):
        raise ValueError("labels must be a list of [path, whole number or name]")
    labels: dict[str, Label] = {}
    for name, label in pairs:
        if labels.setdefault(tidy(name), label) != label:
            raise ValueError(f"{plain(name)} has two labels, {labels[tidy(name)]!r} and {label!r}")
    return labels


def tidy(path: str) -> str:
    r"""Return a path as a container lists it.

    >>> tidy("./a.png"), tidy("a\\b.png")
    ('a.png', 'a/b.png')
    """
    return posixpath.normpath(path.replace("\\", "/"))


def text_names(labels: Sequence[Label | None] | None) -> tuple[str, ...] | None:
    """Return the names among labels that are texts, sorted; None where they are no texts."""
    return tuple(sorted({label for label in labels or () if isinstance(label, str)})) or None


def classes_of(
    labels: Sequence[Label | None] | None,
    names: tuple[str, ...] | None,
    train: Sequence[int],
    held: Sequence[int],
    where: str,
) -> Classes | None:
    """Return the classes of all rows, or None where training has no labels.

    Names are numbered in their order. Whole numbers are kept where the training rows have every one from 0 to the
    largest; else those that occur are numbered in rising order, with a warning, and become the classes' names.

    Args:
        labels: of every row.
        names: all names in their order, where the labels are names.
        train: the training rows.
        held: the held-out rows.
        where: the container's name in messages.

    Raises:
        ValueError: a held-out row has a label that no class has.
    """
    trained = {labels[i] for i in train} - {None} if labels is not None else set()
    if labels is None or not trained:
        return None
    ordered: Sequence[Label] = names or sorted(label for label in trained if isinstance(label, int))
    known: dict[Label | None, int] = {label: i for i, label in enumerate(ordered)}
    if strange := [i for i in held if labels[i] is not None and labels[i] not in known]:
        raise ValueError(
            f"{len(strange)} of {len(held)} held-out rows of {where} have labels that no training row has, such as "
            f"{labels[strange[0]]!r}: hold out others (source.held_out_rows, source.held_out_split), or leave the "
            "labels aside with source.label = 'none'"
        )
    numbers = np.array([known.get(label, -1) for label in labels], np.int64)
    empty = sorted(set(range(len(known))) - set(numbers[np.asarray(train)].tolist()))
    if empty and names:
        warnings.warn(
            f"{len(empty)} of {len(known)} classes of {where} have no training row, such as {names[empty[0]]!r}",
            stacklevel=2,
        )
    return Classes(len(known), names or _number_names([n for n in known if isinstance(n, int)], where), numbers)


def _number_names(numbers: list[int], where: str) -> tuple[str, ...] | None:
    """Return the names of whole numbers, rising, that leave some out; None where they run from 0 without a gap."""
    if numbers[-1] == len(numbers) - 1:
        return None
    shown = ", ".join(f"{number} -> {i}" for i, number in list(enumerate(numbers))[:3])
    warnings.warn(
        f"the labels of {where} are {len(numbers)} whole numbers from {numbers[0]} to {numbers[-1]}, not all from 0 "
        f"on; they are numbered in this order, {shown}{', ...' if len(numbers) > 3 else ''}, and named by what they "
        "are in class_names",
        stacklevel=2,
    )
    return tuple(map(str, numbers))
