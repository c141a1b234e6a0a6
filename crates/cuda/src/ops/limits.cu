// What a device can do at most, for records of how near the ops come; see limits.rs.

struct LimitArgs {
    const Bytes16* from;  // [len]
    float* out;           // one value a block
    u64 len;              // values of 16 bytes
    u32 rounds;
};

// Reads everything once: a block takes every gridDim.x-th group of 256 values, four at a time.
__device__ void limit_read_all(const LimitArgs& a) {
    __shared__ float scratch[32];
    u32 sums[4] = {0, 0, 0, 0};
    u64 step = (u64)gridDim.x * 256;
    for (u64 first = (u64)blockIdx.x * 256 + threadIdx.x; first < a.len; first += 4 * step) {
        Bytes16 values[4] = {};
        for (u32 i = 0; i < 4; i++)
            if (first + i * step < a.len) values[i] = a.from[first + i * step];
        for (u32 i = 0; i < 4; i++)
            for (u32 j = 0; j < 4; j++) sums[j] ^= values[i].word[j];
    }
    // Bits of all words, so that no load can be left out: exact sums of small numbers.
    u32 word = sums[0] ^ sums[1] ^ sums[2] ^ sums[3];
    float sum = block_sum((float)(word & 0xffff), scratch);
    if (threadIdx.x == 0) a.out[blockIdx.x] = sum;
}

// Products of 16 × 8 × 16 from registers: eight at a time, none of which waits for another. A thread
// gives the sum of its 32 results.
__device__ void limit_multiply(const LimitArgs& a) {
    __shared__ float scratch[32];
    u32 one = pack_bf16(1.0f, 1.0f);
    u32 x[4] = {one, one, one, one};
    u32 w[2] = {one, one};
    float sums[8][4] = {};
    for (u32 round = 0; round < a.rounds; round++)
#pragma unroll
        for (u32 i = 0; i < 8; i++) mma_bf16(sums[i], x, w);
    float sum = 0.0f;
    for (u32 i = 0; i < 8; i++)
        for (u32 j = 0; j < 4; j++) sum += sums[i][j];
    sum = block_sum(sum, scratch);
    if (threadIdx.x == 0) a.out[blockIdx.x] = sum;
}

KERNEL(limit_memory_read, 256, LimitArgs, limit_read_all)
KERNEL(limit_mma_bf16, 256, LimitArgs, limit_multiply)
