"""Why a command about files of jobs ends without having done it."""

from typing import Final

REFUSED: Final = 1
#: The file, or the plane, could not be read at all.
WRONG: Final = 2


class Refused(Exception):
    """The lines to tell, and the exit status."""

    def __init__(self, *lines: str, status: int = REFUSED) -> None:
        super().__init__("\n".join(lines))
        self.lines = lines
        self.status = status


def one_line(text: object) -> str:
    """One line without anything that a terminal would obey."""
    return "".join(char if char.isprintable() else " " for char in str(text))
