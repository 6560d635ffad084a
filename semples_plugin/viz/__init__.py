"""What people look at: overlays, curves, tables, the report, the training log."""
