//! What a server is set to; the command line makes it.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

/// Most bytes of a request's body.
pub const MAX_BODY_BYTES: usize = 16 << 20;

/// Most bytes of a request's headers, names and values.
pub const MAX_HEADER_BYTES: usize = 32 << 10;

/// Most headers of a request.
pub const MAX_HEADERS: usize = 100;

/// Most bytes of an API key.
pub const MAX_KEY_BYTES: usize = 256;

/// Settings of a server.
#[derive(Clone, Debug)]
pub struct ServerConfig {
    /// Where it listens; port 0 takes a free one.
    pub listen: SocketAddr,
    /// Certificate and key: speak TLS.
    pub tls: Option<TlsFiles>,
    /// Keys of which one must be sent; none: everyone may ask.
    pub api_keys: Vec<String>,
    /// Pages of these origins may ask from a browser; `*`: all pages.
    pub cors_origins: Vec<String>,
    /// Names under which the model answers, beside its own.
    pub served_model_names: Vec<String>,
    /// Time between comments that keep a stream alive.
    pub keep_alive: Duration,
    /// Events that a stream's reader may be behind before it is cancelled.
    pub stream_buffer: usize,
    /// Longest time of a request; requests may ask for less.
    pub timeout: Option<Duration>,
    /// Longest time for a request to arrive, and for a connection to be idle.
    pub read_timeout: Duration,
    /// Longest time for a client to take nothing of what is sent to it.
    pub write_timeout: Duration,
    /// Connections at the same time; further ones are refused.
    pub max_connections: usize,
    /// Time for running requests to end, after a signal.
    pub grace_period: Duration,
    /// Where spans of requests go, as OTLP over HTTP; none: nowhere.
    pub otlp_traces_endpoint: Option<String>,
    /// Logs hold the text of prompts.
    pub log_prompts: bool,
    /// Replies are read into the cache while nothing else is to do, for the next turn.
    pub warm: bool,
}

/// PEM files.
#[derive(Clone, Debug)]
pub struct TlsFiles {
    /// The certificate, followed by those that sign it.
    pub cert: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

impl Default for ServerConfig {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 8000)),
            tls: None,
            api_keys: Vec::new(),
            cors_origins: Vec::new(),
            served_model_names: Vec::new(),
            keep_alive: Duration::from_secs(15),
            stream_buffer: 65_536,
            timeout: None,
            read_timeout: Duration::from_secs(30),
            write_timeout: Duration::from_secs(30),
            max_connections: 512,
            grace_period: Duration::from_secs(30),
            otlp_traces_endpoint: None,
            log_prompts: false,
            warm: true,
        }
    }
}

/// A setting that no server can have.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// An API key.
    #[error(
        "API key {index}: expected 1 to {MAX_KEY_BYTES} visible ASCII characters without spaces"
    )]
    Key {
        /// Which, from 1.
        index: usize,
    },
    /// An origin.
    #[error("cors-origin: expected * or an origin such as https://example.org, found {found:?}")]
    Origin {
        /// As given.
        found: String,
    },
    /// Where traces should go.
    #[error(
        "otlp-traces-endpoint: expected a URL such as http://localhost:4318/v1/traces, found {found:?}: {reason}"
    )]
    TracesEndpoint {
        /// As given.
        found: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A file of TLS.
    #[error("{path}: {message}")]
    Tls {
        /// Which.
        path: String,
        /// What is wrong with it.
        message: String,
    },
}
