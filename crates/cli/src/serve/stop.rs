//! Signals: the first one asks the server to stop, the second one ends the process.

use anyhow::{Context, Result};

/// Ready at the first signal; from then on a second one ends the process at once.
#[cfg(unix)]
pub(super) fn signal() -> Result<impl Future<Output = ()>> {
    use tokio::signal::unix::{SignalKind, signal};
    let listen = |kind| signal(kind).context("signal handler");
    let (mut term, mut int) = (listen(SignalKind::terminate())?, listen(SignalKind::interrupt())?);
    let mut next = async move || {
        tokio::select! {
            _ = term.recv() => SignalKind::terminate(),
            _ = int.recv() => SignalKind::interrupt(),
        }
    };
    Ok(async move {
        next().await;
        tracing::info!("draining; a second signal ends at once");
        tokio::spawn(async move {
            let kind = next().await;
            std::process::exit(128 + kind.as_raw_value());
        });
    })
}

/// As on Unix, for the one signal there is.
#[cfg(not(unix))]
pub(super) fn signal() -> Result<impl Future<Output = ()>> {
    Ok(async {
        // Without a handler the process cannot be asked to stop; it still can be ended.
        if tokio::signal::ctrl_c().await.context("signal handler").is_err() {
            return std::future::pending().await;
        }
        tokio::spawn(async {
            let _ = tokio::signal::ctrl_c().await;
            std::process::exit(130);
        });
    })
}
