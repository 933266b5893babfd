"""Figures: a kind is a module with two functions, `numbers` (the rows of the CSV) and `draw` (a picture of those rows)."""
