// Kernels of the emulator's own test, compiled behind device.cuh; selftest.cpp says what each must
// give. Those named broken_* each have one mistake that the emulator must show.

struct TestArgs {
    void* out;
    const void* in;
    u64 address;
    u32 len;
};

// out[i] = the value of lane i ^ 5, plus 100 times that of lane 3 of the warp.
__device__ void test_shuffle(const TestArgs& a) {
    float own = ((const float*)a.in)[threadIdx.x];
    float near = shuffle_xor(own, 5);
    ((float*)a.out)[threadIdx.x] = near + 100.0f * shuffle(own, 3);
}
KERNEL(test_shuffle, 64, TestArgs, test_shuffle)

// A block sums its own 1000 values.
__device__ void test_block_sum(const TestArgs& a) {
    __shared__ float scratch[32];
    float value = threadIdx.x < 1000 ? ((const float*)a.in)[blockIdx.x * 1000 + threadIdx.x] : 0.0f;
    float sum = block_sum(value, scratch);
    sum += block_sum(0.0f, scratch);
    if (threadIdx.x == blockIdx.x % blockDim.x) ((float*)a.out)[blockIdx.x] = sum;
}
KERNEL(test_block_sum, 1024, TestArgs, test_block_sum)

// out[16, 8] = 1 + in[16, 16] · (in + 256)[8, 16]ᵀ, fragments read element by element.
__device__ void test_mma(const TestArgs& a) {
    const u32* left = (const u32*)a.in;  // pairs of columns
    const u32* right = left + 128;
    u32 g = threadIdx.x / 4, t = threadIdx.x % 4;
    u32 af[4] = {left[g * 8 + t], left[(g + 8) * 8 + t], left[g * 8 + t + 4],
        left[(g + 8) * 8 + t + 4]};
    u32 bf[2] = {right[g * 8 + t], right[g * 8 + t + 4]};
    float d[4] = {1.0f, 1.0f, 1.0f, 1.0f};
    mma_bf16(d, af, bf);
    float* out = (float*)a.out;
    for (u32 i = 0; i < 4; i++) out[(g + 8 * (i / 2)) * 8 + 2 * t + i % 2] = d[i];
}
KERNEL(test_mma, 32, TestArgs, test_mma)

// The 16x16 matrix of u16 `in` as four 8x8 matrices (rows, then columns), plain and transposed.
__device__ void test_load_matrices(const TestArgs& a) {
    __shared__ alignas(16) u16 tile[256];
    for (u32 i = threadIdx.x; i < 256; i += 32) tile[i] = ((const u16*)a.in)[i];
    __syncwarp();
    u32 lane = threadIdx.x, matrix = lane / 8;
    const u16* row = tile + (matrix / 2 * 8 + lane % 8) * 16 + matrix % 2 * 8;
    u32 r[4];
    load_matrices_x4(r, row);
    for (u32 m = 0; m < 4; m++) ((u32*)a.out)[m * 32 + lane] = r[m];
    load_matrices_x4_transposed(r, row);
    for (u32 m = 0; m < 4; m++) ((u32*)a.out)[128 + m * 32 + lane] = r[m];
}
KERNEL(test_load_matrices, 32, TestArgs, test_load_matrices)

// Adds 1 to `len` floats in tiles of 256 through a pipeline of `stages` buffers; a tile is written
// by another thread than the one that copied it.
template <int stages, bool waits, bool holds> __device__ void pipeline(const TestArgs& a) {
    float* buffers = (float*)dynamic_shared();
    u32 tiles = (a.len + 255) / 256;
    auto fetch = [&](u32 tile) {
        u32 at = tile * 256 + threadIdx.x * 4;
        bool valid = at < a.len;
        const float* from = (const float*)a.in + (valid ? at : 0);
        float* to = buffers + tile % stages * 256 + threadIdx.x * 4;
        if (tile < tiles) copy_async16(to, from, valid);
        copy_async_commit();
    };
    for (u32 i = 0; i < stages - 1; i++) fetch(i);
    for (u32 tile = 0; tile < tiles; tile++) {
        if (waits) copy_async_wait<stages - 2>();
        if (holds) __syncthreads();
        fetch(tile + stages - 1);
        if (!holds) __syncthreads();
        for (u32 i = 63 - threadIdx.x; i < 256; i += 64)
            if (tile * 256 + i < a.len)
                ((float*)a.out)[tile * 256 + i] = buffers[tile % stages * 256 + i] + 1.0f;
    }
}
KERNEL(test_pipeline, 64, TestArgs, (pipeline<3, true, true>))
KERNEL(broken_no_wait, 64, TestArgs, (pipeline<3, false, true>))
KERNEL(broken_early_fetch, 64, TestArgs, (pipeline<3, true, false>))

__device__ void test_numbers(const TestArgs& a) {
    u32 i = blockIdx.x * blockDim.x + threadIdx.x;
    ((float*)a.out)[i] = f16_to_float((u16)i);
    ((u32*)a.out)[65536 + i] = pack_bf16(((const float*)a.in)[i], -((const float*)a.in)[i]);
}
KERNEL(test_numbers, 256, TestArgs, test_numbers)

// out[i] = in[i - 1], through shared memory without a barrier: right only where thread i - 1 runs
// before thread i.
__device__ void broken_barrier(const TestArgs& a) {
    __shared__ float values[64];
    values[threadIdx.x] = ((const float*)a.in)[threadIdx.x];
    ((float*)a.out)[threadIdx.x] = threadIdx.x ? values[threadIdx.x - 1] : 0.0f;
}
KERNEL(broken_barrier, 64, TestArgs, broken_barrier)

// Reads what the block before it left in shared memory.
__device__ void broken_shared(const TestArgs& a) {
    __shared__ float values[32];
    ((float*)a.out)[blockIdx.x * 32 + threadIdx.x] =
        values[threadIdx.x] + ((const float*)dynamic_shared())[threadIdx.x];
    values[threadIdx.x] = 1.0f;
    ((float*)dynamic_shared())[threadIdx.x] = 1.0f;
}
KERNEL(broken_shared, 32, TestArgs, broken_shared)

__device__ void broken_return(const TestArgs& a) {
    if (blockIdx.x == 1 && threadIdx.x == 40) return;
    __syncthreads();
    ((float*)a.out)[threadIdx.x] = 1.0f;
}
KERNEL(broken_return, 64, TestArgs, broken_return)

__device__ void broken_branch(const TestArgs& a) {
    float value = 1.0f;
    if (threadIdx.x % 32 < 16) value = shuffle_xor(value, 1);
    else __syncwarp();
    ((float*)a.out)[threadIdx.x] = value;
}
KERNEL(broken_branch, 64, TestArgs, broken_branch)

__device__ void broken_alignment(const TestArgs& a) {
    if (threadIdx.x == 7) *(Bytes16*)a.out = *(const Bytes16*)((const char*)a.in + 8);
}
KERNEL(broken_alignment, 32, TestArgs, broken_alignment)

__device__ void broken_index(const TestArgs& a) {
    __shared__ float values[32];
    values[threadIdx.x + a.len] = 1.0f;
    __syncthreads();
    ((float*)a.out)[threadIdx.x] = values[threadIdx.x];
}
KERNEL(broken_index, 32, TestArgs, broken_index)

__device__ void broken_dynamic(const TestArgs& a) {
    ((float*)dynamic_shared())[threadIdx.x + a.len] = 1.0f;
    __syncthreads();
    ((float*)a.out)[threadIdx.x] = ((float*)dynamic_shared())[threadIdx.x];
}
KERNEL(broken_dynamic, 32, TestArgs, broken_dynamic)

__device__ void broken_address(const TestArgs& a) {
    if (threadIdx.x == 1) *(volatile char*)a.address = 0;
}
KERNEL(broken_address, 32, TestArgs, broken_address)
