"""The stages of a training, by the names that options, configs and presets know them by; imported in no time."""

STAGES = ("match", "prompts", "refine")
"""(a), (b) and (c) of the paper."""
