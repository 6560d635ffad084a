"""What lies on disk: class names, image names, image labels, CAMs, images and masks; no torch."""
