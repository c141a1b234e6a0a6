// Streams, events and graphs of the emulated driver.
#include "driver.h"
#include <chrono>

namespace {

struct Event {
    Stream* stream = nullptr;
    bool recorded = false, done = true;
    std::chrono::steady_clock::time_point time;
};

struct Graph { Work work; };

std::set<Stream*>& streams = *new std::set<Stream*>;

int create_stream(void** out, unsigned flags) {
    ENTER_CONTEXT;
    if (flags > 1) return refuse(INVALID_VALUE, "cuStreamCreate: flags %u", flags);
    auto* stream = new Stream{current, flags == 0};
    streams.insert(stream);
    handles.insert(stream);
    *out = stream;
    return SUCCESS;
}

template <class T> int destroy(T* object, const char* call) {
    ENTER_CONTEXT;
    if (!exists(object)) return refuse(INVALID_HANDLE, "%s: no such object", call);
    handles.erase(object);
    delete object;
    return SUCCESS;
}

}  // namespace

int check_no_capture() {
    for (Stream* stream : streams) {
        bool forbids = stream->mode == 0 ||
            (stream->mode == 1 && stream->capturer == std::this_thread::get_id());
        if (stream->capture != Capture::Active || !forbids) continue;
        stream->capture = Capture::Invalid;
        return refuse(CAPTURE_UNSUPPORTED, "a call that is not possible while a stream captures");
    }
    return SUCCESS;
}

void finish(Stream& stream) {
    Work work;
    work.swap(stream.queue);
    for (auto& item : work) item();
}

void finish_blocking() {
    finish(current->default_stream);
    for (Stream* stream : streams)
        if (stream->blocking && stream->context == current) finish(*stream);
}

void finish_all() {
    finish(current->default_stream);
    for (Stream* stream : streams)
        if (stream->context == current) finish(*stream);
}

Stream* find_stream(void* handle) {
    if (!handle) {
        finish_blocking();
        return &current->default_stream;
    }
    auto* stream = (Stream*)handle;
    if (!exists(stream) || stream->context != current) return nullptr;
    if (stream->blocking) finish(current->default_stream);
    return stream;
}

void add_work(Stream& stream, std::function<void()> item) {
    auto& list = stream.capture == Capture::None ? stream.queue : stream.captured;
    list.push_back(std::move(item));
}

int in_stream(const char* call, void* handle, std::function<void()> work, bool now) {
    Stream* stream = find_stream(handle);
    if (!stream) return refuse(INVALID_HANDLE, "%s: no such stream in this context", call);
    bool captures = stream->capture != Capture::None;
    add_work(*stream, std::move(work));
    if (now && !captures) finish(*stream);
    return SUCCESS;
}

API cuStreamCreate(void** stream, unsigned flags) { return create_stream(stream, flags); }

API cuStreamCreateWithPriority(void** stream, unsigned flags, int) {
    return create_stream(stream, flags);
}

API cuCtxGetStreamPriorityRange(int* least, int* greatest) {
    ENTER_CONTEXT;
    *least = *greatest = 0;
    return SUCCESS;
}

API cuStreamSynchronize(void* handle) {
    ENTER_CONTEXT;
    Stream* stream = find_stream(handle);
    if (!stream) return refuse(INVALID_HANDLE, "cuStreamSynchronize: no such stream");
    if (stream->capture != Capture::None) {
        stream->capture = Capture::Invalid;
        return refuse(CAPTURE_UNSUPPORTED, "cuStreamSynchronize: the stream captures");
    }
    finish(*stream);
    check_guards();
    return SUCCESS;
}

API cuStreamQuery(void* stream) { return cuStreamSynchronize(stream); }

API cuStreamDestroy_v2(Stream* stream) {
    ENTER_CONTEXT;
    if (!exists(stream)) return refuse(INVALID_HANDLE, "cuStreamDestroy: no such stream");
    finish(*stream);
    streams.erase(stream);
    return destroy(stream, "cuStreamDestroy");
}

API cuStreamBeginCapture_v2(void* handle, int mode) {
    ENTER_CONTEXT;
    Stream* stream = find_stream(handle);
    if (!stream) return refuse(INVALID_HANDLE, "cuStreamBeginCapture: no such stream");
    if (!handle) return refuse(CAPTURE_UNSUPPORTED, "cuStreamBeginCapture: the default stream");
    if (mode < 0 || mode > 2) return refuse(INVALID_VALUE, "cuStreamBeginCapture: mode %d", mode);
    if (stream->capture != Capture::None)
        return refuse(ILLEGAL_STATE, "cuStreamBeginCapture: the stream captures already");
    stream->capture = Capture::Active;
    stream->mode = mode;
    stream->capturer = std::this_thread::get_id();
    stream->captured.clear();
    return SUCCESS;
}

API cuStreamEndCapture(void* handle, void** out) {
    ENTER_CONTEXT;
    *out = nullptr;
    Stream* stream = find_stream(handle);
    if (!stream) return refuse(INVALID_HANDLE, "cuStreamEndCapture: no such stream");
    Capture was = stream->capture;
    stream->capture = Capture::None;
    if (was == Capture::None) return refuse(ILLEGAL_STATE, "cuStreamEndCapture: no capture");
    if (was == Capture::Invalid) return CAPTURE_INVALIDATED;
    auto* graph = new Graph{std::move(stream->captured)};
    handles.insert(graph);
    *out = graph;
    return SUCCESS;
}

API cuStreamIsCapturing(void* handle, int* status) {
    ENTER_CONTEXT;
    Stream* stream = find_stream(handle);
    if (!stream) return refuse(INVALID_HANDLE, "cuStreamIsCapturing: no such stream");
    *status = (int)stream->capture;
    return SUCCESS;
}

API cuGraphInstantiateWithFlags(void** exec, Graph* graph, unsigned long long) {
    ENTER_CONTEXT;
    if (!exists(graph)) return refuse(INVALID_HANDLE, "cuGraphInstantiate: no such graph");
    auto* copy = new Graph(*graph);
    handles.insert(copy);
    *exec = copy;
    return SUCCESS;
}

API cuGraphUpload(Graph* graph, void*) { return exists(graph) ? SUCCESS : INVALID_HANDLE; }

API cuGraphLaunch(Graph* graph, void* handle) {
    ENTER_CONTEXT;
    Stream* stream = find_stream(handle);
    if (!stream || !exists(graph))
        return refuse(INVALID_HANDLE, "cuGraphLaunch: no such graph or stream");
    for (auto& item : graph->work) add_work(*stream, item);
    return SUCCESS;
}

API cuGraphDestroy(Graph* graph) { return destroy(graph, "cuGraphDestroy"); }

API cuGraphExecDestroy(Graph* graph) { return destroy(graph, "cuGraphExecDestroy"); }

API cuEventCreate(void** event, unsigned) {
    ENTER_CONTEXT;
    handles.insert(*event = new Event);
    return SUCCESS;
}

API cuEventRecord(Event* event, void* handle) {
    ENTER_CONTEXT;
    Stream* stream = find_stream(handle);
    if (!stream || !exists(event))
        return refuse(INVALID_HANDLE, "cuEventRecord: no such event or stream");
    if (stream->capture != Capture::None)
        return refuse(CAPTURE_UNSUPPORTED, "cuEventRecord: the emulator does not capture events");
    event->recorded = true;
    event->done = false;
    event->stream = stream;
    add_work(*stream, [event] {
        if (!exists(event)) return;
        event->done = true;
        event->time = std::chrono::steady_clock::now();
    });
    return SUCCESS;
}

API cuEventSynchronize(Event* event) {
    ENTER_CONTEXT;
    if (!exists(event)) return refuse(INVALID_HANDLE, "cuEventSynchronize: no such event");
    if (int error = check_no_capture()) return error;
    if (!event->done) finish(*event->stream);
    return SUCCESS;
}

// As if the work had just ended: who asks again and again would otherwise wait for ever.
API cuEventQuery(Event* event) { return cuEventSynchronize(event); }

API cuStreamWaitEvent(void* handle, Event* event, unsigned) {
    ENTER_CONTEXT;
    Stream* stream = find_stream(handle);
    if (!stream || !exists(event))
        return refuse(INVALID_HANDLE, "cuStreamWaitEvent: no such event or stream");
    if (stream->capture != Capture::None)
        return refuse(CAPTURE_UNSUPPORTED, "cuStreamWaitEvent: the emulator does not capture it");
    if (!event->done) finish(*event->stream);
    return SUCCESS;
}

API cuEventElapsedTime(float* milliseconds, Event* from, Event* to) {
    ENTER_CONTEXT;
    if (!exists(from) || !exists(to) || !from->recorded || !to->recorded)
        return refuse(INVALID_HANDLE, "cuEventElapsedTime: no such event, or never recorded");
    if (!from->done || !to->done) return NOT_READY;
    *milliseconds = std::chrono::duration<float, std::milli>(to->time - from->time).count();
    return SUCCESS;
}

API cuEventElapsedTime_v2(float* milliseconds, Event* from, Event* to) {
    return cuEventElapsedTime(milliseconds, from, to);
}

API cuEventDestroy_v2(Event* event) { return destroy(event, "cuEventDestroy"); }
