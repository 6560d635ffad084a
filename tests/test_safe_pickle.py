"""Pickles that stand for more than they hold, or for more than data, and those of hosts, which are read bit by bit."""

import io
import os
import pickle
import zipfile

import numpy as np
import pytest
import torch

from semples_plugin.utils.safe_pickle import read_pickle, read_pickled, read_saved

TENSORS = {
    "whole": torch.arange(6.0).reshape(2, 3),
    "turned": torch.arange(6).reshape(2, 3).T,
    "part": torch.arange(10, dtype=torch.uint8)[2:8:2],
    "half": torch.randn(2, 3).half(),
    "brain": torch.randn(2, 3).bfloat16(),
    "truth": torch.arange(3) > 1,
    "none": torch.zeros(0, 5),
    "number": torch.tensor(3),
    "learned": torch.nn.Parameter(torch.randn(3, 4, 5)),
}
ARRAYS = {
    "turned": np.arange(6).reshape(2, 3).T,
    "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "big-endian": np.arange(6).astype(">f4"),
    "none": np.zeros((0, 4, 5)),
    "number": np.float32(0.1),
    7: [True, None, 0.5, "word"],
}


def as_npy(path, stream: bytes) -> None:
    """The header of a dictionary's `.npy`, and any pickle."""
    np.save(path, np.array({}, dtype=object))
    whole = path.read_bytes()
    path.write_bytes(whole[: whole.index(b"\n") + 1] + stream)


def same(found, wanted) -> bool:
    if isinstance(wanted, torch.Tensor):
        wanted = wanted.detach().float().numpy() if wanted.dtype == torch.bfloat16 else wanted.detach().numpy()
    return np.array_equal(found, wanted) and np.shape(found) == np.shape(wanted)


def test_tensors_and_arrays_come_back_bit_by_bit(tmp_path):
    for content in (ARRAYS, {key: value for key, value in TENSORS.items() if key != "learned"}):
        for protocol in (3, 4):
            as_npy(tmp_path / "x.npy", pickle.dumps(np.array(content, dtype=object), protocol=protocol))
            found = read_pickled(tmp_path / "x.npy")
            assert found.keys() == content.keys() and all(same(found[key], content[key]) for key in content)
    torch.save(TENSORS, tmp_path / "x.pth")
    found = read_saved(tmp_path / "x.pth")
    assert found.keys() == TENSORS.keys() and all(same(found[key], TENSORS[key]) for key in TENSORS)
    torch.save(torch.nn.Linear(3, 4).state_dict(), tmp_path / "x.pth")
    assert {key: value.shape for key, value in read_saved(tmp_path / "x.pth").items()} == {
        "weight": (4, 3),
        "bias": (4,),
    }


def test_torch_is_not_needed(tmp_path):
    np.save(tmp_path / "x.npy", {"keys": torch.tensor([1])})
    code = (
        "import sys; from semples_plugin.utils.safe_pickle import read_pickled; read_pickled(sys.argv[1]);"
        "assert 'torch' not in sys.modules"
    )
    assert os.spawnl(os.P_WAIT, __import__("sys").executable, "python", "-c", code, str(tmp_path / "x.npy")) == 0


def typed_storage(tensor: torch.Tensor):
    """As `tensor.storage()`, without its warning."""
    return torch.storage.TypedStorage(wrap_storage=tensor.untyped_storage(), dtype=tensor.dtype, _internal=True)


WORD = pickle.BINUNICODE + (10**6).to_bytes(4, "little") + b"0" * 10**6
STORAGE = io.BytesIO()
torch.save(typed_storage(torch.zeros(10**6, dtype=torch.uint8)), STORAGE, _use_new_zipfile_serialization=False)


def times(count: int, stream: bytes) -> bytes:
    """A dictionary of as many keys to what a pickle's stream leaves."""
    items = b"".join(pickle.BININT2 + key.to_bytes(2, "little") + stream for key in range(count))
    return pickle.EMPTY_DICT + pickle.MARK + items + pickle.SETITEMS


def numbers(count: int) -> bytes:
    return pickle.dumps(np.zeros(count, np.uint8), protocol=3)[2:-1]


BOMBS = {
    "lists": b"(" + b"N" * 10**4 + b"lq\x010" + times(2000, b"h\x01"),
    "maps": numbers(10**6) + b"r\xff\xff\x00\x000" + times(2000, b"j\xff\xff\x00\x00"),
    "maps in a list": numbers(10**6) + b"r\xff\xff\x00\x000}K\x00(" + b"j\xff\xff\x00\x00" * 2000 + b"ls",
    "words": WORD + b"q\x010c_codecs\nencode\nq\x020cnumpy.core.numeric\n_frombuffer\nq\x030"
    b"cnumpy\ndtype\nX\x02\x00\x00\x00u1\x85Rq\x040"
    + times(2000, b"h\x03(h\x02h\x01N\x86Rh\x04J@B\x0f\x00\x85X\x01\x00\x00\x00CtR"),
    "storages": pickle.BINBYTES + STORAGE.tell().to_bytes(4, "little") + STORAGE.getvalue()
    + b"q\x010ctorch._utils\n_rebuild_tensor_v2\nq\x020ctorch.storage\n_load_from_bytes\nq\x030"
    + times(2000, b"h\x02(h\x03h\x01\x85RK\x00K\x01\x85K\x01\x85tR"),
}  # fmt: skip


@pytest.mark.parametrize("bomb", BOMBS)
def test_what_would_fill_the_memory_is_refused_before_it_does(tmp_path, bomb):
    as_npy(tmp_path / "x.npy", b"\x80\x03" + BOMBS[bomb] + b".")
    with pytest.raises(ValueError, match=r"x\.npy is damaged, .*: it names the same things again and again"):
        read_pickled(tmp_path / "x.npy")


def test_maps_that_are_named_twice_are_none_of_that(tmp_path):
    maps = np.random.default_rng(0).random((2, 50, 50))
    np.save(tmp_path / "x.npy", {"cam": maps, "high_res": maps})
    assert np.array_equal(read_pickled(tmp_path / "x.npy")["high_res"], maps)


def test_tensors_reach_no_further_than_their_storage(tmp_path):
    for size, stride, offset in (((1000,), (2,), 0), ((1000,), (1,), 1), ((999, 999), (0, 0), 0), ((2,), (-1,), 0)):

        class Tensor:
            def __reduce__(self, arguments=(offset, size, stride, False, {})):
                return torch._utils._rebuild_tensor_v2, (typed_storage(torch.arange(1000)), *arguments)

        np.save(tmp_path / "x.npy", np.array({0: Tensor()}, dtype=object))
        with pytest.raises(ValueError, match=r"x\.npy is damaged"):
            read_pickled(tmp_path / "x.npy")


def test_a_types_name_is_no_address(tmp_path):
    whole = pickle.dumps({"a": np.arange(4)}, protocol=3)
    as_npy(tmp_path / "x.npy", whole.replace(b"X\x02\x00\x00\x00i8", b"X\x02\x00\x00\x00O8"))
    with pytest.raises(ValueError, match="expected numbers, got the type 'O8'"):
        read_pickled(tmp_path / "x.npy")


def test_names_in_errors_are_cut(tmp_path):
    as_npy(tmp_path / "x.npy", b"c" + b"a" * 10**5 + b"\n" + b"b" * 10**5 + b"\n.")
    with pytest.raises(ValueError, match="it asks for 'aaa") as caught:
        read_pickled(tmp_path / "x.npy")
    assert len(str(caught.value)) < 500


def test_what_torch_never_saves_is_refused(tmp_path):
    torch.save({"prompts": torch.zeros(1000)}, tmp_path / "a.pth")
    small = zipfile.ZipFile(tmp_path / "b.pth", "w", zipfile.ZIP_DEFLATED)
    with zipfile.ZipFile(tmp_path / "a.pth") as whole, small:
        for name in whole.namelist():
            small.writestr(name, whole.read(name))
    with pytest.raises(ValueError, match=r"b\.pth is damaged, .*: it is compressed, which torch.save never does"):
        read_saved(tmp_path / "b.pth")
    for content in (b"", b"PK", (tmp_path / "a.pth").read_bytes()[:-30]):
        (tmp_path / "c.pth").write_bytes(content)
        with pytest.raises(ValueError, match=r"c\.pth is damaged"):
            read_saved(tmp_path / "c.pth")


@pytest.mark.parametrize("protocol", (2, 3, 4))
def test_a_plain_pickle_of_labels_is_read_as_data(tmp_path, protocol):
    labels = {"2007_000032": np.array([1, 0, 1], np.uint8), "2007_000039": np.array([1, 1, 0], np.uint8)}
    path = tmp_path / "seg_cls_labels.pkl"
    path.write_bytes(pickle.dumps(labels, protocol))  # as src/tasks/gen_cls_lb.py of FMA-WSSS does
    found = read_pickle(path)
    assert found.keys() == labels.keys()
    assert all((found[name] == row).all() and found[name].dtype == np.uint8 for name, row in labels.items())
    path.write_bytes(pickle.dumps(os.system, protocol))
    with pytest.raises(ValueError, match=r"seg_cls_labels.pkl is damaged, or holds more than data: .*system"):
        read_pickle(path)
    path.write_bytes(pickle.dumps(labels, protocol)[:-20])
    with pytest.raises(ValueError, match="is damaged"):
        read_pickle(path)
