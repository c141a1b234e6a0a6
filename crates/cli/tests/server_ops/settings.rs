//! Settings from everywhere, warnings, and the log.

use crate::server::{CHAT, Server, chat, wait_for};
use std::process::Command;

/// Exit status, stdout and stderr of `hybra serve`.
fn serve(file: &str, env: &[(&str, &str)], args: &[&str]) -> (Option<i32>, String, String) {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("serve.toml"), file).unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_hybra"))
        .current_dir(&dir)
        .args(["serve", "--config", "serve.toml"])
        .args(args)
        .envs(env.iter().copied())
        .output()
        .unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

#[test]
fn the_command_line_goes_before_the_environment_before_the_file() {
    let file = "max-queue = 1\nmax-num-seqs = 2\ntimeout = 3\napi-key = [\"s3cret\"]\n";
    let env = [("HYBRA_MAX_NUM_SEQS", "20"), ("HYBRA_TIMEOUT", "30")];
    let (code, out, err) = serve(file, &env, &["--timeout", "300", "--print-config"]);
    assert_eq!(code, Some(0), "{err}");
    for line in [
        "max-queue = 1  # file",
        "max-num-seqs = 20  # environment",
        "timeout = 300  # command line",
        "port = 8000  # default",
        "no-warm = false  # default",
        "# api-key: 1 not shown  # file",
    ] {
        assert!(out.lines().any(|found| found == line), "{line}: {out}");
    }
    assert!(!out.contains("s3cret"));
    let (code, again, err) = serve(&out, &[], &["--print-config"]);
    assert_eq!(code, Some(0), "what is printed can be read: {err}");
    assert!(again.contains("timeout = 300  # file"), "{again}");
}

#[test]
fn wrong_settings_are_named() {
    for (file, parts) in [
        ("prot = 1", &["serve.toml: ", "unknown key \"prot\""][..]),
        ("max-num-seqs = \"x\"", &["serve.toml: ", "--max-num-seqs"]),
        ("max-queue = [1, 2]", &["serve.toml: max-queue", "found array"]),
        ("config = \"x\"", &["unknown key \"config\""]),
        ("port = ", &["serve.toml", "line 1"]),
        ("api-key = \"a b\"", &["API key 1"]),
        ("cors-origin = \"a.org/x\"", &["cors-origin", "a.org/x"]),
        ("tls-cert = \"serve.toml\"\ntls-key = \"none\"", &["serve.toml: expected a certificate"]),
        ("api-key-file = \"none\"", &["none: "]),
    ] {
        let (code, _, err) = serve(file, &[], &["--port", "0"]);
        assert_eq!(code, Some(1), "{file}: {err}");
        assert!(parts.iter().all(|part| err.contains(part)), "{file}: {err}");
    }
}

#[test]
fn more_threads_than_cores_are_worth_a_warning() {
    let server = Server::start(&["--threads", "64"]);
    wait_for("the warning", || server.said().contains("more threads than cores"));
    assert_eq!(server.post(CHAT, "", &chat("")).status, 200);
}

#[test]
fn text_of_users_reaches_the_log_only_on_demand_and_escaped() {
    let hostile = r#"{"messages": [{"role": "user", "content": "\u001b[31mX\r\nWARN forged"}]}"#;
    let path = "/v1/%0d%0aWARN%20forged";
    let id = "x-request-id: a\u{1b}[31mforged\r\n";
    for (args, logged) in [(&[][..], false), (&["--log-prompts"], true)] {
        let server = Server::start(args);
        assert_eq!(server.post(CHAT, "", hostile).status, 200);
        server.get(path, id);
        server.get(path, "x-request-id: mine-1\r\n");
        wait_for("the last line", || server.said().contains("mine-1"));
        let said = server.said();
        assert_eq!(said.contains("forged"), logged, "{said}");
        assert!(!said.contains('\u{1b}') && !said.contains("\nWARN forged"), "{said}");
        let lines = said.lines().filter(|line| line.contains("status=")).count();
        assert!(lines >= 2, "one line for each request: {said}");
    }
}
