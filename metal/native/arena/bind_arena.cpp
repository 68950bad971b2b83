// Python bindings of the arena: control words, seqlock counters, the worker table's layout, the ticket ledger.
// Everything is checked here; control.h and ledger.cpp see pointers and sizes only.
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <bit>
#include <cstddef>
#include <exception>
#include <optional>
#include <string>
#include <tuple>

#include "../updates/shared_arrays.h"
#include "control.h"
#include "ledger.h"
#include "worker_table.h"

namespace nb = nanobind;
using namespace nb::literals;
using mlxhog::require;

namespace {

using mlxhog::Bytes;
using ConstBytes = nb::ndarray<const uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Slots = nb::ndarray<uint64_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

// The word at a byte offset of a mapping.
template <class Word, class Array>
auto* word_at(const Array& buf, size_t off) {
  if (off > buf.size() || buf.size() - off < sizeof(Word)) throw nb::index_error("control word outside its buffer");
  auto* address = buf.data() + off;
  require(reinterpret_cast<uintptr_t>(address) % sizeof(Word) == 0, "control word at byte ", off, " is not aligned to ",
          sizeof(Word), " bytes");
  using Qualified = std::conditional_t<std::is_const_v<std::remove_pointer_t<decltype(address)>>, const Word, Word>;
  return reinterpret_cast<Qualified*>(address);
}

template <class Word>
void bind_words(nb::module_& m, const std::string& suffix) {
  m.def(("load_" + suffix).c_str(),
        [](const ConstBytes& buf, size_t off) { return mlxhog::load(word_at<Word>(buf, off)); },
        "buf"_a.noconvert(), "off"_a, "Read a control word (acquire); works on read-only memory.");
  m.def(("store_" + suffix).c_str(),
        [](const Bytes& buf, size_t off, Word value) { mlxhog::store(word_at<Word>(buf, off), value); },
        "buf"_a.noconvert(), "off"_a, "value"_a, "Write a control word (release).");
}

// Counters are 64-bit words.
void bind_counters(nb::module_& m) {
  using Word = uint64_t;
  m.def("add_u64", [](const Bytes& buf, size_t off, Word value) { return mlxhog::add(word_at<Word>(buf, off), value); },
        "buf"_a.noconvert(), "off"_a, "value"_a,
        "Add to a control word, modulo its range; returns the old value (acquire, release).");
  m.def("cas_u64",
        [](const Bytes& buf, size_t off, Word expected, Word desired) {
          return mlxhog::cas(word_at<Word>(buf, off), expected, desired);
        },
        "buf"_a.noconvert(), "off"_a, "expected"_a, "desired"_a,
        "Replace a control word if it is `expected`; returns whether (acquire, release).");
  m.def("begin_writing", [](const Bytes& buf, size_t off) { mlxhog::begin_writing(word_at<Word>(buf, off)); },
        "buf"_a.noconvert(), "off"_a, "Make a seqlock counter odd before its writer writes.");
  m.def("end_writing", [](const Bytes& buf, size_t off) { mlxhog::end_writing(word_at<Word>(buf, off)); },
        "buf"_a.noconvert(), "off"_a, "Make a seqlock counter even when its writer has written.");
  m.def("nobody_writes",
        [](const ConstBytes& buf, size_t off, size_t stride, size_t n) -> std::optional<Word> {
          if (n == 0) return 0;
          require(stride != 0 && stride % sizeof(Word) == 0 && n - 1 <= buf.size() / stride,
                  "counters: wanted a stride of whole 8-byte words and as many counters as fit, got ", n, ", ", stride,
                  " bytes apart");
          word_at<Word>(buf, off + (n - 1) * stride);
          Word sum = 0;
          if (!mlxhog::nobody_writes(word_at<Word>(buf, off), stride / sizeof(Word), n, &sum)) return std::nullopt;
          return sum;
        },
        "buf"_a.noconvert(), "off"_a, "stride"_a, "n"_a,
        "The sum of seqlock counters that are all even; None where one is odd. Works on read-only memory.");
}

// Name -> (byte offset, size) of the fields that locks use.
nb::dict worker_fields() {
  nb::dict fields;
#define FIELD(name) fields[#name] = nb::make_tuple(offsetof(mlxhog::WorkerEntry, name), sizeof(mlxhog::WorkerEntry::name))
  FIELD(generation), FIELD(dead), FIELD(pid), FIELD(start_time), FIELD(heartbeat_ns), FIELD(takeovers), FIELD(wait_ns);
#undef FIELD
  return fields;
}

// The ledger with the arrays it lives in, which keep the mapping alive.
struct Ledger : mlxhog::TicketLedger {
  Bytes words;
  Slots slots;

  Ledger(const Bytes& words, const Slots& slots)
      : TicketLedger(reinterpret_cast<mlxhog::LedgerWords*>(words.data()), slots.data(), slots.size()),
        words(words), slots(slots) {
    require(words.size() >= sizeof(mlxhog::LedgerWords), "the ledger needs ", sizeof(mlxhog::LedgerWords),
            " bytes of control words, got ", words.size());
    require(reinterpret_cast<uintptr_t>(words.data()) % alignof(mlxhog::LedgerWords) == 0,
            "the ledger's control words are not aligned to 128 bytes");
    require(reinterpret_cast<uintptr_t>(slots.data()) % sizeof(uint64_t) == 0,
            "the ledger's slots are not aligned to 8 bytes");
    require(std::has_single_bit(slots.size()), "the ledger needs a power of two of slots, got ", slots.size());
  }

  void restore_checked(uint64_t watermark, std::vector<uint64_t> done, uint64_t torn) {
    const uint64_t max = kLaps * slots.size();
    require(watermark < max, "watermark is ", watermark, "; wanted a number of tickets below ", max);
    uint64_t least = watermark;
    for (const uint64_t ticket : done) {
      require(ticket >= least && ticket - watermark < slots.size(),
              "done tickets have to ascend from the watermark and lie within the ring; got ", ticket);
      least = ticket + 1;
    }
    restore({watermark, std::move(done), torn});
  }
};

uint32_t checked_owner(uint64_t owner) {
  require(owner != 0 && owner < 1u << 24, "a ticket's owner is an incarnation from 1 to 2^24 - 1, got ", owner);
  return static_cast<uint32_t>(owner);
}

// A method that takes a ticket and its owner.
template <auto kMethod>
auto owned() {
  return [](Ledger& ledger, uint64_t ticket, uint64_t owner) {
    mlxhog::TicketLedger& core = ledger;
    return (core.*kMethod)(ticket, checked_owner(owner));
  };
}

void bind_ledger(nb::module_& m) {
  const nb::call_guard<nb::gil_scoped_release> nogil;
  nb::class_<Ledger>(m, "TicketLedger",
                     "Tickets in shared memory, numbered from the beginning of training.\n\n"
                     "Every method may be called by any process at any time, except `restore`.\n"
                     "See mlxhog/arena/ledger.py, which speaks of epochs.")
      .def(nb::init<const Bytes&, const Slots&>(), "words"_a.noconvert(), "slots"_a.noconvert())
      .def("claim", [](Ledger& l, uint64_t owner, uint64_t end) { return l.claim(checked_owner(owner), end); },
           "owner"_a, "end"_a = UINT64_MAX)
      .def("claim_exact", owned<&Ledger::claim_exact>(), "ticket"_a, "owner"_a)
      .def("begin_apply", owned<&Ledger::begin_apply>(), "ticket"_a, "owner"_a)
      .def("finish", owned<&Ledger::finish>(), "ticket"_a, "owner"_a)
      .def("give_back", owned<&Ledger::give_back>(), "ticket"_a, "owner"_a)
      .def("reap",
           [](Ledger& l, uint64_t owner) {
             const auto found = l.reap(checked_owner(owner));
             return std::make_tuple(found.returned, found.torn);
           },
           "owner"_a, nogil, "Settle a dead owner's tickets; returns how many went back and how many were torn.")
      .def("orphans", &Ledger::orphans, nogil)
      .def("return_orphan", &Ledger::return_orphan, "ticket"_a)
      .def("announce_returns", &Ledger::announce_returns, nogil)
      .def("state", [](Ledger& l, uint64_t ticket) { return static_cast<uint32_t>(l.state(ticket)); }, "ticket"_a)
      .def("watermark", &Ledger::watermark)
      .def("position",
           [](Ledger& l) {
             auto found = l.position();
             return std::make_tuple(found.watermark, std::move(found.done), found.torn);
           },
           nogil, "(watermark, done above it, torn).")
      .def("restore", &Ledger::restore_checked, "watermark"_a, "done"_a, "torn"_a);
}

}  // namespace

void bind_arena(nb::module_& m) {
  bind_words<uint32_t>(m, "u32");
  bind_words<uint64_t>(m, "u64");
  bind_counters(m);
  nb::register_exception_translator([](const std::exception_ptr& thrown, void*) {
    try {
      std::rethrow_exception(thrown);
    } catch (const mlxhog::CorruptLedger& error) {
      PyErr_SetString(nb::module_::import_("mlxhog.errors").attr("ArenaError").ptr(), error.what());
    }
  });
  m.def("worker_fields", &worker_fields,
        "Name -> (byte offset, size) of the fields of a worker table entry that locks use.");
  bind_ledger(m);
}
