"""The embedded world: a procedural data set, a tiny CLIP and a CAM network, in which the method can be watched."""
