"""The judging wing: CAMs against masks, and pictures of them."""
