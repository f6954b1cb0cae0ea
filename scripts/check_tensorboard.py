#!/usr/bin/env python3
"""Compares a run's TensorBoard events with its metrics.jsonl, number by number.

    check_tensorboard.py RUN

Needs: the package tensorboard (scripts/check-tensorboard.sh installs it).
"""
import json
import math
import pathlib
import struct
import sys

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

run = pathlib.Path(sys.argv[1])
events = EventAccumulator(str(run), size_guidance={"scalars": 0, "images": 0})
events.Reload()
compared = 0
for line in (run / "metrics.jsonl").read_text().splitlines():
    record = json.loads(line)
    for name, value in record.items():
        if name in ("kind", "step") or not isinstance(value, (int, float)):
            continue
        tag = f"{record['kind']}/{name}"
        found = [e.value for e in events.Scalars(tag) if e.step == record["step"]]
        assert len(found) == 1, f"{tag} at step {record['step']} stands {len(found)} times"
        assert math.isclose(found[0], value, rel_tol=1e-6, abs_tol=1e-12), (tag, record["step"], value, found)
        compared += 1
assert compared >= 20, f"only {compared} numbers found"
images = events.Tags()["images"]
assert images, "no pictures of maps"
for tag in images:
    png = events.Images(tag)[0].encoded_image_string
    assert png.startswith(b"\x89PNG"), tag
    size = struct.unpack(">II", png[16:24])
    assert size == (640, 480), f"{tag} is {size}; four images over two rows of maps are 640 x 480"
print(f"TensorBoard agrees on {compared} numbers and reads {len(images)} pictures: {', '.join(images)}")
