"""Pictures scaled, and several put into one."""

from collections.abc import Sequence

from PIL import Image


def scaled(image: Image.Image, longest: int) -> tuple[Image.Image, float]:
    """Return the image with its longest side scaled to ``longest`` pixels, and the factor."""
    factor = longest / max(image.size)
    size = (max(1, round(image.width * factor)), max(1, round(image.height * factor)))
    return image.resize(size, Image.Resampling.BICUBIC), factor


def image_grid(images: Sequence[Image.Image], columns: int, gap: int = 6) -> Image.Image:
    """Arrange pictures side by side in rows, each centred in a cell of the largest size."""
    if not images:
        raise ValueError("image_grid needs at least one image")
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    width = max(image.width for image in images)
    height = max(image.height for image in images)
    grid = Image.new(
        "RGB", (columns * (width + gap) + gap, rows * (height + gap) + gap), (255, 255, 255)
    )
    for index, image in enumerate(images):
        row, column = divmod(index, columns)
        x = gap + column * (width + gap) + (width - image.width) // 2
        y = gap + row * (height + gap) + (height - image.height) // 2
        grid.paste(image, (x, y))
    return grid
