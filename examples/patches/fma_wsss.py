"""SemPLeS in FMA-WSSS's own training. `semples patch fma-wsss PATH` puts this file into configs/semples/voc/match,
configs/semples/voc/prompts and configs/semples/voc/refine, and into the same three of configs/semples/coco: the
folders' names are the data set and the stage. Then, in this order, in FMA-WSSS's folder,

    semples run fma-wsss src/tasks/train_coop/run.py -i 0 -e 0 -c configs/semples/voc/match/cfg.py  # prompts, refine

Nothing in it needs an edit: `--cfg KEY=VALUE` before the script sets any entry, such as semples.scale=0.5,
semples.weights.refine=0.2, rand_seed=1 or rslt_dir=experiment/semples/voc-1/match.
"""

from pathlib import Path

from alchemy_cat.py_tools import IL, Config

from semples_plugin.adapters.fma_wsss import LossItem

DATA, STAGE = Path(__file__).parts[-3:-1]  # "voc" or "coco"; (a) "match", (b) "prompts", (c) "refine"

cfg = config = Config(f"configs/{DATA.upper()}/cls/cfg.py")
cfg.rslt_dir = ...
# Grad-CAMs are gradients: in half precision theirs overflow, and GradScaler skips the steps.
cfg.amp.enabled = False
cfg.model.ini.fp32 = True

cfg.semples.preset = DATA  # what follows are the options of LossItem
cfg.semples.prompts = IL(lambda c: str(Path(c.rslt_dir).parent / "prompts.safetensors"))
cfg.semples.batches = IL(lambda c: c.dt.few_shot.epoch_len * c.loader.train.sub_iter_num, priority=10)
cfg.semples.seed = IL(lambda c: c.rand_seed)
cfg.semples.weights, cfg.semples.learning = {}, {}  # of the preset's, those to replace

semples = cfg.loss.loss_items.semples
semples.cri = IL(lambda c: LossItem(STAGE, **c.semples), priority=20)
semples.cal = lambda cri, inp, out: cri(inp.img, out.pos_cam, inp.fg_cls_lb)
semples.weights = 1.0


def start_from_matched(c):  # type: ignore[no-untyped-def]
    """FMA-WSSS copies what `rand_copy` names before it starts, and begins with a start.pth where it finds one."""
    matched = Path(c.rslt_dir).parent / "match/checkpoints/final.pth"
    if not matched.is_file():
        raise FileNotFoundError(f"stage (b) begins where (a) ended: there is no {matched}")
    return {"matched": (str(matched), str(Path(c.rslt_dir, "checkpoints/start.pth")))}


if STAGE == "prompts":  # begins with the context that (a) learned, and leaves it as it is
    cfg.rand_ref.rand_copy = IL(start_from_matched)
    cfg.opt.get_pg.ini.weight_decay = 0.0
    cfg.loss.loss_items.multi_cls.weights = 0.0
    cfg.loss.loss_items.cam_lb.weights = (0.0, 0.0)
    cfg.auger.train.ini.is_color_jitter = False
