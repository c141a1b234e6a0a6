//! Runs every rule over the whole tree; the same check is a test of this package.
//!
//! Hidden folders (other than `.ci`) and build outputs are not looked at.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

use crate::{
    edges,
    rules::{Finding, Source, check_source, house, size},
};

/// Endings of the text files other than Rust that are checked for machine paths.
const TEXT_ENDINGS: [&str; 5] = ["md", "toml", "sh", "yml", "yaml"];

/// What a run over the tree has seen.
pub(crate) struct Report {
    /// Broken rules, in the order of paths.
    pub(crate) findings: Vec<Finding>,
    /// Path and length of the files longer than the aim, longest first.
    pub(crate) long_files: Vec<(String, usize)>,
    /// Number of files looked at.
    pub(crate) num_files: usize,
}

/// Checks the crate edges and every file of the project at `root`.
///
/// # Errors
/// If a folder or file cannot be read or cargo cannot read a manifest.
pub(crate) fn check_repository(root: &Path) -> Result<Report> {
    let mut findings = edges::check(&edges::read_packages(root)?);
    let mut long_files = Vec::new();
    let paths = files_under(root)?;
    for path in &paths {
        let text = fs::read_to_string(path).with_context(|| path.display().to_string())?;
        let name = path.strip_prefix(root)?.to_string_lossy().replace('\\', "/");
        if !name.ends_with(".rs") {
            findings.extend(house::check_text(&name, &text));
            continue;
        }
        let num_lines = text.lines().count();
        if num_lines > size::AIM_LINES {
            long_files.push((name.clone(), num_lines));
        }
        findings.extend(check_source(&Source::new(name, text)));
    }
    long_files.sort_by_key(|(_, num_lines)| std::cmp::Reverse(*num_lines));
    Ok(Report { findings, long_files, num_files: paths.len() })
}

/// The Rust and text files under `folder`, sorted.
fn files_under(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let mut folders = vec![folder.to_path_buf()];
    while let Some(folder) = folders.pop() {
        let entries = fs::read_dir(&folder).with_context(|| folder.display().to_string())?;
        for entry in entries {
            let entry = entry?;
            let (path, name) = (entry.path(), entry.file_name());
            let name = name.to_string_lossy();
            if entry.file_type()?.is_dir() {
                if name == ".ci" || !(name.starts_with('.') || name == "target") {
                    folders.push(path);
                }
            } else if folder.ends_with(".ci") || is_checked(&path) {
                files.push(path);
            }
        }
    }
    files.sort();
    Ok(files)
}

fn is_checked(path: &Path) -> bool {
    let ending = path.extension().unwrap_or_default();
    ending == "rs" || TEXT_ENDINGS.iter().any(|e| ending == *e)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::project_root;

    #[test]
    fn the_repository_is_tidy() {
        let report = check_repository(&project_root()).unwrap();
        let findings: Vec<_> = report.findings.iter().map(Finding::to_string).collect();
        assert!(findings.is_empty(), "\n{}", findings.join("\n"));
    }

    #[test]
    fn the_walk_sees_sources_manifests_and_the_ci_script() {
        let files = files_under(&project_root()).unwrap();
        for expected in ["xtask/src/tidy.rs", "crates/kernels/src/lib.rs", "Cargo.toml", ".ci/run"]
        {
            assert!(files.contains(&project_root().join(expected)), "{expected}");
        }
        assert!(files.iter().all(|f| !f.starts_with(project_root().join("target"))));
    }
}
