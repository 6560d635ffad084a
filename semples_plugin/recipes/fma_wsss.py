"""FMA-WSSS: the paper's Table 4 on VOC and Table 3 on COCO.

FMA-WSSS learns two contexts, one after the other: its tasks "cls" and "seg". The CAMs of each are refined by CLIP's
attention (`aff_cam`; on COCO the first context's alone) and become masks by SAM's segments (`anns_seed`). The first
masks train the second context, the second ones the segmentation network. SemPLeS joins the training of the first
context. All numbers are those of FMA-WSSS's configs and README. A seed changes the order of the images, their
augmentation and the prompts' start; the contexts start as published.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from semples_plugin.compat.needs.fma_wsss import NEEDS
from semples_plugin.recipes.common import PATHS, by_hand, checkout, data_check
from semples_plugin.recipes.fma_settings import MINIATURE, NUMBERS, help_without
from semples_plugin.recipes.recipe import Figure, Recipe, Step

(_SAM,) = (checkpoint for checkpoint in NEEDS.checkpoints if "SAM" in checkpoint.path)
ROUTE = (
    "the paper doesn't say how SemPLeS and FMA-WSSS were combined: here SemPLeS joins the training of FMA-WSSS's first "
    "context; the other route is WeakTr's CAMs with SemPLeS (recipe weaktr-voc) in FMA-WSSS's seeding, by `semples "
    "convert --to fma`, from which Table 1's figures probably are"
)
ROWS = {"baseline": "baseline", "refine": "+ SemPLeS"}
RESULTS = "experiment/semples/seed{seed}"  # FMA-WSSS writes below experiment/ of its checkout alone
INFERENCE = (
    "--cfg infer.cfg.loader.val.num_workers={workers} --cfg infer.cfg.solver.viz_cam=False "
    "--cfg infer.cfg.solver.viz_score=False"
)
QUIET = "--cfg solver.viz_cam=False --cfg solver.viz_score=False"
STANDINS = "-m semples_plugin.recipes.fma_standins"
NETWORK = "python -m semples_plugin.mmseg_configs.train {network} {network_size}"


@dataclass(frozen=True)
class _Data:
    """What tells the two data sets apart.

    Attributes:
        name: "voc" or "coco".
        folder: in `datasets/` of the checkout, for FMA-WSSS and for the segmentation network.
        masks, train: ground truth and list, in that folder, by which CAMs and masks are judged.
        val, val_list: those by which the segmentation network is judged.
        segments: where FMA-WSSS looks for SAM's.
        figures: (name, row) -> table and mIoU [%] of the paper.
    """

    name: str
    folder: str
    masks: str
    train: str
    val: str
    val_list: str
    segments: str
    figures: Mapping[tuple[str, str], tuple[str, float]]

    @property
    def own(self) -> str:
        """The folder of FMA-WSSS's configs."""
        return f"configs/{self.name.upper()}"


VOC = _Data(
    "voc", "datasets/VOC2012", "SegmentationClassAug", "ImageSets/Segmentation/train.txt",
    "SegmentationClass", "ImageSets/Segmentation/val.txt", "experiment/VOC/sams/split=train_aug/anns",
    {("CAMs", "refine"): ("Table 1", 68.7), ("pseudo masks", "refine"): ("Table 1", 78.4),
     ("Mask2Former, val", "baseline"): ("Table 4", 82.6), ("Mask2Former, val", "refine"): ("Tables 2 and 4", 83.4),
     ("Mask2Former, test", "baseline"): ("Table 4", 81.6), ("Mask2Former, test", "refine"): ("Tables 2 and 4", 82.9)},
)  # fmt: skip
COCO = _Data(
    "coco", "datasets/coco2014", "masks", "lists/train.txt", "masks", "lists/val.txt",
    "experiment/COCO/sams/train/anns",
    {("Mask2Former, val", "baseline"): ("Table 3", 55.4), ("Mask2Former, val", "refine"): ("Table 3", 56.1)},
)  # fmt: skip


def _run(script: str, config: str, *options: str) -> str:
    """A script of FMA-WSSS's with a config of its or ours, and other entries in that."""
    return f"semples run fma-wsss {{device}} {' '.join(options)} src/tasks/{script} -c {config}"


def _entries(**entries: str) -> str:
    return " ".join(f"--cfg {name.replace('__', '.')}={value}" for name, value in entries.items())


def _train(task: str, config: str, result: str, *options: str) -> str:
    """A training of a task, "cls" or "seg", which ends with CAMs."""
    numbers = _entries(
        rslt_dir=result, rand_seed="{seed}", model__ini__clip_name="{host_clip}", loader__num_workers="{workers}",
        loader__train__batch_size="{batch}", solver__max_iter=f"{{{task}_steps}}",
        solver__save_step=f"{{{task}_saved}}", sched__warm__warm_iters="{warm}",
    )  # fmt: skip
    return _run("train_coop/run.py -i 0 -e 0", config, numbers, INFERENCE, "{precision}", *options)


def _judged(data: _Data, row: str, step: str, name: str, files: str, note: str = "") -> Step:
    """CAMs or masks of the training images, by ground truth."""
    table, paper = data.figures.get((name, row), ("", None))
    folder, out = f"{{checkout}}/{data.folder}", f"{{out}}/judged/{step}"
    figure = Figure(name, ROWS[row], table, paper, f"{out}/eval.json", note=note)
    return Step(
        f"judge-{step}", f"mIoU of the {name} on training images",
        f"semples eval {{checkout}}/{files} --gt {folder}/{data.masks} --list {folder}/{data.train} "
        f"--classes {data.name} --out {out}",
        folder="{out}", needs=(f"{{checkout}}/{files}",), makes=(figure.file,), figures=(figure,),
    )  # fmt: skip


def _first_context(data: _Data, hours: float) -> tuple[Step, ...]:
    """The baseline, and SemPLeS's three stages."""
    ours = f"configs/semples/{data.name}"
    home = f"{{checkout}}/{RESULTS}"
    matched, prompts = f"{home}/match/checkpoints/final.pth", f"{home}/prompts.safetensors"
    images = f"{{checkout}}/{data.folder}/third_party/seg_cls_labels.pkl"

    def cams_of(row: str) -> tuple[str, ...]:
        """On COCO the training leaves a checkpoint for the CAMs, and CAMs of 1,250 images that aren't kept."""
        made = "infer/final/cam" if data.name == "voc" else "checkpoints/{cls_checkpoint}.pth"
        return (f"{home}/{row}/checkpoints/final.pth", f"{home}/{row}/{made}")

    def step(name: str, about: str, command: str, needs: str, makes: tuple[str, ...], times: float) -> Step:
        return Step(name, about, command, needs=(needs,), makes=makes, hours=times)

    def stage(name: str, *options: str) -> str:
        return _train("cls", f"{ours}/{name}/cfg.py", f"{RESULTS}/{name}", "{clip}", *options)

    return (
        step("baseline", "FMA-WSSS's first context by itself, and its CAMs",
             _train("cls", f"{data.own}/cls/cfg.py", f"{RESULTS}/baseline"),
             images, cams_of("baseline"), hours),
        step("match", "stage (a): the first context with segment-label matching",
             stage("match"), images, (matched,), 4 * hours),
        step("prompts", "stage (b): the background prompts", stage("prompts", "{prompt_options}"), matched,
             (prompts,), 2 * hours),
        step("refine", "stage (c): the first context with SemPLeS, and its CAMs",
             stage("refine"), prompts, cams_of("refine"), 4 * hours),
    )  # fmt: skip


def _refined(name: str, config: str, cams: str, hours: float) -> Step:
    """CAMs refined by CLIP's attention."""
    return Step(
        name, "CAMs refined by CLIP's attention",
        _run("aff_cam/run.py -P 0 -e 0 --cache_ori_cam 0", f"{config}/cfg.py", _entries(rslt_dir=f"{cams}/aff"), QUIET),
        needs=(f"{{checkout}}/{cams}/cam",), makes=(f"{{checkout}}/{cams}/aff/cam_affed",), hours=hours,
    )  # fmt: skip


def _seeds(name: str, config: str, cams: str, out: str, segments: str, hours: float) -> Step:
    """Masks of CAMs by SAM's segments."""
    return Step(
        name, "masks of SAM's segments that the CAMs choose",
        _run("anns_seed/run.py", f"{config}/cfg.py",
             _entries(rslt_dir=out, cam__dir=cams, viz__enable="False")),
        needs=(f"{{checkout}}/{cams}", f"{{checkout}}/{segments}"), makes=(f"{{checkout}}/{out}/seed",), hours=hours,
    )  # fmt: skip


def _inferred(name: str, config: str, result: str, checkpoint: str, hours: float) -> Step:
    """CAMs of all training images; on COCO the training itself makes those of 1,250 alone."""
    entries = _entries(
        rslt_dir=f"{result}/infer/best", model__resume_file=f"{result}/checkpoints/{checkpoint}.pth",
        model__ini__clip_name="{host_clip}", loader__val__num_workers="{workers}",
    )  # fmt: skip
    return Step(
        name, "CAMs of all training images",
        _run("infer_cam/run.py -e 0 -P 0 --no_cache 1", f"{config}/cfg.py", entries, QUIET),
        needs=(f"{{checkout}}/{result}/checkpoints/{checkpoint}.pth",),
        makes=(f"{{checkout}}/{result}/infer/best/cam",), hours=hours,
    )  # fmt: skip


def _network(data: _Data, row: str, masks: str, hours: float) -> tuple[Step, ...]:
    """The segmentation network, its masks of the validation images, and their mIoU."""
    root, work, name = f"{{checkout}}/{data.folder}", f"{{out}}/network-{row}", "Mask2Former, val"
    shown, judged = f"{{out}}/predicted-{row}", f"{{out}}/judged/network-{row}"
    table, paper = data.figures[name, row]
    last = "the last checkpoint; FMA-WSSS's README takes the one that is best on val, of iteration 30,000 or 90,000"
    note = f"{last}; {ROUTE}" if row == "refine" else last
    figure = Figure(name, ROWS[row], table, paper, f"{judged}/eval.json", note=note)
    return (
        Step(f"network-{row}", "the segmentation network on the second masks",
             f"{NETWORK} --data {root} --pseudo-masks {{checkout}}/{masks} --work-dir {work} {{network_steps}}",
             folder="{out}", needs=(f"{{checkout}}/{masks}",), makes=(f"{work}/last_checkpoint",), hours=hours,
             resume=(f"{work}/last_checkpoint", "--resume")),
        Step(f"test-{row}", "its masks of the validation images, at one scale",
             f"{NETWORK} --data {root} --work-dir {work} --test last --masks {shown}",
             folder="{out}", needs=(f"{work}/last_checkpoint",), makes=(shown,), hours=0.3),
        Step(f"judge-network-{row}", "mIoU of the segmentation network on val",
             f"semples eval {shown} --gt {root}/{data.val} --list {root}/{data.val_list} --classes {data.name} "
             f"--out {judged}",
             folder="{out}", needs=(shown,), makes=(figure.file,), figures=(figure,)),
    )  # fmt: skip


def _voc_row(row: str) -> tuple[Step, ...]:
    """From the first context to the segmentation network."""
    base, cls, seg = f"{RESULTS}/{row}", f"{VOC.own}/cls/infer/final", f"{VOC.own}/seg/infer/final"
    aff, second = f"{cls}/affx2,at_score,att2affx1", f"{seg}/affx2,at_cam,attx1,·5thresh"
    first, cams = f"{base}/infer/final/aff/ann", f"{base}/seg/infer/final"
    note = f"CAMs of FMA-WSSS's first context; {ROUTE}" if row == "refine" else ""
    # FMA-WSSS's own start of the second context lies in its pretrains.tar: drawn by this seed, as its name says.
    drawn = "--cfg rand_ref.rand_copy={} --cfg model.initialize_seed=机 --cfg model.ini.ctx_cfg.ctx_std=0.125"
    return (
        _judged(VOC, row, f"cams-{row}", "CAMs", f"{base}/infer/final/cam", note),
        _refined(f"aff-{row}", aff, f"{base}/infer/final", 0.2),
        _seeds(f"seeds-{row}", f"{aff}/ann,affed", f"{base}/infer/final/aff/cam_affed", first, VOC.segments, 0.5),
        Step(f"second-{row}", "FMA-WSSS's second context, on the first masks, and its CAMs",
             _train("seg", f"{VOC.own}/seg/cfg.py", f"{base}/seg",
                    _entries(dt__train__ini__ps_mask_dir=f"{first}/seed"), drawn),
             needs=(f"{{checkout}}/{first}/seed",), makes=(f"{{checkout}}/{cams}/cam",), hours=3),
        _refined(f"second-aff-{row}", second, cams, 0.2),
        _seeds(f"second-seeds-{row}", f"{second}/ann,affed", f"{cams}/aff/cam_affed", f"{cams}/aff/ann", VOC.segments,
               0.5),
        _judged(VOC, row, f"masks-{row}", "pseudo masks", f"{cams}/aff/ann/seed", note),
        *_network(VOC, row, f"{cams}/aff/ann/seed", 20),
    )  # fmt: skip


def _submission(row: str) -> Step:
    """VOC's test set, whose ground truth only the evaluation server has."""
    name, work = "Mask2Former, test", f"{{out}}/network-{row}"
    note = "from http://host.robots.ox.ac.uk:8080, to which the archive is uploaded"
    return Step(
        f"submission-{row}", "masks of VOC's test images, for the evaluation server",
        f"{NETWORK} --data {{checkout}}/{VOC.folder} --work-dir {work} --test last "
        f"--list {{voc}}/ImageSets/Segmentation/test.txt --submit {{out}}/submission-{row}",
        folder="{out}", needs=(f"{work}/last_checkpoint", "{voc}/ImageSets/Segmentation/test.txt"),
        makes=(f"{{out}}/submission-{row}",), hours=0.3, only="full",
        figures=(Figure(name, ROWS[row], *VOC.figures[name, row], note=note),),
    )  # fmt: skip


def _coco_row(row: str) -> tuple[Step, ...]:
    """From the first context to the segmentation network."""
    base, cams, cls = f"{RESULTS}/{row}", f"{RESULTS}/{row}/infer/best", f"{COCO.own}/cls/infer/6150"
    seg, second = f"{COCO.own}/seg/infer/45k", f"{RESULTS}/{row}/seg/infer/best"
    chosen = "FMA-WSSS chooses the iteration and the power of the background on ground truth of training images"
    note = f"{chosen}; {ROUTE}" if row == "refine" else chosen
    return (
        _inferred(f"cams-{row}", cls, base, "{cls_checkpoint}", 3),
        _judged(COCO, row, f"cams-{row}", "CAMs", f"{cams}/cam", note),
        _refined(f"aff-{row}", f"{cls}/aff", cams, 1.5),
        _seeds(f"seeds-{row}", f"{cls}/aff/ann", f"{cams}/aff/cam_affed", f"{cams}/aff/ann", COCO.segments, 6),
        Step(f"second-{row}", "FMA-WSSS's second context, on the first masks",
             _train("seg", f"{COCO.own}/seg/cfg.py", f"{base}/seg",
                    _entries(dt__train__ini__ps_mask_dir=f"{cams}/aff/ann/seed")),
             needs=(f"{{checkout}}/{cams}/aff/ann/seed",),
             makes=(f"{{checkout}}/{base}/seg/checkpoints/{{seg_checkpoint}}.pth",), hours=30),
        _inferred(f"second-cams-{row}", seg, f"{base}/seg", "{seg_checkpoint}", 3),
        _seeds(f"second-seeds-{row}", f"{seg}/ann", f"{second}/cam", f"{second}/ann", COCO.segments, 3),
        _judged(COCO, row, f"masks-{row}", "pseudo masks", f"{second}/ann/seed", note),
        *_network(COCO, row, f"{second}/ann/seed", 25),
    )  # fmt: skip


def _downloads(data: _Data, config: str, options: str, hours: float) -> tuple[Step, ...]:
    """CLIP and SAM, or what stands in for them."""
    images = {"voc": "JPEGImages", "coco": "images/train2014"}[data.name]
    weights, folder = f"{{checkout}}/{_SAM.path}", f"{{checkout}}/{data.folder}"
    segments = f"{{checkout}}/{data.segments}"
    return (
        by_hand("sam", "SAM's weights", weights, _SAM.source),
        Step("segments", "SAM's segments of the training images; goes on where it was",
             _run("sam_auto_seg/run.py -b 256 -w 50 -m uncompressed_rle", config, options),
             needs=(weights, folder), makes=(segments,), hours=hours, once=True, only="full"),
        Step("small-clip", "a small CLIP, untrained, in place of FMA-WSSS's ViT-B/16",
             f"semples run fma-wsss {{device}} {STANDINS} clip {{host_clip}}",
             needs=(folder,), makes=("{checkout}/{host_clip}",), once=True, only="miniature"),
        Step("superpixels", "superpixels in place of SAM's segments",
             f"python {STANDINS} segments {folder}/{images} {segments} --list {folder}/{data.train}",
             needs=(folder,), makes=(segments,), once=True, only="miniature"),
    )  # fmt: skip


_HOST = {"fma_wsss": "https://github.com/HAL-42/FMA-WSSS.git", "runs": PATHS["runs"]}
_LAYOUT = "python -m semples_plugin.recipes.fma_layout"

RECIPES = (
    Recipe(
        "fma-wsss-voc", "fma-wsss", "FMA-WSSS on PASCAL VOC 2012, with and without SemPLeS", "Table 4",
        (
            *checkout("fma-wsss"),
            Step("layout", "VOC where FMA-WSSS looks for it, by links",
                 f"{_LAYOUT} voc {{voc}} {{checkout}} {{images}}",
                 needs=("{checkout}/README.md", "{voc}/JPEGImages", "{voc}/SegmentationClassAug"),
                 makes=(f"{{checkout}}/{VOC.folder}/third_party/seg_cls_labels.pkl",), once=True, placed=True),
            data_check("fma-wsss", "voc", f"{{checkout}}/{VOC.folder}/third_party/seg_cls_labels.pkl"),
            *_downloads(VOC, "configs/semples/voc/sams/cfg.py", "", 30),
            *_first_context(VOC, 0.5),
            *(step for row in ROWS for step in _voc_row(row)),
            *map(_submission, ROWS),
        ),
        {**_HOST, "voc": PATHS["voc"]},
        {**NUMBERS, "warm": "500", "cls_steps": "1800", "cls_saved": "1000", "seg_steps": "17000", "seg_saved": "1700",
         "network": "voc_mask2former_swin_l",
         "network_steps": "--cfg-options train_cfg.max_iters=80000 param_scheduler.0.end=80000"},
        MINIATURE, help_without("coco", "coco_masks", "cls_checkpoint", "seg_checkpoint"),
    ),
    Recipe(
        "fma-wsss-coco", "fma-wsss", "FMA-WSSS on MS COCO 2014, with and without SemPLeS", "Table 3",
        (
            *checkout("fma-wsss"),
            Step("small-masks", "ground truth of a few images, from COCO's polygons",
                 f"python {STANDINS} masks {{coco}} {{coco_masks}} {{images}}",
                 makes=("{coco_masks}",), once=True, only="miniature"),
            Step("layout", "COCO where FMA-WSSS looks for it, by links",
                 f"{_LAYOUT} coco {{coco}} {{checkout}} --masks {{coco_masks}} {{images}}",
                 needs=("{checkout}/README.md", "{coco}/train2014", "{coco}/val2014", "{coco_masks}"),
                 makes=(f"{{checkout}}/{COCO.folder}/third_party/seg_cls_labels.pkl",), once=True, placed=True),
            data_check("fma-wsss", "coco", f"{{checkout}}/{COCO.folder}/third_party/seg_cls_labels.pkl"),
            *_downloads(COCO, "configs/sam_auto_seg/co,t/all/cfg.py",
                        "--cfg rslt_dir=experiment/COCO/sams/train --cfg viz.enable=False", 200),
            *_first_context(COCO, 8),
            *(step for row in ROWS for step in _coco_row(row)),
        ),
        {**_HOST, "coco": PATHS["coco"]},
        {**NUMBERS, "coco_masks": "{coco}/masks", "warm": "1000", "cls_steps": "20500", "cls_saved": "2050",
         "cls_checkpoint": "iter-6150", "seg_steps": "75000", "seg_saved": "7500", "seg_checkpoint": "iter-45000",
         "network": "coco_mask2former_swin_l",
         "network_steps": "--cfg-options train_cfg.max_iters=100000 param_scheduler.0.end=100000"},
        {**MINIATURE, "batch": "8", "coco_masks": "{shared}/masks", "cls_checkpoint": "iter-2",
         "seg_checkpoint": "iter-2", "network": "coco_deeplab_r101"},
        help_without("voc"),
    ),
)  # fmt: skip
