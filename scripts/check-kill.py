#!/usr/bin/env python3
"""Kills training runs with SIGKILL at random moments, lets them go on, and compares what comes of them with an undisturbed run.

    check-kill.py [COUNT [OUT.json]]

COUNT runs (200 if not given), each killed once at a moment drawn evenly over the undisturbed run's length and then resumed; one that
was done before its moment is begun anew with another, so that all of them are killed. The same
bytes are asked of last.safetensors and ema.safetensors, the same numbers (times and speeds aside) of metrics.jsonl and report.json.

Needs: target/release/trainer.
"""
import json
import pathlib
import random
import shutil
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
CONFIG = """
data = { name = "cifar10-mini", limit = 96, validation = 200 }
student = { arch = "resnet8" }
teacher = { checkpoint = "checkpoints/wrn-16-2-cifar10.safetensors" }
train = { epochs = 3, batch = 16, save_every = 2, log_every = 1, ema = 0.9, clip = 2.0 }
[loss]
interpreter = "shap_cam"
distance = "at_l2"
weights = { ce = 0.3, kd = 0.7, explanation = 10.0, attention = 10.0 }
"""
TIMES = {"seconds", "images_per_second", "run", "threads"}


def command(config, run):
    # A copy: whoever builds meanwhile does not change what is tested.
    return [config.parent / "trainer", "train", config, "--run", run, "--resume", "--quiet", "--threads", "1"]


def outcome(run):
    files = {name: (run / name).read_bytes() for name in ("last.safetensors", "ema.safetensors", "best.safetensors")}
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    records = lines + [json.loads((run / "report.json").read_text())]
    return files, [{k: v for k, v in record.items() if k not in TIMES} for record in records]


def main():
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 200
    chance = random.Random(0)
    with tempfile.TemporaryDirectory() as work:
        work = pathlib.Path(work)
        config = work / "run.toml"
        config.write_text(CONFIG)
        shutil.copy(ROOT / "target/release/trainer", work)
        began = time.monotonic()
        subprocess.run(command(config, work / "whole"), check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
        length = time.monotonic() - began
        whole, same, killed = outcome(work / "whole"), 0, 0
        for trial in range(count):
            run = work / f"run{trial}"
            while True:
                process = subprocess.Popen(command(config, run), cwd=ROOT, stdout=subprocess.DEVNULL)
                began = time.monotonic()
                try:
                    process.wait(chance.uniform(0, length))
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
                    killed += 1
                    break
                # The machine has become faster than it was when the length was measured.
                length = min(length, time.monotonic() - began)
                shutil.rmtree(run, ignore_errors=True)
            subprocess.run(command(config, run), check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
            if outcome(run) == whole:
                same += 1
            else:
                print(f"trial {trial}: another result in {run}")
    result = {
        "runs": count, "killed_before_their_end": killed, "same_bytes": same, "seconds_of_a_run": round(length, 2),
        "commit": whole[1][-1]["commit"], "machine": whole[1][-1]["machine"],
    }
    print(json.dumps(result, indent=1))
    if len(sys.argv) > 2:
        pathlib.Path(sys.argv[2]).write_text(json.dumps(result, indent=1) + "\n")
    sys.exit(same != count)


if __name__ == "__main__":
    main()
