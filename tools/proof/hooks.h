// Included before every other line of a checked source: its atomics become steps of the search.
//
// The standard headers come first, so that only the project's own atomics are replaced.
#pragma once

#include <sched.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <unordered_map>
#include <vector>

namespace proof {

// Where a step stands in the source. A function of control.h reports the line that called it.
struct Site {
  const char* file;
  int line;
  const char* text;
};

enum class Kind { load, store, add, swap, fence, loop_head, back, start, join, gone, note };

struct Step {
  Kind kind;
  const void* address;
  int order, failure;        // __ATOMIC_...; failure: of a swap that does not succeed
  std::uint64_t value;       // stored, added, swapped in, or a number of a thread or note
  std::uint64_t expected;    // by a swap; of `gone`: the start time
  Site site;
  int width = 8;  // bytes
};

// The value that the step reads, or whether what it asks is so.
std::uint64_t perform(const Step& step);

extern const Site* calling;  // the line of ledger.cpp under way, or null

inline Site at(const char* file, int line) { return calling ? *calling : Site{file, line, ""}; }

template <class Word>
Word load_n(const Word* p, int order, Site site) {
  return static_cast<Word>(perform({Kind::load, p, order, order, 0, 0, site, sizeof(Word)}));
}
template <class Word>
void store_n(Word* p, std::type_identity_t<Word> value, int order, Site site) {
  perform({Kind::store, p, order, order, static_cast<std::uint64_t>(value), 0, site, sizeof(Word)});
}
template <class Word>
Word fetch_add(Word* p, std::type_identity_t<Word> value, int order, Site site) {
  return static_cast<Word>(perform({Kind::add, p, order, order, static_cast<std::uint64_t>(value), 0, site, sizeof(Word)}));
}
template <class Word>
bool compare_exchange(Word* p, Word* expected, std::type_identity_t<Word> value, int order, int failure, Site site) {
  const Word wanted = *expected;
  *expected = static_cast<Word>(perform({Kind::swap, p, order, failure, static_cast<std::uint64_t>(value),
                                         static_cast<std::uint64_t>(wanted), site, sizeof(Word)}));
  return *expected == wanted;
}

inline void fence(int order, Site site) { perform({Kind::fence, nullptr, order, order, 0, 0, site}); }

// Calls a function of control.h on behalf of a line of ledger.cpp.
struct Calling {
  explicit Calling(const Site& site) { calling = &site; }
  ~Calling() { calling = nullptr; }
};

inline void loop_head() { perform({Kind::loop_head, nullptr, 0, 0, 0, 0, {}}); }
inline int back_to_loop_head() {
  perform({Kind::back, nullptr, 0, 0, 0, 0, {}});
  return 0;
}

}  // namespace proof

#define __atomic_load_n(p, order) proof::load_n(p, order, proof::at(__FILE__, __LINE__))
#define __atomic_store_n(p, value, order) proof::store_n(p, value, order, proof::at(__FILE__, __LINE__))
#define __atomic_fetch_add(p, value, order) proof::fetch_add(p, value, order, proof::at(__FILE__, __LINE__))
#define __atomic_compare_exchange_n(p, expected, value, weak, order, failure) \
  proof::compare_exchange(p, expected, value, order, failure, proof::at(__FILE__, __LINE__))
#define __atomic_thread_fence(order) proof::fence(order, proof::at(__FILE__, __LINE__))
#define sched_yield() proof::back_to_loop_head()
#define PROOF_CALL(file, line, text, function)                    \
  [&](auto&&... arguments) {                                      \
    static constexpr proof::Site kSite{file, line, text}; \
    proof::Calling calling_now(kSite);                            \
    return mlxhog::function(arguments...);                        \
  }
