// libFuzzer: any bytes as an input file; the first byte says which kind. Every document that comes out is valid
// UTF-8 without NUL, and reading on from any position gives the same documents as reading in one go.
#include <unistd.h>

#include <cstdint>
#include <cstdlib>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/files.h"
#include "data/documents.h"
#include "data/encoding.h"

namespace {

void expect(bool holds) {
  if (!holds) std::abort();
}

std::string file_of(std::string_view bytes) {
  static const std::string path = "/tmp/cachalot_documents_fuzz_" + std::to_string(::getpid());
  cachalot::write_file_atomic(path, bytes);
  return path;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size < 2) return 0;
  cachalot::ReadOptions options;
  options.format = cachalot::DocumentFormat(1 + data[0] % 3);
  options.max_bytes = 1 + data[1] * 8;
  const cachalot::InputFile file{.path = file_of({reinterpret_cast<const char*>(data) + 2, size - 2}),
                                 .part = "p"};
  try {
    std::vector<cachalot::Record> records;
    std::vector<cachalot::ReadPosition> positions;
    {
      cachalot::RecordReader reader(file, options);
      for (cachalot::Record record; reader.next(record);) {
        records.push_back(record);
        positions.push_back(reader.position());
        expect(records.size() <= size);
      }
    }
    const size_t middle = records.size() / 2;
    if (middle > 0) {
      cachalot::RecordReader reader(file, options, positions[middle - 1]);
      for (size_t i = middle; i < records.size(); ++i) {
        cachalot::Record record;
        expect(reader.next(record) && record.bytes == records[i].bytes &&
               record.number == records[i].number && record.drop == records[i].drop &&
               reader.position() == positions[i]);
      }
    }
    for (cachalot::Record& record : records) {
      cachalot::Document document;
      std::string why;
      if (cachalot::parse_record(file, options, record, document, &why) != cachalot::Drop::none) continue;
      expect(cachalot::is_utf8(document.text) && document.text.find('\0') == std::string::npos &&
             int64_t(document.text.size()) <= options.max_bytes * 4 && cachalot::is_utf8(document.id));
    }
  } catch (const cachalot::Error&) {
  }
  return 0;
}
