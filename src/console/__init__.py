"""The terminal: flags, messages, tables, progress, child processes, and the environment of a command."""
