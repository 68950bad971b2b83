// The update kernels as threads of one program, for test_thread_sanitizer.py.
//
//   threads digest                 one worker runs every kernel; prints a hash of all the bits it made
//   threads race MODE              three workers write one array in that mode while a fourth reads it
//   threads striped MODE           one writes by three threads, another by one, and a third reads by three
//   threads count MODE UPDATES     three workers count by shared moments; prints how many counts are lost
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <string>
#include <thread>
#include <vector>

#include "locks.h"
#include "walk.h"

using namespace mlxhog;

namespace {

constexpr std::size_t kFloats = 5 * kStripe + 77, kOffset = 3, kCount = kFloats - 11;
constexpr std::size_t kWidth = 33, kRows = 40, kRowOffset = 100;

struct Floats : std::vector<float> {
  Floats() : vector(kFloats) {}
};

// Lock words of some stripes, and the workers that take them.
struct Table {
  std::vector<std::uint32_t> words;
  std::vector<WorkerEntry> workers{4};

  explicit Table(std::size_t n_words) : words(n_words) {}
  Locks locks(std::uint32_t slot) { return {words.data(), words.size(), workers.data(), 4, slot, 0}; }
  bool is_free() const { return std::count(words.begin(), words.end(), 0u) == std::ptrdiff_t(words.size()); }
};

struct Shared : Table {
  Floats w, m, v, last, prev;
  Shared() : Table(stripes(kFloats) + kRows) {}
};

struct Private {
  Floats g, m, x;
  std::vector<std::int32_t> index;
};

// Runs work(slot) of slots 1 to n in threads of their own, and `read` in this one.
void in_threads(std::uint32_t n, const std::function<void(std::uint32_t)>& work,
                const std::function<void()>& read = [] {}) {
  std::vector<std::thread> threads;
  for (std::uint32_t slot = 1; slot <= n; ++slot) threads.emplace_back(work, slot);
  read();
  for (std::thread& thread : threads) thread.join();
}

Private make_private(std::uint64_t seed) {
  Private own;
  for (std::size_t i = 0; i < kFloats; ++i)
    own.g[i] = static_cast<float>(static_cast<double>(scatter(seed + i) >> 40) * 0x1p-23 - 1.0);
  for (std::size_t row = 0; row < kRows; row += 1 + seed % 3) own.index.push_back(static_cast<std::int32_t>(row));
  return own;
}

constexpr float kAdam[] = {0.7f, 0.9f, 0.1f, 0.95f, 0.05f, 1.3f, 1e-8f}, kDecayed[] = {0.02f, 1.0f, 0.0f, 0.001f};

const Kernel* kernel(std::string_view name) {
  for (const Kernel& each : kKernels)
    if (each.name == name) return &each;
  return nullptr;
}

Step adam(const float* g, float* w, float* m, float* v, const float* rates, const float* write) {
  return {{kernel("adam"), g, w, {m, v}, rates, true}, w, write};
}

Step mean(const float* g, float* m, const float* rates, float* out) {
  return {{kernel("mean"), g, m, {m}, rates, true}, m, nullptr, nullptr, nullptr, nullptr, out};
}

// Every update rule once, on stripes and on rows. The rows lie on dense floats, so all take stripes.
void work(Shared& shared, Private& own, Locks* locks, Mode mode, std::uint64_t seed) {
  const float sgd[] = {0.1f, 0.7f, 0.01f, 0.0f}, momentum[] = {0.7f, 0.9f, 1.0f, 0.01f};
  const float plain[] = {0.1f, 1.0f, 0.0f, 0.0f}, muon[] = {0.7f, 0.9f, 0.1f, 0.2f, 0.8f};
  float *w = &shared.w[kOffset], *shared_m = &shared.m[kOffset], *v = &shared.v[kOffset], *m = &own.m[kOffset];
  float *last = &shared.last[kOffset], *prev = &shared.prev[kOffset];
  const float* g = own.g.data();
  walk_stripes(locks, mode, kOffset, 0, 0, kCount, seed, AddStep{w, g});
  const auto take = [&](std::uint64_t k, const Step& step) {
    walk_stripes(locks, mode, kOffset, 0, 0, kCount, seed + k, step);
  };
  take(1, {{nullptr, g, w, {}, nullptr, false}, w, sgd, last, prev});
  take(2, {{kernel("momentum"), g, w, {m}, momentum, false}, w, plain});
  Step recorded = adam(g, w, shared_m, v, kAdam, kDecayed);
  recorded.last = last, recorded.prev = prev;
  take(3, recorded);
  take(4, mean(g, shared_m, muon, own.x.data()));
  walk_rows(locks, mode, kRowOffset, kWidth, kStripes, own.index.data(), own.index.size(), seed,
            AddStep{shared.w.data() + kRowOffset, g});
}

int digest() {
  std::uint64_t hash = 14695981039346656037ull;  // FNV-1a
  const auto absorb = [&](const Floats& floats) {
    const auto* bytes = reinterpret_cast<const unsigned char*>(floats.data());
    for (std::size_t i = 0; i < floats.size() * sizeof(float); ++i) hash = (hash ^ bytes[i]) * 1099511628211ull;
  };
  for (int mode = 0; mode < 3; ++mode) {
    Shared shared;
    Private own = make_private(1);
    Locks locks = shared.locks(1);
    for (std::uint64_t step = 0; step < 3; ++step) work(shared, own, &locks, static_cast<Mode>(mode), step);
    Floats dst, prev;
    std::fill(prev.begin(), prev.end(), 0.5f);
    mlxhog_predict(dst.data(), shared.w.data(), prev.data(), 0.25f, kFloats);
    for (const auto* floats : {&shared.w, &shared.v, &own.m, &dst, &prev}) absorb(*floats);
    mlxhog_extrapolate(dst.data(), shared.w.data(), shared.last.data(), shared.prev.data(), 1.5f, 0.5f, kFloats);
    for (const auto* floats : {&shared.m, &shared.last, &shared.prev, &own.x, &dst}) absorb(*floats);
  }
  std::printf("%016llx\n", static_cast<unsigned long long>(hash));
  return 0;
}

int race(Mode mode) {
  Shared shared;
  const auto write = [&](std::uint32_t slot) {
    Private own = make_private(slot);
    Locks locks = shared.locks(slot);
    for (std::uint64_t step = 0; step < 20; ++step) work(shared, own, &locks, mode, slot * 100 + step);
  };
  in_threads(3, write, [&] {
    Floats dst, prev;
    for (int step = 0; step < 40; ++step) {
      mlxhog_copy(dst.data(), shared.w.data(), kFloats);
      mlxhog_predict(dst.data(), shared.w.data(), prev.data(), 0.5f, kFloats);
      mlxhog_extrapolate(dst.data(), shared.w.data(), shared.last.data(), shared.prev.data(), 1.5f, 0.5f, kFloats);
    }
  });
  return shared.is_free() ? 0 : 3;
}

// Beside another worker no add is lost in modes that promise it, and no lock is left.
int striped(Mode mode) {
  constexpr std::size_t kMany = 4 * kMinStripes * kStripe + 99, kEach = 10;
  const std::vector<float> ones(kMany, 1.0f);
  Table table(stripes(kMany + kOffset));
  std::vector<float> w(kMany + kOffset), dst(w.size());
  const auto write = [&](std::uint32_t slot) {
    Locks locks = table.locks(slot);
    const AddStep add{&w[kOffset], ones.data()};
    for (std::uint64_t k = 0; k < kEach; ++k)
      walk_dense(&locks, mode, kOffset, kMany, slot * 100 + k, slot == 1 ? 3 : 1, add);
  };
  in_threads(2, write, [&] {
    for (std::size_t k = 0; k < kEach; ++k)
      in_parts(w.size(), 3, [&](std::size_t i, std::size_t n) { mlxhog_copy(&dst[i], &w[i], n); });
  });
  if (!table.is_free()) return 3;
  for (std::size_t i = kOffset; i < w.size(); ++i)
    if (mode != Mode::racy && w[i] != 2.0f * kEach) return 4;
  return 0;
}

// Moments that count: every update adds 1 to each element, `updates` from each of three threads.
int count(Mode mode, int updates) {
  Shared shared;
  float* means[] = {&shared.m[kOffset], &shared.v[kOffset], &shared.last[kOffset]};
  in_threads(3, [&](std::uint32_t slot) {
    const std::vector<float> ones(kFloats, 1.0f);
    const float counting[] = {1.0f, 1.0f, 1.0f, 1.0f, 1.0f, 1.0f, 1.0f}, still[] = {0.0f, 0.0f, 0.0f, 0.0f};
    Floats x;
    Locks locks = shared.locks(slot);
    for (int k = 0; k < updates; ++k) {
      walk_stripes(&locks, mode, kOffset, 0, 0, kCount, slot + 7 * k,
                   adam(ones.data(), &shared.w[kOffset], means[0], means[1], counting, still));
      walk_stripes(&locks, mode, kOffset, 0, 0, kCount, slot + 5 * k, mean(ones.data(), means[2], counting, x.data()));
    }
  });
  double lost = 0;
  for (const float* mean : means)
    for (std::size_t i = 0; i < kCount; ++i) lost += 3.0 * updates - mean[i];
  std::printf("%.0f of %.0f\n", lost, 9.0 * updates * kCount);
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  const std::string what = argc > 1 ? argv[1] : "";
  const auto mode = static_cast<Mode>(argc > 2 ? std::atoi(argv[2]) : 0);
  if (what == "digest" && argc == 2) return digest();
  if (what == "race" && argc == 3) return race(mode);
  if (what == "striped" && argc == 3) return striped(mode);
  if (what == "count" && argc == 4) return count(mode, std::atoi(argv[3]));
  return 2;
}
