// What every kernel stands on: number types, warp and block collectives, matrix units, copies.
//
// The sources need nothing but the compiler: no CUDA header, no standard library. Everything that
// is not plain C++ is in this file, twice: for the device here, for the emulator of the tests in
// tests/emulator/emulator.h (same names, same meaning). Kernels may use what is declared here,
// threadIdx.x, blockIdx, gridDim, blockDim.x, __syncthreads(), __syncwarp(), __shared__ arrays of
// fixed size, and the math functions that CUDA and C share (expf, exp2f, rsqrtf, fmaf, fmaxf, exp,
// ...).
// Blocks are one-dimensional, a multiple of 32 threads, and all threads of a block reach every
// barrier and every collective of their warp.
//
// A kernel is a body over one struct of arguments, which src/ops/*.rs mirrors field by field:
//     struct AddArgs { float* to; const float* from; u64 len; };
//     __device__ void add(const AddArgs& a) { ... }
//     KERNEL(add_f32, 256, AddArgs, add)          // 256 threads a block; a template: (add<float>)
// Fields: pointers first, then u64, then u32/i32/float, so that there is no padding inside.
#pragma once

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef signed char i8;
typedef int i32;

struct alignas(16) Bytes16 { u32 word[4]; };

#ifndef HYBRA_EMULATOR

// A kernel with `threads` threads a block.
#define KERNEL(name, threads, Args, ...) \
    extern "C" __global__ void __launch_bounds__(threads) \
    name(const __grid_constant__ Args args) { __VA_ARGS__(args); }

// The block's dynamic shared memory, 16-byte aligned.
extern __shared__ __align__(16) unsigned char hybra_dynamic_shared[];
__device__ inline u8* dynamic_shared() { return hybra_dynamic_shared; }

// Two floats as bf16, rounded to nearest even; `low` in the lower half.
__device__ inline u32 pack_bf16(float low, float high) {
    u32 packed;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
    return packed;
}

// The sums of two pairs of bf16, for sums that are bf16 without rounding.
__device__ inline u32 add_bf16x2(u32 a, u32 b) {
    u32 sum;
    asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(sum) : "r"(a), "r"(0x3f803f80u), "r"(b));
    return sum;
}

__device__ inline float f16_to_float(u16 bits) {
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
    return value;
}

__device__ inline float bits_to_float(u32 bits) { return __uint_as_float(bits); }

// The value of lane (own ^ mask).
__device__ inline float shuffle_xor(float value, u32 mask) {
    return __shfl_xor_sync(0xffffffffu, value, mask);
}

// The value of a lane.
__device__ inline float shuffle(float value, u32 lane) {
    return __shfl_sync(0xffffffffu, value, lane);
}

// d += a · b over m16n8k16, bf16 in, f32 out. Lane l, g = l / 4, t = l % 4, holds
//   a: rows g, g + 8 (a[0], a[1]) at k = 2t, 2t + 1; the same rows (a[2], a[3]) at k + 8
//   b: column g at k = 2t, 2t + 1 (b[0]) and k + 8 (b[1])
//   d: row g, columns 2t, 2t + 1 (d[0], d[1]); row g + 8 (d[2], d[3])
__device__ inline void mma_bf16(float d[4], const u32 a[4], const u32 b[2]) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
        "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// Four 8x8 matrices of 16-bit values. Lane l gives the address of row l % 8 of matrix l / 8, 16
// bytes in shared memory; lane l gets values 2(l % 4), 2(l % 4) + 1 of row l / 4 of each.
__device__ inline void load_matrices_x4(u32 r[4], const void* row) {
    u32 at = (u32)__cvta_generic_to_shared(row);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
        : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(at) : "memory");
}

// The same, transposed: lane l gets values of column l / 4, rows 2(l % 4) and 2(l % 4) + 1.
__device__ inline void load_matrices_x4_transposed(u32 r[4], const void* row) {
    u32 at = (u32)__cvta_generic_to_shared(row);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
        : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(at) : "memory");
}

// Begins to copy 16 bytes to shared memory, zeros if `valid` is false; both sides 16-byte aligned.
__device__ inline void copy_async16(void* to, const void* from, bool valid) {
    u32 at = (u32)__cvta_generic_to_shared(to);
    u32 bytes = valid ? 16 : 0;
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
        :: "r"(at), "l"(from), "r"(bytes) : "memory");
}

// Closes a group of copies.
__device__ inline void copy_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits until at most N groups of this thread are under way. A barrier must follow before other
// threads' copies are read.
template <int N> __device__ inline void copy_async_wait() {
    asm volatile("cp.async.wait_group %0;" :: "n"(N) : "memory");
}

#endif

struct bf16 { u16 bits; };

__device__ inline float to_float(float value) { return value; }
__device__ inline float to_float(bf16 value) { return bits_to_float((u32)value.bits << 16); }

template <class T> __device__ inline T from_float(float value);
template <> __device__ inline float from_float<float>(float value) { return value; }
template <> __device__ inline bf16 from_float<bf16>(float value) {
    return bf16{(u16)(pack_bf16(value, 0.0f) & 0xffff)};
}

__device__ inline float warp_sum(float value) {
    for (u32 mask = 16; mask > 0; mask /= 2) value += shuffle_xor(value, mask);
    return value;
}

__device__ inline float warp_max(float value) {
    for (u32 mask = 16; mask > 0; mask /= 2) value = fmaxf(value, shuffle_xor(value, mask));
    return value;
}

// The sum over the block, in every thread; at most 1024 threads. `scratch`: 32 floats, free again
// when the call returns.
__device__ inline float block_sum(float value, float* scratch) {
    u32 warp = threadIdx.x / 32, lane = threadIdx.x % 32, warps = blockDim.x / 32;
    value = warp_sum(value);
    if (lane == 0) scratch[warp] = value;
    __syncthreads();
    value = warp_sum(lane < warps ? scratch[lane] : 0.0f);
    __syncthreads();
    return value;
}

__device__ inline float silu(float x) { return x / (1.0f + expf(-x)); }

// ln(1 + eˣ); x itself where eˣ would lose it, as PyTorch does.
__device__ inline float softplus(float x) { return x > 20.0f ? x : log1pf(expf(x)); }
