//! The cache with states that pretend to have read their tokens.

use super::*;
use crate::prefix::prefix_keys;
use hybra_kernels::ops::attention::KvDtype;
use hybra_kernels::{Cpu, Isa};
use hybra_model::StateBytes;
use hybra_model::presets::preset;

struct Kit {
    cpu: Cpu,
    config: hybra_model::Config,
    costs: StateBytes,
}

impl Kit {
    fn new() -> Self {
        let config = preset("micro").unwrap();
        let costs = StateBytes::of(&config, KvDtype::Bf16);
        Self { cpu: Cpu::new(Isa::best(), 1), config, costs }
    }

    fn state(&self, len: usize) -> SequenceState {
        let mut state = SequenceState::new(&self.config, KvDtype::Bf16);
        state.pretend_read(&self.cpu, len);
        state
    }

    /// `from`, some tokens later.
    fn later(&self, from: &SequenceState, len: usize) -> SequenceState {
        let mut state = from.clone();
        state.pretend_read(&self.cpu, len);
        state
    }

    fn bytes(&self, len: usize) -> usize {
        self.costs.at(len) + 4 * len
    }
}

fn insert(cache: &mut PrefixCache, salt: u64, tokens: &[u32], state: SequenceState, limit: usize) {
    let keys = prefix_keys(salt, tokens);
    cache.insert(Prefixes { salt, tokens, keys: &keys }, Arc::new(state), limit);
    assert!(cache.bytes() <= limit, "{} bytes of {limit}", cache.bytes());
}

fn found(cache: &mut PrefixCache, salt: u64, tokens: &[u32]) -> usize {
    let keys = prefix_keys(salt, tokens);
    cache.find(Prefixes { salt, tokens, keys: &keys }).map_or(0, |state| state.len())
}

#[test]
fn the_longest_prefix_of_the_same_salt_is_found() {
    let (kit, mut cache) = (Kit::new(), PrefixCache::default());
    let tokens: Vec<u32> = (0..300).collect();
    insert(&mut cache, 1, &tokens[..64], kit.state(64), usize::MAX);
    insert(&mut cache, 1, &tokens[..192], kit.state(192), usize::MAX);
    assert_eq!(found(&mut cache, 1, &tokens), 192);
    assert_eq!(found(&mut cache, 1, &tokens[..191]), 64);
    assert_eq!(found(&mut cache, 1, &tokens[..63]), 0);
    assert_eq!(found(&mut cache, 2, &tokens), 0);
    let mut edited = tokens.clone();
    edited[100] = 9;
    assert_eq!(found(&mut cache, 1, &edited), 64);
    edited[0] = 9;
    assert_eq!(found(&mut cache, 1, &edited), 0);
}

/// Two texts under one key: the tokens decide.
#[test]
fn a_colliding_key_finds_nothing() {
    let (kit, mut cache) = (Kit::new(), PrefixCache::default());
    let tokens: Vec<u32> = (0..64).collect();
    insert(&mut cache, 1, &tokens, kit.state(64), usize::MAX);
    let (keys, other) = (prefix_keys(1, &tokens), vec![5; 64]);
    let prefixes = |salt, tokens| Prefixes { salt, tokens, keys: &keys };
    assert!(cache.find(prefixes(1, &other)).is_none());
    assert!(cache.find(prefixes(2, &tokens)).is_none());
    assert!(cache.find(prefixes(1, &tokens)).is_some());
    cache.insert(prefixes(1, &other), Arc::new(kit.state(64)), usize::MAX);
    assert_eq!((cache.len(), cache.bytes()), (1, kit.bytes(64)), "the later replaces the earlier");
}

#[test]
fn shared_blocks_count_once_and_bytes_go_with_the_last_holder() {
    let (kit, mut cache) = (Kit::new(), PrefixCache::default());
    let tokens: Vec<u32> = (0..192).collect();
    let short = kit.state(128);
    let long = kit.later(&short, 64);
    insert(&mut cache, 0, &tokens[..128], short, usize::MAX);
    assert_eq!(cache.bytes(), kit.bytes(128));
    insert(&mut cache, 0, &tokens, long, usize::MAX);
    let both = kit.bytes(192) + kit.costs.constant + 4 * 128;
    assert_eq!(cache.bytes(), both);
    assert_eq!(found(&mut cache, 0, &tokens), 192);
    cache.shrink_to(both - 1);
    assert_eq!((cache.len(), cache.bytes()), (1, kit.bytes(192)));
    cache.shrink_to(0);
    assert_eq!((cache.len(), cache.bytes(), cache.blocks.len()), (0, 0, 0));
}

#[test]
fn the_least_recently_used_go_first_and_the_limit_holds() {
    let (kit, mut cache) = (Kit::new(), PrefixCache::default());
    let prompt = |i: u32| vec![i; 64];
    let limit = 3 * kit.bytes(64);
    for i in 0..3 {
        insert(&mut cache, 0, &prompt(i), kit.state(64), limit);
    }
    assert_eq!(found(&mut cache, 0, &prompt(0)), 64);
    insert(&mut cache, 0, &prompt(3), kit.state(64), limit);
    let held = [0, 1, 2, 3].map(|i| found(&mut cache, 0, &prompt(i)) > 0);
    assert_eq!(held, [true, false, true, true]);
    // What never fits evicts nobody.
    assert!(kit.bytes(1280) > limit);
    insert(&mut cache, 0, &[7; 1280], kit.state(1280), limit);
    assert_eq!((cache.len(), cache.bytes()), (3, limit));
}
