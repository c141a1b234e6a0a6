// The recurrence of Mamba-2 token by token; see mamba_split_conv1d_scan.rs:
//     S <- e^{delta a} S + B (x) delta x,  y = S' C + d x.
// S of a head is [N, P]. Its columns do not depend on each other: a block works on 16 of them, so
// that one sequence already fills the device, and no sum leaves the block.

// Arguments of this scan and of the one by chunks in ssd.cu.
struct SsdArgs {
    float* xbc;            // [tokens, cols]: x, B and C after the convolution; y replaces x
    const bf16* rounded;   // the same before y, rounded; only read by chunks
    const float* dt;       // [tokens, dt_stride], of which num_heads columns are raw steps
    const float* a;        // [H], -exp(A_log)
    const float* d;        // [H]
    const float* dt_bias;  // [H]
    const u64* states;     // of each segment the address of its state, f32 [H, N, P]
    const u32* start;      // of each segment its first token
    const u32* len;        // and how many it has, at least one
    u32 dt_stride;
    u32 num_heads;
    u32 head_dim;
    u32 n_groups;
    u32 state_size;
    u32 chunk;  // segments' whole chunks of so many tokens are those of ssd.cu; 0: there are none
    float dt_least;
    float dt_most;
};

// delta of a raw step; NaN stays NaN.
__device__ inline float ssd_delta(const SsdArgs& a, float raw, float bias) {
    float free = softplus(raw + bias);
    return free < a.dt_least ? a.dt_least : free > a.dt_most ? a.dt_most : free;
}

struct alignas(16) SsmValues4 { float v[4]; };

// The first `valid` of four values, others zero. Whole groups of aligned rows are one access.
__device__ inline void ssm_load4(float to[4], const float* from, u32 valid, bool aligned) {
    if (aligned && valid == 4) {
        SsmValues4 all = *(const SsmValues4*)from;
        for (u32 i = 0; i < 4; i++) to[i] = all.v[i];
    } else {
        for (u32 i = 0; i < 4; i++) to[i] = i < valid ? from[i] : 0.0f;
    }
}

__device__ inline void ssm_store4(float* to, const float from[4], u32 valid, bool aligned) {
    if (aligned && valid == 4) {
        *(SsmValues4*)to = SsmValues4{{from[0], from[1], from[2], from[3]}};
    } else {
        for (u32 i = 0; i < 4; i++) if (i < valid) to[i] = from[i];
    }
}

constexpr u32 SSM_THREADS = 128, SSM_COLUMNS = 16;
// Rows of S from one of a thread's to its next: a warp has 8 rows of 4 times 4 columns.
constexpr u32 SSM_ROW_STEP = SSM_THREADS / 4;
// Rows that a thread keeps in registers.
constexpr u32 SSM_ROWS = 4;

// What a token brings to a thread.
struct SsmToken {
    float raw;
    float x[4];
    float b[SSM_ROWS];
    float c[SSM_ROWS];
};

// One row of the state of a thread.
__device__ inline void ssm_row(
    float s[4], float y[4], float decay, const float u[4], float b, float c) {
    for (u32 i = 0; i < 4; i++) {
        s[i] = fmaf(u[i], b, decay * s[i]);
        y[i] = fmaf(s[i], c, y[i]);
    }
}

// Grid [P / 16, H, segments]. KEPT: N is at most 128, and S is read and written once; else it is
// for every token. ONE: no segment has more than one token.
template <bool KEPT, bool ONE> __device__ void selective_state_update(const SsdArgs& a) {
    __shared__ float partial[2][SSM_THREADS / 32][SSM_COLUMNS];
    u32 warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    u32 head = blockIdx.y, segment = blockIdx.z, width = a.head_dim, n = a.state_size;
    u32 len = a.len[segment], skipped = a.chunk ? len / a.chunk * a.chunk : 0;
    if (skipped == len) return;
    u32 inner = a.num_heads * width, cols = inner + 2 * a.n_groups * n;
    u32 group = head / (a.num_heads / a.n_groups);
    u32 column = blockIdx.x * SSM_COLUMNS + lane % 4 * 4, row = warp * 8 + lane / 4;
    u32 valid = column >= width ? 0 : width - column < 4 ? width - column : 4;
    bool aligned = width % 4 == 0;
    float* state = (float*)a.states[segment] + (u64)head * n * width + column;

    float s[SSM_ROWS][4];
    if (KEPT) {
#pragma unroll
        for (u32 r = 0; r < SSM_ROWS; r++) {
            u32 at = row + r * SSM_ROW_STEP;
            ssm_load4(s[r], state + (u64)at * width, at < n ? valid : 0, aligned);
        }
    }
    u64 token = a.start[segment] + skipped;
    const float* dt = a.dt + token * a.dt_stride + head;
    float* x = a.xbc + token * cols + head * width + column;
    const float* b = a.xbc + token * cols + inner + group * n;
    const float* c = b + a.n_groups * n;
    float decay_rate = a.a[head], skip = a.d[head], bias = a.dt_bias[head];
    auto load = [&](SsmToken& to, u32 t) {
        to.raw = dt[(u64)t * a.dt_stride];
        for (u32 i = 0; i < 4; i++) to.x[i] = i < valid ? x[(u64)t * cols + i] : 0.0f;
        if (KEPT) {
#pragma unroll
            for (u32 r = 0; r < SSM_ROWS; r++) {
                u32 at = row + r * SSM_ROW_STEP;
                to.b[r] = at < n ? b[(u64)t * cols + at] : 0.0f;
                to.c[r] = at < n ? c[(u64)t * cols + at] : 0.0f;
            }
        }
    };
    SsmToken next;
    load(next, 0);
    u32 tokens = ONE ? 1 : len - skipped;
    for (u32 t = 0; t < tokens; t++) {
        SsmToken now = next;
        if (t + 1 < tokens) load(next, t + 1);
        float delta = ssd_delta(a, now.raw, bias), decay = expf(delta * decay_rate);
        float u[4], y[4] = {0.0f, 0.0f, 0.0f, 0.0f};
        for (u32 i = 0; i < 4; i++) u[i] = delta * now.x[i];
        if (KEPT) {
#pragma unroll
            for (u32 r = 0; r < SSM_ROWS; r++) ssm_row(s[r], y, decay, u, now.b[r], now.c[r]);
        } else {
            for (u32 at = row; at < n; at += SSM_ROW_STEP) {
                float values[4], *own = state + (u64)at * width;
                ssm_load4(values, own, valid, aligned);
                ssm_row(values, y, decay, u, b[(u64)t * cols + at], c[(u64)t * cols + at]);
                ssm_store4(own, values, valid, aligned);
            }
        }
        // The sums over the rows of a warp, then over the warps. The two halves of `partial` take
        // turns, so that one barrier a token is enough.
        for (u32 i = 0; i < 4; i++) {
            for (u32 mask = 4; mask < 32; mask *= 2) y[i] += shuffle_xor(y[i], mask);
            if (warp == 0) y[i] = fmaf(skip, now.x[i], y[i]);
            if (lane < 4) partial[t % 2][warp][lane * 4 + i] = y[i];
        }
        __syncthreads();
        if (threadIdx.x < SSM_COLUMNS && blockIdx.x * SSM_COLUMNS + threadIdx.x < width) {
            float sum = 0.0f;
            for (u32 w = 0; w < SSM_THREADS / 32; w++) sum += partial[t % 2][w][threadIdx.x];
            u64 at = (token + t) * cols + head * width + blockIdx.x * SSM_COLUMNS;
            a.xbc[at + threadIdx.x] = sum;
        }
    }
    if (KEPT) {
#pragma unroll
        for (u32 r = 0; r < SSM_ROWS; r++) {
            u32 at = row + r * SSM_ROW_STEP;
            if (at < n) ssm_store4(state + (u64)at * width, s[r], valid, aligned);
        }
    }
}

KERNEL(selective_state_update, 128, SsdArgs, (selective_state_update<false, false>))
KERNEL(selective_state_update_128, 128, SsdArgs, (selective_state_update<true, false>))
KERNEL(selective_state_update_128_one, 128, SsdArgs, (selective_state_update<true, true>))
