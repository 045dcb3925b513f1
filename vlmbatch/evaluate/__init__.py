"""Score the answers of an OUTPUT against a file of right answers, with confidence intervals.

``reference.py`` reads the right answers, ``ids.py`` and ``join.py`` bring the two together,
``measures.py`` scores a row (on the texts of ``texts.py``), ``bootstrap.py`` resamples,
``tally.py`` adds up by task and question, ``score.py`` does it all for two files, ``report.py``
prints it in words and as JSON.
"""
