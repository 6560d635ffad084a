"""Roads from a fresh machine to a table of the paper: every command, in order, with what it needs and makes."""
