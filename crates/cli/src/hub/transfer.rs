//! The network side of a download: whether a server answers, progress, and whether a file is whole.

use crate::progress::Progress;
use crate::size;
use anyhow::Result;
use std::cell::Cell;
use std::fs;
use std::net::{TcpStream, ToSocketAddrs};
use std::path::Path;
use std::sync::mpsc;
use std::time::Duration;

/// How long to wait for the hub to answer a first connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Finds out within [`CONNECT_TIMEOUT`] whether the endpoint can be reached: the download client
/// would wait for minutes.
pub(super) fn connect(endpoint: &str) -> Result<(), String> {
    let (scheme, rest) = endpoint.split_once("://").unwrap_or(("https", endpoint));
    let host = rest.split('/').next().unwrap_or_default().to_owned();
    let port = if scheme == "http" { 80 } else { 443 };
    let address = if host.contains(':') { host.clone() } else { format!("{host}:{port}") };
    let (send, receive) = mpsc::channel();
    // Name resolution has no timeout of its own; a thread that is left behind ends by itself.
    std::thread::spawn(move || {
        let connect = || -> std::io::Result<()> {
            let mut last = std::io::Error::other("no address");
            for address in address.to_socket_addrs()? {
                match TcpStream::connect_timeout(&address, CONNECT_TIMEOUT) {
                    Ok(_) => return Ok(()),
                    Err(error) => last = error,
                }
            }
            Err(last)
        };
        let _ = send.send(connect().map_err(|error| error.to_string()));
    });
    let answer = receive.recv_timeout(CONNECT_TIMEOUT);
    answer
        .unwrap_or_else(|_| Err("no answer".to_owned()))
        .map_err(|cause| format!("{host} is not reachable ({cause})"))
}

/// Whether a download has the size that the hub announced. A short one becomes a partial file
/// again, which the next attempt continues; a long one goes.
pub(super) fn is_whole(pointer: &Path, expected: u64) -> Result<bool> {
    let blob = pointer.canonicalize()?;
    let found = fs::metadata(&blob)?.len();
    if found == expected {
        return Ok(true);
    }
    fs::remove_file(pointer)?;
    if found < expected {
        fs::rename(&blob, blob.with_extension("part"))?;
    } else if blob.exists() {
        fs::remove_file(&blob)?;
    }
    Ok(false)
}

/// Shows a download and notes its size.
pub(super) struct Bar<'a> {
    pub(super) expected: &'a Cell<u64>,
    pub(super) progress: Option<Progress>,
}

impl hf_hub::api::Progress for Bar<'_> {
    fn init(&mut self, size: usize, filename: &str) {
        // Called again when the transfer begins.
        if self.progress.is_none() {
            self.expected.set(size as u64);
            eprintln!("downloading {filename} ({})", size::bytes(size as u64));
            self.progress = Some(Progress::bytes(filename, size as u64));
        }
    }

    fn update(&mut self, size: usize) {
        if let Some(progress) = &mut self.progress {
            progress.advance(size as u64);
        }
    }

    fn finish(&mut self) {
        self.progress = None;
    }
}
