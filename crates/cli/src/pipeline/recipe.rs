//! The file of a pipeline, and its stages with every placeholder replaced.

use anyhow::{Context, Result, bail};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// A recipe.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Recipe {
    /// For people.
    #[serde(default)]
    pub(super) about: String,
    /// What `--dry-run` reckons with.
    #[serde(default)]
    pub(super) estimate: Estimate,
    pub(super) stages: Vec<Stage>,
}

/// `[estimate]`.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Estimate {
    /// Tokens that all ranks together train on in a second.
    pub(super) tokens_per_second: f64,
    /// Ranks that share gradients and moments.
    pub(super) ranks: usize,
}

impl Default for Estimate {
    fn default() -> Self {
        Self { tokens_per_second: 3000.0, ranks: 1 }
    }
}

/// `[[stages]]`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Stage {
    pub(super) name: String,
    /// Words of the command behind `hybra`.
    pub(super) run: Vec<String>,
    /// What other stages mean by this one's name: a path in its folder.
    #[serde(default)]
    pub(super) result: String,
    /// A preset or config.json: the shape that `--dry-run` reckons with.
    #[serde(default)]
    pub(super) shape: Option<String>,
    /// Minutes that it takes, for `--dry-run`, where tokens say nothing.
    #[serde(default)]
    pub(super) minutes: Option<f64>,
    /// In place of the recipe's.
    #[serde(default)]
    pub(super) tokens_per_second: Option<f64>,
}

/// A stage ready to run.
#[derive(Debug)]
pub(super) struct Resolved {
    pub(super) name: String,
    pub(super) out: PathBuf,
    /// What other stages mean by its name.
    pub(super) result: PathBuf,
    /// Words of the command behind `hybra`.
    pub(super) command: Vec<String>,
    pub(super) key: String,
    /// Stages whose results it takes.
    pub(super) needs: Vec<String>,
    /// Its words do not name {out}: what it prints is its result.
    pub(super) prints: bool,
}

impl Resolved {
    fn beside(&self, ending: &str) -> PathBuf {
        self.out.with_file_name(format!("{}.{ending}", self.name))
    }

    pub(super) fn done(&self) -> PathBuf {
        self.beside("json")
    }

    pub(super) fn begun(&self) -> PathBuf {
        self.beside("begun.json")
    }

    pub(super) fn log(&self) -> PathBuf {
        self.beside("log")
    }

    /// The page that the stage itself wrote, as a link beside the run's own.
    pub(super) fn page(&self) -> Option<String> {
        let there = self.out.join("report.html").is_file();
        there.then(|| format!("{}/report.html", self.name))
    }

    /// Whether the command goes on in a folder that it left.
    pub(super) fn resumes(&self) -> bool {
        let words: Vec<&str> = self.command.iter().take(2).map(String::as_str).collect();
        matches!(words[..], ["train", stage] if stage != "pairs") || words[0] == "search"
    }

    /// Whether all ranks take part.
    pub(super) fn is_parallel(&self) -> bool {
        let words: Vec<&str> = self.command.iter().take(2).map(String::as_str).collect();
        match words[..] {
            ["train", stage] => !["cache", "pairs"].contains(&stage),
            ["search", ..] => true,
            _ => false,
        }
    }
}

impl Recipe {
    /// Reads a file.
    pub(super) fn read(path: &Path) -> Result<Self> {
        let name = path.display();
        let text = std::fs::read_to_string(path).with_context(|| name.to_string())?;
        let recipe: Self = toml::from_str(&text).with_context(|| name.to_string())?;
        let mut seen = Vec::new();
        for stage in &recipe.stages {
            let simple = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
            let known = ["out", "here"].contains(&&*stage.name) || seen.contains(&&stage.name);
            let hidden = stage.name.is_empty() || stage.name.starts_with('.');
            if hidden || !stage.name.chars().all(simple) || known {
                let found = &stage.name;
                bail!(
                    "{name}: stages: expected names of letters and digits, each once, found {found:?}"
                );
            }
            if stage.run.is_empty() {
                bail!("{name}: {}: run: expected the words of a command, found none", stage.name);
            }
            seen.push(&stage.name);
        }
        if recipe.stages.is_empty() {
            bail!("{name}: expected [[stages]], found none");
        }
        Ok(recipe)
    }

    /// How many stages there are up to the one of this name.
    pub(super) fn until(&self, name: Option<&str>) -> Result<usize> {
        let Some(name) = name else { return Ok(self.stages.len()) };
        let at = self.stages.iter().position(|stage| stage.name == name);
        let names: Vec<_> = self.stages.iter().map(|stage| stage.name.as_str()).collect();
        let at =
            at.with_context(|| format!("--until {name}: the stages are {}", names.join(", ")))?;
        Ok(at + 1)
    }

    /// The stages of a run in `folder`.
    pub(super) fn resolve(&self, folder: &Path, path: &Path) -> Result<Vec<Resolved>> {
        let here = path.parent().filter(|parent| !parent.as_os_str().is_empty());
        let here = here.unwrap_or(Path::new(".")).to_string_lossy().into_owned();
        let mut results: BTreeMap<&str, (String, String)> = BTreeMap::new();
        let mut all = Vec::new();
        for stage in &self.stages {
            let out = folder.join(&stage.name);
            let (mut command, mut hash) = (Vec::new(), blake3::Hasher::new());
            let mut add = |text: &str| {
                hash.update(&(text.len() as u64).to_le_bytes());
                hash.update(text.as_bytes());
            };
            add(env!("CARGO_PKG_VERSION"));
            let mut needs: Vec<String> = Vec::new();
            for word in &stage.run {
                let replaced = replace(word, |name| match name {
                    "out" => Some(out.to_string_lossy().into_owned()),
                    "here" => Some(here.clone()),
                    _ => results.get(name).map(|(result, key)| {
                        add(key);
                        if !needs.iter().any(|known| known == name) {
                            needs.push(name.to_owned());
                        }
                        result.clone()
                    }),
                });
                let word_of = || format!("{}: {}: `{word}`", path.display(), stage.name);
                let replaced = replaced.with_context(word_of)?;
                // A run elsewhere of the same files is the same run.
                add(word);
                if Path::new(&replaced).is_file() && word.contains("{here}") {
                    add(&std::fs::read_to_string(&replaced).with_context(word_of)?);
                }
                command.push(replaced);
            }
            let key = hash.finalize().to_hex().to_string();
            let result = match stage.result.as_str() {
                "" => out.clone(),
                part => out.join(part),
            };
            results.insert(&stage.name, (result.to_string_lossy().into_owned(), key.clone()));
            let prints = !stage.run.iter().any(|word| word.contains("{out}"));
            let name = stage.name.clone();
            all.push(Resolved { name, out, result, command, key, needs, prints });
        }
        Ok(all)
    }
}

/// `text` with what stands in braces replaced.
fn replace(text: &str, mut of: impl FnMut(&str) -> Option<String>) -> Result<String> {
    let (mut done, mut rest) = (String::new(), text);
    while let Some((before, behind)) = rest.split_once('{') {
        let Some((name, after)) = behind.split_once('}') else { bail!("`{{` without `}}`") };
        let value = of(name).with_context(|| {
            format!("{{{name}}}: expected {{out}}, {{here}} or the name of a stage before")
        })?;
        done += before;
        done += &value;
        rest = after;
    }
    Ok(done + rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(text: &str, config: &str) -> Vec<String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pipeline.toml");
        std::fs::write(&path, text).unwrap();
        std::fs::write(dir.path().join("a.toml"), config).unwrap();
        let stages = Recipe::read(&path).unwrap().resolve(Path::new("RUN"), &path).unwrap();
        stages.into_iter().map(|stage| stage.key).collect()
    }

    #[test]
    fn a_key_follows_command_files_and_the_stages_before() {
        let text = "[[stages]]\nname = \"a\"\nrun = [\"train\", \"sft\", \"--config\", \"{here}/a.toml\"]\n\
                    [[stages]]\nname = \"b\"\nrun = [\"eval\", \"{a}\"]\n\
                    [[stages]]\nname = \"c\"\nrun = [\"eval\"]\n";
        let before = keys(text, "steps = 1");
        assert_eq!(keys(text, "steps = 1"), before);
        let after = keys(text, "steps = 2");
        assert!(after[0] != before[0] && after[1] != before[1] && after[2] == before[2]);
    }

    #[test]
    fn a_placeholder_that_is_none_is_named() {
        let of = |name: &str| (name == "out").then(|| "X".to_owned());
        assert_eq!(replace("a{out}b{out}", of).unwrap(), "aXbX");
        assert!(replace("{later}", of).unwrap_err().to_string().contains("{later}"));
        assert!(replace("{out", of).is_err());
    }
}
