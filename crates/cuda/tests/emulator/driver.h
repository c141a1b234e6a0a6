// The emulated driver's objects behind the handles of the CUDA driver API, as driver.cpp (devices,
// modules, launches), transfer.cpp (memory) and stream.cpp (streams, events, graphs) use them.
//
// Work in a stream is done as late as CUDA allows: when the host waits for it. So what the host
// does too early, as reading a download or changing pinned memory, shows.
#pragma once
#include "runtime.h"
#include <functional>
#include <mutex>
#include <set>
#include <thread>

#define API extern "C" __attribute__((visibility("default"))) int

enum Result {
    SUCCESS = 0,
    INVALID_VALUE = 1,
    OUT_OF_MEMORY = 2,
    NOT_INITIALIZED = 3,
    NO_DEVICE = 100,
    INVALID_DEVICE = 101,
    INVALID_IMAGE = 200,
    INVALID_CONTEXT = 201,
    INVALID_HANDLE = 400,
    ILLEGAL_STATE = 401,
    NOT_FOUND = 500,
    NOT_READY = 600,
    ILLEGAL_ADDRESS = 700,
    CONTEXT_IS_DESTROYED = 709,
    CAPTURE_UNSUPPORTED = 900,
    CAPTURE_INVALIDATED = 901,
};

using Work = std::vector<std::function<void()>>;
enum class Capture { None, Active, Invalid };

struct Stream {
    struct Context* context;
    bool blocking = true;  // in order with the default stream
    Work queue{}, captured{};
    Capture capture = Capture::None;
    int mode = 0;
    std::thread::id capturer{};
};

struct Context {
    int device = 0, retained = 0;
    Stream default_stream{this};
};

// One call at a time.
extern std::recursive_mutex& mutex;
// Streams, events, graphs, modules and functions that exist.
extern std::set<const void*>& handles;
extern bool initialized;
extern thread_local Context* current;

template <class T> bool exists(const T* handle) { return handles.count(handle) > 0; }

// Says on stderr what the caller did wrong.
int refuse(Result code, const char* format, ...) __attribute__((format(printf, 2, 3)));

// SUCCESS if the calling thread has a context.
int check_context();
// An error, and the end of the capture, if a capture forbids calls that are not in a stream.
int check_no_capture();
// The stream of a handle in the current context, after whatever it must wait for; null: no such.
Stream* find_stream(void* handle);
// Appends to the stream's work, or to what it captures.
void add_work(Stream&, std::function<void()>);
// The same for a handle in the current context; `now`: done when the call returns.
int in_stream(const char* call, void* handle, std::function<void()> work, bool now = false);
void finish(Stream&);
void finish_all();
// What calls without a stream wait for.
void finish_blocking();

#define ENTER                                           \
    std::lock_guard<std::recursive_mutex> lock(mutex);  \
    if (!initialized) return NOT_INITIALIZED

#define ENTER_CONTEXT \
    ENTER;            \
    if (int error = check_context()) return error
