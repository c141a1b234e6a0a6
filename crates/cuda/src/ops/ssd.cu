// The recurrence of Mamba-2 by chunks of Q = 64 tokens on tensor cores; see
// mamba_split_conv1d_scan.rs. With delta_t of selective_state_update.cu, a_t = delta_t a <= 0 and
// s_i = a_1 + ... + a_i inside a chunk:
//     M_ij = (C B')_ij e^(s_i - s_j) delta_j for j <= i, else 0
//     Y    = diag(e^s) C S + M X + d X
//     S   <- e^(s_Q) S + B' diag(e^(s_Q - s_j) delta_j) X
// X, Y [Q, P]; B, C [Q, N]; S [N, P]. Every exponent is at most 0, but for rounding.
//
// A block is one head of one segment and goes through the whole chunks in order; nothing of it
// leaves the block but y and, at the end, the state. Products take bf16 and sum in f32. Rounded to
// bf16 are: x, B and C (by the convolution), M, B's rows times their factors, and the copy of S
// that C is multiplied with. S itself, d x, decays and their sums are f32.
//
// 8 warps. For Y a warp has 16 tokens (number warp % 4) and half of the columns; for S it has 16
// rows and all columns, in registers. N and P are multiples of 8, at most 128. N is padded with
// zeros to a multiple of 32 in shared memory.

constexpr u32 SSD_CHUNK = 64, SSD_WARPS = 8, SSD_ROWS = 16;

// Values that depend on a token and the head only.
struct SsdDecays {
    float sum[SSD_CHUNK];     // s_i, in units of log 2
    float grown[SSD_CHUNK];   // e^(s_i)
    float delta[SSD_CHUNK];
    float factor[SSD_CHUNK];  // e^(s_Q - s_j) delta_j
};

// Values from row to row of a tile: a multiple of 16 bytes that is odd, so that 8 rows of a matrix
// lie in different banks.
__device__ inline u32 ssd_pitch(u32 cols) { return (cols / 8 | 1) * 8; }

// A block's shared memory; ssd_shared_bytes of the launcher has the same sizes.
struct SsdTiles {
    u32 n;  // N, padded
    u32 bc_pitch;
    u32 x_pitch;
    SsdDecays* decays;  // of this chunk and of the next, by turns
    bf16* b;            // [Q, bc_pitch]
    bf16* c;            // [Q, bc_pitch]
    bf16* x;            // [Q, x_pitch]
    bf16* m;            // [Q, SSD_M_PITCH]
    bf16* s;            // [n, x_pitch]
};

constexpr u32 SSD_M_PITCH = SSD_CHUNK + 8;

__device__ inline SsdTiles ssd_tiles(const SsdArgs& a) {
    SsdTiles t;
    t.n = (a.state_size + 31) / 32 * 32;
    t.bc_pitch = ssd_pitch(t.n);
    t.x_pitch = ssd_pitch(a.head_dim);
    t.decays = (SsdDecays*)dynamic_shared();
    t.b = (bf16*)(t.decays + 2);
    t.c = t.b + SSD_CHUNK * t.bc_pitch;
    t.x = t.c + SSD_CHUNK * t.bc_pitch;
    t.m = t.x + SSD_CHUNK * t.x_pitch;
    t.s = t.m + SSD_CHUNK * SSD_M_PITCH;
    return t;
}

// Begins to copy Q rows of `cols` values, padded with zeros.
__device__ inline void ssd_fetch(
    bf16* to, u32 pitch, const bf16* from, u32 stride, u32 cols, u32 padded) {
    u32 col = threadIdx.x % 16 * 8;
    if (col < padded) {
        bool valid = col < cols;
        from += valid ? col : 0;
        for (u32 row = threadIdx.x / 16; row < SSD_CHUNK; row += 2 * SSD_WARPS)
            copy_async16(to + row * pitch + col, from + (u64)row * stride, valid);
    }
    copy_async_commit();
}

// One warp: raw steps of tokens 2 lane and 2 lane + 1 become a chunk's decays.
__device__ inline void ssd_decays(
    SsdDecays& to, const SsdArgs& a, const float raw[2], float rate, float bias) {
    u32 lane = threadIdx.x % 32;
    float delta[2], sums[2];
    for (u32 i = 0; i < 2; i++) delta[i] = ssd_delta(a, raw[i], bias);
    float sum = fmaf(delta[1], rate, delta[0] * rate);
    for (u32 step = 1; step < 32; step *= 2) {
        float before = shuffle(sum, lane < step ? lane : lane - step);
        if (lane >= step) sum += before;
    }
    float before = shuffle(sum, lane == 0 ? 0 : lane - 1);
    sums[0] = fmaf(delta[0], rate, lane == 0 ? 0.0f : before);
    sums[1] = sum;
    float last = shuffle(sum, 31);
    for (u32 i = 0; i < 2; i++) {
        u32 at = 2 * lane + i;
        to.sum[at] = sums[i];
        to.grown[at] = exp2f(sums[i]);
        to.delta[at] = delta[i];
        to.factor[at] = exp2f(last - sums[i]) * delta[i];
    }
}

// The rows of a warp, 16 and 32 columns, as two operands of mma_bf16; the second only if `both`.
__device__ inline void ssd_load_left(u32 r[2][4], const bf16* rows, u32 pitch, bool both) {
    u32 lane = threadIdx.x % 32;
    const bf16* at = rows + lane % 16 * pitch + lane / 16 * 8;
    load_matrices_x4(r[0], at);
    if (both) load_matrices_x4(r[1], at + 16);
}

// The sums of 16 rows and `tiles` times 8 columns += left times right; `terms`, a multiple of 16,
// is the columns of left and rows of right. ALL: there are TILES tiles; else at most so many.
template <u32 TILES, bool ALL> __device__ inline void ssd_multiply(
    float (&sum)[TILES][4], const bf16* left, u32 left_pitch, const bf16* right, u32 right_pitch,
    u32 terms, u32 tiles) {
    u32 lane = threadIdx.x % 32;
    for (u32 k = 0; k < terms; k += 32) {
        bool both = k + 16 < terms;
        u32 l[2][4], r[4];
        ssd_load_left(l, left + k, left_pitch, both);
#pragma unroll
        for (u32 j = 0; j < TILES; j++) {
            if (ALL || j < tiles) {
                load_matrices_x4_transposed(r, right + (k + lane) * right_pitch + j * 8);
                mma_bf16(sum[j], l[0], r);
                if (both) mma_bf16(sum[j], l[1], r + 2);
            }
        }
    }
}

// M: of the 16 tokens of a warp half of the columns up to its diagonal.
__device__ inline void ssd_masked_decay(const SsdTiles& t, const SsdDecays& d) {
    u32 warp = threadIdx.x / 32, lane = threadIdx.x % 32, tile = warp % 4, half = warp / 4;
    u32 columns = tile + 1, first = half * columns;  // in units of 8
    float product[4][4] = {};
    for (u32 k = 0; k < t.n; k += 32) {
        u32 left[2][4], right[4];
        ssd_load_left(left, t.c + tile * SSD_ROWS * t.bc_pitch + k, t.bc_pitch, true);
#pragma unroll
        for (u32 q = 0; q < 4; q++) {
            if (q < columns) {
                u32 token = (first + q) * 8 + lane % 8;
                load_matrices_x4(right, t.b + token * t.bc_pitch + k + lane / 8 * 8);
                mma_bf16(product[q], left[0], right);
                mma_bf16(product[q], left[1], right + 2);
            }
        }
    }
    u32 row = tile * SSD_ROWS + lane / 4;
#pragma unroll
    for (u32 q = 0; q < 4; q++) {
        if (q < columns) {
            u32 col = (first + q) * 8 + lane % 4 * 2;
#pragma unroll
            for (u32 h = 0; h < 2; h++) {
                u32 i = row + 8 * h;
                float value[2];
                for (u32 e = 0; e < 2; e++) {
                    u32 j = col + e;
                    // Above the diagonal the exponent is positive: it is not taken.
                    float decay = exp2f(j <= i ? d.sum[i] - d.sum[j] : 0.0f) * d.delta[j];
                    value[e] = j <= i ? product[q][2 * h + e] * decay : 0.0f;
                }
                *(u32*)(t.m + i * SSD_M_PITCH + col) = pack_bf16(value[0], value[1]);
            }
        }
    }
}

// Two bf16, each times its factor.
__device__ inline u32 ssd_scaled(u32 pair, float low, float high) {
    return pack_bf16(bits_to_float(pair << 16) * low, bits_to_float(pair & 0xffff0000u) * high);
}

// The rounded copy of S.
template <u32 TILES, bool ALL> __device__ inline void ssd_copy_state(
    const float (&s)[TILES][4], const SsdTiles& t, u32 own_row, u32 own_col, u32 tiles) {
#pragma unroll
    for (u32 j = 0; j < TILES; j++) {
        if (ALL || j < tiles) {
            bf16* to = t.s + own_row * t.x_pitch + j * 8 + own_col;
            *(u32*)to = pack_bf16(s[j][0], s[j][1]);
            *(u32*)(to + 8 * t.x_pitch) = pack_bf16(s[j][2], s[j][3]);
        }
    }
}

// The rows of S from `row` on: S = e^(s_Q) S + (diag(factor) B)' X, and its rounded copy.
template <u32 TILES, bool ALL> __device__ inline void ssd_move_state(
    float (&s)[TILES][4], const SsdTiles& t, const SsdDecays& d, u32 row, u32 tiles) {
    u32 lane = threadIdx.x % 32, own_row = row + lane / 4, own_col = lane % 4 * 2;
    float decay = d.grown[SSD_CHUNK - 1];
#pragma unroll
    for (u32 j = 0; j < TILES; j++)
        for (u32 e = 0; e < 4; e++) s[j][e] *= decay;
    for (u32 k = 0; k < SSD_CHUNK; k += 32) {
        u32 l[2][4], r[4];
#pragma unroll
        for (u32 i = 0; i < 2; i++) {
            // B transposed: matrices 1 and 3 are 8 rows of S further, 2 and 3 8 tokens.
            u32 token = k + 16 * i + lane / 16 * 8 + lane % 8, col = row + lane / 8 % 2 * 8;
            load_matrices_x4_transposed(l[i], t.b + token * t.bc_pitch + col);
            for (u32 e = 0; e < 4; e++) {
                const float* factor = d.factor + k + 16 * i + e / 2 * 8 + own_col;
                l[i][e] = ssd_scaled(l[i][e], factor[0], factor[1]);
            }
        }
#pragma unroll
        for (u32 j = 0; j < TILES; j++) {
            if (ALL || j < tiles) {
                load_matrices_x4_transposed(r, t.x + (k + lane) * t.x_pitch + j * 8);
                mma_bf16(s[j], l[0], r);
                mma_bf16(s[j], l[1], r + 2);
            }
        }
    }
    ssd_copy_state<TILES, ALL>(s, t, own_row, own_col, tiles);
}

struct alignas(8) SsdPair { float v[2]; };

// Grid [H, segments]. TILES: P / 8, or the most of it where it is not EXACT.
template <u32 TILES, bool EXACT> __device__ void ssd_chunk_scan(const SsdArgs& a) {
    constexpr u32 HALF = (TILES + 1) / 2;
    constexpr bool HALVES = EXACT && TILES % 2 == 0;
    u32 warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    u32 head = blockIdx.x, segment = blockIdx.y, chunks = a.len[segment] / SSD_CHUNK;
    if (chunks == 0) return;
    SsdTiles t = ssd_tiles(a);
    u32 width = a.head_dim, n = a.state_size, tiles = EXACT ? TILES : width / 8;
    u32 inner = a.num_heads * width, cols = inner + 2 * a.n_groups * n;
    u64 token = a.start[segment];
    const bf16* x_from = a.rounded + token * cols + head * width;
    const bf16* b_from = a.rounded + token * cols + inner + head / (a.num_heads / a.n_groups) * n;
    const bf16* c_from = b_from + a.n_groups * n;
    const float* dt = a.dt + token * a.dt_stride + head;
    float* state = (float*)a.states[segment] + (u64)head * n * width;
    // Steps in units of log 2: their exponentials are powers of two.
    float rate = a.a[head] * 1.44269504f, skip = a.d[head], bias = a.dt_bias[head];

    // First row and column of this lane in a tile of 16 rows and 8 columns, its tokens and columns
    // of y, and its rows of S.
    u32 own_row = lane / 4, own_col = lane % 4 * 2;
    u32 half = (tiles + 1) / 2, y_tile = warp / 4 * half, y_tiles = warp < 4 ? half : tiles - half;
    u32 y_row = warp % 4 * SSD_ROWS, s_row = warp * SSD_ROWS;
    float* y_to = a.xbc + (token + y_row + own_row) * cols + head * width + y_tile * 8 + own_col;
    bool has_state = s_row < t.n;
    float s[TILES][4];

    ssd_fetch(t.c, t.bc_pitch, c_from, cols, n, t.n);
    if (warp == 0) {
        float raw[2];
        for (u32 i = 0; i < 2; i++) raw[i] = dt[(u64)(2 * lane + i) * a.dt_stride];
        ssd_decays(t.decays[0], a, raw, rate, bias);
    }
#pragma unroll
    for (u32 j = 0; j < TILES; j++) {
#pragma unroll
        for (u32 h = 0; h < 2; h++) {
            u32 row = s_row + own_row + 8 * h;
            SsdPair pair = {};
            if (row < n && j < tiles)
                pair = *(const SsdPair*)(state + row * width + j * 8 + own_col);
            s[j][2 * h] = pair.v[0];
            s[j][2 * h + 1] = pair.v[1];
        }
    }
    if (has_state) ssd_copy_state<TILES, EXACT>(s, t, s_row + own_row, own_col, tiles);
    copy_async_wait<0>();

    for (u32 chunk = 0; chunk < chunks; chunk++) {
        u64 at = (u64)chunk * SSD_CHUNK * cols;
        const SsdDecays& d = t.decays[chunk % 2];
        bool more = chunk + 1 < chunks;
        float raw[2] = {}, y[HALF][4] = {};
        __syncthreads();  // C, S and the decays are there; B, X and M have been read.
        ssd_fetch(t.b, t.bc_pitch, b_from + at, cols, n, t.n);
        ssd_fetch(t.x, t.x_pitch, x_from + at, cols, width, width);
        if (warp == 0 && more)
            for (u32 i = 0; i < 2; i++)
                raw[i] = dt[(u64)((chunk + 1) * SSD_CHUNK + 2 * lane + i) * a.dt_stride];

        // Y = diag(e^s) C S.
        ssd_multiply<HALF, HALVES>(
            y, t.c + y_row * t.bc_pitch, t.bc_pitch, t.s + y_tile * 8, t.x_pitch, t.n, y_tiles);
        float grown[2] = {d.grown[y_row + own_row], d.grown[y_row + own_row + 8]};
#pragma unroll
        for (u32 j = 0; j < HALF; j++)
            for (u32 e = 0; e < 4; e++) y[j][e] *= grown[e / 2];

        copy_async_wait<0>();
        __syncthreads();  // B and X are there; the copy of S has been read.
        ssd_masked_decay(t, d);
        __syncthreads();  // M is there; C has been read.
        if (more)
            ssd_fetch(t.c, t.bc_pitch, c_from + at + (u64)SSD_CHUNK * cols, cols, n, t.n);

        // x in f32, for d x: it arrives while the products run.
        SsdPair x[HALF][2];
#pragma unroll
        for (u32 j = 0; j < HALF; j++)
            for (u32 h = 0; h < 2; h++)
                if (HALVES || j < y_tiles)
                    x[j][h] = *(const SsdPair*)(y_to + at + (u64)8 * h * cols + j * 8);
        // Y += M X, up to the diagonal.
        ssd_multiply<HALF, HALVES>(y, t.m + y_row * SSD_M_PITCH, SSD_M_PITCH, t.x + y_tile * 8,
                                   t.x_pitch, y_row + SSD_ROWS, y_tiles);
        if (has_state) ssd_move_state<TILES, EXACT>(s, t, d, s_row, tiles);
        // y replaces x.
#pragma unroll
        for (u32 j = 0; j < HALF; j++)
            for (u32 h = 0; h < 2; h++)
                if (HALVES || j < y_tiles)
                    *(SsdPair*)(y_to + at + (u64)8 * h * cols + j * 8) =
                        SsdPair{{fmaf(skip, x[j][h].v[0], y[j][2 * h]),
                                 fmaf(skip, x[j][h].v[1], y[j][2 * h + 1])}};
        if (warp == 0 && more) ssd_decays(t.decays[(chunk + 1) % 2], a, raw, rate, bias);
        copy_async_wait<0>();
    }

#pragma unroll
    for (u32 j = 0; j < TILES; j++) {
#pragma unroll
        for (u32 h = 0; h < 2; h++) {
            u32 row = s_row + own_row + 8 * h;
            if (row < n && j < tiles)
                *(SsdPair*)(state + row * width + j * 8 + own_col) =
                    SsdPair{{s[j][2 * h], s[j][2 * h + 1]}};
        }
    }
}

KERNEL(ssd_chunk_scan_64, 256, SsdArgs, (ssd_chunk_scan<8, true>))
KERNEL(ssd_chunk_scan_80, 256, SsdArgs, (ssd_chunk_scan<10, true>))
KERNEL(ssd_chunk_scan_128, 256, SsdArgs, (ssd_chunk_scan<16, true>))
KERNEL(ssd_chunk_scan, 256, SsdArgs, (ssd_chunk_scan<16, false>))
