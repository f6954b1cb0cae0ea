//! The program as a user runs it: a process with arguments, an exit code and two streams.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;

use serde_json::Value;

/// `target/release/trainer` (or debug, as the tests are).
pub fn trainer() -> PathBuf {
    built().join(format!("trainer{}", std::env::consts::EXE_SUFFIX))
}

/// An example of the crate `trainer`.
pub fn example(name: &str) -> PathBuf {
    built().join("examples").join(format!("{name}{}", std::env::consts::EXE_SUFFIX))
}

/// The folder of program and examples, which are built if they are not up to date.
fn built() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        let test = std::env::current_exe().expect("the test knows its own file");
        let folder = test.parent().and_then(Path::parent).expect("tests lie in target/<profile>/deps").to_path_buf();
        let mut build = Command::new(env!("CARGO"));
        // With examples, and of the whole workspace, so that cargo chooses the features that it chose for the tests: otherwise it
        // compiles candle a second time.
        build.args(["build", "--quiet", "--workspace", "--bin", "trainer", "--examples"]);
        if folder.ends_with("release") {
            build.arg("--release");
        }
        assert!(build.status().expect("cargo runs").success(), "program and examples could not be built");
        folder
    })
}

/// What a call gave.
#[derive(Debug)]
pub struct Call {
    /// Exit code.
    pub code: i32,
    /// Results.
    pub stdout: String,
    /// Logs, progress, errors.
    pub stderr: String,
}

impl Call {
    fn new(output: Output) -> Call {
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("output is UTF-8");
        Call { code: output.status.code().unwrap_or(-1), stdout: text(output.stdout), stderr: text(output.stderr) }
    }

    /// The object on the last line of stdout.
    #[track_caller]
    pub fn json(&self) -> Value {
        assert_eq!(self.code, 0, "{}", self.stderr);
        let line = self.stdout.lines().last().unwrap_or_default();
        serde_json::from_str(line).unwrap_or_else(|e| panic!("the last line is not JSON ({e}): {line}"))
    }

    /// Panics unless the call failed with `code` and one clear line that holds all of `parts`.
    #[track_caller]
    pub fn assert_fails(&self, code: i32, parts: &[&str]) {
        assert_eq!(self.code, code, "stdout: {}\nstderr: {}", self.stdout, self.stderr);
        assert!(!self.stderr.contains("panicked"), "{}", self.stderr);
        if code == 1 {
            let errors = self.stderr.lines().filter(|l| l.starts_with("Error: ")).count();
            assert_eq!(errors, 1, "{}", self.stderr);
        }
        for part in parts {
            assert!(self.stderr.contains(part), "\"{part}\" is not in: {}", self.stderr);
        }
    }
}

/// A command of the program, to be changed before it runs; its folder is the repository's root.
pub fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(trainer());
    command.args(arguments).current_dir(root()).env_remove("RAYON_NUM_THREADS").env_remove("CANDLE_NUM_THREADS");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Runs the program.
pub fn call(arguments: &[&str]) -> Call {
    finish(command(arguments))
}

/// Runs a prepared command.
pub fn finish(mut command: Command) -> Call {
    Call::new(command.output().expect("the program starts"))
}

/// The repository's root.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests lie in the root")
}
