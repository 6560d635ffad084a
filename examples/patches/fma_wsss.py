"""SemPLeS in FMA-WSSS's own training: `semples patch fma-wsss PATH` puts this file into configs/semples/match,
configs/semples/prompts and configs/semples/refine, and the folder's name is the stage. Then, in this order,

    python src/tasks/train_coop/run.py -i 0 -e 0 -c configs/semples/match/cfg.py      # and prompts, and refine
"""

from pathlib import Path

from alchemy_cat.py_tools import IL, Config

from semples_plugin.adapters.fma_wsss import LossItem

STAGE = Path(__file__).parent.name  # (a) "match", (b) "prompts", (c) "refine"
PROMPTS = "experiment/semples/prompts.safetensors"

cfg = config = Config("configs/VOC/cls/cfg.py")  # COCO: configs/COCO/cls/cfg.py, and preset="coco" below
cfg.rslt_dir = ...
# Grad-CAMs are gradients: in half precision theirs overflow, and GradScaler skips the steps.
cfg.amp.enabled = False
cfg.model.ini.fp32 = True

semples = cfg.loss.loss_items.semples
semples.cri = IL(
    lambda c: LossItem(
        STAGE, preset="voc", prompts=PROMPTS, batches=c.dt.few_shot.epoch_len * c.loader.train.sub_iter_num
    )
)
semples.cal = lambda cri, inp, out: cri(inp.img, out.pos_cam, inp.fg_cls_lb)
semples.weights = 1.0

if STAGE == "prompts":  # begins with the context that (a) learned, and leaves it as it is
    start = "experiment/semples/{}/checkpoints/{}.pth"
    if not Path(start.format("match", "final")).is_file():
        raise FileNotFoundError(f"stage (b) begins where (a) ended: there is no {start.format('match', 'final')}")
    cfg.rand_ref.rand_copy = {"matched": (start.format("match", "final"), start.format("prompts", "start"))}
    cfg.opt.get_pg.ini.weight_decay = 0.0
    cfg.loss.loss_items.multi_cls.weights = 0.0
    cfg.loss.loss_items.cam_lb.weights = (0.0, 0.0)
    cfg.auger.train.ini.is_color_jitter = False
