//! Streaming decode equals whole decode, for every sequence of ids.

mod common;

use std::sync::LazyLock;

use common::{chainbox, golden};
use hybra_tokenizer::{StreamDecoder, Tokenizer};
use proptest::prelude::*;

static MODELS: LazyLock<Vec<Tokenizer>> =
    LazyLock::new(|| golden().into_iter().chain(chainbox()).collect());

/// Streams `ids`; checks that only invalid input gives U+FFFD in a piece.
fn stream(tokenizer: &Tokenizer, ids: &[u32], skip: bool) -> (String, Vec<String>) {
    let mut decoder = StreamDecoder::new(tokenizer, skip);
    let mut pieces: Vec<String> = ids.iter().map(|&id| decoder.push(id)).collect();
    pieces.push(decoder.flush());
    (pieces.concat(), pieces)
}

#[test]
fn characters_come_whole() {
    for tokenizer in MODELS.iter().take(1) {
        let text = "naïve 🙂👩\u{200d}👧 数学";
        let ids = tokenizer.encode(text, false).unwrap();
        let (joined, pieces) = stream(tokenizer, &ids, false);
        assert_eq!(joined, text);
        assert!(pieces.iter().any(String::is_empty), "some token holds part of a character");
        assert!(pieces.iter().all(|piece| !piece.contains('\u{FFFD}')));
        // Cut inside the emoji: the tail becomes one replacement character.
        let ids = tokenizer.encode("🙂", false).unwrap();
        assert!(ids.len() > 1);
        assert_eq!(stream(tokenizer, &ids[..1], false).0, "\u{FFFD}");
    }
}

#[test]
fn token_bytes_are_those_of_the_text() {
    for tokenizer in MODELS.iter() {
        assert_eq!(tokenizer.all_token_bytes().len(), tokenizer.vocab_size());
        for id in 0..tokenizer.vocab_size() as u32 {
            if let Ok(text) = std::str::from_utf8(tokenizer.token_bytes(id)) {
                assert_eq!(tokenizer.decode(&[id], false), text);
            }
        }
        assert_eq!(tokenizer.token_bytes(1 << 20), b"");
    }
}

#[test]
fn special_tokens_are_left_out_on_request() {
    for tokenizer in MODELS.iter().take(1) {
        let ids = tokenizer.encode("<SPECIAL_11>a<SPECIAL_12>", false).unwrap();
        assert_eq!(stream(tokenizer, &ids, true).0, "a");
        assert_eq!(tokenizer.decode(&ids, true), "a");
        assert_eq!(stream(tokenizer, &ids, false).0, "<SPECIAL_11>a<SPECIAL_12>");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..Default::default() })]

    #[test]
    fn pieces_join_to_the_decoded_text(
        raw in prop::collection::vec(0u32..2100, 0..60),
        skip in any::<bool>(),
    ) {
        for tokenizer in MODELS.iter() {
            let ids: Vec<u32> =
                raw.iter().map(|id| id % (tokenizer.vocab_size() as u32 + 3)).collect();
            prop_assert_eq!(stream(tokenizer, &ids, skip).0, tokenizer.decode(&ids, skip));
        }
    }

    #[test]
    fn any_text_survives(text in any::<String>()) {
        for tokenizer in MODELS.iter().take(1) {
            let ids = tokenizer.encode(&text, false).unwrap();
            prop_assert_eq!(tokenizer.decode(&ids, false), text.as_str());
            prop_assert_eq!(stream(tokenizer, &ids, false).0, text.as_str());
        }
    }
}
