//! Which crate of the project may depend on which; every dependency of every kind is checked.
//!
//! The table holds all crates of the design, those still to come included. Edges go down a layer,
//! never sideways, so the table has no cycle.

use anyhow::{Context, Result};
use cargo_metadata::MetadataCommand;
use std::path::Path;

use crate::rules::Finding;

/// Folder of a crate and the folders of the crates that it may depend on.
const ALLOWED: [(&str, &[&str]); 13] = [
    ("kernels", &[]),
    ("cuda", &["kernels"]),
    ("checkpoint", &[]),
    ("tokenizer", &[]),
    ("model", &["kernels", "cuda", "checkpoint"]),
    ("engine", &["model", "cuda", "kernels"]),
    ("compress", &["model", "kernels", "checkpoint"]),
    ("chat", &["engine", "tokenizer"]),
    ("server", &["chat", "engine", "tokenizer"]),
    ("eval", &["chat", "engine", "tokenizer"]),
    ("train", &["eval", "chat", "engine", "model", "kernels", "checkpoint", "tokenizer"]),
    (
        "cli",
        &[
            "train",
            "server",
            "eval",
            "compress",
            "chat",
            "engine",
            "model",
            "kernels",
            "cuda",
            "checkpoint",
            "tokenizer",
        ],
    ),
    ("xtask", &[]),
];

/// A package of the workspace: name, manifest path from the root, and packages it depends on.
#[derive(Debug)]
pub(crate) struct Package {
    /// `hybra-<dir>`, or `xtask`.
    pub(crate) name: String,
    /// Such as `crates/model/Cargo.toml`.
    pub(crate) manifest: String,
    /// Names of the dependencies that belong to the project: path dependencies and `hybra-*`.
    pub(crate) own_dependencies: Vec<String>,
}

/// Reads the packages of the workspace at `root` with `cargo metadata`, without resolving
/// registry dependencies.
///
/// # Errors
/// If cargo cannot read the manifests.
pub(crate) fn read_packages(root: &Path) -> Result<Vec<Package>> {
    let mut command = MetadataCommand::new();
    command.manifest_path(root.join("Cargo.toml")).no_deps();
    let metadata = command.exec().context("cargo metadata of the workspace")?;
    let packages = metadata.packages.iter().map(|package| {
        let manifest = package.manifest_path.strip_prefix(&metadata.workspace_root);
        let own = package
            .dependencies
            .iter()
            .filter(|d| d.path.is_some() || d.name.starts_with("hybra") || d.name == "xtask");
        Package {
            name: package.name.to_string(),
            manifest: manifest.unwrap_or(&package.manifest_path).as_str().replace('\\', "/"),
            own_dependencies: own.map(|d| d.name.clone()).collect(),
        }
    });
    Ok(packages.collect())
}

/// Every package that is not in the table or misnamed, and every edge that the table lacks.
pub(crate) fn check(packages: &[Package]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for package in packages {
        let dir = package.name.strip_prefix("hybra-").unwrap_or(&package.name);
        let error = |message| Finding { path: package.manifest.clone(), line: 1, message };
        let Some((_, allowed)) = ALLOWED.iter().find(|(name, _)| *name == dir) else {
            findings
                .push(error(format!("package `{}` is not in the table of crates", package.name)));
            continue;
        };
        let place = if dir == "xtask" { "xtask".into() } else { format!("crates/{dir}") };
        if package.manifest != format!("{place}/Cargo.toml") || package.name != package_name(dir) {
            let expected = package_name(dir);
            findings.push(error(format!(
                "package `{}` must be named `{expected}` and lie in {place}",
                package.name
            )));
        }
        for to in &package.own_dependencies {
            if !allowed.iter().any(|dir| package_name(dir) == *to) {
                findings.push(error(forbidden(&package.name, to, allowed)));
            }
        }
    }
    findings
}

fn package_name(dir: &str) -> String {
    if dir == "xtask" { dir.into() } else { format!("hybra-{dir}") }
}

fn forbidden(from: &str, to: &str, allowed: &[&str]) -> String {
    let allowed: Vec<_> = allowed.iter().map(|dir| package_name(dir)).collect();
    let allowed = if allowed.is_empty() { "nothing of ours".into() } else { allowed.join(", ") };
    format!("`{from}` may not depend on `{to}`; allowed: {allowed}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn package(dir: &str, own_dependencies: &[&str]) -> Package {
        Package {
            name: format!("hybra-{dir}"),
            manifest: format!("crates/{dir}/Cargo.toml"),
            own_dependencies: own_dependencies.iter().map(|d| (*d).into()).collect(),
        }
    }

    fn messages(packages: &[Package]) -> Vec<String> {
        check(packages).into_iter().map(|f| f.message).collect()
    }

    #[test]
    fn allowed_edges_pass() {
        let good = [
            package("kernels", &[]),
            package("model", &["hybra-kernels", "hybra-checkpoint"]),
            package("server", &["hybra-engine"]),
            package("cli", &["hybra-server", "hybra-train", "hybra-kernels"]),
        ];
        assert_eq!(messages(&good), [""; 0]);
    }

    #[test]
    fn a_forbidden_edge_names_both_crates_and_what_is_allowed() {
        assert_eq!(
            messages(&[package("engine", &["hybra-model", "hybra-tokenizer"])]),
            ["`hybra-engine` may not depend on `hybra-tokenizer`; allowed: hybra-model, \
              hybra-cuda, hybra-kernels"]
        );
        assert_eq!(
            messages(&[package("kernels", &["hybra-model"])]),
            ["`hybra-kernels` may not depend on `hybra-model`; allowed: nothing of ours"]
        );
    }

    #[test]
    fn edges_of_crates_to_come_are_checked() {
        assert_eq!(messages(&[package("server", &["hybra-model"])]).len(), 1);
        assert_eq!(messages(&[package("compress", &["hybra-train"])]).len(), 1);
        assert_eq!(messages(&[package("eval", &["hybra-train"])]).len(), 1);
        assert_eq!(messages(&[package("train", &["hybra-compress"])]).len(), 1);
    }

    #[test]
    fn the_product_does_not_depend_on_automation() {
        assert_eq!(messages(&[package("cli", &["xtask"])]).len(), 1);
    }

    #[test]
    fn an_unknown_or_misplaced_package_is_found() {
        assert_eq!(messages(&[package("utils", &[])]).len(), 1);
        let mut misnamed = package("model", &[]);
        misnamed.name = "model".into();
        assert_eq!(messages(&[misnamed]).len(), 1);
        let mut misplaced = package("model", &[]);
        misplaced.manifest = "crates/kernels/Cargo.toml".into();
        assert_eq!(messages(&[misplaced]).len(), 1);
    }

    #[test]
    fn the_table_goes_down_only() {
        for (position, (from, allowed)) in ALLOWED.iter().enumerate() {
            for to in *allowed {
                let below = ALLOWED.iter().position(|(dir, _)| dir == to);
                assert!(below.is_some_and(|b| b < position), "{from} -> {to}");
            }
        }
    }
}
