"""A reader for CIFAR's python files that cannot be made to run code.

A pickle is a program: loading it calls whatever it names. This reader answers the few names with which NumPy arrays
and byte strings are stored by its own constructors and refuses every other, so a file can hold nested lists,
dictionaries, numbers, text, bytes and arrays of plain numbers, and nothing else.
"""

import functools
import io
import pickle
from typing import Any

import numpy as np

from common.errors import UserError

_PLAIN_KINDS = "biuf"


class _Array:
    """An array under construction: what `numpy.core.multiarray._reconstruct` stands for in a pickle.

    The state is (version, shape, dtype, is_fortran, raw bytes). Nothing of NumPy's own unpickling runs.
    """

    def __init__(self) -> None:
        self.value: np.ndarray | None = None

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, fortran, raw = state
        raw = raw.encode("latin1") if isinstance(raw, str) else raw
        if not (isinstance(dtype, _Type) and isinstance(raw, bytes) and isinstance(shape, tuple)):
            raise pickle.UnpicklingError("an array in an unknown form")
        flat = np.frombuffer(raw, dtype.value)
        self.value = flat.reshape(shape, order="F" if fortran else "C")


class _Type:
    """A plain number type such as "u1" or "<i8", with the byte order that its state sets."""

    def __init__(self, code: Any, *_: Any) -> None:
        code = code.decode("latin1") if isinstance(code, bytes) else code
        if not isinstance(code, str) or len(code) > 4:
            raise pickle.UnpicklingError("a number type in an unknown form")
        self.value = np.dtype(code)
        if self.value.kind not in _PLAIN_KINDS:
            raise pickle.UnpicklingError(f"an array of type {code!r}")

    def __setstate__(self, state: Any) -> None:
        order = state[1].decode("latin1") if isinstance(state[1], bytes) else state[1]
        if order not in ("<", ">", "|", "="):
            raise pickle.UnpicklingError("an unknown byte order")
        self.value = np.dtype(f"{order}{self.value.str[1:]}")


def _reconstruct(*_: Any) -> _Array:
    return _Array()


def _encode(text: Any, encoding: Any) -> bytes:
    """`_codecs.encode`, with which protocol 2 stores bytes as text."""
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError("an unknown text encoding")
    return text.encode("latin1")


_ADMITTED: dict[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy", "dtype"): _Type,
    ("_codecs", "encode"): _encode,
}


class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("numpy", "ndarray"):
            return object()  # only ever handed to _reconstruct, which ignores it
        if (module, name) not in _ADMITTED:
            raise pickle.UnpicklingError(f"it names {module}.{name}")
        # Fresh each time: a pickle can set attributes of what it is given, and they must not outlive the file.
        return functools.partial(_ADMITTED[module, name])

    def persistent_load(self, _: Any) -> Any:
        raise pickle.UnpicklingError("it names an object outside itself")


def read_pickle(data: bytes, where: str) -> Any:
    """The content of a pickle written by Python 2 or 3; arrays are plain NumPy arrays, keys and texts stay as stored.

    Python 2 texts become bytes. UserError names `where` when the file is no pickle, is cut short, or names anything
    besides NumPy arrays of plain numbers and byte strings: nothing it names is imported or called.
    """
    try:
        return _plain(_Reader(io.BytesIO(data), encoding="bytes").load())
    except pickle.UnpicklingError as error:
        text = " ".join(str(error).split())
        raise UserError(f"{where} is not a plain array file ({text}): get a fresh copy, nothing was run") from None
    except Exception as error:  # a damaged pickle can fail in any way
        raise UserError(f"{where} cannot be read ({type(error).__name__}): get a fresh copy") from None


def _plain(value: Any) -> Any:
    """Replace arrays under construction by arrays, in dictionaries, lists and tuples."""
    if isinstance(value, _Array):
        if value.value is None:
            raise pickle.UnpicklingError("an array without content")
        return value.value
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_plain(item) for item in value)
    return value
