//! Automation around the product: `cargo run -p xtask -- tidy` checks the house rules.
//!
//! Depends on no crate of the product, so that it builds and reports even when they do not.

#![forbid(unsafe_code)]

mod edges;
mod lexer;
mod rules;
mod tidy;

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["tidy"] => run_tidy(),
        _ => bail!("usage: cargo run -p xtask -- tidy"),
    }
}

/// Prints the longest files and every finding; an error if there is a finding.
fn run_tidy() -> Result<()> {
    let report = tidy::check_repository(&project_root())?;
    for (path, lines) in &report.long_files {
        println!("note: {path} has {lines} lines; the aim is at most {}", rules::size::AIM_LINES);
    }
    for finding in &report.findings {
        println!("error: {finding}");
    }
    println!("tidy: {} files, {} findings", report.num_files, report.findings.len());
    if !report.findings.is_empty() {
        bail!("the tree is not tidy: see the errors above");
    }
    Ok(())
}

/// The folder of the workspace's Cargo.toml, asked for at run time: a build may be older than a
/// move of the tree.
fn project_root() -> PathBuf {
    let xtask = std::env::var_os("CARGO_MANIFEST_DIR").map(PathBuf::from);
    let root = xtask.as_deref().and_then(Path::parent);
    root.expect("xtask is run by cargo, which sets CARGO_MANIFEST_DIR").to_path_buf()
}
