// Python bindings of the classic problems' board and schemes; each problem binds itself.
#include <array>
#include <utility>

#include "scheme_object.h"

using namespace nanobind::literals;

void bind_linear(nanobind::module_&);
void bind_pairs(nanobind::module_&);

namespace mlxhog::classic {
namespace {

constexpr std::array<std::pair<const char*, Kind>, 7> kKinds{{{"private", Kind::private_copy},
                                                              {"racy", Kind::racy},
                                                              {"lossless", Kind::lossless},
                                                              {"hot_cold", Kind::hot_cold},
                                                              {"aig", Kind::aig},
                                                              {"round_robin", Kind::round_robin},
                                                              {"sync", Kind::sync}}};

Kind kind_of(const std::string& name) {
  std::string known;
  for (const auto& [word, kind] : kKinds) {
    if (name == word) return kind;
    known += std::string(known.empty() ? "" : ", ") + word;
  }
  wrong("no scheme '" + name + "'; choose from " + known);
}

BoardHead* checked_head(const Bytes& words, std::uint32_t workers) {
  if (workers == 0) wrong("workers: wanted at least 1");
  if (words.size() < Board::bytes(workers)) {
    wrong("the board of " + std::to_string(workers) + " workers needs " + std::to_string(Board::bytes(workers)) +
          " bytes, got " + std::to_string(words.size()));
  }
  if (reinterpret_cast<std::uintptr_t>(words.data()) % alignof(BoardHead) != 0) {
    wrong("the board's bytes are not aligned to 128 bytes");
  }
  return reinterpret_cast<BoardHead*>(words.data());
}

std::uint32_t checked_rank(const BoardObject& object, std::uint32_t rank) {
  if (rank >= object.board.workers()) {
    wrong("rank " + std::to_string(rank) + " of " + std::to_string(object.board.workers()) + " workers");
  }
  return rank;
}

bool takes_locks(Kind kind) { return kind == Kind::lossless || kind == Kind::hot_cold || kind == Kind::aig; }

}  // namespace

BoardObject::BoardObject(Bytes words_array, std::uint32_t workers)
    : words(std::move(words_array)), board(checked_head(words, workers), workers) {}

SchemeObject::SchemeObject(const std::string& kind, Bytes words, nb::object locks, std::size_t row_word0,
                           std::uint32_t rank, std::uint32_t workers, std::size_t hot, std::size_t period,
                           bool ordered_reads, std::optional<Flat> probe_cell, std::size_t probe_every)
    : board(std::move(words), workers),
      locks_object(std::move(locks)),
      probe(std::move(probe_cell)),
      scheme{kind_of(kind), board.board, nullptr, row_word0, checked_rank(board, rank), hot, period, ordered_reads,
             nullptr} {
  if (!locks_object.is_none()) scheme.locks = &nb::cast<LocksObject&>(locks_object).locks;
  if (takes_locks(scheme.kind) && scheme.locks == nullptr) wrong("scheme '" + kind + "' needs locks");
  if (scheme.kind == Kind::hot_cold && (hot == 0 || period == 0)) {
    wrong("hot_cold: wanted a head of at least 1 coordinate and a period of at least 1 example");
  }
  if (probe) {
    if (probe->size() != 1) wrong("probe: wanted one float");
    if (probe_every == 0) wrong("probe_every: wanted at least 1 example");
    scheme.probe = probe->data();
    scheme.probe_every = probe_every;
  }
}

}  // namespace mlxhog::classic

void bind_classic(nanobind::module_& m) {
  namespace nb = nanobind;
  using namespace mlxhog::classic;
  nb::class_<BoardObject>(m, "ClassicBoard",
                          "Words that the workers of one classic run share: stop, turns, queue, progress.\n\n"
                          "The layout is the table in metal/native/classic/board.h. `reset` is the host's, while no\n"
                          "worker runs; everything else may be called by any process at any time.")
      .def(nb::init<Bytes, std::uint32_t>(), "words"_a.noconvert(), "workers"_a)
      .def_static("bytes", &Board::bytes, "workers"_a, "Bytes of the board of this number of workers.")
      .def("reset", [](BoardObject& self) { self.board.reset(); },
           "Before every epoch: no stop, no worker gone, the first turn, a full queue; keeps the progress.")
      .def("stop", [](BoardObject& self) { self.board.stop(); }, "End every loop and every wait.")
      .def_prop_ro("stopped", [](const BoardObject& self) { return self.board.stopped(); })
      .def("examples",
           [](const BoardObject& self, std::uint32_t rank) { return self.board.examples(checked_rank(self, rank)); },
           "rank"_a, "Examples this worker has done so far, over all epochs.")
      .def("retire", [](BoardObject& self, std::uint32_t rank) { self.board.retire(checked_rank(self, rank)); },
           "rank"_a, "Pass over this worker's turns until the next reset; for one that was reaped.")
      .def("take", [](BoardObject& self, std::uint64_t n) { return self.board.take(n); }, "n"_a,
           "The first of n examples that are now the caller's; past the end when the queue is empty.");
  nb::class_<SchemeObject>(m, "ClassicScheme",
                           "One worker's place in a classic run: how it writes and whom it waits for.\n\n"
                           "kinds: private, racy, lossless, hot_cold, aig, round_robin, sync; see\n"
                           "metal/native/classic/scheme.h for what each promises.")
      .def(nb::init<const std::string&, Bytes, nb::object, std::size_t, std::uint32_t, std::uint32_t, std::size_t,
                    std::size_t, bool, std::optional<mlxhog::Flat>, std::size_t>(),
           "kind"_a, "words"_a.noconvert(), "locks"_a.none(), "row_word0"_a, "rank"_a, "workers"_a, nb::kw_only(),
           "hot"_a = 8192, "period"_a = 256, "ordered_reads"_a = true, "probe"_a.noconvert().none() = nb::none(),
           "probe_every"_a = 1);
  bind_linear(m);
  bind_pairs(m);
}
