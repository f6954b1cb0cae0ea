#!/usr/bin/env python3
"""Runs every DIR/NAME.onnx with ONNX Runtime and compares what it gives with DIR/NAME.safetensors.

    check_onnx.py DIR

Needs: onnx, onnxruntime, numpy. Each file must pass ONNX's own checker with shape inference, name its outputs as NAME.safetensors does,
and give them within 1e-4 of their largest value, for all images at once and for the first alone. Ends with an error if one does not,
or if there is none.
"""
import json
import struct
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime


def tensors(path):
    with open(path, "rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
        data = file.read()
    header.pop("__metadata__", None)
    return {
        name: np.frombuffer(data[slice(*entry["data_offsets"])], "<f4").reshape(entry["shape"])
        for name, entry in header.items()
    }


def main():
    files = sorted(Path(sys.argv[1]).glob("*.onnx"))
    if not files:
        sys.exit(f"no ONNX files in {sys.argv[1]}")
    failed = False
    for path in files:
        onnx.checker.check_model(str(path), full_check=True)
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        expected = tensors(path.with_suffix(".safetensors"))
        images = expected.pop("images")
        names = [output.name for output in session.get_outputs()]
        line = [f"{path.stem:<18}"]
        if set(names) != set(expected):
            sys.exit(f"{path.stem}: outputs {names}, expected {sorted(expected)}")
        for count in (len(images), 1):
            for name, value in zip(names, session.run(names, {"images": images[:count]})):
                wanted = expected[name][:count]
                if value.shape != wanted.shape:
                    sys.exit(f"{path.stem}: {name} is {value.shape}, expected {wanted.shape}")
                difference = np.abs(value - wanted).max() / np.abs(wanted).max()
                failed |= not difference < 1e-4
                line.append(f"{name} {difference:.1e}")
        print("  ".join(line))
    sys.exit("differences above 1e-4" if failed else 0)


if __name__ == "__main__":
    main()
