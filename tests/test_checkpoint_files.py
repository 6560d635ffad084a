"""What is no checkpoint, or another network's, is told in a sentence, wherever one is read."""

import argparse

import pytest
import torch
from torch import nn

from semples_plugin.adapters import clims, weaktr
from semples_plugin.utils.checkpoint_files import check_saved, load_weights, read_checkpoint, weights_of


@pytest.fixture
def broken(tmp_path):
    """Files by what is wrong with them, and what is said."""
    torch.save({"weight": torch.zeros(100, 100)}, tmp_path / "whole.pth")
    torch.save({"weight": torch.zeros(10)}, tmp_path / "older.pth", _use_new_zipfile_serialization=False)
    whole, older = ((tmp_path / f"{name}.pth").read_bytes() for name in ("whole", "older"))
    contents = {
        "page": (
            b"<!DOCTYPE html><html>",
            r"is no checkpoint of torch\.save, it begins with b'<!DOC.*page of a download",
        ),
        "empty": (b"", "is empty, expected a checkpoint"),
        "cut": (whole[:-500], "is cut short, its end is missing"),
        "older cut": (older[:-20], "is damaged: get it again"),
        "changed": (whole.replace(b"ctorch", b"cxxxch", 1), r"holds more than data, namely xxxch\S+, and isn't"),
    }
    for name, (content, _) in contents.items():
        (tmp_path / f"{name}.pth").write_bytes(content)
    return {tmp_path / f"{name}.pth": message for name, (_, message) in contents.items()}


def test_what_is_none_is_told(broken, tmp_path):
    for path, message in broken.items():
        with pytest.raises(ValueError, match=f"{path} (?:{message})") as caught:
            read_checkpoint(path)
        assert "\n" not in str(caught.value)
    with pytest.raises(FileNotFoundError, match=r"there is no checkpoint nowhere\.pth"):
        read_checkpoint("nowhere.pth")
    for name in ("whole", "older"):
        check_saved(tmp_path / f"{name}.pth")
        assert list(read_checkpoint(tmp_path / f"{name}.pth")) == ["weight"]


class Net(nn.Module):
    """What CLIMS's and WeakTr's trainings look at before they load anything."""

    def __init__(self):
        super().__init__()
        self.head, self.n_classes = nn.Linear(2, 3), 20


@pytest.mark.parametrize("host", [clims, weaktr])
def test_hosts_tell_it_as_well(broken, host, monkeypatch):
    monkeypatch.setattr(host, "_check_stage" if host is clims else "_check_options", lambda args: None)
    options = {"semples": "prompts", "hyper": "1,1", "semples_classes": None, "semples_scale": None}
    for path, message in broken.items():
        with pytest.raises(ValueError, match=message):
            host.Training(argparse.Namespace(**options, semples_start=str(path)), Net())
    torch.save({"module.head.weight": torch.zeros(3, 2), "module.other": torch.zeros(1)}, path)
    with pytest.raises(
        ValueError, match=r"of another network: it lacks 1, such as head\.bias; it alone has 1, .*other"
    ):
        host.Training(argparse.Namespace(**options, semples_start=str(path)), Net())


@pytest.mark.parametrize(
    ("content", "got"),
    [([1], "got list"), ({}, "got a dictionary of nothing"), ({"epoch": 3, "w": torch.ones(1)}, "of Tensor, int"),
     ({"model": {"a": "b"}}, "got a dictionary of str")],
)  # fmt: skip
def test_what_holds_no_weights_is_told(content, got):
    with pytest.raises(ValueError, match=f"a.pth: expected weights by name, .*{got}"):
        weights_of("a.pth", content)


def test_weights_of_another_network_change_nothing():
    network = nn.Linear(2, 3)
    before = network.weight.clone()
    with pytest.raises(ValueError, match=r"a\.pth holds the weights of another network: bias is \[4\] and not \[3\]"):
        load_weights(network, "a.pth", {"weight": torch.ones(3, 2), "bias": torch.ones(4)})
    assert torch.equal(network.weight, before)
    load_weights(
        network, "a.pth", weights_of("a.pth", {"state_dict": {"weight": torch.ones(3, 2), "bias": before[:, 0]}})
    )
    assert torch.equal(network.weight, torch.ones(3, 2))
