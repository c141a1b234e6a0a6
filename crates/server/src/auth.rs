//! Who may ask: API keys, compared in constant time.
//!
//! A key comes in a header, as `Authorization: Bearer KEY` or `x-api-key: KEY`. One in the query is
//! refused, since it would end up in the logs of everything on the way. No key is ever logged.

use crate::config::{ConfigError, MAX_KEY_BYTES};
use crate::error::ApiError;
use axum::http::{HeaderMap, Uri, header};
use subtle::{Choice, ConstantTimeEq};

/// Names under which a key may not be sent in a query.
const QUERY_NAMES: [&str; 5] = ["api_key", "api-key", "apikey", "key", "access_token"];

/// The keys, filled up to one length: a comparison takes the same time for every key.
pub struct Keys(Vec<[u8; MAX_KEY_BYTES]>);

impl Keys {
    /// Takes the keys; none: everyone may ask.
    ///
    /// # Errors
    /// A key that no header could carry.
    pub fn new(keys: &[String]) -> Result<Self, ConfigError> {
        let fill = |(i, key): (usize, &String)| {
            let sound = key.bytes().all(|byte| byte.is_ascii_graphic());
            filled(key.as_bytes()).filter(|_| sound).ok_or(ConfigError::Key { index: i + 1 })
        };
        keys.iter().enumerate().map(fill).collect::<Result<_, _>>().map(Self)
    }

    /// Whether nobody needs a key.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Checks the key of a request.
    ///
    /// # Errors
    /// None, a wrong one, or one in the query.
    pub fn check(&self, uri: &Uri, headers: &HeaderMap) -> Result<(), ApiError> {
        let mut names = uri
            .query()
            .unwrap_or_default()
            .split('&')
            .map(|pair| pair.split('=').next().unwrap_or_default().to_ascii_lowercase());
        if let Some(name) = names.find(|name| QUERY_NAMES.contains(&name.as_str())) {
            let message = "keys in the query are refused; send `Authorization: Bearer KEY`";
            return Err(ApiError::invalid(name, message));
        }
        if self.is_empty() || sent(headers).any(|key| self.contains(key)) {
            return Ok(());
        }
        Err(ApiError::Unauthorized)
    }

    fn contains(&self, key: &[u8]) -> bool {
        let Some(key) = filled(key) else { return false };
        // Every key is looked at: time does not tell which one matched.
        let equal = self.0.iter().map(|own| own.ct_eq(&key));
        equal.fold(Choice::from(0), |found, equal| found | equal).into()
    }
}

/// Keys hold no zero bytes, so that different keys stay different.
fn filled(key: &[u8]) -> Option<[u8; MAX_KEY_BYTES]> {
    let mut filled = [0; MAX_KEY_BYTES];
    filled.get_mut(..key.len()).filter(|_| !key.is_empty())?.copy_from_slice(key);
    Some(filled)
}

fn sent(headers: &HeaderMap) -> impl Iterator<Item = &[u8]> {
    let bearer = headers.get(header::AUTHORIZATION).and_then(|value| {
        let (scheme, key) = value.as_bytes().split_at_checked("Bearer ".len())?;
        scheme.eq_ignore_ascii_case(b"Bearer ").then_some(key)
    });
    bearer.into_iter().chain(headers.get("x-api-key").map(|value| value.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::HeaderValue;

    fn check(keys: &[&str], uri: &str, header: Option<(&'static str, &[u8])>) -> u16 {
        let keys: Vec<_> = keys.iter().map(|&key| key.to_owned()).collect();
        let mut headers = HeaderMap::new();
        if let Some((name, value)) = header {
            headers.insert(name, HeaderValue::from_bytes(value).unwrap());
        }
        let keys = Keys::new(&keys).unwrap();
        keys.check(&uri.parse().unwrap(), &headers).map_or_else(|e| e.status().as_u16(), |()| 200)
    }

    #[test]
    fn one_of_the_keys_must_be_sent_in_a_header() {
        let keys = &["first", "second"];
        assert_eq!(check(keys, "/", Some(("authorization", b"Bearer second"))), 200);
        assert_eq!(check(keys, "/", Some(("authorization", b"bearer first"))), 200);
        assert_eq!(check(keys, "/", Some(("x-api-key", b"first"))), 200);
        for wrong in [&b"firs"[..], b"firstt", b"", b"first\xff", b"FIRST", &[b'a'; 300]] {
            assert_eq!(check(keys, "/", Some(("x-api-key", wrong))), 401, "{wrong:?}");
        }
        assert_eq!(check(keys, "/", Some(("authorization", b"Basic first"))), 401);
        assert_eq!(check(keys, "/", None), 401);
        assert_eq!(check(&[], "/", None), 200);
    }

    #[test]
    fn keys_in_the_query_are_refused() {
        assert_eq!(check(&["k"], "/v1/models?api_key=k", Some(("x-api-key", b"k"))), 400);
        assert_eq!(check(&[], "/v1/models?a=1&KEY=k", None), 400);
        assert_eq!(check(&[], "/v1/models?keys=1", None), 200);
    }

    #[test]
    fn keys_that_no_header_carries_are_refused() {
        for key in ["", "a b", "a\0", "é", &"x".repeat(257)] {
            let error = Keys::new(&["fine".to_owned(), key.to_owned()]).err().unwrap();
            assert!(error.to_string().starts_with("API key 2: "), "{error}");
        }
    }
}
