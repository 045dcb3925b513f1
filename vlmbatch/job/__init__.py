"""What the user asked for."""

from __future__ import annotations

from vlmbatch.job.job import *
