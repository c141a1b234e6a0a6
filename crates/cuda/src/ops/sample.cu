// What a sampler wants of rows of logits: the largest 64, and sums of exponentials; see sample.rs.
// A row is cut into parts of 4096; what they give is merged in order.
//
// A logit and its id are one key, whose order is that of candidates: descending value, then
// ascending id. Keys of a row differ, so the order of comparisons does not matter. A NaN has the
// key 0, below all others, and −0 that of 0.

constexpr u32 SAMPLE_PART = 4096;
constexpr u32 SAMPLE_RUN = 64;     // keys that a warp sorts at once, and candidates of a row
constexpr u32 SAMPLE_RECORD = 66;  // words of what is kept of a row

struct SampleArgs {
    const float* logits;  // [rows, vocab]
    const float* scales;  // [rows]
    u64* keys;            // [rows, parts, 64], descending
    double* sums;         // [rows, parts, 2]: Σ e^((x − largest) · scale), Σ e^(x − largest)
    u64* records;         // [rows, 66]: keys, descending; the two sums
    u32 vocab;
    u32 parts;
};

__device__ inline u64 sample_key(u32 bits, u32 id) {
    if ((bits & 0x7fffffffu) > 0x7f800000u) return 0;
    if (bits == 0x80000000u) bits = 0;
    u32 ordered = bits >> 31 ? ~bits : bits | 0x80000000u;
    return (u64)ordered << 32 | (0xffffffffu - id);
}

// −∞ of no candidate.
__device__ inline float sample_value(u64 key) {
    u32 ordered = (u32)(key >> 32);
    if (key == 0) return bits_to_float(0xff800000u);
    return bits_to_float(ordered >> 31 ? ordered & 0x7fffffffu : ~ordered);
}

// The last stages of a bitonic sort of runs of `size`, by a warp.
__device__ inline void sample_stages(u64* run, u32 size) {
    u32 lane = threadIdx.x % 32;
    for (u32 step = size / 2; step > 0; step /= 2) {
        u32 i = lane / step * 2 * step + lane % step;
        u64 low = run[i], high = run[i + step];
        bool descending = (i & size) == 0;
        if ((low < high) == descending) {
            run[i] = high;
            run[i + step] = low;
        }
        __syncwarp();
    }
}

// Sorts a run, descending, by a warp.
__device__ inline void sample_sort(u64* run) {
    for (u32 size = 2; size <= SAMPLE_RUN; size *= 2) sample_stages(run, size);
}

// The largest of two descending runs into `run`, descending, by a warp: the larger of the i-th and
// the i-th from the end are the largest ones, and rise and fall at most once each.
__device__ inline void sample_merge(u64* run, const u64* other) {
    for (u32 i = threadIdx.x % 32; i < SAMPLE_RUN; i += 32) {
        u64 key = other[SAMPLE_RUN - 1 - i];
        if (key > run[i]) run[i] = key;
    }
    __syncwarp();
    sample_stages(run, SAMPLE_RUN);
}

// The eight warps' runs into the first.
__device__ inline void sample_merge_warps(u64* runs) {
    u32 warp = threadIdx.x / 32;
    for (u32 n = 4; n > 0; n /= 2) {
        __syncthreads();
        if (warp < n) sample_merge(runs + warp * SAMPLE_RUN, runs + (warp + n) * SAMPLE_RUN);
    }
    __syncthreads();
}

// Part blockIdx.x of row blockIdx.y: its largest 64 keys.
__device__ void sample_top_part(const SampleArgs& a) {
    __shared__ u64 keys[SAMPLE_PART];
    const u32* logits = (const u32*)a.logits + (u64)blockIdx.y * a.vocab;
    u32 first = blockIdx.x * SAMPLE_PART;
    #pragma unroll
    for (u32 i = threadIdx.x; i < SAMPLE_PART; i += 256)
        keys[i] = first + i < a.vocab ? sample_key(logits[first + i], first + i) : 0;
    __syncthreads();
    u32 warp = threadIdx.x / 32;
    for (u32 i = warp; i < SAMPLE_PART / SAMPLE_RUN; i += 8) {
        sample_sort(keys + i * SAMPLE_RUN);
        if (i != warp) sample_merge(keys + warp * SAMPLE_RUN, keys + i * SAMPLE_RUN);
    }
    sample_merge_warps(keys);
    u64* to = a.keys + ((u64)blockIdx.y * a.parts + blockIdx.x) * SAMPLE_RUN;
    if (threadIdx.x < SAMPLE_RUN) to[threadIdx.x] = keys[threadIdx.x];
}

// One block a row: its largest 64.
__device__ void sample_top_row(const SampleArgs& a) {
    __shared__ u64 keys[16 * SAMPLE_RUN];
    const u64* from = a.keys + (u64)blockIdx.x * a.parts * SAMPLE_RUN;
    u32 warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    u64* own = keys + warp * SAMPLE_RUN;
    u64* next = own + 8 * SAMPLE_RUN;
    own[lane] = 0;
    own[lane + 32] = 0;
    __syncwarp();
    for (u32 part = warp; part < a.parts; part += 8) {
        next[lane] = from[part * SAMPLE_RUN + lane];
        next[lane + 32] = from[part * SAMPLE_RUN + lane + 32];
        __syncwarp();
        sample_merge(own, next);
    }
    sample_merge_warps(keys);
    u64* to = a.records + (u64)blockIdx.x * SAMPLE_RECORD;
    if (threadIdx.x < SAMPLE_RUN) to[threadIdx.x] = keys[threadIdx.x];
}

// The sums of 256 threads, in the first; `scratch`: 256 places.
__device__ inline double sample_block_sum(double value, double* scratch) {
    scratch[threadIdx.x] = value;
    __syncthreads();
    for (u32 n = 128; n > 0; n /= 2) {
        if (threadIdx.x < n) scratch[threadIdx.x] += scratch[threadIdx.x + n];
        __syncthreads();
    }
    value = scratch[0];
    __syncthreads();
    return value;
}

// Part blockIdx.x of row blockIdx.y: its sums. An infinite largest value gives NaN.
__device__ void sample_sum_part(const SampleArgs& a) {
    __shared__ double scratch[256];
    const float* logits = a.logits + (u64)blockIdx.y * a.vocab;
    float largest = sample_value(a.records[(u64)blockIdx.y * SAMPLE_RECORD]);
    float scale = a.scales[blockIdx.y];
    double scaled = 0.0, raw = 0.0;
    u32 first = blockIdx.x * SAMPLE_PART;
    for (u32 i = first + threadIdx.x; i < first + SAMPLE_PART && i < a.vocab; i += 256) {
        float below = logits[i] - largest;
        scaled += (double)expf(below * scale);
        raw += exp((double)below);
    }
    scaled = sample_block_sum(scaled, scratch);
    raw = sample_block_sum(raw, scratch);
    double* to = a.sums + ((u64)blockIdx.y * a.parts + blockIdx.x) * 2;
    if (threadIdx.x == 0) to[0] = scaled;
    if (threadIdx.x == 0) to[1] = raw;
}

// One block a row: the sums of its parts.
__device__ void sample_sum_row(const SampleArgs& a) {
    if (threadIdx.x >= 2) return;
    const double* sums = a.sums + (u64)blockIdx.x * a.parts * 2 + threadIdx.x;
    double sum = 0.0;
    for (u32 part = 0; part < a.parts; part++) sum += sums[2 * part];
    double* record = (double*)(a.records + (u64)blockIdx.x * SAMPLE_RECORD);
    record[SAMPLE_RUN + threadIdx.x] = sum;
}

KERNEL(sample_top_parts, 256, SampleArgs, sample_top_part)
KERNEL(sample_top_rows, 256, SampleArgs, sample_top_row)
KERNEL(sample_sum_parts, 256, SampleArgs, sample_sum_part)
KERNEL(sample_sum_rows, 32, SampleArgs, sample_sum_row)
