// Every run of a few threads on C++'s weak memory, one state at a time.
//
// Memory is the operational form of C++ release-acquire and relaxed atomics (views; Kang et al. 2017, A Promising
// Semantics, without promises): a location is a list of messages in modification order; a thread may read any
// message that is not older than the newest it knows of, and a message written with release order carries what
// its writer knew. What this leaves out is a load that sees a store which comes later in the run (load buffering).
//
// A thread is the real code. Its next step depends on nothing but the values its steps have read, so it is found
// by running the code from its beginning with those values and an exception at the first step without one.
// A process may die before any step. Two runs that end in one state (what each thread has read, what memory
// holds) go on in the same ways, and only the first is followed.
#pragma once

#include "hooks.h"

namespace proof {

inline constexpr int kThreads = 4, kPlaces = 16, kMessages = 12, kNotes = 12;

// The newest message of each location that is known.
using View = std::array<std::uint8_t, kPlaces>;

struct Message {
  std::uint64_t value = 0;
  View view{};
  bool swapped = false;  // written by a read-modify-write on the message before it: nothing goes between
};

struct Place {
  std::uint8_t count = 0;
  std::array<Message, kMessages> messages;
};

enum class Life : std::uint8_t { waiting, running, over, dead };

struct State {
  std::array<int, kThreads> node{};
  std::array<Life, kThreads> life{};
  std::array<View, kThreads> view{};
  std::array<Place, kPlaces> memory;
  View fenced{};  // what the threads that passed a fence knew
  std::array<std::uint8_t, kNotes> notes{};
  int deaths = 0;
};

// One order made weaker than the source has it.
struct Weakening {
  Site site{};
  Kind kind = Kind::load;
  enum Half { none, acquire, release, failure, all } half = none;
};

struct Scenario {
  std::string name, claim;
  std::vector<std::function<void()>> threads;
  std::vector<bool> mortal, starts;                 // may die; runs from the beginning
  std::vector<const void*> places;                  // shared words; accesses to others order nothing
  std::vector<int> widths;                          // bytes of each place
  std::function<std::string(const State&)> finish;  // of a state in which all are over: "" or what is wrong
  int deaths = 0;                                   // at most
  std::vector<std::uint64_t> pids{};                // of each thread's process, for `gone`
  std::vector<std::uint64_t> start_times{};
};

struct Result {
  std::string wrong;  // "" where the claim holds
  std::size_t states = 0;
  std::vector<std::string> run;  // the steps to what is wrong
};

class Search {
 public:
  explicit Search(Scenario scenario);
  Result run(const Weakening& weakening, std::size_t most_states);
  // Every step with an order, met in any run so far.
  const std::vector<Step>& ordered_steps() const { return ordered_; }

 private:
  struct Node {
    int parent;
    std::uint64_t value;
    int head;  // the node of the loop head that is in force
    bool over = false;
    std::string wrong;
    Step next{};
    int place = -1;
    std::unordered_map<std::uint64_t, int> children;
  };
  struct Known {
    int parent;
    int thread;
    std::string step;
  };

  int child(int thread, int node, std::uint64_t value);
  int make_node(int thread, int parent, std::uint64_t value, int head);
  void find_next(int thread, int node);
  std::string settle(State& state, int thread);  // carries out steps that nobody sees
  std::string finish(const State& state);
  void prune(State& state) const;
  template <class Visit>
  void successors(const State& state, const Weakening& weakening, Visit visit);

  Scenario scenario_;
  std::array<std::vector<Node>, kThreads> nodes_;
  std::vector<Step> ordered_;
};

// For scenarios.
inline void start_thread(int thread) { perform({Kind::start, nullptr, 0, 0, static_cast<std::uint64_t>(thread), 0, {}}); }
inline void wait_for(int thread) { perform({Kind::join, nullptr, 0, 0, static_cast<std::uint64_t>(thread), 0, {}}); }
inline void note(int which) { perform({Kind::note, nullptr, 0, 0, static_cast<std::uint64_t>(which), 0, {}}); }
void require(bool holds, const char* claim);
bool same_site(const Site& a, const Site& b);

}  // namespace proof
