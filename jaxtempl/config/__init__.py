"""The settings of every command: one frozen dataclass a command, and how flags and YAML files fill it."""
