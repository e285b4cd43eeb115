#include "data/loader.h"

#include <fmt/format.h>

#include <charconv>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "data/checksum.h"
#include "data/prefetch.h"

namespace cachalot {

Json cursor_json(const DataCursor& cursor) {
  return {{"next_row", cursor.next_row}, {"data", fmt::format("{:016x}", cursor.data)}};
}

DataCursor parse_cursor(const Json& json, const std::string& where) {
  const auto fail = [&](const char* field) {
    throw Error(fmt::format("{}: the data cursor has no valid \"{}\"", where, field))
        .hint("the checkpoint is damaged: resume from the one before");
  };
  DataCursor cursor;
  if (!json.is_object() || !json.contains("next_row") || !json["next_row"].is_number_integer() ||
      json["next_row"].get<int64_t>() < 0)
    fail("next_row");
  cursor.next_row = json["next_row"].get<int64_t>();
  if (!json.contains("data") || !json["data"].is_string()) fail("data");
  const std::string& text = json["data"].get_ref<const std::string&>();
  const auto result = std::from_chars(text.data(), text.data() + text.size(), cursor.data, 16);
  if (result.ec != std::errc() || result.ptr != text.data() + text.size()) fail("data");
  return cursor;
}

struct Loader::Reader {
  Reader(std::shared_ptr<const State> state, int64_t first_row, int64_t steps)
      : batches(
            [state, row = first_row, step = steps]() mutable {
              const int64_t rows = state->batch(++step);
              LoadedBatch batch = state->read(row, rows);
              row += rows;
              return std::optional(std::move(batch));
            },
            size_t(state->options.prefetch)) {}
  Prefetcher<LoadedBatch> batches;
};

Loader::Loader(std::vector<TokenStream> parts, LoaderOptions options) : state_(std::make_shared<State>()) {
  CHECK(options.batch > 0 && options.prefetch > 0 && 0 <= options.rank && options.rank < options.ranks);
  CHECK(!parts.empty() && (options.shares.empty() || options.shares.size() == parts.size()));
  if (options.batch % options.ranks != 0)
    throw Error(
        fmt::format("a batch of {} rows cannot be shared evenly by {} ranks", options.batch, options.ranks))
        .hint(fmt::format("--train.batch {}", (options.batch / options.ranks + 1) * options.ranks));
  std::vector<double> shares = options.shares;
  for (const TokenStream& part : parts) {
    state_->samplers.emplace_back(part, options.seq_len, options.packing, options.seed, options.shortest);
    if (options.shares.empty()) shares.push_back(double(state_->samplers.back().rows_per_epoch()));
  }
  state_->mixture = Mixture(shares);
  std::string decides =
      fmt::format("{} {} {} {}", options.seq_len, int(options.packing), options.shortest, options.seed);
  for (size_t i = 0; i < parts.size(); ++i)
    decides += fmt::format(" {:016x} {:a}", parts[i].fingerprint(), shares[i]);
  data_ = checksum64(decides);
  state_->parts = std::move(parts);
  state_->options = std::move(options);
}

Loader::~Loader() = default;

LoadedBatch Loader::State::read(int64_t first_row, int64_t batch_rows) const {
  const int64_t mine = batch_rows / options.ranks, width = options.seq_len + 1;
  LoadedBatch batch{
      .first_row = first_row, .tokens = std::vector<int32_t>(size_t(mine * width)), .rows = {}, .parts = {}};
  for (int64_t r = 0; r < mine; ++r) {
    const Mixture::Place place = mixture.place(first_row + options.rank * mine + r);
    const std::span<int32_t> row = std::span(batch.tokens).subspan(size_t(r * width), size_t(width));
    TokenRange storage;
    size_t filled = 0;
    for (const TokenRange& piece : samplers[size_t(place.part)].row(place.row, storage)) {
      parts[size_t(place.part)].read(piece.first, row.subspan(filled, size_t(piece.count)));
      filled += size_t(piece.count);
    }
    batch.rows.push_back(row.first(filled));
    batch.parts.push_back(int32_t(place.part));
  }
  return batch;
}

LoadedBatch Loader::next() {
  if (!reader_) reader_ = std::make_unique<Reader>(state_, next_row_, steps_);
  auto batch = reader_->batches.next();
  CHECK(batch && batch->first_row == next_row_);
  next_row_ += state_->batch(++steps_);
  return std::move(*batch);
}

void Loader::seek(const DataCursor& cursor, int64_t steps) {
  if (cursor.data != data_)
    throw Error(fmt::format("the checkpoint was trained on data {:016x}; what is given now is {:016x}",
                            cursor.data, data_))
        .hint("resume with the same text or shards in the same order, weights, row length, packing and seed");
  reader_.reset();
  next_row_ = cursor.next_row;
  steps_ = steps;
}

}  // namespace cachalot
