#include "backend/ops/latent_attention.h"

#include <algorithm>
#include <cmath>

#include "backend/ops/latent_row.h"
#include "backend/ops/op_testing.h"

namespace cachalot {
namespace {

using namespace testing;

struct Lengths {
  int32_t queries = 0, tokens = 0;
};
struct Case {
  std::vector<Lengths> lengths;
  int64_t heads = 2, latent = 9, rope = 4, page_size = 4;
  DType act = DType::f32;
  int64_t padding = 0, gap = 3;       // gap: columns between the heads of q_rope
  int64_t piece = 0, table_cols = 0;  // the page table has at least so many columns
};

// Pages are handed out backwards and with gaps; what no sequence owns stays NaN.
Outputs run(Bench& b, const Case& c) {
  int64_t most = std::max<int64_t>(c.table_cols, 1), pages = 1;
  std::vector<int32_t> starts{0}, lens;
  for (const Lengths& l : c.lengths) {
    starts.push_back(starts.back() + l.queries);
    lens.push_back(l.tokens);
    most = std::max(most, l.tokens / c.page_size + 2);
    pages += l.tokens / c.page_size + 2;
  }
  const int64_t width = c.latent + c.rope, sequences = int64_t(c.lengths.size());
  std::vector<double> cache(size_t(pages * c.page_size * width), NAN);
  std::vector<int32_t> table(size_t(sequences * most), 1 << 30);  // garbage past the last page
  int64_t next = pages - 1;
  for (int64_t s = 0; s < sequences; ++s)
    for (int64_t token = 0; token < lens[size_t(s)]; ++token) {
      const int64_t page = token / c.page_size;
      if (token % c.page_size == 0) table[size_t(s * most + page)] = int32_t(next--);
      const int64_t slot = table[size_t(s * most + page)] * c.page_size + token % c.page_size;
      for (int64_t d = 0; d < width; ++d)
        cache[size_t(slot * width + d)] = random_normal(5, uint64_t(s), uint64_t(token * width + d));
    }
  const int64_t rows = starts.back(), stride = c.rope + c.gap;
  const Tensor q_latent = b.t.normal(c.act, rows, c.heads * c.latent, 1, c.padding);
  const Tensor q_rope = b.t.normal(c.act, rows, c.heads * stride, 1, c.padding);
  const Tensor o = b.t.garbage(c.act, rows, c.heads * c.latent, c.padding);
  on(b.s).latent_attention({.q_latent = q_latent,
                            .q_rope = q_rope,
                            .cache = b.t.values(c.act, pages * c.page_size, width, cache, c.padding),
                            .page_table = b.t.indices(sequences, most, table),
                            .kv_lens = b.t.indices(lens),
                            .q_starts = b.t.indices(starts),
                            .o_latent = o,
                            .heads = c.heads,
                            .latent = c.latent,
                            .rope = c.rope,
                            .q_rope_stride = stride,
                            .page_size = c.page_size,
                            .sequences = sequences,
                            .scale = 0.3,
                            .piece = c.piece});
  return {o};
}

TEST(LatentAttention, MeetsTheMetricAndSeesOnlyItsOwnPages) {
  const std::vector<std::vector<Lengths>> batches = {
      {{1, 1}},           {{1, 7}, {1, 33}, {1, 1}},   {{3, 3}, {2, 65}},
      {{0, 5}, {1, 129}}, {{5, 257}, {0, 0}, {1, 64}}, {}};
  int number = 0;
  for (const auto& lengths : batches)
    for (const DType act : {DType::f32, DType::bf16})
      for (const int64_t heads : {1, 3, 33}) {
        ++number;
        const Case c{.lengths = lengths,
                     .heads = heads,
                     .latent = number % 2 ? 9 : 32,
                     .rope = number % 3 ? 4 : 2,
                     .page_size = number % 4 ? 4 : 64,
                     .act = act,
                     .padding = number % 3};
        expect_like_ref([&](Bench& b) { return run(b, c); }, fmt::format("case {}", number));
      }
}

TEST(LatentAttention, TheWidthsOfTheRealModel) {
  for (const DType act : {DType::f32, DType::bf16}) {
    const Case c{
        .lengths = {{2, 70}, {1, 5}}, .heads = 5, .latent = 512, .rope = 64, .page_size = 64, .act = act};
    expect_like_ref([&](Bench& b) { return run(b, c); });
  }
}

// Aligned rows: what tensor cores take; tokens in several pieces, a group of heads that is not full.
TEST(LatentAttention, LongContextsWithTheWidthsOfTheRealModel) {
  for (const int64_t heads : {8, 17}) {
    const Case c{.lengths = {{1, 700}, {3, 129}, {1, 1}, {0, 9}},
                 .heads = heads,
                 .latent = 512,
                 .rope = 64,
                 .page_size = heads == 8 ? 64 : 20,
                 .act = DType::bf16,
                 .padding = 8,
                 .gap = 128};
    expect_like_ref([&](Bench& b) { return run(b, c); });
  }
}

// No padding, pages of 64, V3's stride of q: what the kernels for one generation of cards take. Few rows,
// many rows, tiles of 64 rows that are not full, sequences that several blocks share, one that nobody asks.
TEST(LatentAttention, PackedAsTheRealModelHasThem) {
  for (const int64_t heads : {8, 40, 128}) {
    const Case c{.lengths = {{1, 700}, {3, 129}, {1, 1}, {0, 9}, {2, 64}},
                 .heads = heads,
                 .latent = 512,
                 .rope = 64,
                 .page_size = 64,
                 .act = DType::bf16,
                 .gap = 128};
    expect_like_ref([&](Bench& b) { return run(b, c); }, fmt::format("{} heads", heads));
  }
}

// More sequences than a GPU works on at once, of one or two blocks of tokens: what a block of threads loads
// for its next sequence must not overtake what others still read of this one.
TEST(LatentAttention, ShortSequencesBehindEachOther) {
  Case c{.heads = 65, .latent = 512, .rope = 64, .page_size = 64, .act = DType::bf16, .gap = 128};
  for (int32_t i = 0; i < 72; ++i) c.lengths.push_back({1, 1 + i * 29 % 79});
  expect_like_ref([&](Bench& b) { return run(b, c); });
}

// Few heads of many sequences, which memory bounds: one that several blocks share, two that nobody asks, one
// of them empty, two queries on both sides of the end of a block (with 16 heads a second tile of 16 rows).
TEST(LatentAttention, ManySequencesOfFewHeads) {
  for (const int64_t heads : {3, 16}) {
    Case c{.heads = heads, .latent = 512, .rope = 64, .page_size = heads == 3 ? 128 : 64, .act = DType::bf16};
    for (int32_t i = 0; i < 24; ++i) c.lengths.push_back({1, 1 + i * i % 97});
    c.lengths[3] = {1, 1411}, c.lengths[7] = {0, 0}, c.lengths[8] = {0, 70}, c.lengths[20] = {2, 65};
    c.gap = 128;
    expect_like_ref([&](Bench& b) { return run(b, c); }, fmt::format("{} heads", heads));
  }
}

// Few heads again: sequences of equal and of different lengths that a GPU cuts into a few, a dozen and more
// than 64 pieces, each number of which it adds up in its own way.
TEST(LatentAttention, SequencesInAFewAndInManyPieces) {
  std::vector<std::vector<Lengths>> batches = {std::vector<Lengths>(12, {1, 300}),
                                               {{1, 1000}, {2, 1500}, {1, 500}}};
  if (tested_devices().back().name.starts_with("cuda")) batches.push_back({{1, 8200}});
  for (const auto& lengths : batches) {
    const Case c{.lengths = lengths,
                 .heads = 5,
                 .latent = 512,
                 .rope = 64,
                 .page_size = 64,
                 .act = DType::bf16,
                 .gap = 128,
                 .table_cols = 65};  // longer than one kernel for short contexts takes
    expect_like_ref([&](Bench& b) { return run(b, c); }, fmt::format("{} sequences", lengths.size()));
  }
}

// Where `piece` fixes the cuts, a sequence has the same bits alone and in any batch, whoever works on it.
// Pieces that every context fits into have kernels of their own.
TEST(LatentAttention, FixedPiecesGiveTheSameBitsAloneAndInABatch) {
  for (const auto& [heads, piece] : {std::pair(8, 128), std::pair(8, 1280), std::pair(16, 1280),
                                     std::pair(40, 128), std::pair(40, 1280), std::pair(128, 128)})
    for (const TestedDevice& tested : tested_devices()) {
      const Case alone{.lengths = {{1, 700}},
                       .heads = heads,
                       .latent = 512,
                       .rope = 64,
                       .page_size = 64,
                       .act = DType::bf16,
                       .gap = 128,
                       .piece = piece,
                       .table_cols = 19};
      Case batch = alone, more = alone;
      batch.lengths = {{1, 700}, {3, 129}, {1, 1}, {0, 9}, {2, 1111}};
      more.lengths.resize(150, {1, 65});
      Bench one(*tested.device);
      const std::string bits = read_bits(one.s, run(one, alone)[0]);
      for (const Case& c : {batch, more}) {
        // Minutes elsewhere; and their short pieces would not fit.
        if (c.lengths.size() > 100 && (!tested.name.starts_with("cuda") || piece == 128)) continue;
        Bench many(*tested.device);
        EXPECT_TRUE(read_bits(many.s, run(many, c)[0]).substr(0, bits.size()) == bits)
            << tested.name << ", " << heads << " heads, pieces of " << piece << ", " << c.lengths.size()
            << " sequences";
      }
    }
}

// Pieces of so many sequences, in pages for 8192 tokens, are more than a GPU's scratch memory holds: it may
// refuse them, but not give a row other bits than it has alone.
TEST(LatentAttention, FixedPiecesThatDoNotFitAreRefusedAndNotSummedInAnotherOrder) {
  for (const TestedDevice& tested : tested_devices()) {
    const Case alone{.lengths = {{1, 700}},
                     .heads = 8,
                     .latent = 512,
                     .rope = 64,
                     .page_size = 64,
                     .act = DType::bf16,
                     .gap = 128,
                     .piece = 128,
                     .table_cols = 128};
    Case batch = alone;
    batch.lengths.resize(64, {1, 3});
    Bench one(*tested.device), many(*tested.device);
    const std::string bits = read_bits(one.s, run(one, alone)[0]);
    try {
      EXPECT_TRUE(read_bits(many.s, run(many, batch)[0]).substr(0, bits.size()) == bits) << tested.name;
    } catch (const Error& e) {
      EXPECT_NE(std::string(e.what()).find("fixed pieces of 64 sequences"), std::string::npos) << e.what();
      EXPECT_FALSE(e.hint().empty());
    }
  }
}

// A request's bits do not depend on its neighbours, nor on how many of its tokens are asked for at once.
// Where rows are few, threads share one row's tokens in pieces of 256; with many rows, each thread takes
// rows. The same row has the same bits either way, with any number of threads.
TEST(LatentAttention, PiecesOfALongContextAreJoinedInTheSameWayAloneAndInABatch) {
  for (const DType act : {DType::f32, DType::bf16})
    for (const int32_t tokens : {255, 256, 257, 1025}) {
      Case alone{.lengths = {{1, tokens}}, .heads = 70, .latent = 32, .rope = 8, .page_size = 64, .act = act};
      expect_like_ref([&](Bench& b) { return run(b, alone); }, fmt::format("{} tokens", tokens));
      Case batch = alone;
      batch.lengths = {{1, tokens}, {24, 40}};
      for (const TestedDevice& tested : tested_devices()) {
        Bench one(*tested.device), many(*tested.device);
        const std::string first = read_bits(one.s, run(one, alone)[0]);
        EXPECT_EQ(read_bits(many.s, run(many, batch)[0]).substr(0, first.size()), first) << tested.name;
      }
    }
}

// Rows that follow each other may be read where they lie, others are gathered first.
TEST(LatentAttention, WhereThePagesLieChangesNoBits) {
  for (const DType act : {DType::f32, DType::bf16})
    for (const int64_t padding : {0, 1, 2})
      for (const TestedDevice& tested : tested_devices()) {
        Case c{.lengths = {{2, 333}}, .heads = 5, .latent = 48, .rope = 16, .act = act, .padding = padding};
        std::vector<std::string> bits;
        for (const int64_t page_size : {4, 20, 64, 512}) {
          c.page_size = page_size;
          Bench b(*tested.device);
          bits.push_back(read_bits(b.s, run(b, c)[0]));
        }
        for (const std::string& other : bits) EXPECT_TRUE(other == bits[0]) << tested.name;
      }
}

TEST(LatentAttention, ARowHasTheSameBitsWhateverStandsBesideIt) {
  for (const TestedDevice& tested : tested_devices()) {
    Bench all(*tested.device), one(*tested.device);
    const Tensor many =
        run(all, {.lengths = {{1, 90}, {4, 40}}})[0];  // the first sequence has the same numbers
    const Tensor alone = run(one, {.lengths = {{1, 90}}})[0];
    EXPECT_TRUE(read_bits(one.s, alone) == read_bits(all.s, many.slice_rows(0, 1))) << tested.name;
  }
}

// A cache in e4m3 that something else wrote: in every third sequence scales that are too large, or no powers
// of two, or no numbers. Attention ends, and the other sequences' rows have the bits that they have beside a
// sound cache. Each kind has a sequence to itself: a score that is infinite or NaN would hide the others.
TEST(LatentAttention, ScalesThatNothingWritesSpoilOnlyTheRowsThatSeeThem) {
  constexpr int64_t kLatent = 512, kRope = 64, kPage = 64, kSequences = 12, kPages = 12;
  constexpr int64_t kSlots = kSequences * kPages * kPage, kRow = latent_bytes(kLatent, kRope);
  const auto foreign = [](int64_t sequence, int64_t slot, float sound) {
    if (sequence == 1) return 3.4e38f;
    if (sequence == 4) return 1.9f * sound;
    if (sequence == 7) return slot % 2 ? NAN : -sound;
    return slot % 3 == 0 ? INFINITY : slot % 3 == 1 ? 4.25e37f : 1e-40f;
  };
  std::vector<int32_t> table, lens, starts{0};
  for (int32_t s = 0; s < kSequences; ++s) {
    for (int32_t page = 0; page < kPages; ++page) table.push_back(page * kSequences + s);
    lens.push_back(1 + s * 311 % 701), starts.push_back(s + 1);
  }
  const auto bytes_of = [&](bool spoiled) {
    std::vector<uint8_t> bytes(size_t(kSlots * kRow));
    for (int64_t slot = 0; slot < kSlots; ++slot) {
      const LatentRow to{bytes.data() + slot * kRow, kLatent, kRope};
      const int64_t sequence = slot / kPage % kSequences;
      for (int64_t i = 0; i < kLatent; ++i) {
        const auto code = uint8_t(256 * random_uniform(7, uint64_t(slot), uint64_t(i)));
        to.codes()[i] = (code & 0x7F) == 0x7F ? 0 : code;
      }
      for (int64_t i = 0; i < to.tiles(); ++i) {
        const float sound = std::ldexp(1.0f, int(slot + i) % 4 - 9);
        const bool wrong = spoiled && sequence % 3 == 1 && slot % 5 == i;
        to.set_scale(i, wrong ? foreign(sequence, slot, sound) : sound);
        // No codes there: the score is a number, and only P is out of range.
        if (wrong && sequence == 1) std::fill_n(to.codes() + i * kScaleBlock, kScaleBlock, uint8_t(0));
      }
      for (int64_t i = 0; i < kRope; ++i)
        to.set_key(i, bf16(float(random_normal(8, uint64_t(slot), uint64_t(i)))));
    }
    return bytes;
  };
  const std::vector<uint8_t> sound_bytes = bytes_of(false), spoiled_bytes = bytes_of(true);
  const auto bits = [&](Bench& b, int64_t heads, const std::vector<uint8_t>& bytes) {
    const Tensor cache = b.t.garbage(DType::e4m3, kSlots, kRow);
    on(b.s).upload(bytes.data(), cache);
    const Tensor q_latent = b.t.normal(DType::bf16, kSequences, heads * kLatent),
                 q_rope = b.t.normal(DType::bf16, kSequences, heads * kRope),
                 o = b.t.garbage(DType::bf16, kSequences, heads * kLatent);
    on(b.s).latent_attention({.q_latent = q_latent,
                              .q_rope = q_rope,
                              .cache = cache,
                              .page_table = b.t.indices(kSequences, kPages, table),
                              .kv_lens = b.t.indices(lens),
                              .q_starts = b.t.indices(starts),
                              .o_latent = o,
                              .heads = heads,
                              .latent = kLatent,
                              .rope = kRope,
                              .q_rope_stride = kRope,
                              .page_size = kPage,
                              .sequences = kSequences,
                              .scale = 0.3});
    std::string sound;
    for (int64_t s = 0; s < kSequences; ++s)
      if (s % 3 != 1) sound += read_bits(b.s, o.slice_rows(s, 1));
    return sound;
  };
  for (const int64_t heads : {3, 16, 40})
    for (const TestedDevice& tested : tested_devices()) {
      Bench sound(*tested.device), spoiled(*tested.device);
      EXPECT_TRUE(bits(spoiled, heads, spoiled_bytes) == bits(sound, heads, sound_bytes))
          << tested.name << ", " << heads << " heads";
    }
}

TEST(LatentAttention, PagesOutsideTheCacheAreRefused) {
  expect_refused(
      [](Bench& b) {
        on(b.s).latent_attention({.q_latent = b.t.normal(DType::f32, 1, 4),
                                  .q_rope = b.t.normal(DType::f32, 1, 2),
                                  .cache = b.t.normal(DType::f32, 8, 6),
                                  .page_table = b.t.indices(1, 2, {1, 2}),
                                  .kv_lens = b.t.indices({5}),
                                  .q_starts = b.t.indices({0, 1}),
                                  .o_latent = b.t.garbage(DType::f32, 1, 4),
                                  .heads = 1,
                                  .latent = 4,
                                  .rope = 2,
                                  .page_size = 4,
                                  .sequences = 1,
                                  .scale = 1});
      },
      "cache row");
}

}  // namespace
}  // namespace cachalot
