"""What is shown to people: overlays, curves, tables, the report, the training log."""
