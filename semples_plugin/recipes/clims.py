"""CLIMS on VOC: its own training beside the same with SemPLeS's learned prompts, from CAMs to DeepLabV2 (Table 4)."""

from __future__ import annotations

from pathlib import PurePosixPath

from semples_plugin.compat.needs.clims import NEEDS
from semples_plugin.recipes.common import (
    HELP,
    ON_A_CPU,
    PATHS,
    SMALL,
    VALUES,
    by_hand,
    checkout,
    data_check,
    small_voc,
)
from semples_plugin.recipes.recipe import Figure, Recipe, Step

(_PUBLISHED,) = NEEDS.data["voc"].checkpoints
_START = f"{{weights}}/{PurePosixPath(_PUBLISHED.path).name}"
BASELINE, OURS = "baseline", "+ SemPLeS"
_NETWORK = "deeplabv2_resnet101_msc"
_IMPROVED = (
    "CLIMS's pinned commit is its improved version, with 71.4 val and 71.2 test in its README; the paper's baseline is "
    "the camera-ready one, of 70.4 and 70.0"
)
_RUN = "semples run clims {device} --seed {seed} run_sample.py --num_workers {workers} --voc12_root {voc} "
_LISTS = "--train_list {train_list} --val_list {val_list} --infer_list {train_list} --cam_network net.resnet50_clims "
_DEEPLAB = "semples run clims {device} --seed {seed} segmentation/deeplabv2/main.py "

_PREPARATION = (
    Step(
        "clip",
        "a CLIP of random weights, for CLIMS and for SemPLeS",
        "python -m semples_plugin.recipes.small_clip {shared}/clip",
        "{shared}",
        makes=("{shared}/clip/openai.pt", "{shared}/clip/open_clip_config.json"),
        once=True,
        only="miniature",
    ),
    *small_voc(3, "--keys integer"),
    Step(
        "put-labels",
        "where CLIMS reads them",
        f"cp {SMALL}/cls_labels.npy voc12/cls_labels.npy",
        needs=(f"{SMALL}/cls_labels.npy", "{checkout}/README.md"),
        makes=("{checkout}/voc12/cls_labels.npy",),
        once=True,
        only="miniature",
    ),
    data_check(
        "clims",
        "voc",
        "{checkout}/README.md",
        "--folder {voc} --lists voc12/train_aug.txt={train_list} voc12/train.txt={judge_list} voc12/val.txt={val_list}",
    ),
    by_hand("start", _PUBLISHED.use, _START, _PUBLISHED.source),
    Step(
        "put-start",
        "where CLIMS reads it",
        f"install -D -m 644 {_START} {_PUBLISHED.path}",
        needs=(_START, "{checkout}/README.md"),
        makes=(f"{{checkout}}/{_PUBLISHED.path}",),
        once=True,
        only="full",
    ),
    Step(
        "train-start",
        "a baseline CAM network in place of CLIMS's published one",
        _RUN + _LISTS + "--work_space cam-baseline-voc12 --train_cam_pass True --cam_num_epoches 1 --cam_batch_size 1",
        needs=("{train_list}", "{val_list}", "{checkout}/voc12/cls_labels.npy"),
        makes=(f"{{checkout}}/{_PUBLISHED.path}",),
        once=True,
        only="miniature",
    ),
    Step(
        "voc-layout",
        "VOC with the lists under the names that DeepLabV2 reads",
        "python -m semples_plugin.recipes.voc_layout {voc} {shared}/VOC2012 --train {train_list} --val {val_list}",
        needs=("{voc}/JPEGImages", "{voc}/SegmentationClassAug", "{checkout}/README.md"),
        makes=("{shared}/VOC2012/JPEGImages", "{shared}/VOC2012/ImageSets/Segmentation/train_aug.txt"),
        once=True,
        placed=True,
    ),
    by_hand(
        "deeplab-start",
        "ResNet-101 that was trained on COCO, from which DeepLabV2 starts",
        "{deeplab_start}",
        "deeplabv1_resnet101-coco.pth of "
        "https://drive.google.com/drive/folders/1nsXWLoK1w56iC9DE5jwdcqQDX8of4DH5 (segmentation/deeplabv2/README.md)",
    ),
)

_PROMPTS = Step(
    "prompts",
    "stage (b): SemPLeS's background prompts, looked at through the baseline",
    _RUN + _LISTS + "--work_space {out}/prompts --clip {clims_clip} --cam_batch_size {batch} --train_clims_pass True "
    "--semples prompts --semples-start {out}/baseline/res50_clims.pth "
    "--semples-prompts {out}/prompts.safetensors --semples-seed {seed} {clip} {prompt_options}",
    needs=("{out}/baseline/res50_clims.pth",),
    makes=("{out}/prompts.safetensors",),
    hours=0.5,
)


def _train(name: str, row: str, more: str = "", needs: tuple[str, ...] = ()) -> Step:
    return Step(
        f"train-{name}",
        f"CLIMS's CAM network, {row}",
        _RUN + _LISTS + f"--work_space {{out}}/{name} --clip {{clims_clip}} --hyper 10,24,1,0.2 "
        f"--clims_num_epoches {{epochs}} --clims_learning_rate 0.00025 --cam_batch_size {{batch}} "
        f"--train_clims_pass True{more}",
        needs=(f"{{checkout}}/{_PUBLISHED.path}", *needs),
        makes=(f"{{out}}/{name}/res50_clims.pth",),
        hours=1.5,
    )


def _judge(name: str, row: str, what: str, folder: str, paper: float, note: str) -> Step:
    """mIoU of CAMs or pseudo masks; `paper` and `note` are the baseline's, which alone the paper's Table 1 has."""
    step, baseline = f"{what.lower().replace(' ', '-')}-{name}", row == "baseline"
    out = f"{{out}}/judged/{step}"
    figure = Figure(
        what,
        row,
        "Table 1" if baseline else "",
        paper if baseline else None,
        file=f"{out}/eval.json",
        note=note if baseline else "",
    )
    return Step(
        f"judge-{step}",
        f"{what} against the masks of VOC's train, {row}",
        f"semples eval {folder} --gt {{voc}}/SegmentationClassAug --list {{judge_list}} --out {out}",
        needs=(folder, "{voc}/SegmentationClassAug"),
        makes=(f"{out}/eval.json",),
        figures=(figure,),
    )


def _cams(name: str, row: str) -> tuple[Step, ...]:
    """CAMs of all images that the segmentation network learns from, and their mIoU."""
    folder = f"{{out}}/{name}/cam_mask"
    make = Step(
        f"make-cams-{name}",
        f"CAMs at four scales and flipped, {row}",
        _RUN + _LISTS + f"--work_space {{out}}/{name} --make_clims_pass True",
        needs=(f"{{out}}/{name}/res50_clims.pth",),
        makes=(folder,),
        hours=1.0,
    )
    note = "CLIMS's README has 58.6 for the pinned version, at a background score of 0.15"
    return make, _judge(name, row, "CAMs", folder, 57.5, note)


def _pseudo_masks(name: str, row: str) -> tuple[Step, ...]:
    """IRNet, whose random walk makes pseudo masks of the CAMs."""
    run = _RUN + _LISTS + f"--work_space {{out}}/{name} "
    labels, masks = f"{{out}}/{name}/ir_label", f"{{out}}/{name}/sem_seg"
    weights = f"{{out}}/{name}/res50_irn.pth"
    steps = (
        Step(
            f"ir-labels-{name}",
            f"confident pixels by a CRF, for IRNet, {row}",
            run + "--cam_to_ir_label_pass True",
            needs=(f"{{out}}/{name}/cam_mask",),
            makes=(labels,),
            hours=1.0,
        ),
        Step(
            f"train-irn-{name}",
            f"IRNet, {row}",
            run + "--train_irn_pass True --irn_batch_size {irn_batch} --irn_num_epoches {irn_epochs}",
            needs=(labels,),
            makes=(weights,),
            hours=0.5,
        ),
        Step(
            f"pseudo-masks-{name}",
            f"IRNet's random walk over the CAMs, {row}",
            run + "--make_sem_seg_pass True --sem_seg_bg_thres 0.2 --exp_times {walk}",
            needs=(weights, f"{{out}}/{name}/cam_mask"),
            makes=(masks,),
            hours=1.0,
        ),
    )
    note = "CLIMS's README has 74.1 for the pinned version"
    return (*steps, _judge(name, row, "pseudo masks", masks, 72.8, note))


def _deeplab(name: str, row: str, paper: float) -> tuple[Step, ...]:
    """The DeepLabV2 in CLIMS's checkout, with multi-scale inputs, then its CRF."""
    config, folder = f"{{out}}/{name}/deeplab.yaml", f"{{out}}/{name}/deeplab"
    weights = f"{folder}/models/{name}/{_NETWORK}/train_aug/checkpoint_final.pth"
    logits = f"{folder}/features/{name}/{_NETWORK}/val/logit"
    scores = f"{folder}/scores/{name}/{_NETWORK}/val"
    changes = (
        f"EXP.ID={name} EXP.OUTPUT_DIR={folder} DATASET.ROOT={{shared}}/VOC2012 "
        f"DATASET.LABEL_DIR={{out}}/{name}/sem_seg "
        "MODEL.INIT_MODEL={deeplab_start} DATALOADER.NUM_WORKERS={workers} SOLVER.ITER_MAX={deeplab_steps} "
        "SOLVER.BATCH_SIZE.TRAIN={deeplab_batch} SOLVER.ITER_SIZE={deeplab_accumulate} IMAGE.SIZE.TRAIN={deeplab_crop}"
    )

    def figure(what: str, note: str, value: float | None) -> tuple[Figure, ...]:
        return (Figure(what, row, "Table 4", value, pattern=r"mIoU: ([\d.]+)", factor=100, note=note),)

    return (
        Step(
            f"deeplab-config-{name}",
            f"DeepLabV2's config, {row}",
            f"python -m semples_plugin.recipes.yaml_config segmentation/deeplabv2/configs/voc12_coco_pretrained.yaml "
            f"{config} {changes}",
            makes=(config,),
            placed=True,
        ),
        Step(
            f"train-deeplab-{name}",
            f"DeepLabV2 on the pseudo masks, {row}",
            f"{_DEEPLAB}train --config-path {config}",
            needs=(config, f"{{out}}/{name}/sem_seg", "{shared}/VOC2012/JPEGImages"),
            makes=(weights,),
            hours=4.0,
        ),
        Step(
            f"test-deeplab-{name}",
            f"DeepLabV2 on VOC's val, {row}",
            f"{_DEEPLAB}test --config-path {config} --model-path {weights}",
            needs=(config, weights),
            makes=(logits, f"{scores}/scores_final.json"),
            hours=0.1,
            figures=figure("DeepLabV2, val, without CRF", "", None),
        ),
        Step(
            f"crf-deeplab-{name}",
            f"the same after a dense CRF, {row}",
            f"{_DEEPLAB}crf --config-path {config} --n-jobs {{workers}}",
            needs=(config, logits),
            makes=(f"{scores}/scores_crf.json",),
            hours=0.2,
            figures=figure("DeepLabV2, val", _IMPROVED, paper),
        ),
    )


def _test_server(name: str, row: str, paper: float) -> Step:
    """What only somebody with an account at VOC's server can do; nothing waits for it."""
    return Step(
        f"test-server-{name}",
        f"mIoU on VOC's test, {row}; the paper has {paper}",
        source="put VOC's test images and test.txt into VOC2012 of this recipe's folder, and in its clone of CLIMS run "
        f"`semples run clims segmentation/deeplabv2/eval.py --config_path .../{name}/deeplab.yaml --model_path "
        f".../{name}/deeplab/models/.../checkpoint_final.pth`; pack the palette PNGs that it writes to "
        f"{name}/deeplab/features/.../test/results by tar, and send them to http://host.robots.ox.ac.uk:8080",
        only="full",
    )


_REFINE = (
    " --semples refine --semples-prompts {out}/prompts.safetensors --semples-seed {seed} {clip}",
    ("{out}/prompts.safetensors",),
)

VOC = Recipe(
    name="clims-voc",
    host="clims",
    about="CLIMS and CLIMS with SemPLeS on VOC 2012, by IRNet and COCO-pretrained DeepLabV2",
    table="Table 4",
    steps=(
        *checkout("clims"),
        *_PREPARATION,
        _train("baseline", BASELINE),
        *_cams("baseline", BASELINE),
        *_pseudo_masks("baseline", BASELINE),
        *_deeplab("baseline", BASELINE, 70.4),
        _PROMPTS,
        _train("semples", OURS, *_REFINE),
        *_cams("semples", OURS),
        *_pseudo_masks("semples", OURS),
        *_deeplab("semples", OURS, 71.0),
        _test_server("baseline", BASELINE, 70.0),
        _test_server("semples", OURS, 71.5),
    ),
    paths={
        "runs": PATHS["runs"],
        "voc": PATHS["voc"],
        "clims": "https://github.com/CVI-SZU/CLIMS",
        "weights": "weights",
    },
    values={
        **VALUES,
        "clims_clip": "ViT-B/32",
        "train_list": "{checkout}/voc12/train_aug.txt",
        "judge_list": "{checkout}/voc12/train.txt",
        "val_list": "{checkout}/voc12/val.txt",
        "batch": "16",
        "epochs": "15",
        "prompt_options": "",
        "irn_batch": "32",
        "irn_epochs": "3",
        "walk": "8",
        "deeplab_start": "{weights}/deeplabv1_resnet101-coco.pth",
        "deeplab_steps": "20000",
        "deeplab_batch": "5",
        "deeplab_accumulate": "2",
        "deeplab_crop": "321",
    },
    miniature={
        **ON_A_CPU,
        "clip": "--semples-clip local-dir:{shared}/clip",
        "clims_clip": "{shared}/clip/openai.pt",
        "train_list": f"{SMALL}/lists/train.txt",
        "judge_list": f"{SMALL}/lists/train.txt",
        "val_list": f"{SMALL}/lists/val.txt",
        "batch": "1",
        "epochs": "1",
        "prompt_options": "--semples-prompt-epochs 2 --semples-prompt-length 4",
        "irn_batch": "1",
        "irn_epochs": "1",
        "walk": "0",
        # Of other names, so that nothing is loaded from it.
        "deeplab_start": _PUBLISHED.path,
        "deeplab_steps": "2",
        "deeplab_batch": "1",
        "deeplab_accumulate": "1",
        "deeplab_crop": "129",
    },
    help={
        **{name: HELP[name] for name in ("runs", "voc", *VALUES)},
        "clims": "CLIMS's repository, or a clone of it",
        "weights": "folder of the published res50_cam.pth and deeplabv1_resnet101-coco.pth",
        "clims_clip": "CLIP of CLIMS's own loss: a name or file as `clip.load` takes it, such as /weights/ViT-B-32.pt",
        "train_list": "images that all networks learn from",
        "judge_list": "images on which CAMs and pseudo masks are judged",
        "val_list": "images on which DeepLabV2 is judged",
        "batch": "images a step of CLIMS",
        "epochs": "of CLIMS",
        "prompt_options": "options of stage (b), see `semples run clims run_sample.py --help`",
        "irn_batch": "images a step of IRNet",
        "irn_epochs": "of IRNet",
        "walk": "IRNet's random walk has 2 to this power steps",
        "deeplab_start": "weights from which DeepLabV2 starts",
        "deeplab_steps": "of DeepLabV2's training",
        "deeplab_batch": "images that go through DeepLabV2 at once",
        "deeplab_accumulate": "times that, before a step of DeepLabV2",
        "deeplab_crop": "side of DeepLabV2's crops [pixels]",
    },
)

RECIPES = (VOC,)
