"""Interrupted runs of stage (b): what a run leaves in its folder, and what tells one run from another.

- `features.part-RANK-TIME.bin` and `.jsonl`: features in half precision, written batch by batch, see `feature_store`
- `features.pt`: after the walk, which of their rows are the pairs of all ranks
- `state.pt`: where the epochs stand, and the settings of their run

All of them hold digests of their content, since nobody else would notice a flipped bit.
"""

from __future__ import annotations

import hashlib
import os
from array import array
from collections.abc import Iterable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from semples_plugin.clip.frozen import FrozenClip
from semples_plugin.masks import ClassMasks
from semples_plugin.prompt_learning.feature_store import StoredFeatures
from semples_plugin.prompt_learning.parts import DATA, JOURNAL, PART_PREFIX, DamagedPartError, PartFolder
from semples_plugin.prompts import same_clip
from semples_plugin.utils.atomic_files import check_writable, remove_leftovers, replacing
from semples_plugin.utils.distributed import from_first, together

FEATURES_FILE, STATE_FILE = "features.pt", "state.pt"
_FORMAT = 5  # version of these files' format
_STATE_KEYS = ("run", "done", "vectors", "optimizer", "schedule", "history")
_INDEX_KEYS = ("parts", "width", "rows", "class_index", "has_foregrounds", "features")
_COST_OF_DELETING = {
    FEATURES_FILE: "the data are walked again then, but batches that come again unchanged not encoded again",
    STATE_FILE: "the epochs begin anew then, on the features that are kept",
    PART_PREFIX: "its batches are encoded again then",
}

State = dict[str, Any]
"""What `state.pt` holds, see `_STATE_KEYS`: the run's settings ("run") and how many epochs are done, among others."""


class WorkDir:
    """Reads and writes the files of an interrupted run; without a path there is nothing to read, and none is written.

    Args:
        path: of the folder.
        made_with: settings that features depend on, by name; lists, strings and numbers alone.
        signatures: of CLIP's texts, None where it isn't known, and of its images.
        width: D, of the features.

    Attributes:
        parts: what walks have written into the folder; None without a path.
        reused: how many batches of an earlier walk came again in this one.
    """

    def __init__(
        self, path: str | Path | None, made_with: dict[str, Any], signatures: list[Tensor | None], width: int = 0
    ) -> None:
        self.path = None if path is None else Path(path)
        self.parts: PartFolder | None = None
        self.reused = 0
        self._made_with = made_with
        self._signatures = signatures
        self._width = width
        if self.path is not None:
            listed = [None if one is None else one.tolist() for one in signatures or ()]
            self.parts = PartFolder(self.path, {**self._header(), "signatures": listed}, width)

    def read_state(self) -> State | None:
        """The state of an interrupted run, None without one; makes the folder.

        Raises:
            OSError: where the folder can't be made or written into.
            ValueError: for a damaged file, or one of another run or version.
        """
        if self.path is None:
            return None
        self._make()
        remove_leftovers(self.path)
        return self._read_file(STATE_FILE, _STATE_KEYS)

    def read_features(self) -> StoredFeatures | None:
        """The features of a walk that was finished; else None, and `parts` has what is left of one that was not.

        Raises:
            OSError, ValueError: as `read_state` does.
        """
        if self.path is None or self.parts is None:
            return None
        self._make()  # not every machine has that of the first rank
        if any(path.is_file() for path in self.path.glob(f"{PART_PREFIX}*.pt")):
            raise self._version_error()
        index = self._read_file(FEATURES_FILE, _INDEX_KEYS)
        try:
            whole = self.parts.read(self._check_header)
        except DamagedPartError as error:
            raise self.damage_error(str(error)) from error
        if index is None or any(whole.get(name, 0) < rows for name, rows in index["parts"]):
            return None
        return StoredFeatures(self.path, *(index[key] for key in _INDEX_KEYS))

    def find_batch(self, digest: str) -> int | None:
        """The first row of a batch that was encoded before the interruption; None for any other batch."""
        first = None if self.parts is None else self.parts.encoded.get(digest)
        if first is not None:
            self.reused += 1
        return first

    def end_walk(self) -> None:
        """Closes the part that this rank wrote."""
        if self.parts is not None:
            self.parts.close()

    def share(
        self, parts: PartFolder, rows: array[int], class_index: Tensor, has_foregrounds: bool, chosen: Tensor
    ) -> StoredFeatures:
        """The features of all ranks' pairs, of which `features.pt` keeps where they are. Collective.

        Args:
            parts: of this folder.
            rows: of this rank's pairs.
            class_index: `[P]`, of all ranks' pairs, in the order of the ranks.
            has_foregrounds: whether all of them have v_f.
            chosen: positions of those pairs that count.
        """
        counts, numbered = parts.share(rows)
        taken = torch.from_numpy(numbered)[chosen]
        features = StoredFeatures(
            parts.path, [*counts.items()], self._width, taken, class_index[chosen], has_foregrounds
        )
        together(partial(self._write_features, parts, features))
        return features

    def _write_features(self, parts: PartFolder, features: StoredFeatures) -> None:
        """Writes `features.pt`, and removes parts that have no pair in it."""
        if not parts.leads:
            return
        index = {key: getattr(features, "digest" if key == "features" else key) for key in _INDEX_KEYS}
        self._write_file(FEATURES_FILE, index)
        parts.remove(keep={name for name, _ in features.parts})

    def write_state(self, state: State) -> None:
        """Writes where the epochs stand."""
        self._write_file(STATE_FILE, state)

    def describe_kept(self) -> str:
        """What a call that is interrupted now leaves for the next one; "" for nothing."""
        if self.path is None:
            return ""
        if (self.path / FEATURES_FILE).exists():
            return "the features of all pairs, and all epochs that were finished"
        return "the batches that were encoded" if any(self.path.glob(f"{PART_PREFIX}*{JOURNAL}")) else ""

    def remove(self) -> None:
        """Removes all files of a run that is done, and the folder where nothing else is in it."""
        if self.path is not None:
            for name in (FEATURES_FILE, STATE_FILE):
                (self.path / name).unlink(missing_ok=True)
            remove_leftovers(self.path)
            if self.parts is not None:
                self.parts.remove(keep=set())
            self.remove_if_empty()

    def remove_if_empty(self) -> None:
        """Removes the folder where nothing is in it."""
        if self.path is not None:
            with suppress(OSError):  # other files of the user's stay
                self.path.rmdir()

    def check_outside(self, save_to: str | Path) -> None:
        """Raises a `ValueError` for a file that would be removed with the folder's own, an `OSError` for a folder."""
        if self.path is None:
            return
        file, folder = Path(save_to).resolve(), self.path.resolve()
        is_part = file.name.startswith(PART_PREFIX) and file.suffix in (DATA, JOURNAL)
        if file.parent == folder and (file.name in (FEATURES_FILE, STATE_FILE) or is_part):
            raise ValueError(f"save_to: {file} is a file of work_dir, which is removed at the end; give another path")
        if file in (folder, *folder.parents):
            raise IsADirectoryError(
                f"save_to: expected a file's path, {file} is a folder, work_dir or one that holds it"
            )

    def damage_error(self, name: str) -> ValueError:
        """The error for a file that can't be used, with what deleting it costs."""
        cost = next(cost for prefix, cost in _COST_OF_DELETING.items() if name.startswith(prefix))
        return ValueError(
            f"{self.path}/{name} is damaged, or no file of this command's: delete it, or use another work_dir, and "
            f"call again; {cost}"
        )

    def _make(self) -> None:
        """Makes the folder and tries to write into it, so that what hinders that is known before the walk."""
        if self.path is not None:
            check_writable("work_dir", self.path / STATE_FILE)

    def _read_file(self, name: str, keys: Iterable[str]) -> dict[str, Any] | None:
        """The values of `keys` in a file; None where there is no file."""
        if self.path is None or not (self.path / name).exists():
            return None
        try:
            content = dict(torch.load(self.path / name, map_location="cpu", weights_only=True))
        except Exception as error:
            raise self.damage_error(name) from error
        numbered = "format" in content or "settings" in content  # version 0.1.0 had settings and no number
        if numbered and content.get("format") != _FORMAT:
            raise self._version_error()
        written_digest = content.pop("digest", None)
        if written_digest != digest(content) or not {"made_with", "signatures", *keys} <= content.keys():
            raise self.damage_error(name)
        self._check_same_features(content["made_with"], content["signatures"])
        return {key: content[key] for key in keys}

    def _check_header(self, header: dict[str, Any]) -> None:
        """Raises a `ValueError` where a part's features were made otherwise than this run's."""
        if header.get("format") != _FORMAT:
            raise self._version_error()
        signatures = [None if values is None else torch.tensor(values) for values in header["signatures"]]
        self._check_same_features(header["made_with"], signatures)

    def _check_same_features(self, made_with: dict[str, Any], signatures: list[Tensor | None]) -> None:
        """Raises a `ValueError` where a file's features were made otherwise than this run's."""
        if made_with != self._made_with:
            raise ValueError(
                f"{self.path} holds an unfinished run with {difference(made_with, self._made_with)}; delete "
                "that folder to begin again, or use another work_dir"
            )
        if not all(map(same_clip, self._signatures, signatures)):
            raise ValueError(
                f"{self.path} holds an unfinished run with another CLIP; delete that folder to begin again, or use "
                "another work_dir"
            )

    def _version_error(self) -> ValueError:
        return ValueError(
            f"{self.path} holds a run that another version of semples-plugin left unfinished: finish it with that "
            "one, or delete the folder to begin again"
        )

    def _header(self) -> dict[str, Any]:
        return {"format": _FORMAT, "made_with": self._made_with, "signatures": self._signatures}

    def _write_file(self, name: str, content: dict[str, Any]) -> None:
        if self.path is None:
            return
        content = {**self._header(), **content}
        with replacing(self.path / name) as temporary:
            torch.save({**content, "digest": digest(content)}, temporary)


def digest(*values: Any) -> str:
    """16 hexadecimal digits of the SHA-256 of tensors, plain values, and lists and dictionaries of them."""
    sha256 = hashlib.sha256()

    def add(value: Any) -> None:
        if isinstance(value, Tensor):
            sha256.update(f"{value.dtype}{list(value.shape)}".encode())
            sha256.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        elif isinstance(value, (list, tuple, dict)):
            sha256.update(f"{len(value)} of".encode())
            for item in value.items() if isinstance(value, dict) else value:
                add(item)
        else:
            sha256.update(f"{value!r};".encode())

    add(values)
    return sha256.hexdigest()[:16]


def digest_batch(images: Tensor, masks: ClassMasks) -> str:
    """The digest of a batch, of all its pixels: a part of them wouldn't tell it from every other batch."""
    return digest(images, masks.maps, masks.image_index, masks.class_index)


def name_origin(origin: str | os.PathLike[str] | nn.Module) -> str:
    """What tells one origin of masks from another: the name, or a digest of the model's weights on the first rank."""
    if isinstance(origin, nn.Module):
        weights = (value for _, value in sorted(origin.state_dict().items()) if isinstance(value, Tensor))
        return from_first(f"weights {digest(*weights)}")
    if not isinstance(origin, (str, os.PathLike)):
        raise TypeError(f"origin: expected the model that makes the masks, or its name or path, got {origin!r:.80}")
    return os.fspath(origin)


@torch.no_grad()
def image_signature(clip: FrozenClip) -> Tensor:
    """A unit vector `[D]` on the CPU that tells one image tower from another, as `FrozenClip.signature` does texts'.

    It is the direction from the feature of horizontal stripes to that of a horizontal ramp.
    """
    height, width = clip.image_size
    ramp = torch.linspace(-1.5, 1.5, width).expand(3, height, width)
    wave = torch.linspace(0, 40, height)[:, None].sin()
    stripes = (torch.tensor([1.5, -1.5, 0.0])[:, None, None] * wave).expand_as(ramp)
    features = clip.encode_images(torch.stack([ramp, stripes]).to(clip.device)).double().cpu()
    return F.normalize(features[0] - features[1], dim=0).float()


def describe_interrupted(
    folder: str | Path | None, walked: bool, pairs: int, state: State | None, settings: dict[str, Any]
) -> str:
    """What a call uses of the folder that an interrupted one left, and what it does not.

    Args:
        folder: `work_dir`.
        walked: whether the features were encoded in this call, rather than read from the folder.
        pairs: number of pairs, P.
        state: of the interrupted run.
        settings: of this run.
    """
    changed = "if the model has changed since, delete the folder and call again"
    done = 0 if state is None else state["done"]
    if state is None or state["run"] == settings:
        return (
            f"{folder} holds an interrupted run, which is continued: the backgrounds of {pairs} pairs, "
            f"{done} of {settings['epochs']} epochs; {changed}"
        )
    if walked:
        return f"{folder} holds {done} epochs of a run with other features or settings, which begins anew"
    return (
        f"{folder} holds an interrupted run with {difference(state['run'], settings)}: the backgrounds of {pairs} "
        f"pairs are used again, its {done} epochs are not, and learning begins anew; {changed}"
    )


def difference(theirs: dict[str, Any], ours: dict[str, Any]) -> str:
    """The first three settings that differ, with both values; of two lists the first element that differs."""
    differences = []
    for key, our_value in ours.items():
        their_value = theirs.get(key)
        if their_value == our_value:
            continue
        if isinstance(their_value, list) and isinstance(our_value, list) and len(their_value) == len(our_value):
            pairs = zip(their_value, our_value, strict=True)
            i, (their_value, our_value) = next((i, pair) for i, pair in enumerate(pairs) if pair[0] != pair[1])
            key = f"{key}[{i}]"
        differences.append(f"{key} = {their_value!s:.60}, this one has {our_value!s:.60}")
    return "; ".join(differences[:3])
