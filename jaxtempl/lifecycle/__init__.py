"""The life of a system: templates that come and go."""
