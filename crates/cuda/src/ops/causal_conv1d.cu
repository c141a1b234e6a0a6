// Depthwise causal convolution and SiLU over the tokens of a batch; see
// mamba_split_conv1d_scan.rs. The sum of an output starts with the bias and takes the taps in
// order in every kernel here, so they give the same bits.

struct CausalConv1dArgs {
    const float* x;       // [tokens, x_stride], of which the first `cols` columns are convolved
    const float* weight;  // [taps, cols]; the last tap multiplies the token itself
    const float* bias;    // [cols], or null
    float* out;           // [tokens, cols]
    bf16* rounded;        // the same rounded to bf16, or null
    const u64* states;    // of each segment the address of its last inputs, [taps - 1, cols]
    const u32* start;     // of each segment its first token
    const u32* len;       // and how many it has, at least one
    u32 tokens;
    u32 segments;
    u32 cols;
    u32 x_stride;
    u32 taps;
    u32 move_states;  // in causal_conv1d_row*: every segment has one token, and its state moves on
};

// The segment of a token.
__device__ inline u32 causal_conv1d_segment(const CausalConv1dArgs& a, u32 token) {
    u32 first = 0, after = a.segments;
    while (after - first > 1) {
        u32 middle = (first + after) / 2;
        if (a.start[middle] <= token) first = middle; else after = middle;
    }
    return first;
}

__device__ inline void causal_conv1d_store(
    const CausalConv1dArgs& a, u32 token, u32 col, float sum) {
    u64 at = (u64)token * a.cols + col;
    float value = silu(sum);
    a.out[at] = value;
    if (a.rounded) a.rounded[at] = from_float<bf16>(value);
}

// One token and 256 columns a block: grid [tokens, columns]. TAPS 0 is any number.
template <u32 TAPS> __device__ void causal_conv1d_row(const CausalConv1dArgs& a) {
    u32 token = blockIdx.x, col = blockIdx.y * blockDim.x + threadIdx.x;
    u32 past = (TAPS ? TAPS : a.taps) - 1;
    u32 segment = causal_conv1d_segment(a, token), at = token - a.start[segment];
    if (col >= a.cols) return;
    float* state = (float*)a.states[segment] + col;
    const float* x = a.x + (u64)token * a.x_stride + col;
    float sum = a.bias ? a.bias[col] : 0.0f;
    for (u32 k = 0; k < past; k++) {
        // The input past - k tokens ago.
        float value = at + k < past ? state[(u64)(at + k) * a.cols]
                                    : *(x - (u64)(past - k) * a.x_stride);
        // The value has left its place: no other thread reads this column of the state.
        if (a.move_states && k > 0) state[(u64)(k - 1) * a.cols] = value;
        sum = fmaf(a.weight[(u64)k * a.cols + col], value, sum);
    }
    if (a.move_states && past > 0) state[(u64)(past - 1) * a.cols] = *x;
    sum = fmaf(a.weight[(u64)past * a.cols + col], *x, sum);
    causal_conv1d_store(a, token, col, sum);
}

constexpr u32 CAUSAL_CONV1D_ROWS = 8;

// Four taps, eight tokens and 256 columns a block: grid [tokens / 8, columns]. A thread keeps the
// last inputs of its column, so that each is read once.
__device__ void causal_conv1d_rows(const CausalConv1dArgs& a) {
    u32 first = blockIdx.x * CAUSAL_CONV1D_ROWS, col = blockIdx.y * blockDim.x + threadIdx.x;
    u32 segment = causal_conv1d_segment(a, first);
    if (col >= a.cols) return;
    const float* x = a.x + (u64)first * a.x_stride + col;
    float in[CAUSAL_CONV1D_ROWS], weight[4], past[3];
#pragma unroll
    for (u32 r = 0; r < CAUSAL_CONV1D_ROWS; r++)
        in[r] = first + r < a.tokens ? x[(u64)r * a.x_stride] : 0.0f;
#pragma unroll
    for (u32 k = 0; k < 4; k++) weight[k] = a.weight[(u64)k * a.cols + col];
    float bias = a.bias ? a.bias[col] : 0.0f;
    u32 len = a.len[segment], at = first - a.start[segment];
    const float* state = (const float*)a.states[segment] + col;
#pragma unroll
    for (u32 k = 0; k < 3; k++)
        past[k] = at + k < 3 ? state[(u64)(at + k) * a.cols] : *(x - (u64)(3 - k) * a.x_stride);
#pragma unroll
    for (u32 r = 0; r < CAUSAL_CONV1D_ROWS; r++) {
        if (first + r >= a.tokens) break;
        if (at == len) {
            segment++;
            at = 0;
            len = a.len[segment];
            state = (const float*)a.states[segment] + col;
            for (u32 k = 0; k < 3; k++) past[k] = state[(u64)k * a.cols];
        }
        float sum = bias;
        for (u32 k = 0; k < 3; k++) sum = fmaf(weight[k], past[k], sum);
        causal_conv1d_store(a, first + r, col, fmaf(weight[3], in[r], sum));
        past[0] = past[1];
        past[1] = past[2];
        past[2] = in[r];
        at++;
    }
}

// Moves the states on: to the last taps - 1 of their old rows followed by the segment's inputs.
// One segment and 256 columns a block: grid [segments, columns].
__device__ void causal_conv1d_state(const CausalConv1dArgs& a) {
    u32 segment = blockIdx.x, col = blockIdx.y * blockDim.x + threadIdx.x;
    if (col >= a.cols) return;
    u32 len = a.len[segment], past = a.taps - 1;
    float* state = (float*)a.states[segment] + col;
    const float* x = a.x + (u64)a.start[segment] * a.x_stride + col;
    for (u32 r = 0; r < past; r++) {
        // A row moves to an earlier place, which has been read.
        u32 from = len + r;
        state[(u64)r * a.cols] =
            from < past ? state[(u64)from * a.cols] : x[(u64)(from - past) * a.x_stride];
    }
}

KERNEL(causal_conv1d_row, 256, CausalConv1dArgs, (causal_conv1d_row<0>))
KERNEL(causal_conv1d_row_4, 256, CausalConv1dArgs, (causal_conv1d_row<4>))
KERNEL(causal_conv1d_rows_4, 256, CausalConv1dArgs, causal_conv1d_rows)
KERNEL(causal_conv1d_states, 256, CausalConv1dArgs, causal_conv1d_state)
