// What is searched: the real locks and ticket ledger, run by a few workers, their supervisor and an observer.
//
// Bounds: at most four threads of one or two rounds, rings of one or two slots, one death. Two things are
// smaller than in the source: kSpins is 1 and kProbeAfterNs 0, so that a waiter asks about the owner at once.
#include "arena/control.h"
#include "arena/ledger.h"
#include "search.h"
#include "updates/locks.h"

namespace mlxhog {

// In place of process_life.cpp: time stands still, and the search knows who is dead.
std::uint64_t monotonic_ns() { return 0; }

bool process_is_gone(std::int64_t pid, std::uint64_t start_time) {
  if (pid <= 0) return false;
  return proof::perform({proof::Kind::gone, nullptr, 0, 0, static_cast<std::uint64_t>(pid), start_time, {}}) != 0;
}

}  // namespace mlxhog

namespace {

using namespace mlxhog;
using proof::note;
using proof::require;
using proof::Scenario;
using proof::start_thread;
using proof::State;
using proof::wait_for;

using Body = std::function<void()>;

constexpr bool kMortal = true;

// The shared memory of one scenario; its values before the run.
struct Shared {
  LedgerWords ledger{};
  std::uint64_t slots[2]{};
  std::uint32_t locks[1]{};
  WorkerEntry workers[4]{};
  std::uint64_t data[6]{};
};
Shared shared;

template <class... Words>
void add_places(Scenario& s, const Words&... words) {
  (s.places.push_back({&words, sizeof(Words)}), ...);
}

// Parameters are read and written in no order: what makes them visible is what is checked.
std::uint64_t read_data(std::size_t i) { return __atomic_load_n(&shared.data[i], __ATOMIC_RELAXED); }
void write_data(std::size_t i, std::uint64_t value) { __atomic_store_n(&shared.data[i], value, __ATOMIC_RELAXED); }

// ---- locks ----------------------------------------------------------------------------------------

constexpr int kAdds = 0;  // note: an element was written
constexpr std::uint32_t kFirst = 1, kSecond = 2;  // generations of a slot

// A worker that adds under the lock.
Body adds(std::uint32_t slot, std::uint32_t generation = kFirst, int rounds = 1) {
  return [=] {
    Locks locks(shared.locks, 1, shared.workers, 4, slot, generation);
    for (int r = 0; r < rounds; ++r) {
      locks.lock(0);
      write_data(0, read_data(0) + 1);
      note(kAdds);
      locks.unlock(0);
    }
  };
}

// A release store of mlxhog/arena/workers.py, which goes through the binding of control.h's `store`.
#define STORED(text) PROOF_CALL("workers.py", 0, text, store)

// WorkerTable.mark_dead.
void mark_dead(std::uint32_t slot) { STORED("mark_dead: dead = 1")(&shared.workers[slot - 1].dead, std::uint32_t{1}); }

// WorkerTable.acquire_slot.
void acquire_slot(std::uint32_t slot) {
  WorkerEntry& entry = shared.workers[slot - 1];
  STORED("acquire_slot: pid = 0")(&entry.pid, std::int64_t{0});
  sweep_locks(shared.locks, 1, slot, -1);
  STORED("acquire_slot: generation += 1")(&entry.generation, kSecond);
  STORED("acquire_slot: dead = 0")(&entry.dead, std::uint32_t{0});
  __atomic_store_n(&entry.start_time, 0, __ATOMIC_RELAXED);
}

// WorkerTable.set_process.
void set_process(std::uint32_t slot, std::int64_t pid, std::uint64_t start_time) {
  WorkerEntry& entry = shared.workers[slot - 1];
  __atomic_store_n(&entry.start_time, start_time, __ATOMIC_RELAXED);
  STORED("set_process: pid = pid")(&entry.pid, pid);
}

std::string all_adds_are_there(const State& state) {
  return read_data(0) == state.notes[kAdds] ? "" : "an add under the lock is lost";
}

template <class... Words>
Scenario lock_scenario(const char* name, const char* claim, std::vector<proof::Thread> threads, const Words&... words) {
  shared = {};
  for (auto& entry : shared.workers) entry.generation = kFirst;
  shared.workers[0].pid = static_cast<std::int64_t>(threads[0].pid), shared.workers[0].start_time = threads[0].start_time;
  Scenario s{name, claim, std::move(threads), {}, all_adds_are_there};
  add_places(s, shared.locks[0], shared.data[0], words...);
  return s;
}

WorkerEntry& first_entry = shared.workers[0];

Scenario exclusion() {
  return lock_scenario("exclusion", "three workers and one lock: every add is kept",
                       {{adds(1, kFirst, 2)}, {adds(2)}, {adds(3)}});
}

Scenario takeover() {
  const Body reap = [] {
    wait_for(0);
    mark_dead(1);
  };
  return lock_scenario("takeover", "a worker dies anywhere and is reaped: the others go on and lose no add",
                       {{adds(1), kMortal}, {adds(2)}, {adds(3)}, {reap}}, first_entry.dead);
}

Scenario replacement() {
  const Body replace = [] {
    wait_for(0);
    mark_dead(1);
    acquire_slot(1);
    start_thread(3);
    set_process(1, 104, 9);
  };
  return lock_scenario("replacement", "the dead worker's slot goes to a new one: nobody mistakes it for the dead",
                       {{adds(1), kMortal, true, 101, 7}, {adds(2)}, {replace}, {adds(1, kSecond), false, false, 104, 9}},
                       first_entry.dead, first_entry.generation, first_entry.pid, first_entry.start_time);
}

Scenario orphaned() {
  return lock_scenario("no supervisor", "nobody reaps the dead worker: the kernel's word is enough",
                       {{adds(1), kMortal, true, 101, 7}, {adds(2)}, {adds(3)}}, first_entry.dead, first_entry.pid,
                       first_entry.start_time);
}

Scenario swept() {
  const Body sweep = [] {
    wait_for(0);
    sweep_locks(shared.locks, 1, 1, -1);
  };
  return lock_scenario("sweep", "the supervisor frees a dead worker's locks while another waits for one",
                       {{adds(1), kMortal}, {adds(2)}, {sweep}});
}

// ---- the ticket ledger ----------------------------------------------------------------------------

TicketLedger ledger(std::uint64_t ring) { return TicketLedger(&shared.ledger, shared.slots, ring); }

constexpr std::uint32_t kMender = 99;

// One ticket's update: data[ticket] = 1; note(ticket) counts it.
void apply(TicketLedger& tickets, std::uint64_t ticket, std::uint32_t owner) {
  require(tickets.begin_apply(ticket, owner), "a lease was lost while its owner lived");
  write_data(ticket, 1);
  note(static_cast<int>(ticket));
  require(tickets.finish(ticket, owner), "a ticket was taken from the living worker that applied it");
}

// A worker that takes tickets below `end`.
Body works(std::uint64_t ring, std::uint32_t owner, int rounds = 1, std::uint64_t end = UINT64_MAX) {
  return [=] {
    TicketLedger tickets = ledger(ring);
    for (int r = 0; r < rounds; ++r) {
      const auto ticket = tickets.claim(owner, end);
      if (!ticket) return;
      require(*ticket < end, "a ticket behind the end of the budget was handed out");
      apply(tickets, *ticket, owner);
    }
  };
}

// A worker that takes a ticket and returns it.
Body returns(std::uint32_t owner) {
  return [=] {
    TicketLedger tickets = ledger(2);
    const auto ticket = tickets.claim(owner);
    if (ticket) require(tickets.give_back(*ticket, owner), "a lease was lost while its owner lived");
  };
}

void sweep(std::uint64_t ring) {
  TicketLedger tickets = ledger(ring);
  for (const std::uint64_t ticket : tickets.orphans()) tickets.return_orphan(ticket);
  tickets.announce_returns();
}

// The supervisor, once worker 1 has ended.
Body reaps(std::uint64_t ring, Body then = [] {}) {
  return [=] {
    wait_for(0);
    ledger(ring).reap(1);
    sweep(ring);
    then();
  };
}

// Who knows that these tickets are done sees their updates.
void require_updates(std::uint64_t begin, std::uint64_t end, const char* claim) {
  for (std::uint64_t ticket = begin; ticket < end; ++ticket) require(read_data(ticket) == 1, claim);
}

// What is left is worked off; then every ticket has been done once, or died half applied.
std::string all_tickets_once(const State& state, std::uint64_t ring) {
  TicketLedger tickets = ledger(ring);
  const std::uint64_t end = load(&shared.ledger.next.value);
  std::vector<int> times(state.notes.begin(), state.notes.end());
  for (;;) {
    const auto ticket = tickets.claim(kMender);
    if (!ticket) return "a ticket is lost: nobody can go on";
    if (*ticket >= end) break;
    if (!tickets.begin_apply(*ticket, kMender) || !tickets.finish(*ticket, kMender)) return "a ticket is held twice";
    ++times[*ticket];
  }
  if (tickets.watermark() < end) return "a ticket is lost: the watermark stays behind";
  std::uint64_t missing = 0;
  for (std::uint64_t ticket = 0; ticket < end; ++ticket) {
    if (times[ticket] > 1) return "a ticket was applied twice";
    missing += times[ticket] == 0;
  }
  return missing <= load(&shared.ledger.torn.value) ? "" : "a ticket is lost: nobody applied it";
}

// `updates` is of a scenario that reads the first two updates.
Scenario ledger_scenario(const char* name, const char* claim, std::vector<proof::Thread> threads,
                         std::uint64_t ring = 2, bool updates = false) {
  shared = {};
  Scenario s{name, claim, std::move(threads), {}, [=](const State& state) { return all_tickets_once(state, ring); }};
  LedgerWords& words = shared.ledger;
  add_places(s, words.next.value, words.watermark.value, words.returns.value, words.noticed.value, words.torn.value);
  for (std::uint64_t i = 0; i < ring; ++i) add_places(s, shared.slots[i]);
  if (updates) add_places(s, shared.data[0], shared.data[1]);
  return s;
}

Scenario laps() {
  return ledger_scenario("laps", "two workers go round a ring of two: every ticket once",
                         {{works(2, 1, 2)}, {works(2, 2)}});
}

Scenario slow_claimer() {
  const Body sweeps_and_works = [] {
    sweep(1);
    works(1, 2, 2)();
  };
  return ledger_scenario("slow claimer", "a claimer is taken for dead and others go round the ring: every ticket once",
                         {{works(1, 1)}, {sweeps_and_works}}, 1);
}

Scenario death() {
  return ledger_scenario("death", "a worker dies anywhere, is reaped and swept after: every ticket once or torn",
                         {{works(1, 1), kMortal}, {works(1, 2)}, {reaps(1)}}, 1);
}

Scenario checkpoint() {
  const Body observe = [] {
    const char* const claim = "position() counts a ticket whose update is not visible";
    const auto [watermark, done, torn] = ledger(2).position();
    require_updates(0, watermark, claim);
    for (const std::uint64_t ticket : done) require_updates(ticket, ticket + 1, claim);
  };
  return ledger_scenario("checkpoint", "whoever learns that a ticket is done sees its update",
                         {{works(2, 1)}, {works(2, 2)}, {observe}}, 2, true);
}

Scenario watcher() {
  const Body states = [] {
    for (const std::uint64_t ticket : {0, 1})
      if (ledger(2).state(ticket) == TicketState::kDone)
        require_updates(ticket, ticket + 1, "state() says DONE before the update is visible");
  };
  const Body watermark = [] {
    require_updates(0, ledger(2).watermark(), "watermark() passed an update that is not visible");
  };
  return ledger_scenario("watcher", "state() and watermark() call a ticket done only with its update",
                         {{works(2, 1, 2)}, {states}, {watermark}}, 2, true);
}

Scenario given_back() {
  return ledger_scenario("give back", "a returned ticket is found again without a sweep",
                         {{returns(1)}, {works(2, 2, 2)}});
}

Scenario returns_race() {
  return ledger_scenario("two returns", "returned tickets are found while others search for them",
                         {{returns(1)}, {returns(2)}});
}

Scenario unannounced() {
  return ledger_scenario("unannounced", "a worker dies between returning a ticket and saying so: it is found",
                         {{returns(1), kMortal}, {works(2, 2)}, {reaps(2)}});
}

// Takes a certain ticket.
void deal(std::uint64_t ticket, std::uint32_t owner) {
  TicketLedger tickets = ledger(2);
  if (tickets.claim_exact(ticket, owner)) apply(tickets, ticket, owner);
}

Scenario dealt() {
  const Body supervise = [] {
    deal(1, 2);
    wait_for(0);
    ledger(2).reap(1);
    deal(0, 3);
  };
  return ledger_scenario("dealt tickets", "tickets dealt to workers, one of which dies: every ticket once or torn",
                         {{[] { deal(0, 1); }, kMortal}, {supervise}});
}

Scenario dealt_orphan() {
  const Body takes = [] {
    TicketLedger tickets = ledger(2);
    require(tickets.claim_exact(0, 1), "a ticket was refused that nobody had");
    apply(tickets, 0, 1);
  };
  return ledger_scenario("dealt orphan", "a dealt ticket is taken for an orphan: its worker gets it all the same",
                         {{takes}, {[] { sweep(2); }}});
}

Scenario round_robin() {
  const Body second = [] {
    TicketLedger tickets = ledger(2);
    if (!tickets.claim_exact(1, 2)) return;
    if (tickets.state(0) == TicketState::kDone) require_updates(0, 1, "the turn came before the update of the turn before");
    apply(tickets, 1, 2);
  };
  return ledger_scenario("round robin", "turns by state(): the next worker sees the update of the one before",
                         {{[] { deal(0, 1); }}, {second}}, 2, true);
}

// The budget of a run in steps is an end among its tickets.
constexpr std::uint64_t kBudget = 1;

Scenario budget() {
  const auto spends = [](std::uint32_t owner) { return works(2, owner, 1, kBudget); };
  Scenario s = ledger_scenario(
      "budget", "a worker dies, others go on: no ticket behind the budget's end, the one before it once or torn",
      {{spends(1), kMortal}, {spends(2)}, {reaps(2, spends(3))}});
  s.finish = [once = s.finish](const State& state) -> std::string {
    if (load(&shared.ledger.next.value) > kBudget) return "a ticket behind the end of the budget was handed out";
    return once(state);
  };
  return s;
}

constexpr proof::Make kScenarios[] = {exclusion,   takeover, replacement, orphaned,     swept,       laps,
                                      slow_claimer, death,    checkpoint,  watcher,      given_back,  returns_race,
                                      unannounced,  dealt,    dealt_orphan, round_robin, budget};

}  // namespace

std::span<const proof::Make> proof::scenarios() { return kScenarios; }
