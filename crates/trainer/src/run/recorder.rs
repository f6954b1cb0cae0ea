//! Where a run's measurements go: metrics.jsonl, TensorBoard, and the terminal.

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, IsTerminal, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use image::RgbImage;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::{Map, Value, json};
use tensorboard_rs::summary_writer::SummaryWriter;

use crate::distill::Measurements;
use crate::files::write_atomically;
use crate::terminal::say;

/// Writes measurements.
pub struct Recorder {
    metrics: File,
    events: Events,
    bar: ProgressBar,
    plain: bool,
    last_line: Instant,
}

/// TensorBoard's events. Its library panics where a file cannot be written: here that is an error.
struct Events(Option<SummaryWriter>);

impl Events {
    fn new(dir: &Path) -> Events {
        Events(Some(SummaryWriter::new(dir)))
    }

    fn tell(&mut self, what: impl FnOnce(&mut SummaryWriter)) -> Result<()> {
        let Some(writer) = &mut self.0 else { bail!("TensorBoard's events cannot be written") };
        if catch_unwind(AssertUnwindSafe(|| what(writer))).is_ok() {
            return Ok(());
        }
        // Its destructor would panic again.
        std::mem::forget(self.0.take());
        bail!("TensorBoard's events cannot be written: is the disk full?")
    }
}

/// A step's line of metrics.jsonl.
fn values(m: &Measurements) -> Map<String, Value> {
    let mut values = Map::from_iter([("epoch".to_string(), json!(m.epoch)), ("lr".into(), json!(m.lr))]);
    values.extend(m.terms.iter().map(|(name, value)| (name.to_string(), json!(value))));
    values.insert("total".into(), json!(m.total));
    let norms = m.gradient_norms.iter().flatten();
    values.extend(norms.map(|(name, value)| (format!("gradient_norm_{name}"), json!(value))));
    values.insert("images_per_second".into(), json!(m.images_per_second));
    values
}

/// Time between two plain lines inside an epoch.
const QUIET: Duration = Duration::from_secs(30);

impl Recorder {
    /// Continues a run's files after step `step`; lines of later steps, written before a crash, are dropped.
    pub fn new(dir: &Path, step: usize, total: usize, quiet: bool) -> Result<Recorder> {
        let path = dir.join("metrics.jsonl");
        if path.exists() {
            let file = File::open(&path).with_context(|| format!("reading {}", path.display()))?;
            let kept = BufReader::new(file).lines().map_while(Result::ok).filter(|line| {
                let value: Option<Value> = serde_json::from_str(line).ok();
                value.and_then(|v| v["step"].as_u64()).is_some_and(|s| s as usize <= step)
            });
            let text: String = kept.map(|l| l + "\n").collect();
            write_atomically(&path, text.as_bytes())?;
        }
        super::events::cut(dir, step)?;
        let metrics = OpenOptions::new().create(true).append(true).open(&path);
        let metrics = metrics.with_context(|| format!("opening {}", path.display()))?;
        let plain = !quiet && !std::io::stderr().is_terminal();
        let bar = ProgressBar::new(total as u64).with_position(step as u64);
        bar.set_draw_target(if quiet || plain {
            ProgressDrawTarget::hidden()
        } else {
            ProgressDrawTarget::stderr_with_hz(4)
        });
        bar.set_style(ProgressStyle::with_template("{bar:16} {pos}/{len}  {msg}  ETA {eta}")?);
        bar.reset_eta();
        Ok(Recorder { metrics, events: Events::new(dir), bar, plain, last_line: Instant::now() })
    }

    /// Appends a line to metrics.jsonl and its numbers to TensorBoard under `kind/`.
    pub fn write(&mut self, kind: &str, step: usize, values: &Map<String, Value>) -> Result<()> {
        let mut line = Map::from_iter([("kind".to_string(), json!(kind)), ("step".to_string(), json!(step))]);
        line.extend(values.clone());
        writeln!(self.metrics, "{}", Value::Object(line)).context("writing metrics.jsonl")?;
        for (name, value) in values {
            if let Some(x) = value.as_f64() {
                self.events.tell(|e| e.add_scalar(&format!("{kind}/{name}"), x as f32, step))?;
            }
        }
        Ok(())
    }

    /// Moves the bar and, on logged steps, writes what was measured.
    pub fn step(&mut self, measured: &Measurements, epochs: usize) -> Result<()> {
        let Measurements { step, epoch, total, images_per_second: speed, .. } = measured;
        self.progress(*step, || format!("epoch {epoch}/{epochs}  loss {total:.4}  {speed:.0} images/s"));
        if measured.gradient_norms.is_some() {
            self.write("step", *step, &values(measured))?;
        }
        Ok(())
    }

    /// A picture for TensorBoard.
    pub fn image(&mut self, tag: &str, picture: &RgbImage, step: usize) -> Result<()> {
        let (w, h) = picture.dimensions();
        // The library says "CHW", but takes interleaved pixels and the width first.
        self.events.tell(|e| e.add_image(tag, picture.as_raw(), &[3, w as usize, h as usize], step))
    }

    /// Moves the bar; without a terminal, a line now and then.
    fn progress(&mut self, step: usize, message: impl Fn() -> String) {
        self.bar.set_position(step as u64);
        if !self.bar.is_hidden() {
            self.bar.set_message(message());
        } else if self.plain && self.last_line.elapsed() > QUIET {
            self.last_line = Instant::now();
            say(format!("step {step}/{}  {}", self.bar.length().unwrap_or(0), message()));
        }
    }

    /// A line that stays.
    pub fn say(&mut self, line: &str) {
        self.last_line = Instant::now();
        if self.plain {
            say(line);
        } else {
            self.bar.println(line);
        }
    }

    /// Makes sure that everything is on disk.
    pub fn flush(&mut self) -> Result<()> {
        self.events.tell(SummaryWriter::flush)?;
        self.metrics.sync_data().context("writing metrics.jsonl")
    }

    /// Removes the bar.
    pub fn finish(self) {
        self.bar.finish_and_clear();
    }
}
