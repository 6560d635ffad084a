"""`semples bench`: what a step costs on this machine, beside a straightforward step with the release's pass counts."""
