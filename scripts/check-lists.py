#!/usr/bin/env python3
"""Adds a dummy interpreter, loss term, optimizer, model, data set, profile and command to a copy of the sources, each in a new file
and at the places that CONTRIBUTING.md names, builds the program, and looks for all of them in it.

    check-lists.py [TARGET_DIR]

Needs: cargo. TARGET_DIR (default: target, as scripts/test.sh leaves it) keeps what was built.
"""
import json
import pathlib
import shutil
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
TRAINER = "crates/trainer/src"

# file to write: contents
FILES = {
    "crates/cams/src/methods/dummy.rs": """
use crate::ranges::Ranges;
use crate::{Differentiable, Explanation, Forward, Interpreter, Estimator};
use candle_core::{Result, Tensor};
use serde::{Deserialize, Serialize};

/// The mean over channels.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Dummy {}

impl Dummy {
    /// It has no numbers.
    pub const RANGES: Ranges = &[];
}

impl Interpreter for Dummy {
    fn signed(&self, forward: &Forward, _: &Tensor) -> Result<Explanation> {
        Explanation::new(forward.features.mean(1)?, Estimator::Exact, 0)
    }
    fn differentiable(&self) -> Differentiable {
        Differentiable::ClosedForm
    }
}
""",
    f"{TRAINER}/distill/terms/dummy.rs": """
use anyhow::Result;
use cams::ranges::{Ranges, from};
use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use super::{Inputs, Term};

/// The logits' size.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Dummy {
    /// An option.
    pub gain: f64,
}

impl Dummy {
    pub(super) const ABOUT: &str = "a dummy";
    pub(super) const RANGES: Ranges = &[("gain", from(0.0, 1.0))];
}

impl Term for Dummy {
    fn needs_teacher(&self) -> bool {
        false
    }
    fn value(&self, inputs: &Inputs) -> Result<Tensor> {
        Ok(inputs.pass.logits.sqr()?.mean_all()?)
    }
}
""",
    f"{TRAINER}/distill/optimizers/dummy.rs": """
use anyhow::Result;
use candle_core::{Tensor, Var};

use super::{Optimizer, Slots};

pub struct Dummy(pub Vec<Var>);

impl Optimizer for Dummy {
    fn step(&mut self, gradient: &[Tensor], lr: f64) -> Result<()> {
        for (v, g) in self.0.iter().zip(gradient) {
            v.set(&(v.as_tensor() - (g * lr)?)?.detach())?;
        }
        Ok(())
    }
    fn reset(&mut self) -> Result<()> {
        Ok(())
    }
    fn slots(&self) -> Result<Slots> {
        Ok(Slots::new())
    }
    fn restore(&mut self, _: &Slots) -> Result<()> {
        Ok(())
    }
}
""",
    f"{TRAINER}/models/dummy.rs": """
use kernels::Value;
use kernels::graph::Graph;

use super::{Classifier, Family, OF_CIFAR10};

pub(super) const DUMMY: Family = Family {
    pattern: "dummy",
    about: "one convolution",
    example: "dummy",
    options: &[],
    published: OF_CIFAR10,
    build: |name, input, _| {
        (name == "dummy").then(|| {
            let mut g = Graph::new(input);
            let x = g.conv("conv1", Value(0), 4, 3, 1, 1);
            g.relu(x);
            g.cut("last");
            Ok(g)
        })
    },
    classifier: Classifier::pooled,
};
""",
    f"{TRAINER}/data/dummy.rs": """
use super::{DataSet, Images};

pub(super) const DUMMY: DataSet = DataSet {
    name: "dummy",
    about: "sixteen grey images",
    load: |_, _| Images::new(vec![128; 16 * 3 * 32 * 32], (0..16).map(|i| i % 2).collect(), [3, 32, 32], 2),
    statistics: Some([[0.5; 3], [0.25; 3]]),
    part_of: None,
    fetch: None,
    make: None,
};
""",
    f"{TRAINER}/cli/dummy.rs": """
use anyhow::Result;
use clap::Args;
use serde_json::json;

use super::Done;

/// Arguments of `trainer dummy`.
#[derive(Args)]
pub(super) struct DummyArgs {}

pub(super) fn run(_: &DummyArgs) -> Result<Done> {
    Ok(Done::Result("dummy\\n".into(), json!({})))
}
""",
    "crates/trainer/profiles/dummy.toml": "[train]\nepochs = 1\nbatch = 4\n",
}

# existing file: (what stands there, what is put in front of it)
LINES = {
    "crates/cams/src/methods.rs": [
        ("mod eigen_cam;", "mod dummy;\n"),
        ("pub use eigen_cam::", "pub use dummy::Dummy;\n"),
        ("    mask: Mask,", "    dummy: Dummy,\n"),
    ],
    f"{TRAINER}/distill/terms.rs": [
        ("mod explanation;", "mod dummy;\n"),
        ("pub use explanation::", "pub use dummy::Dummy;\n"),
        ("        dist: Dist = 0.0;", "        dummy: Dummy = 0.0;\n"),
    ],
    f"{TRAINER}/distill/optimizers.rs": [
        ("mod sgd;", "mod dummy;\n"),
        (
            '    Entry {\n        name: "adamw"',
            '    Entry { name: "dummy", about: "a dummy", keys: &[], build: |_, v| Ok(Box::new(dummy::Dummy(v.to_vec()))) },\n',
        ),
    ],
    f"{TRAINER}/models.rs": [("mod layers;", "mod dummy;\n"), ("resnet_imagenet::RESNET", "dummy::DUMMY, ")],
    f"{TRAINER}/data.rs": [("pub mod fetch;", "mod dummy;\n"), ("    planted::PLANTED,", "    dummy::DUMMY,\n")],
    f"{TRAINER}/cli.rs": [
        ("mod eval;", "mod dummy;\n"),
        ("    /// Measures the error of a model.", "    /// A dummy.\n    Dummy(dummy::DummyArgs),\n"),
        ("        Command::Eval(args)", "        Command::Dummy(args) => dummy::run(&args),\n"),
    ],
    f"{TRAINER}/config/profiles.rs": [
        ('    ("smoke",', '    ("dummy", include_str!("../../profiles/dummy.toml")),\n'),
    ],
}


def main():
    target = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "target").resolve()
    with tempfile.TemporaryDirectory() as place:
        copy = pathlib.Path(place) / "copy"
        copy.mkdir()
        for name in ("Cargo.toml", "Cargo.lock", "crates", "tests", "checkpoints"):
            source = ROOT / name
            (shutil.copytree if source.is_dir() else shutil.copy)(source, copy / name)
        for name, text in FILES.items():
            (copy / name).write_text(text.lstrip())
        for name, changes in LINES.items():
            text = (copy / name).read_text()
            for mark, line in changes:
                assert text.count(mark) == 1, f"{name}: {mark!r} stands there {text.count(mark)} times"
                text = text.replace(mark, line + mark)
            (copy / name).write_text(text)
        # The project's own code without optimisation: it is built for this alone; the dependencies are there already.
        # Of the whole workspace and with an example, so that they are those that the tests were built with.
        chosen = ["--workspace", "--bin", "trainer", "--example", "own_model"]
        plain = ["cargo", "build", "--release", *chosen, "--quiet", "--target-dir", target]
        quick = [f"--config=profile.release.package.{name}.opt-level=0" for name in ("kernels", "cams", "trainer")]
        subprocess.run([*plain, *quick], cwd=copy, check=True)
        program = copy / "trainer"
        shutil.copy(target / "release/trainer", program)
        # The project's own program takes its place again.
        subprocess.run(plain, cwd=ROOT, check=True)

        def call(*arguments):
            out = subprocess.run([program, *arguments, "--json"], cwd=copy, check=True, capture_output=True, text=True).stdout
            return json.loads(out.splitlines()[-1])

        listed = {(i["kind"], i["name"]) for i in call("list")["items"]}
        for kind in ("methods", "models", "datasets", "losses", "optimizers"):
            assert (kind, "dummy") in listed, f"trainer list does not show the dummy of {kind}"
        call("dummy")
        report = call(
            "train", write(copy), "--run", copy / "run", "--quiet", "--set", "loss.weights.dummy=0.5", "--set", "loss.dummy.gain=0.5"
        )
        assert report["profile"] == "dummy" and report["epochs"] == 1, report
        last = json.loads((copy / "run/metrics.jsonl").read_text().splitlines()[-1])
        assert last["dummy"] > 0.0, last
        maps = call("explain", "--checkpoint", copy / "run/last.safetensors", "--images", "dummy:test[0..2]", "--method", "dummy")
        assert maps["rows"][0]["method"] == "dummy", maps
    print(f"a dummy of {len(FILES)} kinds was added with {sum(len(c) for c in LINES.values())} lines in {len(LINES)} files, and used")


def write(copy):
    config = copy / "dummy.toml"
    config.write_text(
        'data = { name = "dummy" }\nstudent = { arch = "dummy" }\ntrain = { profile = "dummy" }\noptim = { name = "dummy", lr = 0.1 }\n'
    )
    return config


if __name__ == "__main__":
    main()
