"""The HTML report: one file with all tables and figures of a track, down to how each number came about."""
