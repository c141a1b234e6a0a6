//! Runs the binary as a user would.

use std::path::Path;
use std::process::{Command, Output};

/// What a run left behind.
pub(crate) struct Run {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// Runs `hybra` with `args` in `dir`, with nothing of the hub's settings but `env`.
pub(crate) fn hybra_with(dir: &Path, env: &[(&str, &str)], args: &[&str]) -> Run {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hybra"));
    for name in ["HF_HOME", "HF_HUB_CACHE", "HF_TOKEN", "HF_ENDPOINT", "HTTPS_PROXY", "HTTP_PROXY"]
    {
        command.env_remove(name);
    }
    command.current_dir(dir).env("HF_HUB_OFFLINE", "1").envs(env.iter().copied()).args(args);
    let Output { status, stdout, stderr } = command.output().expect("the binary starts");
    Run {
        code: status.code().expect("the binary was not killed"),
        stdout: String::from_utf8(stdout).expect("stdout is UTF-8"),
        stderr: String::from_utf8(stderr).expect("stderr is UTF-8"),
    }
}

/// [`hybra_with`] where success is expected; gives stdout.
#[allow(dead_code, reason = "not every test binary needs it")]
pub(crate) fn hybra(dir: &Path, args: &[&str]) -> String {
    let run = hybra_with(dir, &[], args);
    assert_eq!(run.code, 0, "{args:?}: {}", run.stderr);
    run.stdout
}

/// [`hybra_with`] where an error is expected; gives stderr.
#[allow(dead_code, reason = "not every test binary needs it")]
pub(crate) fn hybra_fails(dir: &Path, args: &[&str]) -> String {
    let run = hybra_with(dir, &[], args);
    assert_eq!(run.code, 1, "{args:?}: {}{}", run.stdout, run.stderr);
    assert!(run.stderr.starts_with("error: ") || run.stderr.contains("\nerror: "), "{args:?}");
    run.stderr
}
