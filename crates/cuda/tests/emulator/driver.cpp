// libcuda.so.1 of the emulated device: devices, contexts, modules and launches.
//
// Compute capability 8.0, and only what the project calls. Mistakes that a GPU would let pass or
// report late are errors at once, with a line on stderr.
#include "driver.h"
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <dlfcn.h>
#include <link.h>
#include <map>
#include <unistd.h>

std::recursive_mutex& mutex = *new std::recursive_mutex;
std::set<const void*>& handles = *new std::set<const void*>;
bool initialized = false;
thread_local Context* current = nullptr;

namespace {

struct Module {
    void* library;
    Context* context;
    std::map<std::string, Function*> functions;
};

std::vector<Context>& contexts = *new std::vector<Context>;

// The library's number for thread-local data, and how many bytes it has: the static shared memory.
void find_shared(void* library, Function& function) {
    struct Search {
        link_map* map;
        Function& function;
    } search{nullptr, function};
    dlinfo(library, RTLD_DI_LINKMAP, &search.map);
    auto visit = [](dl_phdr_info* info, size_t, void* data) {
        auto& [map, function] = *(Search*)data;
        if (info->dlpi_addr != map->l_addr) return 0;
        for (int i = 0; i < info->dlpi_phnum; i++) {
            if (info->dlpi_phdr[i].p_type != PT_TLS) continue;
            function.tls_module = info->dlpi_tls_modid;
            function.static_bytes = info->dlpi_phdr[i].p_memsz;
        }
        return 1;
    };
    dl_iterate_phdr(visit, &search);
}

}  // namespace

int refuse(Result code, const char* format, ...) {
    va_list arguments;
    va_start(arguments, format);
    fprintf(stderr, "emulated device: ");
    vfprintf(stderr, format, arguments);
    fprintf(stderr, "\n");
    va_end(arguments);
    return code;
}

int check_context() {
    if (!current) return refuse(INVALID_CONTEXT, "this thread has no current context");
    return current->retained ? SUCCESS : CONTEXT_IS_DESTROYED;
}

API cuInit(unsigned flags) {
    std::lock_guard<std::recursive_mutex> lock(mutex);
    if (flags) return refuse(INVALID_VALUE, "cuInit: flags %u", flags);
    if (initialized) return SUCCESS;
    const char* count = getenv("HYBRA_EMULATOR_DEVICES");
    contexts = std::vector<Context>(count && *count ? atoi(count) : 1);
    for (size_t i = 0; i < contexts.size(); i++) {
        contexts[i].device = (int)i;
        contexts[i].default_stream.context = &contexts[i];
    }
    if (contexts.empty()) return NO_DEVICE;
    start_runtime();
    initialized = true;
    return SUCCESS;
}

API cuDriverGetVersion(int* version) { return *version = 12080, SUCCESS; }

API cuDeviceGetCount(int* count) {
    ENTER;
    *count = (int)contexts.size();
    return SUCCESS;
}

API cuDeviceGet(int* device, int ordinal) {
    ENTER;
    if (ordinal < 0 || ordinal >= (int)contexts.size()) return INVALID_DEVICE;
    *device = ordinal;
    return SUCCESS;
}

API cuDeviceGetName(char* name, int len, int) {
    ENTER;
    snprintf(name, len, "Emulated device");
    return SUCCESS;
}

API cuDeviceTotalMem_v2(size_t* bytes, int) {
    ENTER;
    *bytes = device_bytes();
    return SUCCESS;
}

API cuDeviceGetAttribute(int* value, int attribute, int device) {
    ENTER;
    static const std::map<int, int> values = {
        {1, 1024}, {2, 1024}, {3, 1024}, {4, 64},          // threads a block, block dimensions
        {5, 0x7fffffff}, {6, 65535}, {7, 65535},           // grid dimensions
        {8, 48 << 10}, {10, 32}, {12, 65536}, {16, 4},     // shared, warp, registers, SMs
        {38, 4 << 20}, {39, 2048}, {41, 1},                // L2, threads an SM, unified addressing
        {75, 8}, {76, 0}, {78, 0}, {81, 100 << 10},        // capability, priorities, shared of SM
        {82, 65536}, {97, (int)max_shared_bytes}, {106, 32},  // registers, opt-in shared, blocks
    };
    if (device < 0 || device >= (int)contexts.size()) return INVALID_DEVICE;
    auto found = values.find(attribute);
    if (found == values.end())
        return refuse(INVALID_VALUE, "cuDeviceGetAttribute: the emulator lacks %d", attribute);
    *value = found->second;
    return SUCCESS;
}

API cuDevicePrimaryCtxRetain(Context** context, int device) {
    ENTER;
    if (device < 0 || device >= (int)contexts.size()) return INVALID_DEVICE;
    *context = &contexts[device];
    (*context)->retained++;
    return SUCCESS;
}

API cuDevicePrimaryCtxRelease_v2(int device) {
    ENTER;
    if (device < 0 || device >= (int)contexts.size()) return INVALID_DEVICE;
    if (!contexts[device].retained)
        return refuse(INVALID_CONTEXT, "cuDevicePrimaryCtxRelease: not retained");
    contexts[device].retained--;
    return SUCCESS;
}

API cuCtxSetCurrent(Context* context) {
    ENTER;
    bool known = !context;
    for (Context& c : contexts) known |= &c == context;
    if (!known) return refuse(INVALID_CONTEXT, "cuCtxSetCurrent: no such context");
    current = context;
    return SUCCESS;
}

API cuCtxGetCurrent(Context** context) {
    ENTER;
    *context = current;
    return SUCCESS;
}

API cuCtxGetDevice(int* device) {
    ENTER_CONTEXT;
    *device = current->device;
    return SUCCESS;
}

API cuCtxSynchronize() {
    ENTER_CONTEXT;
    if (int error = check_no_capture()) return error;
    finish_all();
    check_guards();
    return SUCCESS;
}

// The image is what nvrtc.cpp makes: a length of 8 bytes and a shared library.
API cuModuleLoadData(Module** out, const char* image) {
    ENTER_CONTEXT;
    uint64_t bytes;
    memcpy(&bytes, image, 8);
    if (memcmp(image + 8, "\177ELF", 4))
        return refuse(INVALID_IMAGE, "cuModuleLoadData: not compiled for the emulated device");
    const char* dir = getenv("TMPDIR");
    std::string path = std::string(dir && *dir ? dir : "/tmp") + "/hybra-emulator-XXXXXX";
    int file = mkstemp(path.data());
    bool written = file >= 0;
    for (size_t at = 0; written && at < bytes;) {
        ssize_t count = write(file, image + 8 + at, bytes - at);
        written = count > 0;
        at += written ? count : 0;
    }
    if (file >= 0) close(file);
    void* library = written ? dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL) : nullptr;
    std::string why = written ? library ? "" : dlerror() : "cannot write " + path;
    if (file >= 0) unlink(path.c_str());
    if (!library) return refuse(INVALID_IMAGE, "cuModuleLoadData: %s", why.c_str());
    auto* stamp = (const unsigned*)dlsym(library, "hybra_emulator_stamp");
    if (!stamp || *stamp != HYBRA_EMULATOR_STAMP) {
        dlclose(library);
        return refuse(INVALID_IMAGE, "cuModuleLoadData: compiled for another emulator; "
                                     "remove the cache of compiled kernels");
    }
    handles.insert(*out = new Module{library, current, {}});
    return SUCCESS;
}

API cuModuleUnload(Module* module) {
    ENTER_CONTEXT;
    if (!exists(module)) return refuse(INVALID_HANDLE, "cuModuleUnload: no such module");
    finish_all();
    // Functions stay, because a graph may still name them; without an entry they cannot run.
    for (auto& [name, function] : module->functions)
        function->entry = nullptr, handles.erase(function);
    dlclose(module->library);
    handles.erase(module);
    delete module;
    return SUCCESS;
}

API cuModuleGetFunction(Function** out, Module* module, const char* name) {
    ENTER_CONTEXT;
    if (!exists(module)) return refuse(INVALID_HANDLE, "cuModuleGetFunction: no such module");
    Function*& function = module->functions[name];
    if (!function) {
        auto find = [&](std::string symbol) { return dlsym(module->library, symbol.c_str()); };
        void* entry = find(name);
        auto* threads = (unsigned*)find(name + std::string("_threads"));
        auto* bytes = (unsigned*)find(name + std::string("_bytes"));
        if (!entry || !threads || !bytes) {
            module->functions.erase(name);
            return refuse(NOT_FOUND, "cuModuleGetFunction: no kernel %s", name);
        }
        function = new Function{name, (void (*)(void**))entry, *threads, *bytes, 0, 0, 48 << 10,
            current};
        find_shared(module->library, *function);
        handles.insert(function);
    }
    *out = function;
    return SUCCESS;
}

API cuFuncGetAttribute(int* value, int attribute, Function* function) {
    ENTER_CONTEXT;
    if (!exists(function)) return refuse(INVALID_HANDLE, "cuFuncGetAttribute: no such function");
    switch (attribute) {
        case 0: return *value = (int)function->threads, SUCCESS;
        // Static shared and local bytes of one kernel are not known here.
        case 1: case 2: case 3: return *value = 0, SUCCESS;
        case 4: return *value = 32, SUCCESS;
        case 5: case 6: return *value = 80, SUCCESS;
        case 8: return *value = (int)function->max_dynamic_bytes, SUCCESS;
        default: return INVALID_VALUE;
    }
}

API cuFuncSetAttribute(Function* function, int attribute, int value) {
    ENTER_CONTEXT;
    if (!exists(function)) return refuse(INVALID_HANDLE, "cuFuncSetAttribute: no such function");
    if (attribute == 9) return SUCCESS;  // how much of the cache is shared memory: a hint
    if (attribute != 8 || value < 0 || value > (int)max_shared_bytes)
        return refuse(INVALID_VALUE, "cuFuncSetAttribute(%s): %d = %d", function->name.c_str(),
            attribute, value);
    function->max_dynamic_bytes = (size_t)value;
    return SUCCESS;
}

API cuLaunchKernel(Function* function, unsigned grid_x, unsigned grid_y, unsigned grid_z,
    unsigned block_x, unsigned block_y, unsigned block_z, unsigned shared_bytes, void* stream,
    void** params, void** extra) {
    ENTER_CONTEXT;
    if (!exists(function) || function->context != current)
        return refuse(INVALID_HANDLE, "cuLaunchKernel: no such function in this context");
    const char* name = function->name.c_str();
    if (!grid_x || !grid_y || !grid_z || grid_x > 0x7fffffff || grid_y > 65535 || grid_z > 65535)
        return refuse(INVALID_VALUE, "cuLaunchKernel(%s): a grid of %u x %u x %u blocks", name,
            grid_x, grid_y, grid_z);
    if (block_x != function->threads || block_y != 1 || block_z != 1 || block_x % 32 ||
        block_x == 0 || block_x > 1024)
        return refuse(INVALID_VALUE, "cuLaunchKernel(%s): a block of %u x %u x %u threads, not %u",
            name, block_x, block_y, block_z, function->threads);
    if (shared_bytes > function->max_dynamic_bytes)
        return refuse(INVALID_VALUE, "cuLaunchKernel(%s): %u bytes of shared memory, %zu allowed",
            name, shared_bytes, function->max_dynamic_bytes);
    if (!params || !params[0] || extra)
        return refuse(INVALID_VALUE, "cuLaunchKernel(%s): one struct of arguments in params", name);
    std::vector<char> args((char*)params[0], (char*)params[0] + function->bytes);
    emulator::Index grid{grid_x, grid_y, grid_z};
    return in_stream("cuLaunchKernel", stream, [=] {
        run_kernel(*function, grid, shared_bytes, args);
    });
}

API cuGetErrorName(int error, const char** text) {
    static const std::map<int, const char*> names = {
        {SUCCESS, "CUDA_SUCCESS"},
        {INVALID_VALUE, "CUDA_ERROR_INVALID_VALUE"},
        {OUT_OF_MEMORY, "CUDA_ERROR_OUT_OF_MEMORY"},
        {NOT_INITIALIZED, "CUDA_ERROR_NOT_INITIALIZED"},
        {NO_DEVICE, "CUDA_ERROR_NO_DEVICE"},
        {INVALID_DEVICE, "CUDA_ERROR_INVALID_DEVICE"},
        {INVALID_IMAGE, "CUDA_ERROR_INVALID_IMAGE"},
        {INVALID_CONTEXT, "CUDA_ERROR_INVALID_CONTEXT"},
        {INVALID_HANDLE, "CUDA_ERROR_INVALID_HANDLE"},
        {ILLEGAL_STATE, "CUDA_ERROR_ILLEGAL_STATE"},
        {NOT_FOUND, "CUDA_ERROR_NOT_FOUND"},
        {NOT_READY, "CUDA_ERROR_NOT_READY"},
        {ILLEGAL_ADDRESS, "CUDA_ERROR_ILLEGAL_ADDRESS"},
        {CONTEXT_IS_DESTROYED, "CUDA_ERROR_CONTEXT_IS_DESTROYED"},
        {CAPTURE_UNSUPPORTED, "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED"},
        {CAPTURE_INVALIDATED, "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED"},
    };
    auto found = names.find(error);
    *text = found == names.end() ? "CUDA_ERROR_UNKNOWN" : found->second;
    return SUCCESS;
}

API cuGetErrorString(int error, const char** text) { return cuGetErrorName(error, text); }
