//! What the reference says of all pairs, once for each start of a run, so that no step has to run it.

use super::PairBatches;
use crate::comm::{Comm, plain, share};
use crate::distil::Weighted;
use crate::objective::BoxError;
use crate::policy_gradient::logprobs;
use hybra_kernels::Cpu;
use hybra_model::training::{PackedBatch, Tape};

/// A reference that has not read the pairs yet.
pub(super) struct Reader {
    cpu: Cpu,
    reference: Weighted,
    /// Gets the pairs that a pass took, and how many the rank has.
    progress: Box<dyn FnMut(usize, usize)>,
}

impl PairBatches {
    /// Has `reference` read the pairs before the first step, each rank a share of them; it is gone
    /// then. All micro-batches bring what it said ([`PackedBatch::reference`]), which has the bits that
    /// it would say there. `progress` gets the pairs that a pass took, and how many the rank has.
    #[must_use]
    pub fn with_reference(
        mut self,
        cpu: Cpu,
        reference: Weighted,
        progress: impl FnMut(usize, usize) + 'static,
    ) -> Self {
        self.reader = Some(Reader { cpu, reference, progress: Box::new(progress) });
        self
    }

    /// Lets the reference read, if it has not yet; the first step does it, too.
    ///
    /// # Errors
    /// Ranks of several instruction sets or with other pairs, a lost rank.
    pub fn precompute(&mut self, comm: &dyn Comm) -> Result<(), BoxError> {
        let Some(reader) = self.reader.take() else { return Ok(()) };
        one_instruction_set(&reader.cpu, comm)?;
        let said = self.said(reader, comm)?;
        let found = comm.all_gather(bytemuck::cast_slice(&said))?;
        let all: Vec<f32> = plain(&found.concat());
        let mut rest = &all[..];
        for pair in &self.pairs {
            let (own, others) = rest.split_at_checked(pair.len()).ok_or("ranks: other pairs")?;
            self.reference.push(own.to_vec());
            rest = others;
        }
        Ok(())
    }

    /// What it says of the rank's pairs, one after the other.
    fn said(&self, mut reader: Reader, comm: &dyn Comm) -> Result<Vec<f32>, BoxError> {
        let own = &self.pairs[share(0..self.pairs.len(), comm.rank(), comm.size())];
        let Weighted { model, parameters } = &reader.reference;
        let (mut said, mut tape, mut rest) = (Vec::new(), Tape::default(), own);
        while let Some(first) = rest.first() {
            let (mut batch, mut count) = (PackedBatch::default(), 1);
            first.push_to(&mut batch);
            while let Some(pair) = rest.get(count)
                && batch.tokens.len() + pair.len() <= self.config.pack_len
            {
                pair.push_to(&mut batch);
                count += 1;
            }
            model.forward(&reader.cpu, parameters, &batch, &batch.weights, &mut tape);
            said.extend(logprobs(&reader.cpu, model, parameters, &batch, &tape));
            (reader.progress)(count, own.len());
            rest = &rest[count..];
        }
        Ok(said)
    }
}

/// Another one has other bits, and then a policy that equals its reference would not seem to.
fn one_instruction_set(cpu: &Cpu, comm: &dyn Comm) -> Result<(), BoxError> {
    let own = cpu.isa().to_string();
    for found in comm.all_gather(own.as_bytes())? {
        if found != own.as_bytes() {
            let found = String::from_utf8_lossy(&found);
            return Err(format!(
                "dpo.precompute_ref_log_probs: expected one instruction set on all ranks, found {own} \
                 and {found}; set HYBRA_ISA"
            )
            .into());
        }
    }
    Ok(())
}
