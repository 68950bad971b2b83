// Python bindings of the linear models.
#include <cmath>
#include <utility>

#include "dense.h"
#include "linear.h"
#include "scheme_object.h"

using namespace nanobind::literals;

namespace mlxhog::classic {
namespace {

using Rows = nb::ndarray<float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Pointers = nb::ndarray<const std::int64_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Floats = nb::ndarray<const float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

Loss loss_of(const std::string& name) {
  if (name == "hinge") return Loss::hinge;
  if (name == "logistic") return Loss::logistic;
  if (name == "squares") return Loss::squares;
  wrong("no loss '" + name + "'; choose from hinge, logistic, squares");
}

// The problem with the arrays it reads, kept alive.
struct LinearObject {
  LinearObject(Rows x_, Pointers indptr_, IndexArray indices_, Floats values_, Floats labels_, Floats shrink_,
               const std::string& loss, bool active_rows)
      : x(std::move(x_)),
        indptr(std::move(indptr_)),
        indices(std::move(indices_)),
        values(std::move(values_)),
        labels(std::move(labels_)),
        shrink(std::move(shrink_)),
        core(x.data(), x.size(), x.shape(1), rows(), shrink.size() == 0 ? nullptr : shrink.data(), loss_of(loss),
             active_rows) {}

  // Checked once here, so that the loops may trust every index.
  SparseRows rows() const {
    const std::size_t n = labels.size();
    if (x.size() == 0) wrong("x: wanted at least one row");
    if (indptr.size() != n + 1) {
      wrong("indptr has " + std::to_string(indptr.size()) + " entries, " + std::to_string(n) + " labels want " +
            std::to_string(n + 1));
    }
    if (indices.size() != values.size()) wrong("indices and values differ in length");
    if (shrink.size() != 0 && shrink.size() > x.size()) wrong("shrink has more coordinates than x");
    const std::size_t coordinates = shrink.size() != 0 ? shrink.size() : x.size();
    if (indptr.data()[0] != 0 || static_cast<std::size_t>(indptr.data()[n]) != values.size()) {
      wrong("indptr: wanted 0 first and the number of values last");
    }
    for (std::size_t e = 0; e < n; ++e) {
      const std::int64_t begin = indptr.data()[e], end = indptr.data()[e + 1];
      if (begin > end || static_cast<std::size_t>(end) > values.size()) wrong("indptr descends at row " + std::to_string(e));
      for (std::int64_t k = begin; k < end; ++k) {
        const std::int32_t u = indices.data()[k];
        if (u < 0 || static_cast<std::size_t>(u) >= coordinates) {
          wrong("row " + std::to_string(e) + " names coordinate " + std::to_string(u) + " of " +
                std::to_string(coordinates));
        }
        if (k > begin && indices.data()[k - 1] >= u) {
          wrong("row " + std::to_string(e) + ": indices have to ascend, got " + std::to_string(indices.data()[k - 1]) +
                " before " + std::to_string(u));
        }
      }
    }
    return {indptr.data(), indices.data(), values.data(), labels.data(), n};
  }

  Rows x;
  Pointers indptr;
  IndexArray indices;
  Floats values, labels, shrink;
  SparseLinear core;
};

using Matrix = nb::ndarray<const float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

struct DenseObject {
  DenseObject(Rows x_, Matrix features_, Floats labels_, Floats shrink_, const std::string& loss, std::size_t classes)
      : x(std::move(x_)),
        features(std::move(features_)),
        labels(std::move(labels_)),
        shrink(std::move(shrink_)),
        core(x.data(), x.size(), x.shape(1), rows(classes), shrink.size() == 0 ? nullptr : shrink.data(),
             loss_of(loss), classes) {}

  DenseRows rows(std::size_t classes) const {
    const std::size_t n = features.shape(0), d = features.shape(1);
    if (n == 0 || d == 0) wrong("features: wanted at least one row and one column");
    if (classes == 0) wrong("classes: wanted at least 1");
    if (x.size() == 0 || x.shape(0) % classes != 0 || x.size() / classes < d) {
      wrong("x: wanted for each of " + std::to_string(classes) + " classes the same number of rows, " +
            std::to_string(d) + " floats or more");
    }
    if (labels.size() != n) wrong("labels and features differ in length");
    if (shrink.size() != 0 && shrink.size() != d) wrong("shrink: wanted one number per feature, or none");
    for (std::size_t e = 0; classes > 1 && e < n; ++e) {
      const float y = labels.data()[e];
      if (!(y >= 0.0f && y < static_cast<float>(classes)) || y != std::floor(y)) {
        wrong("label " + std::to_string(e) + " is no class from 0 to " + std::to_string(classes - 1));
      }
    }
    return {features.data(), labels.data(), n, d};
  }

  Rows x;
  Matrix features;
  Floats labels, shrink;
  DenseLinear core;
};

}  // namespace
}  // namespace mlxhog::classic

void bind_linear(nanobind::module_& m) {
  namespace nb = nanobind;
  using namespace mlxhog::classic;
  auto sparse = nb::class_<LinearObject>(
                    m, "LinearProblem",
                    "A linear model on sparse rows; x is (rows, width) float32, one lock word per row.")
                    .def(nb::init<Rows, Pointers, mlxhog::IndexArray, Floats, Floats, Floats, const std::string&, bool>(),
                         "x"_a.noconvert(), "indptr"_a.noconvert(), "indices"_a.noconvert(), "values"_a.noconvert(),
                         "labels"_a.noconvert(), "shrink"_a.noconvert(), nb::kw_only(), "loss"_a = "hinge",
                         "active_rows"_a = false);
  bind_run(sparse);
  auto dense = nb::class_<DenseObject>(
                   m, "DenseLinearProblem",
                   "A linear model on dense rows, one-vs-rest for several classes; x is (rows, width) float32,\n"
                   "one lock word per row, the same number of rows for each class.")
                   .def(nb::init<Rows, Matrix, Floats, Floats, const std::string&, std::size_t>(),
                        "x"_a.noconvert(), "features"_a.noconvert(), "labels"_a.noconvert(), "shrink"_a.noconvert(),
                        nb::kw_only(), "loss"_a = "hinge", "classes"_a = 1);
  bind_run(dense);
}
