"""Show a picture in the terminal: coloured half blocks where there is colour, shades of ASCII elsewhere."""

import sys
from pathlib import Path

import numpy as np
from PIL import Image
from rich.color import Color
from rich.console import Console
from rich.style import Style
from rich.text import Text

SHADES = " .:-=+*#%@"


def half_blocks(picture: Image.Image) -> Text:
    """Two pixels to a character, upper and lower."""
    pixels = np.asarray(picture.convert("RGB"))
    text = Text()
    for upper_row, lower_row in zip(pixels[0::2], pixels[1::2], strict=False):
        for upper, lower in zip(upper_row, lower_row, strict=True):
            style = Style(color=Color.from_rgb(*map(int, upper)), bgcolor=Color.from_rgb(*map(int, lower)))
            text.append("▀", style=style)
        text.append("\n")
    return text


def shades(picture: Image.Image) -> Text:
    """One character to two rows of pixels."""
    grey = picture.convert("L").resize((picture.width, picture.height // 2))
    values = grey.tobytes()
    rows = (values[i : i + grey.width] for i in range(0, len(values), grey.width))
    return Text("\n".join("".join(SHADES[v * len(SHADES) // 256] for v in row) for row in rows))


def main() -> None:
    """Show the picture named on the command line, as wide as the terminal."""
    console = Console()
    original = Image.open(Path(sys.argv[1]))
    width = min(console.width, 160) if console.is_terminal else 160
    picture = original.resize((width, original.height * width // original.width), Image.Resampling.BOX)
    console.print(half_blocks(picture) if console.color_system else shades(picture), soft_wrap=True)


if __name__ == "__main__":
    main()
