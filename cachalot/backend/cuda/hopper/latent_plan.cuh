// How a step's plan lies in memory, and what a block reads from it (latent_decode.h says what a plan is).
#pragma once

#include <algorithm>

#include "backend/cuda/hopper/latent_decode.h"

namespace cachalot::cuda::hopper {

// A sequence as a block sees it.
struct SequenceShape {
  int32_t first_row, queries, tokens;  // rows of T
  __device__ int tiles(int heads) const { return (queries * heads + kTileRows - 1) / kTileRows; }
  __device__ int blocks() const { return (tokens + kBlockTokens - 1) / kBlockTokens; }
};

// Blocks [begin_block, ...) of begin_sequence to [..., end_block) of end_sequence, both included; nothing
// when end_sequence < begin_sequence. The first sequence continues with its piece number first_piece.
// Its shape, the page of its first block and the memory of its pieces are here too: a kernel then reads what
// it begins with at once, not one thing after the other.
struct Part {
  int32_t begin_sequence, begin_block, end_sequence, end_block, first_piece;
  SequenceShape shape;
  int32_t page;
  int32_t slot, slots;  // the first, and how many
};

struct PlanHead {
  int32_t tiles, parts, unit_blocks, merge_count, most_pieces;
  int32_t begun;  // blocks of the launches that have used this plan
};

constexpr int kMostParts = 256, kHeadWords = 8, kPartWords = 11;
constexpr int32_t kUncut = 1 << 30;  // unit_blocks of a plan that cuts evenly

// [head | parts | piece_slots [S+1] | merged_sequences [S] | arrived [S] | flags | left]. The slots:
// piece i of tile t of sequence s, with `tiles` tiles, lies at the memory of
// 64 rows number piece_slots[s] + i tiles + t. piece_slots[s+1] - piece_slots[s]: tiles times pieces; 0 for a
// sequence of one piece, which is written to its place at once.
struct PlanView {
  int32_t* words;
  __host__ __device__ PlanHead& head() const { return *reinterpret_cast<PlanHead*>(words); }
  __host__ __device__ Part& part(int p) const {
    return *reinterpret_cast<Part*>(words + kHeadWords + p * kPartWords);
  }
  // The same as kernels read it, past the first-level cache: they may, ahead of what is under way.
  __device__ PlanHead read_head() const { return read<PlanHead>(0); }
  __device__ Part read_part(int p) const { return read<Part>(kHeadWords + p * kPartWords); }
  template <class T> __device__ T read(int at) const {
    union {
      T value;
      int32_t words[sizeof(T) / 4];
    } x;
#pragma unroll
    for (int i = 0; i < int(sizeof(T) / 4); ++i) x.words[i] = __ldcg(words + at + i);
    return x.value;
  }
  __host__ __device__ int32_t* piece_slots() const { return words + kHeadWords + kMostParts * kPartWords; }
  // Sequences that are left to merge_kernel, merge_count of them, in any order.
  __host__ __device__ int32_t* merged_sequences(int64_t sequences) const {
    return piece_slots() + sequences + 1;
  }
  // Pieces of a sequence that lie in memory, and what their blocks tell each other; zero between kernels.
  __host__ __device__ int32_t* arrived(int64_t sequences) const {
    return merged_sequences(sequences) + sequences;
  }
  // Two a slot, zero between kernels: the left and the right half of a piece lie in memory.
  __host__ __device__ int32_t* flags(int64_t sequences) const { return arrived(sequences) + sequences; }
  // Halves of tiles of two pieces whose first did not wait for the second: how many, zero between kernels;
  // then of each its sequence and twice its tile, plus one if it is the right one.
  __host__ __device__ int32_t* left(const LatentStep& s) const {
    return flags(s.sequences) + 4 * s.multiprocessors;
  }
};

// Without queries, and with lengths that make no sense, `queries` is 0: nobody works on it.
__device__ inline SequenceShape shape_of(const LatentStep& s, int sequence) {
  const int begin = __ldcg(s.q_starts + sequence), end = __ldcg(s.q_starts + sequence + 1),
            tokens = __ldcg(s.kv_lens + sequence);
  const bool fine =
      0 <= begin && begin <= end && end <= s.rows && 0 <= tokens && tokens <= s.table_cols * s.page_size;
  return {begin, fine ? end - begin : 0, tokens};
}

__device__ inline void tell_wrong_lengths(const LatentStep& s, int sequence) {
  const int end = s.q_starts[sequence + 1], queries = end - s.q_starts[sequence],
            tokens = s.kv_lens[sequence];
  s.faults.fine(FaultOf::latent_attention, tokens, s.table_cols * s.page_size + 1);
  s.faults.fine(FaultOf::latent_attention, end, s.rows + 1);
  if (queries > 0 && tokens > 0) s.faults.fine(FaultOf::latent_attention, tokens - queries, tokens);
}

}  // namespace cachalot::cuda::hopper
