"""Whether stage (b) went well: what each prompt came near to, measured before and after it learned."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

SEPARATED = 0.5
"""Share of a class's pairs that must have their background nearer to the prompt than their foreground. With lambda 0.8
(docs/photographs.md, docs/demo.md) prompts of 0.33 to 0.41, the mean over all pairs, took 7 to 16 points of mIoU away,
those of 0.85 and more changed it by -3.0 to +3.1; nothing was measured in between. It tells good prompts from bad ones,
and not which class gains. That a prompt is nearest to its own label is no bad sign: in the demo's world such classes
gained more than most."""

LEARNED = 0.02
"""Rise of sim(u_b, v_b) below which a prompt has learned nothing; learning brings 0.2 on real images, 0.25 and
more on the demo's."""

_AGAINST_OBJECTS = "look at their masks, raise LossWeights.text, prompt_foreground or, after few steps, lr"
_AGAINST_IDLENESS = "raise lr, epochs or LossWeights.image"


@dataclass(frozen=True)
class Nearness:
    """Mean cosines of one class's prompt u_b; None for what was not measured.

    Attributes:
        background: with the backgrounds v_b of the class's pairs; None for a class without a pair.
        foreground: with their foregrounds v_f.
        separation: share of the pairs, in [0, 1], whose background is nearer than their foreground.
        label: with the class's own label text u_f.
        nearest: name of the class whose label text is the nearest.
    """

    background: float | None
    foreground: float | None
    separation: float | None
    label: float
    nearest: str | None


@dataclass(frozen=True)
class ClassQuality:
    """What one class's prompt was near to before it learned anything, and is after it.

    Attributes:
        class_name: of the prompt.
        before, after: what it was near to and is; `before` is None where nobody knows.
        pairs: that taught it; None in files from before they were counted.
    """

    class_name: str
    before: Nearness | None
    after: Nearness
    pairs: int | None = None

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> ClassQuality:
        """The inverse of `dataclasses.asdict`."""
        before = None if fields["before"] is None else Nearness(**fields["before"])
        return cls(fields["class_name"], before, Nearness(**fields["after"]), fields.get("pairs"))

    @property
    def seen(self) -> bool:
        """Whether any pair taught this prompt."""
        return self.after.background is not None

    @property
    def describes_object(self) -> bool:
        """Whether refinement with this prompt would suppress the object rather than its background."""
        separation = self.after.separation
        return separation is not None and separation < SEPARATED

    @property
    def learned_nothing(self) -> bool:
        """Whether the prompt is hardly nearer to its backgrounds than it began."""
        if self.before is None or self.before.background is None or self.after.background is None:
            return False
        return self.after.background - self.before.background < LEARNED


def quality_from_similarities(
    class_names: Sequence[str], similarities: Mapping[str, Sequence[Any]]
) -> tuple[ClassQuality, ...]:
    """Quality out of a file from before foregrounds were measured.

    Args:
        class_names: K names.
        similarities: "background" and "label", K cosines each, after learning; empty for prompts not yet
            learned.
    """
    if not similarities:
        return ()
    backgrounds, labels = similarities.get("background", ()), similarities.get("label", ())
    return tuple(
        ClassQuality(name, None, Nearness(background, None, None, label, None))
        for name, background, label in zip(class_names, backgrounds, labels, strict=True)
    )


def measure(
    class_names: Sequence[str],
    prompts: Tensor,
    labels: Tensor,
    pairs: Iterable[tuple[Tensor, Tensor | None, Tensor]],
) -> list[Nearness]:
    """What each of K prompts is near to.

    Args:
        class_names: K names.
        prompts, labels: u_b and u_f, `[K, D]`, unit length.
        pairs: in chunks: their v_b `[P, D]`, v_f `[P, D]`, which may be missing from all of them, and classes `[P]`.
    """
    prompts = prompts.detach()
    counts, near_sums, far_sums, separated = prompts.new_zeros(4, len(prompts))
    has_foregrounds = True
    for backgrounds, foregrounds, classes in pairs:
        class_index = classes.to(prompts.device)

        def cosines(features: Tensor, own: Tensor = prompts[class_index]) -> Tensor:
            """Of each pair's feature and its class's prompt, `[P]`."""
            return (features * own.to(features)).sum(dim=1) / features.norm(dim=1)

        near = cosines(backgrounds).to(prompts)
        counts.index_add_(0, class_index, near.new_ones(len(near)))
        near_sums.index_add_(0, class_index, near)
        if foregrounds is None:
            has_foregrounds = False
            continue
        far = cosines(foregrounds).to(prompts)
        far_sums.index_add_(0, class_index, far)
        separated.index_add_(0, class_index, (near > far).to(near))

    def class_means(sums: Tensor) -> list[float | None]:
        """Means over the pairs of each class; None for a class without a pair."""
        return [mean if count else None for mean, count in zip((sums / counts).tolist(), counts.tolist(), strict=True)]

    unknown: list[float | None] = [None] * len(prompts)
    background = class_means(near_sums)
    foreground, separation = map(class_means, (far_sums, separated)) if has_foregrounds else (unknown, unknown)
    label_cosines = labels @ prompts.to(labels).T  # [labels, prompts]
    own_label = label_cosines.diagonal().tolist()
    nearest = [class_names[k] for k in label_cosines.argmax(dim=0).tolist()]
    columns = zip(background, foreground, separation, own_label, nearest, strict=True)
    return [Nearness(*measured) for measured in columns]


def went_well(quality: Sequence[ClassQuality]) -> bool:
    """Whether every prompt that was taught describes its background."""
    return not any(prompt.seen and (prompt.describes_object or prompt.learned_nothing) for prompt in quality)


def describe_quality(quality: Sequence[ClassQuality], shared: bool = False) -> str:
    """One sentence on how (b) went, and what to do where it did not go well.

    Args:
        quality: of each class.
        shared: whether all classes have one and the same prompt, of which nothing can be said class by class.
    """
    seen = [prompt for prompt in quality if prompt.seen]
    if not seen:
        return "how stage (b) went is unknown: these prompts come without its measurements"
    figures = _describe_figures(seen)
    if went_well(quality):
        return f"(b) went well: the prompts describe backgrounds ({figures})"
    objects = [prompt.class_name for prompt in seen if prompt.describes_object]
    idle = [prompt.class_name for prompt in seen if prompt.learned_nothing and not prompt.describes_object]
    if shared:
        return f"(b) did not go well ({figures}): the shared prompt {_describe_shared(objects, idle, len(seen))}"
    groups = []
    if objects:
        groups.append(
            f"{_first_names(objects)} describe the object (nearer to it than to its background), and "
            f"refinement would suppress it: {_AGAINST_OBJECTS}"
        )
    if idle:
        groups.append(f"{_first_names(idle)} came no nearer to their backgrounds: {_AGAINST_IDLENESS}")
    bad = f"{len(objects) + len(idle)} of {len(seen)} classes"
    return f"(b) did not go well for {bad} ({figures}): the prompts of {'; those of '.join(groups)}"


def _describe_shared(objects: Sequence[str], idle: Sequence[str], seen: int) -> str:
    """What is wrong with one prompt of all classes, by the number of classes whose pairs say so."""
    groups = []
    if objects:
        groups.append(
            f"describes the object (is nearer to it than to its background) for {len(objects)} of "
            f"{seen} classes' pairs, and refinement would suppress it there: {_AGAINST_OBJECTS}"
        )
    if idle:
        groups.append(f"came no nearer to the backgrounds of {len(idle)} of {seen} classes: {_AGAINST_IDLENESS}")
    return "; it ".join(groups)


def _describe_figures(seen: Sequence[ClassQuality]) -> str:
    """Means over classes that had pairs: "sim(u_b, v_b) 0.40, before learning 0.20; backgrounds nearer ..."."""
    background = f"sim(u_b, v_b) {_mean([prompt.after.background for prompt in seen])}"
    before = [prompt.before.background for prompt in seen if prompt.before is not None]
    if len(before) == len(seen):
        background += f", before learning {_mean(before)}"
    measured = [(prompt.after.separation, prompt.pairs) for prompt in seen if prompt.after.separation is not None]
    if len(measured) < len(seen):
        return f"{background}; foregrounds not measured"
    counts = [pairs for _, pairs in measured if pairs is not None]
    if len(counts) == len(measured):
        weights, of = counts, "of the pairs"
    else:  # files from before pairs were counted: all classes weigh alike
        weights, of = [1] * len(measured), "of a class's pairs on average"
    share = 100 * sum(separation * weight for (separation, _), weight in zip(measured, weights, strict=True))
    share /= sum(weights)
    foreground = f"sim(u_b, v_f) {_mean([prompt.after.foreground for prompt in seen])}"
    return f"{background}; backgrounds nearer than foregrounds for {share:.0f} % {of}; {foreground}"


def _mean(values: Sequence[float | None]) -> str:
    return f"{fmean(value for value in values if value is not None):.2f}"


def _first_names(names: Sequence[str]) -> str:
    """At most three of the names, and how many more there are."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
