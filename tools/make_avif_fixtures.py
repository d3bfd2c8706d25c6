"""Writes the AVIF fixtures of crates/image-file and, except for `tiles`, a PNG file with the pixels that Pillow decodes from each.

    pip install pillow==13.0.0
    python tools/make_avif_fixtures.py crates/image-file/tests/avif

Pillow 13.0.0 bundles libavif 1.4.2. Some files require avifenc and avifdec from libavif (version 0.11.1 was used): files with ten and
twelve bits per channel, which Pillow converts with less precision, a cropped image, an image with the identity matrix, and a tiled image.
"""

import io
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image, ImageOps

WIDTH, HEIGHT = 23, 17


def draw_image(mode):
    """Draws smooth colours with a sharp edge. Width and height are odd, so that subsampled chroma has an extra last column and row."""
    image = Image.new(mode, (WIDTH, HEIGHT))
    for y in range(HEIGHT):
        for x in range(WIDTH):
            colour = (x * 11, y * 15, 255 - x * 7) if x + y < 20 else (200, 40 + y, 60)
            image.putpixel((x, y), colour + ((min(255, 8 * x + 4 * y),) if mode == "RGBA" else ()))
    return image


def main(folder):
    folder.mkdir(parents=True, exist_ok=True)
    turned = Image.Exif()
    turned[0x0112] = 7
    files = {
        "420": ("RGB", {"subsampling": "4:2:0"}),
        "422": ("RGB", {"subsampling": "4:2:2"}),
        "444": ("RGB", {"subsampling": "4:4:4"}),
        "limited": ("RGB", {"subsampling": "4:2:0", "range": "limited"}),
        "grey": ("RGB", {"subsampling": "4:0:0"}),
        "lossless": ("RGB", {"subsampling": "4:4:4", "quality": 100}),
        "alpha": ("RGBA", {"subsampling": "4:2:0"}),
        "premultiplied": ("RGBA", {"subsampling": "4:4:4", "alpha_premultiplied": True}),
        "turned": ("RGB", {"subsampling": "4:4:4", "exif": turned}),
    }
    for name, (mode, options) in files.items():
        draw_image(mode).save(folder / f"{name}.avif", speed=6, **{"quality": 90, **options})
    with tempfile.TemporaryDirectory() as scratch:
        source = Path(scratch) / "source.png"
        draw_image("RGB").save(source)
        for name, options in {
            "ten-bits": ["-d", "10", "-y", "420", "--cicp", "9/16/9"],
            "twelve-bits": ["-d", "12", "-y", "422"],
            "cropped": ["-y", "444", "--crop", "2,3,12,10"],
            "identity": ["-l"],
        }.items():
            subprocess.run(["avifenc", "-s", "6", *options, source, folder / f"{name}.avif"], check=True)
        draw_image("RGB").resize((128, 64)).save(source)
        subprocess.run(["avifenc", "--grid", "2x1", "--max", "60", source, folder / "tiles.avif"], check=True)
    for path in sorted(folder.glob("*.avif")):
        if path.stem == "tiles":
            continue
        image = Image.open(path)
        ImageOps.exif_transpose(image).save(path.with_suffix(".png"), exif=b"", icc_profile=None)
    for name in ["ten-bits", "twelve-bits"]:
        path = folder / f"{name}.avif"
        subprocess.run(["avifdec", "-u", "bilinear", "-d", "8", path, path.with_suffix(".png")], check=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
