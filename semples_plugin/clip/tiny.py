"""The embedded tiny CLIP, `FrozenClip.load("demo")`: a real `open_clip.CLIP`, and its tokenizer of whole words.

It knows the demo's world alone; `semples_plugin.demo.train_tiny_clip` made it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    import open_clip

TINY_CLIP = "the demo's tiny CLIP"
CONTEXT_LENGTH = 77
FOLDER = Path(__file__).parent / "tiny_clip"
# EOT comes last: open_clip pools the text feature at the highest id of a row.
VOCABULARY = tuple((FOLDER / "vocabulary.txt").read_text(encoding="utf-8").split())
_PAD, _SOS, _UNKNOWN, _EOT = (VOCABULARY.index(word) for word in ("<pad>", "<sos>", "<unk>", "<eot>"))


class TinyTokenizer:
    """Turns texts into ids of whole words; what is not in the vocabulary becomes `<unk>`."""

    def __init__(self) -> None:
        self._ids = {word: i for i, word in enumerate(VOCABULARY)}

    def __call__(self, texts: str | Sequence[str]) -> Tensor:
        """Ids of one text or of M texts: int64 [M, 77], as SOS, words, EOT, zeros; long texts are cut."""
        texts = [texts] if isinstance(texts, str) else texts
        tokens = torch.full((len(texts), CONTEXT_LENGTH), _PAD, dtype=torch.long)
        for row, text in zip(tokens, texts, strict=True):
            # A text can't hold special words such as <eot>: the pattern splits off their brackets.
            words = re.findall(r"\w+|[^\w\s]", text.lower())[: CONTEXT_LENGTH - 2]
            ids = [_SOS, *(self._ids.get(word, _UNKNOWN) for word in words), _EOT]
            row[: len(ids)] = torch.tensor(ids)
        return tokens


def load_tiny_clip(precision: str = "fp32") -> open_clip.CLIP:
    """The tiny CLIP on the CPU, in eval mode; images are [N, 3, 64, 64]."""
    import open_clip

    with torch.random.fork_rng(devices=[]):  # open_clip draws random weights before it reads the file
        model: open_clip.CLIP = open_clip.create_model(f"local-dir:{FOLDER}", precision=precision)
    return model.eval()
