"""What ``torch.save`` wrote, read without executing anything in it.

Such a file is a zip archive with a pickle, which may name any function in Python and have it
called, beside the raw bytes of the tensors. Here no name is ever looked up: the handful that
describe tensors stand for records of this module, names of plain data and of the libraries a
training used stand for inert placeholders, and any other name refuses the file.

(``torch.load(weights_only=True)`` is as careful but all or nothing: training checkpoints hold
objects of the training's own classes beside the weights, and it would have to import these.)
"""

from __future__ import annotations

__all__ = ["Archive", "ArchiveError", "Placeholder", "TensorRecord"]

import io
import math
import os
import pickle
import pickletools
import tarfile
import zipfile
from collections import OrderedDict
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_STORAGES = {
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
_LIBRARIES = (
    "audio_diffusion_pytorch", "collections", "datetime", "main", "numpy", "omegaconf", "pathlib",
    "pytorch_lightning", "lightning", "lightning_fabric", "torch", "typing",
)  # fmt: skip
"""Top packages whose names become placeholders."""

_PLAIN = {
    *(f"{builtins}.{name}" for builtins in ("builtins", "__builtin__") for name in (
        "bool", "bytearray", "bytes", "complex", "dict", "float", "frozenset", "int", "list",
        "object", "range", "set", "slice", "str", "tuple",
    )),
    "_codecs.encode",
    "argparse.Namespace",
    "copy_reg._reconstructor",
    "copyreg._reconstructor",
}  # fmt: skip
"""Names of plain data, which become placeholders as well."""

_LARGEST_PICKLE = 64 * 2**20

_DAMAGED = (
    zipfile.BadZipFile, EOFError, KeyError, NotImplementedError, RuntimeError, ValueError,
)  # fmt: skip
"""What zipfile raises for a damaged archive, beside what it is meant to: RuntimeError for entries
that look encrypted, NotImplementedError for unknown features, ValueError for names that are no text
and places before the file's beginning."""


class ArchiveError(ValueError):
    """A file that is not such an archive, is damaged, or is not to be trusted."""


class Placeholder:
    """What stands for an object of a class that is not loaded: it takes anything and does nothing.

    Attributes:
        qualified: the class's name in the file.
    """

    qualified = ""

    def __new__(cls, *_: Any, **__: Any) -> Placeholder:
        return object.__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __setstate__(self, _: Any) -> None:
        pass

    def __setitem__(self, _: Any, __: Any) -> None:
        pass

    def append(self, _: Any) -> None:
        """Takes an element of a list and forgets it."""

    extend = append
    add = append


@dataclass(frozen=True)
class _Storage:
    """Where the numbers of a tensor lie: the entry's key, its type and its length."""

    key: str
    dtype: torch.dtype
    numel: int


@dataclass(frozen=True)
class TensorRecord:
    """A tensor in the file that has not been read.

    Attributes:
        storage: where its numbers lie; tensors may share one.
        offset: index of its first number there.
        shape: its shape.
        stride: steps between neighbours, in numbers.
    """

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def dtype(self) -> torch.dtype:
        return self.storage.dtype


class Archive:
    """A file that ``torch.save`` wrote.

    Arguments:
        path: the file.
        skip: further names (``package.module.Class``) to put placeholders for.

    Attributes:
        content: the saved object: dicts, lists, tuples, numbers and strings as they were, tensors
            as `TensorRecord`, everything else as `Placeholder`.

    Raises:
        OSError: if the file cannot be opened.
        ArchiveError: if it is no such archive, is damaged, or its pickle names what is neither
            data nor of a known library.
    """

    def __init__(self, path: str | os.PathLike[str], skip: Collection[str] = ()) -> None:
        self.path = Path(path)
        # Kept open: a file that is replaced meanwhile does not change what was checked.
        self._file = open(self.path, "rb")
        try:
            self._zip = self._opened()
            self.content = self._read(skip)
        except BaseException:
            self._file.close()
            raise

    def close(self) -> None:
        """Closes the file."""
        self._zip.close()
        self._file.close()

    def _opened(self) -> zipfile.ZipFile:
        # zipfile takes whatever ends in an archive: of a tar of checkpoints, the last one.
        whole = self._file.read(4) == b"PK\x03\x04"
        self._file.seek(0)
        if not whole and tarfile.is_tarfile(self._file):
            raise ArchiveError(f"{self.path} is a tar archive: unpack it and give the .ckpt inside")
        try:
            if not whole:
                raise zipfile.BadZipFile("it does not begin like a zip archive")
            return zipfile.ZipFile(self._file)
        except _DAMAGED as error:
            raise ArchiveError(
                f"{self.path} is not a checkpoint of the kind that torch.save writes ({error}); an "
                "incomplete download looks like this too, get the file again"
            ) from error

    def _read(self, skip: Collection[str]) -> Any:
        """The saved object."""
        roots = [n.removesuffix("/data.pkl") for n in self._zip.namelist() if n.count("/") == 1]
        roots = [root for root in roots if f"{root}/data.pkl" in self._zip.namelist()]
        if len(roots) != 1:
            raise ArchiveError(f"{self.path} is a zip archive, but not one that torch.save wrote")
        self._root = roots[0]
        order = f"{self._root}/byteorder"
        if order in self._zip.namelist() and self._entry(order, 16) != b"little":
            raise ArchiveError(f"{self.path} was written on a big-endian machine; not supported")
        return self._unpickle(self._entry(f"{self._root}/data.pkl", _LARGEST_PICKLE), skip)

    def tensor(self, record: TensorRecord) -> Tensor:
        """Reads a tensor.

        Raises:
            ArchiveError: if its numbers are not in the file, or it reaches beyond them.
        """
        storage = record.storage
        size = storage.numel * storage.dtype.itemsize
        data = self._entry(f"{self._root}/data/{storage.key}", size)
        last = record.offset + sum(
            (n - 1) * s for n, s in zip(record.shape, record.stride, strict=True)
        )
        empty = math.prod(record.shape) == 0
        if len(data) != size or not (empty or last < storage.numel):
            raise ArchiveError(
                f"{self.path}: a tensor of shape {record.shape} does not fit its {len(data)} "
                "bytes; the file is damaged"
            )
        if empty:
            return torch.empty(record.shape, dtype=storage.dtype)
        flat = torch.frombuffer(bytearray(data), dtype=storage.dtype)
        return flat.as_strided(record.shape, record.stride, record.offset)

    def _entry(self, name: str, limit: int) -> bytes:
        try:
            info = self._zip.getinfo(name)
            if info.compress_type != zipfile.ZIP_STORED or info.file_size > limit:
                raise ArchiveError(
                    f"{self.path}: '{name}' is compressed, or larger ({info.file_size} bytes) than "
                    f"what it should hold ({limit} bytes); torch.save does not write such files"
                )
            if info.header_offset < 0:
                raise zipfile.BadZipFile("it begins before the file")
            return self._zip.read(info)
        except ArchiveError:
            raise
        except _DAMAGED as error:
            raise ArchiveError(
                f"{self.path}: cannot read '{name}' ({error}); the file is damaged, get it again"
            ) from error

    def _unpickle(self, data: bytes, skip: Collection[str]) -> Any:
        try:
            for opcode, argument, _ in pickletools.genops(data):
                # A large memo index alone makes the unpickler allocate as much; extension codes
                # are names without a name.
                if "PUT" in opcode.name and int(argument or 0) > len(data):
                    raise ArchiveError(f"{self.path}: its pickle has a bad memo index")
                if opcode.name.startswith("EXT"):
                    raise ArchiveError(f"{self.path}: its pickle uses extension codes")
            return _Reader(self.path, data, skip).load()
        except ArchiveError:
            raise
        except Exception as error:  # a damaged pickle can raise anything
            raise ArchiveError(
                f"{self.path}: cannot read its pickle ({type(error).__name__}: {error}); the file "
                "is damaged or made by something else"
            ) from error


class _Reader(pickle.Unpickler):
    """An unpickler that looks nothing up."""

    def __init__(self, path: Path, data: bytes, skip: Collection[str]) -> None:
        super().__init__(io.BytesIO(data))
        self.path = path
        self.skip = skip

    def find_class(self, module: str, name: str, /) -> Any:
        full = f"{module}.{name}"
        if full == "collections.OrderedDict":
            return OrderedDict
        if full == "torch._utils._rebuild_tensor_v2":
            return _record
        if full == "torch._utils._rebuild_parameter":
            return _first
        if module == "torch" and name in _STORAGES:
            return _STORAGES[name]
        known = module.split(".")[0] in _LIBRARIES or full in _PLAIN
        if not known and full not in self.skip:
            raise ArchiveError(
                f"{self.path} names '{full}', which has no place in a checkpoint of this kind: the "
                "file is refused, and nothing in it was run. If you know that it is an object of "
                f"the training's own code, have it passed over (--skip {full})"
            )
        return type("Placeholder", (Placeholder,), {"qualified": full})

    def persistent_load(self, pid: Any, /) -> _Storage:
        match pid:
            case ("storage", torch.dtype() as dtype, str() as key, str(), int() as numel):
                if numel >= 0 and key.isalnum():
                    return _Storage(key, dtype, numel)
        raise ArchiveError(f"{self.path}: its pickle refers to something that is not a tensor")


def _record(storage: Any, offset: Any, shape: Any, stride: Any, *_: Any) -> TensorRecord:
    """Stands for torch._utils._rebuild_tensor_v2."""
    numbers = (offset, *shape, *stride)
    if (
        not isinstance(storage, _Storage)
        or len(shape) != len(stride)
        or not all(type(n) is int and n >= 0 for n in numbers)
    ):
        raise ArchiveError("a tensor in the file has no valid shape")
    return TensorRecord(storage, offset, tuple(shape), tuple(stride))


def _first(data: Any, *_: Any) -> Any:
    """Stands for torch._utils._rebuild_parameter: the parameter's tensor."""
    return data
