"""Whether (b)'s scores rank the classes by what they gain: the figure of the report."""

import re

import numpy as np
import pytest

from semples_plugin.data.cam_files import Cams, write_cams
from semples_plugin.data.images import write_mask
from semples_plugin.evaluation.folders import evaluate_folder
from semples_plugin.prompt_quality import ClassQuality, Nearness
from semples_plugin.viz.prompt_gains import (
    PromptGain,
    describe_prompt_gains,
    draw_prompt_gains,
    prompt_gains,
    rank_correlation,
    share_of_orders,
)
from semples_plugin.viz.prompt_maps import NearWords
from semples_plugin.viz.report import write_report

NAMES = ("cat", "dog", "cow", "sheep", "horse", "bird", "sofa")
SEPARATIONS = (0.9, 0.3, 0.8, 0.6, 0.5, None, 0.99)


def words(separations=SEPARATIONS):
    return [
        NearWords(name, (("grass", 0.5),), 0.2, ClassQuality(name, None, Nearness(0.4, 0.3, separation, 0.2, "cat"), 7))
        for name, separation in zip(NAMES, separations, strict=True)
    ]


@pytest.fixture
def evaluations(tmp_path):
    """Two folders of CAMs, one image a class; the second adds or takes columns of its object, but for sofas."""
    for k, (before, after) in enumerate([(40, 70), (40, 20), (40, 60), (40, 50), (40, 45), (40, 80), (0, 0)]):
        truth = np.zeros((8, 100), np.uint8)
        truth[:, :80] = k + 1
        write_mask(tmp_path / "masks" / f"{k}.png", truth)
        for folder, columns in (("before", before), ("after", after)):
            cam = np.zeros((1, 8, 100), np.float32)
            cam[:, :, :columns] = 1
            write_cams(tmp_path / folder / f"{k}.npy", Cams(cam, (k,), "weaktr"))
    return [
        evaluate_folder(tmp_path / folder, tmp_path / "masks", NAMES, setting=0.5, progress=False)
        for folder in ("before", "after")
    ]


def test_each_class_has_its_separation_beside_its_gain(evaluations):
    found = prompt_gains(evaluations, words())
    assert [(each.class_name, each.separation) for each in found] == list(zip(NAMES[:5], SEPARATIONS[:5], strict=True))
    np.testing.assert_allclose([each.gain for each in found], [37.5, -25, 25, 12.5, 6.25])  # columns of 80, in points
    damaged = prompt_gains(evaluations, words((0.9, 0.3, float("nan"), None, 0.5, None, None)))
    assert [each.class_name for each in damaged] == ["cat", "dog", "horse"]
    assert prompt_gains(evaluations[:1], words()) == []
    unknown = [NearWords("cat", (), 0.2, None), NearWords("unicorn", (), 0.2, words()[0].quality)]
    assert prompt_gains(evaluations, unknown) == []


def test_spearmans_rho_of_ties_and_orders():
    a = np.array([1.0, 2.0, 2.0, 5.0, 9.0])
    assert rank_correlation(a, np.exp(a)) == pytest.approx(1) and rank_correlation(a, -a) == pytest.approx(-1)
    # By hand: ranks 1, 2.5, 2.5, 4, 5 and 2, 1, 4, 3, 5 have the covariance 6.5 and the squares 9.5 and 10.
    assert rank_correlation(a, np.array([2.0, 1.0, 4.0, 3.0, 5.0])) == pytest.approx(6.5 / 95**0.5)
    b = np.arange(4.0)
    assert share_of_orders(b, b) == pytest.approx(2 / 24, abs=0.01)  # up and down, of 4! orders
    assert share_of_orders(b, b[[1, 0, 3, 2]]) > share_of_orders(b, b[[0, 1, 3, 2]]) > share_of_orders(b, b)


@pytest.mark.parametrize(
    ("gains", "sentence"),
    [
        (
            [1, 2, 3, 4, 5, 6, 7],
            "of 7 classes +1.00; 0 % of random orders are as far from 0: here .* separated gained the most",
        ),
        (
            [7, 6, 5, 4, 3, 2, 1],
            "-1.00; 0 % of random orders are as far from 0: here .* gained the least. That is one run",
        ),
        ([4, 1, 7, 2, 6, 3, 5], "such an order can be luck"),
        ([2, 2, 2, 2, 2, 2, 2], "All 7 classes have the same separation or the same gain: there is nothing to rank"),
    ],
)
def test_the_sentence_says_what_the_order_is_worth(gains, sentence):
    text = describe_prompt_gains([PromptGain(f"{k}", k / 7, gain) for k, gain in enumerate(gains)])
    assert re.search(sentence.replace("+", r"\+"), text)


def test_the_report_shows_the_figure_where_there_are_classes_enough(evaluations, tmp_path):
    def page(shown, near):
        write_report(tmp_path / "report.html", shown, ["(a)", "$(c)$"][: len(shown)], words=near)
        return (tmp_path / "report.html").read_text()

    whole = page(evaluations, words())
    assert "What $(c)$ gained over (a), class by class. Rank correlation (Spearman) of 5 classes +1.00" in whole
    assert whole.count("<svg") == 2
    three = [evaluations[1], evaluations[0], evaluations[1]]  # the last over the one before it, unless told otherwise
    write_report(tmp_path / "report.html", three, list("abc"), words=words(), refined=(0, 1))
    assert (
        "What b gained over a, class by class. Rank correlation (Spearman) of 5 classes -1.00"
        in (tmp_path / "report.html").read_text()
    )
    write_report(tmp_path / "report.html", three, list("abc"), words=words())
    assert "of 5 classes +1.00" in (tmp_path / "report.html").read_text()
    for wrong in ((0, 3), (-4, -1)):
        with pytest.raises(ValueError, match="refined: expected positions among 3 evaluations"):
            write_report(tmp_path / "report.html", three, list("abc"), refined=wrong)
    fewer = words((0.9, 0.3, 0.8, 0.6, None, None, None))
    for shown, near in ((evaluations, fewer), (evaluations[:1], words()), (evaluations, ())):
        assert "Rank correlation" not in page(shown, near)


def test_dots_lie_where_the_figures_say(monkeypatch):
    from matplotlib.figure import Figure

    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda self, *args, **options: drawn.append(self))
    long = "a class whose name is far too long for a chart"
    draw_prompt_gains([PromptGain("cat", 0.9, 3.0), PromptGain("_$x$", 0.2, -1.0), PromptGain(long, 1.0, 2.0)])
    draw_prompt_gains([PromptGain(f"{k}", 0.5, k - 10.2) for k in range(40)])
    (axes,) = drawn[0].axes
    dots = next(line for line in axes.lines if line.get_marker() == "o")
    np.testing.assert_allclose(dots.get_xydata(), [[90, 3], [20, -1], [100, 2]])
    assert [text.get_text().strip() for text in axes.texts] == ["cat", "a class whose name is...", r"_\$x\$"]
    assert [text.get_ha() for text in axes.texts] == ["right", "right", "left"]  # none leaves the chart
    (grey,) = axes.patches
    assert grey.get_width() == 50  # percent: where prompts describe the object
    named = {int(text.get_text()) for text in drawn[1].axes[0].texts}
    assert len(named) == 25 and 39 in named and 10 not in named  # those that gained or lost the most
