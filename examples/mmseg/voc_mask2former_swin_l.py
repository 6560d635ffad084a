"""Stage two on VOC 2012: Mask2Former on Swin-L, trained on pseudo masks, as in the paper's Table 2.

Its pixel decoder is mmdet's and wants mmcv's compiled operators, which the extra `semples-plugin[mmseg]` does without.
"""

_find = __import__("importlib.util", fromlist=["find_spec"])  # mmengine takes an import for a config of its new style
if _find.find_spec("mmdet") is None:
    raise ImportError("Mask2Former's decoder is mmdet's: install mmdet, and an mmcv with compiled operators")
if _find.find_spec("mmcv._ext") is None:
    raise ImportError("Mask2Former's deformable attention is a compiled operator, and this mmcv has none (mmcv._ext)")

_base_ = ["./voc_deeplab_r101.py"]
custom_imports = {"imports": ["semples_plugin.adapters.mmseg", "mmdet.models"]}

num_classes, depths = 21, (2, 2, 18, 2)
attention = {"embed_dims": 256, "num_heads": 8, "dropout": 0.0, "batch_first": True}
decoder_attention = {"embed_dims": 256, "num_heads": 8, "attn_drop": 0.0, "proj_drop": 0.0, "batch_first": True}
positions = {"num_feats": 128, "normalize": True}
weights = {"class": 2.0, "mask": 5.0, "dice": 5.0}

model = {
    "data_preprocessor": {"test_cfg": {"size_divisor": 32}},
    "backbone": {"_delete_": True, "type": "SwinTransformer", "pretrain_img_size": 384, "embed_dims": 192,
                 "depths": depths, "num_heads": (6, 12, 24, 48), "window_size": 12, "drop_path_rate": 0.3,
                 "out_indices": (0, 1, 2, 3), "patch_norm": True},
    "decode_head": {
        "_delete_": True, "type": "Mask2FormerHead", "in_channels": [192, 384, 768, 1536], "strides": [4, 8, 16, 32],
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
        "loss_cls": {"type": "mmdet.CrossEntropyLoss", "use_sigmoid": False, "loss_weight": weights["class"],
                     "reduction": "mean", "class_weight": [1.0] * num_classes + [0.1]},
        "loss_mask": {"type": "mmdet.CrossEntropyLoss", "use_sigmoid": True, "loss_weight": weights["mask"],
                      "reduction": "mean"},
        "loss_dice": {"type": "mmdet.DiceLoss", "use_sigmoid": True, "activate": True, "naive_dice": True, "eps": 1.0,
                      "loss_weight": weights["dice"], "reduction": "mean"},
        "train_cfg": {
            "num_points": 12544, "oversample_ratio": 3.0, "importance_sample_ratio": 0.75,
            "sampler": {"type": "mmdet.MaskPseudoSampler"},
            "assigner": {"type": "mmdet.HungarianAssigner", "match_costs": [
                {"type": "mmdet.ClassificationCost", "weight": weights["class"]},
                {"type": "mmdet.CrossEntropyLossCost", "weight": weights["mask"], "use_sigmoid": True},
                {"type": "mmdet.DiceCost", "weight": weights["dice"], "pred_act": True, "eps": 1.0}]},
        },
    },
    "auxiliary_head": None,
}  # fmt: skip
slow = {"lr_mult": 0.1, "decay_mult": 1.0}
plain = {"lr_mult": 1.0, "decay_mult": 0.0}
optim_wrapper = {
    "_delete_": True, "type": "OptimWrapper", "clip_grad": {"max_norm": 0.01, "norm_type": 2},
    "optimizer": {"type": "AdamW", "lr": 1e-4, "weight_decay": 0.05},
    "paramwise_cfg": {"norm_decay_mult": 0.0, "custom_keys": {
        "backbone": slow, "query_embed": plain, "query_feat": plain, "level_embed": plain}},
}  # fmt: skip
