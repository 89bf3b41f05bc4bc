// A library in the place of NVRTC for tests without one: version 99.VERSION, which compiles what it is given as long as
// its headers, libnvrtc-builtins.so.99.VERSION, are loaded or on the loader's path, as NVRTC itself does.
#include <dlfcn.h>

#include <cstring>
#include <string>

#define TEXT_OF(x) #x
#define TEXT(x) TEXT_OF(x)

namespace {

const std::string kBuiltins = "libnvrtc-builtins.so.99." TEXT(VERSION);
std::string log;

enum Status { kSuccess = 0, kFailure = 6 };

}  // namespace

extern "C" {

int nvrtcVersion(int* major, int* minor) {
  *major = 99;
  *minor = VERSION;
  return kSuccess;
}

int nvrtcCreateProgram(void** program, const char*, const char*, int, const char* const*, const char* const*) {
  *program = &log;
  return kSuccess;
}

int nvrtcDestroyProgram(void** program) {
  *program = nullptr;
  return kSuccess;
}

int nvrtcCompileProgram(void*, int, const char* const*) {
  const bool found = dlopen(kBuiltins.c_str(), RTLD_NOW) != nullptr;
  log = found ? "" : "failed to open " + kBuiltins;
  return found ? kSuccess : kFailure;
}

int nvrtcGetProgramLogSize(void*, size_t* size) {
  *size = log.size() + 1;
  return kSuccess;
}

int nvrtcGetProgramLog(void*, char* to) {
  memcpy(to, log.c_str(), log.size() + 1);
  return kSuccess;
}

}  // extern "C"
