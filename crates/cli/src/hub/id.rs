//! Hub ids: what they look like, told from paths.

use hf_hub::{Repo, RepoType};

/// `owner/name`, with an optional `@revision` and an optional `:FILE.gguf`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct HubId {
    pub(super) repo: String,
    pub(super) revision: String,
    pub(super) file: Option<String>,
}

impl HubId {
    /// Reads an id; `None` for anything else, such as a path.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (rest, file) = match text.split_once(':') {
            Some((rest, file)) => (rest, Some(file)),
            None => (text, None),
        };
        let (repo, revision) = rest.split_once('@').unwrap_or((rest, "main"));
        let (owner, name) = repo.split_once('/')?;
        let is_model_file = [".gguf", ".safetensors", ".json"].iter().any(|e| name.ends_with(e));
        let gguf = file.is_none_or(|file| is_plain(file) && file.ends_with(".gguf"));
        // A branch such as `refs/pr/1` has slashes.
        let revision_ok = revision.split('/').all(is_plain);
        let ok = is_plain(owner) && is_plain(name) && !is_model_file && gguf && revision_ok;
        ok.then(|| Self {
            repo: repo.to_owned(),
            revision: revision.to_owned(),
            file: file.map(str::to_owned),
        })
    }

    pub(super) fn repo_at(&self, revision: &str) -> Repo {
        Repo::with_revision(self.repo.clone(), RepoType::Model, revision.to_owned())
    }
}

/// Letters, digits, `.`, `_` and `-`, not hidden: safe as a part of a path and of a URL.
pub(super) fn is_plain(name: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    !name.is_empty() && !name.starts_with('.') && name.chars().all(allowed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_told_from_paths() {
        let id = |repo: &str, revision: &str, file: Option<&str>| HubId {
            repo: repo.into(),
            revision: revision.into(),
            file: file.map(str::to_owned),
        };
        let good = [
            ("nvidia/Nano-9B_v2.1", id("nvidia/Nano-9B_v2.1", "main", None)),
            ("a/b@refs/pr/1", id("a/b", "refs/pr/1", None)),
            ("a/b@v1:x-Q4_0.gguf", id("a/b", "v1", Some("x-Q4_0.gguf"))),
        ];
        for (text, want) in good {
            assert_eq!(HubId::parse(text), Some(want), "{text}");
        }
        let bad = [
            "",
            "name",
            "a/b/c",
            "/a/b",
            "./a",
            "../b",
            "a/..",
            "a/b@",
            "a/b@../x",
            "a/b:x",
            "a/b:../x.gguf",
            "a/b:c/d.gguf",
            "a/b.gguf",
            "a/b.safetensors",
            "a b/c",
            "C:\\a/b",
        ];
        for text in bad {
            assert_eq!(HubId::parse(text), None, "{text}");
        }
    }
}
