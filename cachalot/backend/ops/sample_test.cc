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
// On Hopper a cluster of blocks draws from it.
TEST(Sample, DrawsWhatRefDrawsFromALongRow) { expect_draws_of_ref({{1, 20000}}); }

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

}  // namespace
}  // namespace cachalot
