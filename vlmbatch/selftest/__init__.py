"""Test of an engine on this machine: known pictures, asked about in every way that a run does, with
the answers judged and compared with the torch engine's on the CPU in float32.

``scenes.py`` draws, ``asking.py`` asks, ``trial.py`` is the order of the questions, ``checks.py``
judges the answers, ``report.py`` writes them down. ``one_sequence.py`` times int8 beside bfloat16.
"""
