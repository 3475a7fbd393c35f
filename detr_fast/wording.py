"""Numbers and their nouns in what is printed."""


def counted(number: int, singular: str, plural: str | None = None) -> str:
    """Return the number with its noun: "1 image", "2,500 images"."""
    return f"{number:,} {singular if number == 1 else plural or singular + 's'}"
