// Matrix products in f32, behind matmul.cu (its arguments and places); see matmul.rs.
//
// One accumulator an output, k ascending, a fused multiply-add each: a row has the same bits for
// both shapes of tile.

// Tiles of BM rows and BN columns, TM · TN outputs a thread, STAGES of them with 32 values of k.
template <u32 BM, u32 BN, u32 TM, u32 TN, u32 STAGES>
__device__ void matmul_f32(const MatmulArgs& a) {
    // Four more floats: 16-byte loads of eight rows in a row are in different banks.
    constexpr u32 BK = 32, PITCH = BK + 4, COLUMNS = BN / TN, ROWS = BM / TM;
    constexpr u32 THREADS = ROWS * COLUMNS;
    __shared__ alignas(16) float tiles[STAGES][BM + BN][PITCH];  // of x, then of the weights
    u32 row, column;
    matmul_place(a, row, column);
    row *= BM, column *= BN;
    const float* x = (const float*)a.x;
    const float* weight = (const float*)a.weight;
    auto load = [&](u32 stage, u32 k) {
        #pragma unroll
        for (u32 i = threadIdx.x; i < (BM + BN) * (BK / 4); i += THREADS) {
            u32 r = i / (BK / 4), from = k + i % (BK / 4) * 4;
            bool weights = r >= BM;
            u32 at = weights ? column + r - BM : row + r;
            bool valid = at < (weights ? a.n : a.m) && from < a.stride;
            const float* source = weights ? weight : x;
            copy_async16(&tiles[stage][r][i % (BK / 4) * 4],
                         source + (valid ? (u64)at * a.stride + from : 0), valid);
        }
    };
    u32 steps = a.stride / BK;
    for (u32 i = 0; i < STAGES - 1; i++) {
        if (i < steps) load(i, i * BK);
        copy_async_commit();
    }
    u32 tx = threadIdx.x % COLUMNS, ty = threadIdx.x / COLUMNS;
    float acc[TM][TN] = {};
    u32 now = 0, next = STAGES - 1;
    for (u32 step = 0; step < steps; step++) {
        copy_async_wait<STAGES - 2>();
        __syncthreads();
        if (step + STAGES - 1 < steps) load(next, (step + STAGES - 1) * BK);
        copy_async_commit();
        #pragma unroll
        for (u32 k = 0; k < BK; k += 4) {
            Bytes16 left[TM], right[TN];
            for (u32 i = 0; i < TM; i++)
                left[i] = *(const Bytes16*)&tiles[now][ty + i * ROWS][k];
            for (u32 j = 0; j < TN; j++)
                right[j] = *(const Bytes16*)&tiles[now][BM + tx + j * COLUMNS][k];
            for (u32 q = 0; q < 4; q++)
                for (u32 i = 0; i < TM; i++)
                    for (u32 j = 0; j < TN; j++)
                        acc[i][j] = fmaf(bits_to_float(left[i].word[q]),
                                         bits_to_float(right[j].word[q]), acc[i][j]);
        }
        now = now + 1 == STAGES ? 0 : now + 1;
        next = next + 1 == STAGES ? 0 : next + 1;
    }
    for (u32 i = 0; i < TM; i++) {
        for (u32 j = 0; j < TN; j++) {
            u32 r = row + ty + i * ROWS, c = column + tx + j * COLUMNS;
            if (r >= a.m || c >= a.columns) continue;
            float* out = (float*)a.out + (u64)r * a.ld_out + c;
            float v = acc[i][j];
            if (a.epilogue == MATMUL_RELU2) v = c < a.n ? matmul_relu2(v) : 0.0f;
            *out = a.epilogue == MATMUL_ADD ? *out + v : v;
        }
    }
}

KERNEL(matmul_f32_8x32, 128, MatmulArgs, matmul_f32<8, 32, 1, 2, 4>)
KERNEL(matmul_f32_64x64, 256, MatmulArgs, matmul_f32<64, 64, 4, 4, 2>)
