//! Rollouts as packs of documents; what the model sampled is learned.

use super::Rollout;
use crate::data::TokenClass;
use crate::objective::BoxError;
use hybra_model::training::PackedBatch;

/// Packs of at most `pack_len` tokens, at least `least` of them, and for each pack the rollouts that
/// it holds, in order: the longest first, each into the first pack that has room.
///
/// # Errors
/// A rollout longer than a pack, or fewer rollouts than packs are asked for.
pub fn pack(
    rollouts: &[&Rollout],
    pack_len: usize,
    least: usize,
) -> Result<Vec<(PackedBatch, Vec<usize>)>, BoxError> {
    if rollouts.len() < least {
        let found = rollouts.len();
        return Err(format!("expected at least {least} rollouts, one a rank; found {found}").into());
    }
    let len = |at: usize| rollouts[at].prompt.len() + rollouts[at].tokens.len();
    let mut order: Vec<usize> = (0..rollouts.len()).collect();
    order.sort_by_key(|&at| (std::cmp::Reverse(len(at)), at));
    // The first ones open the packs that there must be.
    let mut packs: Vec<(usize, Vec<usize>)> = Vec::new();
    for at in order {
        let len = len(at);
        if len > pack_len {
            return Err(format!(
                "a prompt and its answer have {len} tokens; `data.pack_len` allows {pack_len}"
            )
            .into());
        }
        let room = |(used, _): &&mut (usize, Vec<usize>)| used + len <= pack_len;
        let may_join = packs.len() >= least;
        match packs.iter_mut().find(room).filter(|_| may_join) {
            Some((used, members)) => {
                *used += len;
                members.push(at);
            }
            None => packs.push((len, vec![at])),
        }
    }
    let batch = |(_, members): (usize, Vec<usize>)| {
        let mut batch = PackedBatch::default();
        members.iter().for_each(|&at| push(&mut batch, rollouts[at]));
        (batch, members)
    };
    Ok(packs.into_iter().map(batch).collect())
}

fn push(batch: &mut PackedBatch, rollout: &Rollout) {
    let prompt = rollout.prompt.len();
    let mut tokens = rollout.prompt.clone();
    let mut mask = vec![false; prompt];
    let mut classes = vec![TokenClass::Prompt as u8; prompt];
    for token in &rollout.tokens {
        tokens.push(token.id);
        mask.push(token.sampled);
        classes.push(token.class as u8);
    }
    batch.push(&tokens, &mask);
    batch.classify(&classes);
}
