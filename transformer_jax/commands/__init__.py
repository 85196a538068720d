"""The commands, a module each: its help, its flags, and what it does."""
