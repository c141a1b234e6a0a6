//! Connections: accepted up to a number, with limits on headers, idle time and slow readers.
//!
//! HTTP/1.1 only. A connection above the limit gets 503 and is closed; no other one notices.

use crate::config::{MAX_HEADER_BYTES, MAX_HEADERS};
use crate::front::Front;
use crate::lifecycle::Phase;
use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_io_timeout::TimeoutStream;
use tokio_rustls::TlsAcceptor;

/// Wait after a failed accept: the process has no descriptors left, or the system no memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Longest time to agree on keys.
const TLS_TIMEOUT: Duration = Duration::from_secs(10);

/// What a connection above the limit gets.
const REFUSAL: &str =
    r#"{"error":{"message":"too many connections","type":"server_error","code":"busy"}}"#;

/// Accepts connections until the end, then waits until they have written what they had to say.
pub async fn accept(listener: TcpListener, tls: Option<TlsAcceptor>, front: Arc<Front>) {
    let router = front.router();
    let places = Arc::new(Semaphore::new(front.config.max_connections));
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = front.lifecycle.reached(Phase::Ended) => break,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "accept");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let Ok(place) = Arc::clone(&places).try_acquire_owned() else {
            refuse(&stream, tls.is_none());
            continue;
        };
        // Tokens are small and must not wait for more.
        let _ = stream.set_nodelay(true);
        let (router, front, tls) = (router.clone(), Arc::clone(&front), tls.clone());
        tokio::spawn(async move {
            match tls {
                None => connection(stream, router, &front).await,
                Some(tls) => {
                    // A failed agreement is the client's affair.
                    if let Ok(Ok(stream)) =
                        tokio::time::timeout(TLS_TIMEOUT, tls.accept(stream)).await
                    {
                        connection(stream, router, &front).await;
                    }
                }
            }
            drop(place);
        });
    }
    // A request has ended once its last byte is handed over, a connection once it is written.
    let all = u32::try_from(front.config.max_connections).unwrap_or(u32::MAX);
    let _ = places.acquire_many(all).await;
}

/// Without waiting: what does not fit into the socket's buffer is lost.
fn refuse(stream: &TcpStream, plain: bool) {
    if plain {
        let head = "HTTP/1.1 503 Service Unavailable\r\nretry-after: 1\r\nconnection: close\r\n\
            content-type: application/json";
        let reply = format!("{head}\r\ncontent-length: {}\r\n\r\n{REFUSAL}", REFUSAL.len());
        let _ = stream.try_write(reply.as_bytes());
    }
}

async fn connection<S>(stream: S, router: Router, front: &Front)
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let mut stream = TimeoutStream::new(stream);
    stream.set_write_timeout(Some(front.config.write_timeout));
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        // The wait for a next request is part of it: it ends idle connections, too.
        .header_read_timeout(front.config.read_timeout)
        // Twice what is allowed, so that most offenders get an answer in words.
        .max_buf_size(2 * MAX_HEADER_BYTES)
        .max_headers(2 * MAX_HEADERS)
        .serve_connection(TokioIo::new(Box::pin(stream)), TowerToHyperService::new(router));
    tokio::pin!(connection);
    tokio::select! {
        // Connections break; their requests have their own lines in the log.
        _ = connection.as_mut() => return,
        () = front.lifecycle.reached(Phase::Ended) => {}
    }
    connection.as_mut().graceful_shutdown();
    let _ = connection.await;
}
