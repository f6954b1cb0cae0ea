#!/usr/bin/env python3
"""Kills training runs, or a whole grid, with SIGKILL at random moments, lets them go on, and compares what comes of them with what is
undisturbed.

    check-kill.py [COUNT [OUT.json]]
    check-kill.py grid [COUNT [OUT.json]]

Of a grid the launcher and its runs are killed together COUNT times (20 if not given), each time after a random part of twice the
undisturbed grid's length over COUNT, so that the filling of the teacher's cache and most runs are hit; then its table (times aside) and
every run's weights must be those of the undisturbed grid, which has a cache of its own.

Without the word COUNT runs (200 if not given), each killed once at a moment drawn evenly over the undisturbed run's length and then resumed; one that
was done before its moment is begun anew with another, so that all of them are killed. The same
bytes are asked of last.safetensors and ema.safetensors, the same numbers (times and speeds aside) of metrics.jsonl and report.json.

Needs: target/release/trainer.
"""
import json
import os
import pathlib
import random
import shutil
import signal
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


GRID = """
profile = "smoke"
[config]
data = { name = "cifar10-mini", limit = 96, views = 2 }
student = { arch = "resnet8" }
teacher = { checkpoint = "checkpoints/wrn-16-2-cifar10.safetensors", cache = "CACHE" }
train = { epochs = 3, batch = 16, save_every = 2, log_every = 1 }
[[block]]
name = "a"
seeds = "0..2"
[block.axes.row]
ce = { loss = { weights = { ce = 1.0 } } }
kd = { loss = { weights = { ce = 0.1, kd = 0.9 } } }
[block.axes.column]
none = {}
pp = { loss = { weights = { explanation = 0.01 }, interpreter = "grad_cam_pp" } }
"""


def ablate(work, name):
    """Starts the grid in a process group of its own."""
    config = work / f"{name}.toml"
    config.write_text(GRID.replace("CACHE", str(work / f"{name}-cache")))
    arguments = [work / "trainer", "ablate", config, "--out", work / name, "--jobs", "2", "--quiet"]
    return subprocess.Popen(arguments, cwd=ROOT, stdout=subprocess.DEVNULL, start_new_session=True)


def outcome_of_grid(work, name):
    told = subprocess.run([work / "trainer", "table", work / name, "--format", "json"], check=True, stdout=subprocess.PIPE)
    weights = sorted((work / name).glob("*/*/s*/last.safetensors"))
    return json.loads(told.stdout), {str(file.relative_to(work / name)): file.read_bytes() for file in weights}


def grid(count):
    chance = random.Random(0)
    with tempfile.TemporaryDirectory() as work:
        work = pathlib.Path(work)
        shutil.copy(ROOT / "target/release/trainer", work)
        began = time.monotonic()
        if ablate(work, "whole").wait() != 0:
            sys.exit("the undisturbed grid has failed")
        length, kills, starts = time.monotonic() - began, 0, 0
        while True:
            process, left = ablate(work, "killed"), count - kills
            starts += 1
            try:
                process.wait(chance.uniform(0, 2 * length / count) if left > 0 else None)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                kills += 1
                continue
            if process.returncode != 0:
                sys.exit(f"the grid has failed after {kills} kills")
            break
        done = sorted(json.loads(line)["cell"] for line in (work / "killed/ledger.jsonl").read_text().splitlines()
                      if json.loads(line)["event"] == "done")
        whole, killed = outcome_of_grid(work, "whole"), outcome_of_grid(work, "killed")
        report = json.loads(next((work / "whole").glob("*/*/s0/report.json")).read_text())
    return {
        "runs": len(whole[1]), "kills": kills, "starts": starts, "same_table": whole[0] == killed[0],
        "same_weights": whole[1] == killed[1], "done_twice": len(done) - len(set(done)), "seconds_of_the_grid": round(length, 2),
        "commit": report["commit"], "machine": report["machine"],
    }


def tell(result, arguments):
    print(json.dumps(result, indent=1))
    if len(arguments) > 1:
        pathlib.Path(arguments[1]).write_text(json.dumps(result, indent=1) + "\n")


def main():
    if sys.argv[1:2] == ["grid"]:
        arguments = sys.argv[2:]
        result = grid(int(arguments[0]) if arguments else 20)
        tell(result, arguments)
        whole = result["same_table"] and result["same_weights"] and result["done_twice"] == 0
        sys.exit(not (whole and result["kills"] == result["starts"] - 1 > 0))
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
    tell(result, sys.argv[1:])
    sys.exit(same != count)


if __name__ == "__main__":
    main()
