//! Files that are whole or not there, their hashes, and the machine that writes them.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, Result, anyhow};
use serde::Serializer;
use sha2::{Digest, Sha256};

/// Numbers the partial files of this process.
static PARTIALS: AtomicU64 = AtomicU64::new(0);

/// Makes the folder that a file is to lie in.
pub fn make_parent(path: &Path) -> Result<()> {
    let Some(parent) = path.parent() else { return Ok(()) };
    fs::create_dir_all(parent).with_context(|| format!("creating {}", parent.display()))
}

/// Refuses to write over a file that is read.
pub fn check_output(output: &Path, inputs: &[PathBuf]) -> Result<()> {
    let Some(output_is) = fs::canonicalize(output).ok().filter(|path| path.is_file()) else { return Ok(()) };
    let same = inputs.iter().find(|input| fs::canonicalize(input).is_ok_and(|input| input == output_is));
    match same {
        Some(input) => Err(anyhow!("{} is read from: choose another file than {}", input.display(), output.display())),
        None => Ok(()),
    }
}

/// The file that a name leads to, through links, there or not.
fn led_to(path: &Path) -> PathBuf {
    const LINKS: usize = 40; // As many as Linux follows.
    let mut path = path.to_path_buf();
    for _ in 0..LINKS {
        let Ok(next) = fs::read_link(&path) else { break };
        path = path.parent().unwrap_or(Path::new("")).join(next);
    }
    path
}

/// Writes a file whole under another name, then renames it: whatever happens, the old file or the new one is there. A link
/// stays, and the file that it leads to is written. What is no file, as `/dev/stdout`, is written to as it is.
pub fn write_atomically(path: &Path, bytes: &[u8]) -> Result<()> {
    if fs::metadata(path).is_ok_and(|there| !there.is_file()) {
        return fs::write(path, bytes).with_context(|| format!("writing {}", path.display()));
    }
    let path = &led_to(path);
    let name = path.file_name().ok_or_else(|| anyhow!("{} is not a file name", path.display()))?;
    // Two processes, of one machine or of two that share a folder, must not write into one partial file.
    let (host, process, unique) = (host(), std::process::id(), PARTIALS.fetch_add(1, Ordering::Relaxed));
    let partial = path.with_file_name(format!(".{}.{host}.{process}.{unique}.partial", name.to_string_lossy()));
    let write = || -> std::io::Result<()> {
        let mut file = fs::File::create(&partial)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&partial, path)
    };
    write().with_context(|| {
        let _ = fs::remove_file(&partial);
        format!("writing {} ({} bytes): nothing that was there has been changed", path.display(), bytes.len())
    })?;
    sync_folder_of(path);
    Ok(())
}

/// Makes a file's new name outlive a power cut, where folders can be opened and synced as files (not on every network's). Old
/// or new, the file is whole.
fn sync_folder_of(path: &Path) {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let _ = fs::File::open(folder).and_then(|folder| folder.sync_all());
}

/// Writes a path as people see it: JSON has no place for bytes that are no text.
pub fn as_shown<S: Serializer>(path: &Path, to: S) -> Result<S::Ok, S::Error> {
    to.collect_str(&path.display())
}

/// Hash of some bytes, in hexadecimal.
pub fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect()
}

/// This machine's name, for people and for names of files that two machines must not share.
pub fn host() -> String {
    let name = fs::read_to_string("/proc/sys/kernel/hostname").ok().or_else(|| std::env::var("HOSTNAME").ok());
    name.map(|n| n.trim().to_string()).filter(|n| !n.is_empty()).unwrap_or_else(|| "this machine".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A device stays a device, and what it says is heard; a file is replaced; a folder is neither.
    #[test]
    #[cfg(target_os = "linux")]
    fn what_is_no_file_is_not_replaced() -> Result<()> {
        let dir = tempfile::tempdir()?;
        let link = dir.path().join("full");
        std::os::unix::fs::symlink("/dev/full", &link)?;
        assert!(write_atomically(&link, b"x").is_err() && fs::symlink_metadata(&link)?.is_symlink());
        let file = dir.path().join("file");
        write_atomically(&file, b"one")?;
        write_atomically(&file, b"two")?;
        assert_eq!((fs::read(&file)?, fs::read_dir(dir.path())?.count()), (b"two".to_vec(), 2));
        assert!(write_atomically(dir.path(), b"x").is_err());
        let (link, new) = (dir.path().join("link"), dir.path().join("new"));
        std::os::unix::fs::symlink("file", &link)?;
        std::os::unix::fs::symlink("sub/../new", dir.path().join("to new"))?;
        fs::create_dir(dir.path().join("sub"))?;
        write_atomically(&link, b"three")?;
        write_atomically(&dir.path().join("to new"), b"four")?;
        assert!(fs::symlink_metadata(&link)?.is_symlink());
        assert_eq!((fs::read(&file)?, fs::read(&new)?), (b"three".to_vec(), b"four".to_vec()));
        assert!(check_output(&link, &[new.clone(), file.clone()]).is_err() && check_output(&link, &[new]).is_ok());
        Ok(())
    }
}
