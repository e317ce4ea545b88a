"""Files to upload: an album of twelve, the same for everybody."""

import os
import random
from pathlib import Path

ALBUM, FILES = "harbour", 12


def make(incoming: Path) -> None:
    """Write the files that are not there. Several processes may do so at once: each file appears whole."""
    folder = incoming / ALBUM
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(1, FILES + 1):
        path = folder / f"picture-{number:02}.ppm"
        if not path.exists():
            part = path.with_name(f".{path.name}.{os.getpid()}")
            part.write_bytes(_picture(number))
            part.replace(path)


def _picture(number: int) -> bytes:
    """A plain PPM: some noise on a slope of grey."""
    side = 80 + 8 * number
    chance = random.Random(number)  # noqa: S311
    rows = (bytes((x + y) // 2 % 256 + chance.randint(-1, 1) & 255 for x in range(side * 3)) for y in range(side))
    return b"P6 %d %d 255\n" % (side, side) + b"".join(rows)
