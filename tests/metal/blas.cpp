// The products of large matrices by a BLAS, for test_blas.py: floats from stdin, results to stdout.
//
//   blas found                    exit code 0 if a BLAS multiplies
//   blas newton_schulz ROWS COLS  x (rows, cols) -> newton_schulz(x) by the steps of Polar Express
//   blas linear ROWS IN OUT       x (rows, in), W (out, in), dy (rows, out) -> y (rows, out), dx, dW
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "gemm.h"
#include "linear.h"
#include "newton_schulz.h"

using namespace mlxhog;

namespace {

std::vector<float> read_floats(Index count) {
  std::vector<float> values(static_cast<std::size_t>(count));
  if (std::fread(values.data(), sizeof(float), values.size(), stdin) != values.size()) std::abort();
  return values;
}

void write_floats(const std::vector<float>& values) {
  std::fwrite(values.data(), sizeof(float), values.size(), stdout);
}

void orthogonalize_input(Index rows, Index cols) {
  const NewtonSchulzStep steps[] = {{8.287212018145626f, -23.59588651909882f, 17.30038731253092f},
                             {4.107059111542198f, -2.947849916737908f, 0.5448431082926598f},
                             {3.948690853482296f, -2.9089021159629485f, 0.5518191394370133f}};
  std::vector<float> x = read_floats(rows * cols), u(x.size());
  newton_schulz(rows, cols, x.data(), u.data(), steps, 3, 1.0f);
  write_floats(u);
}

void linear_of_input(Index rows, Index in, Index out) {
  const std::vector<float> x = read_floats(rows * in), w = read_floats(out * in), dy = read_floats(rows * out);
  std::vector<float> y(dy.size()), dx(x.size()), dw(w.size());
  linears_forward(rows, in, x.data(), {{out, w.data(), nullptr, y.data()}}, 2);
  linears_backward(rows, in, x.data(), {{out, w.data(), dy.data(), dw.data(), nullptr}}, dx.data(), 2);
  write_floats(y);
  write_floats(dx);
  write_floats(dw);
}

}  // namespace

int main(int count, char** words) {
  const auto number = [&](int k) { return static_cast<Index>(std::atoll(words[k])); };
  const std::string what = words[1];
  if (what == "found") return has_blas() ? 0 : 1;
  if (what == "newton_schulz" && count == 4) orthogonalize_input(number(2), number(3));
  else if (what == "linear" && count == 5) linear_of_input(number(2), number(3), number(4));
  else return 2;
}
