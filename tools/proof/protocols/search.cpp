#include "search.h"

namespace proof {

const Site* calling = nullptr;

namespace {

struct Pending {
  Step step;
};
struct Broken {
  std::string claim;
};

// The values to run a thread with; null while `finish` works on memory itself.
const std::vector<std::uint64_t>* given = nullptr;
std::size_t used = 0;

bool has(int order, int half) {
  if (half == __ATOMIC_ACQUIRE) return order == __ATOMIC_ACQUIRE || order == __ATOMIC_ACQ_REL || order == __ATOMIC_SEQ_CST;
  return order == __ATOMIC_RELEASE || order == __ATOMIC_ACQ_REL || order == __ATOMIC_SEQ_CST;
}

int without(int order, int half) {
  const bool acquire = half != __ATOMIC_ACQUIRE && has(order, __ATOMIC_ACQUIRE);
  const bool release = half != __ATOMIC_RELEASE && has(order, __ATOMIC_RELEASE);
  return acquire && release ? __ATOMIC_ACQ_REL : acquire ? __ATOMIC_ACQUIRE : release ? __ATOMIC_RELEASE : __ATOMIC_RELAXED;
}

void learn(View& view, const View& more) {
  for (int i = 0; i < kPlaces; ++i) view[i] = std::max(view[i], more[i]);
}

// Makes room for a message at `at`; everybody's positions behind it move.
Message& insert(State& state, int place, int at) {
  Place& p = state.memory[place];
  if (p.count == kMessages) throw std::length_error("too many messages in one place: raise kMessages");
  std::move_backward(p.messages.begin() + at, p.messages.begin() + p.count, p.messages.begin() + p.count + 1);
  ++p.count;
  const auto shift = [&](View& view) {
    if (view[place] >= at) ++view[place];
  };
  for (View& view : state.view) shift(view);
  shift(state.fenced);
  p.messages[at] = {};
  for (Place& other : state.memory) {
    for (int i = 0; i < other.count; ++i) shift(other.messages[i].view);
  }
  return p.messages[at];
}

// Writes at `at` with or without release; `base` is what a read-modify-write passes on of the message it read.
void write(State& state, int thread, int place, int at, std::uint64_t value, bool release, const View* base) {
  View passed{};
  if (base) passed = *base;
  Message& made = insert(state, place, at);
  if (base) {
    for (int i = 0; i < kPlaces; ++i) made.view[i] = passed[i];
  }
  state.view[thread][place] = static_cast<std::uint8_t>(at);
  made.view[place] = static_cast<std::uint8_t>(at);
  made.value = value;
  made.swapped = base != nullptr;
  if (release) learn(made.view, state.view[thread]);
}

std::uint64_t narrowed(std::uint64_t value, int width) {
  return width == 8 ? value : value & ((std::uint64_t{1} << (8 * width)) - 1);
}

struct Digest {
  std::uint64_t a = 0x9e3779b97f4a7c15, b = 0xc2b2ae3d27d4eb4f;
  void add(std::uint64_t x) {
    a = (a ^ x) * 0xff51afd7ed558ccd;
    a ^= a >> 32;
    b = (b + x) * 0xc4ceb9fe1a85ec53;
    b ^= b >> 29;
  }
  bool operator==(const Digest&) const = default;
};

struct DigestHash {
  std::size_t operator()(const Digest& d) const { return d.a; }
};

Digest digest(const State& state, int threads, int places) {
  Digest d;
  const auto add_view = [&](const View& view) {
    for (int i = 0; i < kPlaces; i += 8) {
      std::uint64_t word;
      std::memcpy(&word, view.data() + i, 8);
      d.add(word);
    }
  };
  for (int t = 0; t < threads; ++t) {
    d.add(static_cast<std::uint64_t>(state.node[t]) << 8 | static_cast<std::uint64_t>(state.life[t]));
    add_view(state.view[t]);
  }
  for (int p = 0; p < places; ++p) {
    d.add(state.memory[p].count);
    for (int i = 0; i < state.memory[p].count; ++i) {
      const Message& m = state.memory[p].messages[i];
      d.add(m.value);
      d.add(m.swapped);
      add_view(m.view);
    }
  }
  add_view(state.fenced);
  for (const std::uint8_t n : state.notes) d.add(n);
  d.add(static_cast<std::uint64_t>(state.deaths));
  return d;
}

std::string words(const Step& step) {
  static const char* const kNames[] = {"load", "store", "add", "swap", "fence", "", "", "start", "join", "gone", "note"};
  std::string text = kNames[static_cast<int>(step.kind)];
  if (step.site.file) {
    const std::string file = step.site.file;
    text += " " + file.substr(file.rfind('/') + 1) + ":" + std::to_string(step.site.line) + " " + step.site.text;
  }
  return text;
}

// Memory while `finish` runs, one thread alone.
std::unordered_map<const void*, std::uint64_t> last;

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
  throw Pending{step};
}

void require(bool holds, const char* claim) {
  if (!holds) throw Broken{claim};
}

bool same_site(const Site& a, const Site& b) {
  return a.line == b.line && (a.file == b.file || (a.file && b.file && std::string(a.file) == b.file)) &&
         std::string(a.text ? a.text : "") == (b.text ? b.text : "");
}

Search::Search(Scenario scenario) : scenario_(std::move(scenario)) {
  for (std::size_t t = 0; t < scenario_.threads.size(); ++t) make_node(static_cast<int>(t), -1, 0, 0);
}

int Search::make_node(int thread, int parent, std::uint64_t value, int head) {
  const int made = static_cast<int>(nodes_[thread].size());
  nodes_[thread].push_back({parent, value, head, false, "", {}, -1, {}});
  find_next(thread, made);
  return made;
}

void Search::find_next(int thread, int node) {
  std::vector<std::uint64_t> values;
  for (int n = node; nodes_[thread][n].parent >= 0; n = nodes_[thread][n].parent) values.push_back(nodes_[thread][n].value);
  std::reverse(values.begin(), values.end());
  given = &values;
  used = 0;
  calling = nullptr;
  Node& made = nodes_[thread][node];
  try {
    scenario_.threads[thread]();
    made.over = true;
  } catch (const Pending& pending) {
    made.next = pending.step;
  } catch (const Broken& broken) {
    made.wrong = broken.claim;
  } catch (const std::exception& error) {
    made.wrong = error.what();
  }
  calling = nullptr;
  given = nullptr;
  if (made.over || !made.wrong.empty()) return;
  const auto at = std::find(scenario_.places.begin(), scenario_.places.end(), made.next.address);
  if (made.next.kind == Kind::fence) ordered_.push_back(made.next);
  if (made.next.address != nullptr && at != scenario_.places.end()) {
    made.place = static_cast<int>(at - scenario_.places.begin());
    const bool ordered = made.next.order != __ATOMIC_RELAXED || made.next.failure != __ATOMIC_RELAXED;
    const bool known = std::any_of(ordered_.begin(), ordered_.end(), [&](const Step& s) {
      return s.kind == made.next.kind && same_site(s.site, made.next.site);
    });
    if (ordered && !known) ordered_.push_back(made.next);
  }
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
    std::uint64_t value = 0;  // a word that nobody writes
    if (node.next.kind == Kind::load) std::memcpy(&value, node.next.address, static_cast<std::size_t>(node.next.width));
    state.node[thread] = child(thread, state.node[thread], value);
  }
}

// Messages that no running thread can read any more make no difference.
void Search::prune(State& state) const {
  const int threads = static_cast<int>(scenario_.threads.size());
  for (std::size_t p = 0; p < scenario_.places.size(); ++p) {
    Place& place = state.memory[p];
    int least = place.count - 1;
    for (int t = 0; t < threads; ++t) {
      if (state.life[t] == Life::running) least = std::min<int>(least, state.view[t][p]);
    }
    if (least <= 0) continue;
    std::move(place.messages.begin() + least, place.messages.begin() + place.count, place.messages.begin());
    place.count = static_cast<std::uint8_t>(place.count - least);
    place.messages[0].swapped = false;
    const auto shift = [&](View& view) { view[p] = static_cast<std::uint8_t>(std::max(0, view[p] - least)); };
    for (View& view : state.view) shift(view);
    shift(state.fenced);
    for (Place& other : state.memory) {
      for (int i = 0; i < other.count; ++i) shift(other.messages[i].view);
    }
  }
}

template <class Visit>
void Search::successors(const State& state, const Weakening& weakening, Visit visit) {
  const int threads = static_cast<int>(scenario_.threads.size());
  for (int t = 0; t < threads; ++t) {
    if (state.life[t] != Life::running) continue;
    if (scenario_.mortal[t] && state.deaths < scenario_.deaths) {
      State next = state;
      next.life[t] = Life::dead;
      ++next.deaths;
      visit(next, t, "dies", std::string());
    }
    const int at = state.node[t];
    const Step step = nodes_[t][at].next;
    const int place = nodes_[t][at].place;
    int order = step.order, failure = step.failure;
    if (weakening.half != Weakening::none && weakening.kind == step.kind && same_site(weakening.site, step.site)) {
      if (weakening.half == Weakening::acquire) order = without(order, __ATOMIC_ACQUIRE);
      if (weakening.half == Weakening::release) order = without(order, __ATOMIC_RELEASE);
      if (weakening.half == Weakening::failure || step.kind == Kind::load) failure = without(failure, __ATOMIC_ACQUIRE);
    }
    const bool acquire = has(order, __ATOMIC_ACQUIRE), release = has(order, __ATOMIC_RELEASE);
    const auto go = [&](State& next, std::uint64_t value) {
      next.node[t] = child(t, at, value);
      std::string wrong = settle(next, t);
      prune(next);
      visit(next, t, words(step) + " = " + std::to_string(value), wrong);
    };
    const auto process = [&](int other) {  // the kernel orders the end of a process before what learns of it
      State next = state;
      learn(next.view[t], next.view[other]);
      go(next, 1);
    };
    switch (step.kind) {
      case Kind::join:
        if (state.life[step.value] == Life::over || state.life[step.value] == Life::dead) process(static_cast<int>(step.value));
        break;
      case Kind::start: {
        State next = state;
        const int other = static_cast<int>(step.value);
        next.life[other] = Life::running;
        next.view[other] = next.view[t];
        const std::string wrong = settle(next, other);
        if (!wrong.empty()) {
          visit(next, other, "starts", wrong);
        } else {
          go(next, 0);
        }
        break;
      }
      case Kind::gone: {  // of a pid and a start time, 0 unknown
        int other = -1;
        for (int k = 0; k < threads; ++k) {
          if (k < static_cast<int>(scenario_.pids.size()) && scenario_.pids[k] == step.value) other = k;
        }
        if (other < 0) {
          State next = state;
          go(next, 0);
        } else if (state.life[other] == Life::dead || state.life[other] == Life::over) {
          process(other);
        } else {
          State next = state;
          go(next, step.expected != 0 && scenario_.start_times[other] != step.expected);
        }
        break;
      }
      case Kind::fence: {  // sequentially consistent: of two, the later knows all that the earlier knew
        State next = state;
        if (weakening.half != Weakening::all || !same_site(weakening.site, step.site)) {
          learn(next.view[t], next.fenced);
          next.fenced = next.view[t];
        }
        go(next, 0);
        break;
      }
      case Kind::load:
      case Kind::store:
      case Kind::add:
      case Kind::swap: {
        const Place& words_there = state.memory[place];
        for (int i = state.view[t][place]; i < words_there.count; ++i) {
          const Message& message = words_there.messages[i];
          const bool next_is_swapped = i + 1 < words_there.count && words_there.messages[i + 1].swapped;
          const std::uint64_t seen = message.value;
          State next = state;
          if (step.kind == Kind::store) {
            if (next_is_swapped) continue;
            write(next, t, place, i + 1, narrowed(step.value, step.width), release, nullptr);
            go(next, 0);
            continue;
          }
          const bool writes = step.kind == Kind::add || (step.kind == Kind::swap && seen == step.expected);
          if (writes && next_is_swapped) continue;
          next.view[t][place] = static_cast<std::uint8_t>(i);
          const bool learns = step.kind == Kind::swap && !writes ? has(failure, __ATOMIC_ACQUIRE) : acquire;
          if (learns) learn(next.view[t], message.view);
          if (writes) {
            const std::uint64_t value = step.kind == Kind::add ? seen + step.value : step.value;
            const View base = message.view;
            write(next, t, place, i + 1, narrowed(value, step.width), release, &base);
          }
          go(next, seen);
        }
        break;
      }
      default:
        break;
    }
  }
}

std::string Search::finish(const State& state) {
  last.clear();
  for (std::size_t p = 0; p < scenario_.places.size(); ++p) {
    last[scenario_.places[p]] = state.memory[p].messages[state.memory[p].count - 1].value;
  }
  try {
    return scenario_.finish(state);
  } catch (const Broken& broken) {
    return broken.claim;
  } catch (const std::exception& error) {
    return error.what();
  }
}

Result Search::run(const Weakening& weakening, std::size_t most_states) {
  const int threads = static_cast<int>(scenario_.threads.size());
  const int places = static_cast<int>(scenario_.places.size());
  Result result;
  std::unordered_map<Digest, int, DigestHash> known;
  std::vector<Known> history;
  std::vector<std::vector<int>> before;  // by state: those it can follow
  std::vector<int> ends;
  std::vector<std::pair<State, int>> open;

  const auto fail = [&](const std::string& what, int from, int thread, const std::string& step) {
    result.wrong = what;
    result.run.push_back(std::to_string(thread) + ": " + step);
    for (int i = from; i > 0; i = history[i].parent) {
      result.run.push_back(std::to_string(history[i].thread) + ": " + history[i].step);
    }
    std::reverse(result.run.begin(), result.run.end());
  };
  const auto meet = [&](const State& state, int from, int thread, const std::string& step) {
    const auto [at, is_new] = known.try_emplace(digest(state, threads, places), static_cast<int>(history.size()));
    if (is_new) {
      history.push_back({from, thread, step});
      before.emplace_back();
      open.emplace_back(state, at->second);
    }
    if (from >= 0) before[at->second].push_back(from);
  };

  State first;
  for (int p = 0; p < places; ++p) {
    std::uint64_t value = 0;
    std::memcpy(&value, scenario_.places[p], static_cast<std::size_t>(scenario_.widths[p]));
    first.memory[p].count = 1;
    first.memory[p].messages[0].value = value;
  }
  for (int t = 0; t < threads; ++t) {
    first.life[t] = scenario_.starts[t] ? Life::running : Life::waiting;
    if (scenario_.starts[t]) settle(first, t);
  }
  meet(first, -1, 0, "");
  while (!open.empty() && result.wrong.empty()) {
    const auto [state, index] = std::move(open.back());
    open.pop_back();
    if (known.size() > most_states) {
      result.wrong = "too many states";
      break;
    }
    bool goes_on = false;
    successors(state, weakening, [&](const State& next, int thread, const std::string& step, const std::string& wrong) {
      goes_on = true;
      if (!result.wrong.empty()) return;
      if (!wrong.empty()) return fail(wrong, index, thread, step);
      meet(next, index, thread, step);
    });
    if (goes_on) continue;
    const bool all = std::none_of(state.life.begin(), state.life.begin() + threads,
                                  [](Life life) { return life == Life::running; });
    const std::string wrong = all ? finish(state) : "nobody can go on";
    if (!wrong.empty()) fail(wrong, index, -1, "the end");
    ends.push_back(index);
  }
  result.states = known.size();
  if (!result.wrong.empty()) return result;
  // Whatever happens, it can still end.
  std::vector<bool> can_end(history.size());
  for (const int i : ends) can_end[i] = true;
  while (!ends.empty()) {
    const int i = ends.back();
    ends.pop_back();
    for (const int j : before[i]) {
      if (can_end[j]) continue;
      can_end[j] = true;
      ends.push_back(j);
    }
  }
  const auto stuck = std::find(can_end.begin(), can_end.end(), false);
  if (stuck != can_end.end()) fail("somebody waits for ever", static_cast<int>(stuck - can_end.begin()), -1, "no end");
  return result;
}

}  // namespace proof
