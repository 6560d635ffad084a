"""The frozen CLIP: loading it, and encoding images, texts and prompts with it."""
