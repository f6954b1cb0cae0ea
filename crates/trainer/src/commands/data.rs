use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde_json::json;

use crate::cli::{DataCommand, Done};
use crate::data::{Source, Split, fetch, mini};
use crate::error::unknown;

/// Data sets that can be fetched and checked.
const KNOWN: [&str; 1] = ["cifar10"];

/// `trainer data`.
pub fn run(command: &DataCommand) -> Result<Done> {
    match command {
        DataCommand::Fetch { name, dir, from } => {
            let target = fetch::cifar10(&folder(name, dir)?, from.as_deref())?;
            verified(&target)
        }
        DataCommand::Verify { name, dir } => {
            let dir = folder(name, dir)?;
            let inner = dir.join("cifar-10-batches-bin");
            verified(if inner.is_dir() { &inner } else { &dir })
        }
        DataCommand::Convert { name, dir } => convert(name, dir.as_deref()),
    }
}

fn folder(name: &str, dir: &Option<PathBuf>) -> Result<PathBuf> {
    if !KNOWN.contains(&name) {
        let own = ["cifar10-mini", "planted"];
        if own.contains(&name) {
            bail!("{name} is made by the program itself: there is nothing to fetch or to check");
        }
        return Err(unknown("data set to fetch", name, &KNOWN));
    }
    Ok(dir.clone().unwrap_or_else(|| Path::new("data").join(name)))
}

fn verified(dir: &Path) -> Result<Done> {
    let files = fetch::verify(dir)?;
    let text = format!("{}: {} files, hashes as they should be\n", dir.display(), files.len());
    let names: Vec<_> = files.iter().map(|(f, _)| f).collect();
    let hashes: serde_json::Map<_, _> = files.iter().map(|(f, h)| (f.clone(), json!(h))).collect();
    Ok(Done::Result(text, json!({ "dir": dir, "files": names, "sha256": hashes })))
}

fn convert(name: &str, dir: Option<&Path>) -> Result<Done> {
    let dir = dir.map_or_else(|| Path::new("data").join(format!("{name}-png")), Path::to_path_buf);
    std::fs::create_dir_all(&dir).with_context(|| format!("creating {}", dir.display()))?;
    let mut files = Vec::new();
    if name == "cifar10-mini" {
        mini::make(&Source::parse("cifar10")?, &dir)?;
        files.extend(["train", "test"].map(|s| dir.join(format!("cifar10-mini-{s}.png"))));
    } else {
        let images = Source::parse(name)?.load(Split::Test)?;
        let [_, h, w] = images.shape;
        for i in 0..images.len() {
            let class = dir.join(format!("{:03}", images.labels[i]));
            std::fs::create_dir_all(&class).with_context(|| format!("creating {}", class.display()))?;
            let plane = images.image(i);
            let rgb = (0..3 * h * w).map(|p| plane[p % 3 * h * w + p / 3]).collect();
            let picture = image::RgbImage::from_raw(w as u32, h as u32, rgb).context("an image of impossible size")?;
            let file = class.join(format!("{i:05}.png"));
            picture.save(&file).with_context(|| format!("writing {}", file.display()))?;
            files.push(file);
        }
    }
    let hashes = files.iter().map(|f| Ok(fetch::sha256(&std::fs::read(f)?))).collect::<Result<Vec<_>>>()?;
    let text = format!("{} files in {}\n", files.len(), dir.display());
    Ok(Done::Result(text, json!({ "dir": dir, "files": files, "sha256": hashes })))
}
