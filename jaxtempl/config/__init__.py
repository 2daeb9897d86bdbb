"""The configuration of every command: one frozen dataclass a command, filled by flags and YAML files."""
