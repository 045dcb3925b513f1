"""Compare the answers of two engines, number formats or models to the same questions about the same
pictures. ``comparison.py`` joins it: a process a side, then the agreement of their answers.
"""
