"""Finding and loading CLIP weights through open_clip, with the two things that it gets silently wrong for files.

A tag knows whether its weights want QuickGELU and which image statistics they were trained with; a path does not.
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
    tokenizer = _tokenizer(name)  # before the weights, which may be long in coming
    if name.startswith(LOCAL_DIR):
        return _load_folder(name, precision), tokenizer, name
    pretrained = str(pretrained)
    if Path(pretrained).is_file():
        model = _load_file(name, Path(pretrained), precision)
    else:
        model = _load_tag(name, pretrained, precision, cache_dir)
    return model, tokenizer, f"{name}/{pretrained}"


def check_source(name: str, pretrained: str | Path | None) -> None:
    """Raises an error of `FrozenClip.load`'s where a name and weights can't be loaded; loads nothing."""
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
        raise ValueError(f"pretrained: {name} needs the tag of its weights ({_some(_tags(name))}) or a file's path")
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
    """The cached weights file of an open_clip name and tag, or None; never touches the network."""
    from huggingface_hub import try_to_load_from_cache

    repository, file = _published(name, tag)
    if not repository:
        path = Path(cache_dir or Path.home() / ".cache" / "clip") / Path(file).name
        return path if path.is_file() else None
    for candidate in (file, str(Path(file).with_suffix(".safetensors")), "open_clip_pytorch_model.bin"):
        found = try_to_load_from_cache(repository, candidate, cache_dir=cache_dir)
        if isinstance(found, str):
            return Path(found)
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
    """Raises a `ConnectionError` where the Hugging Face hub doesn't answer: it is asked once.

    `hf_hub_download` would ask for nearly a minute and print a line each time.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.utils import HfHubHTTPError

    try:
        get_hf_file_metadata(hf_hub_url(repository, file))
    except HfHubHTTPError:  # an answer, too: there may be another file, or a token is needed
        pass
    except Exception as error:  # of the HTTP client's, which differs between versions
        raise ConnectionError(reason(error)) from error


def _load_tag(name: str, tag: str, precision: str, cache_dir: str | None) -> nn.Module:
    import open_clip

    cached = find_cached(name, tag, cache_dir)
    if cached is None:
        check_download(name, tag)
    wants_quick_gelu = open_clip.get_pretrained_cfg(name, tag).get("quick_gelu", False)
    try:
        return open_clip.create_model(
            name, tag, precision=precision, cache_dir=cache_dir, force_quick_gelu=wants_quick_gelu
        )
    except Exception as error:
        cached = cached or find_cached(name, tag, cache_dir)
        if cached is not None:
            # The cached name may be a link; only without the file behind it is it downloaded again.
            raise ValueError(_misfit(cached.resolve(), f"the weights of {name}", error) + "; delete it") from error
        raise FileNotFoundError(
            f"the weights {tag!r} of {name} could not be downloaded ({reason(error)}); {where_to_get(name, tag)}"
        ) from error


def _load_folder(name: str, precision: str) -> nn.Module:
    import open_clip

    try:
        return open_clip.create_model(name, precision=precision)
    except Exception as error:
        raise ValueError(_misfit(name, "the model that its config describes", error)) from error


def _load_file(name: str, path: Path, precision: str) -> nn.Module:
    import open_clip
    from open_clip.factory import load_checkpoint

    state = _openai_archive(path)
    config = _config_of_file(name, path)
    logging.root.addFilter(_tells_of_weights)
    try:
        model = open_clip.create_model(
            name,
            precision=precision,
            force_quick_gelu=state is not None or config["quick_gelu"],
            force_preprocess_cfg={"mean": config["mean"], "std": config["std"]},
            pretrained_text=False,
        )
    finally:
        logging.root.removeFilter(_tells_of_weights)
    try:
        if state is not None:
            model.load_state_dict(state)
        else:
            load_checkpoint(model, str(path))
    except Exception as error:
        raise ValueError(_misfit(path, f"the weights of {name}", error)) from error
    return model


def _tells_of_weights(record: logging.LogRecord) -> bool:
    return "initialized randomly" not in record.getMessage()  # its weights come in the next step


def _misfit(source: Path | str, expected: str, error: Exception) -> str:
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
    state = torch.jit.load(path, map_location="cpu").state_dict()
    return {key: value.float() for key, value in state.items() if key not in _OPENAI_EXTRAS}


def _config_of_file(name: str, path: Path) -> dict[str, Any]:
    """QuickGELU and image statistics for a weights file: those of the tag that its path names, else of the model."""
    import open_clip

    base = name.removesuffix("-quickgelu")
    configs = {
        tag: open_clip.get_pretrained_cfg(base, tag) or open_clip.get_pretrained_cfg(name, tag)
        for tag in _tags(base) + _tags(name)
    }
    for config in configs.values():
        repository = config.get("hf_hub", "").rstrip("/").rpartition("/")[2]
        if repository and repository in str(path):
            return {
                "quick_gelu": config.get("quick_gelu", False),
                "mean": config["mean"],
                "std": config["std"],
            }
    statistics = {(tuple(config["mean"]), tuple(config["std"])) for config in configs.values()}
    quick_gelu = bool(open_clip.get_model_config(name).get("quick_gelu", False))
    if not quick_gelu and any(config.get("quick_gelu", False) for config in configs.values()):
        wanting = [tag for tag, config in configs.items() if config.get("quick_gelu", False)]
        warnings.warn(
            f"{path.name} does not say whether it was trained with QuickGELU; {name} computes with GELU. Weights of "
            f"{_some(wanting)} need the name {base}-quickgelu: features are off otherwise",
            UserWarning,
            stacklevel=2,
        )
    if not statistics:  # an architecture without published weights
        return {"quick_gelu": quick_gelu, "mean": OPENAI_DATASET_MEAN, "std": OPENAI_DATASET_STD}
    mean, std = sorted(statistics)[0]
    if len(statistics) > 1:
        warnings.warn(
            f"{path.name} does not say which image statistics it was trained with; taking mean {mean}, std {std}",
            UserWarning,
            stacklevel=2,
        )
    return {"quick_gelu": quick_gelu, "mean": mean, "std": std}


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
    return _some(difflib.get_close_matches(word, known, n=4, cutoff=0.3) or known)


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:6])
    return f"{shown}, ..." if len(names) > 6 else shown
