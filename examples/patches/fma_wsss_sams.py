"""SAM's segments of VOC's training images, for FMA-WSSS's seeding: its own configs/VOC/sams/cfg.py for one of its three
splits. `semples patch fma-wsss PATH` puts this file into configs/semples/voc/sams. It wants SAM's published weights in
pretrains/SAM/sam_vit_h_4b8939.pth; images that have a file of segments already are skipped. In FMA-WSSS's folder,

    semples run fma-wsss src/tasks/sam_auto_seg/run.py -b 256 -w 50 -c configs/semples/voc/sams/cfg.py
"""

from alchemy_cat.py_tools import IL, Config
from configs.sam_auto_seg.patterns.mask_gen_ini import cfg as patterns

cfg = config = Config("configs/sam_auto_seg/base.py")
cfg.rslt_dir = "experiment/VOC/sams/split=train_aug"  # where FMA-WSSS's seeding looks for them
cfg.dt.ini.split = "train_aug"
cfg.mask_gen.ini = IL(lambda c: patterns["l2_nmsf_s1_rsw3"].branch_copy())
cfg.viz.enable = False
