"""Repeating tables of the papers: fits, comparisons, and what was published."""
