// Matrix completion: rows L_u and R_v whose product is the rating Z of user u for item v.
//
//   sum over ratings of (L_u . R_v - Z)^2 + mu / (2 d_u) |L_u|^2 + mu / (2 d_v) |R_v|^2
//
// One example moves both rows, from their old values; its bits do not depend on the machine's vector width.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "pairs.h"
#include "scheme.h"

namespace mlxhog::classic {

inline constexpr std::size_t kRowStep = 16;  // floats of which a row's width is a multiple

// Pointers stay owned by the caller. `width` is a multiple of 16; columns past the rank are zero and stay so.
struct Completion {
  float* left;                // (n_users, width)
  float* right;               // (n_items, width)
  Pairs ratings;              // user, item, rating
  const float* shrink_users;  // (n_users,): mu / d_u
  const float* shrink_items;  // (n_items,): mu / d_v
  std::size_t n_users, n_items, width;
  std::size_t user_word0, item_word0;  // lock words of the rows 0, counted from the scheme's row_word0

  std::size_t n() const { return ratings.size(); }
  std::size_t words() const { return std::max(user_word0 + n_users, item_word0 + n_items); }
};

std::size_t run(Scheme& scheme, Completion& problem, const Share& share);

// Sum of (L_u . R_v - Z)^2 over all ratings in double; NaN and infinity propagate.
double squared_error(const Completion& problem);

}  // namespace mlxhog::classic
