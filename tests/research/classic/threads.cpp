// The schemes as threads of one program, for test_native_threads.py.
//
//   threads KIND dense|sparse      three workers run one problem under that scheme; prints the examples done
#include <cstdio>
#include <cstdlib>
#include <string>
#include <thread>
#include <vector>

#include "dense.h"
#include "linear.h"
#include "scheme.h"

using namespace mlxhog;
using namespace mlxhog::classic;

namespace {

constexpr std::size_t kWorkers = 3, kRows = 200, kPerRow = 9, kWidth = 16, kCoordinates = 6 * kWidth;

struct Shared {
  alignas(128) std::uint8_t board[sizeof(BoardHead) + kWorkers * sizeof(BoardLine)] = {};
  std::vector<float> x = std::vector<float>(kCoordinates);
  std::vector<std::uint32_t> words = std::vector<std::uint32_t>(kCoordinates / kWidth);
  std::vector<WorkerEntry> workers = std::vector<WorkerEntry>(kWorkers);
  float probe = 0.0f;
};

struct Data {
  std::vector<std::int64_t> indptr{0};
  std::vector<std::int32_t> indices;
  std::vector<float> values, labels, features, shrink = std::vector<float>(kCoordinates, 0.01f);

  Data() {
    for (std::size_t e = 0; e < kRows; ++e) {
      for (std::size_t k = 0; k < kPerRow; ++k) {
        indices.push_back(static_cast<std::int32_t>(k * 10 + (e * 7 + k) % 10));
        values.push_back(0.1f * static_cast<float>(1 + (e + k) % 5));
      }
      indptr.push_back(static_cast<std::int64_t>(indices.size()));
      labels.push_back(e % 2 == 0 ? 1.0f : -1.0f);
    }
    for (std::size_t i = 0; i < kRows * kCoordinates; ++i) features.push_back(0.01f * static_cast<float>(i % 17));
  }
};

template <class Problem>
void work(Shared& shared, Problem problem, Kind kind, std::uint32_t rank) {
  Locks locks(shared.words.data(), shared.words.size(), shared.workers.data(), kWorkers, rank + 1, 0);
  Scheme scheme{kind, Board(reinterpret_cast<BoardHead*>(shared.board), kWorkers), &locks, 0, rank, 32, 8,
                &shared.probe};
  std::vector<std::int32_t> order;
  for (std::size_t k = 0; k < 5 * kRows; ++k) order.push_back(static_cast<std::int32_t>((k * 13 + rank) % kRows));
  run(scheme, problem, Share{order.data(), order.size(), 0.01f, 1 + rank % 2});
}

Kind kind_of(const std::string& name) {
  if (name == "racy") return Kind::racy;
  if (name == "lossless") return Kind::lossless;
  if (name == "hot_cold") return Kind::hot_cold;
  if (name == "aig") return Kind::aig;
  if (name == "round_robin") return Kind::round_robin;
  if (name == "sync") return Kind::sync;
  std::exit(2);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) return 2;
  const Kind kind = kind_of(argv[1]);
  const bool dense = std::string(argv[2]) == "dense";
  static Shared shared;
  const Data data;
  std::vector<std::thread> threads;
  for (std::uint32_t rank = 0; rank < kWorkers; ++rank) {
    threads.emplace_back([&, rank] {
      if (dense) {
        const DenseRows rows{data.features.data(), data.labels.data(), kRows, kCoordinates};
        work(shared, DenseLinear(shared.x.data(), kCoordinates, kWidth, rows, Loss::hinge, 1), kind, rank);
      } else {
        const SparseRows rows{data.indptr.data(), data.indices.data(), data.values.data(), data.labels.data(), kRows};
        const float* shrink = data.shrink.data();
        work(shared, SparseLinear(shared.x.data(), kCoordinates, kWidth, rows, shrink, Loss::logistic), kind, rank);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  Board board(reinterpret_cast<BoardHead*>(shared.board), kWorkers);
  std::uint64_t done = 0;
  for (std::uint32_t rank = 0; rank < kWorkers; ++rank) done += board.examples(rank);
  std::printf("%llu\n", static_cast<unsigned long long>(done));
  return 0;
}
