// The parts of the emulated driver: see runtime.cpp (runs kernels), memory.cpp (device memory).
#pragma once
#include "fiber.h"
#include <string>
#include <vector>

// A compiled kernel of a loaded module.
struct Function {
    std::string name;
    void (*entry)(void**);
    unsigned threads, bytes;
    size_t tls_module, static_bytes;  // where its static shared memory is, in every OS thread
    size_t max_dynamic_bytes;
    struct Context* context;
};

constexpr size_t max_shared_bytes = 99 << 10;  // what sm_86 gives to a block, the least of all

// Runs all blocks of the grid and returns when they are done. `args` is copied.
void run_kernel(const Function&, emulator::Index grid, size_t shared_bytes, std::vector<char> args);

// Called once, before anything else here.
void start_runtime();

// Prints the message and ends the process.
[[noreturn]] void die(const char* format, ...) __attribute__((format(printf, 1, 2)));

// Device memory. Addresses are never used twice, an allocation ends at most 255 bytes before memory
// that nobody may touch, and new memory is NaN. Zero: the device has no more.
uint64_t allocate(int device, size_t bytes);
bool release(uint64_t address);
// Whether the range lies inside one allocation.
bool is_allocated(uint64_t address, size_t bytes);
size_t device_bytes();
size_t used_bytes(int device);
// Ends the process if bytes around an allocation have been written.
void check_guards();
// What is at an address that could not be read or written.
std::string describe(uint64_t address);
