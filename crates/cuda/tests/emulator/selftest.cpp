// The test of the emulated device: selftest LIBRARY_DIR, where build.sh put the libraries.
// Prints what failed; the exit code is 1 then, else 0. Each case is a process of its own, because
// the order of threads is chosen at the start and mistakes of kernels end the process.
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <dlfcn.h>
#include <csignal>
#include <fstream>
#include <functional>
#include <iterator>
#include <string>
#include <sys/wait.h>
#include <unistd.h>
#include <vector>

namespace {

std::string dir, image;
void *driver = nullptr, *module = nullptr, *stream = nullptr;
int failures = 0;

#define CHECK(condition)                                                 \
    do {                                                                 \
        if (!(condition)) {                                              \
            printf("selftest.cpp:%d: %s\n", __LINE__, #condition);       \
            failures++;                                                  \
        }                                                                \
    } while (false)

void* library(const char* name) {
    void* found = dlopen((dir + "/" + name).c_str(), RTLD_NOW | RTLD_LOCAL);
    if (!found) printf("%s\n", dlerror()), exit(1);
    return found;
}

template <class... A> int call_in(void* library, const char* name, A... arguments) {
    auto* function = (int (*)(A...))dlsym(library, name);
    if (!function) printf("no %s\n", name), exit(1);
    return function(arguments...);
}

template <class... A> int cu(const char* name, A... arguments) {
    return call_in(driver, name, arguments...);
}

std::string read(const std::string& path) {
    std::ifstream file(std::string(HYBRA_EMULATOR_DIR) + "/" + path);
    return {std::istreambuf_iterator<char>(file), {}};
}

// As in device code.
struct TestArgs {
    uint64_t out, in, address;
    uint32_t len;
};
struct RmsNormArgs {
    uint64_t x, weight, out;
    uint32_t width, stride;
    float eps;
};

uint64_t alloc(size_t bytes) {
    uint64_t address = 0;
    CHECK(cu("cuMemAlloc_v2", &address, bytes) == 0);
    return address;
}

template <class T> uint64_t upload(const std::vector<T>& values) {
    uint64_t address = alloc(values.size() * sizeof(T));
    size_t bytes = values.size() * sizeof(T);
    CHECK(cu("cuMemcpyHtoD_v2", address, (const void*)values.data(), bytes) == 0);
    return address;
}

template <class T> std::vector<T> download(uint64_t address, size_t len) {
    std::vector<T> values(len);
    CHECK(cu("cuStreamSynchronize", stream) == 0);
    CHECK(cu("cuMemcpyDtoH_v2", (void*)values.data(), address, len * sizeof(T)) == 0);
    return values;
}

template <class Args>
int launch(const char* name, unsigned blocks, unsigned threads, const Args& args,
    unsigned shared = 0) {
    void *function = nullptr, *params[] = {(void*)&args};
    if (int error = cu("cuModuleGetFunction", &function, module, name)) return error;
    return cu("cuLaunchKernel", function, blocks, 1u, 1u, threads, 1u, 1u, shared, stream,
        (void**)params, (void**)nullptr);
}

float bf16(uint16_t bits) {
    uint32_t word = (uint32_t)bits << 16;
    float value;
    memcpy(&value, &word, 4);
    return value;
}

std::vector<float> ramp(size_t len) {
    std::vector<float> values(len);
    for (size_t i = 0; i < len; i++) values[i] = float(int(i * 37 % 101) - 50) / 9;
    return values;
}

void rms_norm() {
    const unsigned rows = 37, width = 300, stride = 320;
    auto x = ramp(rows * width), weight = ramp(width);
    RmsNormArgs args{upload(x), upload(weight), alloc(rows * stride * 4), width, stride, 1e-5f};
    CHECK(launch("rms_norm_f32", rows, 256, args) == 0);
    auto exact = download<float>(args.out, rows * stride);
    CHECK(launch("rms_norm_bf16", rows, 256, args) == 0);
    auto rounded = download<uint16_t>(args.out, rows * stride);
    for (unsigned r = 0; r < rows; r++) {
        double sum = 0;
        for (unsigned i = 0; i < width; i++) sum += std::pow((double)x[r * width + i], 2);
        double scale = 1 / std::sqrt(sum / width + 1e-5);
        for (unsigned i = 0; i < stride; i++) {
            double right = i < width ? x[r * width + i] * scale * weight[i] : 0;
            CHECK(std::abs(exact[r * stride + i] - right) <= 1e-6 * std::abs(right));
            CHECK(std::abs(bf16(rounded[r * stride + i]) - right) <= 0.00391 * std::abs(right));
        }
    }
}

void collectives() {
    auto x = ramp(64);
    TestArgs args{alloc(256), upload(x), 0, 0};
    CHECK(launch("test_shuffle", 1, 64, args) == 0);
    auto out = download<float>(args.out, 64);
    for (int i = 0; i < 64; i++) CHECK(out[i] == x[i ^ 5] + 100 * x[i / 32 * 32 + 3]);
    const unsigned blocks = 70;
    std::vector<float> ones(blocks * 1000);
    for (size_t i = 0; i < ones.size(); i++) ones[i] = float(i / 1000);
    args = {alloc(blocks * 4), upload(ones), 0, 0};
    CHECK(launch("test_block_sum", blocks, 1024, args) == 0);
    out = download<float>(args.out, blocks);
    for (unsigned i = 0; i < blocks; i++) CHECK(out[i] == float(i * 1000));
}

void matrices() {
    std::vector<uint16_t> pairs(384);
    for (size_t i = 0; i < pairs.size(); i++)
        pairs[i] = uint16_t(0x3f80 + i * 29 % 113 + (i % 3 << 15));
    TestArgs args{alloc(512), upload(pairs), 0, 0};
    CHECK(launch("test_mma", 1, 32, args) == 0);
    auto out = download<float>(args.out, 128);
    for (int m = 0; m < 16; m++)
        for (int n = 0; n < 8; n++) {
            double right = 1;
            for (int k = 0; k < 16; k++)
                right += (double)bf16(pairs[m * 16 + k]) * bf16(pairs[256 + n * 16 + k]);
            CHECK(std::abs(out[m * 8 + n] - right) < 1e-5);
        }
    std::vector<uint16_t> tile(256);
    for (int i = 0; i < 256; i++) tile[i] = uint16_t(i * 257 + 1);
    args = {alloc(1024), upload(tile), 0, 0};
    CHECK(launch("test_load_matrices", 1, 32, args) == 0);
    auto words = download<uint32_t>(args.out, 256);
    for (int transposed = 0; transposed < 2; transposed++)
        for (int m = 0; m < 4; m++)
            for (int lane = 0; lane < 32; lane++)
                for (int i = 0; i < 2; i++) {
                    int row = lane / 4, column = 2 * (lane % 4) + i;
                    if (transposed) std::swap(row, column);
                    uint16_t right = tile[(m / 2 * 8 + row) * 16 + m % 2 * 8 + column];
                    uint32_t word = words[transposed * 128 + m * 32 + lane];
                    CHECK(uint16_t(word >> 16 * i) == right);
                }
}

void numbers() {
    std::vector<float> values(65536);
    for (uint32_t i = 0; i < 65536; i++) {
        uint32_t word = i << 16 | (i % 5 == 0 ? 0x8000 : i * 7919 % 65536);
        memcpy(&values[i], &word, 4);
    }
    TestArgs args{alloc(65536 * 8), upload(values), 0, 0};
    CHECK(launch("test_numbers", 256, 256, args) == 0);
    auto out = download<uint32_t>(args.out, 65536 * 2);
    for (uint32_t i = 0; i < 65536; i++) {
        int exponent = i >> 10 & 31, rest = i & 1023;
        double half = exponent == 31 ? (rest ? NAN : INFINITY)
            : exponent             ? std::ldexp(1024 + rest, exponent - 25)
                                   : std::ldexp(rest, -24);
        if (i & 0x8000) half = -half;
        float got;
        memcpy(&got, &out[i], 4);
        CHECK(std::isnan(half) ? std::isnan(got) : got == half && std::signbit(got) == i >> 15);
        float low = bf16(uint16_t(out[65536 + i])), high = bf16(uint16_t(out[65536 + i] >> 16));
        if (std::isnan(values[i])) {
            CHECK(std::isnan(low) && std::isnan(high));
            continue;
        }
        // The nearer of the two neighbours in bf16, the even one of two that are as near.
        uint32_t word;
        memcpy(&word, &values[i], 4);
        uint32_t below = word & 0xffff, upper = (word >> 16) + (below > 0x8000 ||
            (below == 0x8000 && (word >> 16 & 1)));
        CHECK(low == bf16(uint16_t(upper)) && high == -low);
    }
}

// Whether out = in + 1.
bool pipeline_is_right(const char* name) {
    const unsigned len = 5000;
    auto x = ramp(len);
    TestArgs args{alloc(len * 4), upload(x), 0, len};
    CHECK(launch(name, 1, 64, args, 3 * 1024) == 0);
    auto out = download<float>(args.out, len);
    bool right = true;
    for (unsigned i = 0; i < len; i++) right &= out[i] == x[i] + 1;
    return right;
}

bool barrier_is_seen() {
    auto x = ramp(64);
    TestArgs args{alloc(256), upload(x), 0, 0};
    CHECK(launch("broken_barrier", 1, 64, args) == 0);
    auto out = download<float>(args.out, 64);
    bool right = true;
    for (int i = 1; i < 64; i++) right &= out[i] == x[i - 1];
    return !right;
}

void poison() {
    TestArgs args{alloc(40 * 128), 0, 0, 0};
    for (float value : download<float>(args.out, 40 * 32)) CHECK(std::isnan(value));
    CHECK(launch("broken_shared", 40, 32, args, 128) == 0);
    for (float value : download<float>(args.out, 40 * 32)) CHECK(std::isnan(value));
}

void refusals() {
    uint64_t address = 0;
    CHECK(cu("cuMemAlloc_v2", &address, size_t(2) << 30) == 2);
    CHECK(cu("cuMemAlloc_v2", &address, size_t(0)) == 1);
    size_t free = 0, total = 0, after = 0;
    CHECK(cu("cuMemGetInfo_v2", &free, &total) == 0 && total == size_t(1) << 30);
    address = alloc(1000);
    CHECK(address % 256 == 0);
    CHECK(cu("cuMemGetInfo_v2", &after, &total) == 0 && free - after == 1024);
    char bytes[1001] = {};
    CHECK(cu("cuMemcpyHtoD_v2", address, (const void*)bytes, size_t(1001)) == 700);
    CHECK(cu("cuMemcpyDtoH_v2", (void*)bytes, address + 1, size_t(1000)) == 700);
    CHECK(cu("cuMemsetD8Async", address - 1, (unsigned char)0, size_t(4), stream) == 700);
    CHECK(cu("cuMemFree_v2", address + 1) == 1);
    CHECK(cu("cuMemFree_v2", address) == 0);
    CHECK(cu("cuMemFree_v2", address) == 1);
    TestArgs args{};
    CHECK(launch("no_kernel", 1, 32, args) == 500);
    CHECK(launch("test_shuffle", 1, 32, args) == 1);
    CHECK(launch("test_shuffle", 0, 64, args) == 1);
    CHECK(launch("test_shuffle", 1, 64, args, 49 << 10) == 1);
    void* function = nullptr;
    CHECK(cu("cuModuleGetFunction", &function, module, "test_shuffle") == 0);
    CHECK(cu("cuFuncSetAttribute", function, 8, 100 << 10) == 1);
    CHECK(cu("cuFuncSetAttribute", function, 8, 99 << 10) == 0);
    CHECK(cu("cuCtxSetCurrent", (void*)nullptr) == 0);
    CHECK(cu("cuMemAlloc_v2", &address, size_t(8)) == 201);
}

void streams() {
    // Pinned memory is read and written late, other memory as if at once.
    float *pinned = nullptr, plain = 1;
    CHECK(cu("cuMemHostAlloc", &pinned, size_t(8), 0u) == 0);
    uint64_t there = alloc(8);
    pinned[0] = 1, pinned[1] = 5;
    CHECK(cu("cuMemcpyHtoDAsync_v2", there, (const void*)pinned, size_t(4), stream) == 0);
    CHECK(cu("cuMemcpyHtoDAsync_v2", there + 4, (const void*)&plain, size_t(4), stream) == 0);
    pinned[0] = 2, plain = 3;
    CHECK(cu("cuMemcpyDtoHAsync_v2", (void*)(pinned + 1), there, size_t(4), stream) == 0);
    CHECK(pinned[1] == 5);
    CHECK(cu("cuStreamSynchronize", stream) == 0);
    CHECK(pinned[1] == 2 && download<float>(there + 4, 1)[0] == 1);
    // A graph runs what was captured, with the arguments of then, as often as it is launched.
    auto x = ramp(64);
    TestArgs args{upload(x), upload(x), 0, 0};
    args.in = args.out;
    void *graph = nullptr, *exec = nullptr;
    int status = 0;
    CHECK(cu("cuStreamBeginCapture_v2", stream, 0) == 0);
    CHECK(launch("test_shuffle", 1, 64, args) == 0);
    args.out = 0;
    CHECK(cu("cuStreamIsCapturing", stream, &status) == 0 && status == 1);
    CHECK(cu("cuStreamEndCapture", stream, &graph) == 0 && graph);
    CHECK(cu("cuGraphInstantiateWithFlags", &exec, graph, 0ull) == 0);
    CHECK(cu("cuGraphDestroy", graph) == 0);
    CHECK(download<float>(args.in, 64) == x);
    for (int time = 0; time < 2; time++) {
        CHECK(cu("cuGraphLaunch", exec, stream) == 0);
        auto old = x;
        for (int i = 0; i < 64; i++) x[i] = old[i ^ 5] + 100 * old[i / 32 * 32 + 3];
    }
    CHECK(download<float>(args.in, 64) == x);
    CHECK(cu("cuGraphExecDestroy", exec) == 0 && cu("cuGraphLaunch", exec, stream) == 400);
    // What waits for the device, or allocates, ends a capture.
    CHECK(cu("cuStreamBeginCapture_v2", stream, 0) == 0);
    CHECK(cu("cuMemAlloc_v2", &there, size_t(4)) == 900);
    CHECK(cu("cuStreamEndCapture", stream, &graph) == 901 && !graph);
    void *from = nullptr, *to = nullptr;
    float milliseconds = -1;
    CHECK(cu("cuEventCreate", &from, 0u) == 0 && cu("cuEventCreate", &to, 0u) == 0);
    CHECK(cu("cuEventRecord", from, stream) == 0 && cu("cuEventRecord", to, stream) == 0);
    CHECK(cu("cuEventElapsedTime", &milliseconds, from, to) == 600);
    CHECK(cu("cuEventSynchronize", to) == 0);
    CHECK(cu("cuEventElapsedTime", &milliseconds, from, to) == 0 && milliseconds >= 0);
}

void open() {
    driver = library("libcuda.so.1");
    int device = 0;
    void* context = nullptr;
    CHECK(cu("cuInit", 0u) == 0 && cu("cuDeviceGet", &device, 0) == 0);
    CHECK(cu("cuDevicePrimaryCtxRetain", &context, device) == 0);
    CHECK(cu("cuCtxSetCurrent", context) == 0 && cu("cuStreamCreate", &stream, 1u) == 0);
    CHECK(cu("cuModuleLoadData", &module, (const void*)image.data()) == 0);
}

// Runs `test` in a process of its own; it must end by itself, or abort and say `message`.
void run(const char* name, const char* order, const std::function<void()>& test,
    const char* message = nullptr) {
    int pipes[2];
    if (pipe(pipes)) exit(1);
    fflush(stdout);
    pid_t child = fork();
    if (child == 0) {
        setenv("HYBRA_EMULATOR_ORDER", order, 1);
        dup2(pipes[1], 2);
        close(pipes[0]), close(pipes[1]);
        alarm(60);
        open();
        test();
        exit(failures > 0);
    }
    close(pipes[1]);
    std::string said;
    char text[4096];
    for (ssize_t n; (n = ::read(pipes[0], text, sizeof text)) > 0;) said.append(text, n);
    close(pipes[0]);
    int status = 0;
    waitpid(child, &status, 0);
    bool good = message ? WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT &&
            said.find(message) != std::string::npos
                        : WIFEXITED(status) && WEXITSTATUS(status) == 0;
    if (good) return;
    failures++;
    printf("FAILED: %s, order %s: status %#x\n%s", name, order, status, said.c_str());
    if (message) printf("expected: %s\n", message);
}

void compile() {
    void *nvrtc = library("libnvrtc.so.12"), *program = nullptr;
    const char* options[] = {"--gpu-architecture=sm_80", "--std=c++17"};
    std::string source = read("../../src/device.cuh") + read("../../src/ops/rms_norm.cu") +
        read("selftest.cu");
    auto attempt = [&](const std::string& text) {
        size_t bytes = 0;
        CHECK(call_in(nvrtc, "nvrtcCreateProgram", &program, text.c_str(), "selftest.cu", 0,
            (const char**)nullptr, (const char**)nullptr) == 0);
        int result = call_in(nvrtc, "nvrtcCompileProgram", program, 2, (const char**)options);
        call_in(nvrtc, "nvrtcGetProgramLogSize", program, &bytes);
        std::string log(bytes, 0);
        call_in(nvrtc, "nvrtcGetProgramLog", program, log.data());
        return result ? "error: " + log : std::string();
    };
    std::string log = attempt("\nint f() { return no_such_name; }\n");
    CHECK(log.find("selftest.cu:2:") != std::string::npos);
    log = attempt(source);
    if (!log.empty()) printf("%s\n", log.c_str()), exit(1);
    size_t bytes = 0;
    CHECK(call_in(nvrtc, "nvrtcGetCUBINSize", program, &bytes) == 0 && bytes > 8);
    image.resize(bytes);
    CHECK(call_in(nvrtc, "nvrtcGetCUBIN", program, image.data()) == 0);
}

void mistakes() {
    auto start = [](const char* kernel, unsigned threads, unsigned len = 0, int64_t offset = 0) {
        return [=] {
            uint64_t memory = alloc(1000);
            TestArgs args{memory, memory, memory + offset, len};
            launch(kernel, 2, threads, args, 1024);
            cu("cuStreamSynchronize", stream);
        };
    };
    run("return before a barrier", "forward", start("broken_return", 64),
        "kernel broken_return, block (1, 0, 0), thread 0: waits for ever at __syncthreads");
    run("a collective in a branch", "forward", start("broken_branch", 64),
        "thread 16: is at __syncwarp");
    run("a misaligned load", "forward", start("broken_alignment", 32),
        "thread 7: a misaligned address");
    run("an index outside", "forward", start("broken_index", 32, 1), "thread 31: a misaligned");
    run("behind dynamic shared memory", "reversed", start("broken_dynamic", 32, 225),
        "thread 31: 0x");
    run("a write behind an allocation", "forward", start("broken_address", 32, 0, 1000),
        "byte 1000 of an allocation of 1000 bytes");
    run("a write before an allocation", "forward", start("broken_address", 32, 0, -1),
        "byte -1 of an allocation of 1000 bytes");
    run("a write far behind", "forward", start("broken_address", 32, 0, 1024),
        "thread 1: bad address");
    auto freed = [] {
        uint64_t memory = alloc(100);
        cu("cuMemFree_v2", memory);
        TestArgs args{memory, memory, memory + 4, 0};
        launch("broken_address", 1, 32, args);
        cu("cuStreamSynchronize", stream);
    };
    run("freed memory", "forward", freed, "byte 4 of a freed allocation of 100 bytes");
}

}  // namespace

int main(int argc, char** argv) {
    if (argc != 2) return printf("usage: selftest LIBRARY_DIR\n"), 1;
    dir = argv[1];
    compile();
    for (const char* order : {"forward", "reversed", "1", "2"}) {
        run("rms_norm", order, rms_norm);
        run("collectives", order, collectives);
        run("matrices", order, matrices);
        run("numbers", order, numbers);
        run("pipeline", order, [] { CHECK(pipeline_is_right("test_pipeline")); });
        run("poison", order, poison);
    }
    run("refusals", "forward", refusals);
    run("streams", "forward", streams);
    run("no barrier", "forward", [] { CHECK(!barrier_is_seen()); });
    run("no barrier", "reversed", [] { CHECK(barrier_is_seen()); });
    run("no barrier", "1", [] { CHECK(barrier_is_seen()); });
    run("no wait", "forward", [] { CHECK(!pipeline_is_right("broken_no_wait")); });
    run("early fetch", "reversed", [] { CHECK(!pipeline_is_right("broken_early_fetch")); });
    mistakes();
    if (failures == 0) printf("selftest: all passed\n");
    return failures > 0;
}
