"""Why a run or a job is where it is. Pure: the facts are what one read of the database saw."""

from app.progress.why.around import Limits, Surroundings
from app.progress.why.item import CODES, Item
from app.progress.why.job import why_job
from app.progress.why.run import MOST_AHEAD, why_run

__all__ = ["CODES", "MOST_AHEAD", "Item", "Limits", "Surroundings", "why_job", "why_run"]
