// Runs one launch from a file, without Python, so that a sanitizer sees nothing but the kernel and the
// runtime: main LIBRARY KERNEL LAUNCH. The file's layout is in sanitize.py. Exit code 0, or 2 after a
// failure of the kernel, with its reason on standard error; a sanitizer ends the process itself.

#include <dlfcn.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <thread>
#include <vector>

#include "shim/launch.h"

namespace {

struct Head {
  std::uint32_t grid[3];
  std::uint32_t threads_per_threadgroup[3];
  std::uint32_t os_threads;
  std::uint32_t uses_barriers;
  std::uint32_t fuzz_period;
  std::uint32_t launches;
  std::uint64_t seed;
  std::uint64_t buffers;
};

struct Size {
  std::uint64_t bytes;
  std::uint64_t of_each_launch;  // else one buffer for all
};

[[noreturn]] void fail(const char* what) {
  std::fprintf(stderr, "%s\n", what);
  std::exit(3);
}

void read(std::FILE* file, void* to, std::size_t bytes) {
  if (std::fread(to, 1, bytes, file) != bytes) fail("the launch file is too short");
}

}  // namespace

int main(int n, char** arguments) {
  if (n != 4) fail("main LIBRARY KERNEL LAUNCH");
  void* library = dlopen(arguments[1], RTLD_NOW);
  if (library == nullptr) fail(dlerror());
  using Run = int (*)(void* const*, const metal_emulator::Launch*);
  auto run = reinterpret_cast<Run>(dlsym(library, (std::string("run_") + arguments[2]).c_str()));
  if (run == nullptr) fail(dlerror());
  std::FILE* file = std::fopen(arguments[3], "rb");
  if (file == nullptr) fail("cannot open the launch file");

  Head head;
  read(file, &head, sizeof head);
  // Each buffer is an allocation of exactly its size, so that a sanitizer knows where it ends.
  std::vector<std::vector<void*>> buffers(head.launches);
  for (std::uint64_t i = 0; i < head.buffers; ++i) {
    Size size;
    read(file, &size, sizeof size);
    void* shared = std::malloc(size.bytes);
    read(file, shared, size.bytes);
    for (std::vector<void*>& own : buffers) {
      own.push_back(shared);
      if (size.of_each_launch == 0 || &own == &buffers.front()) continue;
      own.back() = std::malloc(size.bytes);
      std::memcpy(own.back(), shared, size.bytes);
    }
  }
  std::fclose(file);

  std::vector<int> failed(head.launches);
  std::vector<std::string> messages(head.launches, std::string(1024, '\0'));
  std::vector<std::thread> threads;
  for (std::uint32_t i = 0; i < head.launches; ++i) {
    threads.emplace_back([&, i] {
      metal_emulator::Launch launch{};
      std::memcpy(launch.grid, head.grid, sizeof head.grid);
      std::memcpy(launch.threads_per_threadgroup, head.threads_per_threadgroup, sizeof head.threads_per_threadgroup);
      launch.os_threads = head.os_threads;
      launch.uses_barriers = head.uses_barriers;
      launch.fuzz_period = head.fuzz_period;
      launch.message_bytes = static_cast<std::uint32_t>(messages[i].size());
      launch.seed = head.seed + i;
      launch.message = messages[i].data();
      failed[i] = run(buffers[i].data(), &launch);
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (std::uint32_t i = 0; i < head.launches; ++i) {
    if (failed[i] == 0) continue;
    std::fprintf(stderr, "%s\n", messages[i].c_str());
    return 2;
  }
  return 0;
}
