// Keys and values of new tokens into the pages of their sequences, and how both kernels of
// attention find a token's segment and its pages; see attention.rs.
//
// A page holds 64 positions of a sequence: at a layer's offset [k|v][kv head][64][head_dim] of T.

constexpr u32 KV_PAGE = 64;

// The segments of a batch and the pages of their sequences.
struct KvBatch {
    const u64* pages;        // addresses of the pages of all segments
    const u32* starts;       // [segments] first token; ascending
    const u32* lens;         // [segments] tokens
    const u32* pasts;        // [segments] tokens read before, the position of the first token
    const u32* first_pages;  // [segments] where the segment's pages begin in `pages`
    u64 layer_offset;        // bytes
    u32 num_segments;
    u32 num_kv_heads;
    u32 head_dim;
    u32 num_heads;
};

// Where a token is; `position` counts only if it is `valid`.
struct KvToken {
    u32 segment;
    u32 position;
    bool valid;
};

// Collective of a warp. Invalid: a token of no segment.
__device__ inline KvToken kv_token(const KvBatch& b, u32 token) {
    float before = 0.0f;
    for (u32 i = threadIdx.x % 32; i < b.num_segments; i += 32)
        before += b.starts[i] <= token ? 1.0f : 0.0f;
    u32 segments = (u32)warp_sum(before);
    if (segments == 0) return KvToken{0, 0, false};
    u32 segment = segments - 1, at = token - b.starts[segment];
    return KvToken{segment, b.pasts[segment] + at, at < b.lens[segment]};
}

// Keys of a kv head in a page, [64, head_dim]; its values are `kv_values` elements further.
template <class T> __device__ inline T* kv_keys(const KvBatch& b, u64 page, u32 kv_head) {
    return (T*)(page + b.layer_offset) + (u64)kv_head * KV_PAGE * b.head_dim;
}

__device__ inline u64 kv_values(const KvBatch& b) {
    return (u64)b.num_kv_heads * KV_PAGE * b.head_dim;
}

struct KvAppendArgs {
    const float* k;  // [tokens, stride], of which kv heads · head_dim columns are read
    const float* v;
    KvBatch batch;
    u32 k_stride;
    u32 v_stride;
};

// Several values side by side, stored as one.
template <class T, u32 V> struct alignas(sizeof(T) * V) KvPack { T value[V]; };

// One block a token; V values at once, V divides head_dim and strides.
template <class T, u32 V> __device__ void kv_append(const KvAppendArgs& a) {
    const KvBatch& b = a.batch;
    KvToken token = kv_token(b, blockIdx.x);
    if (!token.valid) return;
    u64 page = b.pages[b.first_pages[token.segment] + token.position / KV_PAGE];
    u32 slot = token.position % KV_PAGE, width = b.num_kv_heads * b.head_dim;
    for (u32 i = threadIdx.x; i < 2 * width / V; i += blockDim.x) {
        bool value = i * V >= width;
        u32 column = value ? i * V - width : i * V;
        const float* from = value ? a.v + (u64)blockIdx.x * a.v_stride
                                  : a.k + (u64)blockIdx.x * a.k_stride;
        KvPack<float, V> wide = *(const KvPack<float, V>*)(from + column);
        KvPack<T, V> pack;
        for (u32 j = 0; j < V; j++) pack.value[j] = from_float<T>(wide.value[j]);
        T* to = kv_keys<T>(b, page, column / b.head_dim) + (value ? kv_values(b) : 0);
        *(KvPack<T, V>*)(to + slot * b.head_dim + column % b.head_dim) = pack;
    }
}

KERNEL(kv_append_f32, 256, KvAppendArgs, (kv_append<float, 1>))
KERNEL(kv_append_f32_v4, 256, KvAppendArgs, (kv_append<float, 4>))
KERNEL(kv_append_bf16, 256, KvAppendArgs, (kv_append<bf16, 1>))
KERNEL(kv_append_bf16_v4, 256, KvAppendArgs, (kv_append<bf16, 4>))
