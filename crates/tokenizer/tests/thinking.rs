//! Think tags: separators, forced closes, prompt states.

mod common;

use common::{chainbox, chatml, golden};
use hybra_tokenizer::{
    ChatRequest, Error, ForcedClose, Message, PromptThinking, Rendered, ThinkTags, ThinkingVocab,
    Tokenizer,
};

fn tags(tokenizer: &Tokenizer) -> ThinkTags {
    ThinkTags::detect(tokenizer).unwrap()
}

#[test]
fn separator_follows_the_model() {
    if let Some(tokenizer) = golden() {
        assert_eq!(tags(&tokenizer).after_close, "\n\n");
    }
    if let Some(tokenizer) = chainbox() {
        assert_eq!(tags(&tokenizer).after_close, "\n");
    }
    let printing = concat!(
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.reasoning_content %}<think>\n",
        "{{ m.reasoning_content }}\n</think>\n\n{% endif %}{{ m.content }}<|im_end|>\n{% endfor %}"
    );
    assert_eq!(tags(&chatml(printing)).after_close, "\n\n");
    assert_eq!(tags(&chatml("{{ messages[0].content }}")).after_close, "\n");
}

#[test]
fn a_model_without_tags_has_none() {
    let json = common::byte_tokenizer(&["<s>"]).to_string();
    let tokenizer = Tokenizer::from_files(&json, None, None, &Default::default()).unwrap();
    assert_eq!(ThinkTags::detect(&tokenizer), None);
}

#[test]
fn forced_close_of_a_text_tag() {
    let Some(tokenizer) = golden() else { return };
    let tags = tags(&tokenizer);
    let vocab = ThinkingVocab::new(&tokenizer, &tags).unwrap();
    let text = |ids: &[u32]| tokenizer.decode(ids, false);
    assert_eq!(text(&vocab.forced.after_newline), "</think>\n\n");
    assert_eq!(text(&vocab.forced.mid_line), "\n</think>\n\n");
    assert_eq!(vocab.forced.partial.len(), 7);
    for (j, ids) in (1..).zip(&vocab.forced.partial) {
        assert_eq!("</think>"[..j].to_owned() + &text(ids), "</think>\n\n");
    }
    assert_eq!(
        (vocab.open, vocab.close, vocab.close_id),
        (b"<think>".into(), b"</think>".into(), None)
    );
    assert_eq!(vocab.token_bytes.len(), 2048);
    assert_eq!(vocab.forced.after_newline, tokenizer.encode("</think>\n\n", false).unwrap());
}

#[test]
fn forced_close_with_a_message() {
    let Some(tokenizer) = golden() else { return };
    let tags = tags(&tokenizer);
    let forced = ForcedClose::new(&tokenizer, &tags, Some(" Time is up.")).unwrap();
    let whole = tokenizer.encode(" Time is up.\n</think>\n\n", false).unwrap();
    assert_eq!((&forced.after_newline, &forced.mid_line), (&whole, &whole));
    let forced = ForcedClose::new(&tokenizer, &tags, Some("Stop.\n")).unwrap();
    assert_eq!(tokenizer.decode(&forced.mid_line, false), "Stop.\n</think>\n\n");
    let forced = ForcedClose::new(&tokenizer, &tags, Some("<SPECIAL_12>")).unwrap();
    assert_eq!(tokenizer.decode(&forced.mid_line, false), "<SPECIAL_12>\n</think>\n\n");
    assert!(!forced.mid_line.contains(&12));
    let error = ForcedClose::new(&tokenizer, &tags, Some("a</think>b")).unwrap_err();
    assert!(matches!(error, Error::TagInMessage { .. }));
}

#[test]
fn forced_close_of_a_token_tag() {
    let Some(tokenizer) = chainbox() else { return };
    let vocab = ThinkingVocab::new(&tokenizer, &tags(&tokenizer)).unwrap();
    // The model's own greedy answers read: … 11 7 11 46 5.
    assert_eq!(vocab.forced.after_newline, [7, 11]);
    assert_eq!(vocab.forced.mid_line, [11, 7, 11]);
    assert!(vocab.forced.partial.is_empty());
    assert_eq!(vocab.close_id, Some(7));
}

#[test]
fn raw_prompts_by_the_last_tag_after_the_last_role_marker() {
    use PromptThinking::{Closed, None, Open};
    let Some(tokenizer) = golden() else { return };
    let tags = tags(&tokenizer);
    let cases = [
        ("", None),
        ("plain", None),
        ("<think>", Open),
        ("<think>\nso far", Open),
        ("<think></think>", Closed),
        ("<think>a</think>b<think>c", Open),
        ("<think>a</think> b", Closed),
        ("</think>", None),
        ("<think>\n<SPECIAL_11>User\nhi", None),
        ("<think>\n<SPECIAL_11>Assistant\n<think>\n", Open),
        ("x<think>y</thin", Open),
    ];
    for (text, want) in cases {
        assert_eq!(tags.prompt_state(&tokenizer, &Rendered::from(text)), want, "{text:?}");
    }
}

#[test]
fn chat_prompts_by_what_the_template_wrote() {
    use PromptThinking::{Closed, None, Open};
    for tokenizer in golden().into_iter().chain(chainbox()) {
        let tags = tags(&tokenizer);
        let render = |content: &str, add: bool| {
            let request = ChatRequest {
                messages: vec![Message::new("user", content)],
                add_generation_prompt: add,
                ..ChatRequest::default()
            };
            tokenizer.chat_template().unwrap().render(&request).unwrap()
        };
        let state = |prompt: &Rendered| tags.prompt_state(&tokenizer, prompt);
        assert_eq!(state(&render("a", true)), Open);
        assert_eq!(state(&render("a /no_think", true)), Closed);
        assert_eq!(state(&render("a<think>", false)), None, "a user's tag is text");
        assert_eq!(state(&render("</think><think></think>", true)), Open);
        let mut prompt = render("a /no_think", true);
        assert!(tags.set_prompt(&mut prompt, false) && prompt.text().ends_with("<think></think>"));
        assert!(tags.set_prompt(&mut prompt, true) && prompt.text().ends_with("\n<think>\n"));
        assert_eq!(state(&prompt), Open);
        assert!(tags.set_prompt(&mut prompt, false));
        assert_eq!(prompt, render("a /no_think", true));
        assert!(!tags.set_prompt(&mut render("a<think></think>", false), true));
    }
}
