// TensorBoard event files: scalars that `tensorboard --logdir RUN/tb` shows.
//
// A file events.out.tfevents.<seconds>.<host> holds TFRecords, each
//   u64 length, u32 masked CRC-32C of the length, the bytes, u32 masked CRC-32C of the bytes    little-endian
//   masked(c) = rotate_right(c, 15) + 0xa282ead8
// and each record is a protocol buffer Event: 1 wall_time (double, seconds), 2 step (varint), 3 file_version
// ("brain.Event:2", the first record only), 5 summary { 1 value { 1 tag, 2 simple_value (float) } }.
// Source: tensorflow/core/lib/io/record_writer.h, core/util/event.proto, core/framework/summary.proto.
#pragma once

#include <cstdint>
#include <fstream>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace cachalot {

uint32_t crc32c(std::string_view bytes);  // Castagnoli, reflected, as iSCSI has it

class TensorBoardWriter {
 public:
  // Begins a new file in `directory`, which is made. `wall_time`: seconds since 1970, part of the name, where
  // it is later than in the names that are there.
  // Error when the file cannot be written.
  TensorBoardWriter(const std::string& directory, double wall_time);

  // One event with one value for each tag; values that are not finite are written as they are.
  void scalars(int64_t step, double wall_time, const std::vector<std::pair<std::string, double>>& values);
  // A run goes on from `step`: what earlier files say of it and later steps is void (Event field 7,
  // SessionLog START).
  void restart(int64_t step, double wall_time);
  const std::string& path() const { return path_; }

 private:
  void record(std::string_view event);
  std::string path_;
  std::ofstream file_;
};

}  // namespace cachalot
