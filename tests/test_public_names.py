"""The public names are functions and classes, also after the packages behind them are loaded."""

from __future__ import annotations

import pydoc

import vlmbatch
import vlmbatch.read.listing
import vlmbatch.run.pipeline
import vlmbatch.write.records


def test_run_and_read_stay_functions() -> None:
    assert vlmbatch.read is vlmbatch.write.records.read
    assert "read(output: 'str" in pydoc.plain(pydoc.render_doc(vlmbatch.read))
    assert "run(job: 'Job'" in pydoc.plain(pydoc.render_doc(vlmbatch.run))
