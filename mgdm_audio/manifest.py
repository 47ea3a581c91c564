"""What became of every song of a catalogue: a folder of Parquet files that only ever grows.

Each record is a file of its own, with a name that no other has, which appears complete or not at
all: any number of machines may add records at the same time, on a disk or in object storage.
:meth:`Manifest.compact` makes one file of many: it writes the new one before it removes those that
it has read, so that at any moment every record is there at least once. Of several records of a
song the latest counts.
"""

from __future__ import annotations

__all__ = ["Manifest", "Record"]

import dataclasses
import io
import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from mgdm_audio.places import Place

OK, FAILED = "ok", "failed"

READS = 5
"""Listings of a folder that others compact at the same time."""


@dataclass(frozen=True)
class Record:
    """What became of one song.

    Attributes:
        name: of the song, unique in its run; its stems are in ``stems/<name>``.
        source: the recording.
        status: ``ok`` or ``failed``.
        error: why, if it failed.
        finished: time in UTC, ISO 8601.
        settings: fingerprint of the run's settings.
        model: name of the model.
        model_sha256: of its weights.
        input_sha256: of the recording's file; empty if it could not be read.
        input_bytes, input_stamp: size of the file and time of writing (or the store's tag), by
            which a later run knows it without reading it.
        known_sha256: of the files of known stems together; empty if there are none.
        seed: of its samples.
        residual_db: what the sampler left of the mix, relative to it; None if nothing.
        calls, vjps, windows: network calls, those with a gradient, windows.
        seconds: that it took, transfers included.
        audio_seconds: length of what was separated.
        output_bytes: of all files together.
        outputs: the files, relative to the run's folder.
        sizes: their bytes.
        sha256: their checksums.
        warnings: what a user should know about the recording.
        worker: machine and process.
        device: that sampled.
        threads: of the processor.
        versions: of mgdm_audio and torch.
    """

    name: str
    source: str
    status: str
    error: str | None
    finished: str
    settings: str
    model: str
    model_sha256: str
    input_sha256: str
    input_bytes: int
    input_stamp: str
    known_sha256: str
    seed: int
    residual_db: float | None = None
    calls: int = 0
    vjps: int = 0
    windows: int = 0
    seconds: float = 0.0
    audio_seconds: float = 0.0
    output_bytes: int = 0
    outputs: tuple[str, ...] = ()
    sizes: tuple[int, ...] = ()
    sha256: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    worker: str = ""
    device: str = ""
    threads: int = 0
    versions: str = ""


_KINDS = {
    "str": "string", "str | None": "string", "int": "int64", "float": "float64",
    "float | None": "float64", "tuple[str, ...]": "strings", "tuple[int, ...]": "int64s",
}  # fmt: skip


@lru_cache(maxsize=1)
def _schema() -> Any:
    import pyarrow as pa

    kinds = {
        "string": pa.string(), "int64": pa.int64(), "float64": pa.float64(),
        "strings": pa.list_(pa.string()), "int64s": pa.list_(pa.int64()),
    }  # fmt: skip
    fields = dataclasses.fields(Record)
    return pa.schema([(field.name, kinds[_KINDS[str(field.type)]]) for field in fields])


class Manifest:
    """The records of a run.

    Arguments:
        url: the folder; it need not be there.

    Raises:
        ImportError: if pyarrow is not installed.
    """

    def __init__(self, url: str) -> None:
        import pyarrow.parquet

        self._parquet: Any = pyarrow.parquet
        self.place = Place(url)

    def add(self, records: Iterable[Record]) -> None:
        """Adds records, all in one file."""
        import pyarrow as pa

        rows = [dataclasses.asdict(record) for record in records]
        stream = io.BytesIO()
        self._parquet.write_table(pa.Table.from_pylist(rows, _schema()), stream)
        self.place.write(stream.getvalue(), f"{uuid.uuid4().hex}.parquet")

    def read(self) -> dict[str, Record]:
        """The latest record of each song, by name.

        Raises:
            OSError: if it cannot be read.
            ValueError: if a file is not one of a manifest.
        """
        return self._read()[0]

    def compact(self) -> None:
        """Makes one file of all, with the latest record of each song alone."""
        records, paths = self._read()
        if len(paths) > 1:
            self.add(record for _, record in sorted(records.items()))
            self.place.remove(paths)

    def _read(self) -> tuple[dict[str, Record], list[str]]:
        for _ in range(READS):
            paths = [path for path in self.place.files() if path.endswith(".parquet")]
            contents = self.place.read_all(paths)
            if len(contents) == len(paths):
                break
        else:
            raise OSError(
                f"{self.place.url} changes all the time; is another run making one file of many?"
            )
        latest: dict[str, Record] = {}
        for path, content in contents.items():
            for record in self._records(path, content):
                earlier = latest.get(record.name)
                if earlier is None or _order(record) > _order(earlier):
                    latest[record.name] = record
        return latest, paths

    def _records(self, path: str, content: bytes) -> list[Record]:
        names = {field.name for field in dataclasses.fields(Record)}  # a later version has more
        try:
            # Not read_table, which takes folder names of the form a=b for columns.
            table = self._parquet.ParquetFile(io.BytesIO(content)).read()
            rows: list[dict[str, Any]] = table.to_pylist()
            return [_record({key: row[key] for key in row if key in names}) for row in rows]
        except (OSError, ValueError, TypeError) as error:
            raise ValueError(
                f"{path} is no file of a manifest ({' '.join(str(error).split())[:200]}); remove "
                "it, and its songs are separated again"
            ) from error


def _record(cells: dict[str, Any]) -> Record:
    values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in cells.items()}
    return Record(**values)


def _order(record: Record) -> tuple[str, bool]:
    """Of two records at one time, the one with stems counts."""
    return record.finished, record.status == OK
