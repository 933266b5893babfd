"""Figures: a kind is a module with two functions, `numbers` (the rows of the CSV) and `draw` (a picture of those rows).

`PHOTOGRAPHS = True` in it keeps all colors of its pictures in HTML.
"""
