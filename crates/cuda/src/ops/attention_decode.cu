// Attention of single tokens, split over the cache: one block takes a token, a kv head and a span
// of 512 positions; a second kernel merges the spans of a row in order; see attention.rs.
//
// A span counts from position 0 and a row's arithmetic is a function of its own position, so its
// bits depend on no other row and not on how many spans the grid has: blocks beyond a row's
// context do nothing. Memory beyond a row's position is never read: it may hold anything.
//
// Of a span there is kept m = c max s, l = Σ 2^(c s − m) and Σ 2^(c s − m) v, where
// c = log₂e / √head_dim.

constexpr u32 ATTENTION_SPAN = 512;
constexpr u32 ATTENTION_WARPS = ATTENTION_SPAN / KV_PAGE;  // a warp takes a page
constexpr u32 ATTENTION_HEADS = 8;                         // query heads of a block

// All three kernels of attention.
struct AttentionArgs {
    const float* q;  // [tokens, q_stride]
    float* values;   // [rows, heads, spans, head_dim]
    float* stats;    // [rows, heads, spans, 2]: m and l
    void* out;       // [tokens, out_stride], T; columns from heads · head_dim on become zero
    KvBatch batch;
    u32 first;       // first token of this launch (its row 0); first segment in prefill
    u32 num_spans;   // of the grid
    u32 q_stride;
    u32 out_stride;
    float scale;     // log₂e / √head_dim
    u32 unused;
};

__device__ inline float attention_infinity() { return bits_to_float(0x7f800000u); }

// What is subtracted from exponents: −∞ − (−∞) would be NaN.
__device__ inline float attention_shift(float top) {
    return top == -attention_infinity() ? 0.0f : top;
}

// The share of a block.
struct AttentionShare {
    u32 token;
    u32 kv_head;
    u32 first_head;
    u32 heads;  // at most ATTENTION_HEADS
    u32 len;    // positions of the span that the token sees; 0: nothing to do
    u32 seen;   // of these, positions in the page of this warp
    u64 page;   // address of that page, if `seen` is not 0
    u64 part;   // index of span and first head in `stats`; the next head is `num_spans` further
};

__device__ inline AttentionShare attention_share(const AttentionArgs& a) {
    const KvBatch& b = a.batch;
    AttentionShare s;
    s.token = a.first + blockIdx.x;
    KvToken at = kv_token(b, s.token);
    u32 group = b.num_heads / b.num_kv_heads;
    u32 chunks = (group + ATTENTION_HEADS - 1) / ATTENTION_HEADS;
    u32 chunk = blockIdx.y % chunks * ATTENTION_HEADS;
    s.kv_head = blockIdx.y / chunks;
    s.first_head = s.kv_head * group + chunk;
    s.heads = group - chunk < ATTENTION_HEADS ? group - chunk : ATTENTION_HEADS;
    u32 from = blockIdx.z * ATTENTION_SPAN, end = at.valid ? at.position + 1 : 0;
    s.len = end <= from ? 0 : end - from < ATTENTION_SPAN ? end - from : ATTENTION_SPAN;
    u32 before = threadIdx.x / 32 * KV_PAGE;
    s.seen = s.len <= before ? 0 : s.len - before < KV_PAGE ? s.len - before : KV_PAGE;
    s.page = s.seen == 0 ? 0 : b.pages[b.first_pages[at.segment] + (from + before) / KV_PAGE];
    s.part = ((u64)blockIdx.x * b.num_heads + s.first_head) * a.num_spans + blockIdx.z;
    return s;
}

// V values from memory that is aligned to 16 bytes, unless V is 1.
template <u32 V> __device__ inline void attention_load(float (&to)[V], const float* from) {
    if constexpr (V == 1) {
        to[0] = *from;
    } else {
        for (u32 i = 0; i < V / 4; i++) {
            Bytes16 bytes = ((const Bytes16*)from)[i];
            for (u32 w = 0; w < 4; w++) to[4 * i + w] = bits_to_float(bytes.word[w]);
        }
    }
}
template <u32 V> __device__ inline void attention_load(float (&to)[V], const bf16* from) {
    if constexpr (V == 1) {
        to[0] = to_float(*from);
    } else {
        Bytes16 bytes = *(const Bytes16*)from;
        for (u32 w = 0; w < 4; w++) {
            to[2 * w] = bits_to_float(bytes.word[w] << 16);
            to[2 * w + 1] = bits_to_float(bytes.word[w] & 0xffff0000u);
        }
    }
}

// Any head_dim that V divides, by multiply-adds in f32. Dynamic shared memory: the queries,
// ATTENTION_HEADS · head_dim floats.
template <class T, u32 V> __device__ void attention_decode(const AttentionArgs& a) {
    __shared__ float weights[ATTENTION_HEADS][ATTENTION_SPAN];
    __shared__ float sums[ATTENTION_WARPS][32 * V];
    float* q = (float*)dynamic_shared();
    const AttentionShare s = attention_share(a);
    if (s.len == 0) return;
    const u32 dim = a.batch.head_dim, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const T* keys = kv_keys<T>(a.batch, s.page, s.kv_head);
    const float* from = a.q + (u64)s.token * a.q_stride + s.first_head * dim;
    for (u32 i = threadIdx.x; i < s.heads * dim; i += blockDim.x) q[i] = from[i];
    __syncthreads();

    // Scores: lanes share a key, a warp takes four keys at once.
    for (u32 p = 0; p < s.seen; p += 4) {
        float score[ATTENTION_HEADS][4] = {};
        for (u32 c = lane * V; c < dim; c += 32 * V) {
            float key[4][V] = {};
            #pragma unroll
            for (u32 j = 0; j < 4; j++)
                if (p + j < s.seen) attention_load(key[j], keys + (p + j) * dim + c);
            #pragma unroll
            for (u32 h = 0; h < ATTENTION_HEADS; h++) {
                if (h >= s.heads) continue;
                float query[V];
                attention_load(query, q + h * dim + c);
                #pragma unroll
                for (u32 i = 0; i < 4 * V; i++)
                    score[h][i % 4] = fmaf(query[i / 4], key[i % 4][i / 4], score[h][i % 4]);
            }
        }
        #pragma unroll
        for (u32 h = 0; h < ATTENTION_HEADS; h++) {
            if (h >= s.heads) continue;
            #pragma unroll
            for (u32 j = 0; j < 4; j++) {
                float sum = warp_sum(score[h][j]);
                if (lane == j && p + j < s.seen) weights[h][warp * KV_PAGE + p + j] = sum;
            }
        }
    }
    __syncthreads();

    // Weights: a warp takes a head.
    if (warp < s.heads) {
        float most = -attention_infinity(), sum = 0.0f;
        for (u32 p = lane; p < s.len; p += 32) most = fmaxf(most, weights[warp][p]);
        float top = warp_max(most) * a.scale, shift = attention_shift(top);
        for (u32 p = lane; p < s.len; p += 32) {
            float weight = exp2f(fmaf(weights[warp][p], a.scale, -shift));
            weights[warp][p] = weight;
            sum += weight;
        }
        sum = warp_sum(sum);
        float* stats = a.stats + 2 * (s.part + (u64)warp * a.num_spans);
        if (lane == 0) stats[0] = top;
        if (lane == 0) stats[1] = sum;
    }
    __syncthreads();

    // Values: a warp sums its page, then the pages are added in order.
    const T* values = keys + kv_values(a.batch);
    for (u32 first = 0; first < dim; first += 32 * V) {
        u32 c = first + lane * V;
        float sum[ATTENTION_HEADS][V] = {};
        if (c < dim) {
            #pragma unroll 4
            for (u32 p = 0; p < s.seen; p++) {
                float value[V];
                attention_load(value, values + p * dim + c);
                #pragma unroll
                for (u32 h = 0; h < ATTENTION_HEADS; h++) {
                    if (h >= s.heads) continue;
                    float weight = weights[h][warp * KV_PAGE + p];
                    for (u32 i = 0; i < V; i++) sum[h][i] = fmaf(weight, value[i], sum[h][i]);
                }
            }
        }
        #pragma unroll
        for (u32 h = 0; h < ATTENTION_HEADS; h++) {
            if (h >= s.heads) continue;
            for (u32 i = 0; i < V; i++) sums[warp][lane * V + i] = sum[h][i];
            __syncthreads();
            float* to = a.values + (s.part + (u64)h * a.num_spans) * dim + first;
            for (u32 i = threadIdx.x; i < 32 * V && first + i < dim; i += blockDim.x) {
                float total = sums[0][i];
                for (u32 w = 1; w < ATTENTION_WARPS; w++) total += sums[w][i];
                to[i] = total;
            }
            __syncthreads();
        }
    }
}

__device__ inline Bytes16 attention_load16(const u16* from, bool valid) {
    Bytes16 bytes = {};
    if (valid) bytes = *(const Bytes16*)from;
    return bytes;
}

// bf16 and head_dim D, a multiple of 64, on matrix units: a warp takes a page straight from memory
// into operands, positions (scores) or head dims (values) as rows, query heads as columns. Which
// place of a product a dim or position takes is free as long as both operands agree, so a lane
// loads 16 bytes of a row at once: 8 dims of a key, or 8 dims of values of 4 positions.
template <u32 D> __device__ void attention_decode_matrix(const AttentionArgs& a) {
    __shared__ float sums[ATTENTION_WARPS][ATTENTION_HEADS][D + 4];
    // Word 8j + i: positions 16j + i and 16j + i + 8 of the page. The 8 words of padding put the
    // heads in different banks.
    __shared__ u32 weights[ATTENTION_WARPS][ATTENTION_HEADS][KV_PAGE / 2 + 8];
    __shared__ float tops[ATTENTION_WARPS][ATTENTION_HEADS];
    __shared__ float norms[ATTENTION_WARPS][ATTENTION_HEADS];
    const AttentionShare s = attention_share(a);
    if (s.len == 0) return;
    const u32 warp = threadIdx.x / 32, g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
    if (s.seen > 0) {
        const u16* keys = kv_keys<u16>(a.batch, s.page, s.kv_head);
        const u16* values = keys + kv_values(a.batch);
        // Column g: head g; chunk c: dims 8(t + 4c) and the seven that follow.
        u32 q[D / 32][4];
        const float* query = a.q + (u64)s.token * a.q_stride + (s.first_head + g) * D + 8 * t;
        #pragma unroll
        for (u32 i = 0; i < D / 8; i++) {
            const float* pair = query + i / 4 * 32 + i % 4 * 2;
            q[i / 4][i % 4] = g < s.heads ? pack_bf16(pair[0], pair[1]) : 0;
        }
        // Positions 16j + g and 16j + g + 8, heads 2t and 2t + 1.
        float score[4][4] = {};
        #pragma unroll
        for (u32 j = 0; j < 4; j++) {
            Bytes16 low[D / 32], high[D / 32];
            const u16* row = keys + (16 * j + g) * D + 8 * t;
            #pragma unroll
            for (u32 c = 0; c < D / 32; c++) {
                low[c] = attention_load16(row + 32 * c, 16 * j + g < s.seen);
                high[c] = attention_load16(row + 8 * D + 32 * c, 16 * j + g + 8 < s.seen);
            }
            #pragma unroll
            for (u32 i = 0; i < D / 16; i++) {
                u32 c = i / 2, w = i % 2 * 2;
                u32 rows[4] = {low[c].word[w], high[c].word[w], low[c].word[w + 1],
                               high[c].word[w + 1]};
                mma_bf16(score[j], rows, &q[c][w]);
            }
        }
        float top[2] = {-attention_infinity(), -attention_infinity()}, norm[2] = {0.0f, 0.0f};
        #pragma unroll
        for (u32 i = 0; i < 16; i++) {
            u32 j = i / 4, e = i % 4;
            if (16 * j + g + e / 2 * 8 >= s.seen) score[j][e] = -attention_infinity();
            top[e % 2] = fmaxf(top[e % 2], score[j][e]);
        }
        #pragma unroll
        for (u32 h = 0; h < 2; h++) {
            for (u32 mask = 4; mask < 32; mask *= 2)
                top[h] = fmaxf(top[h], shuffle_xor(top[h], mask));
            top[h] *= a.scale;
        }
        #pragma unroll
        for (u32 i = 0; i < 8; i++) {
            u32 j = i / 2, h = i % 2;
            float low = exp2f(fmaf(score[j][h], a.scale, -attention_shift(top[h])));
            float high = exp2f(fmaf(score[j][h + 2], a.scale, -attention_shift(top[h])));
            norm[h] += low + high;
            weights[warp][2 * t + h][8 * j + g] = pack_bf16(low, high);
        }
        #pragma unroll
        for (u32 h = 0; h < 2; h++) {
            for (u32 mask = 4; mask < 32; mask *= 2) norm[h] += shuffle_xor(norm[h], mask);
            if (g == 0) tops[warp][2 * t + h] = top[h];
            if (g == 0) norms[warp][2 * t + h] = norm[h];
        }
        __syncwarp();
        // Product 4d + i: dims 64d + 8g + 2i and the next, heads 2t and 2t + 1.
        float sum[D / 16][4] = {};
        // Not unrolled: two blocks of 256 threads share a multiprocessor with 128 registers each.
        #pragma unroll 1
        for (u32 j = 0; j < 4; j++) {
            const u32* pairs = &weights[warp][g][8 * j + 2 * t];
            u32 columns[2] = {pairs[0], pairs[1]};
            Bytes16 v[D / 64][4];
            #pragma unroll
            for (u32 i = 0; i < D / 16; i++) {
                u32 at = 16 * j + 2 * t + i % 4 / 2 + i % 2 * 8;
                v[i / 4][i % 4] =
                    attention_load16(values + at * D + i / 4 * 64 + 8 * g, at < s.seen);
            }
            #pragma unroll
            for (u32 i = 0; i < D / 16; i++) {
                u32 word[4];
                for (u32 p = 0; p < 4; p++) word[p] = v[i / 4][p].word[i % 4];
                u32 rows[4] = {(word[0] & 0xffff) | word[1] << 16,
                               word[0] >> 16 | (word[1] & 0xffff0000u),
                               (word[2] & 0xffff) | word[3] << 16,
                               word[2] >> 16 | (word[3] & 0xffff0000u)};
                mma_bf16(sum[i], rows, columns);
            }
        }
        #pragma unroll
        for (u32 i = 0; i < D / 16; i++)
            for (u32 e = 0; e < 4; e++)
                sums[warp][2 * t + e % 2][i / 4 * 64 + 8 * g + i % 4 * 2 + e / 2] = sum[i][e];
    }
    __syncthreads();
    const u32 pages = (s.len + KV_PAGE - 1) / KV_PAGE;
    for (u32 i = threadIdx.x; i < s.heads * D; i += blockDim.x) {
        u32 head = i / D, c = i % D;
        float top = tops[0][head], norm = 0.0f, sum = 0.0f;
        for (u32 w = 1; w < pages; w++) top = fmaxf(top, tops[w][head]);
        for (u32 w = 0; w < pages; w++) {
            float weight = exp2f(tops[w][head] - attention_shift(top));
            norm = fmaf(weight, norms[w][head], norm);
            sum = fmaf(weight, sums[w][head][c], sum);
        }
        u64 part = s.part + (u64)head * a.num_spans;
        a.values[part * D + c] = sum;
        if (c == 0) a.stats[2 * part] = top;
        if (c == 0) a.stats[2 * part + 1] = norm;
    }
}

// Merges the spans of a token (blockIdx.x) and a head (blockIdx.y). A context longer than the
// spans of the grid gives NaN.
template <class T> __device__ void attention_merge(const AttentionArgs& a) {
    const u32 dim = a.batch.head_dim, heads = a.batch.num_heads, head = blockIdx.y;
    u32 token = a.first + blockIdx.x;
    KvToken at = kv_token(a.batch, token);
    if (!at.valid) return;
    u32 spans = at.position / ATTENTION_SPAN + 1;
    if (spans > a.num_spans) spans = 0;
    u64 part = ((u64)blockIdx.x * heads + head) * a.num_spans;
    const float* stats = a.stats + 2 * part;
    float top = -attention_infinity(), norm = 0.0f;
    for (u32 i = 0; i < spans; i++) top = fmaxf(top, stats[2 * i]);
    float shift = attention_shift(top);
    for (u32 i = 0; i < spans; i++)
        norm = fmaf(exp2f(stats[2 * i] - shift), stats[2 * i + 1], norm);
    T* out = (T*)a.out + (u64)token * a.out_stride;
    for (u32 c = threadIdx.x; c < dim; c += blockDim.x) {
        const float* values = a.values + part * dim + c;
        float sum = 0.0f;
        #pragma unroll 4
        for (u32 i = 0; i < spans; i++)
            sum = fmaf(exp2f(stats[2 * i] - shift), values[(u64)i * dim], sum);
        out[head * dim + c] = from_float<T>(sum / norm);
    }
    if (head + 1 == heads)
        for (u32 c = heads * dim + threadIdx.x; c < a.out_stride; c += blockDim.x)
            out[c] = from_float<T>(0.0f);
}

KERNEL(attention_decode_f32, 256, AttentionArgs, (attention_decode<float, 1>))
KERNEL(attention_decode_f32_v4, 256, AttentionArgs, (attention_decode<float, 4>))
KERNEL(attention_decode_bf16, 256, AttentionArgs, (attention_decode<bf16, 1>))
KERNEL(attention_decode_bf16_v8, 256, AttentionArgs, (attention_decode<bf16, 8>))
KERNEL(attention_decode_bf16_d64, 256, AttentionArgs, attention_decode_matrix<64>)
KERNEL(attention_decode_bf16_d128, 256, AttentionArgs, attention_decode_matrix<128>)
KERNEL(attention_merge_f32, 128, AttentionArgs, attention_merge<float>)
KERNEL(attention_merge_bf16, 128, AttentionArgs, attention_merge<bf16>)
