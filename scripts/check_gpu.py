#!/usr/bin/env python3
"""What scripts/check-gpu.sh does: tests, steps beside the CPU's and PyTorch's, a short training, resume, determinism, memory.

A part that fails is recorded and the next one begins; the exit status says whether all passed. With DEVICE=cpu in the
environment it is a rehearsal on a machine without a card: the same commands on the CPU, short, without what only a card has.
"""
import hashlib
import json
import os
import pathlib
import shutil
import signal
import struct
import subprocess
import sys
import threading
import time

HERE = pathlib.Path(__file__).resolve().parent.parent
OUT = pathlib.Path(sys.argv[1]).resolve()
TRAINER = str(HERE / "trainer")
START = [str(HERE / "start.sh")]
DEVICE = os.environ.get("DEVICE", "cuda")
REHEARSAL = DEVICE == "cpu"
DEADLINE = time.monotonic() + (3600 if REHEARSAL else 470)
REPEATS, ROUNDS = (1, 1) if REHEARSAL else (20, 3)
ENV = {**os.environ, "FIXTURES_DIR": str(HERE / "fixtures"), "PYTHON": sys.executable}
report = {"device": DEVICE, "rehearsal": REHEARSAL, "parts": {}}


def call(name, command, limit=120, env=None, check=True):
    """Runs a command into OUT/name.txt and gives its output and seconds."""
    limit = max(5, min(3600 if REHEARSAL else limit, DEADLINE - time.monotonic()))
    began = time.monotonic()
    with open(OUT / f"{name}.txt", "w") as file:
        done = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, timeout=limit, env={**ENV, **(env or {})}, cwd=HERE)
    text = (OUT / f"{name}.txt").read_text(errors="replace")
    if check and done.returncode != 0:
        raise RuntimeError(f"{name} ended with {done.returncode}: {text[-600:]}")
    return text, time.monotonic() - began


def part(name):
    """A function as a part of the report."""
    def run(f):
        if REHEARSAL and name in ("card", "memory", "beside the CPU"):
            return
        began = time.monotonic()
        try:
            found = {"passed": True, **(f() or {})}
        except Exception as e:  # whatever it is, the next part begins
            found = {"passed": False, "why": f"{type(e).__name__}: {e}"[:2000]}
        found["seconds"] = round(time.monotonic() - began, 1)
        report["parts"][name] = found
        print(("passed " if found["passed"] else "FAILED ") + name, json.dumps(found)[:300], flush=True)
        (OUT / "report.json").write_text(json.dumps(report, indent=1) + "\n")
    return run


def last_json(text):
    return json.loads([line for line in text.splitlines() if line.startswith("{")][-1])


def trainer(name, *words, **more):
    return call(name, START + [TRAINER, *map(str, words)], **more)


def tensors(path):
    """The hash of a checkpoint's numbers, without its metadata."""
    data = pathlib.Path(path).read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    return hashlib.sha256(data[8 + length:]).hexdigest()


OUT.mkdir(parents=True, exist_ok=True)
RUNS = ["once", "again", "killed", "cpu"]
for run in RUNS:
    shutil.rmtree(OUT / run, ignore_errors=True)


@part("card")
def _():
    names = "name,driver_version,memory.total,compute_cap"
    text, _ = call("card", ["nvidia-smi", f"--query-gpu={names}", "--format=csv,noheader"])
    commit = HERE / "commit"
    return {"card": text.strip(), "commit": commit.read_text().strip() if commit.exists() else None}


for test in ["device", "engines", "gradients", "trajectory"]:
    # Tolerances stand in the tests: 1e-10 of the largest value for f64, 2e-4 for f32, of the CPU's result and of PyTorch's.
    @part(f"test {test}")
    def _():
        text, _ = call(f"test-{test}", START + [str(HERE / "tests" / test), "--test-threads=1"], limit=150)
        return {"result": [line for line in text.splitlines() if line.startswith("test result")]}


TINY = ["train", "configs/quickstart.toml", "--set", "train.epochs=3", "--set", "train.log_every=1"]


def curve(run):
    """The losses of a run's epochs."""
    found = json.loads((OUT / run / "report.json").read_text())
    return found["curve"], found["train_loss"], found["images_per_second"]


@part("quickstart")
def _():
    for run in ["once", "again"]:
        trainer(run, *TINY, "--device", DEVICE, "--run", OUT / run)
    (errors, loss, speed), (others, *_) = curve("once"), curve("again")
    same = tensors(OUT / "once/last.safetensors") == tensors(OUT / "again/last.safetensors")
    found = {"error_by_epoch": errors, "train_loss": loss, "images_per_second": speed, "same_bits_twice": same}
    if not same:
        raise RuntimeError(f"two runs on one card have not the same bits: {errors} {others}")
    return found


@part("beside the CPU")
def _():
    trainer("cpu", *TINY, "--device", "cpu", "--run", OUT / "cpu")
    (card, *_), (cpu, *_) = curve("once"), curve("cpu")
    # The same images in the same order: rounding alone differs, and grows by chaos; after 3 epochs errors agree within 5 points.
    if max(abs(a - b) for a, b in zip(card, cpu)) > 5:
        raise RuntimeError(f"errors by epoch: card {card}, CPU {cpu}")
    return {"card": card, "cpu": cpu}


@part("resume")
def _():
    command = START + [TRAINER, *TINY, "--device", DEVICE, "--run", str(OUT / "killed"), "--set", "train.save_every=5"]
    child = subprocess.Popen(command, cwd=HERE, env=ENV, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    state = OUT / "killed"
    while child.poll() is None and not list(state.glob("*state*")) and time.monotonic() < DEADLINE:
        time.sleep(0.05)
    time.sleep(0.5)
    killed = child.poll() is None
    child.send_signal(signal.SIGKILL)
    child.wait()
    trainer("resumed", *command[2:], "--resume")
    same = tensors(OUT / "killed/last.safetensors") == tensors(OUT / "once/last.safetensors")
    if not same:
        raise RuntimeError("a run that was killed and resumed has not the bits of one that was not")
    return {"was_killed": killed, "same_bits": same}


@part("maps")
def _():
    images = "cifar10-mini:test[0..16]"
    places = {"cpu": "cpu", "card": DEVICE}
    for place, device in places.items():
        trainer(f"maps-{place}", "explain", "--checkpoint", "checkpoints/wrn-40-2-cifar10.safetensors", "--images", images,
                "--device", device, "--out", OUT / f"maps-{place}.safetensors", "--set", "interpreter.rise.masks=200")
    read = {}
    for place in places:
        data = (OUT / f"maps-{place}.safetensors").read_bytes()
        (length,) = struct.unpack("<Q", data[:8])
        head = json.loads(data[8:8 + length])
        read[place] = {}
        for name, entry in head.items():
            if name != "__metadata__" and entry["dtype"] == "F32":
                a, b = entry["data_offsets"]
                read[place][name] = struct.unpack(f"<{(b - a) // 4}f", data[8 + length + a:8 + length + b])
    off = {}
    for name, cpu in read["cpu"].items():
        card = read["card"].get(name)
        if card is None:
            off[name] = "missing on the card"
            continue
        largest = max(map(abs, cpu)) or 1
        off[name] = max(abs(x - y) for x, y in zip(cpu, card)) / largest
    # An activation within rounding of 0 may change sides at a ReLU; mask and the sampled estimators amplify it.
    wrong = {name: value for name, value in off.items() if not isinstance(value, float) or value > 1e-2}
    if wrong:
        raise RuntimeError(f"maps of card and CPU differ by more than 1 % of their largest value: {wrong}")
    return {"off": off}


@part("speed")
def _():
    found, modes = {}, {"f32": ["channels_last"], "bf16": ["channels_last", "compile"]}
    for dtype in ["f32", "bf16"] if REHEARSAL else ["f32", "tf32", "bf16"]:
        for _ in range(ROUNDS):
            text, _ = trainer(f"bench-{dtype}", "bench", "step", "--device", DEVICE, "--dtype", dtype, "--repeats", REPEATS, "--json")
            found.setdefault(f"ours {dtype}", []).append(last_json(text))
            for mode in modes.get(dtype, []):
                peer = [sys.executable, str(HERE / "scripts/bench_peers.py"), "--device", DEVICE, "--dtype", dtype, "--mode", mode]
                try:
                    text, _ = call(f"torch-{dtype}-{mode}", peer + ["--repeats", str(REPEATS)], limit=100)
                    found.setdefault(f"torch {dtype} {mode}", []).append(last_json(text))
                except Exception as e:  # without PyTorch, or without a compiler for it, ours are told alone
                    report["parts"].setdefault("PyTorch", {"passed": True})[f"{dtype} {mode}"] = str(e)[:300]
                    modes[dtype] = [m for m in modes[dtype] if m != mode]
    keys = ["train_ms", "kd_ms", "teacher_ms", "teacher_train_ms"]
    median = {way: {key: sorted(run[key] for run in runs)[len(runs) // 2] for key in keys} for way, runs in found.items()}
    peers = [way for way in median if way.startswith("torch bf16")]
    ratios = {key: median["ours bf16"][key] / min(median[way][key] for way in peers) for key in keys} if peers else None
    return {"median_ms": median, "bf16_over_torchs_best": ratios, "rounds": ROUNDS}


@part("memory")
def _():
    most, stop = [0], threading.Event()

    def watch():
        while not stop.wait(0.1):
            text = subprocess.run(["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"], capture_output=True, text=True).stdout
            most[0] = max(most[0], int(text.split()[0]))
    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        trainer("memory", "bench", "step", "--device", DEVICE, "--dtype", "bf16", "--repeats", 20, "--json")
    finally:
        stop.set()
        watcher.join()
    return {"most_mib_on_the_card": most[0]}


for run in RUNS:
    shutil.rmtree(OUT / run, ignore_errors=True)
report["passed"] = all(p["passed"] for p in report["parts"].values())
(OUT / "report.json").write_text(json.dumps(report, indent=1) + "\n")
outcome = "all passed" if report["passed"] else "something failed"
print(outcome + (" (a rehearsal: nothing of a card was tested)" if REHEARSAL else ""), OUT / "report.json")
sys.exit(0 if report["passed"] else 1)
