"""Plots of the analyses, as matplotlib figures that nothing has been written of yet."""
