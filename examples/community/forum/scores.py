"""What makes a post hot and a comment good."""

from math import sqrt


def heat(votes: int, comments: int, age_h: float) -> float:
    """The heat of a post: what it was given, less with every hour."""
    return (votes + 2 * comments) / (age_h + 2) ** 1.5


def worth(up: int, down: int) -> float:
    """The worth of a comment: the least share of people who like it, as far as its votes say (Wilson, 95 %)."""
    votes = up + down
    if votes == 0:
        return 0.0
    z = 1.96
    share = up / votes
    middle = share + z * z / (2 * votes)
    spread = z * sqrt(share * (1 - share) / votes + z * z / (4 * votes * votes))
    return (middle - spread) / (1 + z * z / votes)
