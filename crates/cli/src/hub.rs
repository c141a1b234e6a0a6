//! Models from the Hugging Face hub, through the cache that all of its clients share.
//!
//! - A complete copy in the cache is used without asking the network; `owner/name@revision` names
//!   another one. The branch points to a commit only once all of its files are there.
//! - Only what a model needs is fetched: weights, config, tokenizer, template. Never code.
//! - An interrupted download goes on where it stopped.
//! - Environment: `HF_HOME`, `HF_HUB_CACHE`, `HF_TOKEN` (or the token that the hub's login tool
//!   saved), `HF_HUB_OFFLINE`, `HF_ENDPOINT`, and the usual proxy variables.
//! - No network is one error that names the model, the cache and the way out.

mod id;
mod transfer;

pub(crate) use id::HubId;

use anyhow::{Context, Result, bail};
use hf_hub::Cache;
use hf_hub::api::sync::{Api, ApiBuilder, ApiError, ApiRepo};
use id::is_plain;
use serde_json::Value;
use std::cell::Cell;
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;
use transfer::{Bar, connect, is_whole};

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
/// Files beside the weights; only the first must exist.
const SIDE_FILES: [&str; 5] = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
];
/// Attempts at one file when the connection breaks.
const ATTEMPTS: usize = 3;

/// How much of a model is needed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Want {
    /// All that a model needs to run.
    Model,
    /// At least its `config.json`; a GGUF file has its config inside.
    Config,
}

/// The directory or GGUF file of a model, downloaded where it is not in the cache.
pub(crate) fn fetch(id: &HubId, want: Want) -> Result<PathBuf> {
    let env = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    Hub::new(id, want, env)?.fetch()
}

/// One look-up with its settings.
struct Hub<'a> {
    id: &'a HubId,
    want: Want,
    cache: Cache,
    endpoint: String,
    token: Option<String>,
    offline: bool,
    proxy: bool,
}

impl<'a> Hub<'a> {
    fn new(id: &'a HubId, want: Want, env: impl Fn(&str) -> Option<String>) -> Result<Self> {
        let home = match (env("HF_HOME"), env("XDG_CACHE_HOME")) {
            (Some(home), _) => Some(PathBuf::from(home)),
            (None, Some(cache)) => Some(Path::new(&cache).join("huggingface")),
            (None, None) => std::env::home_dir().map(|home| home.join(".cache/huggingface")),
        };
        let cache = match (env("HF_HUB_CACHE"), &home) {
            (Some(cache), _) => PathBuf::from(cache),
            (None, Some(home)) => home.join("hub"),
            (None, None) => bail!("no home directory for the cache of models; set HF_HOME"),
        };
        // The crate that downloads compares absolute paths.
        let cache = std::path::absolute(cache)?;
        let saved = || fs::read_to_string(home?.join("token")).ok();
        let token = env("HF_TOKEN").or_else(saved).map(|token| token.trim().to_owned());
        let offline = env("HF_HUB_OFFLINE").unwrap_or_default().to_uppercase();
        let endpoint = env("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".to_owned());
        let proxies = ["HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy", "HTTP_PROXY"];
        Ok(Self {
            id,
            want,
            cache: Cache::new(cache),
            endpoint: endpoint.trim_end_matches('/').to_owned(),
            token: token.filter(|token| !token.is_empty()),
            offline: ["1", "ON", "YES", "TRUE"].contains(&offline.as_str()),
            proxy: proxies.iter().any(|name| env(name).is_some()),
        })
    }

    fn fetch(&self) -> Result<PathBuf> {
        if let Some(found) = self.cached() {
            return Ok(found);
        }
        if self.offline {
            return Err(self.unreachable("HF_HUB_OFFLINE is set"));
        }
        if !self.proxy {
            connect(&self.endpoint).map_err(|cause| self.unreachable(&cause))?;
        }
        self.download()
    }

    /// The model in the cache, if all of it is there.
    fn cached(&self) -> Option<PathBuf> {
        let revision = &self.id.revision;
        let refs = self.cache.path().join(self.id.repo_at(revision).folder_name()).join("refs");
        let commit = fs::read_to_string(refs.join(revision)).unwrap_or_else(|_| revision.clone());
        self.complete(&self.snapshot(commit.trim()))
    }

    fn snapshot(&self, commit: &str) -> PathBuf {
        self.cache.repo(self.id.repo_at(commit)).pointer_path(commit)
    }

    /// What to open in a snapshot, if it lacks nothing.
    fn complete(&self, snapshot: &Path) -> Option<PathBuf> {
        let has = |name: &str| snapshot.join(name).exists();
        if let Some(file) = &self.id.file {
            return has(file).then(|| snapshot.join(file));
        }
        let weights = self.want == Want::Config
            || has(SINGLE)
            || shards(&snapshot.join(INDEX)).is_ok_and(|shards| shards.iter().all(|s| has(s)));
        (has(SIDE_FILES[0]) && weights).then(|| snapshot.to_owned())
    }

    fn download(&self) -> Result<PathBuf> {
        let api = self.api().context("the download client does not start")?;
        let info = api.repo(self.id.repo_at(&self.id.revision)).info();
        let info = info.map_err(|cause| self.refused(&cause))?;
        let names: BTreeSet<&str> = info.siblings.iter().map(|s| s.rfilename.as_str()).collect();
        let wanted = self.wanted(&names)?;
        if !is_plain(&info.sha) {
            bail!("{}: the hub names the commit {:?}", self.id.repo, info.sha);
        }
        // All files of one commit, even if the branch moves meanwhile.
        let repo = api.repo(self.id.repo_at(&info.sha));
        let snapshot = self.snapshot(&info.sha);
        let mut queue: Vec<String> = wanted.into_iter().map(str::to_owned).collect();
        while let Some(name) = queue.pop() {
            if !snapshot.join(&name).exists() {
                self.download_file(&repo, &name)?;
            }
            if name == INDEX {
                queue.extend(shards(&snapshot.join(INDEX))?.into_iter().rev());
            }
        }
        let found = self.complete(&snapshot);
        let found = found.with_context(|| format!("{}: files are missing", snapshot.display()))?;
        self.cache.repo(self.id.repo_at(&self.id.revision)).create_ref(&info.sha)?;
        Ok(found)
    }

    fn api(&self) -> Result<Api, ApiError> {
        ApiBuilder::from_cache(self.cache.clone())
            .with_endpoint(self.endpoint.clone())
            .with_token(self.token.clone())
            .with_progress(false)
            .with_user_agent("hybra", env!("CARGO_PKG_VERSION"))
            .build()
    }

    /// The files to fetch, last first.
    fn wanted(&self, names: &BTreeSet<&'a str>) -> Result<Vec<&'a str>>
    where
        Self: 'a,
    {
        let repo = &self.id.repo;
        let ggufs: Vec<&str> = names.iter().copied().filter(|n| n.ends_with(".gguf")).collect();
        if let Some(file) = &self.id.file {
            return match ggufs.iter().find(|name| *name == file) {
                Some(name) => Ok(vec![name]),
                None => bail!("{repo}: no file {file}; its GGUF files: {}", ggufs.join(", ")),
            };
        }
        let weights = [SINGLE, INDEX].into_iter().find(|name| names.contains(name));
        let Some(weights) = weights else {
            if let Some(first) = ggufs.first() {
                let list = ggufs.join(", ");
                bail!("{repo}: only GGUF files; name one, as in {repo}:{first} (it has {list})");
            }
            bail!("{repo}: no safetensors weights and no GGUF files");
        };
        if !names.contains(SIDE_FILES[0]) {
            bail!("{repo}: no {}", SIDE_FILES[0]);
        }
        if self.want == Want::Config {
            return Ok(vec![SIDE_FILES[0]]);
        }
        let side = SIDE_FILES.into_iter().filter(|name| names.contains(name));
        Ok([weights].into_iter().chain(side).collect())
    }

    /// Downloads one file; a broken connection is tried again from where it broke.
    fn download_file(&self, repo: &ApiRepo, name: &str) -> Result<()> {
        for attempt in 1.. {
            let expected = Cell::new(0);
            let bar = Bar { expected: &expected, progress: None };
            let broken = match repo.download_with_progress(name, bar) {
                Ok(path) if is_whole(&path, expected.get())? => return Ok(()),
                Ok(_) => None,
                Err(cause) => Some(cause),
            };
            let is_refused = broken.as_ref().is_some_and(|cause| is_status(&cause.to_string()));
            if attempt == ATTEMPTS || is_refused {
                return Err(match broken {
                    Some(cause) => self.refused(&cause).context(format!("downloading {name}")),
                    None => anyhow::anyhow!("{name}: the download ended early; run it again"),
                });
            }
            std::thread::sleep(Duration::from_secs(1));
        }
        unreachable!("the last attempt returns")
    }

    fn unreachable(&self, why: &str) -> anyhow::Error {
        let HubId { repo, revision, file } = self.id;
        let file = file.as_ref().map_or_else(String::new, |file| format!(":{file}"));
        let cache = self.cache.path().display();
        anyhow::anyhow!(
            "{repo}{file}: neither a local path nor (revision {revision}) in the cache at {cache}, \
             and the network cannot be used: {why}. Give the path of a local directory or .gguf \
             file instead, or set HF_HOME to a cache that has the model"
        )
    }

    fn refused(&self, cause: &ApiError) -> anyhow::Error {
        let (repo, cause) = (&self.id.repo, cause.to_string());
        let cause = cause.trim_start_matches("request error: ");
        if is_status(cause) {
            let access = if self.token.is_some() { "the token may read it" } else { "HF_TOKEN" };
            return anyhow::anyhow!(
                "{repo}: {} answers with {cause}: check the name and the revision {:?}; a private \
                 or gated model needs access ({access})",
                self.endpoint,
                self.id.revision
            );
        }
        self.unreachable(cause)
    }
}

/// Whether the hub was reached and said no.
fn is_status(cause: &str) -> bool {
    cause.contains("http status")
}

/// The shards that an index names.
fn shards(index: &Path) -> Result<BTreeSet<String>> {
    let read = || -> Result<BTreeSet<String>> {
        let json: Value = serde_json::from_str(&fs::read_to_string(index)?)?;
        let map = json["weight_map"].as_object().context("no weight_map")?;
        let names = map.values().map(|name| name.as_str().filter(|name| is_plain(name)));
        let names = names.map(|name| name.map(str::to_owned)).collect::<Option<_>>();
        names.context("weight_map names something other than files beside it")
    };
    read().with_context(|| index.display().to_string())
}
