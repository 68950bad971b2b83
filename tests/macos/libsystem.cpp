// Linux behaving like macOS, as far as mlxhog needs it: preloaded into a process (LD_PRELOAD), it answers the calls that
// only libSystem has, and refuses what macOS refuses. Behavior follows the sources of XNU: bsd/kern/posix_shm.c (names,
// one ftruncate, st_mode without a file type), bsd/kern/proc_info.c (zombies are found only if asked for),
// bsd/kern/uipc_usrreq.c (LOCAL_PEERCRED), osfmk/kern/host.c (sizes of statistics).
#include <arpa/inet.h>
#include <dirent.h>
#include <dlfcn.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <sys/sysinfo.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include <cerrno>
#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "include/libproc.h"
#include "include/sys/proc.h"

namespace {

constexpr std::size_t kPage = 16384;
constexpr std::size_t kNameBytes = 31;    // PSHMNAMLEN
constexpr std::size_t kSocketBytes = 103;  // sun_path without its zero byte

template <class F>
F next(F, const char* name) {
  return reinterpret_cast<F>(dlsym(RTLD_NEXT, name));
}
#define NEXT(f) next(&f, #f)

int fail(int error) {
  errno = error;
  return -1;
}

bool hidden(const char* path) {
  for (const char* prefix : {"/proc", "/sys/fs/cgroup", "/dev/shm"}) {
    const std::size_t n = std::strlen(prefix);
    if (path != nullptr && std::strncmp(path, prefix, n) == 0 && (path[n] == 0 || path[n] == '/')) return true;
  }
  return false;
}

// Straight to the kernel: past our own functions.
std::string contents(const char* path) {
  char text[4096];
  const long fd = syscall(SYS_openat, AT_FDCWD, path, O_RDONLY | O_CLOEXEC, 0);
  if (fd < 0) return "";
  const long size = syscall(SYS_read, fd, text, sizeof text);
  syscall(SYS_close, fd);
  return size > 0 ? std::string(text, static_cast<std::size_t>(size)) : "";
}

bool raw_stat(int fd, struct stat* found) {
  return syscall(SYS_newfstatat, fd, "", found, AT_EMPTY_PATH) == 0;
}

bool is_shared_memory(int fd) {
  struct stat shm, file;
  if (syscall(SYS_newfstatat, AT_FDCWD, "/dev/shm", &shm, 0) != 0 || !raw_stat(fd, &file)) return false;
  return shm.st_dev == file.st_dev;
}

const char* setting(const char* name) {
  const char* value = std::getenv(name);
  return value != nullptr && *value != 0 ? value : nullptr;
}

int give(void* old, std::size_t* size, const void* value, std::size_t n) {
  if (old != nullptr) {
    if (*size < n) return fail(ENOMEM);
    std::memcpy(old, value, n);
  }
  *size = n;
  return 0;
}

template <class T>
int give(void* old, std::size_t* size, T value) {
  return give(old, size, &value, sizeof value);
}

// FAKE_LEVELS, such as "Super:6,Performance:12": the kinds of cores, as `sysctl hw` lists them.
std::vector<std::pair<std::string, std::int32_t>> levels() {
  std::vector<std::pair<std::string, std::int32_t>> all;
  const char* value = setting("FAKE_LEVELS");
  std::istringstream list(value == nullptr ? "" : value);
  for (std::string level; std::getline(list, level, ',');) {
    const std::size_t colon = level.find(':');
    all.emplace_back(level.substr(0, colon), std::stoi(level.substr(colon + 1)));
  }
  return all;
}

}  // namespace

extern "C" {

// -- what only libSystem has ---------------------------------------------------------------------------

int sysctlbyname(const char* name, void* old, std::size_t* size, const void*, std::size_t) {
  const auto is = [name](const char* other) { return std::strcmp(name, other) == 0; };
  if (is("hw.memsize")) {
    struct sysinfo info;
    sysinfo(&info);
    return give(old, size, std::uint64_t{info.totalram} * info.mem_unit);
  }
  if (is("hw.physicalcpu")) return give(old, size, std::int32_t{std::atoi(std::getenv("FAKE_CORES"))});
  const auto all = levels();
  if (is("hw.nperflevels") && !all.empty()) return give(old, size, static_cast<std::int32_t>(all.size()));
  for (std::size_t k = 0; k < all.size(); ++k) {
    const std::string level = "hw.perflevel" + std::to_string(k);
    const auto& [called, cores] = all[k];
    if (name == level + ".name") return give(old, size, called.c_str(), called.size() + 1);
    if (name == level + ".physicalcpu") return give(old, size, cores);
  }
  if (is("sysctl.proc_translated")) return give(old, size, std::int32_t{setting("FAKE_ROSETTA") != nullptr});
  if (is("machdep.cpu.brand_string")) {
    const char* chip = setting("FAKE_CHIP");
    if (chip == nullptr) chip = "Apple M2 Pro";
    return give(old, size, chip, std::strlen(chip) + 1);
  }
  return fail(ENOENT);
}

int proc_pidinfo(int pid, int flavor, std::uint64_t arg, void* buffer, int size) {
  if (flavor != PROC_PIDTBSDINFO || size < static_cast<int>(sizeof(proc_bsdinfo))) return fail(ENOMEM), 0;
  const std::string stat = contents(("/proc/" + std::to_string(pid) + "/stat").c_str());
  const std::size_t end = stat.rfind(')');
  if (end == std::string::npos) return fail(ESRCH), 0;
  const bool zombie = stat[end + 2] == 'Z' || stat[end + 2] == 'X';
  if (zombie && arg == 0) return fail(ESRCH), 0;
  const char* field = stat.c_str() + end + 1;
  for (int k = 2; k < 22; ++k) field = std::strchr(field, ' ') + 1;
  const std::uint64_t ticks = std::strtoull(field, nullptr, 10);
  auto* info = static_cast<proc_bsdinfo*>(buffer);
  std::memset(info, 0, sizeof *info);
  info->pbi_status = zombie ? SZOMB : SRUN;
  info->pbi_pid = static_cast<std::uint32_t>(pid);
  info->pbi_start_tvsec = 1'700'000'000 + ticks / 100;
  info->pbi_start_tvusec = ticks % 100 * 10'000;
  return sizeof *info;
}

int pthread_set_qos_class_self_np(unsigned qos_class, int priority) {
  if (qos_class != 0x19 || priority != 0) return EINVAL;
  const char* log = setting("FAKE_QOS_LOG");
  if (std::FILE* file = log == nullptr ? nullptr : std::fopen(log, "a")) {
    std::fprintf(file, "%d %d\n", getpid(), gettid());
    std::fclose(file);
  }
  return 0;
}

std::uint64_t clock_gettime_nsec_np(int) {
  timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return static_cast<std::uint64_t>(now.tv_sec) * 1000000000u + static_cast<std::uint64_t>(now.tv_nsec);
}

// -- what macOS does differently -----------------------------------------------------------------------

int shm_open(const char* name, int flags, mode_t mode) {
  if (std::strlen(name) > kNameBytes) return fail(ENAMETOOLONG);
  if ((flags & O_CLOEXEC) != 0) return fail(EINVAL);  // from macOS 26.4 on
  const char* group = setting("FAKE_SANDBOX_GROUP");
  if (group != nullptr && std::strncmp(name, group, std::strlen(group)) != 0) return fail(EPERM);
  return NEXT(shm_open)(name, flags, mode);
}

int ftruncate(int fd, off_t length) {
  if (!is_shared_memory(fd)) return NEXT(ftruncate)(fd, length);
  struct stat file;
  if (!raw_stat(fd, &file) || file.st_size != 0) return fail(EINVAL);
  return NEXT(ftruncate)(fd, (length + kPage - 1) / kPage * kPage);
}

int ftruncate64(int fd, off64_t length) { return ftruncate(fd, length); }

int fstat(int fd, struct stat* found) noexcept {
  if (!raw_stat(fd, found)) return -1;
  if (is_shared_memory(fd)) found->st_mode &= ~S_IFMT;
  return 0;
}

int fstat64(int fd, struct stat64* found) noexcept { return fstat(fd, reinterpret_cast<struct stat*>(found)); }

// Mappings of descriptors begin on pages of 16 KiB.
void* mmap(void* address, std::size_t size, int protection, int flags, int fd, off_t offset) noexcept {
  const auto map = [=](void* at, int how, int from, off_t first) {
    return reinterpret_cast<void*>(syscall(SYS_mmap, at, size, protection, how, from, first));
  };
  if (address != nullptr || fd < 0) return map(address, flags, fd, offset);
  const std::size_t room = size + kPage;
  const long reserved = syscall(SYS_mmap, nullptr, room, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (reserved == -1) return MAP_FAILED;
  const auto from = static_cast<std::uintptr_t>(reserved);
  const std::uintptr_t start = (from + kPage - 1) / kPage * kPage, end = (start + size + 4095) / 4096 * 4096;
  if (start > from) munmap(reinterpret_cast<void*>(from), start - from);
  if (from + room > end) munmap(reinterpret_cast<void*>(end), from + room - end);
  void* mapped = map(reinterpret_cast<void*>(start), flags | MAP_FIXED, fd, offset);
  if (mapped == MAP_FAILED) munmap(reinterpret_cast<void*>(start), end - start);
  return mapped;
}

void* mmap64(void*, std::size_t, int, int, int, off64_t) noexcept __attribute__((alias("mmap")));

int bind(int fd, const sockaddr* address, socklen_t size) noexcept {
  const auto* unix_address = reinterpret_cast<const sockaddr_un*>(address);
  if (address->sa_family == AF_UNIX && (unix_address->sun_path[0] == 0 ||
                                        std::strlen(unix_address->sun_path) > kSocketBytes))
    return fail(EINVAL);
  return NEXT(bind)(fd, address, size);
}

int getsockopt(int fd, int level, int option, void* value, socklen_t* size) noexcept {
  if (level == SOL_SOCKET && option == SO_PEERCRED) return fail(ENOPROTOOPT);
  if (level != 0 || option != 1) return NEXT(getsockopt)(fd, level, option, value, size);
  ucred peer;
  socklen_t bytes = sizeof peer;
  if (NEXT(getsockopt)(fd, SOL_SOCKET, SO_PEERCRED, &peer, &bytes) != 0) return -1;
  std::uint32_t credentials[19] = {0, peer.uid, 1, peer.gid};  // struct xucred
  *size = *size < sizeof credentials ? *size : sizeof credentials;
  std::memcpy(value, credentials, *size);
  return 0;
}

int getrusage(__rusage_who_t who, struct rusage* usage) noexcept {
  const int ended = NEXT(getrusage)(who, usage);
  usage->ru_maxrss *= 1024;  // bytes, where Linux has KiB
  return ended;
}

// -- what macOS does not have ----------------------------------------------------------------------------

int open(const char* path, int flags, ...) {
  va_list rest;
  va_start(rest, flags);
  const mode_t mode = (flags & (O_CREAT | O_TMPFILE)) != 0 ? va_arg(rest, mode_t) : 0;
  va_end(rest);
  return hidden(path) ? fail(ENOENT) : static_cast<int>(syscall(SYS_openat, AT_FDCWD, path, flags, mode));
}

int open64(const char*, int, ...) __attribute__((alias("open")));

std::FILE* fopen(const char* path, const char* mode) {
  if (hidden(path)) return fail(ENOENT), nullptr;
  return NEXT(fopen)(path, mode);
}

std::FILE* fopen64(const char* path, const char* mode) { return fopen(path, mode); }

int stat(const char* path, struct stat* found) noexcept {
  return hidden(path) ? fail(ENOENT) : static_cast<int>(syscall(SYS_newfstatat, AT_FDCWD, path, found, 0));
}

int stat64(const char* path, struct stat64* found) noexcept {
  return stat(path, reinterpret_cast<struct stat*>(found));
}

int statvfs(const char* path, struct statvfs* found) noexcept {
  return hidden(path) ? fail(ENOENT) : NEXT(statvfs)(path, found);
}

int statvfs64(const char* path, struct statvfs64* found) noexcept {
  return hidden(path) ? fail(ENOENT) : NEXT(statvfs64)(path, found);
}

DIR* opendir(const char* path) {
  if (hidden(path)) return fail(ENOENT), nullptr;
  return NEXT(opendir)(path);
}

}  // extern "C"
