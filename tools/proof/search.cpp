#include "search.h"

namespace proof {

const Site* calling = nullptr;

namespace {

constexpr const char* kKinds[] = {"load", "store", "add", "swap", "fence", "", "", "start", "join", "gone", "note"};

// The values to run a thread with; null while `finish` works on memory itself.
const std::vector<std::uint64_t>* given = nullptr;
std::size_t used = 0;

// Memory while `finish` runs, one thread alone.
std::unordered_map<const void*, std::uint64_t> last;

bool has(int order, int half) { return order == half || order == __ATOMIC_ACQ_REL || order == __ATOMIC_SEQ_CST; }

void learn(View& view, const View& more) {
  for (int i = 0; i < kPlaces; ++i) view[i] = std::max(view[i], more[i]);
}

// Calls change(view) for every view of a state.
template <class Change>
void each_view(State& state, const Change& change) {
  for (View& view : state.view) change(view);
  change(state.fenced);
  for (Place& place : state.memory)
    for (int i = 0; i < place.count; ++i) change(place.messages[i].view);
}

// Writes at `at` with or without release; `base` is what a read-modify-write passes on of the message it read.
void write(State& state, int thread, int place, int at, std::uint64_t value, bool release, const View* base) {
  Place& p = state.memory[place];
  if (p.count == kMessages) throw std::length_error("too many messages in one place: raise kMessages");
  View known = base ? *base : View{};
  std::move_backward(p.messages.begin() + at, p.messages.begin() + p.count, p.messages.begin() + p.count + 1);
  ++p.count;
  p.messages[at] = {};
  each_view(state, [&](View& view) {  // everybody's positions behind it move
    if (view[place] >= at) ++view[place];
  });
  Message& made = p.messages[at];
  made = {value, known, base != nullptr};
  made.view[place] = state.view[thread][place] = static_cast<std::uint8_t>(at);
  if (release) learn(made.view, state.view[thread]);
}

std::uint64_t narrowed(std::uint64_t value, int width) {
  return width == 8 ? value : value & ((std::uint64_t{1} << (8 * width)) - 1);
}

std::uint64_t value_before(const void* at, std::size_t bytes) {
  std::uint64_t value = 0;
  std::memcpy(&value, at, bytes);
  return value;
}

struct Digest {
  std::uint64_t a = 0x9e3779b97f4a7c15, b = 0xc2b2ae3d27d4eb4f;
  void add(std::uint64_t x) {
    a = (a ^ x) * 0xff51afd7ed558ccd;
    a ^= a >> 32;
    b = (b + x) * 0xc4ceb9fe1a85ec53;
    b ^= b >> 29;
  }
  void add(const View& view) {
    for (int i = 0; i < kPlaces; i += 8) add(value_before(view.data() + i, 8));
  }
  bool operator==(const Digest&) const = default;
};

struct DigestHash {
  std::size_t operator()(const Digest& d) const { return d.a; }
};

Digest digest(const State& state, std::size_t threads, std::size_t places) {
  Digest d;
  for (std::size_t t = 0; t < threads; ++t) {
    d.add(static_cast<std::uint64_t>(state.node[t]) << 8 | static_cast<std::uint64_t>(state.life[t]));
    d.add(state.view[t]);
  }
  for (std::size_t p = 0; p < places; ++p) {
    d.add(state.memory[p].count);
    for (int i = 0; i < state.memory[p].count; ++i) {
      const Message& m = state.memory[p].messages[i];
      d.add(m.value);
      d.add(m.swapped);
      d.add(m.view);
    }
  }
  d.add(state.fenced);
  for (const std::uint8_t n : state.notes) d.add(n);
  return d;
}

std::string file_of(const Site& site) {
  const std::string path = site.file;
  return path.substr(path.rfind('/') + 1);
}

std::string words(const Step& step) {
  std::string text = kKinds[static_cast<int>(step.kind)];
  if (step.site.file) text += " " + file_of(step.site) + ":" + std::to_string(step.site.line) + " " + step.site.text;
  return text;
}

}  // namespace

std::uint64_t perform(const Step& step) {
  if (given == nullptr) {
    std::uint64_t& word = last[step.address];
    const std::uint64_t old = word;
    if (step.kind == Kind::store) word = step.value;
    if (step.kind == Kind::add) word = old + step.value;
    if (step.kind == Kind::swap && old == step.expected) word = step.value;
    return old;
  }
  if (used < given->size()) return (*given)[used++];
  throw step;
}

void require(bool holds, const char* claim) {
  if (!holds) throw std::runtime_error(claim);
}

Search::Search(Scenario scenario, Weakening weakening)
    : scenario_(std::move(scenario)), weakening_(std::move(weakening)) {
  for (std::size_t t = 0; t < scenario_.threads.size(); ++t) make_node(static_cast<int>(t), -1, 0, 0);
}

int Search::make_node(int thread, int parent, std::uint64_t value, int head) {
  const int made = static_cast<int>(nodes_[thread].size());
  nodes_[thread].push_back({parent, value, head, false, "", {}, -1, {}});
  find_next(thread, nodes_[thread][made]);
  return made;
}

void Search::find_next(int thread, Node& node) {
  std::vector<std::uint64_t> values;
  for (const Node* n = &node; n->parent >= 0; n = &nodes_[thread][n->parent]) values.push_back(n->value);
  std::reverse(values.begin(), values.end());
  given = &values;
  used = 0;
  calling = nullptr;
  try {
    scenario_.threads[thread].body();
    node.over = true;
  } catch (const Step& step) {
    node.next = step;
    weaken(node.next);
  } catch (const std::exception& error) {
    node.wrong = error.what();
  }
  calling = nullptr;
  given = nullptr;
  for (std::size_t p = 0; node.next.address && p < scenario_.places.size(); ++p)
    if (scenario_.places[p].at == node.next.address) node.place = static_cast<int>(p);
}

void Search::weaken(Step& step) {
  const Weakening& w = weakening_;
  if (w.half.empty() || !step.site.file || w.kind != kKinds[static_cast<int>(step.kind)]) return;
  if (w.file != file_of(step.site)) return;
  if (w.step != (*step.site.text ? step.site.text : std::to_string(step.site.line))) return;
  met_ = true;
  const bool acquire = w.half == "release" && has(step.order, __ATOMIC_ACQUIRE);
  const bool release = w.half == "acquire" && has(step.order, __ATOMIC_RELEASE);
  step.order = acquire ? __ATOMIC_ACQUIRE : release ? __ATOMIC_RELEASE : __ATOMIC_RELAXED;
}

int Search::child(int thread, int node, std::uint64_t value) {
  Node& from = nodes_[thread][node];
  if (const auto known = from.children.find(value); known != from.children.end()) return known->second;
  const int head = from.next.kind == Kind::loop_head ? -1 : from.head;
  const int made = make_node(thread, node, value, head);
  if (head == -1) nodes_[thread][made].head = made;
  nodes_[thread][node].children.emplace(value, made);
  return made;
}

// Steps on words that nobody else uses, notes, and loop heads: no other thread can tell when they happen.
std::string Search::settle(State& state, int thread) {
  for (;;) {
    const Node& node = nodes_[thread][state.node[thread]];
    if (!node.wrong.empty()) return node.wrong;
    if (node.over) {
      state.life[thread] = Life::over;
      return "";
    }
    switch (node.next.kind) {
      case Kind::note:
        ++state.notes[node.next.value];
        break;
      case Kind::loop_head:
        break;
      case Kind::back:
        state.node[thread] = node.head;
        return "";
      case Kind::load:
      case Kind::store:
      case Kind::add:
      case Kind::swap:
        if (node.place < 0) break;
        return "";
      default:
        return "";
    }
    const bool reads = node.next.kind == Kind::load;  // a word that nobody writes
    const std::uint64_t value = reads ? value_before(node.next.address, static_cast<std::size_t>(node.next.width)) : 0;
    state.node[thread] = child(thread, state.node[thread], value);
  }
}

// Messages that no running thread can read any more make no difference.
void Search::prune(State& state) const {
  for (std::size_t p = 0; p < scenario_.places.size(); ++p) {
    Place& place = state.memory[p];
    int least = place.count - 1;
    for (std::size_t t = 0; t < scenario_.threads.size(); ++t)
      if (state.life[t] == Life::running) least = std::min<int>(least, state.view[t][p]);
    if (least <= 0) continue;
    std::move(place.messages.begin() + least, place.messages.begin() + place.count, place.messages.begin());
    place.count = static_cast<std::uint8_t>(place.count - least);
    place.messages[0].swapped = false;
    each_view(state, [&](View& view) { view[p] = static_cast<std::uint8_t>(std::max(0, view[p] - least)); });
  }
}

// A step on a shared word: go(the state after it, the value that it read) for every message that it may read.
template <class Go>
void Search::access(const State& state, int t, const Step& step, int place, Go go) const {
  const Place& there = state.memory[place];
  const bool release = has(step.order, __ATOMIC_RELEASE), stores = step.kind == Kind::store;
  for (int i = state.view[t][place]; i < there.count; ++i) {
    const Message& message = there.messages[i];
    const std::uint64_t seen = message.value;
    const bool writes = stores || step.kind == Kind::add || (step.kind == Kind::swap && seen == step.expected);
    if (writes && i + 1 < there.count && there.messages[i + 1].swapped) continue;
    State next = state;
    if (!stores) {
      next.view[t][place] = static_cast<std::uint8_t>(i);
      const int order = step.kind == Kind::swap && !writes ? step.failure : step.order;
      if (has(order, __ATOMIC_ACQUIRE)) learn(next.view[t], message.view);
    }
    const std::uint64_t value = step.kind == Kind::add ? seen + step.value : step.value;
    if (writes) write(next, t, place, i + 1, narrowed(value, step.width), release, stores ? nullptr : &message.view);
    go(next, stores ? 0 : seen);
  }
}

template <class Visit>
void Search::successors(const State& state, Visit visit) {
  const auto ended = [&](std::uint64_t t) { return state.life[t] == Life::over || state.life[t] == Life::dead; };
  for (int t = 0; t < static_cast<int>(scenario_.threads.size()); ++t) {
    if (state.life[t] != Life::running) continue;
    if (scenario_.threads[t].mortal) {
      State next = state;
      next.life[t] = Life::dead;
      visit(next, t, "dies", std::string());
    }
    const int at = state.node[t];
    const Step step = nodes_[t][at].next;
    const int place = nodes_[t][at].place;
    const auto go = [&](State& next, std::uint64_t value) {
      next.node[t] = child(t, at, value);
      std::string wrong = settle(next, t);
      prune(next);
      visit(next, t, words(step) + " = " + std::to_string(value), wrong);
    };
    State next = state;
    const auto after = [&](std::uint64_t other) {  // the kernel orders the end of a process before what learns of it
      learn(next.view[t], next.view[other]);
      go(next, 1);
    };
    switch (step.kind) {
      case Kind::join:
        if (ended(step.value)) after(step.value);
        break;
      case Kind::start: {
        const int other = static_cast<int>(step.value);
        next.life[other] = Life::running;
        next.view[other] = next.view[t];
        const std::string wrong = settle(next, other);
        if (wrong.empty()) go(next, 0);
        else visit(next, other, "starts", wrong);
        break;
      }
      case Kind::gone: {  // of a pid and a start time, 0 unknown
        const auto of = [&](const Thread& thread) { return thread.pid == step.value; };
        const auto found = std::find_if(scenario_.threads.begin(), scenario_.threads.end(), of);
        const bool known = found != scenario_.threads.end();
        const std::uint64_t other = static_cast<std::uint64_t>(found - scenario_.threads.begin());
        if (known && ended(other)) after(other);
        else go(next, known && step.expected != 0 && found->start_time != step.expected);
        break;
      }
      case Kind::fence:  // sequentially consistent: of two, the later knows all that the earlier knew
        if (step.order == __ATOMIC_SEQ_CST) {
          learn(next.view[t], next.fenced);
          next.fenced = next.view[t];
        }
        go(next, 0);
        break;
      case Kind::load:
      case Kind::store:
      case Kind::add:
      case Kind::swap:
        access(state, t, step, place, go);
        break;
      default:
        break;
    }
  }
}

std::string Search::finish(const State& state) const {
  last.clear();
  for (std::size_t p = 0; p < scenario_.places.size(); ++p)
    last[scenario_.places[p].at] = state.memory[p].messages[state.memory[p].count - 1].value;
  try {
    return scenario_.finish(state);
  } catch (const std::exception& error) {
    return error.what();
  }
}

Result Search::run() {
  struct Known {
    int parent;
    std::string step;
    std::vector<int> before;  // states that it can follow
  };
  const std::size_t threads = scenario_.threads.size(), places = scenario_.places.size();
  Result result;
  std::unordered_map<Digest, int, DigestHash> known;
  std::vector<Known> history;
  std::vector<int> ends;
  std::vector<std::pair<State, int>> open;

  const auto fail = [&](const std::string& what, int from, std::string steps) {
    for (int i = from; i > 0; i = history[i].parent) steps = history[i].step + "; " + steps;
    result.wrong = what + " (" + steps + ")";
  };
  const auto meet = [&](const State& state, int from, const std::string& step) {
    const auto [at, is_new] = known.try_emplace(digest(state, threads, places), static_cast<int>(history.size()));
    if (is_new) {
      history.push_back({from, step, {}});
      open.emplace_back(state, at->second);
    }
    if (from >= 0) history[at->second].before.push_back(from);
  };

  State first;
  for (std::size_t p = 0; p < places; ++p) {
    first.memory[p].count = 1;
    first.memory[p].messages[0].value = value_before(scenario_.places[p].at, scenario_.places[p].bytes);
  }
  for (std::size_t t = 0; t < threads; ++t) {
    first.life[t] = scenario_.threads[t].starts ? Life::running : Life::waiting;
    if (scenario_.threads[t].starts) settle(first, static_cast<int>(t));
  }
  meet(first, -1, "");
  while (!open.empty() && result.wrong.empty()) {
    const auto [state, index] = std::move(open.back());
    open.pop_back();
    if (known.size() > kMostStates) {
      result.wrong = "too many states";
      break;
    }
    bool goes_on = false;
    successors(state, [&](const State& next, int thread, const std::string& step, const std::string& wrong) {
      goes_on = true;
      if (!result.wrong.empty()) return;
      const std::string said = std::to_string(thread) + ": " + step;
      if (wrong.empty()) meet(next, index, said);
      else fail(wrong, index, said);
    });
    if (goes_on) continue;
    const bool all = std::none_of(state.life.begin(), state.life.begin() + threads,
                                  [](Life life) { return life == Life::running; });
    const std::string wrong = all ? finish(state) : "nobody can go on";
    if (!wrong.empty()) fail(wrong, index, "the end");
    ends.push_back(index);
  }
  result.states = known.size();
  result.met = met_;
  if (!result.wrong.empty()) return result;
  // Whatever happens, it can still end.
  std::vector<bool> can_end(history.size());
  for (const int i : ends) can_end[i] = true;
  while (!ends.empty()) {
    const int i = ends.back();
    ends.pop_back();
    for (const int j : history[i].before) {
      if (can_end[j]) continue;
      can_end[j] = true;
      ends.push_back(j);
    }
  }
  const auto stuck = std::find(can_end.begin(), can_end.end(), false);
  if (stuck != can_end.end()) fail("somebody waits for ever", static_cast<int>(stuck - can_end.begin()), "no end");
  return result;
}

}  // namespace proof
