// The common part of the bindings of classic problems: the scheme with its arrays, and run() with its checks.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>

#include <optional>
#include <string>

#include "../updates/shared_arrays.h"
#include "scheme.h"

namespace mlxhog::classic {

using Bytes = nb::ndarray<std::uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

// The board together with the bytes it lies in, kept alive.
struct BoardObject {
  BoardObject(Bytes words_array, std::uint32_t workers);

  Bytes words;
  Board board;
};

struct SchemeObject {
  SchemeObject(const std::string& kind, Bytes words, nb::object locks, std::size_t row_word0, std::uint32_t rank,
               std::uint32_t workers, std::size_t hot, std::size_t period, bool ordered_reads,
               std::optional<Flat> probe, std::size_t probe_every);

  std::size_t lock_words() const { return scheme.locks == nullptr ? 0 : scheme.locks->size(); }

  BoardObject board;
  nb::object locks_object;
  std::optional<Flat> probe;
  Scheme scheme;
};

[[noreturn]] inline void wrong(const std::string& message) { throw nb::value_error(message.c_str()); }

// Checks that need the problem, then the run without the GIL.
template <class Problem>
std::size_t run_checked(SchemeObject& object, Problem& problem, const IndexArray& order, double gamma, std::size_t batch) {
  Scheme& scheme = object.scheme;
  if (batch == 0) wrong("batch: wanted at least 1 example");
  for (std::size_t i = 0; i < order.size(); ++i) {
    if (order.data()[i] < 0 || static_cast<std::size_t>(order.data()[i]) >= problem.n()) {
      wrong("order[" + std::to_string(i) + "] is " + std::to_string(order.data()[i]) + "; there are " +
            std::to_string(problem.n()) + " examples");
    }
  }
  if (scheme.locks != nullptr && (scheme.row_word0 > object.lock_words() ||
                                  problem.words() > object.lock_words() - scheme.row_word0)) {
    wrong("the problem's " + std::to_string(problem.words()) + " rows from lock word " +
          std::to_string(scheme.row_word0) + " on do not fit " + std::to_string(object.lock_words()) + " lock words");
  }
  if (scheme.kind == Kind::hot_cold) {
    if constexpr (HasHead<Problem>) {
      if (scheme.hot / problem.width() > problem.words() || scheme.hot > problem.words() * problem.width()) wrong("hot: more coordinates than the problem has");
    } else {
      wrong("this problem has no hot head; write racy or lossless");
    }
  }
  nb::gil_scoped_release nogil;
  return run(scheme, problem, Share{order.data(), order.size(), static_cast<float>(gamma), batch});
}

// Object.run(scheme, order, gamma, batch=1), where `core` is the problem.
template <class Object>
void bind_run(nb::class_<Object>& bound) {
  using namespace nanobind::literals;
  bound.def(
      "run",
      [](Object& self, SchemeObject& scheme, IndexArray order, double gamma, std::size_t batch) {
        return run_checked(scheme, self.core, order, gamma, batch);
      },
      "scheme"_a, "order"_a.noconvert(), "gamma"_a, "batch"_a = 1,
      "One pass over `order`; returns the examples done, fewer only if stopped.");
}

}  // namespace mlxhog::classic
