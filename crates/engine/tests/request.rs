//! Request parameters: ranges, contradictions, precedence, the grace table and the answer reserve.

use hybra_engine::{
    BudgetPlan, BudgetRequest, Effort, Grace, LimitSource, RequestError, SamplingParams,
    ServerBudget, ThinkingParams, TokenRoom,
};

const VOCAB: usize = 100;

fn sampling(change: impl FnOnce(&mut SamplingParams)) -> Result<(), RequestError> {
    let mut params = SamplingParams::default();
    change(&mut params);
    params.validate(VOCAB)
}

fn field(error: RequestError) -> &'static str {
    match error {
        RequestError::NotANumber { field, .. }
        | RequestError::OutOfRange { field, .. }
        | RequestError::TooMany { field, .. }
        | RequestError::TokenOutOfVocab { field, .. }
        | RequestError::Malformed { field, .. } => field,
        RequestError::Conflict { .. } => "conflict",
    }
}

#[test]
fn sampling_ranges() {
    let nan = f32::NAN;
    type Change = fn(&mut SamplingParams, f32);
    let floats: [(&str, Change, &[f32], &[f32]); 6] = [
        ("temperature", |p, v| p.temperature = v, &[0.0, 0.6, 100.0], &[-0.1, 1e30, f32::INFINITY]),
        ("top_p", |p, v| p.top_p = v, &[1e-6, 1.0], &[0.0, -1.0, 1.01]),
        ("min_p", |p, v| p.min_p = v, &[0.0, 1.0], &[-0.1, 1.1]),
        ("repetition_penalty", |p, v| p.repetition_penalty = v, &[0.5, 2.0], &[0.0, -1.0, 1e30]),
        ("frequency_penalty", |p, v| p.frequency_penalty = v, &[-2.0, 2.0], &[-2.1, 2.1]),
        ("presence_penalty", |p, v| p.presence_penalty = v, &[-2.0, 2.0], &[-2.1, 2.1]),
    ];
    for (name, set, good, bad) in floats {
        for &value in good {
            assert_eq!(sampling(|p| set(p, value)), Ok(()), "{name} {value}");
        }
        for &value in bad {
            assert_eq!(field(sampling(|p| set(p, value)).unwrap_err()), name, "{value}");
        }
        let error = sampling(|p| set(p, nan)).unwrap_err();
        assert!(matches!(error, RequestError::NotANumber { field, .. } if field == name));
    }
    for top_k in [-1, 0, 1, 1_000_000] {
        assert_eq!(sampling(|p| p.top_k = top_k), Ok(()));
    }
    assert_eq!(
        sampling(|p| p.top_k = -5).unwrap_err().to_string(),
        "top_k: expected -1 or 0 (off), or a positive integer, found -5"
    );
    assert_eq!(field(sampling(|p| p.max_tokens = Some(0)).unwrap_err()), "max_tokens");
    assert_eq!(field(sampling(|p| p.logprobs = Some(21)).unwrap_err()), "top_logprobs");
    let min = |p: &mut SamplingParams| (p.min_tokens, p.max_tokens) = (9, Some(8));
    assert_eq!(field(sampling(min).unwrap_err()), "conflict");
}

#[test]
fn sampling_lists() {
    for (bias, ok) in [(100.0, true), (-100.0, true), (101.0, false), (f32::INFINITY, false)] {
        assert_eq!(sampling(|p| p.logit_bias = vec![(99, bias)]).is_ok(), ok, "{bias}");
    }
    let error = sampling(|p| p.logit_bias = vec![(1, f32::NAN)]).unwrap_err();
    assert!(matches!(error, RequestError::NotANumber { field: "logit_bias", .. }));
    let error = sampling(|p| p.logit_bias = vec![(100, 0.0)]).unwrap_err();
    let expected =
        RequestError::TokenOutOfVocab { field: "logit_bias", vocab_size: VOCAB, found: 100 };
    assert_eq!(error, expected);
    let error = sampling(|p| p.logit_bias = vec![(0, 0.0); 1_000_000]).unwrap_err();
    assert!(matches!(error, RequestError::TooMany { field: "logit_bias", .. }));
    let error = sampling(|p| p.stop_token_ids = vec![0; 100_000]).unwrap_err();
    assert!(matches!(error, RequestError::TooMany { field: "stop_token_ids", .. }));
    assert_eq!(field(sampling(|p| p.stop_token_ids = vec![100]).unwrap_err()), "stop_token_ids");
}

#[test]
fn thinking_contradictions() {
    let base = ThinkingParams::default();
    let off = ThinkingParams { enabled: Some(false), ..base.clone() };
    let none = ThinkingParams { effort: Some(Effort::None), ..base.clone() };
    let budget = |params: &ThinkingParams, b| ThinkingParams { budget: Some(b), ..params.clone() };
    let min = |params: ThinkingParams, min_thinking_tokens| ThinkingParams {
        min_thinking_tokens,
        ..params
    };
    for (params, max_tokens, ok) in [
        (budget(&off, 10), None, false),
        (budget(&off, 0), None, true),
        (budget(&off, -1), None, true),
        (budget(&none, 10), None, false),
        (budget(&none, 0), None, true),
        (budget(&ThinkingParams { enabled: Some(true), ..base.clone() }, 0), None, true),
        (min(budget(&base, 10), 11), None, false),
        (min(budget(&base, 10), 10), None, true),
        (min(budget(&base, -1), 11), None, true),
        (budget(&base, 10), Some(10), false),
        (budget(&base, 10), Some(11), true),
        (budget(&base, -1), Some(1), true),
        (budget(&base, -2), None, false),
        (budget(&base, i64::from(u32::MAX) + 1), None, false),
        (ThinkingParams { grace: Grace::Percent(101), ..base.clone() }, None, false),
        (ThinkingParams { grace: Grace::Percent(100), ..base.clone() }, None, true),
    ] {
        assert_eq!(
            params.validate(max_tokens).is_ok(),
            ok,
            "{params:?}, max_tokens {max_tokens:?}"
        );
    }
    let text = budget(&base, 10).validate(Some(10)).unwrap_err().to_string();
    let expected = "thinking_budget 10 contradicts max_tokens 10: the budget must leave room for \
                    an answer";
    assert_eq!(text, expected);
}

#[test]
fn precedence_and_ceiling() {
    use LimitSource::{Effort as ByEffort, Request, Server};
    let server = ServerBudget { default: Some(300), ceiling: Some(1000) };
    let free = ServerBudget::default();
    let low = Some(Effort::Low);
    type Row = (Option<bool>, Option<Effort>, Option<i64>, ServerBudget, BudgetNumbers);
    type BudgetNumbers = (bool, Option<u32>, Option<u32>, Option<LimitSource>);
    let rows: [Row; 13] = [
        (None, None, None, free, (false, None, None, None)),
        (None, None, None, server, (false, Some(300), Some(300), Some(Server))),
        (None, low, None, server, (false, Some(512), Some(512), Some(ByEffort))),
        (None, low, Some(64), server, (false, Some(64), Some(64), Some(Request))),
        (None, None, Some(5000), server, (false, Some(5000), Some(1000), Some(Server))),
        (None, low, Some(-1), server, (false, None, Some(1000), Some(Server))),
        (None, low, Some(-1), free, (false, None, None, None)),
        (None, Some(Effort::Max), None, free, (false, None, None, None)),
        (None, Some(Effort::None), None, server, (true, Some(0), Some(0), Some(ByEffort))),
        (Some(false), None, None, server, (true, Some(300), Some(0), Some(Request))),
        (Some(true), None, Some(0), free, (true, Some(0), Some(0), Some(Request))),
        (Some(false), low, Some(-1), free, (true, None, Some(0), Some(Request))),
        (None, Some(Effort::None), Some(-1), free, (true, None, Some(0), Some(ByEffort))),
    ];
    for (enabled, effort, budget, server, expected) in rows {
        let params = ThinkingParams { enabled, effort, budget, ..Default::default() };
        let found = params.resolve(server);
        let numbers = (found.off, found.requested, found.budget, found.source);
        assert_eq!(numbers, expected, "{params:?} {server:?}");
    }
    for (name, budget) in [
        ("none", Some(0)),
        ("minimal", Some(128)),
        ("low", Some(512)),
        ("medium", Some(2048)),
        ("high", Some(8192)),
        ("xhigh", None),
        ("max", None),
    ] {
        assert_eq!(name.parse::<Effort>().unwrap().budget(), budget, "{name}");
    }
    assert!("hard".parse::<Effort>().is_err());
}

#[test]
fn grace_table() {
    let table = [(32, 16), (160, 16), (512, 51), (1024, 102), (2048, 204), (8192, 500), (0, 0)];
    for (budget, grace) in table {
        assert_eq!(Grace::Default.tokens(budget), grace, "B = {budget}");
    }
    assert_eq!("500".parse(), Ok(Grace::Tokens(500)));
    assert_eq!("10%".parse(), Ok(Grace::Percent(10)));
    assert_eq!(Grace::Percent(10).tokens(2048), 204);
    assert_eq!(Grace::Tokens(0).tokens(99), 0);
    for bad in ["", "%", "-1", "1.5%", "ten", "10 %"] {
        assert!(bad.parse::<Grace>().is_err(), "{bad:?}");
    }
}

fn request(budget: Option<u32>, grace: Grace) -> BudgetRequest {
    let source = budget.map(|_| LimitSource::Request);
    BudgetRequest { off: false, requested: budget, budget, source, grace }
}

#[test]
fn answer_reserve_equals_its_definition() {
    let graces = [Grace::Default, Grace::Tokens(0), Grace::Tokens(40), Grace::Percent(10)];
    for grace in graces {
        for budget in [None, Some(1), Some(20), Some(100), Some(400)] {
            for max_tokens in [1u32, 5, 16, 24, 25, 26, 40, 64, 100, 200, 300, 1000] {
                for answer_reserve in [None, Some(0), Some(50)] {
                    let room = TokenRoom {
                        max_tokens: Some(max_tokens),
                        context: 100_000,
                        answer_reserve,
                        insertion_len: 5,
                    };
                    let plan = BudgetPlan::new(request(budget, grace), Some(room));
                    // The definition, tried value by value.
                    let reserve = answer_reserve.unwrap_or(max_tokens.div_ceil(4).min(256));
                    let room = i64::from(max_tokens) - i64::from(reserve) - 5;
                    let most = budget.unwrap_or(5000);
                    let fits = |b: &u32| i64::from(b + grace.tokens(*b)) <= room;
                    let expected = match (1..=most).rev().find(fits) {
                        Some(b) => (b, grace.tokens(b)),
                        None => (most.min(room.max(0) as u32), 0),
                    };
                    let context = format!("{grace:?} {budget:?} {max_tokens} {answer_reserve:?}");
                    assert_eq!((plan.limit.unwrap(), plan.grace), expected, "{context}");
                    let own = budget == plan.limit;
                    let source = if own { LimitSource::Request } else { LimitSource::MaxTokens };
                    assert_eq!(plan.limit_source, Some(source), "{context}");
                }
            }
        }
    }
}

#[test]
fn reserve_cases() {
    let room = |max_tokens, context| {
        Some(TokenRoom { max_tokens, context, answer_reserve: None, insertion_len: 4 })
    };
    // A small max_tokens still yields an answer: 28 + 16 + 4 + 16 = 64.
    let plan = BudgetPlan::new(request(None, Grace::Default), room(Some(64), 10_000));
    assert_eq!((plan.limit, plan.grace), (Some(28), 16));
    assert_eq!(plan.limit_source, Some(LimitSource::MaxTokens));
    // room = 16 leaves no window, room = 17 does.
    for (max_tokens, limit, grace) in [(26, 15, 0), (27, 16, 0), (28, 1, 16), (4, 0, 0)] {
        let plan = BudgetPlan::new(request(None, Grace::Default), room(Some(max_tokens), 10_000));
        assert_eq!((plan.limit, plan.grace), (Some(limit), grace), "max_tokens {max_tokens}");
    }
    // The context binds, with its own default reserve: 800 − 200 − 4 = 596 = 542 + 54.
    let plan = BudgetPlan::new(request(Some(5000), Grace::Default), room(Some(6000), 800));
    assert_eq!((plan.limit, plan.grace), (Some(542), 54));
    assert_eq!(plan.limit_source, Some(LimitSource::Context));
    // Raw completions without a budget field, and thinking off.
    let plan = BudgetPlan::new(request(None, Grace::Default), None);
    assert_eq!((plan.limit, plan.limit_source, plan.grace), (None, None, 0));
    let off = BudgetRequest { off: true, ..request(Some(0), Grace::Default) };
    let plan = BudgetPlan::new(off, room(Some(64), 100));
    assert_eq!((plan.off, plan.limit, plan.grace), (true, Some(0), 0));
}
