"""WeakTr's checkpoints: read as data, and refused where reduction, pooling or classes are another network's."""

import argparse
import pickle
import re
import types

import numpy as np
import pytest
import torch

from semples_plugin.adapters import weaktr_checkpoints
from semples_plugin.adapters.weaktr_checkpoints import check_layout, check_options, trained_pooling

PUBLISHED, DEFAULT = {"reduction": 8.0, "pool_type": "max"}, {"reduction": 4.0, "pool_type": "avg"}


def options(**values) -> argparse.Namespace:
    """WeakTr's, which has reduction as a float."""
    files = {"semples_start": None, "resume": "", "finetune": "https://dl.fbaipublicfiles.com/deit/deit_small.pth"}
    return argparse.Namespace(**{**files, "data_set": "VOC12", **PUBLISHED, **values})


def write(path, hidden: int, **more) -> str:
    """A checkpoint with the shapes that WeakTr's have: 72 attention maps, `hidden` = 72 / reduction."""
    weights = {
        "adaptive_attention_fusion.attn_head_ffn.0.weight": torch.zeros(hidden, 72),
        "adaptive_attention_fusion.attn_head_ffn.2.weight": torch.zeros(72, hidden),
        "head.weight": torch.zeros(20, 384, 3, 3),
    }
    torch.save({"model": weights, "epoch": 59, "miou": np.float64(69.4), **more}, path)
    return str(path)


@pytest.mark.parametrize("option", ["semples_start", "resume", "finetune"])
def test_another_reduction_is_refused_with_both_layouts_named(tmp_path, option):
    published, default = write(tmp_path / "8.pth", 9), write(tmp_path / "4.pth", 18)
    check_options(options(**{option: published}))
    check_options(options(**{option: default}, **DEFAULT))
    words = (
        "8.pth was trained with --reduction 8 --pool-type (not said), and this run has --reduction 4 --pool-type avg"
    )
    with pytest.raises(ValueError, match=re.escape(f"{words}: give --reduction 8, and max with 8")):
        check_options(options(**{option: published}, **DEFAULT))
    with pytest.raises(ValueError, match=r"--reduction 4 .*, and this run has --reduction 8 --pool-type max: give"):
        check_options(options(**{option: default}))


def test_another_pooling_is_refused_where_it_is_known(tmp_path):
    """Its weights have the same shapes: nothing but the options of its training tells."""
    (tmp_path / "run").mkdir()
    alone = write(tmp_path / "alone.pth", 9)
    check_options(options(resume=alone, pool_type="avg"))  # nobody can know
    with_args = write(tmp_path / "args.pth", 9, args=argparse.Namespace(**PUBLISHED))
    beside = write(tmp_path / "run/checkpoint.pth", 9)
    (tmp_path / "run/variant.yml").write_text("patch_size: 16\npin_mem: true\npool_type: max\nrank: 0\n")
    for path in (with_args, beside):
        check_options(options(resume=path))
        with pytest.raises(ValueError, match="with --reduction 8 --pool-type max, and this run has --reduction 8 "
                           "--pool-type avg: give --reduction 8 --pool-type max"):  # fmt: skip
            check_options(options(resume=path, pool_type="avg"))
    assert trained_pooling(alone, {}) is None and trained_pooling(alone, {"args": {"pool_type": "avg"}}) == "avg"


def test_other_classes_are_refused(tmp_path):
    path = write(tmp_path / "voc.pth", 9)
    checkpoint = weaktr_checkpoints.read_checkpoint(path)
    check_layout(path, checkpoint, options(nb_classes=20))
    with pytest.raises(ValueError, match=r"voc\.pth holds 20 classes, and --data-set COCO has 90"):
        check_layout(path, checkpoint, options(nb_classes=90, data_set="COCO"))


def test_what_is_no_checkpoint_of_weaktrs(tmp_path):
    torch.save({"model": {"head.weight": torch.zeros(1000, 384)}}, tmp_path / "deit.pth")
    check_options(options(finetune=str(tmp_path / "deit.pth")))  # it has no fusion: WeakTr starts one
    with pytest.raises(FileNotFoundError, match="there is no checkpoint"):
        check_options(options(resume=str(tmp_path / "nowhere.pth")))
    torch.save(torch.zeros(3), tmp_path / "tensor.pth")
    with pytest.raises(ValueError, match=r"tensor\.pth: expected weights by name, .*, got Tensor"):
        check_options(options(semples_start=str(tmp_path / "tensor.pth")))


@pytest.mark.parametrize("shape", [(0, 72), (9, 0), (9,), (9, 72, 1)])
def test_a_fusion_of_no_width_is_refused(tmp_path, shape):
    name = "adaptive_attention_fusion.attn_head_ffn.0.weight"
    torch.save({"model": {name: torch.zeros(shape)}}, tmp_path / "odd.pth")
    with pytest.raises(ValueError, match=rf"odd\.pth: expected a fusion {name} \[hidden, channels\], got "):
        check_options(options(resume=str(tmp_path / "odd.pth")))


@pytest.mark.parametrize("nested", ["model", "state_dict", None])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_weights_are_found_wherever_a_training_keeps_them(tmp_path, nested, prefix):
    plain = torch.load(write(tmp_path / "8.pth", 9), weights_only=False)["model"]
    weights = {f"{prefix}{name}": value for name, value in plain.items()}
    torch.save({nested: weights} if nested else weights, tmp_path / "nested.pth")
    check_options(options(resume=str(tmp_path / "nested.pth")))
    with pytest.raises(ValueError, match="was trained with --reduction 8"):
        check_options(options(resume=str(tmp_path / "nested.pth"), **DEFAULT))


def test_a_checkpoint_of_numpy_1_is_read_and_code_is_not(tmp_path):
    state = {"model": {"head.weight": torch.ones(2)}, "miou": np.float64(70.1)}
    torch.save(state, tmp_path / "two.pth", pickle_protocol=2)
    data = (tmp_path / "two.pth").read_bytes()
    core = b"numpy._core.multiarray" if b"numpy._core.multiarray" in data else b"numpy.core.multiarray"
    for other in (b"numpy._core.multiarray", b"numpy.core.multiarray"):

        class Old:
            """Pickles as the other numpy writes its numbers."""

            def __reduce__(self):
                return np.float64(70.1).__reduce__()

        path = tmp_path / "one.pth"
        torch.save(
            {**state, "miou": Old()}, path, pickle_module=_renaming(core.decode(), other.decode()), pickle_protocol=2
        )
        assert weaktr_checkpoints.read_checkpoint(str(path))["miou"] == 70.1
    torch.save({"model": {}, "hook": print}, tmp_path / "code.pth")
    with pytest.raises(ValueError, match=r"code\.pth holds more than data, namely \S*print, and isn't loaded"):
        weaktr_checkpoints.read_checkpoint(str(tmp_path / "code.pth"))


def _renaming(old: str, new: str):
    """A pickle module that writes one module's name for another's."""

    class Pickler(pickle._Pickler):
        def save_global(self, obj, name=None):
            if getattr(obj, "__module__", None) == old:
                self.write(f"c{new}\n{obj.__name__}\n".encode())
                self.memoize(obj)
            else:
                super().save_global(obj, name)

        dispatch = {**pickle._Pickler.dispatch}  # noqa: RUF012, as the class has it
        dispatch[types.BuiltinFunctionType] = save_global

    module = types.ModuleType("renaming")
    module.__dict__.update({**vars(pickle), "Pickler": Pickler})
    return module
