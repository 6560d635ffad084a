"""Stage (b): background prompts learn from background features that are encoded once."""
