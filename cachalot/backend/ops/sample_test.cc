#include "backend/ops/sample.h"

#include <algorithm>
#include <map>

#include "backend/ops/op_testing.h"

namespace cachalot {
namespace {

using namespace testing;

std::vector<int32_t> range(int64_t n) {
  std::vector<int32_t> r;
  for (int64_t i = 0; i < n; ++i) r.push_back(int32_t(i));
  return r;
}

struct Logits {
  int64_t rows, vocabulary;
};

void expect_draws_of_ref(const std::vector<Logits>& sizes) {
  for (const auto& [rows, vocabulary] : sizes)
    for (const double temperature : {0.0, 0.1, 1.0, 2.5})
      for (const int64_t top_k : {0, 1, 5, 5000})
        for (const double top_p : {1.0, 0.9, 0.3, 1e-9})
          expect_like_ref(
              [&](Bench& b) -> Outputs {
                const Tensor tokens = b.t.garbage(DType::i32, 1, rows);
                on(b.s).sample({.logits = b.t.normal(DType::f32, rows, vocabulary, 3),
                                .positions = b.t.indices(range(rows)),
                                .tokens = tokens,
                                .temperature = temperature,
                                .top_p = top_p,
                                .top_k = top_k,
                                .seed = 11});
                return {tokens};
              },
              fmt::format("{} x {}, temperature {}, top_k {}, top_p {}", rows, vocabulary, temperature, top_k,
                          top_p));
}

TEST(Sample, DrawsWhatRefDraws) { expect_draws_of_ref({{0, 5}, {7, 1}, {100, 2}}); }
TEST(Sample, DrawsWhatRefDrawsFromMoreLogits) { expect_draws_of_ref({{100, 33}, {9, 1000}}); }
// On Hopper a cluster of blocks draws from it where it comes in fours, else one block.
TEST(Sample, DrawsWhatRefDrawsFromALongRow) { expect_draws_of_ref({{1, 20000}, {1, 20001}}); }

// Many ties, both zeros, infinities and NaN among more candidates than are sorted by comparing.
TEST(Sample, DrawsWhatRefDrawsFromManyTiedAndSpecialLogits) {
  for (const double temperature : {0.05, 1.0, 40.0})
    for (const double top_p : {1.0, 0.7})
      for (const bool infinite : {false, true})
        expect_like_ref(
            [&](Bench& b) -> Outputs {
              constexpr int64_t kRows = 6, kVocabulary = 5000;
              std::vector<double> logits;
              for (int64_t i = 0; i < kRows * kVocabulary; ++i) {
                const int64_t kind = int64_t(random_uniform(9, 1, uint64_t(i)) * 40);
                logits.push_back(kind == 0               ? NAN
                                 : kind == 1             ? -INFINITY
                                 : kind == 2             ? -0.0
                                 : kind == 3 && infinite ? INFINITY
                                                         : double(kind % 7) - 4);
              }
              const Tensor tokens = b.t.garbage(DType::i32, 1, kRows);
              on(b.s).sample({.logits = b.t.values(DType::f32, kRows, kVocabulary, logits),
                              .positions = b.t.indices(range(kRows)),
                              .tokens = tokens,
                              .temperature = temperature,
                              .top_p = top_p,
                              .seed = 5});
              return {tokens};
            },
            fmt::format("temperature {}, top_p {}, infinite {}", temperature, top_p, infinite));
}

// Rows that more than one block holds: spread, tied thousands of times, all equal, and one far above the
// others.
TEST(Sample, DrawsWhatRefDrawsFromLongRows) {
  const auto logit = [](int kind, int64_t t, int64_t v) {
    const double z = random_normal(7, uint64_t(t), uint64_t(v));
    return kind == 0    ? 3 * z
           : kind == 1  ? std::round(2 * z) / 2
           : kind == 2  ? 1.5
           : v == 777   ? 60
           : v % 5 == 0 ? -INFINITY
                        : 0.01 * z;
  };
  struct Setting {
    double temperature;
    int64_t top_k;
    double top_p;
  };
  constexpr int64_t kRows = 2;
  for (const int64_t vocabulary : {8196, 20000, 131068})
    for (const int kind : {0, 1, 2, 3}) {
      std::vector<double> logits;
      for (int64_t i = 0; i < kRows * vocabulary; ++i)
        logits.push_back(logit(kind, i / vocabulary, i % vocabulary));
      for (const auto& [temperature, top_k, top_p] :
           {Setting{0.7, 0, 1}, {0.7, 0, 0.9}, {30, 0, 0.9}, {1, 50, 0.9}, {30, 3000, 0.6}, {1, 3000, 1}})
        expect_like_ref(
            [&](Bench& b) -> Outputs {
              const Tensor tokens = b.t.garbage(DType::i32, 1, kRows);
              on(b.s).sample({.logits = b.t.values(DType::f32, kRows, vocabulary, logits),
                              .positions = b.t.indices(range(kRows)),
                              .tokens = tokens,
                              .temperature = temperature,
                              .top_p = top_p,
                              .top_k = top_k,
                              .seed = 21});
              return {tokens};
            },
            fmt::format("{} columns, kind {}, temperature {}, top_k {}, top_p {}", vocabulary, kind,
                        temperature, top_k, top_p));
    }
}

// What a long row comes down to: some hundred neighbours when all else is masked, likelier the lower the id, flat,
// and few likely ones before a long tail that top_p and the draw reach into.
TEST(Sample, DrawsWhatRefDrawsFromLongRowsOfEveryShape) {
  constexpr int64_t kRows = 4, kVocabulary = 20000;
  const auto logit = [](int kind, int64_t t, int64_t v) {
    const double z = random_normal(8, uint64_t(t), uint64_t(v));
    return kind == 0   ? (v >= 5000 && v < 5300 ? z : -INFINITY)
           : kind == 1 ? 0.01 * z - 0.004 * double(v)
           : kind == 2 ? 0.1 * z - 100
                       : (v % 4000 == 17 ? 9 : 0) + z;
  };
  for (const int kind : {0, 1, 2, 3}) {
    std::vector<double> logits;
    for (int64_t i = 0; i < kRows * kVocabulary; ++i)
      logits.push_back(logit(kind, i / kVocabulary, i % kVocabulary));
    for (const double temperature : {0.6, 1.0, 2.5})
      for (const int64_t top_k : {0, 40, 700})
        for (const double top_p : {1.0, 0.95, 0.9999})
          expect_like_ref(
              [&](Bench& b) -> Outputs {
                const Tensor tokens = b.t.garbage(DType::i32, 1, kRows);
                on(b.s).sample({.logits = b.t.values(DType::f32, kRows, kVocabulary, logits),
                                .positions = b.t.indices(range(kRows)),
                                .tokens = tokens,
                                .temperature = temperature,
                                .top_p = top_p,
                                .top_k = top_k,
                                .seed = 31});
                return {tokens};
              },
              fmt::format("kind {}, temperature {}, top_k {}, top_p {}", kind, temperature, top_k, top_p));
  }
}

TEST(Sample, EqualLogitsAreTakenInTheOrderOfTheirIds) {
  for (const double temperature : {0.0, 1.0})
    for (const int64_t top_k : {0, 3})
      expect_like_ref([&](Bench& b) -> Outputs {
        std::vector<double> logits;
        for (int i = 0; i < 200; ++i)
          for (const double x : {1, 2, 2, 0, 2, 1, -1}) logits.push_back(x);
        const Tensor tokens = b.t.garbage(DType::i32, 1, 200);
        on(b.s).sample({.logits = b.t.values(DType::f32, 200, 7, logits),
                        .positions = b.t.indices(range(200)),
                        .tokens = tokens,
                        .temperature = temperature,
                        .top_k = top_k,
                        .seed = 3});
        return {tokens};
      });
  for (const TestedDevice& tested : tested_devices()) {
    Bench b(*tested.device);
    const Tensor token = b.t.garbage(DType::i32, 1, 1);
    on(b.s).sample({.logits = b.t.values(DType::f32, 1, 4, {1, 5, 5, 2}),
                    .positions = b.t.indices({0}),
                    .tokens = token});
    EXPECT_EQ(read_number(b.s, token), 1);
  }
}

TEST(Sample, NanIsNeverDrawnAndNothingLeftGivesTokenZero) {
  const std::vector<double> rows = {
      NAN, -INFINITY, NAN, NAN, NAN, -INFINITY, 3, NAN, -1,        NAN,       0,         -INFINITY,
      NAN, NAN,       NAN, NAN, 0,   INFINITY,  5, NAN, -INFINITY, -INFINITY, -INFINITY, -INFINITY};
  for (const double temperature : {0.0, 1.0})
    for (const int64_t top_k : {0, 2})
      for (const double top_p : {1.0, 0.5})
        expect_like_ref([&](Bench& b) -> Outputs {
          const Tensor tokens = b.t.garbage(DType::i32, 1, 6);
          on(b.s).sample({.logits = b.t.values(DType::f32, 6, 4, rows),
                          .positions = b.t.indices(range(6)),
                          .tokens = tokens,
                          .temperature = temperature,
                          .top_p = top_p,
                          .top_k = top_k,
                          .seed = 1});
          const std::vector<int32_t> got = read_indices(b.s, tokens);
          EXPECT_EQ(got[0], 0);
          EXPECT_EQ(got[1], 2);
          EXPECT_TRUE(got[2] == 0 || got[2] == 2);
          EXPECT_EQ(got[3], 0);
          EXPECT_EQ(got[4], 1);
          EXPECT_EQ(got[5], 0);
          return {tokens};
        });
}

// A row's token is a function of its logits, the seed and its position, not of the rows beside it.
TEST(Sample, ARowIsDrawnAloneAsInABatch) {
  for (const TestedDevice& tested : tested_devices()) {
    Bench b(*tested.device);
    const Tensor logits = b.t.normal(DType::f32, 9, 50), all = b.t.garbage(DType::i32, 1, 9),
                 one = b.t.garbage(DType::i32, 1, 1);
    Sample s{.logits = logits,
             .positions = b.t.indices({5, 3, 100, 0, 7, 8, 9, 10, 11}),
             .tokens = all,
             .temperature = 1,
             .seed = 77};
    on(b.s).sample(s);
    s.logits = logits.slice_rows(2, 1), s.positions = b.t.indices({100}), s.tokens = one;
    on(b.s).sample(s);
    EXPECT_EQ(read_indices(b.s, one)[0], read_indices(b.s, all)[2]);
  }
}

TEST(Sample, ALongRowIsDrawnAloneAsInABatch) {
  constexpr int64_t kRows = 40;  // more than a card draws from at once
  for (const TestedDevice& tested : tested_devices()) {
    Bench b(*tested.device);
    const Tensor logits = b.t.normal(DType::f32, kRows, 30000), all = b.t.garbage(DType::i32, 1, kRows),
                 one = b.t.garbage(DType::i32, 1, 1);
    for (const double top_p : {1.0, 0.9})
      for (const int64_t top_k : {0, 50}) {
        Sample s{.logits = logits,
                 .positions = b.t.indices(range(kRows)),
                 .tokens = all,
                 .temperature = 1,
                 .top_p = top_p,
                 .top_k = top_k,
                 .seed = 78};
        on(b.s).sample(s);
        for (const int32_t t : {0, 7, int32_t(kRows) - 1}) {
          s.logits = logits.slice_rows(t, 1), s.positions = b.t.indices({t}), s.tokens = one;
          on(b.s).sample(s);
          EXPECT_EQ(read_indices(b.s, one)[0], read_indices(b.s, all)[size_t(t)]);
        }
      }
  }
}

TEST(Sample, FrequenciesFollowTheSoftmax) {
  const int64_t draws = 10000;
  for (const TestedDevice& tested : tested_devices()) {
    Bench b(*tested.device);
    std::vector<double> logits;
    for (int64_t i = 0; i < draws; ++i)
      for (const double p : {0.5, 0.1, 0.4})
        logits.push_back(2 * std::log(p));  // temperature 2 takes the 2 away
    const Tensor tokens = b.t.garbage(DType::i32, 1, draws);
    on(b.s).sample({.logits = b.t.values(DType::f32, draws, 3, logits),
                    .positions = b.t.indices(range(draws)),
                    .tokens = tokens,
                    .temperature = 2,
                    .seed = 5});
    std::map<int32_t, double> share;
    for (const int32_t token : read_indices(b.s, tokens)) share[token] += 1.0 / double(draws);
    EXPECT_NEAR(share[0], 0.5, 0.02);  // four standard deviations
    EXPECT_NEAR(share[1], 0.1, 0.012);
    EXPECT_NEAR(share[2], 0.4, 0.02);
  }
}

// chi-square over sixteen sets of tokens, likely ones and the long tail, each about as likely as the others.
TEST(Sample, ALongRowFollowsTheSoftmaxOfWhatIsKept) {
  constexpr int64_t kRows = 250, kVocabulary = 8200, kCalls = 4;
  constexpr size_t kSets = 16;
  std::vector<double> row;
  for (int64_t v = 0; v < kVocabulary; ++v)
    row.push_back(double(float(2 * random_normal(3, 0, uint64_t(v)))));
  std::vector<size_t> order;
  for (size_t v = 0; v < row.size(); ++v) order.push_back(v);
  std::sort(order.begin(), order.end(), [&](size_t v, size_t w) { return row[v] > row[w]; });
  std::vector<double> logits;
  for (int64_t t = 0; t < kRows; ++t) logits.insert(logits.end(), row.begin(), row.end());
  struct Setting {
    double top_p;
    int64_t top_k;
  };
  for (const TestedDevice& tested : tested_devices())
    for (const auto& [top_p, top_k] : {Setting{1, 0}, {0.8, 0}, {1, 1000}}) {
      std::vector<double> p(row.size(), 0);
      double by_k = 0, kept = 0;
      const size_t most = top_k > 0 ? size_t(top_k) : row.size();
      for (size_t i = 0; i < most; ++i) by_k += std::exp(row[order[i]]);
      for (size_t i = 0; i < most && kept < top_p * by_k; ++i) kept += p[order[i]] = std::exp(row[order[i]]);
      std::vector<size_t> set(row.size(), kSets);  // kSets: never drawn
      std::vector<double> expected(kSets, 0), seen(kSets, 0);
      double before = 0;
      for (size_t i = 0; i < row.size() && p[order[i]] > 0; ++i) {
        set[order[i]] = std::min(kSets - 1, size_t(double(kSets) * before / kept));
        expected[set[order[i]]] += p[order[i]] / kept * double(kRows * kCalls);
        before += p[order[i]];
      }
      Bench b(*tested.device);
      const Tensor tokens = b.t.garbage(DType::i32, 1, kRows);
      Sample s{.logits = b.t.values(DType::f32, kRows, kVocabulary, logits),
               .positions = b.t.indices(range(kRows)),
               .tokens = tokens,
               .temperature = 1,
               .top_p = top_p,
               .top_k = top_k};
      for (s.seed = 0; s.seed < uint64_t(kCalls); ++s.seed) {
        on(b.s).sample(s);
        for (const int32_t token : read_indices(b.s, tokens)) {
          ASSERT_LT(set[size_t(token)], kSets) << "token " << token << " is not kept";
          ++seen[set[size_t(token)]];
        }
      }
      double chi_square = 0;
      for (size_t i = 0; i < kSets; ++i)
        chi_square += (seen[i] - expected[i]) * (seen[i] - expected[i]) / expected[i];
      EXPECT_LT(chi_square, 50) << "top_p " << top_p << ", top_k " << top_k;  // 15 degrees: p < 2e-5
    }
}

}  // namespace
}  // namespace cachalot
