"""For --with: DeepLab's ResNet-101 starts from COCO, as the baselines of the paper's Table 4 do, not from ImageNet.

mmsegmentation's DeepLab v3 of COCO-Stuff 164k has this very backbone. Like all COCO-pretrained weights it has seen the
pixel labels of COCO, VOC's classes among them: say so beside a figure. CLIMS's own figures have another network and
another file, deeplabv1_resnet101-coco.pth of github.com/kazuto1011/deeplab-pytorch, which doesn't fit this one.
"""

weights = "deeplabv3_r101-d8_512x512_4x4_320k_coco-stuff164k"
model = {
    "backbone": {"init_cfg": {
        "_delete_": True, "type": "Pretrained", "prefix": "backbone.", "checkpoint":
        f"https://mmassets.onedl.ai/mmsegmentation/v0.5/deeplabv3/{weights}/{weights}_20210709_155402-3cbca14d.pth"}},
}  # fmt: skip
