//! Which tokens of which sequences go into a step: pure planning.
//!
//! Every sequence with one pending token gets it. Prompts share what is left of the budget: the
//! better priority first, then round robin in pieces of a scan chunk, those that waited longest
//! first. While sequences decode, prompts get less, so that tokens keep coming; as many times more
//! as there are prompts, of no worse priority, for each sequence that decodes, so that few do not
//! hold up many. Where that is less than a scan chunk, one piece goes through the layers in several
//! steps.
//!
//! Invariants: a piece ends at a multiple of [`SCAN_CHUNK`], at the end of its prompt, or at a stop
//! (which is such a multiple), so that no plan changes a bit; something is planned whenever
//! something is pending.

use hybra_model::SCAN_CHUNK;

/// What a sequence asks for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Demand {
    /// Tokens not read yet; the first is at a multiple of [`SCAN_CHUNK`] if there are several.
    pub(crate) pending: usize,
    /// It has generated tokens.
    pub(crate) decodes: bool,
    /// Tokens up to its next stop.
    pub(crate) until_stop: usize,
    /// Lower ones go first.
    pub(crate) priority: i32,
    /// The last step that read of its prompt, and its place in the queue.
    pub(crate) last_served: (u64, u64),
}

/// What a step may take.
#[derive(Clone, Copy, Debug)]
pub(crate) struct StepBudget {
    /// Tokens in all.
    pub(crate) tokens: usize,
    /// Tokens of prompts while sequences decode, for each prompt that is read per such sequence;
    /// where that makes less than [`SCAN_CHUNK`]: see [`Plan::layered`].
    pub(crate) prefill_while_decoding: usize,
    /// A piece is on its way through the layers already.
    pub(crate) is_layered: bool,
}

/// What a step reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Plan<'a> {
    /// Tokens of each sequence.
    pub(crate) takes: &'a [usize],
    /// A piece of a prompt that begins its way through the layers: sequence and tokens.
    pub(crate) layered: Option<(usize, usize)>,
    /// Tokens of prompts that those who decode wait for in this step, or that many tokens' work.
    pub(crate) prefill_while_decoding: usize,
}

/// Plans steps, in memory that it keeps.
#[derive(Debug, Default)]
pub(crate) struct Scheduler {
    /// By sequence.
    pub(crate) demands: Vec<Demand>,
    takes: Vec<usize>,
    /// Prompts in the order of service.
    order: Vec<usize>,
}

impl Scheduler {
    /// What of [`Self::demands`] is read.
    pub(crate) fn plan(&mut self, budget: StepBudget) -> Plan<'_> {
        let Self { demands, takes, order } = self;
        takes.clear();
        takes.extend(demands.iter().map(|demand| usize::from(demand.pending == 1)));
        order.clear();
        order.extend((0..demands.len()).filter(|&i| demands[i].pending > 1));
        order.sort_unstable_by_key(|&i| (demands[i].priority, demands[i].last_served));
        let singles: usize = takes.iter().sum();
        let mut left = budget.tokens.saturating_sub(singles);
        let decoding = demands.iter().filter(|demand| demand.decodes).count();
        let times = times(demands, order, budget.is_layered, decoding);
        let prefill_while_decoding = budget.prefill_while_decoding.saturating_mul(times);
        if budget.is_layered || decoding > 0 && prefill_while_decoding < SCAN_CHUNK {
            let first = order.first().filter(|_| !budget.is_layered);
            let layered = first.map(|&i| (i, piece(&demands[i], 0)));
            return Plan { takes, layered, prefill_while_decoding };
        }
        if decoding > 0 {
            left = left.min(prefill_while_decoding);
        }
        left = (left / SCAN_CHUNK * SCAN_CHUNK).max(SCAN_CHUNK);
        for class in order.chunk_by(|&a, &b| demands[a].priority == demands[b].priority) {
            while left > 0 && round(class, demands, takes, &mut left) {}
        }
        Plan { takes, layered: None, prefill_while_decoding }
    }
}

/// Prompts for each sequence that decodes, at least 1; those of a worse priority do not count.
fn times(demands: &[Demand], order: &[usize], is_layered: bool, decoding: usize) -> usize {
    let decode = demands.iter().filter(|demand| demand.decodes);
    let best = decode.map(|demand| demand.priority).min().unwrap_or(i32::MAX);
    let waiting = order.iter().filter(|&&i| demands[i].priority <= best).count();
    (waiting + usize::from(is_layered)).checked_div(decoding).unwrap_or(1).max(1)
}

/// The next piece of a prompt of which `taken` tokens are planned.
fn piece(demand: &Demand, taken: usize) -> usize {
    SCAN_CHUNK.min(demand.pending.min(demand.until_stop) - taken)
}

/// One more piece for each of `class`; false if nobody took one.
fn round(class: &[usize], demands: &[Demand], takes: &mut [usize], left: &mut usize) -> bool {
    let mut any = false;
    for &i in class {
        let piece = piece(&demands[i], takes[i]);
        if piece > 0 && piece <= *left {
            takes[i] += piece;
            *left -= piece;
            any = true;
        }
    }
    any
}

#[cfg(test)]
mod tests {
    use super::*;

    const STEP: StepBudget =
        StepBudget { tokens: 512, prefill_while_decoding: 64, is_layered: false };

    fn prompt(pending: usize) -> Demand {
        let (priority, last_served) = (0, (0, 0));
        Demand { pending, decodes: false, until_stop: usize::MAX, priority, last_served }
    }

    fn decoding() -> Demand {
        Demand { decodes: true, ..prompt(1) }
    }

    fn plan(budget: StepBudget, demands: &[Demand]) -> Vec<usize> {
        let mut scheduler = Scheduler { demands: demands.to_vec(), ..Scheduler::default() };
        let plan = scheduler.plan(budget);
        assert_eq!(plan.layered, None);
        plan.takes.to_vec()
    }

    #[test]
    fn prompts_share_the_budget() {
        assert_eq!(plan(STEP, &[prompt(1000)]), [512]);
        assert_eq!(plan(STEP, &[prompt(100_000), prompt(200)]), [256, 200]);
        assert_eq!(plan(STEP, &[prompt(100_000), prompt(70), prompt(1)]), [320, 70, 1]);
        assert_eq!(plan(STEP, &[]), [0usize; 0]);
    }

    #[test]
    fn running_streams_stay_smooth() {
        let two = [decoding(); 2];
        let with_two = |prompts: [Demand; 2]| plan(STEP, &[two, prompts].concat())[2..].to_vec();
        assert_eq!(with_two([prompt(1000), prompt(30)]), [64, 0]);
        let late = Demand { last_served: (7, 1), ..prompt(1000) };
        assert_eq!(with_two([late, prompt(30)]), [0, 30]);
        let wide = StepBudget { prefill_while_decoding: 256, ..STEP };
        assert_eq!(plan(wide, &[decoding(), prompt(1000)]), [1, 256]);
        // A budget that decoding uses up leaves prompts one piece.
        let narrow = StepBudget { tokens: 64, ..STEP };
        assert_eq!(plan(narrow, &[decoding(), prompt(1000)]), [1, 64]);
    }

    #[test]
    fn less_than_a_chunk_goes_through_the_layers() {
        let small = StepBudget { prefill_while_decoding: 16, ..STEP };
        let late = Demand { last_served: (7, 1), ..prompt(1000) };
        let stopped = Demand { until_stop: 64, ..prompt(1000) };
        let demands = [decoding(), late, prompt(30), prompt(1)];
        let mut scheduler = Scheduler { demands: demands.to_vec(), ..Scheduler::default() };
        // Two wait for each that decodes.
        let begun =
            Plan { takes: &[1, 0, 0, 1], layered: Some((2, 30)), prefill_while_decoding: 32 };
        assert_eq!(scheduler.plan(small), begun);
        let under_way = StepBudget { is_layered: true, ..small };
        scheduler.demands[2].pending = 0;
        assert_eq!(scheduler.plan(under_way), Plan { layered: None, ..begun });
        scheduler.demands = vec![decoding(), stopped];
        assert_eq!(scheduler.plan(small).layered, Some((1, 64)));
        // Nobody waits for tokens.
        assert_eq!(plan(small, &[prompt(1000)]), [512]);
        scheduler.demands = vec![prompt(1000), prompt(1)];
        assert_eq!(scheduler.plan(under_way).takes, [0, 1]);
        assert_eq!(scheduler.plan(under_way).layered, None);
    }

    #[test]
    fn many_that_wait_are_not_held_up_by_few() {
        let small = StepBudget { prefill_while_decoding: 16, ..STEP };
        let burst = |decode: usize, wait: usize| {
            [vec![decoding(); decode], vec![prompt(20); wait]].concat()
        };
        let read = |decode, wait| plan(small, &burst(decode, wait)).iter().sum::<usize>() - decode;
        assert_eq!((read(1, 15), read(2, 14)), (9 * 20, 3 * 20));
        let mut scheduler = Scheduler { demands: burst(4, 12), ..Scheduler::default() };
        assert_eq!(scheduler.plan(small).prefill_while_decoding, 48);
        scheduler.demands = burst(12, 4);
        assert_eq!(scheduler.plan(small).prefill_while_decoding, 16);
        // Those who may wait do not hurry.
        scheduler.demands = burst(1, 15);
        scheduler.demands[0].priority = -1;
        assert_eq!(scheduler.plan(small).prefill_while_decoding, 16);
    }

    #[test]
    fn better_priorities_go_first_and_stops_hold() {
        let urgent = Demand { priority: -1, ..prompt(400) };
        assert_eq!(plan(STEP, &[prompt(1000), urgent]), [64, 400]);
        let stopped = Demand { until_stop: 128, ..prompt(1000) };
        assert_eq!(plan(STEP, &[stopped, prompt(1000)]), [128, 384]);
    }

    #[test]
    fn pieces_end_where_they_may() {
        for a in [2, 63, 64, 65, 130, 1000] {
            for b in [1, 2, 100, 513] {
                for budget in [STEP, StepBudget { tokens: 64, ..STEP }] {
                    let takes = plan(budget, &[prompt(a), prompt(b)]);
                    for (take, pending) in takes.iter().zip([a, b]) {
                        assert!(take % SCAN_CHUNK == 0 || *take == pending, "{a} {b}: {takes:?}");
                    }
                    assert!(takes.iter().any(|take| *take > 0));
                }
            }
        }
    }
}
