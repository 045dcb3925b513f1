"""How good the answers of an OUTPUT are: joined with a file of right answers, measured, and
resampled for what chance does to the figures.

``reference.py`` reads the right answers, ``join.py`` brings the two together, ``measures.py``
scores a row (on the texts of ``texts.py``), ``bootstrap.py`` resamples, ``score.py`` adds up by
task and question, ``report.py`` says it in words and in JSON.
"""
