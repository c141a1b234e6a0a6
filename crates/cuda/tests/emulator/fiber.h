// What a compiled kernel and the emulated driver share: the threads of a block.
//
// Every thread of a block is a fiber: a stack of its own, run by one OS thread in turn with the
// others of the block. It runs until it must wait for others at a gate (a barrier or a collective
// of its warp), and goes on when all of them have come. A fiber is found from the stack pointer
// alone: stacks are aligned to their size, and the fiber lies near the upper end of its stack.
// There is no lock here, because all fibers of a block are on one OS thread.
#pragma once
#include <stddef.h>
#include <stdint.h>

namespace emulator {

constexpr size_t stack_bytes = 64 << 10;
constexpr unsigned max_copies = 256;

struct Index { unsigned x, y, z; };

// A line of the kernels' source.
struct Line {
    const char* file;
    int number;
};

// Where `members` fibers meet; `what`, `line` and `first` are those of the first who came.
struct Gate {
    unsigned members, arrived, generation;
    const char* what;
    Line line;
    unsigned first;
};

// What a lane shows to the other lanes of its warp in a collective.
union Slot {
    float value;
    uint32_t word[6];
    uint16_t half[8];
};

// Two sets of slots in turn: a lane can be one collective ahead of another, never two.
struct Warp {
    Gate gate;
    Slot slots[2][32];
};

struct Copy {
    void* to;          // null: done already
    const void* from;  // null: zeros
};

enum class Order { Forward, Reversed, Random };

struct Block {
    Index index, grid, size;
    const char* kernel;
    void (*entry)(void**);
    void* args;
    void* scheduler;  // its context while a fiber runs
    Order order;
    uint64_t random;
    unsigned char *dynamic_shared, *static_shared;
    size_t dynamic_bytes, static_bytes;
    Gate gate;
    Warp warps[32];
    // The fiber waits until all members of the gate have come.
    void (*wait)(Gate& gate, const char* what, Line line);
    // Ends the process with a message that names kernel, block and thread.
    void (*fail)(const char* format, ...);

    unsigned next_random() {
        random ^= random << 13, random ^= random >> 7, random ^= random << 17;
        return unsigned(random >> 32);
    }

    bool is_shared(const void* at, size_t bytes) const {
        auto inside = [&](const unsigned char* from, size_t size) {
            return (size_t)((const unsigned char*)at - from) + bytes <= size && at >= from;
        };
        return inside(dynamic_shared, dynamic_bytes) || inside(static_shared, static_bytes);
    }
};

struct alignas(16) Fiber {
    Block* block;
    Index thread;
    void* context;         // the saved stack pointer while it is not running
    const Gate* gate;      // where it waits, until `generation` of the gate is over
    unsigned generation;
    bool done;
    unsigned collectives;  // so far: which set of slots is next
    // Copies not done yet, oldest first; groups[i] is how many of them the i-th oldest group has.
    unsigned num_copies, num_committed, num_groups;
    unsigned groups[max_copies];
    Copy copies[max_copies];

    Warp& warp() { return block->warps[thread.x / 32]; }
};

// The fiber on a stack: not at the same place on all of them, because lines at a distance of a
// power of two would push each other out of the caches.
__attribute__((always_inline)) inline Fiber* fiber_on(uintptr_t stack) {
    return (Fiber*)(stack + stack_bytes - sizeof(Fiber) - stack / stack_bytes % 64 * 256);
}

// The fiber that is running.
__attribute__((always_inline)) inline Fiber& self() {
    return *fiber_on((uintptr_t)__builtin_frame_address(0) & ~(stack_bytes - 1));
}

}  // namespace emulator
