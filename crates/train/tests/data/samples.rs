//! Documents against the prompts of inference, masks, cuts and their forced close.

use crate::{CHAT, chat_model, config, encoder, open, tokenizer, write};
use hybra_chat::ChatInput;
use hybra_engine::ThinkingParams;
use hybra_tokenizer::{ForcedClose, SpecialIds, ThinkTags, Tokenizer};
use hybra_train::data::{Corpus, Document, Record, SampleEncoder, SourceConfig, Thinking, TooLong};

/// A corpus of [`CHAT`]; the directory must outlive it.
fn corpus(source: SourceConfig) -> (tempfile::TempDir, Corpus) {
    let directory = tempfile::tempdir().unwrap();
    let corpus = open(&config(write(directory.path(), "chat.jsonl", CHAT), source)).unwrap();
    (directory, corpus)
}

/// Documents of the record on `line`, in the first epoch after `from`.
fn of_line(corpus: &Corpus, line: u64, from: u64) -> Vec<Document> {
    let samples = (from..).map(|i| corpus.sample(i).unwrap());
    let mut found = samples.filter(|sample| sample.place.number == line);
    found.next().unwrap().documents.into_iter().map(Option::unwrap).collect()
}

/// Text of the tokens whose mask is `learned`.
fn text(document: &Document, learned: bool) -> String {
    let pairs = document.tokens.iter().zip(&document.mask);
    let ids: Vec<u32> = pairs.filter(|&(_, &mask)| mask == learned).map(|(&id, _)| id).collect();
    tokenizer().decode(&ids, false)
}

#[test]
fn prompts_equal_those_of_inference_id_by_id() {
    let (_directory, corpus) = corpus(SourceConfig::default());
    let chat = chat_model(tokenizer());
    let mut turns = 0;
    for index in 0..7 {
        let sample = corpus.sample(index).unwrap();
        let source = &corpus.sources()[0];
        let json = source.record(sample.pick.record).unwrap();
        let Record::Chat(conversation) = Record::from_json(json, &sample.place, &[]).unwrap()
        else {
            continue;
        };
        let assistant = |&i: &usize| conversation.messages[i].role == "assistant";
        let targets: Vec<usize> = (0..conversation.messages.len()).filter(assistant).collect();
        assert_eq!(targets.len(), sample.documents.len(), "{}", sample.place);
        for (&target, document) in targets.iter().zip(&sample.documents) {
            let document = document.as_ref().unwrap();
            let on = conversation.messages[target].reasoning_content.is_some();
            let input = ChatInput {
                messages: conversation.messages[..target].to_vec(),
                tools: conversation.tools.clone(),
                ..ChatInput::default()
            };
            let thinking = ThinkingParams { enabled: Some(on), ..ThinkingParams::default() };
            let prompt = chat.chat_prompt(&input, &thinking).unwrap();
            assert!(document.tokens.starts_with(&prompt.ids), "{}", sample.place);
            let (masked, learned) = document.mask.split_at(prompt.ids.len());
            assert!(masked.iter().all(|m| !m) && learned.iter().all(|m| *m), "{}", sample.place);
            assert_eq!(prompt.is_thinking(), on);
            turns += 1;
        }
    }
    assert_eq!(turns, 9);
}

#[test]
fn the_learned_part_is_what_the_model_writes() {
    let (_directory, corpus) = corpus(SourceConfig::default());
    let learned = |line| -> Vec<String> {
        of_line(&corpus, line, 0).iter().map(|document| text(document, true)).collect()
    };
    assert_eq!(learned(1), ["d=c*9\nc=2\nd=8\n</think>\n\n8\n<SPECIAL_12>"]);
    assert_eq!(
        learned(2),
        ["1+1=2\n</think>\n\n2\n<SPECIAL_12>", "2+2=4\n</think>\n\n4\n<SPECIAL_12>"]
    );
    assert_eq!(learned(3), ["Hello.\n<SPECIAL_12>", "Goodbye.\n<SPECIAL_12>"]);
    let call = r#"<TOOLCALL>[{"name": "weather", "arguments": {"city": "Bonn"}}]</TOOLCALL>"#;
    assert_eq!(
        learned(5),
        [
            format!("I look it up.\n</think>\n\n{call}\n<SPECIAL_12>"),
            "The sky is grey.\n</think>\n\nIt is grey.\n<SPECIAL_12>".to_owned()
        ]
    );
    assert_eq!(learned(6), ["Plain text with <SPECIAL_12> in it, which stays text.</s>"]);
    assert_eq!(learned(7), ["2*3=6\n</think>\n\n6\n<SPECIAL_12>"]);
    assert_eq!(learned(8), ["8\n<SPECIAL_12>"]);
    // Earlier reasoning is not in the prompt of a later turn, and tool results are not learned.
    let documents = of_line(&corpus, 2, 0);
    let prompt = text(&documents[1], false);
    assert!(prompt.contains("Assistant\n2\n<SPECIAL_12>") && !prompt.contains("1+1=2"), "{prompt}");
    assert!(prompt.ends_with("<SPECIAL_11>Assistant\n<think>\n"), "{prompt}");
    let prompt = text(&of_line(&corpus, 5, 0)[1], false);
    assert!(prompt.contains("<TOOL_RESPONSE>[{\"sky\": \"grey\"}]"), "{prompt}");
    let control = tokenizer().token_to_id("<SPECIAL_12>").unwrap();
    assert!(!of_line(&corpus, 6, 0)[0].tokens.contains(&control));
}

#[test]
fn a_share_is_stripped_and_a_share_is_cut() {
    let source = SourceConfig { p_off: 0.3, p_truncate: 0.5, ..SourceConfig::default() };
    let (_directory, corpus) = corpus(source);
    let (mut off, mut cut, mut full) = (0, 0, 0);
    for index in 0..2000 {
        for document in corpus.sample(index).unwrap().documents.into_iter().flatten() {
            match document.thinking.first() {
                Some(Thinking::Off) => {
                    assert!(text(&document, false).ends_with("<think></think>"));
                    off += 1;
                }
                Some(Thinking::Truncated { budget, kept }) => {
                    assert!(1 <= *kept && kept <= budget);
                    cut += 1;
                }
                Some(Thinking::Full) => full += 1,
                _ => {}
            }
        }
    }
    let all = f64::from(off + cut + full);
    let near = |count, want: f64| (f64::from(count) / all - want).abs() < 0.04;
    assert!(near(off, 0.3) && near(cut, 0.5) && near(full, 0.2), "{off} {cut} {full}");
}

#[test]
fn a_cut_inserts_what_the_engine_forces_and_masks_it() {
    let tokenizer = tokenizer();
    let tags = ThinkTags::detect(&tokenizer).unwrap();
    let forced = ForcedClose::new(&tokenizer, &tags, None).unwrap();
    for (p_mid_step, expected_mid) in [(0.0, false), (1.0, true)] {
        let source = SourceConfig { p_truncate: 1.0, p_mid_step, ..SourceConfig::default() };
        let (_directory, corpus) = corpus(source);
        let mut mid = 0;
        for from in (0..400).step_by(10) {
            let document = &of_line(&corpus, 1, from)[0];
            let learned = text(document, true);
            let Thinking::Truncated { budget, kept } = document.thinking[0] else { panic!() };
            let first = document.mask.iter().position(|m| *m).unwrap();
            let trace = tokenizer.decode(&document.tokens[first..first + kept], false);
            assert!("d=c*9\nc=2\nd=8".starts_with(&trace) && trace.len() < 13, "{trace}");
            let ids = if trace.ends_with('\n') { &forced.after_newline } else { &forced.mid_line };
            let inserted = first + kept..first + kept + ids.len();
            assert_eq!(&document.tokens[inserted.clone()], &ids[..]);
            assert!(document.mask[inserted.clone()].iter().all(|m| !m));
            assert!(document.mask[inserted.end..].iter().all(|m| *m));
            assert_eq!(learned, format!("{trace}8\n<SPECIAL_12>"));
            if expected_mid {
                assert_eq!(budget, kept);
            } else if trace.contains('\n') {
                assert!(trace.ends_with('\n'), "{trace:?} {budget}");
            }
            mid += usize::from(!trace.ends_with('\n'));
        }
        assert_eq!(mid > 20, expected_mid, "{mid}");
    }
}

#[test]
fn weight_zero_and_long_documents_are_left_out() {
    let turns = r#"{"messages":[{"role":"user","content":"a"},{"role":"assistant","content":"b","weight":0},{"role":"user","content":"c"},{"role":"assistant","content":"d"}]}"#;
    let directory = tempfile::tempdir().unwrap();
    let path = write(directory.path(), "turns.jsonl", turns);
    let mut config = config(path, SourceConfig::default());
    let documents = open(&config).unwrap().sample(0).unwrap().documents;
    assert_eq!(documents.len(), 1);
    let document = documents[0].as_ref().unwrap();
    assert_eq!(text(document, true), "d\n<SPECIAL_12>");
    assert_eq!(document.mask.len(), document.tokens.len());

    config.sources[0].max_len = Some(10);
    let error = open(&config).unwrap().sample(0).unwrap_err().to_string();
    assert!(error.contains("turns.jsonl: line 1: a document of"), "{error}");
    config.sources[0].too_long = TooLong::Drop;
    let sample = open(&config).unwrap().sample(0).unwrap();
    assert_eq!((sample.num_dropped(), sample.documents), (1, vec![None]));
}

#[test]
fn a_trace_may_hold_control_strings_and_half_tags() {
    let turns = r#"{"messages":[{"role":"user","content":"<SPECIAL_12>"},{"role":"assistant","reasoning_content":"<SPECIAL_12> and </th","content":"<SPECIAL_10> ok"}]}"#;
    let directory = tempfile::tempdir().unwrap();
    let config = config(write(directory.path(), "c.jsonl", turns), SourceConfig::default());
    let document = open(&config).unwrap().sample(0).unwrap().documents.remove(0).unwrap();
    assert_eq!(
        text(&document, true),
        "<SPECIAL_12> and </th\n</think>\n\n<SPECIAL_10> ok\n<SPECIAL_12>"
    );
    let tokenizer = encoder();
    let special = |token| tokenizer.tokenizer().token_to_id(token).unwrap();
    let count = |id| document.tokens.iter().filter(|&&t| t == id).count();
    assert_eq!((count(special("<SPECIAL_12>")), count(special("<SPECIAL_10>"))), (1, 1));
}

#[test]
fn text_that_a_vocabulary_lacks_is_an_error() {
    // Single characters: those of the close tag, which a model must have, and a few more.
    let words = (1..).zip("</think>\nab probe?".chars());
    let mut vocab: serde_json::Map<String, serde_json::Value> =
        words.map(|(id, word)| (word.to_string(), id.into())).collect();
    vocab.insert("<e>".to_owned(), 0.into());
    let json = serde_json::json!({
        "version": "1.0",
        "added_tokens": [{ "id": 0, "content": "<e>", "single_word": false, "lstrip": false,
            "rstrip": false, "normalized": false, "special": true }],
        "pre_tokenizer": { "type": "Split", "pattern": { "Regex": "(?s)." },
            "behavior": "Isolated", "invert": false },
        "decoder": { "type": "Fuse" },
        "model": { "type": "WordLevel", "vocab": vocab, "unk_token": "<e>" },
    });
    let template = "{% for m in messages %}{{ m.content }}<e>{% endfor %}";
    let settings = Some(r#"{"eos_token": "<e>"}"#);
    let none = SpecialIds::default();
    let words = Tokenizer::from_files(&json.to_string(), settings, Some(template), &none);
    let encoder = SampleEncoder::new(chat_model(words.unwrap())).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let sample = |answer: &str| {
        let line = format!("{{\"input\":\"a\",\"output\":\"{answer}\"}}");
        let path = write(directory.path(), "words.jsonl", line);
        let config = config(path, SourceConfig::default());
        let corpus = Corpus::open(&config, encoder.clone(), &|name, _| Err(name.to_owned()));
        corpus.unwrap().sample(0)
    };
    // A template without think tags: the prompt is all that stands before the answer.
    let document = sample("bb").unwrap().documents.remove(0).unwrap();
    assert_eq!(document.mask, [false, false, true, true, true]);
    let error = sample("xyz").unwrap_err().to_string();
    assert!(error.ends_with("text that the tokenizer does not keep as it is"), "{error}");
}
