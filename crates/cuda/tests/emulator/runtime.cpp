// Runs kernels: two OS threads take the blocks of a grid, each runs the threads of its block as
// fibers, in rounds: every fiber that need not wait runs to its next gate, in the order of
// HYBRA_EMULATOR_ORDER (forward, reversed, or a number: another order each round, from that seed).
// A round in which no fiber can run is a deadlock and ends the process, as does a bad address.
#include "runtime.h"
#include <algorithm>
#include <condition_variable>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <mutex>
#include <signal.h>
#include <sys/mman.h>
#include <thread>
#if !defined(__x86_64__) || defined(HYBRA_EMULATOR_UCONTEXT)
#include <ucontext.h>
#endif

using namespace emulator;

// Of the runtime linker: the calling thread's copy of a library's thread-local data.
extern "C" void* __tls_get_addr(size_t module_and_offset[2]);

namespace {

constexpr unsigned max_threads = 1024;
constexpr size_t page = 4096;

// switch_to saves the running context in `from` and continues `to`; new_context is one that will
// call `entry` on the stack that ends at `top`.
#if defined(__x86_64__) && !defined(HYBRA_EMULATOR_UCONTEXT)
extern "C" void hybra_emulator_switch(void** from, void* to);
asm(R"(
.text
.type hybra_emulator_switch, @function
hybra_emulator_switch:
    push %rbx; push %rbp; push %r12; push %r13; push %r14; push %r15
    mov %rsp, (%rdi)
    mov %rsi, %rsp
    pop %r15; pop %r14; pop %r13; pop %r12; pop %rbp; pop %rbx
    ret
.size hybra_emulator_switch, .-hybra_emulator_switch
)");

void switch_to(void*& from, void* to) { hybra_emulator_switch(&from, to); }

void* new_context(char* top, void (*entry)()) {
    void** stack = (void**)top - 8;  // six registers, the entry, and where a call would return
    memset(stack, 0, 64);
    stack[6] = (void*)entry;
    return stack;
}
#else
void switch_to(void*& from, void* to) {
    ucontext_t here;  // on the stack that is left: alive until it is continued
    from = &here;
    swapcontext(&here, (ucontext_t*)to);
}

void* new_context(char* top, void (*entry)()) {
    // At the far end of the stack, which the fiber reaches long after it has begun.
    auto* context = (ucontext_t*)(top - (uintptr_t)top % stack_bytes + page);
    getcontext(context);
    context->uc_stack.ss_sp = (char*)context + sizeof(ucontext_t);
    context->uc_stack.ss_size = top - (char*)context->uc_stack.ss_sp;
    makecontext(context, entry, 0);
    return context;
}
#endif

struct Worker {
    Block block{};
    Fiber* fibers[max_threads];
    Fiber* running = nullptr;
    unsigned char* shared_end;  // of the dynamic shared memory; nobody may touch what follows
};
thread_local Worker* worker = nullptr;

void message(const char* format, va_list arguments) {
    if (worker && worker->running) {
        const Block& b = worker->block;
        fprintf(stderr, "emulated device: kernel %s, block (%u, %u, %u), thread %u: ", b.kernel,
            b.index.x, b.index.y, b.index.z, worker->running->thread.x);
    } else {
        fprintf(stderr, "emulated device: ");
    }
    vfprintf(stderr, format, arguments);
    fprintf(stderr, "\n");
}

void fail(const char* format, ...) {
    va_list arguments;
    va_start(arguments, format);
    message(format, arguments);
    abort();
}

void wait(Gate& gate, const char* what, Line line) {
    Fiber& fiber = self();
    if (gate.arrived == 0) {
        gate.what = what, gate.line = line, gate.first = fiber.thread.x;
    } else if (gate.what != what || gate.line.file != line.file ||
        gate.line.number != line.number) {
        fail("is at %s (%s:%d), where thread %u is at %s (%s:%d)", what, line.file, line.number,
            gate.first, gate.what, gate.line.file, gate.line.number);
    }
    fiber.gate = &gate;
    fiber.generation = gate.generation;
    if (++gate.arrived == gate.members) gate.arrived = 0, gate.generation++;
    switch_to(fiber.context, fiber.block->scheduler);
}

void run_fiber() {
    Fiber& fiber = self();
    void* params[1] = {fiber.block->args};
    fiber.block->entry(params);
    fiber.done = true;
    switch_to(fiber.context, fiber.block->scheduler);
}

[[noreturn]] void deadlock(Worker& w) {
    Fiber *waiting = nullptr, *other = nullptr;
    for (unsigned i = 0; i < w.block.size.x && !waiting; i++)
        if (!w.fibers[i]->done) waiting = w.fibers[i];
    const Gate& gate = *waiting->gate;
    // One of those whom it waits for: of its warp, or of the block.
    unsigned first = gate.members == 32 ? waiting->thread.x / 32 * 32 : 0;
    for (unsigned i = first; i < first + gate.members && !other; i++)
        if (w.fibers[i]->done || w.fibers[i]->gate != &gate) other = w.fibers[i];
    w.running = waiting;
    if (other->done)
        fail("waits for ever at %s (%s:%d): thread %u has finished", gate.what, gate.line.file,
            gate.line.number, other->thread.x);
    fail("waits for ever at %s (%s:%d): thread %u is at %s (%s:%d)", gate.what, gate.line.file,
        gate.line.number, other->thread.x, other->gate->what, other->gate->line.file,
        other->gate->line.number);
    abort();  // fail does not return
}

void run_block(Worker& w) {
    Block& block = w.block;
    unsigned threads = block.size.x, left = threads;
    memset(block.dynamic_shared, 0xff, block.dynamic_bytes);
    memset(block.static_shared, 0xff, block.static_bytes);
    block.gate = {threads, 0, 0, nullptr, {}, 0};
    for (unsigned i = 0; i < threads / 32; i++) block.warps[i].gate = {32, 0, 0, nullptr, {}, 0};
    static const Gate open{0, 0, 1, nullptr, {}, 0};
    unsigned order[max_threads];
    for (unsigned i = 0; i < threads; i++) {
        Fiber& fiber = *w.fibers[i];
        fiber.block = &block;
        fiber.thread = {i, 0, 0};
        fiber.context = new_context((char*)&fiber, run_fiber);
        fiber.gate = &open, fiber.generation = 0, fiber.done = false, fiber.collectives = 0;
        fiber.num_copies = fiber.num_committed = fiber.num_groups = 0;
        order[i] = block.order == Order::Reversed ? threads - 1 - i : i;
    }
    while (left) {
        if (block.order == Order::Random)
            for (unsigned i = threads; i > 1; i--)
                std::swap(order[i - 1], order[block.next_random() % i]);
        bool ran = false;
        for (unsigned i = 0; i < threads; i++) {
            Fiber& fiber = *w.fibers[order[i]];
            if (fiber.done || fiber.gate->generation == fiber.generation) continue;
            ran = true;
            w.running = &fiber;
            switch_to(block.scheduler, fiber.context);
            left -= fiber.done;
        }
        w.running = nullptr;
        if (!ran) deadlock(w);
    }
}

Worker* new_worker() {
    auto* w = new Worker;
    auto pages = [](size_t bytes) {
        void* at = mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
            MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (at == MAP_FAILED) die("no memory for stacks");
        return (char*)at;
    };
    char* stacks = pages((max_threads + 1) * stack_bytes);
    stacks += -(uintptr_t)stacks % stack_bytes;
    for (unsigned i = 0; i < max_threads; i++) {
        char* stack = stacks + i * stack_bytes;
        mprotect(stack, page, PROT_NONE);
        w->fibers[i] = fiber_on((uintptr_t)stack);
    }
    size_t shared = (max_shared_bytes + page - 1) / page * page;
    w->shared_end = (unsigned char*)pages(shared + page) + shared;
    mprotect(w->shared_end, page, PROT_NONE);
    // The stack of the signal handler, which must not run on that of a fiber.
    stack_t handler{};
    handler.ss_size = 64 << 10;
    handler.ss_sp = pages(handler.ss_size);
    sigaltstack(&handler, nullptr);
    return w;
}

// A launch that workers take blocks of.
struct Grid {
    const Function* function;
    Index size;
    size_t shared_bytes;
    std::vector<char> args;
    uint64_t next, blocks;
    unsigned working;
};

// Never destroyed: the workers wait on them until the process is gone.
std::mutex& mutex = *new std::mutex;
std::condition_variable& has_work = *new std::condition_variable;
std::condition_variable& is_done = *new std::condition_variable;
Grid* grid = nullptr;
Order order = Order::Forward;
uint64_t seed = 0;

void run_blocks(Grid& g, std::unique_lock<std::mutex>& lock) {
    Block& block = worker->block;
    const Function& f = *g.function;
    size_t tls[2] = {f.tls_module, 0};
    block.kernel = f.name.c_str();
    block.entry = f.entry;
    block.args = g.args.data();
    block.grid = g.size;
    block.size = {f.threads, 1, 1};
    block.order = order;
    block.dynamic_bytes = (g.shared_bytes + 15) / 16 * 16;
    block.dynamic_shared = worker->shared_end - block.dynamic_bytes;
    block.static_bytes = f.static_bytes;
    block.static_shared = f.static_bytes ? (unsigned char*)__tls_get_addr(tls) : nullptr;
    block.wait = wait;
    block.fail = fail;
    while (g.next < g.blocks) {
        uint64_t i = g.next++;
        lock.unlock();
        block.random = ((seed + 1) * 0x9e3779b97f4a7c15 + i * 0xbf58476d1ce4e5b9) | 1;
        uint64_t at = order == Order::Forward ? i : g.blocks - 1 - i;
        block.index.x = unsigned(at % g.size.x);
        block.index.y = unsigned(at / g.size.x % g.size.y);
        block.index.z = unsigned(at / g.size.x / g.size.y);
        run_block(*worker);
        lock.lock();
    }
}

void work() {
    worker = new_worker();
    std::unique_lock<std::mutex> lock(mutex);
    for (;;) {
        has_work.wait(lock, [] { return grid && grid->next < grid->blocks; });
        Grid& g = *grid;
        g.working++;
        run_blocks(g, lock);
        if (--g.working == 0) is_done.notify_all();
    }
}

struct sigaction previous_segv, previous_bus, previous_ill;

// A kernel's bad address gets a message; what others did goes to the handler that was there before.
void on_signal(int number, siginfo_t* info, void* context) {
    if (worker && worker->running) {
        if (number == SIGILL) fail("a misaligned address, or an index outside of an array");
        const char* at = (const char*)info->si_addr;
        const char* stack = (const char*)((uintptr_t)worker->running & ~(stack_bytes - 1));
        if (at >= stack && at < stack + page) fail("more stack than %zu bytes", stack_bytes);
        if (at >= (char*)worker->shared_end && at < (char*)worker->shared_end + page)
            fail("%p is behind the %zu bytes of dynamic shared memory", info->si_addr,
                worker->block.dynamic_bytes);
        fail("bad address %p: %s", info->si_addr, describe((uint64_t)info->si_addr).c_str());
    }
    const auto& old = number == SIGSEGV ? previous_segv
        : number == SIGBUS              ? previous_bus
                                        : previous_ill;
    if (old.sa_flags & SA_SIGINFO) return old.sa_sigaction(number, info, context);
    if (old.sa_handler != SIG_DFL && old.sa_handler != SIG_IGN) return old.sa_handler(number);
    signal(number, SIG_DFL);  // the instruction runs again, and ends the process
}

}  // namespace

void die(const char* format, ...) {
    va_list arguments;
    va_start(arguments, format);
    message(format, arguments);
    abort();
}

void start_runtime() {
    if (const char* name = getenv("HYBRA_EMULATOR_ORDER"); name && *name) {
        char* end;
        seed = strtoull(name, &end, 10);
        if (!strcmp(name, "forward")) order = Order::Forward;
        else if (!strcmp(name, "reversed")) order = Order::Reversed;
        else if (!*end) order = Order::Random;
        else die("HYBRA_EMULATOR_ORDER is %s, not forward, reversed or a number", name);
    }
    struct sigaction action{};
    action.sa_sigaction = on_signal;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK;
    sigaction(SIGSEGV, &action, &previous_segv);
    sigaction(SIGBUS, &action, &previous_bus);
    sigaction(SIGILL, &action, &previous_ill);
    for (int i = 0; i < 2; i++) std::thread(work).detach();
}

void run_kernel(const Function& f, Index size, size_t shared_bytes, std::vector<char> args) {
    if (!f.entry) die("kernel %s of a module that is unloaded", f.name.c_str());
    Grid g{&f, size, shared_bytes, std::move(args), 0, (uint64_t)size.x * size.y * size.z, 0};
    std::unique_lock<std::mutex> lock(mutex);
    grid = &g;
    has_work.notify_all();
    is_done.wait(lock, [&] { return g.next == g.blocks && g.working == 0; });
    grid = nullptr;
}
