// The ticket ledger's atomics. The state machine, the words and the reasoning are in the docstring of
// mlxhog/arena/ledger.py; here a ticket is its number since the beginning of training, `epoch * n + ticket`.
#pragma once

#include <cstdint>
#include <optional>
#include <stdexcept>
#include <vector>

namespace mlxhog {

enum class TicketState : uint32_t { kFree = 0, kLeased = 1, kApplying = 2, kReturned = 3, kDone = 4 };

// Control words, each on a cache line of its own; the table in mlxhog/arena/ledger.py.
struct alignas(128) LedgerLine {
  uint64_t value;
};
struct LedgerWords {
  LedgerLine next;
  LedgerLine watermark;
  LedgerLine returns;
  LedgerLine noticed;
  LedgerLine torn;
};

// The shared memory holds values that no order of correct processes could have written.
struct CorruptLedger : std::runtime_error {
  using std::runtime_error::runtime_error;
};

class TicketLedger {
 public:
  struct Reaped {
    uint64_t returned;
    uint64_t torn;
  };
  struct Position {
    uint64_t watermark;
    std::vector<uint64_t> done;  // tickets above the watermark, ascending
    uint64_t torn;
  };

  // Tickets that fit the lap number of a slot: laps never repeat, so neither does the word of a slot
  // that a slow process compares and swaps.
  static constexpr uint64_t kLaps = uint64_t{1} << 37;

  // Every method may throw CorruptLedger, and none loops longer than the ring is.
  // `words` and `slots` are shared memory; `ring`, the number of slots, is a power of two.
  TicketLedger(LedgerWords* words, uint64_t* slots, uint64_t ring) : words_(words), slots_(slots), ring_(ring) {}

  // The next ticket below `end`, one that came back first.
  std::optional<uint64_t> claim(uint32_t owner, uint64_t end = UINT64_MAX);
  bool claim_exact(uint64_t ticket, uint32_t owner);
  bool begin_apply(uint64_t ticket, uint32_t owner);
  bool finish(uint64_t ticket, uint32_t owner);
  bool give_back(uint64_t ticket, uint32_t owner);

  // Only after the owner has been waited for: its tickets must not move any more.
  Reaped reap(uint32_t owner);
  // Tickets below `next` without a lease: their claimer is between two instructions, or dead.
  std::vector<uint64_t> orphans() const;
  bool return_orphan(uint64_t ticket);
  // Repairs a return whose author died before announcing it.
  void announce_returns();

  TicketState state(uint64_t ticket) const;
  uint64_t watermark() const;
  Position position() const;
  // No other process may use the ledger meanwhile.
  void restore(const Position& position);

 private:
  // Every ticket below `low` is done, and none at or above `end` has been handed out.
  struct Window {
    uint64_t low;
    uint64_t end;
  };

  uint64_t* slot(uint64_t ticket) const { return slots_ + (ticket & (ring_ - 1)); }
  uint64_t word(uint64_t ticket, TicketState state, uint32_t owner) const;
  TicketState state_in(uint64_t word, uint64_t ticket) const;
  Window window() const;
  std::optional<uint64_t> free_word(uint64_t ticket) const;
  bool move(uint64_t ticket, uint32_t owner, TicketState from, TicketState to);
  std::optional<uint64_t> claim_returned(uint32_t owner, uint64_t end);
  void advance();

  LedgerWords* words_;
  uint64_t* slots_;
  uint64_t ring_;
};

}  // namespace mlxhog
