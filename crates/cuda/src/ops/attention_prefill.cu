// Attention of the tokens of long segments, bf16, on matrix units (FlashAttention-2); see
// attention.rs.
//
// A block takes one head and 128 positions of a segment, counted from a multiple of 16; a warp
// takes 16 of them and goes through the pages from position 0 to its own, softmax in f32, weights
// rounded to bf16 for their product with the values. A row's arithmetic is a function of its
// position: other rows, and the pieces that the sequence came in, do not touch its bits.
// Positions that a row does not see get the weight 0: a NaN or infinite value there does reach
// the rows of its page before it (those of no other sequence).

constexpr u32 ATTENTION_ROWS = 128;

// Begins to copy the keys and values of a page, [64, D + 8] each: the odd number of 16-byte units
// in a row puts the rows that `load_matrices` reads together in different banks. Zeros for the
// dims from head_dim and for the positions from `held` on.
template <u32 D>
__device__ inline void attention_copy(const KvBatch& b, u64 page, u32 kv_head, u32 held, u16* to) {
    const u16* keys = kv_keys<u16>(b, page, kv_head);
    const u64 values = kv_values(b);
    for (u32 i = threadIdx.x; i < KV_PAGE * D / 8; i += 2 * ATTENTION_ROWS) {
        u32 row = i / (D / 8), c = i % (D / 8) * 8;
        bool valid = row < held && c < b.head_dim;
        const u16* from = valid ? keys + row * b.head_dim + c : keys;
        copy_async16(to + row * (D + 8) + c, from, valid);
        copy_async16(to + (KV_PAGE + row) * (D + 8) + c, from + values, valid);
    }
}

// The queries of a warp as operand: `from` is row g, and row g + 8 is 8 rows further; zeros for
// rows that are not `valid`.
template <u32 D>
__device__ inline void attention_queries(
    u32 (&to)[D / 16][4], const AttentionArgs& a, const float* from, bool (&valid)[2]) {
    const u32 t = threadIdx.x % 4;
    #pragma unroll
    for (u32 i = 0; i < D / 4; i++) {
        u32 half = i % 2, c = i / 4 * 16 + i % 4 / 2 * 8 + 2 * t;
        const float* pair = from + half * 8 * a.q_stride + c;
        to[i / 4][i % 4] =
            valid[half] && c < a.batch.head_dim ? pack_bf16(pair[0], pair[1]) : 0;
    }
}

// Takes a page into the 16 rows of a warp. `last`: the page holds the rows' own positions, of
// which the first is `own` in the page; lane l has rows l / 4 and l / 4 + 8.
template <u32 D>
__device__ inline void attention_page(
    const u32 (&q)[D / 16][4], const u16* page, float scale, bool last, u32 own,
    float (&sum)[D / 8][4], float (&top)[2], float (&norm)[2]) {
    const u32 lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    // Positions 8n + 2t and the next of both rows.
    float score[8][4] = {};
    const u16* keys = page + (lane % 8 + lane / 16 * 8) * (D + 8) + lane / 8 % 2 * 8;
    #pragma unroll
    for (u32 k = 0; k < D / 16; k++) {
        #pragma unroll
        for (u32 n = 0; n < 4; n++) {
            u32 columns[4];
            load_matrices_x4(columns, keys + 16 * n * (D + 8) + 16 * k);
            mma_bf16(score[2 * n], q[k], &columns[0]);
            mma_bf16(score[2 * n + 1], q[k], &columns[2]);
        }
    }
    float most[2] = {-attention_infinity(), -attention_infinity()}, shift[2];
    #pragma unroll
    for (u32 i = 0; i < 32; i++) {
        u32 n = i / 4, e = i % 4;
        if (last && 8 * n + 2 * t + e % 2 > own + g + e / 2 * 8)
            score[n][e] = -attention_infinity();
        most[e / 2] = fmaxf(most[e / 2], score[n][e]);
    }
    #pragma unroll
    for (u32 r = 0; r < 2; r++) {
        for (u32 mask = 1; mask < 4; mask *= 2)
            most[r] = fmaxf(most[r], shuffle_xor(most[r], mask));
        float before = top[r];
        top[r] = fmaxf(before, most[r] * scale);
        shift[r] = attention_shift(top[r]);
        float factor = exp2f(before - shift[r]);
        norm[r] *= factor;
        #pragma unroll
        for (u32 n = 0; n < D / 8; n++) {
            sum[n][2 * r] *= factor;
            sum[n][2 * r + 1] *= factor;
        }
    }
    #pragma unroll
    for (u32 i = 0; i < 32; i++) {
        u32 n = i / 4, e = i % 4;
        score[n][e] = exp2f(fmaf(score[n][e], scale, -shift[e / 2]));
        norm[e / 2] += score[n][e];
    }
    const u16* values =
        page + (KV_PAGE + lane % 8 + lane / 8 % 2 * 8) * (D + 8) + lane / 16 * 8;
    #pragma unroll
    for (u32 k = 0; k < 4; k++) {
        u32 rows[4];
        #pragma unroll
        for (u32 i = 0; i < 4; i++) {
            const float* pair = &score[2 * k + i / 2][i % 2 * 2];
            rows[i] = pack_bf16(pair[0], pair[1]);
        }
        #pragma unroll
        for (u32 n = 0; n < D / 16; n++) {
            u32 columns[4];
            load_matrices_x4_transposed(columns, values + 16 * k * (D + 8) + 16 * n);
            mma_bf16(sum[2 * n], rows, &columns[0]);
            mma_bf16(sum[2 * n + 1], rows, &columns[2]);
        }
    }
}

// blockIdx: head, 128 positions, segment from `first` on. head_dim: a multiple of 8, at most D.
// Dynamic shared memory: two pages, 2 · 128 · (D + 8) · 2 bytes.
template <u32 D> __device__ void attention_prefill(const AttentionArgs& a) {
    constexpr u32 PAGE = 2 * KV_PAGE * (D + 8);
    u16* pages = (u16*)dynamic_shared();
    const KvBatch& b = a.batch;
    const u32 segment = a.first + blockIdx.z, head = blockIdx.x, dim = b.head_dim;
    const u32 past = b.pasts[segment], end = past + b.lens[segment];
    // The last positions see the most: they begin first.
    const u32 zero = past / 16 * 16, tiles = (end - zero + ATTENTION_ROWS - 1) / ATTENTION_ROWS;
    if (blockIdx.y >= tiles || end == past) return;
    const u32 start = zero + (tiles - 1 - blockIdx.y) * ATTENTION_ROWS;
    const u32 most = start + ATTENTION_ROWS < end ? start + ATTENTION_ROWS : end;
    const u32 num_pages = (most + KV_PAGE - 1) / KV_PAGE;
    const u32 kv_head = head / (b.num_heads / b.num_kv_heads);

    const u32 warp = threadIdx.x / 32, g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
    const u32 from = start + 16 * warp, own_page = from / KV_PAGE;
    const bool active = from < end && from + 16 > past;
    bool valid[2];
    for (u32 r = 0; r < 2; r++) valid[r] = from + g + 8 * r >= past && from + g + 8 * r < end;
    // Of row g; used where `valid` only.
    const long long token = (long long)b.starts[segment] + from + g - past;

    u32 q[D / 16][4];
    attention_queries<D>(q, a, a.q + token * a.q_stride + head * dim, valid);
    float sum[D / 8][4] = {}, top[2] = {-attention_infinity(), -attention_infinity()};
    float norm[2] = {0.0f, 0.0f};

    const u64* table = b.pages + b.first_pages[segment];
    attention_copy<D>(b, table[0], kv_head, end, pages);
    copy_async_commit();
    u64 next = num_pages > 1 ? table[1] : 0;
    for (u32 i = 0; i < num_pages; i++) {
        copy_async_wait<0>();
        // The page is here, and everyone is done with the one before it.
        __syncthreads();
        if (i + 1 < num_pages) {
            u32 held = end - (i + 1) * KV_PAGE;
            attention_copy<D>(b, next, kv_head, held, pages + (i + 1) % 2 * PAGE);
            copy_async_commit();
            if (i + 2 < num_pages) next = table[i + 2];
        }
        if (active && i <= own_page)
            attention_page<D>(q, pages + i % 2 * PAGE, a.scale, i == own_page, from % KV_PAGE, sum,
                              top, norm);
    }

    u16* out = (u16*)a.out + token * a.out_stride;
    #pragma unroll
    for (u32 r = 0; r < 2; r++) {
        for (u32 mask = 1; mask < 4; mask *= 2) norm[r] += shuffle_xor(norm[r], mask);
        if (!valid[r]) continue;
        u16* row = out + 8 * r * a.out_stride;
        #pragma unroll
        for (u32 n = 0; n < D / 8; n++)
            if (8 * n < dim)
                *(u32*)(row + head * dim + 8 * n + 2 * t) =
                    pack_bf16(sum[n][2 * r] / norm[r], sum[n][2 * r + 1] / norm[r]);
        if (head + 1 == b.num_heads)
            for (u32 c = b.num_heads * dim + t; c < a.out_stride; c += 4) row[c] = 0;
    }
}

KERNEL(attention_prefill_d64, 256, AttentionArgs, attention_prefill<64>)
KERNEL(attention_prefill_d128, 256, AttentionArgs, attention_prefill<128>)
