// What a sampler wants of rows of logits: the largest, the log of the sum of exponentials, the
// largest 64; see sample.rs. A row is cut into parts of 4096, whose results a second kernel merges.
//
// A logit and its id are one key, whose order is that of candidates: descending value, then
// ascending id. Keys of a row differ, so the order of comparisons does not matter. A NaN has the
// key 0, below all others, and −0 that of 0.

constexpr u32 SAMPLE_PART = 4096;
constexpr u32 SAMPLE_RUN = 64;  // keys that a warp sorts at once, and the most candidates

struct SampleArgs {
    const float* logits;  // [rows, vocab]
    u64* keys;            // [rows, parts] the largest, or [rows, parts, 64] descending
    float* sums;          // [rows, parts]
    u32* ids;             // [rows, k]
    float* values;        // [rows, k]
    float* log_sums;      // [rows]
    u32 vocab;
    u32 parts;
    u32 k;                // 1 .. 64
    u32 unused;
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

// 2³² − 1 of no candidate.
__device__ inline u32 sample_id(u64 key) { return 0xffffffffu - (u32)key; }

// What is subtracted from logits: ∞ − ∞ would be NaN.
__device__ inline float sample_shift(u64 largest) {
    float value = sample_value(largest);
    return fabsf(value) == bits_to_float(0x7f800000u) ? 0.0f : value;
}

// The largest key of a block of 256 threads, in every thread.
__device__ inline u64 sample_block_max(u64 key, u64* scratch) {
    scratch[threadIdx.x] = key;
    __syncthreads();
    for (u32 n = 128; n > 0; n /= 2) {
        if (threadIdx.x < n && scratch[threadIdx.x + n] > scratch[threadIdx.x])
            scratch[threadIdx.x] = scratch[threadIdx.x + n];
        __syncthreads();
    }
    return scratch[0];
}

// Part blockIdx.x of row blockIdx.y: its largest key, and Σ e^(x − shift).
__device__ void sample_largest_part(const SampleArgs& a) {
    constexpr u32 EACH = SAMPLE_PART / 256;
    __shared__ u64 scratch[256];
    __shared__ float sums[32];
    const u32* logits = (const u32*)a.logits + (u64)blockIdx.y * a.vocab;
    u32 first = blockIdx.x * SAMPLE_PART + threadIdx.x;
    u32 bits[EACH];
    #pragma unroll
    for (u32 i = 0; i < EACH; i++)
        bits[i] = first + 256 * i < a.vocab ? logits[first + 256 * i] : 0xff800000u;
    u64 largest = 0;
    #pragma unroll
    for (u32 i = 0; i < EACH; i++) {
        u64 key = first + 256 * i < a.vocab ? sample_key(bits[i], first + 256 * i) : 0;
        if (key > largest) largest = key;
    }
    largest = sample_block_max(largest, scratch);
    float shift = sample_shift(largest), sum = 0.0f;
    #pragma unroll
    for (u32 i = 0; i < EACH; i++) sum += expf(bits_to_float(bits[i]) - shift);
    sum = block_sum(sum, sums);
    u64 part = (u64)blockIdx.y * a.parts + blockIdx.x;
    if (threadIdx.x == 0) a.keys[part] = largest;
    if (threadIdx.x == 0) a.sums[part] = sum;
}

// One block a row: writes id and value of the largest, and ln Σ eˣ.
__device__ void sample_largest_row(const SampleArgs& a) {
    __shared__ u64 scratch[256];
    __shared__ float sums[32];
    const u64* keys = a.keys + (u64)blockIdx.x * a.parts;
    u64 largest = 0;
    for (u32 i = threadIdx.x; i < a.parts; i += blockDim.x)
        if (keys[i] > largest) largest = keys[i];
    largest = sample_block_max(largest, scratch);
    float shift = sample_shift(largest), sum = 0.0f;
    for (u32 i = threadIdx.x; i < a.parts; i += blockDim.x) {
        float part = a.sums[(u64)blockIdx.x * a.parts + i];
        // A part of −∞ alone has the shift 0, whose exponential may be ∞.
        if (part != 0.0f) sum = fmaf(part, expf(sample_shift(keys[i]) - shift), sum);
    }
    sum = block_sum(sum, sums);
    if (threadIdx.x == 0) {
        a.ids[blockIdx.x] = sample_id(largest);
        a.values[blockIdx.x] = sample_value(largest);
        a.log_sums[blockIdx.x] = shift + logf(sum);
    }
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

// One block a row: writes its k largest.
__device__ void sample_top_row(const SampleArgs& a) {
    __shared__ u64 keys[16 * SAMPLE_RUN];
    const u64* from = a.keys + (u64)blockIdx.x * a.parts * SAMPLE_RUN;
    u32 warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    u64* own = keys + warp * SAMPLE_RUN;
    u64* next = own + 8 * SAMPLE_RUN;
    own[lane] = 0;
    own[lane + 32] = 0;
    for (u32 part = warp; part < a.parts; part += 8) {
        next[lane] = from[part * SAMPLE_RUN + lane];
        next[lane + 32] = from[part * SAMPLE_RUN + lane + 32];
        __syncwarp();
        sample_merge(own, next);
    }
    sample_merge_warps(keys);
    if (threadIdx.x < a.k) {
        a.ids[blockIdx.x * a.k + threadIdx.x] = sample_id(keys[threadIdx.x]);
        a.values[blockIdx.x * a.k + threadIdx.x] = sample_value(keys[threadIdx.x]);
    }
}

KERNEL(sample_largest_parts, 256, SampleArgs, sample_largest_part)
KERNEL(sample_largest_rows, 256, SampleArgs, sample_largest_row)
KERNEL(sample_top_parts, 256, SampleArgs, sample_top_part)
KERNEL(sample_top_rows, 256, SampleArgs, sample_top_row)
