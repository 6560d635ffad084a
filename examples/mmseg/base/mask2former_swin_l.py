"""Mask2Former on Swin-L, as the paper's Table 2 has it, for 21 classes.

Its pixel decoder is mmdet's and wants mmcv's compiled operators, which the extra `semples-plugin[mmseg]` does without.
"""

_find = __import__("importlib.util", fromlist=["find_spec"])  # mmengine takes an import for a config of its new style
if _find.find_spec("mmdet") is None:
    raise ImportError("Mask2Former's decoder is mmdet's: install mmdet, and an mmcv with compiled operators")
if _find.find_spec("mmcv._ext") is None:
    raise ImportError("Mask2Former's deformable attention is a compiled operator, and this mmcv has none (mmcv._ext)")

custom_imports = {"imports": ["semples_plugin.adapters.mmseg", "mmdet.models"]}

num_classes = 21
# ImageNet-22k at 384 pixels: the checkpoint of mmsegmentation's own mask2former_swin-l-in22k-384x384-pre configs, which
# the extra's fork of it mirrors; mmsegmentation's is the same path at https://download.openmmlab.com.
pretrained = "https://mmassets.onedl.ai/mmsegmentation/v0.5/pretrain/swin/swin_large_patch4_window12_384_22k_20220412-6580f57d.pth"
attention = {"embed_dims": 256, "num_heads": 8, "dropout": 0.0, "batch_first": True}
decoder_attention = {"embed_dims": 256, "num_heads": 8, "attn_drop": 0.0, "proj_drop": 0.0, "batch_first": True}
positions = {"num_feats": 128, "normalize": True}
by_class, by_mask, by_dice = 2.0, 5.0, 5.0  # weights of the losses, and of the matching

model = {
    "type": "EncoderDecoder",
    "data_preprocessor": {"type": "SegDataPreProcessor", "mean": [123.675, 116.28, 103.53],
                          "std": [58.395, 57.12, 57.375], "bgr_to_rgb": True, "size": (512, 512),
                          "test_cfg": {"size_divisor": 32}},
    "backbone": {"type": "SwinTransformer", "pretrain_img_size": 384, "embed_dims": 192,
                 "depths": (2, 2, 18, 2), "num_heads": (6, 12, 24, 48), "window_size": 12, "drop_path_rate": 0.3,
                 "out_indices": (0, 1, 2, 3), "patch_norm": True,
                 "init_cfg": {"type": "Pretrained", "checkpoint": pretrained}},
    "decode_head": {
        "type": "Mask2FormerHead", "in_channels": [192, 384, 768, 1536], "strides": [4, 8, 16, 32],
        "feat_channels": 256, "out_channels": 256, "num_classes": num_classes, "num_queries": 100,
        "num_transformer_feat_level": 3, "align_corners": False, "enforce_decoder_input_project": False,
        "positional_encoding": positions,
        "pixel_decoder": {
            "type": "mmdet.MSDeformAttnPixelDecoder", "num_outs": 3, "norm_cfg": {"type": "GN", "num_groups": 32},
            "act_cfg": {"type": "ReLU"}, "positional_encoding": positions,
            "encoder": {"num_layers": 6, "layer_cfg": {
                "self_attn_cfg": {**attention, "num_levels": 3, "num_points": 4},
                "ffn_cfg": {"embed_dims": 256, "feedforward_channels": 1024, "num_fcs": 2,
                            "act_cfg": {"type": "ReLU", "inplace": True}}}},
        },
        "transformer_decoder": {"return_intermediate": True, "num_layers": 9, "layer_cfg": {
            "self_attn_cfg": decoder_attention, "cross_attn_cfg": decoder_attention,
            "ffn_cfg": {"embed_dims": 256, "feedforward_channels": 2048, "num_fcs": 2,
                        "act_cfg": {"type": "ReLU", "inplace": True}}}},
        "loss_cls": {"type": "mmdet.CrossEntropyLoss", "use_sigmoid": False, "loss_weight": by_class,
                     "reduction": "mean", "class_weight": [1.0] * num_classes + [0.1]},
        "loss_mask": {"type": "mmdet.CrossEntropyLoss", "use_sigmoid": True, "loss_weight": by_mask,
                      "reduction": "mean"},
        "loss_dice": {"type": "mmdet.DiceLoss", "use_sigmoid": True, "activate": True, "naive_dice": True, "eps": 1.0,
                      "loss_weight": by_dice, "reduction": "mean"},
        "train_cfg": {
            "num_points": 12544, "oversample_ratio": 3.0, "importance_sample_ratio": 0.75,
            "sampler": {"type": "mmdet.MaskPseudoSampler"},
            "assigner": {"type": "mmdet.HungarianAssigner", "match_costs": [
                {"type": "mmdet.ClassificationCost", "weight": by_class},
                {"type": "mmdet.CrossEntropyLossCost", "weight": by_mask, "use_sigmoid": True},
                {"type": "mmdet.DiceCost", "weight": by_dice, "pred_act": True, "eps": 1.0}]},
        },
    },
    "test_cfg": {"mode": "whole"},
}  # fmt: skip
tta_model = {"type": "MergedScores", "scores": "probabilities"}
slow = {"lr_mult": 0.1, "decay_mult": 1.0}
plain = {"lr_mult": 1.0, "decay_mult": 0.0}
optim_wrapper = {
    "type": "OptimWrapper", "clip_grad": {"max_norm": 0.01, "norm_type": 2},
    "optimizer": {"type": "AdamW", "lr": 1e-4, "weight_decay": 0.05},
    "paramwise_cfg": {"norm_decay_mult": 0.0, "custom_keys": {
        "backbone": slow, "query_embed": plain, "query_feat": plain, "level_embed": plain}},
}  # fmt: skip
param_scheduler = [{"type": "PolyLR", "eta_min": 0, "power": 0.9, "begin": 0, "end": 40000, "by_epoch": False}]
