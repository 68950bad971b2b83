// The ticket ledger in atomics; see ledger.h. Any process may be killed between any two lines.
#include "ledger.h"

#include <algorithm>
#include <string>

#include "control.h"

namespace mlxhog {

namespace {

constexpr int kOwnerShift = 40;
constexpr int kLapShift = 3;
constexpr uint64_t kLapMask = (uint64_t{1} << (kOwnerShift - kLapShift)) - 1;
constexpr uint64_t kStateMask = 7;

[[noreturn]] void corrupt(const std::string& what) {
  throw CorruptLedger("the ticket ledger in shared memory is corrupt: " + what +
                      "; end the run and resume it from its last checkpoint");
}

}  // namespace

uint64_t TicketLedger::word(uint64_t ticket, TicketState state, uint32_t owner) const {
  const uint64_t lap = ticket / ring_ & kLapMask;
  return uint64_t{owner} << kOwnerShift | lap << kLapShift | static_cast<uint64_t>(state);
}

// A word of an earlier lap means that this lap's ticket is still free: no slot is ever cleared.
TicketState TicketLedger::state_in(uint64_t word, uint64_t ticket) const {
  if ((word >> kLapShift & kLapMask) != (ticket / ring_ & kLapMask)) return TicketState::kFree;
  const auto state = static_cast<TicketState>(word & kStateMask);
  if (state > TicketState::kDone)
    corrupt("ticket " + std::to_string(ticket) + " is in state " + std::to_string(word & kStateMask));
  return state;
}

// `next` is read first. Its writer had seen a watermark at most a ring below, and the watermark
// only grows: so no correct ledger shows more than a ring, and no loop over the window is longer.
TicketLedger::Window TicketLedger::window() const {
  const uint64_t end = load(&words_->next.value);
  const uint64_t low = load(&words_->watermark.value);
  const bool passed = low > end;  // by others, between the two loads; they raised `next` first
  if (passed ? load(&words_->next.value) < low : end - low > ring_) {
    corrupt("next is " + std::to_string(end) + " and the watermark " + std::to_string(low) + ", with a ring of " +
            std::to_string(ring_));
  }
  return {low, end};
}

// The word to swap out, if `ticket` is free. The watermark is read after the word: had the ticket
// been done by others and its slot moved on to a later lap, the watermark would have passed it.
std::optional<uint64_t> TicketLedger::free_word(uint64_t ticket) const {
  const uint64_t now = load(slot(ticket));
  if (state_in(now, ticket) != TicketState::kFree) return std::nullopt;
  if (load(&words_->watermark.value) > ticket) return std::nullopt;
  return now;
}

bool TicketLedger::move(uint64_t ticket, uint32_t owner, TicketState from, TicketState to) {
  return cas(slot(ticket), word(ticket, from, owner), word(ticket, to, owner));
}

// Every finisher tries, with any ticket, so that a death before the last line loses nothing. One ring
// of turns passes all tickets that were done at the start, since each turn saw the watermark rise.
//
// Fence: of two workers that finish neighboring tickets at once, each might else read the other's slot as it
// was before, and no process would move the watermark. After the later of two fences, a worker sees the writes
// before the earlier one.
void TicketLedger::advance() {
  __atomic_thread_fence(__ATOMIC_SEQ_CST);
  for (uint64_t turn = 0; turn < ring_; ++turn) {
    const uint64_t low = load(&words_->watermark.value);
    if (state_in(load(slot(low)), low) != TicketState::kDone) return;
    cas(&words_->watermark.value, low, low + 1);
  }
}

// `returns` counts returns ever announced, `noticed` the count that a fruitless scan had seen: both
// only grow, so no death and no race can leave a returned ticket unseen.
std::optional<uint64_t> TicketLedger::claim_returned(uint32_t owner, uint64_t end) {
  const uint64_t announced = load(&words_->returns.value);
  if (announced == load(&words_->noticed.value)) return std::nullopt;
  const auto [low, next] = window();
  end = std::min(end, next);
  for (uint64_t ticket = low; ticket < end; ++ticket) {
    const uint64_t now = load(slot(ticket));
    if (state_in(now, ticket) == TicketState::kReturned &&
        cas(slot(ticket), now, word(ticket, TicketState::kLeased, owner))) {
      return ticket;
    }
  }
  raise(&words_->noticed.value, announced);
  return std::nullopt;
}

std::optional<uint64_t> TicketLedger::claim(uint32_t owner, uint64_t end) {
  if (const auto ticket = claim_returned(owner, end)) return ticket;
  for (;;) {
    const auto [low, ticket] = window();
    if (low > ticket) continue;  // others have gone on meanwhile
    if (ticket >= end) return std::nullopt;
    if (ticket - low == ring_) {
      advance();  // its last finisher may have died before advancing
      if (load(&words_->watermark.value) == low) return std::nullopt;
      continue;
    }
    if (!cas(&words_->next.value, ticket, ticket + 1)) continue;
    const auto free = free_word(ticket);
    if (free && cas(slot(ticket), *free, word(ticket, TicketState::kLeased, owner))) return ticket;
    // Too slow: the ticket was taken for an orphan and returned. Take another one.
  }
}

bool TicketLedger::claim_exact(uint64_t ticket, uint32_t owner) {
  advance();
  const uint64_t low = window().low;
  if (ticket < low || ticket - low >= ring_) return false;
  // First: a lease at or above `next` would be invisible to `reap`.
  raise(&words_->next.value, ticket + 1);
  const uint64_t leased = word(ticket, TicketState::kLeased, owner);
  const auto free = free_word(ticket);
  if (free && cas(slot(ticket), *free, leased)) return true;
  // It has come back, or was just taken for an orphan and returned.
  const uint64_t now = load(slot(ticket));
  return state_in(now, ticket) == TicketState::kReturned && cas(slot(ticket), now, leased);
}

bool TicketLedger::begin_apply(uint64_t ticket, uint32_t owner) {
  return move(ticket, owner, TicketState::kLeased, TicketState::kApplying);
}

bool TicketLedger::finish(uint64_t ticket, uint32_t owner) {
  const bool moved = move(ticket, owner, TicketState::kApplying, TicketState::kDone);
  advance();
  return moved;
}

bool TicketLedger::give_back(uint64_t ticket, uint32_t owner) {
  if (!move(ticket, owner, TicketState::kLeased, TicketState::kReturned)) return false;
  add(&words_->returns.value, uint64_t{1});
  return true;
}

TicketLedger::Reaped TicketLedger::reap(uint32_t owner) {
  Reaped found{0, 0};
  const auto [low, end] = window();
  for (uint64_t ticket = low; ticket < end; ++ticket) {
    const uint64_t now = load(slot(ticket));
    if (now >> kOwnerShift != owner) continue;
    if (move(ticket, owner, TicketState::kLeased, TicketState::kReturned)) ++found.returned;
    else if (move(ticket, owner, TicketState::kApplying, TicketState::kDone)) ++found.torn;
  }
  if (found.torn) add(&words_->torn.value, found.torn);
  if (found.returned) add(&words_->returns.value, found.returned);
  advance();
  return found;
}

std::vector<uint64_t> TicketLedger::orphans() const {
  std::vector<uint64_t> found;
  const auto [low, end] = window();
  for (uint64_t ticket = low; ticket < end; ++ticket)
    if (free_word(ticket)) found.push_back(ticket);
  return found;
}

bool TicketLedger::return_orphan(uint64_t ticket) {
  if (ticket >= load(&words_->next.value)) return false;
  const auto free = free_word(ticket);
  if (!free || !cas(slot(ticket), *free, word(ticket, TicketState::kReturned, 0))) return false;
  add(&words_->returns.value, uint64_t{1});
  return true;
}

void TicketLedger::announce_returns() {
  const uint64_t announced = load(&words_->returns.value);
  if (announced != load(&words_->noticed.value)) return;
  const auto [low, end] = window();
  for (uint64_t ticket = low; ticket < end; ++ticket) {
    if (state_in(load(slot(ticket)), ticket) == TicketState::kReturned) {
      add(&words_->returns.value, uint64_t{1});
      return;
    }
  }
}

// The watermark is read last: a ticket at or above it cannot have had its slot reused before.
TicketState TicketLedger::state(uint64_t ticket) const {
  const TicketState found = state_in(load(slot(ticket)), ticket);
  const uint64_t low = load(&words_->watermark.value);
  if (ticket < low) return TicketState::kDone;
  return ticket - low < ring_ ? found : TicketState::kFree;
}

uint64_t TicketLedger::watermark() const { return load(&words_->watermark.value); }

TicketLedger::Position TicketLedger::position() const {
  Position found{0, {}, load(&words_->torn.value)};
  const auto [low, end] = window();
  for (uint64_t ticket = low; ticket < end; ++ticket)
    if (state_in(load(slot(ticket)), ticket) == TicketState::kDone) found.done.push_back(ticket);
  found.watermark = load(&words_->watermark.value);  // again: everything below is done by now
  size_t below = 0;
  while (below < found.done.size() && found.done[below] < found.watermark) ++below;
  found.done.erase(found.done.begin(), found.done.begin() + static_cast<ptrdiff_t>(below));
  return found;
}

void TicketLedger::restore(const Position& position) {
  for (uint64_t i = 0; i < ring_; ++i) store(slots_ + i, uint64_t{0});
  const uint64_t low = position.watermark;
  const uint64_t next = position.done.empty() ? low : position.done.back() + 1;
  for (uint64_t ticket = low; ticket < next; ++ticket) store(slot(ticket), word(ticket, TicketState::kReturned, 0));
  for (const uint64_t ticket : position.done) store(slot(ticket), word(ticket, TicketState::kDone, 0));
  store(&words_->torn.value, position.torn);
  store(&words_->noticed.value, uint64_t{0});
  store(&words_->returns.value, uint64_t{next > low});
  store(&words_->watermark.value, low);
  store(&words_->next.value, next);
  advance();
}

}  // namespace mlxhog
