"""A worker that includes this ends a stop that hangs sooner than others do."""

from workers import stopping

stopping.PATIENCE_S = 3.0
