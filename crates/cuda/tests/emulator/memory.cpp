// Device memory: one range of addresses, of which every allocation takes the next part, so that
// what is freed stays unreadable. The bytes before and behind an allocation on its own pages have a
// pattern that is checked when it is freed and when the host waits for the device.
#include "runtime.h"
#include <cstdlib>
#include <cstring>
#include <map>
#include <sys/mman.h>

namespace {

constexpr size_t page = 4096, range_bytes = size_t(4) << 40;
constexpr unsigned char guard = 0xa5;

struct Allocation {
    size_t bytes, charged;
    int device;
    unsigned char *pages, *end;
};

// Live allocations by address, and the number of bytes of those that are freed.
std::map<uint64_t, Allocation>& live = *new std::map<uint64_t, Allocation>;
std::map<uint64_t, size_t>& freed = *new std::map<uint64_t, size_t>;
std::map<int, size_t>& used = *new std::map<int, size_t>;
unsigned char *begin = nullptr, *next = nullptr;

void check(uint64_t address, const Allocation& a) {
    auto* from = (const unsigned char*)address;
    for (auto* at = a.pages; at < a.end; at++) {
        if (at == from) at += a.bytes;
        if (at < a.end && *at != guard)
            die("byte %td of an allocation of %zu bytes has been written", at - from, a.bytes);
    }
}

}  // namespace

size_t device_bytes() {
    static const char* text = getenv("HYBRA_EMULATOR_BYTES");
    static const size_t bytes = text && *text ? strtoull(text, nullptr, 10) : size_t(1) << 30;
    return bytes;
}

size_t used_bytes(int device) { return used[device]; }

uint64_t allocate(int device, size_t bytes) {
    if (!begin) {
        void* at = mmap(nullptr, range_bytes, PROT_NONE,
            MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (at == MAP_FAILED) die("no addresses for device memory");
        begin = next = (unsigned char*)at;
    }
    size_t charged = (bytes + 255) / 256 * 256, pages = (charged + page - 1) / page * page;
    size_t limit = device_bytes(), taken = used[device];
    if (bytes > limit || charged > limit - taken) return 0;
    if (pages + page > size_t(begin + range_bytes - next))
        die("more than %zu bytes of device memory were allocated over time", range_bytes);
    if (mprotect(next, pages, PROT_READ | PROT_WRITE)) return 0;
    Allocation a{bytes, charged, device, next, next + pages};
    unsigned char* at = a.end - charged;
    memset(a.pages, guard, at - a.pages);
    memset(at, 0xff, bytes);
    memset(at + bytes, guard, a.end - (at + bytes));
    next = a.end + page;
    used[device] += charged;
    live.emplace((uint64_t)at, a);
    return (uint64_t)at;
}

bool release(uint64_t address) {
    auto found = live.find(address);
    if (found == live.end()) return false;
    const Allocation& a = found->second;
    check(address, a);
    // A new mapping in place of the old one gives its memory back.
    mmap(a.pages, a.end - a.pages, PROT_NONE,
        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
    used[a.device] -= a.charged;
    freed[address] = a.bytes;
    live.erase(found);
    return true;
}

bool is_allocated(uint64_t address, size_t bytes) {
    auto after = live.upper_bound(address);
    if (after == live.begin()) return false;
    auto& [from, a] = *--after;
    return address - from <= a.bytes && bytes <= a.bytes - (address - from);
}

void check_guards() {
    for (auto& [address, a] : live) check(address, a);
}

std::string describe(uint64_t address) {
    if (address < (uint64_t)begin || address >= (uint64_t)next) return "not device memory";
    // The nearest allocation that begins before the address, alive or freed.
    auto alive = live.upper_bound(address);
    auto dead = freed.upper_bound(address);
    uint64_t from = 0;
    size_t bytes = 0;
    const char* state = "";
    if (alive != live.begin()) --alive, from = alive->first, bytes = alive->second.bytes;
    if (dead != freed.begin() && (--dead)->first > from)
        from = dead->first, bytes = dead->second, state = " freed";
    if (!from) return "before all allocations";
    return "byte " + std::to_string(address - from) + " of a" + state + (*state ? "" : "n") +
        " allocation of " + std::to_string(bytes) + " bytes";
}
