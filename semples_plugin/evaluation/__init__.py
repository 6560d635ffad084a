"""How good CAMs are: IoU at all thresholds, of folders, and whether one beats another."""
