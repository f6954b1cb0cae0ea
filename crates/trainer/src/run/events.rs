//! TensorBoard's event files, as far as cutting them needs to know: records in frames, each an event with a step.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use crate::files::write_atomically;

/// Drops events of later steps than `step` from the event files in `dir`, and what a killed process has left
/// half-written: a run that goes on will write those steps again, and readers would show them twice.
pub fn cut(dir: &Path, step: usize) -> Result<()> {
    let context = || format!("reading the folder {}", dir.display());
    for entry in fs::read_dir(dir).with_context(context)? {
        let path = entry.with_context(context)?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if !name.starts_with("events.out.tfevents.") {
            continue;
        }
        let bytes = fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
        let (kept, events) = keep(&bytes, step as u64);
        if events == 0 {
            fs::remove_file(&path).with_context(|| format!("removing {}", path.display()))?;
        } else if kept.len() < bytes.len() {
            write_atomically(&path, &kept)?;
        }
    }
    Ok(())
}

/// The records up to `step`, and how many of them have one.
fn keep(bytes: &[u8], step: u64) -> (Vec<u8>, usize) {
    // Length (8 bytes), its checksum (4), the event, its checksum (4).
    const HEAD: usize = 12;
    const TAIL: usize = 4;
    let (mut kept, mut events, mut rest) = (Vec::with_capacity(bytes.len()), 0, bytes);
    while let Some(length) = rest.first_chunk::<8>().map(|l| u64::from_le_bytes(*l)) {
        let frame = usize::try_from(length).ok().and_then(|l| l.checked_add(HEAD + TAIL));
        let Some((record, more)) = frame.and_then(|frame| rest.split_at_checked(frame)) else { break };
        match step_of(&record[HEAD..record.len() - TAIL]) {
            Some(of) if of > step => {}
            of => {
                events += usize::from(of.is_some());
                kept.extend_from_slice(record);
            }
        }
        rest = more;
    }
    (kept, events)
}

/// The step of an event (field 2 of the message), if it has one: a file's first says its version instead.
fn step_of(mut event: &[u8]) -> Option<u64> {
    const STEP: u64 = 2;
    loop {
        let tag = varint(&mut event)?;
        let (field, kind) = (tag >> 3, tag & 7);
        let skipped = match kind {
            0 => {
                let value = varint(&mut event)?;
                if field == STEP {
                    return Some(value);
                }
                0
            }
            1 => 8,
            2 => usize::try_from(varint(&mut event)?).ok()?,
            5 => 4,
            _ => return None,
        };
        event = event.get(skipped..)?;
    }
}

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn later_steps_and_halves_are_cut() -> Result<()> {
        let dir = tempfile::tempdir()?;
        let mut writer = tensorboard_rs::summary_writer::SummaryWriter::new(dir.path());
        for step in [1, 5, 300, 7] {
            writer.add_scalar("a/b", step as f32, step);
        }
        writer.flush();
        drop(writer);
        let file = fs::read_dir(dir.path())?.next().context("a file")??.path();
        let bytes = fs::read(&file)?;
        // A step is there if keeping up to it keeps more than keeping up to the one before.
        let steps = |bytes: &[u8]| -> Vec<u64> {
            (1..400).filter(|step| keep(bytes, *step).1 > keep(bytes, step - 1).1).collect()
        };
        assert_eq!(steps(&bytes), [1, 5, 7, 300]);
        fs::write(&file, &bytes[..bytes.len() - 3])?;
        cut(dir.path(), 6)?;
        assert_eq!(steps(&fs::read(&file)?), [1, 5]);
        cut(dir.path(), 0)?;
        assert!(!file.exists(), "nothing but its version is left");
        Ok(())
    }
}
