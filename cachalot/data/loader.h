// From token shards to the rows of training steps, the same for any number of ranks and after any stop.
//
// All rows of a run are numbered: row n is row Mixture::place(n).row of that part (data/row_sampler.h). A
// step takes the next `batch` of them, of which rank r of R gets the r-th R-th, in order. So the state of the
// data is one number, the next row; ranks, prefetching and restarts only decide who reads which rows when.
//
// A thread reads ahead. What is read is checked: a damaged shard is an Error, not a strange loss.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/json.h"
#include "data/mixture.h"
#include "data/row_sampler.h"
#include "data/token_stream.h"

namespace cachalot {

// Where a run is in its data; goes into checkpoints. `data` stands for everything that decides which tokens row
// n holds (shards, mixture, row length, packing, seed), not for the number of ranks or the size of a batch.
struct DataCursor {
  int64_t next_row = 0;
  uint64_t data = 0;
  bool operator==(const DataCursor&) const = default;
};
Json cursor_json(const DataCursor& cursor);
DataCursor parse_cursor(const Json& json, const std::string& where);  // Error naming `where` and the field

struct LoaderOptions {
  int64_t seq_len = 0;  // T
  int64_t batch = 0;    // rows of a step, of all ranks together; a multiple of ranks
  // Batches that change: of step 1, 2, ...; absent: `batch`. Called by the thread that reads ahead.
  std::function<int64_t(int64_t step)> batch_of_step = {};
  int rank = 0, ranks = 1;
  Packing packing = Packing::concatenate;
  int64_t shortest = 2;  // tokens of a row, at least (data/row_sampler.h)
  uint64_t seed = 0;
  std::vector<double> shares;  // of the parts (data/mixture.h); empty: as large as they are
  int prefetch = 2;            // steps that are read ahead
};

struct LoadedBatch {
  int64_t first_row = 0;                       // of the step, in the run
  std::vector<int32_t> tokens;                 // of this rank's rows, one after another
  std::vector<std::span<const int32_t>> rows;  // into tokens: T + 1 tokens; with best_fit at times fewer
  std::vector<int32_t> parts;                  // by row
};

class Loader {
 public:
  // `parts`: TokenData::train. Error: a part that holds no row, a batch that the ranks do not divide.
  Loader(std::vector<TokenStream> parts, LoaderOptions options);
  ~Loader();

  LoadedBatch next();
  // Before the next batch. Cursors of all ranks are equal.
  DataCursor cursor() const { return {next_row_, data_}; }
  // Error, if the cursor is of other data. `steps`: that were done before, for batches that change.
  void seek(const DataCursor& cursor, int64_t steps = 0);

  const std::vector<TokenStream>& parts() const { return state_->parts; }
  const RowSampler& sampler(size_t part) const { return state_->samplers[part]; }
  // Rows of each part among the first n of the run: what the statistics of a run need, whenever it was stopped.
  std::vector<int64_t> part_rows(int64_t n) const { return state_->mixture.counts(n); }

 private:
  struct State {  // what the reading thread uses; never changes
    std::vector<TokenStream> parts;
    LoaderOptions options;
    std::vector<RowSampler> samplers;
    Mixture mixture{{1}};
    int64_t batch(int64_t step) const { return options.batch_of_step ? options.batch_of_step(step) : options.batch; }
    LoadedBatch read(int64_t first_row, int64_t batch) const;
  };
  struct Reader;

  std::shared_ptr<State> state_;
  std::unique_ptr<Reader> reader_;  // from the first next() on
  int64_t next_row_ = 0, steps_ = 0;
  uint64_t data_ = 0;
};

}  // namespace cachalot
