// libnvrtc.so.12 of the emulated device: compiles the kernels' source with the C++ compiler of the
// machine (CXX, else c++) against emulator.h. The "machine code" is a shared library, behind its
// length in 8 bytes, which driver.cpp loads.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <utility>
#include <vector>

#define API extern "C" __attribute__((visibility("default"))) int

namespace {

enum Result {
    SUCCESS = 0,
    INVALID_INPUT = 3,
    INVALID_PROGRAM = 4,
    INVALID_OPTION = 5,
    COMPILATION = 6,
};

struct Program {
    std::string name, source, log, image;
    std::vector<std::pair<std::string, std::string>> headers;
    bool is_machine_code = true;  // or PTX, for an architecture that is called compute_80
};

std::string quote(const std::string& text) {
    std::string quoted = "'";
    for (char c : text) quoted += c == '\'' ? std::string("'\\''") : std::string(1, c);
    return quoted + "'";
}

bool starts_with(const std::string& text, const char* prefix) {
    return text.rfind(prefix, 0) == 0;
}

// The options of the C++ compiler for one of NVRTC; false if the emulator does not know it.
bool translate(const std::string& option, Program& program, std::string& command) {
    for (const char* prefix : {"--gpu-architecture=", "-arch="})
        if (starts_with(option, prefix)) {
            program.is_machine_code = starts_with(option.substr(strlen(prefix)), "sm_");
            return true;
        }
    if (starts_with(option, "--define-macro="))
        return command += " " + quote("-D" + option.substr(15)), true;
    if (starts_with(option, "-D") || starts_with(option, "-I"))
        return command += " " + quote(option), true;
    for (const char* prefix : {"--std=c++17", "-std=c++17", "--ptxas-options=", "--fmad=",
             "--restrict", "--extra-device-vectorization", "--generate-line-info", "-lineinfo",
             "--maxrregcount=", "--split-compile=", "-default-device", "--device-int128"})
        if (starts_with(option, prefix)) return true;
    return false;
}

int compile(Program& program, const std::string& options) {
    const char* tmp = getenv("TMPDIR");
    std::string dir = std::string(tmp && *tmp ? tmp : "/tmp") + "/hybra-nvrtc-XXXXXX";
    if (!mkdtemp(dir.data())) {
        program.log = "cannot make " + dir + "\n";
        return COMPILATION;
    }
    std::string source = dir + "/" + program.name, library = dir + "/kernels.so";
    // The compiler's messages name the program's lines, as its own do on a GPU.
    std::ofstream(source) << "#line 1 \"" << program.name << "\"\n" << program.source;
    for (auto& [name, text] : program.headers) {
        std::filesystem::path path = std::filesystem::path(dir) / name;
        std::filesystem::create_directories(path.parent_path());
        std::ofstream(path) << text;
    }
    const char *compiler = getenv("CXX"), *header = getenv("HYBRA_EMULATOR_HEADER");
    std::string command = compiler && *compiler ? compiler : "c++";
    std::string path = header && *header ? header : HYBRA_EMULATOR_DIR "/emulator.h";
    // Misaligned accesses and indices outside of arrays trap. Symbols are hidden but the kernels'.
    command += " -std=c++17 -O2 -ffp-contract=off -fPIC -shared -fvisibility=hidden -w"
               " -fsanitize=alignment,bounds -fsanitize-undefined-trap-on-error"
               " -DHYBRA_EMULATOR -DHYBRA_EMULATOR_STAMP=" +
        std::to_string(HYBRA_EMULATOR_STAMP) + options + " -I " + quote(dir) + " -include " +
        quote(path) + " -x c++ " + quote(source) + " -o " + quote(library) + " 2>&1";
    FILE* output = popen(command.c_str(), "r");
    char text[4096];
    while (output && fgets(text, sizeof text, output)) program.log += text;
    bool compiled = output && pclose(output) == 0;
    if (compiled) {
        std::ifstream file(library, std::ios::binary);
        std::string code{std::istreambuf_iterator<char>(file), {}};
        uint64_t bytes = code.size();
        program.image = std::string((const char*)&bytes, 8) + code;
    }
    std::filesystem::remove_all(dir);
    return compiled ? SUCCESS : COMPILATION;
}

int size_of(const Program* program, bool machine_code, size_t* bytes) {
    if (!program) return INVALID_PROGRAM;
    *bytes = program->is_machine_code == machine_code ? program->image.size() : 0;
    return SUCCESS;
}

int copy(const Program* program, bool machine_code, char* to) {
    if (!program) return INVALID_PROGRAM;
    if (program->is_machine_code == machine_code)
        memcpy(to, program->image.data(), program->image.size());
    return SUCCESS;
}

}  // namespace

API nvrtcVersion(int* major, int* minor) {
    *major = 12, *minor = 8;
    return SUCCESS;
}

API nvrtcCreateProgram(Program** program, const char* source, const char* name, int num_headers,
    const char* const* headers, const char* const* names) {
    if (!program || !source || num_headers < 0) return INVALID_INPUT;
    *program = new Program{name ? name : "default_program", source, "", "", {}};
    for (int i = 0; i < num_headers; i++) (*program)->headers.emplace_back(names[i], headers[i]);
    return SUCCESS;
}

API nvrtcDestroyProgram(Program** program) {
    if (!program || !*program) return INVALID_PROGRAM;
    delete *program;
    *program = nullptr;
    return SUCCESS;
}

API nvrtcCompileProgram(Program* program, int num_options, const char* const* options) {
    if (!program) return INVALID_PROGRAM;
    std::string translated;
    program->log.clear();
    program->image.clear();
    for (int i = 0; i < num_options; i++) {
        if (translate(options[i], *program, translated)) continue;
        program->log = std::string("the emulator does not know the option ") + options[i] + "\n";
        return INVALID_OPTION;
    }
    return compile(*program, translated);
}

API nvrtcGetCUBINSize(Program* program, size_t* bytes) { return size_of(program, true, bytes); }
API nvrtcGetCUBIN(Program* program, char* to) { return copy(program, true, to); }
API nvrtcGetPTXSize(Program* program, size_t* bytes) { return size_of(program, false, bytes); }
API nvrtcGetPTX(Program* program, char* to) { return copy(program, false, to); }

API nvrtcGetProgramLogSize(Program* program, size_t* bytes) {
    if (!program) return INVALID_PROGRAM;
    *bytes = program->log.size() + 1;
    return SUCCESS;
}

API nvrtcGetProgramLog(Program* program, char* to) {
    if (!program) return INVALID_PROGRAM;
    memcpy(to, program->log.c_str(), program->log.size() + 1);
    return SUCCESS;
}

extern "C" __attribute__((visibility("default"))) const char* nvrtcGetErrorString(int result) {
    switch (result) {
        case SUCCESS: return "NVRTC_SUCCESS";
        case INVALID_INPUT: return "NVRTC_ERROR_INVALID_INPUT";
        case INVALID_PROGRAM: return "NVRTC_ERROR_INVALID_PROGRAM";
        case INVALID_OPTION: return "NVRTC_ERROR_INVALID_OPTION";
        case COMPILATION: return "NVRTC_ERROR_COMPILATION";
        default: return "NVRTC_ERROR_UNKNOWN";
    }
}
