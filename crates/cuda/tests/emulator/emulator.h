// The device side of device.cuh on a CPU: included before the kernels' source, it gives every name
// that the source may use the meaning it has on a GPU; see fiber.h for how threads run.
//
// No header of the C or C++ library beyond integer types is included, so that a kernel which uses
// anything that NVRTC would not know does not compile here either.
#pragma once
#include "fiber.h"

// As a default argument: where the caller is.
#define HYBRA_LINE (emulator::Line{__builtin_FILE(), __builtin_LINE()})

#define __device__
#define __global__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __align__(bytes) __attribute__((aligned(bytes)))
// NVRTC takes alignas behind __shared__ too, where g++ takes only attributes of its own.
#define alignas(bytes) __attribute__((aligned(bytes)))
// One copy for each OS thread, which runs one block at a time; the driver poisons it by block.
#define __shared__ static thread_local

#define threadIdx (emulator::self().thread)
#define blockIdx (emulator::self().block->index)
#define blockDim (emulator::self().block->size)
#define gridDim (emulator::self().block->grid)

extern "C" {
float expf(float), exp2f(float), expm1f(float), logf(float), log2f(float), log1pf(float);
float powf(float, float), sqrtf(float), sinf(float), cosf(float), tanhf(float), fabsf(float);
float fmaf(float, float, float), fmaxf(float, float), fminf(float, float);
float floorf(float), ceilf(float), rintf(float), copysignf(float, float);
double exp(double);
void* memcpy(void*, const void*, size_t);
}
inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }

// What the driver looks up of a kernel: the function, threads a block, bytes of the arguments.
#define KERNEL(name, threads, Args, ...)                                                        \
    extern "C" {                                                                                \
    __attribute__((visibility("default"))) unsigned name##_threads = threads;                   \
    __attribute__((visibility("default"))) unsigned name##_bytes = sizeof(Args);                \
    __attribute__((visibility("default"))) void name(void** params) {                           \
        __VA_ARGS__(*(const Args*)params[0]);                                                   \
    }                                                                                           \
    }

// Which header this was compiled with; the driver refuses code that was made with another.
extern "C" {
__attribute__((visibility("default"))) unsigned hybra_emulator_stamp = HYBRA_EMULATOR_STAMP;
}

inline unsigned char* dynamic_shared() { return emulator::self().block->dynamic_shared; }

inline void __syncthreads(emulator::Line line = HYBRA_LINE) {
    emulator::Block& block = *emulator::self().block;
    block.wait(block.gate, "__syncthreads", line);
}

inline void __syncwarp(emulator::Line line = HYBRA_LINE) {
    emulator::Fiber& fiber = emulator::self();
    fiber.block->wait(fiber.warp().gate, "__syncwarp", line);
}

namespace emulator {

// Shows `own` to the warp; the slots of all 32 lanes when all have come.
inline const Slot* exchange(const Slot& own, const char* what, Line line) {
    Fiber& fiber = self();
    Slot* slots = fiber.warp().slots[fiber.collectives++ % 2];
    slots[fiber.thread.x % 32] = own;
    fiber.block->wait(fiber.warp().gate, what, line);
    return slots;
}

inline float bits(uint32_t word) {
    float value;
    memcpy(&value, &word, 4);
    return value;
}

inline uint32_t round_bf16(float value) {
    uint32_t word;
    memcpy(&word, &value, 4);
    if (value != value) return 0x7fff;  // the NaN that cvt.rn.bf16 gives
    return (word + 0x7fff + (word >> 16 & 1)) >> 16;
}

inline float half_of(uint32_t pair, int upper) {
    return bits(upper ? pair & 0xffff0000u : pair << 16);
}

// The content of the row whose address this lane gives, in its slot.
inline const Slot* exchange_rows(const void* row, const char* what, Line line) {
    Block& block = *self().block;
    if ((uintptr_t)row % 16 || !block.is_shared(row, 16))
        block.fail("%s (%s:%d): %p is not an aligned row in shared memory", what, line.file,
            line.number, row);
    Slot own;
    memcpy(&own, row, 16);
    return exchange(own, what, line);
}

inline void do_copy(const Copy& copy) {
    if (!copy.to) return;
    if (copy.from)
        memcpy(copy.to, copy.from, 16);
    else
        __builtin_memset(copy.to, 0, 16);
}

}  // namespace emulator

inline uint32_t pack_bf16(float low, float high) {
    return emulator::round_bf16(low) | emulator::round_bf16(high) << 16;
}

// The device rounds once, this twice: the same for sums that are bf16.
inline uint32_t add_bf16x2(uint32_t a, uint32_t b) {
    using emulator::half_of;
    return pack_bf16(half_of(a, 0) + half_of(b, 0), half_of(a, 1) + half_of(b, 1));
}

inline float f16_to_float(uint16_t bits) {
    uint32_t sign = (uint32_t)(bits & 0x8000) << 16, exponent = bits >> 10 & 31, rest = bits & 1023;
    if (exponent == 31) return emulator::bits(sign | 0x7f800000 | rest << 13);
    if (exponent) return emulator::bits(sign | (exponent + 112) << 23 | rest << 13);
    float value = (float)rest * 0x1p-24f;
    return sign ? -value : value;
}

inline float bits_to_float(uint32_t bits) { return emulator::bits(bits); }

inline float shuffle_xor(float value, uint32_t mask, emulator::Line line = HYBRA_LINE) {
    emulator::Slot own = {value};
    uint32_t lane = threadIdx.x % 32;
    return emulator::exchange(own, "shuffle_xor", line)[(lane ^ mask) % 32].value;
}

inline float shuffle(float value, uint32_t lane, emulator::Line line = HYBRA_LINE) {
    emulator::Slot own = {value};
    return emulator::exchange(own, "shuffle", line)[lane % 32].value;
}

// Products of bf16 are exact in f32, so that each of the 16 steps rounds once; a tensor core sums
// in another order and with other rounding.
inline void mma_bf16(
    float d[4], const uint32_t a[4], const uint32_t b[2], emulator::Line line = HYBRA_LINE
) {
    emulator::Slot own;
    for (int i = 0; i < 4; i++) own.word[i] = a[i];
    for (int i = 0; i < 2; i++) own.word[4 + i] = b[i];
    uint32_t lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    const emulator::Slot* slots = emulator::exchange(own, "mma_bf16", line);
    float rows[2][16], columns[2][16];
#pragma GCC unroll 16
    for (int k = 0; k < 16; k++)
        for (int i = 0; i < 2; i++) {
            uint32_t left = slots[4 * g + k % 8 / 2].word[i + k / 8 * 2];
            uint32_t right = slots[4 * (2 * t + i) + k % 8 / 2].word[4 + k / 8];
            rows[i][k] = emulator::half_of(left, k % 2);
            columns[i][k] = emulator::half_of(right, k % 2);
        }
#pragma GCC unroll 16
    for (int k = 0; k < 16; k++)
        for (int i = 0; i < 4; i++) d[i] += rows[i / 2][k] * columns[i % 2][k];
}

inline void load_matrices_x4(uint32_t r[4], const void* row, emulator::Line line = HYBRA_LINE) {
    uint32_t lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    const emulator::Slot* rows = emulator::exchange_rows(row, "load_matrices_x4", line);
    for (int m = 0; m < 4; m++) r[m] = rows[8 * m + g].word[t];
}

inline void load_matrices_x4_transposed(
    uint32_t r[4], const void* row, emulator::Line line = HYBRA_LINE
) {
    uint32_t lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    const emulator::Slot* rows = emulator::exchange_rows(row, "load_matrices_x4_transposed", line);
    for (int m = 0; m < 4; m++) {
        const emulator::Slot* matrix = rows + 8 * m;
        r[m] = matrix[2 * t].half[g] | (uint32_t)matrix[2 * t + 1].half[g] << 16;
    }
}

// A copy may be done at any time from here to the wait: late shows a missing wait, early shows one
// that overwrites what others still read. Forward order does it late, reversed early, random both.
inline void copy_async16(
    void* to, const void* from, bool valid, emulator::Line line = HYBRA_LINE
) {
    emulator::Fiber& fiber = emulator::self();
    emulator::Block& block = *fiber.block;
    if ((uintptr_t)to % 16 || (uintptr_t)from % 16)
        block.fail("copy_async16 (%s:%d): %p, %p: not aligned", line.file, line.number, to, from);
    if (!block.is_shared(to, 16))
        block.fail("copy_async16 (%s:%d): %p is not shared memory", line.file, line.number, to);
    if (fiber.num_copies == emulator::max_copies)
        block.fail("copy_async16 (%s:%d): too many under way", line.file, line.number);
    emulator::Copy copy = {to, valid ? from : nullptr};
    if (block.order == emulator::Order::Reversed ||
        (block.order == emulator::Order::Random && block.next_random() % 2)) {
        emulator::do_copy(copy);
        copy = {nullptr, nullptr};  // it still counts in its group
    }
    fiber.copies[fiber.num_copies++] = copy;
}

inline void copy_async_commit() {
    emulator::Fiber& fiber = emulator::self();
    if (fiber.num_groups == emulator::max_copies)
        fiber.block->fail("copy_async_commit: too many groups under way");
    fiber.groups[fiber.num_groups++] = fiber.num_copies - fiber.num_committed;
    fiber.num_committed = fiber.num_copies;
}

template <int N> inline void copy_async_wait() {
    emulator::Fiber& fiber = emulator::self();
    unsigned groups = fiber.num_groups > N ? fiber.num_groups - N : 0, copies = 0;
    for (unsigned i = 0; i < groups; i++) copies += fiber.groups[i];
    for (unsigned i = 0; i < copies; i++) emulator::do_copy(fiber.copies[i]);
    for (unsigned i = copies; i < fiber.num_copies; i++) fiber.copies[i - copies] = fiber.copies[i];
    for (unsigned i = groups; i < fiber.num_groups; i++) fiber.groups[i - groups] = fiber.groups[i];
    fiber.num_copies -= copies, fiber.num_committed -= copies, fiber.num_groups -= groups;
}
