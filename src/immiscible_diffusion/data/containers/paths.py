"""What the paths in a folder or an archive say: which split, which class."""

import warnings
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from immiscible_diffusion.data._decode import Reader
from immiscible_diffusion.data.containers.labels import label_faults, tidy
from immiscible_diffusion.data.containers.listing import IMAGE_SUFFIXES, Bad, Columns, Label, Listing, plain
from immiscible_diffusion.data.containers.splits import parted, split_of

__all__ = ["METADATA", "arranged", "check_no_columns", "warn_of_metadata"]

METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
"""Tables of labels and captions that the hub's library reads beside images."""


def arranged(
    paths: Sequence[str],
    sizes: Sequence[int],
    split: str,
    where: str,
    table: Mapping[str, Label] | None,
    bad: Sequence[Bad],
    joint: str,
    reader: Callable[[list[int]], Reader],
    within: str = "",
) -> Listing:
    """Return the images of a split, with the labels that their folders or a table give them.

    Where every image lies in a folder named like a split (``train``, ``test``, ``val``, ...), those folders are the
    splits. Below them the first folder is the class, in the order of the names in the training split; images that
    lie directly there have no class, which is a mistake where others have one.

    Args:
        paths: relative to the container, with forward slashes.
        sizes: the bytes of each.
        split: the wanted one.
        where: the container's name in messages.
        table: path -> label, in place of the folders; empty where there are no labels whatever the folders.
        bad: what cannot be used, known before.
        joint: stands between the container's name and a path in messages.
        reader: returns the reader of the paths with these numbers.
        within: the folder around everything, with its slash, which names neither split nor class.

    Raises:
        ValueError: there is no image, no such split, or a split beside classes.
    """
    inner = [path.removeprefix(within) for path in paths]
    parts = parted(inner, split, where)
    wanted = split_of(split) or split
    chosen = [i for i, (name, _) in enumerate(parts) if name == wanted]
    names: tuple[str, ...] = ()
    if table is not None:
        labels = [table.get(tidy(inner[i])) for i in chosen]
        faults = label_faults(labels, None, "dataset.json has no label for it") if table else {}
    else:
        names = _class_folders(parts, wanted)
        labels, faults = _folder_labels([parts[i][1] for i in chosen], names)
    bad = [*bad, *(Bad(paths[chosen[i]], reason) for i, reason in faults.items())]
    good = [i for i in range(len(chosen)) if i not in faults]
    if not good and not bad:
        raise ValueError(f"there is no image in {where}; images end in {sorted(IMAGE_SUFFIXES)}")
    return Listing(
        [plain(f"{where}{joint}{paths[chosen[i]]}") for i in good],
        reader([chosen[i] for i in good]),
        np.array([sizes[chosen[i]] for i in good], np.int64),
        [labels[i] for i in good] if table or faults or any(labels) else None,
        names or None,
        bad=tuple(Bad(plain(f"{where}{joint}{name}"), reason) for name, reason in bad),
    )


def check_no_columns(columns: Columns, where: str) -> None:
    """Raise ValueError where columns are named: a folder or an archive of images has none."""
    given = columns._asdict() | {"label": "" if columns.label == "none" else columns.label}
    if named := next((key for key, name in given.items() if name), None):
        raise ValueError(
            f"source.{named} is {given[named]!r}; {where} is a folder or an archive of images and has no columns: "
            "leave the option out, or store the images as parquet or shards"
        )


def warn_of_metadata(tables: Sequence[str], where: str) -> None:
    """Say that such tables, of which labels or captions may be expected, are not read."""
    if tables:
        warnings.warn(
            f"{tables[0]} of {where} is not read: labels come from folders or dataset.json, captions from parquet "
            "files or shards. source.label = 'none' says that none are wanted",
            stacklevel=2,
        )


def _class_folders(parts: Sequence[tuple[str, str]], wanted: str) -> tuple[str, ...]:
    """Return the class folders of the training split, or of the wanted one where there is none, sorted."""
    deciding = "train" if any(name == "train" for name, _ in parts) else wanted
    return tuple(sorted({rest.split("/", 1)[0] for name, rest in parts if name == deciding and "/" in rest}))


def _folder_labels(rests: Sequence[str], names: tuple[str, ...]) -> tuple[list[Label | None], dict[int, str]]:
    """Return the class folder of each path below its split's folder, and row -> fault."""
    labels: list[Label | None] = [rest.split("/", 1)[0] if "/" in rest else None for rest in rests]
    faults = {}
    known = frozenset(names)
    for i, label in enumerate(labels if any(labels) else ()):
        if label is None:
            faults[i] = "it has no class folder, and others have one"
        elif label not in known:
            faults[i] = f"its class folder {plain(str(label))!r} is not among the classes of train"
    return labels, faults
