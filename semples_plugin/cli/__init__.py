"""The command line: `semples COMMAND`; a file per command, in which its flags and its body stand together."""
