// Matrix products on tensor cores: bf16 activations with bf16, 8-bit or 4-bit weights; see
// matmul.rs.
//
// Every shape of tile computes an output the same way: one accumulator, k ascending in steps of 32
// (two m16n8k16 products), activations as the left operand. So a row has the same bits whichever
// shape the number of rows selects. Quants are exact as bf16; the product of a block of 32 is made
// in f32 before its scale multiplies it: acc = fma(scale, Σ x·q, acc).

enum MatmulEpilogue : u32 { MATMUL_STORE = 0, MATMUL_ADD = 1, MATMUL_RELU2 = 2 };

struct MatmulArgs {
    const void* x;      // [m, stride], compute type
    const u8* weight;   // [n, stride] in the layout of the format, see weights.rs
    const u16* scales;  // [ceil(n / 64), stride / 32, 64] f16, or null
    void* out;          // [m, ld_out]: f32; for RELU2 the compute type
    u64 ld_out;
    u32 m;
    u32 n;
    u32 stride;         // a multiple of 64
    u32 columns;        // to be written: n; for RELU2 n rounded up, zeros behind n
    u32 epilogue;
    u32 row_tiles;      // ceil(m / rows of a tile)
};

struct alignas(8) MatmulPair { float value[2]; };

// The tile of this block. Bands of 16 tiles of rows go over all columns, rows first: blocks that
// run together share their tiles of weights and activations in the L2 cache.
__device__ inline void matmul_place(const MatmulArgs& a, u32& row_tile, u32& column_tile) {
    const u32 band = 16;
    u32 per_band = band * (gridDim.x / a.row_tiles), first = blockIdx.x / per_band * band;
    u32 rows = a.row_tiles - first < band ? a.row_tiles - first : band;
    row_tile = first + blockIdx.x % per_band % rows;
    column_tile = blockIdx.x % per_band / rows;
}

// A NaN stays one.
__device__ inline float matmul_relu2(float v) { v = v < 0.0f ? 0.0f : v; return v * v; }

// Columns `column` (even) and the next of a row. `paired`: pairs of f32 are aligned.
__device__ inline void matmul_write(const MatmulArgs& a, bool paired, u32 row, u32 column,
                                    float v0, float v1) {
    if (row >= a.m || column >= a.columns) return;
    u64 at = (u64)row * a.ld_out + column;
    if (a.epilogue == MATMUL_RELU2) {
        // The columns and ld_out are multiples of 64.
        float low = column < a.n ? matmul_relu2(v0) : 0.0f;
        float high = column + 1 < a.n ? matmul_relu2(v1) : 0.0f;
        ((u32*)a.out)[at / 2] = pack_bf16(low, high);
        return;
    }
    float* out = (float*)a.out + at;
    bool add = a.epilogue == MATMUL_ADD;
    if (paired && column + 1 < a.columns) {
        MatmulPair pair = add ? *(const MatmulPair*)out : MatmulPair{{0.0f, 0.0f}};
        if (add) v0 += pair.value[0], v1 += pair.value[1];
        *(MatmulPair*)out = MatmulPair{{v0, v1}};
    } else {
        out[0] = add ? out[0] + v0 : v0;
        if (column + 1 < a.columns) out[1] = add ? out[1] + v1 : v1;
    }
}

// Where 16-byte chunk `chunk` of a row of CHUNKS lies in a tile: eight rows' chunks of the same
// number are in eight different groups of four banks.
template <u32 CHUNKS> __device__ inline u32 matmul_at(u32 row, u32 chunk) {
    if constexpr (CHUNKS < 8) chunk ^= row / (8 / CHUNKS) % CHUNKS;
    else chunk ^= row % 8;
    return (row * CHUNKS + chunk) * 16;
}

// Begins to copy a tile: ROWS rows from `first`, bytes from `byte`; zeros outside of
// [end, row_bytes].
template <u32 ROWS, u32 CHUNKS, u32 THREADS>
__device__ inline void matmul_load(u8* to, const u8* from, u32 row_bytes, u32 byte, u32 first,
                                   u32 end) {
    static_assert(THREADS % CHUNKS == 0 && ROWS * CHUNKS % THREADS == 0, "whole rounds");
    u32 row = threadIdx.x / CHUNKS, chunk = threadIdx.x % CHUNKS;
    bool inside = byte + chunk * 16 < row_bytes;
    const u8* source = from + (inside ? byte + chunk * 16 : 0);
    #pragma unroll
    for (u32 r = 0; r < ROWS; r += THREADS / CHUNKS) {
        bool valid = inside && first + row + r < end;
        copy_async16(to + matmul_at<CHUNKS>(row + r, chunk),
                     source + (u64)(valid ? first + row + r : 0) * row_bytes, valid);
    }
}

// Formats: `fragments` gives the right operands of both products of block `block` (32 values of k)
// with the eight columns from row `row` of the tile.

struct MatmulBf16 {
    static constexpr u32 BITS = 16;
    template <u32 CHUNKS>
    static __device__ inline void fragments(u32 b[4], const u8* tile, u32 row, u32 block) {
        u32 lane = threadIdx.x % 32;
        load_matrices_x4(b, tile + matmul_at<CHUNKS>(row + lane % 8, block * 4 + lane / 8));
    }
};

// 128 + (q & 127) less 128, or less 256 if q is negative: both are bf16 without rounding.
struct MatmulQ8 {
    static constexpr u32 BITS = 8;
    static __device__ inline u32 pair(u32 bytes) {
        return add_bf16x2((bytes & 0x007f007f) | 0x43004300, (bytes & 0x00800080) | 0xc300c300);
    }
    template <u32 CHUNKS>
    static __device__ inline void fragments(u32 b[4], const u8* tile, u32 row, u32 block) {
        u32 lane = threadIdx.x % 32;
        #pragma unroll
        for (u32 i = 0; i < 2; i++) {
            u32 at = matmul_at<CHUNKS>(row + lane / 4, block * 2 + i) + lane % 4 * 4;
            u32 word = *(const u32*)(tile + at);
            b[2 * i] = pair(word);
            b[2 * i + 1] = pair(word >> 8);
        }
    }
};

// 128 + nibble, less 136.
struct MatmulQ4 {
    static constexpr u32 BITS = 4;
    template <u32 CHUNKS>
    static __device__ inline void fragments(u32 b[4], const u8* tile, u32 row, u32 block) {
        u32 lane = threadIdx.x % 32;
        u32 word = *(const u32*)(tile + matmul_at<CHUNKS>(row + lane / 4, block) + lane % 4 * 4);
        #pragma unroll
        for (u32 i = 0; i < 4; i++)
            b[i] = add_bf16x2(((word >> 4 * i) & 0x000f000f) | 0x43004300, 0xc308c308);
    }
};

// Tiles of BM rows (8, or a multiple of 16) and BN columns, STAGES of them with BK values of k
// under way, WARPS_M · WARPS_N warps that split the rows and columns.
template <class Weights, u32 BM, u32 BN, u32 BK, u32 STAGES, u32 WARPS_M, u32 WARPS_N>
struct Matmul {
    static constexpr u32 THREADS = 32 * WARPS_M * WARPS_N;
    static constexpr bool HALF = BM == 8;  // rows 8..15 of the products stay zero
    static constexpr bool SCALED = Weights::BITS < 16;
    static constexpr u32 MT = HALF ? 1 : BM / 16 / WARPS_M, NT = BN / 8 / WARPS_N;
    static constexpr u32 X_CHUNKS = BK / 8, W_CHUNKS = BK * Weights::BITS / 128;
    static constexpr u32 X_BYTES = BM * X_CHUNKS * 16, W_BYTES = BN * W_CHUNKS * 16;
    static constexpr u32 STAGE_BYTES = X_BYTES + W_BYTES + (SCALED ? BK / 32 * BN * 2 : 0);

    static __device__ inline void load(const MatmulArgs& a, u8* stage, u32 k, u32 row, u32 column) {
        matmul_load<BM, X_CHUNKS, THREADS>(stage, (const u8*)a.x, a.stride * 2, k * 2, row, a.m);
        matmul_load<BN, W_CHUNKS, THREADS>(stage + X_BYTES, a.weight,
            a.stride / 8 * Weights::BITS, k / 8 * Weights::BITS, column, a.n);
        if constexpr (SCALED) {
            u32 blocks = a.stride / 32;
            for (u32 i = threadIdx.x; i < BK / 32 * BN / 8; i += THREADS) {
                u32 n = column + i % (BN / 8) * 8, block = k / 32 + i / (BN / 8);
                bool valid = n < a.n && block < blocks;
                u64 at = valid ? ((u64)(n / 64) * blocks + block) * 64 + n % 64 : 0;
                copy_async16(stage + X_BYTES + W_BYTES + i * 16, a.scales + at, valid);
            }
        }
    }

    // acc += the products of block `block` of a stage, for the warp's part of the tile.
    static __device__ inline void multiply(float acc[MT][NT][4], const u8* stage, u32 block) {
        u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32;
        u32 row = warp % WARPS_M * MT * 16, column = warp / WARPS_M * NT * 8;
        u32 x[MT][8];
        #pragma unroll
        for (u32 i = 0; i < MT; i++) {
            if constexpr (HALF) {
                u32 r[4];
                load_matrices_x4(r, stage + matmul_at<X_CHUNKS>(lane % 8, block * 4 + lane / 8));
                for (u32 j = 0; j < 4; j++) x[i][2 * j] = r[j], x[i][2 * j + 1] = 0;
            } else {
                u32 at = row + i * 16 + lane % 16, chunk = block * 4 + lane / 16;
                load_matrices_x4(x[i], stage + matmul_at<X_CHUNKS>(at, chunk));
                load_matrices_x4(x[i] + 4, stage + matmul_at<X_CHUNKS>(at, chunk + 2));
            }
        }
        #pragma unroll
        for (u32 j = 0; j < NT; j++) {
            u32 b[4];
            Weights::template fragments<W_CHUNKS>(b, stage + X_BYTES, column + j * 8, block);
            if constexpr (SCALED) {
                const u8* scales = stage + X_BYTES + W_BYTES;
                u32 at = block * BN + column + j * 8 + lane % 4 * 2;
                u32 both = *(const u32*)(scales + at * 2);
                float s[2] = {f16_to_float((u16)(both & 0xffff)), f16_to_float((u16)(both >> 16))};
                #pragma unroll
                for (u32 i = 0; i < MT; i++) {
                    float part[4] = {0.0f, 0.0f, 0.0f, 0.0f};
                    mma_bf16(part, x[i], b);
                    mma_bf16(part, x[i] + 4, b + 2);
                    #pragma unroll
                    for (u32 c = 0; c < 4; c++)
                        acc[i][j][c] = fmaf(s[c % 2], part[c], acc[i][j][c]);
                }
            } else {
                #pragma unroll
                for (u32 i = 0; i < MT; i++) {
                    mma_bf16(acc[i][j], x[i], b);
                    mma_bf16(acc[i][j], x[i] + 4, b + 2);
                }
            }
        }
    }

    static __device__ void run(const MatmulArgs& a) {
        u8* shared = dynamic_shared();
        u32 row, column;
        matmul_place(a, row, column);
        row *= BM, column *= BN;
        u32 steps = (a.stride + BK - 1) / BK;
        for (u32 i = 0; i < STAGES - 1; i++) {
            if (i < steps) load(a, shared + i * STAGE_BYTES, i * BK, row, column);
            copy_async_commit();
        }
        float acc[MT][NT][4] = {};
        u32 now = 0, next = STAGES - 1;  // stages
        for (u32 step = 0; step < steps; step++) {
            copy_async_wait<STAGES - 2>();
            __syncthreads();
            const u8* stage = shared + now * STAGE_BYTES;
            // Copies begin behind the first products, which run meanwhile. They fill the stage that
            // was read before the barrier.
            multiply(acc, stage, 0);
            u32 k = (step + STAGES - 1) * BK;
            if (k < a.stride) load(a, shared + next * STAGE_BYTES, k, row, column);
            copy_async_commit();
            #pragma unroll
            for (u32 block = 1; block < BK / 32; block++) multiply(acc, stage, block);
            now = now + 1 == STAGES ? 0 : now + 1;
            next = next + 1 == STAGES ? 0 : next + 1;
        }
        u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32;
        row += warp % WARPS_M * MT * 16 + lane / 4;
        column += warp / WARPS_M * NT * 8 + lane % 4 * 2;
        bool paired = a.ld_out % 2 == 0 && (u64)a.out % 8 == 0;
        #pragma unroll
        for (u32 i = 0; i < MT; i++) {
            #pragma unroll
            for (u32 j = 0; j < NT; j++) {
                const float* v = acc[i][j];
                matmul_write(a, paired, row + i * 16, column + j * 8, v[0], v[1]);
                if (!HALF) matmul_write(a, paired, row + i * 16 + 8, column + j * 8, v[2], v[3]);
            }
        }
    }
};

// matmul.rs knows rows, columns, BK, stages and threads of each. Up to 64 rows: weights stream once
// through many small blocks with 20 to 40 KB of them under way on a multiprocessor. The last: two
// blocks of four warps with 64x64 outputs each on a multiprocessor.
KERNEL(matmul_bf16_8x16, 64, MatmulArgs, Matmul<MatmulBf16, 8, 16, 256, 4, 1, 2>::run)
KERNEL(matmul_bf16_8x32, 64, MatmulArgs, Matmul<MatmulBf16, 8, 32, 128, 6, 1, 2>::run)
KERNEL(matmul_bf16_16x32, 64, MatmulArgs, Matmul<MatmulBf16, 16, 32, 128, 6, 1, 2>::run)
KERNEL(matmul_bf16_32x32, 128, MatmulArgs, Matmul<MatmulBf16, 32, 32, 128, 4, 2, 2>::run)
KERNEL(matmul_bf16_64x64, 128, MatmulArgs, Matmul<MatmulBf16, 64, 64, 64, 4, 2, 2>::run)
KERNEL(matmul_bf16_128x128, 128, MatmulArgs, Matmul<MatmulBf16, 128, 128, 32, 4, 2, 2>::run)
KERNEL(matmul_q8_8x16, 64, MatmulArgs, Matmul<MatmulQ8, 8, 16, 256, 4, 1, 2>::run)
KERNEL(matmul_q8_8x32, 64, MatmulArgs, Matmul<MatmulQ8, 8, 32, 256, 4, 1, 2>::run)
KERNEL(matmul_q8_16x32, 64, MatmulArgs, Matmul<MatmulQ8, 16, 32, 256, 4, 1, 2>::run)
KERNEL(matmul_q8_32x32, 128, MatmulArgs, Matmul<MatmulQ8, 32, 32, 128, 6, 2, 2>::run)
KERNEL(matmul_q8_64x64, 128, MatmulArgs, Matmul<MatmulQ8, 64, 64, 64, 4, 2, 2>::run)
KERNEL(matmul_q8_128x128, 128, MatmulArgs, Matmul<MatmulQ8, 128, 128, 32, 4, 2, 2>::run)
KERNEL(matmul_q4_8x16, 64, MatmulArgs, Matmul<MatmulQ4, 8, 16, 256, 6, 1, 2>::run)
KERNEL(matmul_q4_8x32, 64, MatmulArgs, Matmul<MatmulQ4, 8, 32, 256, 6, 1, 2>::run)
KERNEL(matmul_q4_16x32, 64, MatmulArgs, Matmul<MatmulQ4, 16, 32, 256, 6, 1, 2>::run)
KERNEL(matmul_q4_32x32, 128, MatmulArgs, Matmul<MatmulQ4, 32, 32, 128, 6, 2, 2>::run)
KERNEL(matmul_q4_64x64, 128, MatmulArgs, Matmul<MatmulQ4, 64, 64, 64, 4, 2, 2>::run)
KERNEL(matmul_q4_128x128, 128, MatmulArgs, Matmul<MatmulQ4, 128, 128, 32, 4, 2, 2>::run)
