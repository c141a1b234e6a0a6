// Memory of the emulated driver: allocations, copies and fills; every range must lie inside one
// allocation.
#include "driver.h"
#include <cstdlib>
#include <cstring>
#include <map>

namespace {

std::map<uint64_t, size_t>& pinned = *new std::map<uint64_t, size_t>;

bool is_pinned(const void* at, size_t bytes) {
    auto after = pinned.upper_bound((uint64_t)at);
    if (after == pinned.begin()) return false;
    auto& [from, size] = *--after;
    return (uint64_t)at + bytes <= from + size;
}

int check_range(const char* call, uint64_t address, size_t bytes) {
    if (!bytes || is_allocated(address, bytes)) return SUCCESS;
    return refuse(ILLEGAL_ADDRESS, "%s: %zu bytes at %#llx, %s", call, bytes,
        (unsigned long long)address, describe(address).c_str());
}

// Graphs may run when the memory is gone.
void check_still(uint64_t address, size_t bytes) {
    if (bytes && !is_allocated(address, bytes))
        die("work in a stream uses freed memory: %s", describe(address).c_str());
}

enum class Direction { ToDevice, FromDevice, Within };

std::function<void()> copy(Direction direction, uint64_t to, uint64_t from, size_t bytes) {
    return [=] {
        if (direction != Direction::FromDevice) check_still(to, bytes);
        if (direction != Direction::ToDevice) check_still(from, bytes);
        memcpy((void*)to, (const void*)from, bytes);
    };
}

std::function<void()> fill(uint64_t to, unsigned char value, size_t bytes) {
    return [=] {
        check_still(to, bytes);
        memset((void*)to, value, bytes);
    };
}

// Work without a stream, done when the call returns.
int at_once(const std::function<void()>& work) {
    if (int error = check_no_capture()) return error;
    finish_blocking();
    work();
    return SUCCESS;
}

int allocate_pinned(void** out, size_t bytes) {
    ENTER_CONTEXT;
    if (int error = check_no_capture()) return error;
    if (!bytes) return refuse(INVALID_VALUE, "cuMemHostAlloc: no bytes");
    *out = aligned_alloc(4096, (bytes + 4095) / 4096 * 4096);
    if (!*out) return OUT_OF_MEMORY;
    memset(*out, 0xff, bytes);
    pinned[(uint64_t)*out] = bytes;
    return SUCCESS;
}

}  // namespace

API cuMemAlloc_v2(uint64_t* address, size_t bytes) {
    ENTER_CONTEXT;
    if (int error = check_no_capture()) return error;
    if (!bytes) return refuse(INVALID_VALUE, "cuMemAlloc: no bytes");
    *address = allocate(current->device, bytes);
    return *address ? SUCCESS : OUT_OF_MEMORY;
}

API cuMemFree_v2(uint64_t address) {
    ENTER_CONTEXT;
    if (int error = check_no_capture()) return error;
    finish_all();
    if (address && !release(address))
        return refuse(INVALID_VALUE, "cuMemFree: %s", describe(address).c_str());
    return SUCCESS;
}

API cuMemGetInfo_v2(size_t* free, size_t* total) {
    ENTER_CONTEXT;
    *total = device_bytes();
    *free = *total - used_bytes(current->device);
    return SUCCESS;
}

API cuMemHostAlloc(void** out, size_t bytes, unsigned) { return allocate_pinned(out, bytes); }

API cuMemAllocHost_v2(void** out, size_t bytes) { return allocate_pinned(out, bytes); }

API cuMemFreeHost(void* at) {
    ENTER_CONTEXT;
    if (int error = check_no_capture()) return error;
    if (!pinned.count((uint64_t)at)) return refuse(INVALID_VALUE, "cuMemFreeHost: not allocated");
    finish_all();
    pinned.erase((uint64_t)at);
    free(at);
    return SUCCESS;
}

API cuMemcpyHtoD_v2(uint64_t to, const void* from, size_t bytes) {
    ENTER_CONTEXT;
    if (int error = check_range("cuMemcpyHtoD", to, bytes)) return error;
    return at_once(copy(Direction::ToDevice, to, (uint64_t)from, bytes));
}

API cuMemcpyHtoDAsync_v2(uint64_t to, const void* from, size_t bytes, void* stream) {
    ENTER_CONTEXT;
    if (int error = check_range("cuMemcpyHtoDAsync", to, bytes)) return error;
    Stream* found = find_stream(stream);
    auto work = copy(Direction::ToDevice, to, (uint64_t)from, bytes);
    // Memory that is not pinned is read before the call returns.
    if (found && found->capture == Capture::None && !is_pinned(from, bytes)) {
        std::vector<char> staged((const char*)from, (const char*)from + bytes);
        work = [to, staged = std::move(staged)] {
            check_still(to, staged.size());
            memcpy((void*)to, staged.data(), staged.size());
        };
    }
    return in_stream("cuMemcpyHtoDAsync", stream, std::move(work));
}

API cuMemcpyDtoH_v2(void* to, uint64_t from, size_t bytes) {
    ENTER_CONTEXT;
    if (int error = check_range("cuMemcpyDtoH", from, bytes)) return error;
    return at_once(copy(Direction::FromDevice, (uint64_t)to, from, bytes));
}

API cuMemcpyDtoHAsync_v2(void* to, uint64_t from, size_t bytes, void* stream) {
    ENTER_CONTEXT;
    if (int error = check_range("cuMemcpyDtoHAsync", from, bytes)) return error;
    auto work = copy(Direction::FromDevice, (uint64_t)to, from, bytes);
    return in_stream("cuMemcpyDtoHAsync", stream, std::move(work), !is_pinned(to, bytes));
}

API cuMemcpyDtoD_v2(uint64_t to, uint64_t from, size_t bytes) {
    ENTER_CONTEXT;
    if (int error = check_range("cuMemcpyDtoD", to, bytes)) return error;
    if (int error = check_range("cuMemcpyDtoD", from, bytes)) return error;
    return at_once(copy(Direction::Within, to, from, bytes));
}

API cuMemcpyDtoDAsync_v2(uint64_t to, uint64_t from, size_t bytes, void* stream) {
    ENTER_CONTEXT;
    if (int error = check_range("cuMemcpyDtoDAsync", to, bytes)) return error;
    if (int error = check_range("cuMemcpyDtoDAsync", from, bytes)) return error;
    if (to < from + bytes && from < to + bytes)
        return refuse(INVALID_VALUE, "cuMemcpyDtoDAsync: the ranges overlap");
    return in_stream("cuMemcpyDtoDAsync", stream, copy(Direction::Within, to, from, bytes));
}

API cuMemsetD8_v2(uint64_t to, unsigned char value, size_t bytes) {
    ENTER_CONTEXT;
    if (int error = check_range("cuMemsetD8", to, bytes)) return error;
    return at_once(fill(to, value, bytes));
}

API cuMemsetD8Async(uint64_t to, unsigned char value, size_t bytes, void* stream) {
    ENTER_CONTEXT;
    if (int error = check_range("cuMemsetD8Async", to, bytes)) return error;
    return in_stream("cuMemsetD8Async", stream, fill(to, value, bytes));
}
