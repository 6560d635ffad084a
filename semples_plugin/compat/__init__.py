"""The hosts' own scripts on today's Python and packages: `semples run`, and the corrections that it takes."""
