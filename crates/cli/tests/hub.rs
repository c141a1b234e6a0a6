//! Models by hub id: the cache, no network, and downloads from a server on this machine.

mod support;

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use support::{hybra, hybra_with};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

#[test]
fn offline_is_one_clear_error() {
    let home = tempfile::tempdir().unwrap();
    let started = Instant::now();
    let env = [("HF_HOME", home.path().to_str().unwrap())];
    let run = hybra_with(home.path(), &env, &["inspect", "some/model"]);
    assert_eq!(run.code, 1);
    assert_eq!(run.stderr.lines().count(), 1, "{}", run.stderr);
    let cache = home.path().join("hub");
    for part in ["some/model", cache.to_str().unwrap(), "HF_HUB_OFFLINE", "local directory"] {
        assert!(run.stderr.contains(part), "{part:?} is not in {}", run.stderr);
    }
    // A port that nothing listens on.
    let endpoint = {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        format!("http://{}", listener.local_addr().unwrap())
    };
    let env = [env[0], ("HF_HUB_OFFLINE", "0"), ("HF_ENDPOINT", &endpoint)];
    let run = hybra_with(home.path(), &env, &["inspect", "some/model"]);
    assert_eq!(run.code, 1);
    assert!(run.stderr.contains("not reachable") && run.stderr.lines().count() == 1);
    assert!(started.elapsed() < Duration::from_secs(20));
}

#[test]
fn a_complete_copy_in_the_cache_needs_no_network() {
    let home = tempfile::tempdir().unwrap();
    let repo = home.path().join("elsewhere/models--me--tiny");
    let snapshot = repo.join("snapshots").join(COMMIT);
    fs::create_dir_all(repo.join("snapshots")).unwrap();
    hybra(home.path(), &["init", "micro", snapshot.to_str().unwrap()]);
    fs::create_dir_all(repo.join("refs")).unwrap();
    fs::write(repo.join("refs/main"), COMMIT).unwrap();
    let cache = home.path().join("elsewhere");
    let env = [("HF_HUB_CACHE", cache.to_str().unwrap())];
    for id in ["me/tiny", &format!("me/tiny@{COMMIT}")] {
        let run = hybra_with(home.path(), &env, &["inspect", id]);
        assert_eq!(run.code, 0, "{}", run.stderr);
        assert!(run.stdout.starts_with(id), "{}", run.stdout);
    }
    fs::remove_file(snapshot.join("model.safetensors")).unwrap();
    // The config alone is enough to inspect, but not to convert.
    assert_eq!(hybra_with(home.path(), &env, &["inspect", "me/tiny"]).code, 0);
    let run = hybra_with(home.path(), &env, &["convert", "me/tiny", "out"]);
    assert!(run.code == 1 && run.stderr.contains("neither a local path"), "{}", run.stderr);
}

#[test]
fn a_download_goes_on_where_it_broke_and_takes_no_code() {
    let home = tempfile::tempdir().unwrap();
    hybra(home.path(), &["init", "micro", "model", "--dtype", "f32"]);
    let server = Server::start(home.path().join("model"));
    let endpoint = server.endpoint.as_str();
    let env = [
        ("HF_HOME", home.path().to_str().unwrap()),
        ("HF_HUB_OFFLINE", "0"),
        ("HF_ENDPOINT", endpoint),
        ("HF_TOKEN", "secret"),
    ];
    let run = hybra_with(home.path(), &env, &["inspect", "me/tiny"]);
    assert_eq!(run.code, 0, "{}", run.stderr);
    assert!(server.paths().iter().all(|path| !path.contains("safetensors")));
    let run = hybra_with(home.path(), &env, &["convert", "me/tiny", "copy"]);
    assert_eq!(run.code, 0, "{}", run.stderr);
    let read = |dir: &str| fs::read(home.path().join(dir).join("model.safetensors")).unwrap();
    assert!(read("model") == read("copy"), "the weights differ");
    let half = read("model").len() / 2;
    let requests = server.requests.lock().unwrap();
    let ranges = |r: &&Request| r.path.ends_with("/model.safetensors") && r.range != "bytes=0-0";
    let ranges: Vec<&str> = requests.iter().filter(ranges).map(|r| r.range.as_str()).collect();
    assert_eq!(ranges, ["bytes=0-".to_owned(), format!("bytes={half}-")]);
    assert!(requests.iter().all(|r| r.token == "Bearer secret"));
    assert!(requests.iter().all(|r| !r.path.ends_with(".py") && !r.path.ends_with(".bin")));
    drop(requests);
    // Everything is in the cache now.
    let env = [("HF_HOME", home.path().to_str().unwrap())];
    let run = hybra_with(home.path(), &env, &["convert", "me/tiny", "again"]);
    assert_eq!(run.code, 0, "{}", run.stderr);
}

#[test]
fn what_the_hub_refuses_is_told() {
    let home = tempfile::tempdir().unwrap();
    fs::create_dir(home.path().join("model")).unwrap();
    fs::write(home.path().join("model/x-Q4_0.gguf"), "").unwrap();
    let server = Server::start(home.path().join("model"));
    let env = [
        ("HF_HOME", home.path().to_str().unwrap()),
        ("HF_HUB_OFFLINE", "0"),
        ("HF_ENDPOINT", server.endpoint.as_str()),
    ];
    let error = |id: &str| hybra_with(home.path(), &env, &["inspect", id]).stderr;
    let missing = error("me/other");
    assert!(missing.contains("404") && missing.contains("HF_TOKEN"), "{missing}");
    let gguf = error("me/tiny");
    assert!(gguf.contains("me/tiny:x-Q4_0.gguf"), "{gguf}");
    let file = error("me/tiny:y.gguf");
    assert!(file.contains("no file y.gguf") && file.contains("x-Q4_0.gguf"), "{file}");
}

/// One request as the server saw it.
#[derive(Default)]
struct Request {
    path: String,
    range: String,
    token: String,
}

/// A hub with one model, `me/tiny`. The first transfer of the weights breaks off in the middle.
struct Server {
    endpoint: String,
    requests: Arc<Mutex<Vec<Request>>>,
}

impl Server {
    fn start(dir: std::path::PathBuf) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let requests = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&requests);
        std::thread::spawn(move || {
            let mut broke = false;
            for stream in listener.incoming() {
                // A client that only looks whether the port is open sends nothing.
                let Some(request) = read_request(stream.as_ref().unwrap()) else { continue };
                answer(stream.unwrap(), &request, &dir, &mut broke);
                log.lock().unwrap().push(request);
            }
        });
        Self { endpoint, requests }
    }

    fn paths(&self) -> Vec<String> {
        self.requests.lock().unwrap().iter().map(|r| r.path.clone()).collect()
    }
}

fn read_request(stream: &TcpStream) -> Option<Request> {
    let mut lines = BufReader::new(stream).lines();
    let first = lines.next()?.ok()?;
    let path = first.split(' ').nth(1)?.to_owned();
    let mut request = Request { path, ..Request::default() };
    for line in lines.map_while(Result::ok).take_while(|line| !line.is_empty()) {
        let (name, value) = line.split_once(": ")?;
        match name.to_lowercase().as_str() {
            "range" => request.range = value.to_owned(),
            "authorization" => request.token = value.to_owned(),
            _ => {}
        }
    }
    Some(request)
}

fn answer(mut stream: TcpStream, request: &Request, dir: &Path, broke: &mut bool) {
    let mut send = |status: &str, headers: &str, body: &[u8], sent: usize| {
        let len = body.len();
        let _ = write!(
            stream,
            "HTTP/1.1 {status}\r\nContent-Length: {len}\r\nConnection: close\r\n{headers}\r\n"
        );
        let _ = stream.write_all(&body[..sent]);
    };
    if request.path == "/api/models/me/tiny/revision/main" {
        let files = fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name());
        let mut names: Vec<String> = files.map(|n| n.into_string().unwrap()).collect();
        names.extend(["modeling.py".to_owned(), "pytorch_model.bin".to_owned()]);
        let list: Vec<_> = names.iter().map(|n| serde_json::json!({"rfilename": n})).collect();
        let body = serde_json::json!({"sha": COMMIT, "siblings": list}).to_string();
        return send("200 OK", "", body.as_bytes(), body.len());
    }
    let prefix = format!("/me/tiny/resolve/{COMMIT}/");
    let Some(name) = request.path.strip_prefix(&prefix) else {
        return send("404 Not Found", "", b"", 0);
    };
    let whole = fs::read(dir.join(name)).unwrap();
    let (start, end) = request.range["bytes=".len()..].split_once('-').unwrap();
    let start: usize = start.parse().unwrap();
    let end = end.parse().map_or(whole.len(), |end: usize| end + 1);
    let body = &whole[start..end];
    let headers = format!(
        "ETag: \"tag-{name}\"\r\nX-Repo-Commit: {COMMIT}\r\nContent-Range: bytes {start}-{}/{}\r\n",
        end - 1,
        whole.len()
    );
    let breaks = name == "model.safetensors" && body.len() > 1 && !*broke;
    *broke |= breaks;
    let sent = if breaks { whole.len() / 2 } else { body.len() };
    send("206 Partial Content", &headers, body, sent);
}
