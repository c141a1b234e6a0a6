//! Who may ask, from where, and over TLS.

use crate::server::{CHAT, Reply, Server, chat};
use serde_json::Value;
use std::io::Write;
use std::sync::Arc;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

const KEY: &str = "x-api-key: second\r\n";

#[test]
fn every_route_but_health_and_the_page_needs_a_key() {
    let server = Server::start(&["--api-key", "first", "--api-key", "second"]);
    let document: Value = serde_json::from_str(&server.get("/openapi.json", KEY).body).unwrap();
    let paths: Vec<_> = document["paths"].as_object().unwrap().keys().cloned().collect();
    assert!(paths.len() > 5, "{paths:?}");
    let more = ["/metrics", "/openapi.json", "/v1/nothing", "/v1/", "//"].map(str::to_owned);
    for path in paths.iter().chain(&more).filter(|path| !path.starts_with("/health")) {
        for wrong in ["", "x-api-key: thir\r\n", "authorization: Bearer \r\n", "x-api-key: \0\r\n"]
        {
            for reply in [server.get(path, wrong), server.post(path, wrong, "{}")] {
                // A zero byte is no header at all.
                let expected = if wrong.contains('\0') { 400 } else { 401 };
                assert_eq!(reply.status, expected, "{path} {wrong:?}: {}", reply.head);
            }
        }
        assert_ne!(server.get(path, KEY).status, 401, "{path}");
    }
    for open in ["/health", "/health/live", "/", "/app.js"] {
        assert_eq!(server.get(open, "").status, 200, "{open}");
    }
    let asked = server.post(CHAT, "authorization: Bearer first\r\n", &chat(""));
    assert_eq!(asked.status, 200, "{}", asked.body);
    assert_eq!(server.get("/v1/models?api_key=first", KEY).status, 400);
    let said = server.said();
    assert!(!said.contains("first") && !said.contains("second"), "{said}");
}

#[test]
fn other_origins_get_nothing_unless_named() {
    let ask = |server: &Server| {
        server.raw(format!(
            "OPTIONS {CHAT} HTTP/1.1\r\nhost: a\r\nconnection: close\r\norigin: https://a.org\r\n\
             access-control-request-method: POST\r\n\r\n"
        ))
    };
    let closed = Server::start(&["--api-key", "k"]);
    assert!(!ask(&closed).head.contains("access-control-allow-origin"));
    let open = Server::start(&["--api-key", "k", "--cors-origin", "https://a.org"]);
    let head = ask(&open).head;
    assert!(head.contains("access-control-allow-origin: https://a.org"), "{head}");
    assert!(!head.contains("allow-credentials"), "{head}");
    let other = open.get("/health", "origin: https://b.org\r\n").head;
    assert!(!other.contains("allow-origin: https://b.org"), "{other}");
}

#[test]
fn tls_is_spoken_with_the_given_certificate() {
    let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/server_ops");
    let (cert, key) = (format!("{dir}/cert.pem"), format!("{dir}/key.pem"));
    let server = Server::start(&["--tls-cert", &cert, "--tls-key", &key]);
    assert!(server.said().contains("https://127.0.0.1:"));
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(&cert).unwrap()).unwrap();
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let name = ServerName::try_from("localhost").unwrap();
    let connection = ClientConnection::new(Arc::new(config), name).unwrap();
    let mut stream = StreamOwned::new(connection, server.connect());
    stream.write_all(b"GET /v1/models HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").unwrap();
    assert_eq!(Reply::read(&mut stream).status, 200);
    // Plain text is no TLS, and harms nobody.
    assert_eq!(server.get("/health", "").status, 0);
}
