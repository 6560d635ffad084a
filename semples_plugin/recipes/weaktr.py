"""WeakTr: the paper's Table 4 on VOC, COCO's val set, and Table 5.

Numbers are those of WeakTr's `docs/Training.md` and `docs/Evaluate.md`, and, for SemPLeS's stages, of the authors'
release (preset `release-voc`, `release-coco`), which is built on WeakTr. Each stage ends with its last epoch,
`checkpoint.pth`: WeakTr's `checkpoint_best_mIoU.pth` is chosen on masks of the training images, which image labels
alone don't give, and that choice would cost CAMs of them all after each epoch.
"""

from __future__ import annotations

from dataclasses import dataclass

from semples_plugin.compat.needs.items import Checkpoint
from semples_plugin.compat.needs.weaktr import NEEDS
from semples_plugin.recipes.common import PATHS, SMALL, by_hand, checkout, data_check, small_voc
from semples_plugin.recipes.recipe import Figure, Recipe, Step
from semples_plugin.recipes.weaktr_settings import (
    MINIATURE,
    MINIATURE_SECOND,
    SECOND,
    TRAINING,
    WEAKTR_HELP,
    WEAKTR_PATHS,
)

PUBLISHED = (
    "the baseline is WeakTr's published checkpoint, of the epoch that was best on masks of the training images; all "
    "others are the last epoch's"
)
TEST_SERVER = (
    "test mIoU (Table 4: 74.0 and 74.8) comes from the evaluation server of VOC, by these commands with test.txt in "
    "place of val.txt"
)
MASKS = (
    "Table 1's row is probably not of WeakTr's pseudo masks by CRF, whose figure there is 74.2, but of FMA-WSSS's "
    "seeding with these CAMs"
)
NETWORK = "--model deit_small_WeakTr_patch16_224 --data-path data --reduction 8 --pool-type max --num_workers {workers}"
ROWS = {"baseline": "baseline", "refine": "+ SemPLeS"}


@dataclass(frozen=True)
class _Data:
    """What tells the two data sets apart.

    Attributes:
        name: "voc" or "coco".
        own: WeakTr's name, and that of its folder of lists.
        option: of `--data-set`.
        preset: of SemPLeS's stages.
        batch_lr: `--lr` of stages (a) and (c), which WeakTr multiplies by batch size / 512.
        lists: `--img-ms-list` of training, of all CAMs, and of those that are judged, in `own`.
        masks: ground truth, below `data/` of the checkout.
        scales: of the CAMs.
        second: name of the data set in the second stage.
        val: options of its evaluation.
        classes: with background.
        hours: of a training stage, of CAMs, of CRF, of the second stage and of its evaluation.
    """

    name: str
    own: str
    option: str
    preset: str
    batch_lr: str
    lists: tuple[str, str, str]
    masks: str
    scales: str
    second: str
    val: str
    classes: int
    hours: tuple[float, float, float, float, float]


VOC = _Data(
    "voc", "voc12", "VOC12", "release-voc", "4.096e-3", ("train_id", "train_aug_id", "train_id"),
    "voc12/VOCdevkit/VOC2012/SegmentationClassAug", "1.0 1.2", "pascal_voc", "", 21, (1.5, 0.5, 0.5, 8, 1),
)  # fmt: skip
COCO = _Data(
    "coco", "coco", "COCO", "release-coco", "8.192e-5", ("train_1250_id", "train_id", "train_1250_id"),
    "coco/voc_format/class_labels", "1.0 0.8 1.2", "coco", "--eval-split voc_format/val.txt", 91, (14, 8, 10, 60, 20),
)  # fmt: skip


def _main(data: _Data, out: str, *options: str) -> str:
    """A training of `main.py`, without its evaluation on masks of the training images."""
    return (
        f"semples run weaktr {{device}} main.py {NETWORK} --data-set {data.option} "
        f"--img-ms-list {data.own}/{data.lists[0]}.txt --output_dir {out} --no-if_eval_miou --weight-decay 0.03 "
        f"--epochs {{epochs}} --batch-size {{batch}} --seed {{seed}} {' '.join(options)}"
    )


def _stage(data: _Data, out: str, stage: str, *options: str) -> str:
    """A stage of SemPLeS, as the release trains it: head and fusion alone, no warm-up, a rate that falls to 0."""
    return _main(
        data, out, f"--lr {data.batch_lr} --warmup-epochs 0 --min-lr 0 --finetune= --semples {stage}",
        f"--semples-preset {data.preset} --semples-alone --semples-seed {{seed}} {{clip}}", *options,
    )  # fmt: skip


def _published(data: _Data) -> Checkpoint:
    """WeakTr's checkpoint, by the name that `semples doctor` knows it by."""
    (checkpoint,) = NEEDS.data[data.name].checkpoints
    return checkpoint


def _start(data: _Data) -> str:
    return f"{{runs}}/{_published(data).path}"


def _before(data: _Data) -> tuple[Step, ...]:
    """The clone with its patch and data, and WeakTr's checkpoint."""
    voc = data is VOC
    made = "{checkout}/data/voc12/VOCdevkit/VOC2012/ImageSets" if voc else "{checkout}/data/coco/voc_format/train.txt"
    smallness: tuple[Step, ...] = small_voc(4) if voc else (
        Step("lists", "lists, labels and masks of a few images", f"python -m semples_plugin.recipes.weaktr_layout "
             f"coco-miniature {{coco}} {SMALL} --images 4", "{shared}", makes=(f"{SMALL}/masks",), once=True,
             only="miniature"),
        by_hand("masks", "masks of COCO, with 0 for background and its category ids", "{coco_masks}",
                "https://github.com/hustvl/WeakTr/blob/main/docs/prepare_dataset.md (semantic segmentation labels)"),
    )  # fmt: skip
    layout = f"python -m semples_plugin.recipes.weaktr_layout {data.name} {{{data.name}}} . {{lists}}"
    own = ("JPEGImages", "SegmentationClassAug") if voc else ("train2014", "val2014")
    folders = [f"{{{data.name}}}/{folder}" for folder in own] + ([] if voc else ["{coco_masks}"])
    links = [
        Step("data", "images, masks and lists where WeakTr looks for them",
             layout if voc else f"{layout} --masks {{coco_masks}}",
             needs=("{checkout}/README.md", *folders, *more), makes=(made,), once=True, only=only, placed=True)
        for only, more in {"full": (), "miniature": smallness[-1].makes if voc else smallness[0].makes}.items()
    ]  # fmt: skip
    return (
        *checkout("weaktr"),
        *smallness,
        *links,
        data_check("weaktr", data.name, made),
        by_hand("published", "WeakTr's checkpoint", "{start}", _published(data).source),
        Step("published", "a network in place of WeakTr's checkpoint: its own training, without ImageNet's weights",
             _main(data, "{shared}/baseline", f"--lr {'6e-4' if voc else '2e-4'} --finetune="), needs=(made,),
             makes=("{shared}/baseline/checkpoint.pth",), once=True, only="miniature"),
    )  # fmt: skip


def _stages(data: _Data, rows: dict[str, str] | None = None) -> tuple[Step, ...]:
    """SemPLeS's stages; (b) and (c) once for each of `rows`, name -> options of (b), or "unlearned"."""
    hours = data.hours[0]
    matched = "{out}/match/checkpoint.pth"
    match = Step(
        "match", "stage (a): segment-label matching, from WeakTr's checkpoint",
        _stage(data, "{out}/match", "match", "--semples-start {start}"), needs=("{start}",), makes=(matched,),
        hours=hours,
    )  # fmt: skip
    steps = [match]
    for row, options in (rows or {"": ""}).items():
        end = f"-{row}" if row else ""
        prompts = f"{{out}}/prompts{end}.safetensors"
        if options != "unlearned":
            command = _stage(
                data, f"{{out}}/prompts{end}", "prompts", f"--semples-start {matched} --semples-prompts {prompts}",
                "--aa= --color-jitter 0 --reprob 0 {prompt_options}", options,
            )  # fmt: skip
            steps.append(Step(f"prompts{end}", "stage (b): the background prompts, by the network of (a)", command,
                              needs=(matched,), makes=(prompts,), hours=hours / 5))  # fmt: skip
        learned = ("{start}",) if options == "unlearned" else ("{start}", prompts)
        command = _stage(
            data, f"{{out}}/refine{end}", "refine", "--semples-start {start}",
            f"--semples-prompts {'unlearned {prompt_options}' if options == 'unlearned' else prompts}",
        )  # fmt: skip
        steps.append(Step(f"refine{end}", "stage (c): matching and refinement, from WeakTr's checkpoint again", command,
                          needs=learned, makes=(f"{{out}}/refine{end}/checkpoint.pth",), hours=hours))  # fmt: skip
    return tuple(steps)


def _cams(data: _Data, row: str, checkpoint: str, all_images: bool, figure: Figure) -> tuple[Step, Step]:
    """CAMs of several scales, and their judgement on training images."""
    once = row == "baseline"
    home = "{shared}" if once else "{out}"
    cams, judged = f"{home}/cams/{row}", f"{home}/judged/{row}-cams"
    images = data.lists[1] if all_images else data.lists[2]
    generate = (
        f"semples run weaktr {{device}} main.py {NETWORK} --data-set {data.option}MS --gen_attention_maps "
        f"--img-ms-list {data.own}/{images}.txt --scales {data.scales} --cam-npy-dir {cams} --output_dir {cams}-log "
        f"--resume {checkpoint}"
    )
    return (
        Step(f"cams-{row}", "CAMs of the training images, of several scales and flipped", generate, needs=(checkpoint,),
             makes=(cams,), hours=data.hours[1] if all_images else data.hours[1] / 8, once=once),
        _judged(data, f"{row}-cams", cams, judged, once, figure),
    )  # fmt: skip


def _judged(data: _Data, name: str, files: str, out: str, once: bool, figure: Figure) -> Step:
    """The mIoU of CAMs or pseudo masks."""
    return Step(
        f"judge-{name}", "their mIoU, at all background scores",
        f"semples eval {files} --gt data/{data.masks} --list {data.own}/{data.lists[2]}.txt "
        f"--classes {data.preset} --out {out}",
        needs=(files,), makes=(f"{out}/eval.json",), once=once,
        figures=(Figure(**{**vars(figure), "file": f"{out}/eval.json"}),),
    )  # fmt: skip


def _pseudo_masks(data: _Data, row: str, figure: Figure) -> tuple[Step, Step]:
    """WeakTr's pseudo masks: a threshold and its CRF."""
    once = row == "baseline"
    home = "{shared}" if once else "{out}"
    cams, masks = f"{home}/cams/{row}", f"{home}/masks/{row}"
    command = (
        f"semples run weaktr {{device}} evaluation.py --list {data.own}/{data.lists[1]}.txt --data-path data "
        f"--type npy --predict_dir {cams} --out-dir {masks} --t {{threshold}} --num_classes {data.classes} "
        "--n_jobs {workers} --out-crf"
    )
    return (
        Step(f"masks-{row}", "pseudo masks, by WeakTr's CRF", command, needs=(cams,), makes=(masks,),
             hours=data.hours[2], once=once),
        _judged(data, f"{row}-masks", masks, f"{home}/judged/{row}-masks", once, figure),
    )  # fmt: skip


def _second_stage(data: _Data, row: str, figure: Figure) -> tuple[Step, ...]:
    """WeakTr's second stage, OnlineRetraining: a ViT with gradient clipping, tested at several scales, with CRF."""
    home = "{shared}" if row == "baseline" else "{out}"
    out, masks = f"{{out}}/segmenter/{row}", f"{home}/masks/{row}"
    start = "semples run weaktr {device} -m torch.distributed.run --standalone --nproc-per-node 1 OnlineRetraining/segm"
    train = (
        f"{start}/train.py --local_rank 0 --log-dir {out} --dataset {data.second} --backbone deit_small_patch16_224 "
        f"--decoder mask_transformer --ann-dir {masks} --start-value 1.2 --patch-size 120 --eval-freq 25 "
        "--num-workers {workers} {segmenter_size}"
    )
    test = (
        f"{start}/eval/miou.py --local_rank 0 --multiscale --predict-dir {out}/probabilities {data.val} {{test_size}} "
        f"{out}/checkpoint.pth {data.second}"
    )
    crf = (
        f"semples run weaktr {{device}} OnlineRetraining/segm/eval/make_crf.py --list val.txt --data-path data "
        f"--predict-dir {out}/probabilities --predict-png-dir {out}/segmentations --num-cls {data.classes} "
        f"--dataset {data.own} --n-jobs {{workers}}"
    )
    return (
        Step(f"segmenter-{row}", "WeakTr's segmentation network on the pseudo masks", train, needs=(masks,),
             makes=(f"{out}/checkpoint.pth",), hours=data.hours[3], resume=(f"{out}/checkpoint.pth", "--resume")),
        Step(f"test-{row}", "its predictions for val, of several scales and flipped", test,
             needs=(f"{out}/checkpoint.pth",), makes=(f"{out}/probabilities",), hours=data.hours[4]),
        Step(f"crf-{row}", "CRF, and the mIoU on val", crf, needs=(f"{out}/probabilities",),
             makes=(f"{out}/segmentations",), hours=data.hours[2] / 4, figures=(figure,)),
    )  # fmt: skip


def _row(data: _Data, row: str, checkpoint: str, papers: dict[str, tuple[str, float | None, str]]) -> tuple[Step, ...]:
    """All that follows a CAM network, with the paper's table, figure and a note by name."""
    figures = {name: Figure(name, ROWS[row], table, paper, note=note) for name, (table, paper, note) in papers.items()}
    network = Figure(**{**vars(figures["segmentation, val"]), "pattern": r"mIoU:\s*([\d.]+)%"})
    return (
        *_cams(data, row, checkpoint, True, figures["CAMs"]),
        *_pseudo_masks(data, row, figures["pseudo masks"]),
        *_second_stage(data, row, network),
    )


def _table_4() -> tuple[Step, ...]:
    refined = "{out}/refine/checkpoint.pth"
    return (
        *_before(VOC),
        *_row(VOC, "baseline", "{start}", {
            "CAMs": ("Table 1", 65.9, "WeakTr's README reports 69.4 for its published checkpoint"),
            "pseudo masks": ("Table 1", 74.2, "WeakTr's paper has 76.5 after its second stage"),
            "segmentation, val": ("Table 4", 73.2, f"WeakTr's README reports 74.0; {TEST_SERVER}"),
        }),
        *_stages(VOC),
        *_row(VOC, "refine", refined, {
            "CAMs": ("Table 1", 68.7, PUBLISHED),
            "pseudo masks": ("Table 1", 78.4, MASKS),
            "segmentation, val": ("Table 4", 74.2, f"{PUBLISHED}; {TEST_SERVER}"),
        }),
    )  # fmt: skip


def _table_3() -> tuple[Step, ...]:
    note = "Table 3's 56.1 is of Mask2Former on FMA-WSSS's route (recipe fma-wsss-coco); the paper has no such row here"
    few = "judged on WeakTr's list of 1,250 training images"
    return (
        *_before(COCO),
        *_row(COCO, "baseline", "{start}", {
            "CAMs": ("", None, f"WeakTr's README reports 42.6 for its published checkpoint; {few}"),
            "pseudo masks": ("", None, few),
            "segmentation, val": ("Table 3", 44.4, "WeakTr's README reports 46.9"),
        }),
        *_stages(COCO),
        *_row(COCO, "refine", "{out}/refine/checkpoint.pth", {
            "CAMs": ("", None, f"{PUBLISHED}; {few}"),
            "pseudo masks": ("", None, few),
            "segmentation, val": ("Table 3", None, note),
        }),
    )  # fmt: skip


ABLATION = {
    "unlearned": "unlearned",
    "text": "--semples-image-weight 0",
    "image": "--semples-text-weight 0",
    "all": "",
}
"""Row of Table 5 -> options of its stage (b)."""


def _table_5() -> tuple[Step, ...]:
    note = f"CAMs of two scales at their best background score; that Table 5 is on WeakTr is our reading; {PUBLISHED}"
    papers = {
        "match": ("L_match", 67.6),
        "refine-unlearned": ("+ L_refine, prompts not learned", 67.6),
        "refine-text": ("+ L_prompt^T", 67.7),
        "refine-image": ("+ L_prompt^I", 67.9),
        "refine-all": ("+ L_prompt^T + L_prompt^I", 68.7),
    }
    rows = {row: Figure("CAMs", name, "Table 5", paper, note=note) for row, (name, paper) in papers.items()}
    baseline = Figure("CAMs", "baseline", "Table 5", None, note="WeakTr's own CAMs, which Table 5 doesn't have")
    judged = [step for row in rows for step in _cams(VOC, row, f"{{out}}/{row}/checkpoint.pth", False, rows[row])]
    return (*_before(VOC), *_cams(VOC, "baseline", "{start}", False, baseline), *_stages(VOC, ABLATION), *judged)


def _recipe(name: str, about: str, table: str, steps: tuple[Step, ...], own: dict[str, str], small: dict[str, str],
            data: str) -> Recipe:  # fmt: skip
    paths, values = {**WEAKTR_PATHS, data: PATHS[data]}, {**TRAINING, **own}
    used = {name: text for name, text in WEAKTR_HELP.items() if name in {**paths, **values}}
    return Recipe(name, "weaktr", about, table, steps, paths, values, {**MINIATURE, **small}, used)


RECIPES = (
    _recipe("weaktr-voc", "WeakTr and SemPLeS on VOC, to WeakTr's segmentation network", "Table 4", _table_4(),
            {"batch": "64", "start": _start(VOC), "threshold": "43", **SECOND}, MINIATURE_SECOND, "voc"),
    _recipe("weaktr-coco", "WeakTr and SemPLeS on COCO, to WeakTr's segmentation network", "Table 3", _table_3(),
            {"batch": "32", "start": _start(COCO), "coco_masks": "{coco}/class_labels", "threshold": "42",
             **SECOND}, {**MINIATURE_SECOND, "coco_masks": f"{SMALL}/masks"}, "coco"),
    _recipe("weaktr-voc-ablation", "which losses give what, on VOC's CAMs", "Table 5", _table_5(),
            {"batch": "64", "start": _start(VOC)}, {}, "voc"),
)  # fmt: skip
