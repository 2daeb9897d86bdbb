"""The one look of every report page."""
