"""Careful reading of parquet folders: one place where a foreign file can fail, whatever is wrong with it."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import re
import warnings
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from mmsurgery.artifacts.files import read_bytes, regular_file
from mmsurgery.data.faults import Report
from mmsurgery.data.samples import IMAGE_FORMATS, SMALLER, check_picture
from mmsurgery.errors import InputRefused, MmsurgeryError, UsageError
from mmsurgery.paths import real

_MAX_PICTURE = 256 << 20
_MAX_DECLARED = 1 << 30
_MAX_RATIO = 100
_FORMATS = "PNG, JPEG or WebP"
BELOW = "put the picture below the data folder"
_KINDS = {
    "ID": "string",
    "image": "struct",
    "images": "list",
    "metadata": "string",
    "biography": "string",
    "Classification_Task": "struct",
    "Mask_Task": "list",
    "Generation_Task": "list",
    "question": "string",
    "answer": "string",
    "questions": "list",
    "caption": "string",
    "name": "string",
    "paraphrased_caption": "string",
    "perturbed_captions": "list",
    "perturbed_names": "list",
    "options": "list",
}
"""Column -> its kind of Arrow type."""
_SAVED = {
    "ID": "save the column as string, IDs with their leading zeros",
    "image": "save each picture as a struct of bytes and path, as the datasets library does",
    "images": "save each list of pictures as structs of bytes and path, as the datasets library does",
}
"""Column -> what to do where it is of another type; others can say no more than the type."""
_SHARD = re.compile(r"(.+)-([0-9]{1,9})-of-([0-9]{1,9})(?:-[0-9a-f]+)?\.parquet")
"""Name, number and how many there are; old files have a digest of their own behind."""


@dataclass(frozen=True)
class Row:
    where: str
    """File and row number, for messages."""
    cells: dict[str, Any]

    def text(self, column: str) -> str:
        """A cell that must hold text.

        Raises:
            InputRefused: naming file, row and column.
        """
        value = self.cells.get(column)
        if not is_text(value):
            raise InputRefused(f"{self.where}: column {column} is empty")
        return value

    def person(self, report: Report) -> str | None:
        """The row's ID; None, and a fault, where it has none."""
        if is_text(self.cells.get("ID")):
            return str(self.cells["ID"])
        report.fault("empty_id", f"{self.where}: column ID is empty")
        return None


@contextlib.contextmanager
def _refusing(path: Path) -> Iterator[None]:
    try:
        yield
    except MmsurgeryError:
        raise
    except Exception as error:  # a damaged parquet file can raise a dozen classes
        reason = str(error).splitlines()[0][:160] if str(error) else ""
        raise InputRefused(
            f"{path} cannot be read as parquet ({type(error).__name__}: {reason})", "download it again"
        ) from error


def files(root: Path, config: str) -> list[Path]:
    """The parquet files of a folder, or a single file, sorted by name; hidden files are none of them.

    Raises:
        UsageError: if there are none, naming the folders that exist.
        InputRefused: if the names say that there are more.
    """
    path = root / config
    found = [path] if path.suffix == ".parquet" else parquet_files(path)
    if not path.exists() or not found:
        raise UsageError(f"{path} holds no parquet files", _where_to_look(root, config))
    _check_shards(path, found)
    return found


def parquet_files(folder: Path) -> list[Path]:
    """The parquet files of a folder by name, if any; without hidden ones, which some systems put beside files."""
    return sorted(path for path in folder.glob("*.parquet") if path.name[0] != ".")


def _check_shards(folder: Path, found: Iterable[Path]) -> None:
    shards: dict[tuple[str, str], set[int]] = {}
    for path in found:
        if match := _SHARD.fullmatch(path.name):
            shards.setdefault((match[1], match[3]), set()).add(int(match[2]))
    for (name, total), there in shards.items():
        lacking = next((i for i in range(int(total)) if i not in there), None)
        if lacking is not None:
            shard = f"{name}-{lacking:0{len(total)}}-of-{total}"
            raise InputRefused(
                f"{folder} lacks {shard}, of {int(total)} files it has {len(there)}", "download it again"
            )


def _where_to_look(root: Path, config: str) -> str:
    folders = sorted(p for p in root.iterdir() if p.is_dir() and p.name[0] != ".") if root.is_dir() else []
    for folder in folders:
        if parquet_files(folder / config):
            return f"{config} lies one level deeper, in {folder.name}: give {folder} as the data folder"
    known = ", ".join(folder.name for folder in folders) or "none"
    return f"check the data folder and forget ratio; folders there: {known}"


def column_names(root: Path, config: str) -> set[str]:
    """Names of the columns that all files of a folder have."""
    import pyarrow.parquet as pq

    names: set[str] | None = None
    for path in files(root, config):
        regular_file(path)
        with path.open("rb") as file, _refusing(path):
            found = set(pq.read_schema(file).names)
            names = found if names is None else names & found
    return names or set()


def row_count(root: Path, config: str) -> int:
    """How many rows the files of a folder declare."""
    import pyarrow.parquet as pq

    count = 0
    for path in files(root, config):
        regular_file(path)
        with path.open("rb") as file, _refusing(path):
            count += pq.read_metadata(file).num_rows
    return count


def read_rows(
    root: Path, config: str, columns: Collection[str], optional: Collection[str] = (), *, needs: str | None = None
) -> Iterator[Row]:
    """The rows of a folder's parquet files, file by file in the order of their names.

    Args:
        columns: columns that must be there; only these and the optional ones are read.
        needs: what to do if a column is missing, for the message.

    Raises:
        UsageError: if there is no such folder.
        InputRefused: for damaged files, missing or wrongly typed columns, no rows, and declared sizes
            that have nothing to do with the file's.
    """
    import pyarrow.parquet as pq

    for path in files(root, config):
        status = regular_file(path)
        # opened here: the reader cannot name a path that is not text
        with path.open("rb") as opened, _refusing(path):
            if opened.read(4) != b"PAR1":  # the reader looks at the end of a file only
                raise InputRefused(f"{path} is no parquet file", "download or copy it again")
            # buffered, but not ahead: pages are read as they are used, else a column of pictures (buffer_size) or
            # all row groups (pre_buffer) would be held whole
            file = pq.ParquetFile(opened, page_checksum_verification=True, buffer_size=1 << 20, pre_buffer=False)
            wanted = [*columns, *(c for c in optional if c in file.schema_arrow.names)]
            _check_columns(path, file.schema_arrow, wanted, needs)
            declared = sum(file.metadata.row_group(i).total_byte_size for i in range(file.metadata.num_row_groups))
            if declared > max(_MAX_DECLARED, _MAX_RATIO * status.st_size):
                raise InputRefused(f"{path} declares {declared:,} bytes in a file of {status.st_size:,}")
            if file.metadata.num_rows == 0:
                raise InputRefused(f"{path} has no rows", "download it again")
            number = 0
            for batch in file.iter_batches(batch_size=16, columns=wanted):
                for cells in batch.to_pylist():
                    yield Row(f"{path} row {number}", cells)
                    number += 1


def distinct(rows: Iterable[Row], report: Report) -> Iterator[Row]:
    """The rows without those that stand twice, cell for cell; these are counted as faults."""
    seen: set[bytes] = set()
    for row in rows:
        digest = hashlib.sha256(json.dumps(row.cells, default=_shown).encode()).digest()
        if digest in seen:
            report.fault("repeated_row", row.where)
            continue
        seen.add(digest)
        yield row


def _shown(value: object) -> str:
    """What JSON has no form for; binary members by their digest, since their own text is slow to make."""
    return hashlib.sha256(value).hexdigest() if isinstance(value, bytes) else repr(value)


def is_text(value: object) -> TypeGuard[str]:
    """Whether a cell holds more than blanks."""
    return isinstance(value, str) and bool(value.strip())


def _check_columns(path: Path, schema: Any, wanted: Collection[str], needs: str | None) -> None:
    missing = [column for column in wanted if column not in schema.names]
    if missing:
        raise InputRefused(f"{path} lacks column {', '.join(missing)} (it has {', '.join(schema.names)})", needs)
    for column in wanted:
        if (times := schema.names.count(column)) > 1:
            raise InputRefused(f"{path} has {times} columns {column}", "keep one of them")
        kind = str(schema.field(column).type).removeprefix("large_")
        if not kind.startswith(_KINDS[column]):
            what = f"{path}: column {column} is {kind[:40]}, should be {_KINDS[column]}"
            raise InputRefused(what, _SAVED.get(column, f"save the column as {_KINDS[column]}"))


def picture_bytes(cell: Any, root: Path, where: str) -> bytes:
    """The encoded picture of an image cell `{bytes, path}`; a path counts only below `root`.

    The header, and for PNG every checksum, is looked at; the pixels are decoded when used.

    Raises:
        InputRefused: naming `where`, for anything but a PNG, JPEG or WebP that `check_picture` takes.
    """
    if not isinstance(cell, dict):
        raise InputRefused(f"{where}: no picture")
    data = cell.get("bytes")
    if data is None:
        data = _from_path(cell.get("path"), root, where)
    from PIL import Image, UnidentifiedImageError

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            with Image.open(io.BytesIO(data), formats=IMAGE_FORMATS) as image:
                check_picture(image, where)
                image.verify()
        except InputRefused:
            raise
        except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
            raise InputRefused(f"{where}: picture of too many pixels", SMALLER) from error
        except UnidentifiedImageError as error:
            raise InputRefused(
                f"{where}: picture cannot be decoded: no {_FORMATS}", f"convert it to {_FORMATS}"
            ) from error
        except Exception as error:  # a dozen classes can come out of a damaged picture
            what = f"{where}: picture cannot be decoded ({type(error).__name__})"
            raise InputRefused(what, f"copy it again, or save it anew as {_FORMATS}") from error
    return bytes(data)


def _from_path(name: Any, root: Path, where: str) -> bytes:
    if not isinstance(name, str) or not name or "\0" in name:
        raise InputRefused(f"{where}: picture has neither bytes nor a path")
    base = real(root)
    path = real(base / name)
    if not path.is_relative_to(base):
        raise InputRefused(f"{where}: picture path {name} leads out of the data folder", BELOW)
    if not path.is_file():
        raise InputRefused(f"{where}: picture {name} is not in the data folder (nothing is ever downloaded)", BELOW)
    return read_bytes(path, _MAX_PICTURE)
