"""The advocate's console: one static page and the sample cases that it replays."""
