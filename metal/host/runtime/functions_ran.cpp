// Which functions of the Metal source have run: see shim/functions_ran.h.
#ifdef MLXHOG_FUNCTIONS_RAN

#include <cxxabi.h>
#include <dlfcn.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <string>

#include "shim/functions_ran.h"

namespace metal_host {
namespace {

constexpr std::size_t places = 8192;  // far more than the project has functions
std::atomic<void*> functions[places];

MLXHOG_NOT_INSTRUMENTED std::string demangled(void* function) {
  Dl_info info;
  if (dladdr(function, &info) == 0 || info.dli_sname == nullptr) return "";
  int status = 0;
  char* name = abi::__cxa_demangle(info.dli_sname, nullptr, nullptr, &status);
  std::string result = name != nullptr ? name : info.dli_sname;
  std::free(name);
  return result;
}

}  // namespace

MLXHOG_NOT_INSTRUMENTED void entered(void* function) {
  std::size_t at = reinterpret_cast<std::uintptr_t>(function) / 16 % places;
  for (std::size_t step = 0; step < places; ++step) {
    std::atomic<void*>& place = functions[(at + step) % places];
    void* there = nullptr;
    if (place == function || place.compare_exchange_strong(there, function) || there == function) {
      return;
    }
  }
}

}  // namespace metal_host

// Writes the names, one per line, as far as they fit; returns how many bytes they all need.
extern "C" MLXHOG_NOT_INSTRUMENTED std::size_t metal_host_functions_ran(char* names, std::size_t bytes) {
  std::string all;
  for (auto& function : metal_host::functions) {
    if (function != nullptr) all += metal_host::demangled(function) + "\n";
  }
  std::memcpy(names, all.data(), std::min(all.size(), bytes));
  return all.size();
}

#endif
