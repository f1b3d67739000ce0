"""Images in tables: parquet files in the hub's format, or a data set on the hub."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from immiscible_diffusion.data._decode import MAX_BYTES, UnreadableError
from immiscible_diffusion.data.containers.columns import check_captions, check_labels, chosen_columns
from immiscible_diffusion.data.containers.labels import labelled
from immiscible_diffusion.data.containers.listing import Columns, Label, Labels, Listing, plain
from immiscible_diffusion.files import parsed_json

__all__ = ["list_hub", "list_parquet"]

_MAX_GROUP = 2**31
"""Bytes of the images of one row group: it is read as a whole for each of its rows."""


@dataclass(frozen=True)
class _ParquetReader:
    files: tuple[tuple[str, int], ...]  # path and time of change
    column: str
    groups: Labels  # (n, 3): file, group, first row

    def __call__(self, row: int) -> bytes:
        at = int(np.searchsorted(self.groups[:, 2], row, "right")) - 1
        file, group, first = map(int, self.groups[at])
        return _bytes(_group(*self.files[file], group, self.column)[row - first].as_py())


@dataclass(frozen=True)
class _HubReader:
    table: Any
    column: str
    cache: str

    def __call__(self, row: int) -> bytes:
        cell = self.table[row][self.column]
        if isinstance(cell, dict) and not cell.get("bytes") and cell.get("path"):
            path = Path(cell["path"]).resolve()
            if not path.is_relative_to(self.cache):
                raise UnreadableError(f"it points to {path}, outside the hub's cache")
            return path.read_bytes()
        return _bytes(cell)


def _bytes(cell: object) -> bytes:
    content = cell.get("bytes") if isinstance(cell, dict) else cell
    if content is None:
        raise UnreadableError("its cell holds no bytes")
    if not isinstance(content, bytes):
        raise UnreadableError(f"its cell holds {type(content).__name__}, not the bytes of an image")
    if len(content) > MAX_BYTES:
        raise UnreadableError(f"it has {len(content)} bytes; an image may have {MAX_BYTES}")
    return content


def _arrow(name: str) -> Any:
    try:
        return import_module(name)
    except ImportError as error:
        raise ImportError("parquet files need pyarrow: pip install 'immiscible-diffusion[data]'") from error


@lru_cache(maxsize=256)
def _footer(path: str, changed: int) -> Any:
    return _arrow("pyarrow.parquet").read_metadata(path)


@lru_cache(maxsize=2)
def _group(path: str, changed: int, group: int, column: str) -> Any:
    """Return the images of one row group; the last two are kept, for rows are asked for in rising order."""
    metadata = _footer(path, changed)
    size = _group_bytes(metadata, group, column)
    if size > _MAX_GROUP:
        raise UnreadableError(f"row group {group} has {size} bytes of images; write groups below {_MAX_GROUP}")
    parquet = _arrow("pyarrow.parquet")
    try:
        with parquet.ParquetFile(path, metadata=metadata, page_checksum_verification=True) as file:
            return file.read_row_group(group, columns=[column]).column(column)
    except Exception as error:  # Arrow has many errors for damaged pages, and not one class for them
        raise UnreadableError(f"row group {group} of {Path(path).name} is damaged: {_line(error)}") from error


def _group_bytes(metadata: Any, group: int, column: str) -> int:
    """Return the bytes of a row group's images."""
    parts = [metadata.row_group(group).column(i) for i in range(metadata.num_columns)]
    return sum(part.total_uncompressed_size for part in parts if part.path_in_schema.split(".")[0] == column)


def list_parquet(files: Sequence[Path], columns: Columns) -> Listing:
    """Return the rows of parquet files; the images stay in the files.

    Args:
        files: in order.
        columns: their names, or where to find them.

    Raises:
        ValueError: a file is damaged, has no such column, or has labels that are neither names nor whole numbers.
    """
    names: list[str] = []
    stamps: list[tuple[str, int]] = []
    groups: list[tuple[int, int, int]] = []
    sizes: list[int] = []
    labels: list[Label | None] = []
    captions: list[tuple[str, ...]] = []
    head: tuple[Columns, tuple[str, ...] | None] | None = None
    for path in files:
        where = plain(str(path))
        try:
            stamp = (str(path.resolve()), path.stat().st_mtime_ns)
            metadata = _footer(*stamp)
            schema = metadata.schema.to_arrow_schema()
        except Exception as error:  # Arrow has many errors for damaged files, and not one class for them
            raise ValueError(f"cannot read {where}: {_line(error)}") from error
        features = _features(schema)
        named = chosen_columns(schema.names, features, columns, where)
        if head is None:
            head = (named, _class_names(features.get(named.label)))
        elif head != (named, _class_names(features.get(named.label))):
            raise ValueError(f"{where} has other columns or classes than {plain(str(files[0]))}")
        stamps.append(stamp)
        counts = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
        starts = np.cumsum([len(names), *counts])
        groups += [(len(stamps) - 1, g, int(start)) for g, start in enumerate(starts[:-1]) if counts[g]]
        names += [f"{where}, row {i}" for i in range(sum(counts))]
        sizes += [_group_bytes(metadata, g, named.image) for g, count in enumerate(counts) for _ in range(count)]
        if named.label:
            check_labels(str(schema.field(named.label).type), named.label, where)
            labels += [int(value) if isinstance(value, bool) else value for value in _column(path, named.label)]
        if named.caption:
            check_captions(str(schema.field(named.caption).type), named.caption, where)
            captions += [_texts(value) for value in _column(path, named.caption)]
    if head is None or not names:
        raise ValueError(f"there is no row in {plain(str(files[0]))}")
    reader = _ParquetReader(tuple(stamps), head[0].image, np.array(groups, np.int64).reshape(-1, 3))
    whole = Listing(names, reader, np.array(sizes, np.int64), classes=head[1], columns=head[0], grouped=True)
    return labelled(whole, labels if head[0].label else None, captions if head[0].caption else None)


def list_hub(name: str, split: str, columns: Columns) -> Listing:
    """Return the rows of a data set on the hub, which is fetched into the hub's cache.

    Raises:
        ValueError: it cannot be reached, or has no such split or column.
        ImportError: the ``data`` extra is missing.
    """
    try:
        import datasets
    except ImportError as error:
        raise ImportError("the hub needs datasets: pip install 'immiscible-diffusion[data]'") from error
    datasets.disable_progress_bars()
    try:
        table = datasets.load_dataset(name, split=split)
    except Exception as error:  # the hub, the network and the files each have errors of their own
        raise ValueError(
            f"cannot read images from {name}: no such file or folder is here, and the hub gave none: {_line(error)}"
        ) from error
    features = {
        column: {"_type": type(kind).__name__, "names": getattr(kind, "names", None)}
        for column, kind in table.features.items()
    }
    columns = chosen_columns(table.column_names, features, columns, name)
    if columns.label:
        check_labels(str(table.data.schema.field(columns.label).type), columns.label, name)
    if columns.caption:
        check_captions(str(table.data.schema.field(columns.caption).type), columns.caption, name)
    if features[columns.image]["_type"] == "Image":
        table = table.cast_column(columns.image, datasets.Image(decode=False))
    cache = str(Path(datasets.config.HF_CACHE_HOME).resolve())
    reader = _HubReader(table.select_columns([columns.image]), columns.image, cache)
    names = [f"{name}, {split} row {i}" for i in range(len(table))]
    cells = list(table.with_format(None)[columns.label][:]) if columns.label else []
    labels = [int(value) if isinstance(value, bool) else value for value in cells]
    captions = [_texts(value) for value in table[columns.caption][:]] if columns.caption else []
    listing = Listing(
        names, reader, _hub_sizes(table.data.column(columns.image)), classes=_class_names(features.get(columns.label))
    )
    return labelled(listing, labels if columns.label else None, captions if columns.caption else None)


def _features(schema: Any) -> Mapping[str, Mapping[str, Any]]:
    """Return the notes on the columns that the hub's library wrote into a file; empty if there are none."""
    try:
        features = parsed_json((schema.metadata or {})[b"huggingface"])["info"]["features"]
    except (KeyError, TypeError, ValueError):
        return {}
    if not isinstance(features, dict):
        return {}
    return {str(name): kind for name, kind in features.items() if isinstance(kind, dict)}


def _class_names(feature: Mapping[str, Any] | None) -> tuple[str, ...] | None:
    names = (feature or {}).get("names")
    return tuple(map(str, names)) if isinstance(names, list) and names else None


def _texts(value: object) -> tuple[str, ...]:
    """Return the captions of one row; many sets have several. A missing one is left out."""
    texts = value if isinstance(value, list) else [value]
    return tuple(str(text) for text in texts if text is not None)


def _column(path: Path, column: str) -> list[Any]:
    try:
        return list(_arrow("pyarrow.parquet").read_table(path, columns=[column]).column(column).to_pylist())
    except Exception as error:  # as above
        raise ValueError(f"cannot read column {column!r} of {plain(str(path))}: {_line(error)}") from error


def _line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0][:300]


def _hub_sizes(column: Any) -> Labels:
    """Return the bytes of each image of an Arrow column, (n,), by its offsets; 0 where the bytes lie elsewhere."""
    arrow, compute = _arrow("pyarrow"), _arrow("pyarrow.compute")
    if arrow.types.is_struct(column.type):
        column = compute.struct_field(column, "bytes")
    return np.asarray(compute.fill_null(compute.binary_length(column), 0).to_numpy(), np.int64)
