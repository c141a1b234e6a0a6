//! What a server is set to; the command line makes it.

use std::net::SocketAddr;
use std::time::Duration;

/// Most bytes of a request's body.
pub const MAX_BODY_BYTES: usize = 16 << 20;

/// Settings of a server.
#[derive(Clone, Debug)]
pub struct ServerConfig {
    /// Where it listens; port 0 takes a free one.
    pub listen: SocketAddr,
    /// Keys of which one must be sent; none: everyone may ask.
    pub api_keys: Vec<String>,
    /// Names under which the model answers, beside its own.
    pub served_model_names: Vec<String>,
    /// Time between comments that keep a stream alive.
    pub keep_alive: Duration,
    /// Events that a stream's reader may be behind before it is cancelled.
    pub stream_buffer: usize,
}

impl Default for ServerConfig {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 8000)),
            api_keys: Vec::new(),
            served_model_names: Vec::new(),
            keep_alive: Duration::from_secs(15),
            stream_buffer: 4096,
        }
    }
}
