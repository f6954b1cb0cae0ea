#!/usr/bin/env python3
"""A finished run as one small JSON file: its configuration, final figures and curve.

    curve.py RUN > results/<name>.json
"""
import json
import pathlib
import sys
import tomllib

run = pathlib.Path(sys.argv[1])
report = json.loads((run / "report.json").read_text())
report.pop("run")
records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
curve = [{k: v for k, v in r.items() if k not in ("kind", "images_per_second")} for r in records if r["kind"] == "epoch"]
config = tomllib.loads((run / "config.toml").read_text())
print(json.dumps({"report": report, "config": config, "curve": curve}, indent=1))
