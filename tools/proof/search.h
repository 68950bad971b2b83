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

#include <span>

#include "hooks.h"

namespace proof {

inline constexpr int kThreads = 4, kPlaces = 16, kMessages = 12, kNotes = 12;
inline constexpr std::size_t kMostStates = 3'000'000;

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
};

// One order made weaker than the source has it: of a step by its file, its name or line, and its kind.
struct Weakening {
  std::string file, step, kind, half;  // acquire, release or all; "" is no weakening
};

struct Thread {
  std::function<void()> body;
  bool mortal = false;                     // may die; of one thread
  bool starts = true;                      // runs from the beginning
  std::uint64_t pid = 0, start_time = 0;  // of its process, for `gone`
};

struct Word {
  const void* at;
  std::size_t bytes;
};

struct Scenario {
  std::string name, claim;
  std::vector<Thread> threads;
  std::vector<Word> places;                         // shared words; accesses to others order nothing
  std::function<std::string(const State&)> finish;  // of a state in which all are over: "" or what is wrong
};

struct Result {
  std::string wrong;  // and the steps to it; "" where the claim holds
  std::size_t states = 0;
  bool met = false;  // the weakened step
};

class Search {
 public:
  Search(Scenario scenario, Weakening weakening);
  Result run();

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

  int child(int thread, int node, std::uint64_t value);
  int make_node(int thread, int parent, std::uint64_t value, int head);
  void find_next(int thread, Node& node);
  void weaken(Step& step);
  std::string settle(State& state, int thread);  // carries out steps that nobody sees
  std::string finish(const State& state) const;
  void prune(State& state) const;
  template <class Visit>
  void successors(const State& state, Visit visit);
  template <class Go>
  void access(const State& state, int thread, const Step& step, int place, Go go) const;

  Scenario scenario_;
  Weakening weakening_;
  bool met_ = false;
  std::array<std::vector<Node>, kThreads> nodes_;
};

// The scenarios, by the functions that make them; making one also sets the memory before its run.
using Make = Scenario (*)();
std::span<const Make> scenarios();

// For scenarios.
inline void start_thread(int thread) { perform({Kind::start, nullptr, 0, 0, static_cast<std::uint64_t>(thread), 0, {}}); }
inline void wait_for(int thread) { perform({Kind::join, nullptr, 0, 0, static_cast<std::uint64_t>(thread), 0, {}}); }
inline void note(int which) { perform({Kind::note, nullptr, 0, 0, static_cast<std::uint64_t>(which), 0, {}}); }
void require(bool holds, const char* claim);

}  // namespace proof
