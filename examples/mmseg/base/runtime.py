"""40,000 iterations of stage two, with mmsegmentation's hooks. A start, not the paper's, which doesn't say."""

default_scope = "mmseg"

train_cfg = {"type": "IterBasedTrainLoop", "max_iters": 40000, "val_interval": 4000}
val_cfg, test_cfg = {"type": "ValLoop"}, {"type": "TestLoop"}
default_hooks = {
    "timer": {"type": "IterTimerHook"},
    "logger": {"type": "LoggerHook", "interval": 50, "log_metric_by_epoch": False},
    "param_scheduler": {"type": "ParamSchedulerHook"},
    "checkpoint": {"type": "CheckpointHook", "by_epoch": False, "interval": 4000, "max_keep_ckpts": 2},
    "sampler_seed": {"type": "DistSamplerSeedHook"},
}
visualizer = {"type": "SegLocalVisualizer", "vis_backends": [{"type": "LocalVisBackend"}], "name": "visualizer"}
env_cfg = {"cudnn_benchmark": True, "dist_cfg": {"backend": "nccl"}}
log_processor = {"by_epoch": False}
log_level = "INFO"
randomness = {"seed": 0}
