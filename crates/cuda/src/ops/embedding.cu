// Rows of a weight matrix, decoded to f32; see embedding.rs.

struct EmbeddingArgs {
    const u8* table;    // [rows, stride] in the layout of the format, see weights.rs
    const u16* scales;  // [ceil(rows / 64), stride / 32, 64] f16, or null
    const u32* ids;     // one a block, below the number of rows
    float* out;         // [blocks, columns]
    u32 columns;
    u32 stride;
};

struct EmbeddingF32 {
    static __device__ inline float value(const EmbeddingArgs& a, u32 row, u32 k) {
        return ((const float*)a.table)[(u64)row * a.stride + k];
    }
};

struct EmbeddingBf16 {
    static __device__ inline float value(const EmbeddingArgs& a, u32 row, u32 k) {
        return to_float(((const bf16*)a.table)[(u64)row * a.stride + k]);
    }
};

__device__ inline float embedding_scale(const EmbeddingArgs& a, u32 row, u32 k) {
    return f16_to_float(a.scales[((u64)(row / 64) * (a.stride / 32) + k / 32) * 64 + row % 64]);
}

struct EmbeddingQ8 {
    static __device__ inline float value(const EmbeddingArgs& a, u32 row, u32 k) {
        u32 at = k / 16 * 16 + k % 8 / 2 * 4 + k % 2 * 2 + k / 8 % 2;
        return (float)((const i8*)a.table)[(u64)row * a.stride + at] * embedding_scale(a, row, k);
    }
};

struct EmbeddingQ4 {
    static __device__ inline float value(const EmbeddingArgs& a, u32 row, u32 k) {
        u32 nibble = k / 8 % 4 + k % 2 * 4, at = k / 32 * 16 + k % 8 / 2 * 4 + nibble / 2;
        u32 byte = a.table[(u64)row * (a.stride / 2) + at];
        i32 q = (i32)(byte >> nibble % 2 * 4 & 15) - 8;
        return (float)q * embedding_scale(a, row, k);
    }
};

// One block a token.
template <class Format> __device__ void embedding(const EmbeddingArgs& a) {
    u32 row = a.ids[blockIdx.x];
    float* out = a.out + (u64)blockIdx.x * a.columns;
    for (u32 k = threadIdx.x; k < a.columns; k += blockDim.x)
        out[k] = Format::value(a, row, k);
}

KERNEL(embedding_f32, 256, EmbeddingArgs, embedding<EmbeddingF32>)
KERNEL(embedding_bf16, 256, EmbeddingArgs, embedding<EmbeddingBf16>)
KERNEL(embedding_q8, 256, EmbeddingArgs, embedding<EmbeddingQ8>)
KERNEL(embedding_q4, 256, EmbeddingArgs, embedding<EmbeddingQ4>)
