//! A tokenizer for a model of random weights: byte-level BPE of any vocabulary size.
//!
//! Ids: the family's 13 control tokens, 256 bytes, then words of small letters with a space in
//! front, in the order ` a` … ` z`, ` aa`, ` ab` … Each word is the merge of the word without its
//! last letter and that letter, so every text has one encoding, and whatever such a model
//! generates can be read.

use hybra_tokenizer::{GgufVocab, TokenType};

/// Control tokens, ids 0 to 12.
const CONTROL: usize = 13;
/// The smallest vocabulary.
pub(crate) const SMALLEST: usize = CONTROL + 256;
/// The space in front of a word, in GPT-2's byte alphabet.
const SPACE: char = 'Ġ';

const CHAT_TEMPLATE: &str = include_str!("chat_template.jinja");

/// The vocabulary of `size` tokens, at least [`SMALLEST`].
pub(crate) fn vocabulary(size: usize, eos_ids: &[u32]) -> GgufVocab {
    assert!(size >= SMALLEST, "{size} tokens do not hold all bytes");
    let mut tokens: Vec<String> = ["<unk>", "<s>", "</s>"].map(str::to_owned).to_vec();
    tokens.extend((3..CONTROL).map(|n| format!("<SPECIAL_{n}>")));
    tokens.extend((0..=255).map(|byte| byte_char(byte).to_string()));
    let mut merges = Vec::with_capacity(size - SMALLEST);
    for number in 0..size - SMALLEST {
        let word = word(number);
        let (head, letter) = word.split_at(word.len() - 1);
        merges.push(format!("{head} {letter}"));
        tokens.push(word);
    }
    let mut token_types = vec![TokenType::Normal as i32; size];
    token_types[..CONTROL].fill(TokenType::Control as i32);
    GgufVocab {
        model: "gpt2".to_owned(),
        pre: "tekken".to_owned(),
        tokens,
        token_types,
        merges,
        bos_id: Some(1),
        eos_ids: eos_ids.to_vec(),
        pad_id: Some(0),
        add_bos: Some(true),
        chat_template: Some(CHAT_TEMPLATE.trim_end().to_owned()),
    }
}

/// The word of a number: `Ġa` is 0, `Ġz` 25, `Ġaa` 26, …
fn word(mut number: usize) -> String {
    let mut letters = Vec::new();
    loop {
        letters.push(char::from(b'a' + (number % 26) as u8));
        if number < 26 {
            break;
        }
        number = number / 26 - 1;
    }
    letters.push(SPACE);
    letters.iter().rev().collect()
}

/// GPT-2's byte alphabet: printable bytes stand for themselves, the others are numbered from 256.
fn byte_char(byte: u8) -> char {
    let printable = |b: u8| matches!(b, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    if printable(byte) {
        return char::from(byte);
    }
    let rank = (0..byte).filter(|&b| !printable(b)).count() as u32;
    char::from_u32(256 + rank).expect("below the surrogates")
}

#[cfg(test)]
mod tests {
    use super::*;
    use hybra_tokenizer::{ChatRequest, Message, ThinkTags, Tokenizer};

    #[test]
    fn words_count_like_columns_of_a_spreadsheet() {
        let words = [(0, "Ġa"), (25, "Ġz"), (26, "Ġaa"), (701, "Ġzz"), (702, "Ġaaa")];
        for (number, want) in words {
            assert_eq!(word(number), want);
        }
        assert_eq!(byte_char(b' '), SPACE);
        assert_eq!((byte_char(0), byte_char(0x7f), byte_char(0xad)), ('Ā', 'ġ', 'Ń'));
    }

    #[test]
    fn every_word_is_one_token_and_all_text_round_trips() {
        let tokenizer = Tokenizer::from_gguf(&vocabulary(2048, &[2, 12])).unwrap();
        assert_eq!(tokenizer.vocab_size(), 2048);
        assert_eq!(tokenizer.encode(" zz ab", false).unwrap(), [701 + 269, 27 + 269]);
        let text = "Größe: 三 zz abcab <s\t\u{0}>🙂";
        let ids = tokenizer.encode(text, false).unwrap();
        assert_eq!(tokenizer.decode(&ids, false), text);
        assert_eq!(tokenizer.eos_ids(), [2, 12]);
    }

    #[test]
    fn the_template_has_both_kinds_of_thinking() {
        let tokenizer = Tokenizer::from_gguf(&vocabulary(SMALLEST, &[2])).unwrap();
        assert!(ThinkTags::detect(&tokenizer).is_some());
        // The end of a turn is found in the template.
        assert_eq!(tokenizer.eos_ids(), [2, 12]);
        let prompt = |text| {
            let request = ChatRequest {
                messages: vec![Message::new("user", text)],
                add_generation_prompt: true,
                ..ChatRequest::default()
            };
            tokenizer.chat_template().unwrap().render(&request).unwrap().text().to_owned()
        };
        let head = "<SPECIAL_10>System\n\n<SPECIAL_11>User\nhi\n<SPECIAL_11>Assistant\n";
        assert_eq!(prompt("hi"), format!("{head}<think>\n"));
        assert_eq!(prompt("hi /no_think"), format!("{head}<think></think>"));
    }
}
