//! What the reference says of all pairs, once, so that no step has to run it.

use super::PairBatches;
use crate::comm::{Comm, CommError, share};
use crate::distil::Weighted;
use crate::policy_gradient::logprobs;
use hybra_kernels::Cpu;
use hybra_model::training::{PackedBatch, Tape};

impl PairBatches {
    /// Has `reference` read the pairs, each rank a share of them, and puts what it says of them into
    /// the micro-batches of all steps ([`PackedBatch::reference`]): the bits that it would say there.
    /// `progress` gets the number of pairs that a pass took, and of the rank's pairs.
    ///
    /// # Errors
    /// A lost rank.
    pub fn precompute(
        &mut self,
        cpu: &Cpu,
        reference: &Weighted,
        comm: &dyn Comm,
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<(), CommError> {
        let own = &self.pairs[share(0..self.pairs.len(), comm.rank(), comm.size())];
        let (mut found, mut tape, mut rest) = (Vec::new(), Tape::default(), own);
        while !rest.is_empty() {
            let mut batch = PackedBatch::default();
            let fits = rest.iter().take_while(|pair| {
                let fits = batch.tokens.len() + pair.len() <= self.config.pack_len;
                if fits {
                    pair.push_to(&mut batch);
                }
                fits
            });
            let count = fits.count();
            let Weighted { model, parameters } = reference;
            model.forward(cpu, parameters, &batch, &mut tape);
            found.extend(logprobs(cpu, model, parameters, &batch, &tape));
            progress(count, own.len());
            rest = &rest[count..];
        }
        let all = comm.all_gather(bytemuck::cast_slice(&found))?.concat();
        let (values, _) = all.as_chunks();
        let all: Vec<f32> = values.iter().map(|bytes| f32::from_ne_bytes(*bytes)).collect();
        let mut rest = &all[..];
        let of_pair = |pair: &super::Pair| {
            let (own, others) = rest.split_at(pair.len());
            rest = others;
            own.to_vec()
        };
        self.reference = self.pairs.iter().map(of_pair).collect();
        Ok(())
    }
}
