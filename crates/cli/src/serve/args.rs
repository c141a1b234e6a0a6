//! Options of `hybra serve`, and what they mean to the server and to the engine.
//!
//! Each can also be set by an environment variable or in a file: see [`super::settings`].

use crate::cpu::ModelArgs;
use crate::options::{StateArgs, StateDtypeArg};
use crate::session::Limits;
use crate::size::parse_bytes;
use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use hybra_engine::{EngineConfig, MAX_SPECULATIVE_TOKENS, ServerBudget};
use hybra_server::{ServerConfig, TlsFiles};
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;
use tracing::level_filters::LevelFilter;

/// Serve a model over the OpenAI and Anthropic APIs, with a web page at /
///
/// Every option can also be set by the environment (--max-queue: HYBRA_MAX_QUEUE) and in a TOML
/// file (--config serve.toml, with a line max-queue = 64). The command line goes before the
/// environment, the environment before the file.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  hybra serve
  hybra serve ./nano2-9b --host 0.0.0.0 --api-key-file keys.txt
  hybra serve --config serve.toml --print-config
  HYBRA_API_KEY=secret hybra serve --tls-cert cert.pem --tls-key key.pem
  curl localhost:8000/v1/chat/completions -H 'content-type: application/json' \\
    -d '{\"messages\": [{\"role\": \"user\", \"content\": \"c=b-7;b=0;d=c*9;d?\"}]}'")]
pub(crate) struct Args {
    /// Directory, .gguf file or hub id [default: the model inside this binary]
    pub(super) model: Option<String>,
    /// Read settings from this TOML file; its keys are the names of the options
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Print the settings in force as TOML, without keys, and where each comes from; then stop
    #[arg(long)]
    pub(crate) print_config: bool,
    #[command(flatten)]
    http: HttpArgs,
    #[command(flatten)]
    limits: LimitArgs,
    #[command(flatten)]
    pub(super) engine: EngineArgs,
    #[command(flatten)]
    pub(super) log: LogArgs,
    #[command(flatten)]
    pub(super) cpu: ModelArgs,
}

/// Who reaches the server, and how.
#[derive(clap::Args)]
#[command(next_help_heading = "Access")]
struct HttpArgs {
    /// Address to listen at
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1")]
    host: IpAddr,
    /// Port to listen at (0: a free one)
    #[arg(long, value_name = "PORT", default_value_t = 8000)]
    port: u16,
    /// Key that requests must send (repeatable, or separated by commas) [default: none needed]
    #[arg(long, value_name = "KEY", value_delimiter = ',')]
    api_key: Vec<String>,
    /// File of such keys, one a line
    #[arg(long, value_name = "FILE")]
    api_key_file: Option<PathBuf>,
    /// Let web pages of this origin ask (repeatable; *: all pages) [default: none but our own]
    #[arg(long, value_name = "ORIGIN", value_delimiter = ',')]
    cors_origin: Vec<String>,
    /// Speak TLS with this certificate chain (PEM)
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    tls_cert: Option<PathBuf>,
    /// Its private key (PEM)
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_key: Option<PathBuf>,
    /// Another name of the model (repeatable)
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    served_model_name: Vec<String>,
}

/// How much, and how long.
#[derive(clap::Args)]
#[command(next_help_heading = "Limits")]
struct LimitArgs {
    /// Sequences that wait for a place; more are refused with 429
    #[arg(long, value_name = "N", default_value_t = 128)]
    max_queue: u32,
    /// Longest time of a request; one may ask for less in x-request-timeout [default: none]
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(1..))]
    timeout: Option<u32>,
    /// Longest time for a request to arrive, and for a connection to be idle
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..))]
    read_timeout: u32,
    /// Longest time for a client to read nothing of its reply
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..))]
    write_timeout: u32,
    /// Connections at the same time; more are refused with 503
    #[arg(long, value_name = "N", default_value_t = 512)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..))]
    max_connections: u32,
    /// Time for running requests to end after SIGTERM or SIGINT
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    grace_period: u32,
}

/// What the engine is set to.
#[derive(clap::Args)]
#[command(next_help_heading = "Engine")]
pub(super) struct EngineArgs {
    /// Most tokens of prompt and output [default: the model's]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(2..))]
    context: Option<u32>,
    /// Sequences in the batch
    #[arg(long, value_name = "N", default_value_t = 16)]
    #[arg(value_parser = clap::value_parser!(u16).range(1..))]
    max_num_seqs: u16,
    /// Tokens of one step
    #[arg(long, value_name = "N", default_value_t = 512)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..))]
    max_num_batched_tokens: u32,
    /// Tokens of prompts in a step while replies are generated: more serve new requests sooner,
    /// fewer keep the running ones smooth (below 64, pieces of 64 take several steps); as many times
    /// more as prompts are being read for each reply that is generated
    #[arg(long, value_name = "N", default_value_t = 8)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..))]
    max_prefill_while_decoding: u32,
    /// Memory for the states of running requests and of the cache [default: no limit; on
    /// a GPU what weights leave]
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes)]
    state_memory: Option<u64>,
    /// Memory for states of prompts that later prompts go on from (0: none)
    #[arg(long, value_name = "SIZE", default_value = "1GiB", value_parser = parse_bytes)]
    cache_memory: u64,
    /// Folder in which such states outlive the server
    #[arg(long, value_name = "DIR")]
    cache_dir: Option<PathBuf>,
    /// Bytes of files in it
    #[arg(long, value_name = "SIZE", default_value = "16GiB", value_parser = parse_bytes)]
    cache_dir_size: u64,
    /// Number type of the recurrent state in the cache [default: that of running requests]
    #[arg(long, value_enum)]
    cache_state_dtype: Option<StateDtypeArg>,
    /// Do not read replies into the cache in idle time, for the next turn
    #[arg(long)]
    no_warm: bool,
    #[command(flatten)]
    pub(super) state: StateArgs,
    /// Guess up to N tokens ahead from what the text repeats and check them in one step: the same
    /// output, faster where it repeats itself [default: off; without N: 8]
    #[arg(long, value_name = "N", num_args = 0..=1, default_missing_value = "8")]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=MAX_SPECULATIVE_TOKENS as i64))]
    speculate: Option<u32>,
    /// Thinking budget of requests that name none [default: no limit]
    #[arg(long, value_name = "N")]
    thinking_budget: Option<u32>,
    /// Ceiling for the thinking budget of every request [default: none]
    #[arg(long, value_name = "N")]
    max_thinking_budget: Option<u32>,
}

/// The form of the log.
#[derive(Clone, Copy, PartialEq, ValueEnum)]
pub(super) enum LogFormat {
    /// For people
    Human,
    /// One object a line
    Json,
}

/// What is told about requests: logged to stderr, and traced.
#[derive(clap::Args)]
#[command(next_help_heading = "Log and traces")]
pub(super) struct LogArgs {
    /// Form of the log
    #[arg(long, value_enum, default_value = "human")]
    pub(super) log_format: LogFormat,
    /// Least important level: off, error, warn, info, debug, trace
    #[arg(long, value_name = "LEVEL", default_value = "info")]
    pub(super) log_level: LevelFilter,
    /// Log the text of prompts, which by default never is
    #[arg(long)]
    log_prompts: bool,
    /// Send spans of requests to an OpenTelemetry collector: OTLP over HTTP, the URL as in
    /// http://localhost:4318/v1/traces [default: nowhere]
    #[arg(long, value_name = "URL")]
    otlp_traces_endpoint: Option<String>,
}

impl Args {
    /// The server's form.
    pub(super) fn server(&self) -> Result<ServerConfig> {
        let (http, limits) = (&self.http, &self.limits);
        let seconds = |n: u32| Duration::from_secs(u64::from(n));
        let files = http.tls_cert.clone().zip(http.tls_key.clone());
        Ok(ServerConfig {
            listen: SocketAddr::new(http.host, http.port),
            tls: files.map(|(cert, key)| TlsFiles { cert, key }),
            api_keys: self.api_keys()?,
            cors_origins: http.cors_origin.clone(),
            served_model_names: http.served_model_name.clone(),
            timeout: limits.timeout.map(seconds),
            read_timeout: seconds(limits.read_timeout),
            write_timeout: seconds(limits.write_timeout),
            max_connections: limits.max_connections as usize,
            grace_period: seconds(limits.grace_period),
            otlp_traces_endpoint: self.log.otlp_traces_endpoint.clone(),
            log_prompts: self.log.log_prompts,
            warm: !self.engine.no_warm,
            ..ServerConfig::default()
        })
    }

    fn api_keys(&self) -> Result<Vec<String>> {
        let mut keys = self.http.api_key.clone();
        if let Some(path) = &self.http.api_key_file {
            let name = path.display().to_string();
            let text = std::fs::read_to_string(path).with_context(|| name.clone())?;
            let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
            let before = keys.len();
            keys.extend(lines.map(ToOwned::to_owned));
            if keys.len() == before {
                bail!("{name}: expected keys, one a line, found none");
            }
        }
        Ok(keys)
    }

    /// Sequences that may wait.
    pub(super) fn max_queue(&self) -> usize {
        self.limits.max_queue as usize
    }

    /// The session's form of the limits of one sequence.
    pub(super) fn limits(&self) -> Limits {
        Limits {
            state: self.engine.state,
            context: self.engine.context.map(|c| c as usize),
            num_speculative_tokens: self.engine.speculate.map_or(0, |n| n as usize),
        }
    }
}

impl EngineArgs {
    /// The engine's form of the rest.
    pub(super) fn config(&self) -> EngineConfig {
        EngineConfig {
            max_num_seqs: usize::from(self.max_num_seqs),
            max_num_batched_tokens: self.max_num_batched_tokens as usize,
            max_prefill_while_decoding: self.max_prefill_while_decoding as usize,
            state_memory: self.state_memory.map(|bytes| bytes as usize),
            cache_memory: self.cache_memory as usize,
            cache_dir: self.cache_dir.clone(),
            cache_dir_bytes: self.cache_dir_size,
            cache_state_dtype: self.cache_state_dtype.map(Into::into),
            server_budget: ServerBudget {
                default: self.thinking_budget,
                ceiling: self.max_thinking_budget,
            },
            ..EngineConfig::default()
        }
    }
}
