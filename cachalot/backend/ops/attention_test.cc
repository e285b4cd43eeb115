#include "backend/ops/attention.h"

#include <array>

#include "backend/ops/op_testing.h"

namespace cachalot {
namespace {

using namespace testing;

struct Lengths {  // of one sequence
  int32_t queries = 0, keys = 0;
};

struct Case {
  std::vector<Lengths> lengths;
  int64_t heads = 2, nope = 5, rope = 4, value = 3;
  DType act = DType::f32;
  int64_t padding = 0;
  double spread = 1;  // of the numbers: large ones give sharp probabilities
  std::string text() const {
    std::string t;
    for (const Lengths& l : lengths) t += fmt::format("{} on {}, ", l.queries, l.keys);
    return t + fmt::format("heads {} nope {} rope {} value {} {} padding {}", heads, nope, rope, value,
                           name_of(act), padding);
  }
};

AttentionShape shape_of(Bench& b, const Case& c) {
  std::vector<int32_t> q{0}, k{0};
  for (const Lengths& l : c.lengths) q.push_back(q.back() + l.queries), k.push_back(k.back() + l.keys);
  return {.heads = c.heads,
          .nope = c.nope,
          .rope = c.rope,
          .value = c.value,
          .scale = 1 / std::sqrt(double(c.nope + c.rope)),
          .sequences = int64_t(c.lengths.size()),
          .q_starts = b.t.indices(q),
          .k_starts = b.t.indices(k)};
}

Outputs run(Bench& b, const Case& c) {
  int64_t tokens = 0, keys = 0;
  for (const Lengths& l : c.lengths) tokens += l.queries, keys += l.keys;
  const AttentionShape shape = shape_of(b, c);
  const Tensor q = b.t.normal(c.act, tokens, c.heads * (c.nope + c.rope), c.spread, c.padding);
  const Tensor kv = b.t.normal(c.act, keys, c.heads * (c.nope + c.value), 1, 2 * c.padding);
  const Tensor k_rope = b.t.normal(c.act, keys, c.rope, 1, c.padding);
  const Tensor o = b.t.garbage(c.act, tokens, c.heads * c.value, c.padding);
  const Tensor lse = b.t.garbage(DType::f32, tokens, c.heads);
  on(b.s).attention_forward({.shape = shape, .q = q, .kv = kv, .k_rope = k_rope, .o = o, .lse = lse});

  // The backward gets the oracle's o and lse, whatever the forward above made of them.
  Bench oracle(ref_device());
  const Tensor ref_o = oracle.t.garbage(c.act, tokens, o.cols),
               ref_lse = oracle.t.garbage(DType::f32, tokens, c.heads);
  on(oracle.s).attention_forward({.shape = shape_of(oracle, c),
                                  .q = oracle.t.copy(b.s, q),
                                  .kv = oracle.t.copy(b.s, kv),
                                  .k_rope = oracle.t.copy(b.s, k_rope),
                                  .o = ref_o,
                                  .lse = ref_lse});
  const Tensor d_o = b.t.normal(c.act, tokens, o.cols, 1, 3 * c.padding);
  const Tensor dq = b.t.garbage(c.act, tokens, q.cols, c.padding);
  const Tensor dkv = b.t.garbage(c.act, keys, kv.cols, c.padding);
  const Tensor dk_rope = b.t.garbage(c.act, keys, c.rope, c.padding);
  on(b.s).attention_backward({.shape = shape,
                              .q = q,
                              .kv = kv,
                              .k_rope = k_rope,
                              .o = b.t.copy(oracle.s, ref_o, c.padding),
                              .lse = b.t.copy(oracle.s, ref_lse),
                              .d_o = d_o,
                              .dq = dq,
                              .dkv = dkv,
                              .dk_rope = dk_rope});
  return {o, lse, dq, dkv, dk_rope};
}

TEST(Attention, ForwardAndBackwardMeetTheMetric) {
  const std::vector<std::vector<Lengths>> batches = {
      {{1, 2}}, {{3, 3}}, {{7, 7}, {1, 1}, {17, 17}}, {{33, 33}, {0, 0}, {5, 5}}, {{0, 4}, {1, 9}, {6, 20}},
      {}};
  int number = 0;
  for (const auto& lengths : batches)
    for (const DType act : {DType::f32, DType::bf16})
      for (const int64_t heads : {1, 3}) {
        ++number;
        const Case c{.lengths = lengths,
                     .heads = heads,
                     .nope = number % 2 ? 5 : 16,
                     .rope = number % 3 ? 4 : 2,
                     .value = number % 2 ? 3 : 17,
                     .act = act,
                     .padding = number % 4};
        expect_like_ref([&](Bench& b) { return run(b, c); }, c.text());
      }
}

// Its dq and dk are zero up to rounding: only the rest compares.
TEST(Attention, AQueryThatSeesOneKeyTakesItsValue) {
  for (const DType act : {DType::f32, DType::bf16})
    expect_like_ref([&](Bench& b) -> Outputs {
      const Outputs all = run(b, {.lengths = {{1, 1}}, .heads = 1, .nope = 0, .act = act});
      return {all[0], all[1], all[3]};
    });
}

TEST(Attention, BlocksOfQueriesAndKeysMeetTheMetric) {  // blocks are 128 by 128
  for (const auto& lengths :
       std::vector<std::vector<Lengths>>{{{129, 129}}, {{257, 257}}, {{130, 300}, {127, 128}}})
    for (const DType act : {DType::f32, DType::bf16}) {
      const Case c{.lengths = lengths, .act = act, .padding = 1, .spread = 3};
      expect_like_ref([&](Bench& b) { return run(b, c); }, c.text());
    }
}

// Queries are cut by how many threads there are, up to 512 together.
TEST(Attention, LongSequencesMeetTheMetricWithAnyCut) {
  for (const DType act : {DType::f32, DType::bf16}) {
    const Case c{.lengths = {{530, 700}, {1, 600}}, .heads = 1, .nope = 8, .rope = 4, .value = 6, .act = act};
    expect_like_ref([&](Bench& b) { return run(b, c); }, c.text());
  }
}

TEST(Attention, ManyHeadsShareOneRopeKey) {  // more heads than groups of the backward
  for (const DType act : {DType::f32, DType::bf16}) {
    const Case c{.lengths = {{9, 9}, {4, 6}}, .heads = 37, .act = act};
    expect_like_ref([&](Bench& b) { return run(b, c); }, c.text());
  }
}

TEST(Attention, ManyHeadsOfTheRealModel) {  // more than sums are kept for between blocks
  Case c{.lengths = {{66, 130}, {3, 3}}, .nope = 128, .rope = 64, .value = 128, .act = DType::bf16};
  for (const int64_t heads : {26, 63, 128}) {
    c.heads = heads;
    expect_like_ref([&](Bench& b) { return run(b, c); }, c.text());
    c.lengths = {{1, 1}, {20, 21}, {0, 3}};  // the oracle takes its time
  }
}

TEST(Attention, TheWidthsOfTheRealModel) {
  const Case c{.lengths = {{20, 20}, {3, 11}}, .heads = 2, .nope = 128, .rope = 64, .value = 128};
  expect_like_ref([&](Bench& b) { return run(b, c); }, c.text());
}

// Aligned rows and heads: what tensor cores take. Blocks of 128 and steps of 64 and 32 end inside.
TEST(Attention, AlignedHeadsInBf16) {
  const Case real{.lengths = {{200, 200}, {0, 3}, {3, 140}, {70, 70}},
                  .heads = 2,
                  .nope = 128,
                  .rope = 64,
                  .value = 128,
                  .act = DType::bf16};
  const Case small{.lengths = {{1, 1}, {33, 33}, {150, 290}},
                   .heads = 3,
                   .nope = 16,
                   .rope = 8,
                   .value = 24,
                   .act = DType::bf16,
                   .padding = 8,
                   .spread = 2};
  const Case narrow{
      .lengths = {{40, 41}}, .heads = 5, .nope = 32, .rope = 16, .value = 32, .act = DType::bf16};
  const Case tiles{.lengths = {{300, 520}, {129, 129}},  // of 64 queries and 128 keys: several, and ragged
                   .heads = 3,
                   .nope = 128,
                   .rope = 64,
                   .value = 128,
                   .act = DType::bf16,
                   .padding = 8};
  for (const Case& c : {real, small, narrow, tiles})
    expect_like_ref([&](Bench& b) { return run(b, c); }, c.text());
}

TEST(Attention, WithoutRopeOrWithoutOtherColumns) {
  for (const auto& [nope, rope] : {std::pair<int64_t, int64_t>{6, 0}, {0, 6}}) {
    const Case c{.lengths = {{5, 5}, {2, 7}}, .nope = nope, .rope = rope};
    expect_like_ref([&](Bench& b) { return run(b, c); }, c.text());
  }
}

TEST(Attention, LargeScoresDoNotOverflow) {
  const Case c{.lengths = {{40, 40}}, .spread = 300};  // scores in the hundreds
  expect_like_ref([&](Bench& b) -> Outputs {
    const Outputs all = run(b, c);
    return {all[0], all[1]};
  });
}

// What comes later, or stands in another sequence, must not be seen: NaN there stays there.
TEST(Attention, NoQuerySeesLaterTokensOrOtherSequences) {
  const int64_t tokens = 9, width = 2 * (3 + 2);
  for (const TestedDevice& tested : tested_devices()) {
    Bench b(*tested.device);
    const AttentionShape shape{.heads = 2,
                               .nope = 3,
                               .rope = 2,
                               .value = 4,
                               .scale = 1,
                               .sequences = 3,
                               .q_starts = b.t.indices({0, 3, 7, 9}),
                               .k_starts = b.t.indices({0, 3, 7, 9})};
    const Tensor q = b.t.normal(DType::f32, tokens, width), kv = b.t.normal(DType::f32, tokens, 2 * (3 + 4)),
                 k_rope = b.t.normal(DType::f32, tokens, 2), o = b.t.garbage(DType::f32, tokens, 8),
                 lse = b.t.garbage(DType::f32, tokens, 2), clean = b.t.garbage(DType::f32, tokens, 8);
    on(b.s).attention_forward({.shape = shape, .q = q, .kv = kv, .k_rope = k_rope, .o = clean, .lse = lse});
    const std::vector<float> large(14, 1e4f);
    on(b.s).upload(large.data(), kv.slice_rows(5, 1));  // the third token of the second sequence
    on(b.s).upload(large.data(), k_rope.slice_rows(5, 1));
    on(b.s).attention_forward({.shape = shape, .q = q, .kv = kv, .k_rope = k_rope, .o = o, .lse = lse});
    const std::vector<double> before = read(b.s, clean), after = read(b.s, o);
    for (size_t i = 0; i < before.size(); ++i) {
      const bool sees = i / 8 == 5 || i / 8 == 6;
      EXPECT_EQ(before[i] != after[i], sees) << tested.name << ", row " << i / 8;
    }
  }
}

// Prefill in one piece, in chunks or token by token: the same bits.
void expect_same_bits_in_pieces(const Case& c) {
  const int32_t tokens = c.lengths[0].queries;
  for (const TestedDevice& tested : tested_devices()) {
    Bench b(*tested.device);
    const Tensor q = b.t.normal(c.act, tokens, c.heads * (c.nope + c.rope)),
                 kv = b.t.normal(c.act, tokens, c.heads * (c.nope + c.value)),
                 k_rope = b.t.normal(c.act, tokens, c.rope),
                 all = b.t.garbage(c.act, tokens, c.heads * c.value),
                 lse = b.t.garbage(DType::f32, tokens, c.heads);
    on(b.s).attention_forward(
        {.shape = shape_of(b, c), .q = q, .kv = kv, .k_rope = k_rope, .o = all, .lse = lse});
    for (const Lengths l : {Lengths{1, tokens}, {1, 1}, {3, 131}, {20, 128}, {70, 149}}) {
      Case part = c;
      part.lengths = {l};
      const Tensor o = b.t.garbage(c.act, l.queries, all.cols),
                   some_lse = b.t.garbage(DType::f32, l.queries, c.heads);
      on(b.s).attention_forward({.shape = shape_of(b, part),
                                 .q = q.slice_rows(l.keys - l.queries, l.queries),
                                 .kv = kv.slice_rows(0, l.keys),
                                 .k_rope = k_rope.slice_rows(0, l.keys),
                                 .o = o,
                                 .lse = some_lse});
      EXPECT_TRUE(read_bits(b.s, o) == read_bits(b.s, all.slice_rows(l.keys - l.queries, l.queries)))
          << tested.name << ", " << l.queries << " on " << l.keys << ", " << c.text();
      EXPECT_TRUE(read_bits(b.s, some_lse) == read_bits(b.s, lse.slice_rows(l.keys - l.queries, l.queries)))
          << tested.name << ", " << l.queries << " on " << l.keys << ", " << c.text();
    }
  }
}

TEST(Attention, AQueryHasTheSameBitsWhateverStandsBesideIt) {
  for (const DType act : {DType::f32, DType::bf16})
    expect_same_bits_in_pieces({.lengths = {{150, 150}}, .act = act});
  expect_same_bits_in_pieces(
      {.lengths = {{290, 290}}, .nope = 128, .rope = 64, .value = 128, .act = DType::bf16});
}

// Blocks of rows reach behind a sequence's end: NaN of the next sequence stays there, in every output, with the
// bits of the others unmoved.
TEST(Attention, NanOfASequenceStaysInIt) {
  for (const auto& [nope, rope, value] :
       {std::array<int64_t, 3>{128, 64, 128}, {5, 4, 3}})  // of tensor cores, of plain kernels
    for (const TestedDevice& tested : tested_devices()) {
      const ScopedTrace trace(__FILE__, __LINE__, fmt::format("{}, {} + {}", tested.name, nope, rope));
      const Case c{.lengths = {{70, 100}, {40, 40}, {131, 150}},
                   .nope = nope,
                   .rope = rope,
                   .value = value,
                   .act = DType::bf16};
      struct Rows {
        int64_t first, count;
      };
      const Rows of_queries[] = {{0, 70}, {70, 40}, {110, 131}},
                 of_keys[] = {{0, 100}, {100, 40}, {140, 150}};
      std::vector<std::vector<std::string>>
          bits;  // of the clean run, of the other one: of each output's rows
      for (const bool poisoned : {false, true}) {
        Bench b(*tested.device);
        const AttentionShape shape = shape_of(b, c);
        const int64_t width = c.heads * (nope + rope), wide = c.heads * (nope + value), out = c.heads * value;
        const Tensor q = b.t.normal(c.act, 241, width), kv = b.t.normal(c.act, 290, wide),
                     k_rope = b.t.normal(c.act, 290, rope), d_o = b.t.normal(c.act, 241, out),
                     o = b.t.garbage(c.act, 241, out), lse = b.t.garbage(DType::f32, 241, c.heads),
                     dq = b.t.garbage(c.act, 241, width), dkv = b.t.garbage(c.act, 290, wide),
                     dk_rope = b.t.garbage(c.act, 290, rope);
        if (poisoned) {
          const std::vector<uint16_t> nan(size_t(40 * std::max(width, wide)), 0x7FC0);
          for (const Tensor& t : {q, d_o}) on(b.s).upload(nan.data(), t.slice_rows(70, 40));
          for (const Tensor& t : {kv, k_rope}) on(b.s).upload(nan.data(), t.slice_rows(100, 40));
        }
        on(b.s).attention_forward({.shape = shape, .q = q, .kv = kv, .k_rope = k_rope, .o = o, .lse = lse});
        on(b.s).attention_backward({.shape = shape,
                                    .q = q,
                                    .kv = kv,
                                    .k_rope = k_rope,
                                    .o = o,
                                    .lse = lse,
                                    .d_o = d_o,
                                    .dq = dq,
                                    .dkv = dkv,
                                    .dk_rope = dk_rope});
        std::vector<std::string>& mine = bits.emplace_back();
        for (const int s : {0, 2}) {
          for (const Tensor& t : {o, lse, dq})
            mine.push_back(read_bits(b.s, t.slice_rows(of_queries[s].first, of_queries[s].count)));
          for (const Tensor& t : {dkv, dk_rope})
            mine.push_back(read_bits(b.s, t.slice_rows(of_keys[s].first, of_keys[s].count)));
        }
        for (const double x : read(b.s, o.slice_rows(70, 40))) EXPECT_EQ(std::isnan(x), poisoned);
      }
      for (size_t i = 0; i < bits[0].size(); ++i) EXPECT_TRUE(bits[0][i] == bits[1][i]) << "rows " << i;
    }
}

TEST(Attention, RowsOfNoSequenceGetZeroGradients) {
  expect_like_ref([](Bench& b) -> Outputs {
    const AttentionShape shape{.heads = 1,
                               .nope = 2,
                               .rope = 2,
                               .value = 3,
                               .scale = 1,
                               .sequences = 1,
                               .q_starts = b.t.indices({1, 3}),
                               .k_starts = b.t.indices({2, 5})};
    const Tensor q = b.t.normal(DType::f32, 4, 4), kv = b.t.normal(DType::f32, 7, 5),
                 k_rope = b.t.normal(DType::f32, 7, 2), o = b.t.zeros(DType::f32, 4, 3),
                 lse = b.t.zeros(DType::f32, 4, 1), d_o = b.t.normal(DType::f32, 4, 3);
    on(b.s).attention_forward({.shape = shape, .q = q, .kv = kv, .k_rope = k_rope, .o = o, .lse = lse});
    const Tensor dq = b.t.garbage(DType::f32, 4, 4), dkv = b.t.garbage(DType::f32, 7, 5),
                 dk_rope = b.t.garbage(DType::f32, 7, 2);
    on(b.s).attention_backward({.shape = shape,
                                .q = q,
                                .kv = kv,
                                .k_rope = k_rope,
                                .o = o,
                                .lse = lse,
                                .d_o = d_o,
                                .dq = dq,
                                .dkv = dkv,
                                .dk_rope = dk_rope});
    return {o, lse, dq, dkv, dk_rope};
  });
}

TEST(Attention, AQueryWithoutItsOwnKeyIsRefused) {
  expect_refused([](Bench& b) { run(b, {.lengths = {{3, 2}}}); }, "");
}

}  // namespace
}  // namespace cachalot
