// Absorbed decoding with the widths of the real model over a whole table: 1, 2, 6, 64 sequences of 1, 2, 4
// queries on 1, 20, 140, 4096 tokens, 1 to 128 heads, a cache in bf16 and one in e4m3. Sequences differ in
// length, some are empty or asked nothing; what nobody may see is NaN, what no page table means is garbage.
//
// A GPU takes all cases, twice. The oracle is slow: where a case is large it computes two sequences and one
// head of it. The CPU takes the small ones.
#include <algorithm>
#include <cmath>

#include "backend/ops/latent_attention.h"
#include "backend/ops/latent_row.h"
#include "backend/ops/op_testing.h"

namespace cachalot {
namespace {

using namespace testing;

constexpr int64_t kLatent = 512, kRope = 64, kWidth = kLatent + kRope, kPage = 64;
constexpr int64_t kShared = 70;  // whole pages that all sequences draw from
constexpr uint16_t kNan = 0x7FFF;
constexpr int64_t kMostOfRef = 4000,
                  kMostOfCpu = 500;  // pairs of a row and head with a token, of a whole case

struct Sequence {
  int32_t queries = 0, tokens = 0;
};
struct Case {
  std::vector<Sequence> sequences;
  int64_t heads = 1, stride = kRope;  // columns of a head's rotary query
  DType cache = DType::bf16;
  bool planned = false;
  uint64_t seed = 0;
};

// Bits of normal numbers in bf16: a few are drawn, once, and taken in another order for every seed.
uint16_t number(uint64_t seed, int64_t i) {
  constexpr size_t kDrawn = 1 << 16;
  static const std::vector<uint16_t> drawn = [] {
    std::vector<uint16_t> list(kDrawn);
    for (size_t k = 0; k < kDrawn; ++k) list[k] = bf16(float(random_normal(11, 3, k))).bits;
    return list;
  }();
  const uint64_t mixed = (uint64_t(i) + 1 + seed * 7919) * 0x9E3779B97F4A7C15ull;
  return drawn[(mixed >> 40) % kDrawn];
}

// Pages 0, 2, 4 ... of the first 2 kShared are whole; each sequence has one of its own for its last tokens,
// and those between hold nothing but NaN, as do rows behind a sequence's end.
struct Cache {
  std::vector<uint8_t> bytes;
  int64_t row_bytes = 0, slots = 0;
};
void write_row(Cache& cache, DType format, int64_t slot) {
  uint8_t* row = cache.bytes.data() + slot * cache.row_bytes;
  if (format == DType::bf16) {
    for (int64_t i = 0; i < kWidth; ++i) reinterpret_cast<uint16_t*>(row)[i] = number(1, slot * kWidth + i);
    return;
  }
  const LatentRow to{row, kLatent, kRope};
  for (int64_t i = 0; i < to.tiles(); ++i) to.set_scale(i, std::ldexp(1.0f, -5 + int(slot + i) % 3));
  for (int64_t i = 0; i < kWidth; ++i) {
    bf16 x;
    x.bits = number(1, slot * kWidth + i);
    if (i < kLatent) to.codes()[i] = e4m3(16 * float(x)).bits;
    else to.set_key(i - kLatent, x);
  }
}
int64_t own_page(int64_t sequence) { return 2 * kShared + 2 * sequence + 1; }
// The pages that all sequences draw from, made once.
const std::vector<uint8_t>& shared_pages(DType format, int64_t row_bytes) {
  static std::vector<uint8_t> of_format[2];
  std::vector<uint8_t>& bytes = of_format[format == DType::bf16];
  if (!bytes.empty()) return bytes;
  Cache cache{.row_bytes = row_bytes};
  cache.bytes.assign(size_t(2 * kShared * kPage * row_bytes), 0xFF);  // NaN in bf16, e4m3 and f32
  for (int64_t page = 0; page < kShared; ++page)
    for (int64_t i = 0; i < kPage; ++i) write_row(cache, format, 2 * page * kPage + i);
  return bytes = std::move(cache.bytes);
}
Cache make_cache(const Case& c) {
  Cache cache;
  cache.row_bytes = c.cache == DType::bf16 ? 2 * kWidth : latent_bytes(kLatent, kRope);
  cache.slots = kPage * (own_page(int64_t(c.sequences.size())) + 1);
  cache.bytes = shared_pages(c.cache, cache.row_bytes);
  cache.bytes.resize(size_t(cache.slots * cache.row_bytes), 0xFF);
  for (size_t s = 0; s < c.sequences.size(); ++s)
    for (int64_t i = 0; i < c.sequences[s].tokens % kPage; ++i)
      write_row(cache, c.cache, own_page(int64_t(s)) * kPage + i);
  return cache;
}

// Memory that lives as long as the object, which knows no other numbers than those it is given.
class Memory {
 public:
  explicit Memory(Bench& b) : b_(b) {}
  Tensor holding(DType dtype, int64_t rows, int64_t cols, const void* data) {
    buffers_.emplace_back(b_.device, std::max<int64_t>(rows * cols * size_of(dtype), 1), "test");
    const Tensor t = make_tensor(buffers_.back().data(), dtype, rows, cols);
    if (t.size() > 0) on(b_.s).upload(data, t);
    return t;
  }

 private:
  Bench& b_;
  std::vector<Buffer> buffers_;
};

// The output of these sequences and heads, as bits, each of `times` times.
using Bits = std::vector<uint16_t>;
std::vector<Bits> run(Device& device, const Case& c, const Cache& cache,
                      const std::vector<int64_t>& sequences, const std::vector<int64_t>& heads, int times) {
  Bench b(device);
  Memory memory(b);
  int64_t columns = 3;
  for (const Sequence& s : c.sequences) columns = std::max(columns, s.tokens / kPage + 3);
  std::vector<int32_t> table, lens, starts{0};
  std::vector<uint16_t> q_latent, q_rope;
  const auto count = int64_t(heads.size());
  for (const int64_t s : sequences) {
    const Sequence& its = c.sequences[size_t(s)];
    lens.push_back(its.tokens);
    starts.push_back(starts.back() + its.queries);
    const int64_t whole = its.tokens / kPage, rest = its.tokens % kPage;
    for (int64_t page = 0; page < columns; ++page)
      table.push_back(page < whole            ? int32_t(2 * ((page * 11 + s * 17) % kShared))
                      : page == whole && rest ? int32_t(own_page(s))
                      : page % 2              ? -5
                                              : 1 << 30);
    for (int64_t q = 0; q < its.queries; ++q)
      for (const int64_t h : heads) {
        const int64_t at = ((s * 8 + q) * 128 + h) * 1024;
        for (int64_t i = 0; i < kLatent; ++i) q_latent.push_back(number(c.seed, at + i));
        for (int64_t i = 0; i < c.stride; ++i)
          q_rope.push_back(i < kRope ? number(c.seed, at + kLatent + i) : kNan);
      }
  }
  const int64_t rows = starts.back(), n = int64_t(sequences.size());
  const Tensor page_table = b.t.indices(n, columns, table), kv_lens = b.t.indices(lens),
               q_starts = b.t.indices(starts), plan = b.t.garbage(DType::i32, 1, latent_plan_size(n));
  if (c.planned)
    on(b.s).latent_plan({.page_table = page_table,
                         .kv_lens = kv_lens,
                         .q_starts = q_starts,
                         .plan = plan,
                         .cache = c.cache,
                         .rows = rows,
                         .heads = count,
                         .page_size = kPage,
                         .sequences = n});
  LatentAttention a{
      .q_latent = memory.holding(DType::bf16, rows, count * kLatent, q_latent.data()),
      .q_rope = memory.holding(DType::bf16, rows, count * c.stride, q_rope.data()),
      .cache = memory.holding(c.cache, cache.slots, c.cache == DType::bf16 ? kWidth : cache.row_bytes,
                              cache.bytes.data()),
      .page_table = page_table,
      .kv_lens = kv_lens,
      .q_starts = q_starts,
      .heads = count,
      .latent = kLatent,
      .rope = kRope,
      .q_rope_stride = c.stride,
      .page_size = kPage,
      .sequences = n,
      .scale = 0.07,
      .plan = c.planned ? plan : Tensor{}};
  const Bits nan(size_t(rows * count * kLatent), kNan);
  std::vector<Bits> outputs;
  for (int i = 0; i < times; ++i) {
    a.o_latent = memory.holding(DType::bf16, rows, count * kLatent, nan.data());
    on(b.s).latent_attention(a);
    Bits& bits = outputs.emplace_back(nan.size());
    if (!bits.empty()) on(b.s).download(a.o_latent, bits.data());
    on(b.s).synchronize();
  }
  return outputs;
}

std::vector<int64_t> all_of(int64_t n) {
  std::vector<int64_t> list(static_cast<size_t>(n));
  for (int64_t i = 0; i < n; ++i) list[size_t(i)] = i;
  return list;
}
std::vector<double> numbers_of(const Bits& bits) {
  std::vector<double> list;
  list.reserve(bits.size());
  for (const uint16_t b : bits) {
    bf16 x;
    x.bits = b;
    list.push_back(float(x));
  }
  return list;
}

// Of all rows and heads of a case, those of the given sequences and heads.
Bits part_of(const Bits& bits, const Case& c, const std::vector<int64_t>& sequences,
             const std::vector<int64_t>& heads) {
  Bits part;
  for (const int64_t wanted : sequences) {
    int64_t row = 0;
    for (int64_t s = 0; s < wanted; ++s) row += c.sequences[size_t(s)].queries;
    for (int64_t q = 0; q < c.sequences[size_t(wanted)].queries; ++q, ++row)
      for (const int64_t h : heads) {
        const auto from = bits.begin() + (row * c.heads + h) * kLatent;
        part.insert(part.end(), from, from + kLatent);
      }
  }
  return part;
}

void expect_right(const Case& c) {
  int64_t pairs = 0;
  for (const Sequence& s : c.sequences) pairs += int64_t(s.queries) * s.tokens * c.heads;
  const auto takes = [&](const TestedDevice& d) {
    return d.name == "cuda" || (d.name.starts_with("cpu") && pairs <= kMostOfCpu);
  };
  if (std::none_of(tested_devices().begin(), tested_devices().end(), takes)) return;
  const auto n = int64_t(c.sequences.size());
  const std::vector<int64_t> sequences = all_of(n), heads = all_of(c.heads);
  std::vector<int64_t> some = sequences, few = heads;  // what the oracle computes
  if (pairs > kMostOfRef) {
    const auto other = int64_t(c.seed % uint64_t(n)), head = int64_t(c.seed * 31 % uint64_t(c.heads));
    some = other == 0 ? std::vector<int64_t>{0} : std::vector<int64_t>{0, other};
    few = {c.seed % 2 ? head : c.heads - 1};
  }
  const Cache cache = make_cache(c);
  const std::vector<double> expected = numbers_of(run(ref_device(), c, cache, some, few, 1)[0]);
  for (const TestedDevice& tested : tested_devices()) {
    if (!takes(tested)) continue;
    const ScopedTrace trace(__FILE__, __LINE__, tested.name);
    const std::vector<Bits> got = run(*tested.device, c, cache, sequences, heads, 2);
    const auto wrong =
        std::count_if(got[0].begin(), got[0].end(), [](uint16_t x) { return (x & 0x7F80) == 0x7F80; });
    EXPECT_EQ(wrong, 0) << "numbers that are not finite";
    EXPECT_METRIC(numbers_of(part_of(got[0], c, some, few)), expected, bound_of(DType::bf16));
    EXPECT_TRUE(got[1] == got[0]) << "other bits the second time";
  }
}

void expect_table(int32_t tokens) {
  uint64_t number = 0;
  for (const int32_t batch : {1, 2, 6, 64})
    for (const int32_t queries : {1, 2, 4})
      for (const int64_t heads : {1, 3, 9, 63, 64, 126, 128})
        for (const DType cache : {DType::bf16, DType::e4m3}) {
          ++number;
          Case c{.heads = heads,
                 .stride = number % 3 ? kRope : kRope + 128,
                 .cache = cache,
                 .planned = number % 4 < 2,
                 .seed = number};
          for (int32_t s = 0; s < batch; ++s) {
            Sequence its{queries, std::max(tokens, queries)};  // the first is the longest
            if (s > 0) its.tokens = 1 + int32_t(double(tokens) * random_uniform(5, number, uint64_t(s)));
            its.queries = std::min(queries, its.tokens);
            if (s % 7 == 5) its.queries = 0;        // asked nothing
            if (s % 9 == 1 && s > 1) its = {0, 0};  // empty
            c.sequences.push_back(its);
          }
          if (batch == 2 && number % 5 == 0) c.sequences[1] = {0, 0};
          const ScopedTrace trace(__FILE__, __LINE__,
                                  fmt::format("{} sequences of {} queries on {} tokens, {} heads, {}", batch,
                                              queries, tokens, heads, name_of(cache)));
          expect_right(c);
          if (Test::HasFailure()) return;
        }
}

TEST(LatentTable, OneToken) { expect_table(1); }
TEST(LatentTable, TwentyTokens) { expect_table(20); }
TEST(LatentTable, TwoPagesAndABit) { expect_table(140); }
TEST(LatentTable, ManyPages) { expect_table(4096); }

}  // namespace
}  // namespace cachalot
