"""Studies of several runs, each a command."""
