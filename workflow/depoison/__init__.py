"""depoison: reproduce, cell by cell, what papers on purifying backdoored neural networks report."""

__version__ = "0.1.0"
