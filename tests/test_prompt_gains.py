"""Whether (b)'s scores rank the classes by what they gain: the figure of the report."""

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

NAMES = ("cat", "dog", "cow", "sheep", "horse")
SEPARATIONS = (0.9, 0.3, 0.8, 0.6, None)


def words(separations=SEPARATIONS):
    return [
        NearWords(name, (("grass", 0.5),), 0.2, ClassQuality(name, None, Nearness(0.4, 0.3, separation, 0.2, "cat"), 7))
        for name, separation in zip(NAMES, separations, strict=True)
    ]


@pytest.fixture
def evaluations(tmp_path):
    """Two folders of CAMs, one image a class; the second adds or takes 0 to 30 columns of its object."""
    for k, (before, after) in enumerate([(40, 70), (40, 20), (40, 60), (40, 50), (40, 45)]):
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
    assert [(each.class_name, each.separation) for each in found] == list(zip(NAMES[:4], SEPARATIONS[:4], strict=True))
    np.testing.assert_allclose([each.gain for each in found], [37.5, -25, 25, 12.5])  # columns of 80, in points
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
        ([1, 2, 3, 4, 5, 6, 7], "over 7 classes +1.00, which 0 % of random orders reach: separation tells which"),
        ([7, 6, 5, 4, 3, 2, 1], "-1.00, which 0 % of random orders reach: the classes whose prompts are the best"),
        ([4, 1, 7, 2, 6, 3, 5], "such an order can be luck"),
        ([2, 2, 2, 2, 2, 2, 2], "All 7 classes have the same separation or the same gain: there is nothing to rank"),
    ],
)
def test_the_sentence_says_what_the_order_is_worth(gains, sentence):
    assert sentence in describe_prompt_gains([PromptGain(f"{k}", k / 7, gain) for k, gain in enumerate(gains)])


def test_the_report_shows_the_figure_where_there_are_classes_enough(evaluations, tmp_path):
    def page(shown, near):
        write_report(tmp_path / "report.html", shown, ["(a)", "$(c)$"][: len(shown)], words=near)
        return (tmp_path / "report.html").read_text()

    whole = page(evaluations, words())
    assert "Rank correlation (Spearman) over 4 classes +1.00" in whole and whole.count("<svg") == 2
    for shown, near in (
        (evaluations, words((0.9, 0.3, 0.8, None, None))),
        (evaluations[:1], words()),
        (evaluations, ()),
    ):
        assert "Rank correlation" not in page(shown, near)


def test_dots_lie_where_the_figures_say(monkeypatch):
    from matplotlib.figure import Figure

    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda self, *args, **options: drawn.append(self))
    draw_prompt_gains([PromptGain("cat", 0.9, 3.0), PromptGain("_$x$", 0.2, -1.0)], ["(a)", "(c)"])
    (axes,) = drawn[0].axes
    dots = next(line for line in axes.lines if line.get_marker() == "o")
    np.testing.assert_allclose(dots.get_xydata(), [[90, 3], [20, -1]])
    assert [text.get_text().strip() for text in axes.texts] == ["cat", r"_\$x\$"]
    assert axes.get_ylabel() == "IoU of (c) over (a) [points]"
