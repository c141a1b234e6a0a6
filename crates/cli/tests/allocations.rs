//! A decode step allocates nothing, alone and in a batch, greedy and sampled. Excepted are the step
//! that opens a new block of keys and values, and the scratch of a worker at its first tasks. And the
//! bytes in use are those that the model of memory says.

#[path = "allocations/memory.rs"]
mod memory;

use hybra_checkpoint::Checkpoint;
use hybra_engine::{
    Engine, EngineConfig, Event, GenerationRequest, Insertion, SamplingParams, TagTexts,
    ThinkingParams, ThinkingVocab, TokenTable,
};
use hybra_kernels::{Cpu, Isa};
use hybra_model::{Config, NemotronH, Weights};
use hybra_tokenizer::{ForcedClose, SpecialIds, ThinkTags, Tokenizer};
use std::alloc::{GlobalAlloc, Layout, System};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

/// The system's allocator, counting.
struct Counting;

static ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);
/// Bytes in use.
static IN_USE: AtomicUsize = AtomicUsize::new(0);
/// One test counts at a time.
static LOCK: Mutex<()> = Mutex::new(());

// SAFETY: every call is passed on to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::SeqCst);
        IN_USE.fetch_add(layout.size(), Ordering::SeqCst);
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, data: *mut u8, layout: Layout) {
        IN_USE.fetch_sub(layout.size(), Ordering::SeqCst);
        // SAFETY: `data` came from the system's allocator with this layout.
        unsafe { System.dealloc(data, layout) }
    }

    unsafe fn realloc(&self, data: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::SeqCst);
        IN_USE.fetch_add(new_size, Ordering::SeqCst);
        IN_USE.fetch_sub(layout.size(), Ordering::SeqCst);
        // SAFETY: `data` came from the system's allocator with this layout.
        unsafe { System.realloc(data, layout, new_size) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// Positions of a block of the key/value cache.
const KV_BLOCK: usize = 64;
/// Steps in which the caller's buffers grow.
const WARM_UP: usize = 20;
/// Steps counted.
const STEPS: usize = 80;

struct Table(Arc<Tokenizer>);

impl TokenTable for Table {
    fn bytes(&self, id: u32) -> &[u8] {
        self.0.token_bytes(id)
    }
}

/// An engine on the model inside the binary, and a request for it.
fn engine(threads: usize) -> (Engine, GenerationRequest) {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../assets/default-model");
    let checkpoint = Checkpoint::open(&dir).unwrap();
    let config = Config::from_checkpoint(&checkpoint).unwrap();
    let weights = Weights::load(&checkpoint, &config, |_, _| {}).unwrap();
    let text = |name: &str| std::fs::read_to_string(dir.join(name)).unwrap();
    let (json, side) = (text("tokenizer.json"), text("tokenizer_config.json"));
    let tokenizer =
        Tokenizer::from_files(&json, Some(&side), None, &SpecialIds::default()).unwrap();
    let tags = ThinkTags::detect(&tokenizer).unwrap();
    let forced = ForcedClose::new(&tokenizer, &tags, None).unwrap();
    let bytes = |id: u32| tokenizer.token_bytes(id).to_vec();
    let texts = TagTexts {
        open: tags.open.as_bytes(),
        close: tags.close.as_bytes(),
        tool_open: b"<TOOLCALL>[",
        separator: tags.after_close.as_bytes(),
    };
    let size = tokenizer.vocab_size() as u32;
    let vocab = ThinkingVocab::new(texts, forced.partial, size, bytes).unwrap();
    let insertion =
        Insertion::new(&vocab, b"", forced.after_newline, forced.mid_line, bytes).unwrap();
    let prompt = "<SPECIAL_10>System\n\n<SPECIAL_11>User\na=3;a?\n<SPECIAL_11>Assistant\n<think>\n";
    let request = GenerationRequest {
        prompt: tokenizer.encode(prompt, false).unwrap(),
        sampling: SamplingParams::greedy(),
        thinking: ThinkingParams::default(),
        start: vocab.start_of(prompt.as_bytes()),
        insertion: Arc::new(insertion),
        reserve_answer: true,
        tools: false,
        eos_token_ids: tokenizer.eos_ids().to_vec(),
        constraint: None,
        priority: 0,
        cache_salt: 0,
        cache_points: Vec::new(),
        prompt_logprobs: None,
    };
    let model = Arc::new(NemotronH::new(config, weights));
    let cpu = Arc::new(Cpu::new(Isa::best(), threads));
    let table = Arc::new(Table(Arc::new(tokenizer)));
    (Engine::new(model, cpu, Arc::new(vocab), table, EngineConfig::default()), request)
}

/// Allocations of [`STEPS`] decode steps after the first few, those that open a block of keys and
/// values left out.
fn allocations(threads: usize, batch: usize, sampling: &SamplingParams) -> usize {
    let (mut engine, mut request) = engine(threads);
    request.sampling = SamplingParams { ignore_eos: true, ..sampling.clone() };
    let mut read = request.prompt.len();
    for _ in 0..batch {
        engine.add(request.clone()).unwrap();
    }
    let mut events = Vec::with_capacity(64);
    let mut all = 0;
    for step in 0..WARM_UP + STEPS {
        events.clear();
        let before = ALLOCATIONS.load(Ordering::SeqCst);
        engine.step(&mut events);
        let allocations = ALLOCATIONS.load(Ordering::SeqCst) - before;
        let tokens = events.iter().filter(|e| matches!(e, Event::Token(_))).count();
        assert_eq!(tokens, batch, "step {step}: {events:?}");
        if step >= WARM_UP && !read.is_multiple_of(KV_BLOCK) {
            all += allocations;
        }
        // The first step reads the prompt, each later one the token before it.
        read += usize::from(step > 0);
    }
    all
}

// The count is of the whole process: tests take turns.
#[test]
fn a_decode_step_allocates_nothing() {
    let _alone = LOCK.lock();
    let greedy = SamplingParams::greedy();
    let sampled = SamplingParams { temperature: 1.3, top_k: 20, top_p: 0.9, ..Default::default() };
    for (batch, sampling) in [(1, &greedy), (4, &greedy), (4, &sampled)] {
        assert_eq!(allocations(1, batch, sampling), 0, "{batch} sequences, {sampling:?}");
        // A worker's scratch grows at the first task that the worker happens to take of an op.
        let found = allocations(2, batch, sampling);
        assert!(found < STEPS / 4, "{batch} sequences, two threads: {found}, {sampling:?}");
    }
}
