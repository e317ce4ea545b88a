"""A worker that includes this gives what is at its end all the time that a test may take."""

from workers import interrupts, stopping

interrupts.HOLD_S = 50.0
stopping.PATIENCE_S = 120.0
stopping.HAND_BACK_S = 60.0
