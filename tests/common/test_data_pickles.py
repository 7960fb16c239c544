"""The restricted pickle reader: reads CIFAR's files as Python 2 and 3 write them, runs nothing."""

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.data.pickles import read_pickle
from common.errors import UserError
from tests.miniatures import python2_pickle

ARRAY = np.arange(12, dtype=np.uint8).reshape(3, 4)


def test_reads_what_python_2_wrote() -> None:
    content = read_pickle(python2_pickle(ARRAY, [3, 1, 2], "labels"), "f")
    assert content[b"data"].dtype == np.uint8 and np.array_equal(content[b"data"], ARRAY)
    assert content[b"labels"] == [3, 1, 2] and content[b"batch_label"] == b"training batch 1 of 5"
    assert content[b"filenames"] == [b"a.png"] * 3


def test_the_python_2_bytes_are_what_pickle_itself_understands() -> None:
    content = pickle.loads(python2_pickle(ARRAY, [3, 1, 2], "labels"), encoding="bytes")
    assert np.array_equal(content[b"data"], ARRAY)


@pytest.mark.parametrize("protocol", [2, 3, 4])
@pytest.mark.parametrize("dtype", ["u1", "<i8", ">i4", "<f4", "?"])
def test_reads_what_python_3_writes(protocol: int, dtype: str) -> None:
    value = {
        "data": ARRAY.astype(dtype),
        "t": np.asfortranarray(ARRAY.astype(dtype)),
        "labels": [1, 2],
        "x": (b"\xff", "é"),
    }
    content = read_pickle(pickle.dumps(value, protocol), "f")
    assert np.array_equal(content["data"], value["data"]) and content["data"].dtype == np.dtype(dtype)
    assert np.array_equal(content["t"], value["t"])
    assert content["labels"] == [1, 2] and content["x"] == (b"\xff", "é")


class Execute:
    """Pickles into a program that runs a command."""

    def __init__(self, command: str):
        self.command = command

    def __reduce__(self) -> Any:
        return os.system, (self.command,)


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_runs_nothing(tmp_path: Path, protocol: int) -> None:
    proof = tmp_path / "proof"
    program = pickle.dumps({"data": ARRAY, "labels": Execute(f"touch {proof}")}, protocol)
    with pytest.raises(UserError, match=r"^some/file is not a plain array file .*(posix|nt)\.system") as caught:
        read_pickle(program, "some/file")
    assert "\n" not in str(caught.value)
    assert not proof.exists()
    pickle.loads(program)  # the program is a real one
    assert proof.exists()


@pytest.mark.parametrize(
    "program",
    [
        b"cbuiltins\neval\n(S'1'\ntR.",
        b"cnumpy\nload\n(S'x'\ntR.",
        b"cnumpy.core.multiarray\n_reconstruct.__globals__\n.",
        b"(S'1'\nios\nsystem\n.",
        b"\x80\x02cnumpy\ndtype\nU\x02O8\x85R.",
        b"\x80\x02cnumpy\ndtype\nU\x0bi4,(2)i4,f8\x85R.",
        b"\x80\x02cnumpy.core.multiarray\n_reconstruct\n)R.",
        b"P1\n.",
    ],
)
def test_refuses_other_names_and_forms(program: bytes) -> None:
    with pytest.raises(UserError, match=r"^f "):
        read_pickle(program, "f")


@pytest.mark.parametrize("name", [b"cnumpy\ndtype\n", b"cnumpy\nndarray\n", b"c_codecs\nencode\n"])
def test_a_pickle_cannot_change_the_reader(name: bytes) -> None:
    # BUILD with a slot state sets attributes of whatever is on the stack: here of what stands for an admitted name.
    with pytest.raises(UserError):
        read_pickle(b"\x80\x02" + name + b"(N}U\x05valueK\x01stb.", "f")
    assert np.array_equal(read_pickle(python2_pickle(ARRAY, [1], "labels"), "f")[b"data"], ARRAY)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_damaged_files_are_user_errors(data: st.DataObject) -> None:
    content = bytearray(python2_pickle(ARRAY, [3, 1, 2], "labels"))
    if data.draw(st.booleans()):
        content = content[: data.draw(st.integers(0, len(content) - 1))]
    else:
        content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    try:
        read_pickle(bytes(content), "f")  # a flipped bit may leave a readable file: the checksum is for that
    except UserError as error:
        assert str(error).startswith("f ") and "\n" not in str(error)
