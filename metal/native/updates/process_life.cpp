#include "process_life.h"

#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <limits>
#include <sys/types.h>

#if defined(__APPLE__)
#include <libproc.h>
#include <sys/proc.h>
#endif

namespace mlxhog {
namespace {

struct ProcessStatus {
  bool known = false;
  bool zombie = false;
  std::uint64_t start_time = 0;
};

#if defined(__APPLE__)
constexpr std::uint64_t kZombiesToo = 1;  // proc_pidinfo's argument; with 0 it denies that there is one

ProcessStatus read_status(std::int64_t pid) {
  proc_bsdinfo info;
  const int got = proc_pidinfo(static_cast<int>(pid), PROC_PIDTBSDINFO, kZombiesToo, &info, sizeof info);
  if (got != static_cast<int>(sizeof info)) return {};
  return {true, info.pbi_status == SZOMB, info.pbi_start_tvsec * 1000000ull + info.pbi_start_tvusec};
}
#else
ProcessStatus read_status(std::int64_t pid) {
  char path[40], text[1024];
  std::snprintf(path, sizeof path, "/proc/%lld/stat", static_cast<long long>(pid));
  std::FILE* file = std::fopen(path, "re");
  if (file == nullptr) return {};
  const std::size_t size = std::fread(text, 1, sizeof text - 1, file);
  std::fclose(file);
  text[size] = 0;
  // The command name (field 2) may contain anything, so count fields from its last parenthesis.
  const char* at = std::strrchr(text, ')');
  if (at == nullptr || at[1] == 0) return {};
  ++at;
  const bool ended = at[1] == 'Z' || at[1] == 'X';  // its first thread; others may still write
  ProcessStatus status{true, false, 0};
  for (int field = 3; field <= 22; ++field) {
    at = std::strchr(at, ' ');
    if (at == nullptr) return {};
    ++at;
    if (field == 20) status.zombie = ended && std::strtoull(at, nullptr, 10) <= 1;
  }
  status.start_time = std::strtoull(at, nullptr, 10);
  return status;
}
#endif

}  // namespace

std::uint64_t monotonic_ns() {
#if defined(__APPLE__)
  return clock_gettime_nsec_np(CLOCK_UPTIME_RAW);
#else
  timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return static_cast<std::uint64_t>(now.tv_sec) * 1000000000ull + static_cast<std::uint64_t>(now.tv_nsec);
#endif
}

std::uint64_t process_start_time(std::int64_t pid) {
  return pid > 0 && pid <= std::numeric_limits<pid_t>::max() ? read_status(pid).start_time : 0;
}

bool process_is_gone(std::int64_t pid, std::uint64_t start_time) {
  if (pid <= 0) return false;  // the entry has no process yet: no evidence of a death
  if (pid > std::numeric_limits<pid_t>::max()) return true;  // a number that no process has
  if (kill(static_cast<pid_t>(pid), 0) != 0 && errno == ESRCH) return true;
  const ProcessStatus status = read_status(pid);
  if (!status.known) return false;
  return status.zombie || (start_time != 0 && status.start_time != 0 && status.start_time != start_time);
}

}  // namespace mlxhog
