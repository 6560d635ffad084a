"""Loads CLIP weights through open_clip, with QuickGELU and image statistics where a weights file needs them.

open_clip knows both for a tag; for a file it would silently take the defaults of the architecture.
"""

from __future__ import annotations

import difflib
import json
import logging
import os
import warnings
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from torch import nn

from semples_plugin.clip.tiny import TINY_CLIP, TinyTokenizer, load_tiny_clip
from semples_plugin.utils.text import reason

PRECISIONS = ("fp32", "bf16", "fp16")
LOCAL_DIR = "local-dir:"
DEMO = "demo"
_OPENAI_EXTRAS = ("input_resolution", "context_length", "vocab_size")


def load_open_clip(
    name: str, pretrained: str | Path | None, *, precision: str, cache_dir: str | None
) -> tuple[nn.Module, Any, str]:
    """The model with its weights, its tokenizer, and the name to call it by; see `FrozenClip.load`."""
    if precision not in PRECISIONS:
        raise ValueError(f"precision: expected one of {', '.join(PRECISIONS)}, got {precision!r}")
    check_source(name, pretrained)
    if name == DEMO:
        return load_tiny_clip(precision), TinyTokenizer(), TINY_CLIP
    name = name if name.startswith(LOCAL_DIR) else name.replace("/", "-")
    tokenizer = _tokenizer(name)  # before the weights, whose download may take long
    if name.startswith(LOCAL_DIR):
        return _load_folder(name, precision), tokenizer, name
    pretrained = str(pretrained)
    if Path(pretrained).is_file():
        model = _load_file(name, Path(pretrained), precision)
    else:
        model = _load_tag(name, pretrained, precision, cache_dir)
    return model, tokenizer, f"{name}/{pretrained}"


def check_source(name: str, pretrained: str | Path | None) -> None:
    """Raises the error of `FrozenClip.load` for a name and weights that can't be loaded; loads nothing."""
    if not isinstance(name, str):
        raise TypeError(f'name: expected an open_clip name as "ViT-B-32-quickgelu", or "{LOCAL_DIR}PATH", got {name!r}')
    if not isinstance(pretrained, (str, os.PathLike, type(None))):
        raise TypeError(f'pretrained: expected an open_clip tag as "openai", or a file\'s path, got {pretrained!r:.80}')
    if name == DEMO:
        return
    if name.startswith(LOCAL_DIR):
        return _check_config(name, _read_folder(name))
    if Path(name).is_dir():
        raise ValueError(f"{name} is a folder; a model in open_clip's layout is called {LOCAL_DIR}{name}")
    name = name.replace("/", "-")
    _check_architecture(name)
    if pretrained is None:
        raise ValueError(f"pretrained: {name} needs the tag of its weights ({_shorten(_tags(name))}) or a file's path")
    pretrained = str(pretrained)
    if Path(pretrained).is_file() or pretrained in _tags(name):
        return
    if "/" in pretrained or Path(pretrained).suffix:
        raise FileNotFoundError(f"pretrained: there is no file {pretrained}")
    raise ValueError(
        f"pretrained: {name} has no weights {pretrained!r}; did you mean {_nearest(pretrained, _tags(name))}? "
        "A file's path is taken as well"
    )


def find_cached(name: str, tag: str, cache_dir: str | None = None) -> Path | None:
    """The cached weights file of an open_clip name and tag, or None; doesn't use the network."""
    from huggingface_hub import try_to_load_from_cache

    repository, file = _published(name, tag)
    if not repository:
        path = Path(cache_dir or Path.home() / ".cache" / "clip") / Path(file).name
        return path if path.is_file() else None
    for candidate in (file, str(Path(file).with_suffix(".safetensors")), "open_clip_pytorch_model.bin"):
        cached = try_to_load_from_cache(repository, candidate, cache_dir=cache_dir)
        if isinstance(cached, str):
            return Path(cached)
    return None


def check_download(name: str, tag: str) -> None:
    """Raises a `FileNotFoundError` where the weights of a tag can't be downloaded now; downloads nothing."""
    repository, file = _published(name, tag)
    try:
        if repository:
            _reach_hub(repository, file)
    except OSError as error:
        raise FileNotFoundError(
            f"the weights {tag!r} of {name} are not cached and can't be downloaded now ({error}); "
            f"{where_to_get(name, tag)}"
        ) from error


def where_to_get(name: str, tag: str) -> str:
    """A sentence on which file to fetch by hand and how to pass it on."""
    repository, file = _published(name, tag)
    source = f"{file} of {repository} on the Hugging Face hub" if repository else file
    return f"fetch {source} with a browser and pass its path: FrozenClip.load({name!r}, pretrained='/path/to/the/file')"


def _published(name: str, tag: str) -> tuple[str, str]:
    """Repository and file on the Hugging Face hub, or "" and the URL of weights that are elsewhere."""
    import open_clip

    config = open_clip.get_pretrained_cfg(name.replace("/", "-"), tag)
    repository, _, file = config.get("hf_hub", "").rpartition("/")
    return (repository, file or "open_clip_model.safetensors") if repository else ("", config.get("url", ""))


def _reach_hub(repository: str, file: str) -> None:
    """Raises a `ConnectionError` where the Hugging Face hub doesn't answer one request.

    `hf_hub_download` would try again for nearly a minute, with a line of output each time.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.utils import HfHubHTTPError

    try:
        get_hf_file_metadata(hf_hub_url(repository, file))
    except HfHubHTTPError:  # the hub answered: the weights may be in another file, or need a token
        pass
    except Exception as error:  # the HTTP client's own, which differs between versions
        raise ConnectionError(reason(error)) from error


def _load_tag(name: str, tag: str, precision: str, cache_dir: str | None) -> nn.Module:
    import open_clip

    cached = find_cached(name, tag, cache_dir)
    if cached is None:
        check_download(name, tag)
    quick_gelu = open_clip.get_pretrained_cfg(name, tag).get("quick_gelu", False)
    try:
        return open_clip.create_model(name, tag, precision=precision, cache_dir=cache_dir, force_quick_gelu=quick_gelu)
    except Exception as error:
        cached = cached or find_cached(name, tag, cache_dir)
        if cached is not None:
            # The cache may hold a link: deleting the file that it points to makes the hub download it again.
            mismatch = _describe_mismatch(cached.resolve(), f"the weights of {name}", error)
            raise ValueError(f"{mismatch}; delete it") from error
        raise FileNotFoundError(
            f"the weights {tag!r} of {name} could not be downloaded ({reason(error)}); {where_to_get(name, tag)}"
        ) from error


def _load_folder(name: str, precision: str) -> nn.Module:
    import open_clip

    try:
        return open_clip.create_model(name, precision=precision)
    except Exception as error:
        raise ValueError(_describe_mismatch(name, "the model that its config describes", error)) from error


def _load_file(name: str, path: Path, precision: str) -> nn.Module:
    import open_clip
    from open_clip.factory import load_checkpoint

    state = _openai_archive(path)
    config = _config_of_file(name, path)
    logging.root.addFilter(_is_not_about_random_weights)
    try:
        model = open_clip.create_model(
            name,
            precision=precision,
            force_quick_gelu=state is not None or config["quick_gelu"],
            force_preprocess_cfg={"mean": config["mean"], "std": config["std"]},
            pretrained_text=False,
        )
    finally:
        logging.root.removeFilter(_is_not_about_random_weights)
    try:
        if state is not None:
            model.load_state_dict(state)
        else:
            load_checkpoint(model, str(path))
    except Exception as error:
        raise ValueError(_describe_mismatch(path, f"the weights of {name}", error)) from error
    return model


def _is_not_about_random_weights(record: logging.LogRecord) -> bool:
    return "initialized randomly" not in record.getMessage()  # the weights are read in the next step


def _describe_mismatch(source: Path | str, expected: str, error: Exception) -> str:
    """That a file or folder isn't what was expected."""
    return f"{source} does not hold {expected}, or is damaged: {reason(error)}"


def _read_folder(name: str) -> dict[str, Any]:
    """`model_cfg` of a folder in open_clip's layout that has a weights file, too."""
    folder = Path(name.removeprefix(LOCAL_DIR))
    path = folder / "open_clip_config.json"
    if not path.is_file():
        raise FileNotFoundError(f"{name}: expected a folder with open_clip_config.json and the weights beside it")
    if not any(file.suffix in (".safetensors", ".bin", ".pth") for file in folder.iterdir()):
        raise FileNotFoundError(f"{name}: there is no weights file (*.safetensors, *.bin, *.pth) beside its config")
    try:
        config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))["model_cfg"]
        config["text_cfg"].get("")
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is no config of open_clip's, with model_cfg and its text_cfg: {error}") from error
    return config


def _tokenizer(name: str) -> Any:
    """The tokenizer of an open_clip name or folder, in one request to the hub where it isn't cached."""
    import open_clip
    from huggingface_hub import try_to_load_from_cache

    local = name.startswith(LOCAL_DIR)
    repository = None if local else open_clip.get_model_config(name)["text_cfg"].get("hf_tokenizer_name")
    try:
        if repository and not isinstance(try_to_load_from_cache(repository, "tokenizer_config.json"), str):
            _reach_hub(repository, "tokenizer_config.json")
        return open_clip.get_tokenizer(name)
    except Exception as error:
        raise FileNotFoundError(
            f"the tokenizer of {name} could not be loaded ({reason(error)}): it needs `pip install transformers` and "
            "its files in the Hugging Face cache, or a caller who builds it: FrozenClip(model, tokenizer)"
        ) from error


def _openai_archive(path: Path) -> dict[str, torch.Tensor] | None:
    """The weights of a TorchScript archive, which is how OpenAI publishes its CLIPs; None for any other file."""
    if not zipfile.is_zipfile(path):
        return None
    with zipfile.ZipFile(path) as archive:
        if not any(member.endswith("constants.pkl") for member in archive.namelist()):
            return None
    try:
        state = torch.jit.load(path, map_location="cpu").state_dict()
    except Exception as error:
        raise ValueError(_describe_mismatch(path, "OpenAI's weights of a CLIP", error)) from error
    return {key: value.float() for key, value in state.items() if key not in _OPENAI_EXTRAS}


def _config_of_file(name: str, path: Path) -> dict[str, Any]:
    """QuickGELU and image statistics for a weights file: those of the tag that its path names, else of the model.

    Returns:
        A dictionary with "quick_gelu", "mean" and "std".
    """
    import open_clip

    base = name.removesuffix("-quickgelu")
    configs = {
        tag: open_clip.get_pretrained_cfg(base, tag) or open_clip.get_pretrained_cfg(name, tag)
        for tag in _tags(base) + _tags(name)
    }
    for config in configs.values():
        repository = config.get("hf_hub", "").rstrip("/").rpartition("/")[2]
        if repository and repository in str(path):
            return {"quick_gelu": config.get("quick_gelu", False), "mean": config["mean"], "std": config["std"]}
    quick_gelu = bool(open_clip.get_model_config(name).get("quick_gelu", False))
    if not quick_gelu:
        _warn_of_quick_gelu(name, path, configs)
    mean, std = _statistics_of_file(path, configs)
    return {"quick_gelu": quick_gelu, "mean": mean, "std": std}


def _warn_of_quick_gelu(name: str, path: Path, configs: dict[str, dict[str, Any]]) -> None:
    """Warns where some of a model's published weights want QuickGELU, and the name is that with GELU."""
    tags = [tag for tag, config in configs.items() if config.get("quick_gelu", False)]
    if tags:
        warnings.warn(
            f"{path.name} does not say whether it was trained with QuickGELU; {name} computes with GELU. Weights of "
            f"{_shorten(tags)} need the name {name.removesuffix('-quickgelu')}-quickgelu: features are off otherwise",
            UserWarning,
            stacklevel=3,
        )


def _statistics_of_file(path: Path, configs: dict[str, dict[str, Any]]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of a model's published weights; warns where these differ."""
    statistics = {(tuple(config["mean"]), tuple(config["std"])) for config in configs.values()}
    if not statistics:  # an architecture without published weights
        return OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
    mean, std = min(statistics)
    if len(statistics) > 1:
        warnings.warn(
            f"{path.name} does not say which image statistics it was trained with; taking mean {mean}, std {std}",
            UserWarning,
            stacklevel=3,
        )
    return mean, std


def _check_architecture(name: str) -> None:
    import open_clip

    config = open_clip.get_model_config(name)
    if config is None:
        raise ValueError(f"open_clip has no model {name!r}; did you mean {_nearest(name, open_clip.list_models())}?")
    _check_config(name, config)


def _check_config(name: str, config: dict[str, Any]) -> None:
    if "hf_model_name" in config["text_cfg"]:
        raise ValueError(f"{name} has a Hugging Face text tower, which takes no prompt vectors; choose a native CLIP")
    if "multimodal_cfg" in config:
        raise ValueError(f"{name} is a CoCa, which appends a token of its own to every text; choose a native CLIP")


def _tags(name: str) -> list[str]:
    import open_clip

    return list(open_clip.list_pretrained_tags_by_model(name))


def _nearest(word: str, known: Iterable[str]) -> str:
    known = list(known)
    return _shorten(difflib.get_close_matches(word, known, n=4, cutoff=0.3) or known)


def _shorten(names: list[str]) -> str:
    """The first six names."""
    shown = ", ".join(names[:6])
    return f"{shown}, ..." if len(names) > 6 else shown
