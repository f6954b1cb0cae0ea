//! A folder that one process at a time may work in.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::error::Claimed;
use crate::files::host;
use crate::terminal::say;

/// The right to work in a folder, until it is dropped or the process dies, however it dies.
///
/// An advisory lock on a file in the folder (`flock`; over NFS the server's locks): the kernel gives it back with the
/// process, so there is none to clean up after a kill. What the file says is for people.
pub struct Claim {
    file: File,
    path: PathBuf,
    /// The folder was made by this claim and has not been used yet.
    made: bool,
}

/// The file that is locked.
const FILE: &str = ".claim";

impl Claim {
    /// Claims `dir`, which is made if it is not there.
    ///
    /// # Errors
    /// [`Claimed`], with who holds it, if another process does.
    pub fn take(dir: &Path) -> Result<Claim> {
        // A look at whether it is held holds it for a moment.
        const TRIES: usize = 4;
        let claim = (0..TRIES).find_map(|i| {
            std::thread::sleep(Duration::from_millis(if i > 0 { 15 } else { 0 }));
            Claim::attempt(dir).transpose()
        });
        match claim {
            Some(claim) => claim,
            None => {
                let holder = fs::read_to_string(dir.join(FILE)).unwrap_or_default();
                let holder =
                    if holder.trim().is_empty() { "another process".to_string() } else { holder.trim().into() };
                bail!(Claimed { dir: dir.to_path_buf(), holder })
            }
        }
    }

    /// Whether some process works in `dir`.
    pub fn is_held(dir: &Path) -> bool {
        File::open(dir.join(FILE)).is_ok_and(|file| matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock)))
    }

    fn attempt(dir: &Path) -> Result<Option<Claim>> {
        let path = dir.join(FILE);
        let context = || format!("claiming {}", dir.display());
        let mut made = false;
        loop {
            if !dir.is_dir() {
                fs::create_dir_all(dir).with_context(context)?;
                made = true;
            }
            let file = match OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path) {
                // Its last user has just removed it, and the folder with it.
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => continue,
                file => file.with_context(context)?,
            };
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => return Ok(None),
                Err(TryLockError::Error(e)) if e.kind() == std::io::ErrorKind::Unsupported => {
                    say(format!(
                        "{} lies on a file system without locks: let no second process work in it",
                        dir.display()
                    ));
                }
                Err(TryLockError::Error(e)) => return Err(e).with_context(context),
            }
            if !is_at(&file, &path) {
                continue; // Removed between opening and locking: this is the lock of a file that is gone.
            }
            let mut claim = Claim { file, path, made };
            claim.sign().with_context(context)?;
            return Ok(Some(claim));
        }
    }

    fn sign(&mut self) -> std::io::Result<()> {
        self.file.set_len(0)?;
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |d| d.as_secs());
        write!(self.file, "process {} on {} (since {since} s after 1970)", std::process::id(), host())
    }

    /// The folder is in use now: it stays when the claim ends.
    pub fn keep(&mut self) {
        self.made = false;
    }
}

impl Drop for Claim {
    /// A folder made for work that never began goes again, if it is still empty.
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
        if self.made
            && let Some(dir) = self.path.parent()
        {
            let _ = fs::remove_dir(dir);
        }
    }
}

/// Whether `file` is the one that lies at `path` now.
#[cfg(unix)]
fn is_at(file: &File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let id = |m: fs::Metadata| (m.dev(), m.ino());
    match (file.metadata(), fs::metadata(path)) {
        (Ok(a), Ok(b)) => id(a) == id(b),
        _ => false,
    }
}

#[cfg(not(unix))]
fn is_at(_: &File, path: &Path) -> bool {
    path.exists()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_at_a_time_and_nothing_is_left_behind() -> Result<()> {
        let place = tempfile::tempdir()?;
        let dir = place.path().join("a/run");
        let claim = Claim::take(&dir)?;
        assert!(Claim::is_held(&dir));
        let error = Claim::take(&dir).map(drop).unwrap_err();
        let told = error.downcast_ref::<Claimed>().context("another kind of error")?;
        assert!(told.holder.contains(&format!("process {} on ", std::process::id())), "{error}");
        drop(claim);
        assert!(!dir.exists() && !Claim::is_held(&dir));
        let mut claim = Claim::take(&dir)?;
        claim.keep();
        drop(claim);
        assert!(dir.exists() && fs::read_dir(&dir)?.next().is_none());
        Ok(())
    }

    #[test]
    fn many_threads_that_take_and_remove_never_share() -> Result<()> {
        use std::sync::atomic::{AtomicUsize, Ordering};
        let place = tempfile::tempdir()?;
        let (inside, turns) = (AtomicUsize::new(0), AtomicUsize::new(0));
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..100 {
                        if let Ok(claim) = Claim::take(&place.path().join("run")) {
                            assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0, "two at a time");
                            turns.fetch_add(1, Ordering::SeqCst);
                            inside.fetch_sub(1, Ordering::SeqCst);
                            drop(claim);
                        }
                    }
                });
            }
        });
        assert!(turns.into_inner() > 8);
        Ok(())
    }
}
