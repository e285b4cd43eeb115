#include "data/packing.h"

#include <algorithm>
#include <bit>
#include <numeric>

#include "base/error.h"

namespace cachalot {

namespace {

// Which amounts of room in {0, ..., n-1} some row has: a bitmap under a bitmap, ..., each bit above saying
// whether its 64 bits below hold any. Finding the next one set looks at a word or two a level.
class RoomIndex {
 public:
  explicit RoomIndex(int64_t n) {
    do {
      n = (n + 63) / 64;
      levels_.emplace_back(size_t(n), 0);
    } while (n > 1);
  }
  void insert(int64_t i) {
    for (auto& level : levels_) {
      level[size_t(i >> 6)] |= uint64_t(1) << (i & 63);
      i >>= 6;
    }
  }
  void erase(int64_t i) {
    for (auto& level : levels_) {
      if ((level[size_t(i >> 6)] &= ~(uint64_t(1) << (i & 63))) != 0) return;
      i >>= 6;
    }
  }
  int64_t next(int64_t i) const {  // the smallest at or above i; -1: none
    for (size_t up = 0; up < levels_.size(); ++up, i = (i >> 6) + 1) {
      const auto& level = levels_[up];
      if (i >> 6 >= int64_t(level.size())) return -1;
      const uint64_t word = level[size_t(i >> 6)] & ~uint64_t(0) << (i & 63);
      if (word == 0) continue;
      int64_t found = (i & ~int64_t(63)) + std::countr_zero(word);
      while (up-- > 0) found = found * 64 + std::countr_zero(levels_[up][size_t(found)]);
      return found;
    }
    return -1;
  }

 private:
  std::vector<std::vector<uint64_t>> levels_;  // the lowest first
};

}  // namespace

std::vector<std::vector<TokenRange>> pack_best_fit(std::span<const TokenRange> documents, int64_t capacity) {
  CHECK(capacity > 0);
  std::vector<std::vector<TokenRange>> rows;
  std::vector<TokenRange> pieces;  // shorter than a row
  for (TokenRange d : documents) {
    CHECK(d.count > 0);
    for (; d.count >= capacity; d.first += capacity, d.count -= capacity)
      rows.push_back({{d.first, capacity}});
    if (d.count > 0) pieces.push_back(d);
  }
  // Longest first; of equally long ones the first first.
  std::vector<int64_t> begin(size_t(capacity) + 1, 0);
  for (const TokenRange& p : pieces) ++begin[size_t(capacity - p.count)];
  std::exclusive_scan(begin.begin(), begin.end(), begin.begin(), int64_t{0});
  std::vector<TokenRange> sorted(pieces.size());
  for (const TokenRange& p : pieces) sorted[size_t(begin[size_t(capacity - p.count)]++)] = p;

  RoomIndex room(capacity);
  std::vector<std::vector<int64_t>> by_room(static_cast<size_t>(capacity));  // rows with that much room
  for (const TokenRange& p : sorted) {
    int64_t left = room.next(p.count), row;
    if (left < 0) {
      row = int64_t(rows.size());
      rows.emplace_back();
      left = capacity;
    } else {
      auto& candidates = by_room[size_t(left)];
      row = candidates.back();
      candidates.pop_back();
      if (candidates.empty()) room.erase(left);
    }
    rows[size_t(row)].push_back(p);
    left -= p.count;
    if (left == 0) continue;
    if (by_room[size_t(left)].empty()) room.insert(left);
    by_room[size_t(left)].push_back(row);
  }
  for (auto& row : rows)
    std::sort(row.begin(), row.end(),
              [](const TokenRange& a, const TokenRange& b) { return a.first < b.first; });
  return rows;
}

void PackedRows::append(std::span<const std::vector<TokenRange>> rows) {
  for (const auto& row : rows) {
    pieces_.insert(pieces_.end(), row.begin(), row.end());
    first_.push_back(int64_t(pieces_.size()));
    for (const TokenRange& p : row) tokens_ += p.count;
  }
}

PackedRows pack_best_fit(const TokenStream& stream, int64_t capacity, int64_t shortest) {
  PackedRows packed;
  int64_t before = 0;
  std::vector<TokenRange> documents;
  for (const Shard& shard : stream.shards()) {
    documents.clear();
    for (int64_t i = 0, begin = 0; i < shard.documents(); ++i) {
      const int64_t end = shard.document_end(i);
      documents.push_back({before + begin, end - begin});
      begin = end;
    }
    auto rows = pack_best_fit(documents, capacity);
    std::erase_if(rows, [&](const auto& row) {
      int64_t tokens = 0;
      for (const TokenRange& p : row) tokens += p.count;
      return tokens < shortest;
    });
    packed.append(rows);
    before += shard.tokens();
  }
  return packed;
}

std::vector<std::span<const int32_t>> split_documents(std::span<const int32_t> row, int32_t end_of_text) {
  std::vector<std::span<const int32_t>> documents;
  while (!row.empty()) {
    const auto end = std::find(row.begin(), row.end(), end_of_text);
    const size_t count = end == row.end() ? row.size() : size_t(end - row.begin()) + 1;
    documents.push_back(row.first(count));
    row = row.subspan(count);
  }
  return documents;
}

}  // namespace cachalot
