// Causal attention of several heads, and its exact gradient: out_t = sum_j softmax_j(q_t . k_j / sqrt(DH)) v_j.
//
// lse is the logarithm of the sum of every row's exponentials. The last S of L keys are those of the queries' own
// positions: query t sees the keys from `L - S + t - window` (from the first one without a window) to `L - S + t`, and
// of them those from the first valid one on, L - lengths[b], where lengths are given. Work is split over B and heads; a
// task keeps no more than 32 rows of scores at once.
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <optional>
#include <vector>

#include "gemm.h"
#include "rows.h"
#include "shapes.h"

namespace mlxhog {
namespace {

struct AttentionShape {
  Index B, S, L, NH, DH;
  Index window;                 // keys seen before the own one; negative: all of them
  const std::int32_t* lengths;  // (B,), or null: all of them are valid
};

template <class Float>
struct AttentionArrays {
  Float *q, *k, *v;
};
using AttentionInputs = AttentionArrays<const float>;
using AttentionGradients = AttentionArrays<float>;

// Rotary positions: elements i and DH / 2 + i of every head rotate by position * base^(-2 i / DH); offset (B,) is the
// position of each sequence's first element, null for 0. Source: Su et al. 2021, RoFormer, arXiv:2104.09864.
struct RopeShape {
  Index B, S, NH, DH;
  double base;
  const std::int32_t* offset;
};

// Queries of one block lie side by side, one per vector lane, and their scores in a row for every key: softmax then
// needs no sums across a vector, and every product but two is as wide as the block, however narrow the heads.
constexpr Index kLanes = 32;

// A width of 2^n is transposed in n passes, each of which moves the lowest bit of every element's place to the top, or
// back: loads and stores stay whole vectors.
MLXHOG_CLONES void lowest_bit_to_top(Index half, const float* from, float* to) {
#pragma omp simd
  for (Index j = 0; j < half; ++j) {
    to[j] = from[2 * j];
    to[half + j] = from[2 * j + 1];
  }
}

MLXHOG_CLONES void top_bit_to_lowest(Index half, const float* from, float* to) {
#pragma omp simd
  for (Index j = 0; j < half; ++j) {
    to[2 * j] = from[j];
    to[2 * j + 1] = from[half + j];
  }
}

template <class Pass>
void in_passes(Index width, const float* from, float* to, float* spare, const Pass& pass) {
  const int passes = std::countr_zero(static_cast<std::size_t>(width));
  if (passes == 0) std::copy_n(from, kLanes, to);
  for (int left = passes; left > 0; --left) {
    float* next = left % 2 ? to : spare;
    pass(width * kLanes / 2, from, next);
    from = next;
  }
}

bool in_power(Index width) { return std::has_single_bit(static_cast<std::size_t>(width)); }

// Short rows, one per vector lane: lanes[d, l] = rows[l, d]; rows (32, width) and lanes (width, 32), `spare` as large
// as either.
void to_lanes(Index width, const float* rows, float* lanes, float* spare) {
  if (in_power(width)) return in_passes(width, rows, lanes, spare, lowest_bit_to_top);
  transpose(rows, width, kLanes, width, lanes);
}

// rows[l, d] = lanes[d, l], the same back.
void from_lanes(Index width, const float* lanes, float* rows, float* spare) {
  if (in_power(width)) return in_passes(width, lanes, rows, spare, top_bit_to_lowest);
  transpose(lanes, kLanes, width, kLanes, rows);
}

// Queries [first, first + count) of one head, and the keys that any of them sees.
struct Block {
  Index first, count, begin, end, own;  // own: key of the first query

  Block(const AttentionShape& s, Index first_valid, Index at)
      : first(at), count(std::min(kLanes, s.S - at)), own(s.L - s.S + at) {
    begin = std::max(first_valid, s.window < 0 ? Index{0} : own - s.window);
    end = own + count;
  }
  Index keys() const { return end - begin; }
};

Index first_valid(const AttentionShape& s, Index b) { return s.lengths ? s.L - s.lengths[b] : 0; }

// The block's rows of one head as packed rows (lanes, width), those of lanes without a row 0, and as lanes.
void load_block(const Block& block, const float* from, Index ld, Index width, float factor, float* rows, float* lanes,
                float* spare) {
  copy_rows(block.count, width, from, ld, rows, width, 0, factor);
  std::fill_n(rows + block.count * width, (kLanes - block.count) * width, 0.0f);
  to_lanes(width, rows, lanes, spare);
}

MLXHOG_CLONES void scale_lanes(Index width, const float* factor, float* lanes) {
  for (Index d = 0; d < width; ++d) {
#pragma omp simd
    for (Index l = 0; l < kLanes; ++l) lanes[d * kLanes + l] *= factor[l];
  }
}

// Scores (keys, lanes) of keys that a lane must not see become -inf, whose exponential is 0.
MLXHOG_CLONES void mask(const Block& block, Index window, float* scores) {
  constexpr float kNever = -std::numeric_limits<float>::infinity();
  const int last = static_cast<int>(block.count) - 1;
  for (Index j = block.own + 1; j < block.end; ++j) {  // behind the first query's own key
    const int ahead = static_cast<int>(j - block.own);
    float* row = scores + (j - block.begin) * kLanes;
#pragma omp simd
    for (int l = 0; l < kLanes; ++l) row[l] = l < ahead && l <= last ? kNever : row[l];
  }
  if (window < 0) return;
  for (Index j = block.begin; j < std::min(block.end, block.own + last - window); ++j) {
    const int reached = static_cast<int>(j - (block.own - window));  // by lanes up to this one
    float* row = scores + (j - block.begin) * kLanes;
#pragma omp simd
    for (int l = 0; l < kLanes; ++l) row[l] = l > reached && l <= last ? kNever : row[l];
  }
}

// Scores become exp(score - greatest of the lane); their sums.
MLXHOG_CLONES void exponentials_of_lanes(Index keys, float* scores, float* greatest, float* sums) {
  float most[kLanes], sum[kLanes];
  std::fill_n(most, kLanes, -std::numeric_limits<float>::infinity());
  std::fill_n(sum, kLanes, 0.0f);
  for (Index j = 0; j < keys; ++j) {
#pragma omp simd
    for (Index l = 0; l < kLanes; ++l) most[l] = scores[j * kLanes + l] > most[l] ? scores[j * kLanes + l] : most[l];
  }
  for (Index j = 0; j < keys; ++j) {
#pragma omp simd
    for (Index l = 0; l < kLanes; ++l) {
      const float p = exp_f32(scores[j * kLanes + l] - most[l]);
      scores[j * kLanes + l] = p;
      sum[l] += p;
    }
  }
  std::copy_n(most, kLanes, greatest);
  std::copy_n(sum, kLanes, sums);
}

// Scores become the weights P = exp(score - lse), and dP, the gradient of P, that of the scores: P (dP - sum P dP).
// The sum is also out . d_out; but taken here it makes the gradient of a single key 0 without rounding.
MLXHOG_CLONES void weigh(Index keys, const float* lse, float* scores, float* dP) {
  float mean[kLanes] = {};
  for (Index j = 0; j < keys; ++j) {
#pragma omp simd
    for (Index l = 0; l < kLanes; ++l) {
      const float p = exp_f32(scores[j * kLanes + l] - lse[l]);
      scores[j * kLanes + l] = p;
      mean[l] += p * dP[j * kLanes + l];
    }
  }
  for (Index j = 0; j < keys; ++j) {
#pragma omp simd
    for (Index l = 0; l < kLanes; ++l)
      dP[j * kLanes + l] = scores[j * kLanes + l] * (dP[j * kLanes + l] - mean[l]);
  }
}

// Memory of both passes for one head at a time.
struct Scratch {
  Buffer k, v, q_rows, q_lanes, scores, result, rows, spare;

  explicit Scratch(const AttentionShape& s)
      : k(uninitialized(s.L * s.DH)), v(uninitialized(s.L * s.DH)), scores(uninitialized(s.L * kLanes)) {
    for (Buffer* buffer : {&q_rows, &q_lanes, &result, &rows, &spare}) *buffer = uninitialized(kLanes * s.DH);
  }
};

// scores[j, l] = k_j . q_l / sqrt(DH), masked
void compute_scores(const AttentionShape& s, const Block& block, const float* q, float scale, const Scratch& scratch) {
  load_block(block, q, s.NH * s.DH, s.DH, scale, scratch.q_rows.get(), scratch.q_lanes.get(), scratch.spare.get());
  gemm(block.keys(), kLanes, s.DH, &scratch.k[block.begin * s.DH], s.DH, 1, scratch.q_lanes.get(), kLanes,
       scratch.scores.get(), kLanes, false);
  mask(block, s.window, scratch.scores.get());
}

// to (queries, DH) = `result` (DH, lanes), transposed
void store_block(const AttentionShape& s, const Block& block, float factor, const Scratch& scratch, float* to) {
  from_lanes(s.DH, scratch.result.get(), scratch.rows.get(), scratch.spare.get());
  copy_rows(block.count, s.DH, scratch.rows.get(), s.DH, to, s.NH * s.DH, 0, factor);
}

void forward_head(const AttentionShape& s, const AttentionInputs& in, Index b, Index head, Scratch& scratch, float* out,
                  float* lse) {
  const Index DH = s.DH, ld = s.NH * DH, keys_at = b * s.L * ld + head * DH, at = b * s.S * ld + head * DH;
  const float scale = 1.0f / std::sqrt(static_cast<float>(DH));
  copy_rows(s.L, DH, in.k + keys_at, ld, scratch.k.get(), DH);
  copy_rows(s.L, DH, in.v + keys_at, ld, scratch.v.get(), DH);
  for (Index t = 0; t < s.S; t += kLanes) {
    const Block block(s, first_valid(s, b), t);
    float greatest[kLanes], sums[kLanes];
    compute_scores(s, block, in.q + at + t * ld, scale, scratch);
    exponentials_of_lanes(block.keys(), scratch.scores.get(), greatest, sums);
    gemm(DH, kLanes, block.keys(), &scratch.v[block.begin * DH], 1, DH, scratch.scores.get(), kLanes,
         scratch.result.get(), kLanes, false);
    for (Index l = 0; l < block.count; ++l) {
      lse[(b * s.NH + head) * s.S + t + l] = greatest[l] + std::log(sums[l]);
      sums[l] = 1.0f / sums[l];
    }
    scale_lanes(DH, sums, scratch.result.get());
    store_block(s, block, 1.0f, scratch, out + at + t * ld);
  }
}

struct GradientScratch : Scratch {
  Buffer dP, d_lanes, d_rows, dk, dv;

  explicit GradientScratch(const AttentionShape& s)
      : Scratch(s),
        dP(uninitialized(s.L * kLanes)),
        d_lanes(uninitialized(kLanes * s.DH)),
        d_rows(uninitialized(kLanes * s.DH)),
        dk(uninitialized(s.L * s.DH)),
        dv(uninitialized(s.L * s.DH)) {}
};

void backward_head(const AttentionShape& s, const AttentionInputs& in, const float* lse, const float* d_out,
                   Index b, Index head, GradientScratch& scratch, const AttentionGradients& grad) {
  const Index DH = s.DH, ld = s.NH * DH, keys_at = b * s.L * ld + head * DH, at = b * s.S * ld + head * DH;
  const float scale = 1.0f / std::sqrt(static_cast<float>(DH));
  float *P = scratch.scores.get(), *dP = scratch.dP.get();
  copy_rows(s.L, DH, in.k + keys_at, ld, scratch.k.get(), DH);
  copy_rows(s.L, DH, in.v + keys_at, ld, scratch.v.get(), DH);
  std::fill_n(scratch.dk.get(), s.L * DH, 0.0f);
  std::fill_n(scratch.dv.get(), s.L * DH, 0.0f);
  for (Index t = 0; t < s.S; t += kLanes) {
    const Block block(s, first_valid(s, b), t);
    const Index n = block.keys(), row = at + t * ld;
    const float *k = &scratch.k[block.begin * DH], *v = &scratch.v[block.begin * DH];
    float lses[kLanes] = {};
    std::copy_n(lse + (b * s.NH + head) * s.S + t, block.count, lses);
    compute_scores(s, block, in.q + row, scale, scratch);
    load_block(block, d_out + row, ld, DH, 1.0f, scratch.d_rows.get(), scratch.d_lanes.get(), scratch.spare.get());
    gemm(n, kLanes, DH, v, DH, 1, scratch.d_lanes.get(), kLanes, dP, kLanes, false);
    weigh(n, lses, P, dP);
    gemm(DH, kLanes, n, k, 1, DH, dP, kLanes, scratch.result.get(), kLanes, false);
    store_block(s, block, scale, scratch, grad.q + row);
    gemm(n, DH, kLanes, dP, kLanes, 1, scratch.q_rows.get(), DH, &scratch.dk[block.begin * DH], DH, true);
    gemm(n, DH, kLanes, P, kLanes, 1, scratch.d_rows.get(), DH, &scratch.dv[block.begin * DH], DH, true);
  }
  copy_rows(s.L, DH, scratch.dk.get(), DH, grad.k + keys_at, ld);
  copy_rows(s.L, DH, scratch.dv.get(), DH, grad.v + keys_at, ld);
}

constexpr Index kPositions = 32;  // per task

// Cosines, then sines, of one position's angles, `half` of each. In double: an angle may be thousands of turns.
void rotations(const RopeShape& s, double position, bool back, float* table) {
  const Index half = s.DH / 2;
  for (Index i = 0; i < half; ++i) {
    const double angle = position * std::pow(s.base, -static_cast<double>(i) / static_cast<double>(half));
    table[i] = static_cast<float>(std::cos(angle));
    table[half + i] = static_cast<float>(back ? -std::sin(angle) : std::sin(angle));
  }
}

template <int Half>
MLXHOG_INLINE void rotate_heads(Index NH, Index given, const float* table, const float* x, float* out) {
  const Index half = Half ? Half : given;  // a constant for the usual heads
  for (Index head = 0; head < NH; ++head, x += 2 * half, out += 2 * half) {
#pragma omp simd
    for (Index i = 0; i < half; ++i) {
      const float left = x[i], right = x[half + i];
      out[i] = left * table[i] - right * table[half + i];
      out[half + i] = left * table[half + i] + right * table[i];
    }
  }
}

MLXHOG_CLONES void rotate_row(Index NH, Index half, const float* table, const float* x, float* out) {
  switch (half) {
    case 4: return rotate_heads<4>(NH, half, table, x, out);
    case 8: return rotate_heads<8>(NH, half, table, x, out);
    case 16: return rotate_heads<16>(NH, half, table, x, out);
    case 32: return rotate_heads<32>(NH, half, table, x, out);
    default: return rotate_heads<0>(NH, half, table, x, out);
  }
}

void rope(const RopeShape& s, const float* x, bool back, float* out, int threads) {
  const Index row = s.NH * s.DH, tasks = (s.S + kPositions - 1) / kPositions;
  std::vector<float> shared(s.offset ? 0 : s.S * s.DH);
  if (!s.offset)
    for (Index t = 0; t < s.S; ++t) rotations(s, static_cast<double>(t), back, &shared[t * s.DH]);
  parallel_for(s.B * tasks, threads, [&](Index task) {
    const Index b = task / tasks, first = task % tasks * kPositions;
    std::vector<float> own(s.offset ? s.DH : 0);
    for (Index t = first; t < std::min(first + kPositions, s.S); ++t) {
      const float* table = own.data();
      if (s.offset) rotations(s, static_cast<double>(s.offset[b]) + static_cast<double>(t), back, own.data());
      else table = &shared[t * s.DH];
      rotate_row(s.NH, s.DH / 2, table, x + (b * s.S + t) * row, out + (b * s.S + t) * row);
    }
  });
}

using MaybeCounts = Maybe<const std::int32_t>;

AttentionShape attention_shape(const Sizes& sizes, MaybeCounts lengths, std::optional<Index> window) {
  require(!window || *window >= 0, "window must be 0 or more, or None");
  const Index B = sizes["B"], S = sizes["S"], L = sizes["L"];
  require(L >= S, "k has ", L, " positions, q ", S,
          "; the last keys are the queries' own, so there are as many or more");
  for (Index b = 0; lengths && b < B; ++b)
    require(lengths.data[b] >= S && lengths.data[b] <= L, "lengths has ", lengths.data[b], " at ", b, ", expected ", S,
            " to ", L);
  // A window as long as the keys hides none.
  return {B, S, L, sizes["NH"], sizes["DH"], window && *window < L ? *window : -1, lengths};
}

}  // namespace

void bind_attention(nb::module_& m) {
  def(m, "rope", "x: B S NH DH, offset: B, out: B S NH DH",
      "Rotates elements i and DH / 2 + i of x by (offset + t) * base^(-2 i / DH); offset int32 or None. `back` rotates "
      "the other way: the gradient.",
      [](Sizes& sizes, Floats x, MaybeCounts offset, Result out, double base, bool back, int threads) {
        const RopeShape s{sizes["B"], sizes["S"], sizes["NH"], sizes["DH"], base, offset};
        require(s.DH % 2 == 0, "x has heads of ", s.DH, "; pairs need an even number");
        rope(s, x, back, out, threads);
      }, "base"_a, "back"_a);
  def(m, "attention", "q: B S NH DH, k v: B L NH DH, lengths: B, out: B S NH DH, lse: B NH S",
      "Causal softmax(q k^T / sqrt(DH)) v. The last S of k and v are the queries' own; lengths int32, how many of the "
      "last keys exist, or None; lse, log of the sums.",
      [](Sizes& sizes, Floats q, Floats k, Floats v, MaybeCounts lengths, Result out, Result lse,
         std::optional<Index> window, int threads) {
        const AttentionShape s = attention_shape(sizes, lengths, window);
        for_each_head(s.B, s.NH, s.DH, threads, [&] { return Scratch(s); }, [&](Index b, Index head, Scratch& scratch) {
          forward_head(s, {q, k, v}, b, head, scratch, out, lse);
        });
      }, "window"_a.none());
  def(m, "attention_grad",
      "q: B S NH DH, k v: B L NH DH, lengths: B, lse: B NH S, d_out dq: B S NH DH, dk dv: B L NH DH", "",
      [](Sizes& sizes, Floats q, Floats k, Floats v, MaybeCounts lengths, Floats lse, Floats d_out, Result dq,
         Result dk, Result dv, std::optional<Index> window, int threads) {
        const AttentionShape s = attention_shape(sizes, lengths, window);
        for_each_head(s.B, s.NH, s.DH, threads, [&] { return GradientScratch(s); },
                      [&](Index b, Index head, GradientScratch& scratch) {
                        backward_head(s, {q, k, v}, lse, d_out, b, head, scratch, {dq, dk, dv});
                      });
      }, "window"_a.none());
}

}  // namespace mlxhog
