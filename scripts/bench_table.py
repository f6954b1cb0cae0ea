"""The table of scripts/bench.sh from its folder of JSON lines; with a second argument, all numbers as JSON too."""
import json
import pathlib
import platform
import statistics
import subprocess
import sys

folder, target = pathlib.Path(sys.argv[1]), sys.argv[2]
runs = {f.name: [json.loads(line) for line in f.read_text().splitlines()] for f in sorted(folder.iterdir()) if f.name not in ("errors", "last")}
for run in runs["ours-forward"]:
    run.update({row["arch"]: row["ms"] for row in run["rows"]})
rows = []


def median(name, key):
    return statistics.median(run[key] for run in runs[name])


def row(what, key, dtype):
    """Ours against the fastest of PyTorch's ways, by medians, and round by round."""
    ways = [w for w in ("nchw", "channels_last", "compile", "frozen") if f"{w}-{dtype}" in runs]
    best = min(ways, key=lambda way: median(f"{way}-{dtype}", key))
    ours, theirs = median(f"ours-{dtype}", key), median(f"{best}-{dtype}", key)
    rounds = [a[key] / b[key] for a, b in zip(runs[f"ours-{dtype}"], runs[f"{best}-{dtype}"])]
    rows.append({"work": what, "ours": ours, "pytorch": theirs, "best": best, "ratio": ours / theirs, "rounds": rounds})


for dtype in ("f32", "bf16"):
    row(f"student training step, {dtype}", "train_ms", dtype)
    row(f"KD step, live teacher, maps, {dtype}", "kd_ms", dtype)
    row(f"teacher training step, {dtype}", "teacher_train_ms", dtype)
    row(f"teacher forward, {dtype}", "teacher_ms", dtype)
    row(f"peak memory in MB, {dtype}", "peak_rss_mb", dtype)
passes = runs["ours-forward"][0]
for arch in (row["arch"] for row in passes["rows"]):
    row(f"{arch}, {passes['batch']} of {passes['side']}x{passes['side']}", arch, "forward")
first = runs["ours-f32"][0]
print(f"n = {len(runs['ours-f32'])} rounds, {first['threads']} threads, batch {first['batch']}, PyTorch {runs['nchw-f32'][0]['torch']}")
print(f"{'':34}{'ours':>9}{'PyTorch':>9}  {'its best way':14}{'ratio':>6}  rounds")
for r in rows:
    print(f"{r['work']:34}{r['ours']:9.1f}{r['pytorch']:9.1f}  {r['best']:14}{r['ratio']:6.2f}  " + " ".join(f"{x:.2f}" for x in r["rounds"]))
scaling = {}
for key in ("train_ms", "kd_ms", "teacher_train_ms", "teacher_ms"):
    speedup = statistics.median(a[key] / b[key] for a, b in zip(runs["one-thread"], runs["ours-f32"]))
    small, large = (median(f"batch-{b}", key) / b / (median("ours-f32", key) / 128) for b in (32, 512))
    scaling[key] = {"speedup": speedup, "image_at_batch_32": small, "image_at_batch_512": large}
    print(f"{key:18} {first['threads']} threads {speedup:.2f} times as fast as 1; time an image against batch 128: {small:.2f} at 32, {large:.2f} at 512")
if target:
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    cpu = next((l.split(":")[1].strip() for l in open("/proc/cpuinfo") if l.startswith("model name")), platform.processor())
    everything = {"commit": commit, "cpu": cpu, "rows": rows, "scaling": scaling, "runs": runs}
    pathlib.Path(target).write_text(json.dumps(everything, indent=1) + "\n")
