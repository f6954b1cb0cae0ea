#!/usr/bin/env python3
"""Makes tests/fixtures/resize.safetensors: images of known pixels, resized by Pillow (antialiased, bilinear); and
cmyk.jpg beside it: left red, right green, in the colours of printers.

Usage: make_resize.py [OUT]     Needs numpy, pillow, safetensors from PyPI. The test: tests/tests/image_sets/main.rs
"""
import sys
from pathlib import Path

import numpy as np
from PIL import Image
from safetensors.numpy import save_file

# (width, height) and the side that they become: smaller, larger, much smaller in one direction.
CASES = [((61, 47), 32), ((20, 15), 32), ((300, 41), 24), ((32, 90), 31)]


def pixels(width, height):
    """Waves and noise, as whole numbers only: the same in every language."""
    y, x, c = np.mgrid[0:height, 0:width, 0:3].astype(np.uint32)
    noise = (x * 7919 + y * 104729 + c * 1299709 + (x * y * (c + 1)) * 31) % 97
    return ((x * (c + 2) + y * 3 + noise) % 256).astype(np.uint8)


def main():
    out = sys.argv[1] if len(sys.argv) > 1 else "tests/fixtures/resize.safetensors"
    tensors = {}
    for (width, height), side in CASES:
        resized = Image.fromarray(pixels(width, height)).resize((side, side), Image.Resampling.BILINEAR)
        tensors[f"{width}x{height}"] = np.ascontiguousarray(np.asarray(resized))
    save_file(tensors, out, metadata={"pillow": Image.__version__})
    printed = np.zeros((16, 32, 4), np.uint8)
    printed[:, :16] = (0, 255, 255, 0)
    printed[:, 16:] = (255, 0, 255, 0)
    Image.fromarray(printed, "CMYK").save(Path(out).with_name("cmyk.jpg"), quality=95)
    print(f"{out}: {len(tensors)} images")


if __name__ == "__main__":
    main()
