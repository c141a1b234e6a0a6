//! The web page at `/`: static files inside the binary, with nothing to build and nothing to fetch
//! from elsewhere.
//!
//! What always holds: the files hold no secret and ask for none on their own; the content security
//! policy keeps the page from running or loading anything that is not one of them.

use axum::Router;
use axum::http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS,
};
use axum::response::IntoResponse;
use axum::routing::get;

const POLICY: &str = "default-src 'self'; base-uri 'none'; form-action 'none'; \
    frame-ancestors 'none'; object-src 'none'";

const HTML: &str = "text/html; charset=utf-8";
const CSS: &str = "text/css; charset=utf-8";
const JS: &str = "text/javascript; charset=utf-8";
const SVG: &str = "image/svg+xml";

/// Path, content type and text of every file.
pub const FILES: [(&str, &str, &str); 10] = [
    ("/", HTML, include_str!("ui/index.html")),
    ("/style.css", CSS, include_str!("ui/style.css")),
    ("/favicon.svg", SVG, include_str!("ui/favicon.svg")),
    ("/app.js", JS, include_str!("ui/app.js")),
    ("/budget.js", JS, include_str!("ui/budget.js")),
    ("/conversation.js", JS, include_str!("ui/conversation.js")),
    ("/markdown.js", JS, include_str!("ui/markdown.js")),
    ("/message.js", JS, include_str!("ui/message.js")),
    ("/settings.js", JS, include_str!("ui/settings.js")),
    ("/wire.js", JS, include_str!("ui/wire.js")),
];

/// The paths of the page.
pub fn router<S: Clone + Send + Sync + 'static>() -> Router<S> {
    FILES.into_iter().fold(Router::new(), |router, (path, kind, text)| {
        router.route(path, get(move || async move { file(kind, text) }))
    })
}

fn file(kind: &'static str, text: &'static str) -> impl IntoResponse {
    let headers = [
        (CONTENT_TYPE, kind),
        (CONTENT_SECURITY_POLICY, POLICY),
        // A new binary brings new files under the same names.
        (CACHE_CONTROL, "no-cache"),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (REFERRER_POLICY, "no-referrer"),
    ];
    (headers, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_file_that_the_page_names_is_there_and_nothing_comes_from_elsewhere() {
        for (path, _, text) in FILES {
            for quote in ['"', '\''] {
                let names = text.split(quote).filter_map(|part| part.strip_prefix("./"));
                for name in names.filter(|name| name.contains('.') && !name.contains(' ')) {
                    let name = format!("/{name}");
                    assert!(FILES.iter().any(|(own, ..)| *own == name), "{path} names {name}");
                }
            }
            let text = text.replace("http://www.w3.org/2000/svg", "");
            assert!(!text.contains("http://") && !text.contains("https://"), "{path}");
            assert!(!text.contains("innerHTML"), "{path} would let text become markup");
        }
    }
}
