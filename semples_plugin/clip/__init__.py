"""The frozen CLIP: found, loaded, encoded with."""
