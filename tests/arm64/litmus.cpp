// Threads on the arena's words, for test_qemu.py:
//
//   litmus marks WRITES          copies that the marks called whole, and those of them that mix two writes
//   litmus ledger TICKETS        tickets that were not done exactly once, and the watermark
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <thread>
#include <vector>

#include "control.h"
#include "ledger.h"

namespace {

using mlxhog::LedgerLine;
using Word = std::uint64_t;

void put(Word& word, Word value) { __atomic_store_n(&word, value, __ATOMIC_RELAXED); }
Word get(const Word& word) { return __atomic_load_n(&word, __ATOMIC_RELAXED); }

void marks(Word writes) {
  LedgerLine mark{};
  std::vector<Word> words(64);
  std::thread writer([&] {
    for (Word k = 1; k <= writes; ++k) {
      mlxhog::begin_writing(&mark.value);
      for (Word& word : words) put(word, k);
      mlxhog::end_writing(&mark.value);
      std::this_thread::yield();
    }
  });
  Word whole = 0, mixed = 0, before, after;
  for (std::vector<Word> copy(words.size()); get(mark.value) < 2 * writes;) {
    if (!mlxhog::nobody_writes(&mark.value, 1, 1, &before)) continue;
    std::transform(words.begin(), words.end(), copy.begin(), get);
    if (!mlxhog::nobody_writes(&mark.value, 1, 1, &after) || before != after) continue;
    ++whole;
    mixed += std::count(copy.begin(), copy.end(), copy[0]) != static_cast<std::ptrdiff_t>(copy.size());
  }
  writer.join();
  std::printf("%ju %ju\n", static_cast<std::uintmax_t>(whole), static_cast<std::uintmax_t>(mixed));
}

void ledger(Word tickets) {
  constexpr Word kRing = 16;  // so small that every slot is used again and again
  mlxhog::LedgerWords words{};
  std::vector<Word> slots(kRing), done(tickets);
  std::vector<std::thread> workers;
  for (std::uint32_t owner = 1; owner <= 3; ++owner)
    workers.emplace_back([&, owner] {
      mlxhog::TicketLedger own(&words, slots.data(), kRing);
      for (Word taken = 0; own.watermark() < tickets;) {
        const auto ticket = own.claim(owner, tickets);
        if (!ticket) {
          std::this_thread::yield();
        } else if (++taken % 5 == 0) {
          own.give_back(*ticket, owner);
        } else if (own.begin_apply(*ticket, owner)) {
          put(done[*ticket], get(done[*ticket]) + 1);  // as its only holder: a second one's would be lost or seen
          own.finish(*ticket, owner);
        }
      }
    });
  for (std::thread& worker : workers) worker.join();
  const auto wrong = std::count_if(done.begin(), done.end(), [](Word times) { return times != 1; });
  std::printf("%td %ju\n", wrong, static_cast<std::uintmax_t>(words.watermark.value));
}

}  // namespace

int main(int argc, char** argv) {
  const auto is = [&](const char* name, int arguments) {
    return argc == 2 + arguments && std::strcmp(argv[1], name) == 0;
  };
  if (is("marks", 1)) return marks(std::strtoull(argv[2], nullptr, 10)), 0;
  if (is("ledger", 1)) return ledger(std::strtoull(argv[2], nullptr, 10)), 0;
  return 2;
}
